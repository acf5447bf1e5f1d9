package peer

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// messageBytesMax bounds one encoded message: Raft gives out appends of at most
// 1 MiB, or a single entry, which is at most 1 MiB, and their headers.
const messageBytesMax = 2<<20 + 64<<10

// checkHello holds what a connection says of itself against what is known. It
// gives a Denied problem for a stranger.
func checkHello(h *blixardv1.PeerHello, clusterID string, self uint64, known func(uint64) bool) error {
	switch {
	case h == nil:
		return problem.New(problem.Invalid, "peer.hello", "the stream does not begin with a hello")
	case h.GetClusterId() != clusterID:
		return problem.New(problem.Denied, "peer.other_cluster", "the peer is of cluster %q, this one of %q", h.GetClusterId(), clusterID).
			WithHint("is the address of a node of another cluster in the list of members?")
	case h.GetTo() != self:
		return problem.New(problem.Denied, "peer.other_replica", "the peer asks for replica %d, this is %d", h.GetTo(), self).
			WithHint("was the address given to another node?")
	case h.GetFrom() == self || !known(h.GetFrom()):
		return problem.New(problem.Denied, "peer.unknown", "replica %d is no member", h.GetFrom()).
			WithHint("was it removed? A node that was removed joins again as a new one")
	}
	return nil
}

// Decode reads one message of the peer of Raft id from to that of id self, of at
// most 2 MiB and 64 KiB, and checks what its stream promises. It keeps nothing of b.
func Decode(b []byte, from, self uint64) (*raftpb.Message, error) {
	if len(b) > messageBytesMax {
		return nil, fmt.Errorf("a message of %d bytes, at most %d are taken", len(b), messageBytesMax)
	}
	m := &raftpb.Message{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("no message of Raft: %w", err)
	}
	return m, checkMessage(m, from, self)
}

// checkMessage refuses what no honest peer sends.
func checkMessage(m *raftpb.Message, from, self uint64) error {
	switch {
	case m.GetFrom() != from || m.GetTo() != self:
		return fmt.Errorf("a message from %d to %d on the stream from %d to %d", m.GetFrom(), m.GetTo(), from, self)
	case raft.IsLocalMsg(m.GetType()), m.GetType() == raftpb.MsgProp:
		return fmt.Errorf("a message of type %v, which stays within a replica", m.GetType())
	case len(m.GetResponses()) > 0:
		return fmt.Errorf("a message of type %v with answers for the disk, which stay within a replica", m.GetType())
	}
	last := m.GetIndex()
	for _, e := range m.GetEntries() {
		if m.GetType() == raftpb.MsgApp && e.GetIndex() != last+1 {
			return fmt.Errorf("an append whose entry %d comes after %d", e.GetIndex(), last)
		}
		last = e.GetIndex()
	}
	return nil
}

package sim

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/blixard/blixard/peer"
)

// network carries messages between hosts, and loses, repeats and delays them.
type network struct {
	w *world
	// cut paths lose everything; a path has a direction.
	cut map[[2]int]bool
	// clogged paths deliver nothing before that time.
	clogged map[[2]int]time.Duration
}

// cutBoth cuts the path between two hosts in both directions, or mends it.
func (n *network) cutBoth(a, b *host, on bool) {
	n.cut[[2]int{a.n, b.n}] = on
	n.cut[[2]int{b.n, a.n}] = on
}

// carry lets deliver happen at another host, or not, or twice.
func (n *network) carry(from, to int, deliver func()) {
	f := &n.w.faults
	path := [2]int{from, to}
	copies := 1
	switch {
	case n.cut[path]:
		n.w.count("cut")
		return
	case n.w.chance(f.loss):
		n.w.count("lost")
		return
	case n.w.chance(f.twice):
		n.w.count("twice")
		copies = 2
	}
	for range copies {
		d := 100*time.Microsecond + n.w.tail(f.delay)
		if left := n.clogged[path] - n.w.now; left > d {
			d = left + n.w.between(0, time.Millisecond)
		}
		n.w.after(d, deliver)
	}
}

// carryOnce is carry for what goes over a connection: it is not repeated, and broken
// is called for what is lost.
func (n *network) carryOnce(from, to int, deliver, broken func()) {
	path := [2]int{from, to}
	if n.cut[path] || n.w.chance(n.w.faults.loss/2) {
		n.w.count("calls lost")
		broken()
		return
	}
	d := 100*time.Microsecond + n.w.tail(n.w.faults.delay)
	if left := n.clogged[path] - n.w.now; left > d {
		d = left + n.w.between(0, time.Millisecond)
	}
	n.w.after(d, deliver)
}

// Send is the [replica.Sender] of a host.
func (h *host) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		to := h.w.byReplica(m.GetTo())
		if to == nil {
			continue
		}
		h.w.mix(uint64(h.n), uint64(to.n), uint64(m.GetType()), m.GetIndex())
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			h.w.fail("host %d: a message cannot be encoded: %v", h.n, err)
			return
		}
		if m.GetType() == raftpb.MsgVoteResp && !m.GetReject() {
			h.w.voted(h, to)
		}
		if m.GetType() == raftpb.MsgSnap {
			h.sendSnapshot(to, m, data)
			continue
		}
		from, id := m.GetFrom(), to.raftID
		deliver := func() {
			if to.raftID == id { // else it has joined as another
				to.receive(from, data)
			}
		}
		if h.w.readPasses(h, to, m, deliver) {
			continue
		}
		h.w.net.carry(h.n, to.n, deliver)
	}
}

func (h *host) receive(from uint64, data []byte) {
	h.act(func() {
		m, err := peer.Decode(data, from, h.raftID)
		if err != nil {
			h.w.fail("host %d: %v", h.n, err)
			return
		}
		h.steps.Step(m)
	})
}

// sendSnapshot sends a snapshot message with its body, and tells Raft how it
// ended.
func (h *host) sendSnapshot(to *host, m *raftpb.Message, data []byte) {
	index := m.GetSnapshot().GetMetadata().GetIndex()
	life, from := h.life, h.raftID
	report := func(ok bool) {
		h.w.after(time.Millisecond, func() {
			h.actIn(life, func() { h.steps.ReportSnapshot(m.GetTo(), ok) })
		})
	}
	in, err := h.disk.OpenSnapshot(index)
	if err != nil {
		report(false)
		return
	}
	var body bytes.Buffer
	_, _ = body.ReadFrom(in)
	arrived := false
	h.w.net.carry(h.n, to.n, func() {
		to.act(func() {
			arrived = true
			m, err := peer.Decode(data, from, to.raftID)
			if err == nil {
				in := &flipped{in: bytes.NewReader(body.Bytes()), at: -1}
				if h.w.chance(h.w.faults.flips) {
					h.w.count("flips in snapshots")
					in.at = h.w.IntN(body.Len())
				}
				err = to.steps.ReceiveSnapshot(context.Background(), m, in)
				if err == nil && in.at >= 0 && in.read > 0 && !sameContent(body.Bytes(), in.at) {
					h.w.fail("host %d took a snapshot of index %d that was damaged on its way", to.n, index)
				}
			}
			to.w.count("snapshots sent")
			to.w.note("host %d: snapshot of index %d from host %d: %v", to.n, index, h.n, err)
			report(err == nil)
		})
	})
	h.w.after(5*time.Second, func() {
		if !arrived {
			report(false)
		}
	})
}

// sameContent tells whether a compressed body means the same with a flipped bit: not
// every bit of a frame's header matters, and none behind the record that ends a state.
func sameContent(body []byte, at int) bool {
	other := bytes.Clone(body)
	other[at] ^= 1
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return false
	}
	defer d.Close()
	one, err := d.DecodeAll(body, nil)
	if err != nil || d.Reset(bufio.NewReader(bytes.NewReader(other))) != nil {
		return false
	}
	two := make([]byte, len(one))
	// Read as a replica does, which stops where the state ends.
	_, err = io.ReadFull(d, two)
	return err == nil && bytes.Equal(one, two)
}

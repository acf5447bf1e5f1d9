package peer

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Replica is what the transport serves. All methods must be safe for concurrent
// use and, but for ReceiveSnapshot, must not block.
type Replica interface {
	Step(m *raftpb.Message)
	ReportUnreachable(raftID uint64)
	ReportSnapshot(raftID uint64, ok bool)
	OpenSnapshot(index uint64) (io.ReadCloser, error)
	ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader) error
}

// The defaults of [Config], and further limits.
const (
	receiptTimeout    = 5 * time.Second
	snapshotTimeout   = 30 * time.Second
	snapshotRate      = 64 << 20
	snapshotsAtOnce   = 2
	reconnectFirst    = 50 * time.Millisecond
	reconnectMost     = 2 * time.Second
	receiptInterval   = time.Second
	badMessagesMax    = 16
	snapshotChunkSize = 256 << 10
)

// Config of a transport. ClusterID, RaftID, Dial and Logger are needed.
type Config struct {
	ClusterID string
	// RaftID of this replica.
	RaftID uint64
	// Dial connects to the peer of that Raft id at an address, HOST:PORT, and makes
	// sure of who is there. It must not wait for the connection. The transport
	// closes it.
	Dial func(raftID uint64, address string) (*grpc.ClientConn, error)
	// Allow refuses a caller that may not speak for that replica; nil takes all. It
	// must be safe for concurrent use.
	Allow func(ctx context.Context, from, incarnation uint64) error
	// Incarnation counts the starts of this daemon.
	Incarnation uint64
	// Refused, when set, is told that a peer will have nothing more to do with this
	// node: "auth.removed", or "peer.older_start". It must be safe for concurrent use
	// and not block.
	Refused func(err *problem.Error)
	// ReceiptTimeout: a peer that is sent messages and gives no receipt in that time
	// is dialled anew. It must be longer than the second between receipts; 0 means
	// 5 s.
	ReceiptTimeout time.Duration
	// SnapshotRate bounds the sending of snapshots, in bytes a second and for each;
	// 0 means 64 MiB.
	SnapshotRate int
	// SnapshotTimeout: a snapshot of which nothing is taken in that time is given
	// up. 0 means 30 s.
	SnapshotTimeout time.Duration
	Logger          *slog.Logger
}

// Stats of one peer.
type Stats struct {
	Address string
	// Sent, Dropped and Received messages, and how often it was dialled.
	Sent, Dropped, Received, Dials uint64
	// Waiting messages.
	Waiting int
	// LastReceipt is when the peer last proved that it reads; zero when never.
	LastReceipt time.Time
}

// Transport sends to peers and serves them. Its methods are safe for concurrent
// use; the caller must Close it.
type Transport struct {
	cfg       Config
	ctx       context.Context
	cancel    context.CancelFunc
	running   sync.WaitGroup
	snapshots chan struct{} // a slot for each that is being sent
	refused   atomic.Uint64

	mu      sync.Mutex
	replica Replica
	peers   map[uint64]*peer
	// starts are the newest that were heard of, by Raft id.
	starts map[uint64]uint64
	closed bool
}

// New makes a transport without peers. Nothing is sent or taken before Serve was
// told of the replica.
func New(cfg Config) *Transport {
	if cfg.ReceiptTimeout == 0 {
		cfg.ReceiptTimeout = receiptTimeout
	}
	if cfg.SnapshotRate == 0 {
		cfg.SnapshotRate = snapshotRate
	}
	if cfg.SnapshotTimeout == 0 {
		cfg.SnapshotTimeout = snapshotTimeout
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Transport{cfg: cfg, ctx: ctx, cancel: cancel, snapshots: make(chan struct{}, snapshotsAtOnce), peers: map[uint64]*peer{}, starts: map[uint64]uint64{}}
}

// SetReplica tells of the replica, which needs the transport to begin.
func (t *Transport) SetReplica(r Replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.replica = r
}

func (t *Transport) target() Replica {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.replica
}

// SetPeers makes the given replicas, by their Raft id, with their addresses, the
// peers. Others are let go of, and what waits for them is dropped.
func (t *Transport) SetPeers(addresses map[uint64]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	for id, p := range t.peers {
		if addresses[id] != p.address {
			p.cancel()
			delete(t.peers, id)
		}
	}
	for id, address := range addresses {
		if id == t.cfg.RaftID || t.peers[id] != nil {
			continue
		}
		p := newPeer(t, id, address)
		t.peers[id] = p
		t.running.Go(p.run)
	}
}

// Send puts messages on their way to their peers. It never blocks; what can't be
// sent is dropped, and Raft is told.
func (t *Transport) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		t.mu.Lock()
		p, r := t.peers[m.GetTo()], t.replica
		t.mu.Unlock()
		switch {
		case p == nil || r == nil:
			if m.GetType() == raftpb.MsgSnap && r != nil {
				r.ReportSnapshot(m.GetTo(), false)
			}
		case m.GetType() == raftpb.MsgSnap:
			p.sendSnapshot(m)
		default:
			if !p.put(m) {
				r.ReportUnreachable(m.GetTo())
			}
		}
	}
}

// Stats of all peers, by their Raft id.
func (t *Transport) Stats() map[uint64]Stats {
	t.mu.Lock()
	peers := maps.Clone(t.peers)
	t.mu.Unlock()
	all := map[uint64]Stats{}
	for id, p := range peers {
		all[id] = p.snapshotStats()
	}
	return all
}

// Refused counts messages and streams that were not taken since the start.
func (t *Transport) Refused() uint64 { return t.refused.Load() }

func (t *Transport) known(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[id] != nil
}

func (t *Transport) hello(to uint64) *blixardv1.PeerHello {
	return &blixardv1.PeerHello{ClusterId: t.cfg.ClusterID, From: t.cfg.RaftID, To: to, Incarnation: t.cfg.Incarnation}
}

// Close ends everything and waits for it.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.running.Wait()
	return nil
}

// greet holds a hello against what this end is and who calls.
func (t *Transport) greet(ctx context.Context, h *blixardv1.PeerHello) error {
	if err := checkHello(h, t.cfg.ClusterID, t.cfg.RaftID, t.known); err != nil {
		return err
	}
	if t.cfg.Allow != nil {
		if err := t.cfg.Allow(ctx, h.GetFrom(), h.GetIncarnation()); err != nil {
			return err
		}
	}
	return t.newest(h.GetFrom(), h.GetIncarnation())
}

// codeOlderStart refuses a replica of which a newer start was heard: two processes
// that both take themselves for it would vote twice.
const codeOlderStart = "peer.older_start"

// OlderStart is why a node is refused that is not the newest start of its replica.
func OlderStart(from, incarnation, newest uint64) *problem.Error {
	return problem.New(problem.Conflict, codeOlderStart, "start %d of replica %d speaks, and start %d was heard already", incarnation, from, newest).
		WithHint("its data directory was copied, or restored from a backup: remove the copy, or remove the node from the cluster and let it join with an empty --data-dir")
}

// newest refuses an older start of a replica than the newest that was heard.
func (t *Transport) newest(from, incarnation uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if newest := t.starts[from]; incarnation < newest {
		return OlderStart(from, incarnation, newest)
	}
	t.starts[from] = incarnation
	return nil
}

package replica

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// The defaults of [Config].
const (
	tickInterval = 100 * time.Millisecond
	// electionTicks and heartbeatTicks: a follower asks for votes after 1 to 2 s
	// of silence, a leader speaks ten times in that.
	electionTicks  = 10
	heartbeatTicks = 1
	// snapshotEntries: a restart replays at most that many, or four times the bytes of
	// a snapshot, in well under a second.
	snapshotEntries = 100_000
	snapshotBytes   = 64 << 20
	trailingEntries = 1000
)

// The limits of what is under way.
const (
	// commandBytesMax bounds one encoded command. The largest are reports of 1,024
	// allocations of some 500 bytes.
	commandBytesMax = 1 << 20
	// underWayBytesMax bounds the encoded commands between Propose and their
	// answer: 32 of the largest, or 100,000 usual ones.
	underWayBytesMax = 32 << 20
)

// Sender carries messages to peers. Send must not block and may lose messages;
// Raft repeats what matters. It is called by several goroutines.
type Sender interface {
	Send(messages []*raftpb.Message)
}

// Config of a replica. Dir and NodeID are needed.
type Config struct {
	// Dir holds the log and the snapshots; it is made when missing. Nothing else
	// may be kept there.
	Dir string
	// NodeID of the node; a directory of another node is refused.
	NodeID string
	// ClusterID the directory must belong to; empty takes the one it has, or a
	// random one for a new directory.
	ClusterID string
	// Limits of the state; the zero value means [state.DefaultLimits].
	Limits state.Limits
	// Logger; nil means slog.Default().
	Logger *slog.Logger
	// RaftID of this replica, never used by another of the cluster; 0 means
	// FirstID.
	RaftID uint64
	// Join begins a new directory without a log: the leader of the cluster sends
	// what there is. Otherwise a new directory begins a new cluster whose only voter
	// is this replica.
	Join bool
	// Sender of messages to peers; nil while there are none.
	Sender Sender
	// Tick is Raft's unit of time; 0 means 100 ms.
	Tick time.Duration
	// Now gives the time that is put into commands which carry none; nil means
	// time.Now.
	Now func() time.Time
	// SnapshotEntries is how many entries are applied between snapshots at least;
	// 0 means 100,000.
	SnapshotEntries uint64
	// SnapshotBytes of commands, applied since the last snapshot, that are as good a
	// reason for the next; 0 means 64 MiB. Before they are four times the size of a
	// snapshot, or 256 MiB where that is less, they are none.
	SnapshotBytes int64
	// SnapshotInterval after which a snapshot is written if anything was applied; 0
	// means never for that reason.
	SnapshotInterval time.Duration
	// TrailingEntries stay in memory behind a snapshot, for peers that are a little
	// late: one that is later is sent the snapshot. 0 means 1,000.
	TrailingEntries uint64
	// SegmentBytes of the log's files; 0 means what suits the file system.
	SegmentBytes int64
	// Hook as in [wal.Config], for tests of crashes and failing disks.
	Hook func(point string) error
}

// Status of a replica, for people and metrics.
type Status struct {
	ClusterID string
	Term      uint64
	Commit    uint64
	Applied   uint64
	// Leader is whether this replica leads; LeaderID is the Raft id of the one
	// that does, 0 when none is known.
	Leader   bool
	LeaderID uint64
	// LogBytes on disk, and the index of the newest snapshot.
	LogBytes      int64
	SnapshotIndex uint64
	// StorageFull is set while changes are refused for lack of space.
	StorageFull bool
}

// Replica is a running participant. Its methods are safe for concurrent use.
type Replica struct {
	config  Config
	logger  *slog.Logger
	log     Storage
	storage *raft.MemoryStorage
	state   *state.State

	core      *core // of the loop
	proposals *mailbox[*proposal]
	reads     *mailbox[read]
	messages  *mailbox[*raftpb.Message]
	appends   *mailbox[*raftpb.Message]
	applies   *mailbox[applyTask]
	// snapshots has room for one; snapshotting is set from its request to its end.
	snapshots    chan *snapshotRequest
	snapshotting atomic.Bool
	// noSpace is set when the newest one found none; sinceNoSpace, of the loop, counts
	// the time since.
	noSpace      atomic.Bool
	sinceNoSpace time.Duration
	calls        *mailbox[func(*core)]

	// Of the appender.
	// Invariant: unsynced is set while the log has entries, a term or a vote that no
	// sync has made durable; the term and vote it was given last are the staged ones.
	unsynced               bool
	stagedTerm, stagedVote uint64

	// Of the applier.
	// conf is the membership after the newest applied entry.
	conf *raftpb.ConfState
	// confMoved asks for a snapshot that names the newest members.
	confMoved     bool
	appliedTerm   uint64
	sinceSnapshot uint64
	// bytesSinceSnapshot of commands; due is set when time asks for a snapshot, and
	// sinceDue, of the loop, counts it.
	bytesSinceSnapshot int64
	due                bool
	sinceDue           time.Duration
	// applied is told of what was applied, and turns lets the loop or the applier
	// have its turn while another waits for it: set when there are no goroutines,
	// see Steps.
	applied func([]applyTask)
	turns   *Steps

	// underWay bytes of commands between Propose and their answer.
	underWay           atomic.Int64
	term, commit, lead atomic.Uint64
	// leads is the term in which this replica leads, 0 when it does not.
	leads         atomic.Uint64
	snapshotBytes atomic.Int64
	changed       broadcast

	// observing guards observers, which are told what is applied.
	observing sync.Mutex
	observers []*Observer

	running  sync.WaitGroup
	stopping chan struct{}
	done     chan struct{}

	mu sync.Mutex
	// received snapshots that Raft has not taken yet, by their index; nil while one
	// is on its way.
	received map[uint64]*state.State
	err      error // why it failed
	stopped  bool
	failed   bool
}

// Done is closed when the replica cannot go on; Err then says why.
func (r *Replica) Done() <-chan struct{} { return r.done }

// Err is why the replica failed; nil while it has not.
func (r *Replica) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// fail stops the replica for good.
func (r *Replica) fail(err error) {
	r.mu.Lock()
	first := !r.failed && !r.stopped
	if first {
		r.failed, r.err = true, err
	}
	r.mu.Unlock()
	if !first {
		return
	}
	r.logger.Error("the replica stops", "err", err)
	close(r.done)
	r.stop()
}

// stop ends the goroutines.
func (r *Replica) stop() {
	r.mu.Lock()
	first := !r.stopped
	r.stopped = true
	r.mu.Unlock()
	if first {
		close(r.stopping)
	}
}

// stopError is what callers are told once the replica stops.
func (r *Replica) stopError() error {
	p := problem.New(problem.Unavailable, "replica.stopped", "the node's replica has stopped").
		WithHint("see the daemon's log; start the daemon again")
	if err := r.Err(); err != nil {
		return p.WithCause(err)
	}
	return p
}

// Close stops the replica, waits for its goroutines and lets go of the
// directory. Changes under way are answered with "change.unknown".
func (r *Replica) Close() error {
	r.stop()
	r.running.Wait()
	return r.log.Close()
}

// Status gives the figures of the moment.
func (r *Replica) Status() Status {
	lead := r.lead.Load()
	return Status{
		ClusterID: r.log.ClusterID(), Term: r.term.Load(), Commit: r.commit.Load(), Applied: r.View().Index(),
		Leader: lead == r.config.RaftID, LeaderID: lead, LogBytes: r.log.Bytes(), SnapshotIndex: r.log.SnapshotIndex(),
		StorageFull: r.log.Full(),
	}
}

// LeadTerm is the term in which this replica leads, as far as it knows; 0 when it
// does not. Who finds the same term before and after knows that it led in between.
func (r *Replica) LeadTerm() uint64 { return r.leads.Load() }

// Stats gives the state's counters.
func (r *Replica) Stats() state.Stats { return r.state.Stats() }

// View gives the state as it is here, which may be behind the cluster's: see
// Read.
func (r *Replica) View() *state.View { return r.state.View() }

// broadcast wakes everyone who waits.
type broadcast struct {
	mu      sync.Mutex
	ch      chan struct{}
	waiting bool
}

// wait gives a channel that the next broadcast closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	b.waiting = true
	return b.ch
}

func (b *broadcast) broadcast() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting {
		close(b.ch)
		b.ch, b.waiting = nil, false
	}
}

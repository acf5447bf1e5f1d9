package replica

import (
	"errors"
	"io"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/wal"
)

// Storage is the durable half of a replica. *[wal.Log] is the product's and says
// what each method promises; the simulator has a model of it.
type Storage interface {
	Append(hs *raftpb.HardState, entries []*raftpb.Entry)
	Sync() error
	Full() bool
	Reserve() bool
	Bytes() int64
	ClusterID() string
	SnapshotIndex() uint64
	SaveSnapshot(meta *raftpb.SnapshotMetadata, write func(io.Writer) error) error
	OpenSnapshot(index uint64) (io.ReadCloser, error)
	ReceiveSnapshot(meta *raftpb.SnapshotMetadata, body io.Reader) error
	OpenReceived(index uint64) (io.ReadCloser, error)
	InstallSnapshot(meta *raftpb.SnapshotMetadata) error
	DropReceived(index uint64)
	Release() error
	Close() error
}

// Steps is a replica without goroutines and clock: whoever has it says what
// happens next, which is all that differs from a replica of Open. It is for the
// simulator, and not safe for concurrent use.
type Steps struct {
	*Replica
	messages []*raftpb.Message
	reads    []read
	// batches wait for the disk; the first staged ones are with it.
	batches []*raftpb.Message
	staged  int
	due     bool
}

// OpenSteps restores a replica from what a storage recovered. applied is
// told of every run of entries just after it was applied, and of the index of a
// snapshot that took the place of the state.
func OpenSteps(config Config, log Storage, rec *wal.Recovered, applied func(restored uint64, entries []*raftpb.Entry)) (*Steps, error) {
	s := &Steps{Replica: build(config.withDefaults(), log)}
	s.turns = s
	s.applied = func(tasks []applyTask) {
		for _, t := range tasks {
			applied(t.restore.GetIndex(), t.entries)
		}
	}
	_, _, err := s.restore(rec)
	return s, err
}

// Tick moves Raft's clock.
func (s *Steps) Tick() { s.tick() }

// Turn lets the core take what waits for it. An answer that it gives may call it again:
// such a turn within a turn must not use the slices that the outer one holds.
func (s *Steps) Turn() {
	messages, reads := s.messages, s.reads
	s.messages, s.reads = nil, nil
	s.messages, s.reads = s.turn(messages, reads)
}

// Waiting tells whether a Turn, an Apply, a BeginAppend and a snapshot have
// something to do.
func (s *Steps) Waiting() (turn, apply, appends, snapshot bool) {
	turn = s.Replica.messages.len() > 0 || s.Replica.reads.len() > 0 || s.proposals.len() > 0 || s.calls.len() > 0
	return turn, s.applies.len() > 0, s.staged == 0 && (len(s.batches) > 0 || s.appends.len() > 0), len(s.snapshots) > 0
}

// Queued is how many messages, changes, reads, batches and runs of entries wait.
func (s *Steps) Queued() int {
	return s.Replica.messages.len() + s.Replica.reads.len() + s.proposals.len() + s.calls.len() +
		len(s.batches) + s.appends.len() + s.applies.len()
}

// BeginAppend gives the next batches to the storage. EndAppend must follow when
// the disk is done. It gives false when the replica has failed.
func (s *Steps) BeginAppend() bool {
	s.batches = append(s.batches, s.appends.take(nil)...)
	var ok bool
	s.staged, s.due, ok = s.stage(s.batches)
	return ok
}

// EndAppend syncs what BeginAppend staged and answers Raft. When the disk is full
// it gives full, and is to be called again later. ok is false when the replica
// has failed.
func (s *Steps) EndAppend() (full, ok bool) {
	if s.due {
		err := s.log.Sync()
		if errors.Is(err, wal.ErrFull) {
			s.log.Reserve()
			return true, true
		}
		if err != nil {
			s.fail(err)
			return false, false
		}
		s.unsynced = false
	}
	done := s.batches[:s.staged]
	s.batches, s.staged = s.batches[s.staged:], 0
	return false, s.finish(done)
}

// Apply carries out what was committed. It gives false when the replica has
// failed.
func (s *Steps) Apply() bool { return s.carry(s.applies.take(nil)) }

// Snapshot writes the snapshot that waits. It gives false when the replica has
// failed.
func (s *Steps) Snapshot() bool {
	select {
	case req := <-s.snapshots:
		return s.fulfil(req)
	default:
		return true
	}
}

// ReadIndexAsync is ReadIndex that calls done, exactly once, in a later Turn.
func (s *Steps) ReadIndexAsync(done func(uint64, error)) { s.readIndexAsync(done) }

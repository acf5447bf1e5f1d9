package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// receivedMax snapshots may wait for Raft: one under way, and one of the next
// leader.
const receivedMax = 2

// OpenSnapshot gives the body of the snapshot of that index, to be sent to a
// peer. The caller closes it.
func (r *Replica) OpenSnapshot(index uint64) (io.ReadCloser, error) { return r.log.OpenSnapshot(index) }

// ReceiveSnapshot takes a snapshot message and the body that belongs to it. It
// stores and checks the body before Raft hears of the message. On an error Raft
// does not, and nothing is left. It is safe for concurrent use.
func (r *Replica) ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader) error {
	meta := m.GetSnapshot().GetMetadata()
	index := meta.GetIndex()
	if m.GetType() != raftpb.MsgSnap || index == 0 || meta.GetTerm() == 0 || len(meta.GetConfState().GetVoters()) == 0 {
		return problem.New(problem.Invalid, "snapshot.message", "the message announces no snapshot")
	}
	next, err := r.reserveReceived(ctx, index)
	if err != nil {
		return err
	}
	if next == nil { // it is here, and Raft did not want it the last time
		r.messages.put(m)
		return nil
	}
	err = r.log.ReceiveSnapshot(meta, contextReader{ctx, body})
	if err == nil {
		var in io.ReadCloser
		if in, err = r.log.OpenReceived(index); err == nil {
			err = errors.Join(readState(in, next), in.Close())
		}
	}
	if err == nil && next.View().Index() != index {
		err = problem.New(problem.Invalid, "snapshot.damaged", "the snapshot of index %d holds the state of index %d", index, next.View().Index())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.received, index)
		r.log.DropReceived(index)
		return fmt.Errorf("receive snapshot of index %d: %w", index, err)
	}
	r.received[index] = next
	r.messages.put(m)
	return nil
}

// reserveReceived makes room for a snapshot and gives an empty state for it, or
// nil when that snapshot is here already.
func (r *Replica) reserveReceived(ctx context.Context, index uint64) (*state.State, error) {
	// After two rounds of the loop, Raft has seen whatever was received before, and
	// has raised the commit index if it took it.
	for range 2 {
		if err := r.call(ctx, func(*core) {}); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, twice := r.received[index]; known != nil {
		return nil, nil
	} else if twice {
		return nil, problem.New(problem.Unavailable, "snapshot.busy", "the snapshot of index %d is being received already", index).
			WithHint("send it later")
	}
	commit, applied := r.commit.Load(), r.View().Index()
	for old, whole := range r.received {
		// Those above the commit index were not wanted, and neither were those that
		// the state passed without them. Those between may be waiting for the
		// applier, which takes the newest.
		if whole != nil && (old > commit || old <= applied) {
			delete(r.received, old)
			r.log.DropReceived(old)
		}
	}
	if len(r.received) >= receivedMax {
		return nil, problem.New(problem.Unavailable, "snapshot.busy", "snapshots of index %v are being received already", slices.Sorted(maps.Keys(r.received))).
			WithHint("send it later")
	}
	r.received[index] = nil
	return state.New(r.config.Limits), nil
}

// contextReader reads until the context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// follow makes state and storage follow an installed snapshot. It belongs to the
// appender, and gives false when the replica stops.
func (r *Replica) follow(meta *raftpb.SnapshotMetadata) bool {
	t := applyTask{restore: meta, restored: make(chan struct{})}
	if !r.applies.put(t) {
		return false
	}
	if r.turns != nil {
		r.turns.Apply()
	}
	select {
	case <-t.restored:
	case <-r.stopping:
		return false
	}
	if err := r.storage.ApplySnapshot(&raftpb.Snapshot{Metadata: meta}); err != nil && !errors.Is(err, raft.ErrSnapOutOfDate) {
		r.fail(fmt.Errorf("follow snapshot of index %d: %w", meta.GetIndex(), err))
		return false
	}
	if err := r.log.Release(); err != nil {
		r.fail(err)
		return false
	}
	return true
}

// adopt makes a received snapshot the state. It belongs to the applier, and gives
// false when the replica stops.
func (r *Replica) adopt(t applyTask) bool {
	index := t.restore.GetIndex()
	r.mu.Lock()
	next := r.received[index]
	for old, whole := range r.received {
		if whole != nil && old <= index {
			delete(r.received, old)
			r.log.DropReceived(old)
		}
	}
	r.mu.Unlock()
	if next == nil {
		r.fail(problem.New(problem.Internal, "snapshot.lost", "the snapshot of index %d was installed and is not here", index))
		return false
	}
	if !planted.Is(planted.SnapshotNotTaken) {
		before := r.state.View().Index()
		r.state.Adopt(next)
		r.observed(before)
	}
	r.conf, r.appliedTerm, r.sinceSnapshot = t.restore.GetConfState(), t.restore.GetTerm(), 0
	if r.applied != nil {
		r.applied([]applyTask{t})
	}
	r.changed.broadcast()
	r.logger.Info("took over a snapshot of the leader", "index", index)
	close(t.restored)
	return true
}

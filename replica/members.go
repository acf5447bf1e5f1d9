package replica

import (
	"context"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
)

// Membership is who takes part, as this replica knows it.
type Membership struct {
	// Voters and Learners by their Raft ids. While members change, Outgoing is the
	// majority that must agree as well.
	Voters, Outgoing, Learners []uint64
	// Leader is the Raft id of the leader, 0 when none is known.
	Leader uint64
	// Progress of each member, by its Raft id; known to the leader only.
	Progress map[uint64]Progress
}

// Progress of a member, as the leader knows it.
type Progress struct {
	// Match is the newest entry that it is known to have on its disk.
	Match uint64
	// Active tells that it answered within an election timeout.
	Active bool
	// Snapshot is the index of the snapshot it is being sent, 0 when it is not.
	Snapshot uint64
}

// call runs f in the loop and waits for it.
func (r *Replica) call(ctx context.Context, f func(*core)) error {
	done := make(chan struct{})
	if !r.calls.put(func(c *core) {
		defer close(done)
		f(c)
	}) {
		return r.stopError()
	}
	if r.turns != nil {
		r.turns.Turn()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return problem.From(ctx.Err())
	case <-r.stopping:
		return r.stopError()
	}
}

// Membership tells who takes part.
func (r *Replica) Membership(ctx context.Context) (Membership, error) {
	var m Membership
	err := r.call(ctx, func(c *core) {
		m = Membership{
			Voters: c.conf.GetVoters(), Outgoing: c.conf.GetVotersOutgoing(), Learners: c.conf.GetLearners(),
			Leader: c.lead, Progress: map[uint64]Progress{},
		}
		if c.lead != c.id {
			return
		}
		for id, p := range c.rn.Status().Progress {
			m.Progress[id] = Progress{Match: p.Match, Active: p.RecentActive || id == c.id, Snapshot: p.PendingSnapshot}
		}
	})
	return m, err
}

// ChangeMembers proposes a change of the members, of several at once by joint
// consensus. It does not wait for it, and Raft leaves it out while an earlier
// change is under way: look at Membership and repeat.
func (r *Replica) ChangeMembers(ctx context.Context, change *raftpb.ConfChangeV2) error {
	var refused error
	if err := r.call(ctx, func(c *core) { refused = c.proposeConf(change) }); err != nil {
		return err
	}
	return refused
}

// TransferLeader asks the voter of that Raft id to lead in this one's place. It
// does not wait for it.
func (r *Replica) TransferLeader(ctx context.Context, to uint64) error {
	var refused error
	err := r.call(ctx, func(c *core) {
		if c.lead != c.id {
			refused = notLeader(c.lead)
			return
		}
		c.rn.TransferLeader(to)
	})
	if err != nil {
		return err
	}
	return refused
}

// ReportUnreachable tells Raft that messages to a peer were lost.
func (r *Replica) ReportUnreachable(raftID uint64) {
	r.calls.put(func(c *core) { c.rn.ReportUnreachable(raftID) })
}

// ReportSnapshot tells Raft how the sending of a snapshot ended.
func (r *Replica) ReportSnapshot(raftID uint64, ok bool) {
	status := raft.SnapshotFailure
	if ok {
		status = raft.SnapshotFinish
	}
	r.calls.put(func(c *core) { c.rn.ReportSnapshot(raftID, status) })
}

// RaftID of this replica.
func (r *Replica) RaftID() uint64 { return r.config.RaftID }

// Compact writes a snapshot now and drops what of the log is not needed any more.
// It gives "snapshot.busy" while one is being written.
func (r *Replica) Compact(ctx context.Context) error {
	done := make(chan error, 1)
	if !r.applies.put(applyTask{compact: done}) {
		return r.stopError()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return problem.From(ctx.Err())
	case <-r.stopping:
		return r.stopError()
	}
}

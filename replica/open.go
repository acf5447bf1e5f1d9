package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/wal"
)

const (
	// raftID of the first voter of a cluster.
	raftID = 1
	// firstIndex and firstTerm of the snapshot that every new cluster begins
	// with: it says who votes.
	firstIndex = 1
	firstTerm  = 1
	// replayEntries are applied at once while replaying.
	replayEntries = 4096
)

// Open takes Dir, replays what it holds, and gives a running replica. With one
// voter it leads and has applied everything acknowledged when Open returns. The
// problems of [wal.Open] pass through. The caller must Close it.
func Open(ctx context.Context, config Config) (*Replica, error) {
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.Limits == (state.Limits{}) {
		config.Limits = state.DefaultLimits()
	}
	if config.Tick == 0 {
		config.Tick = tickInterval
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.SnapshotEntries == 0 {
		config.SnapshotEntries = snapshotEntries
	}
	log, recovered, err := wal.Open(wal.Config{
		Dir: config.Dir, NodeID: config.NodeID, ClusterID: config.ClusterID,
		SegmentBytes: config.SegmentBytes, Logger: config.Logger, Hook: config.Hook,
	})
	if err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	r := &Replica{
		config: config, logger: config.Logger, log: log, storage: raft.NewMemoryStorage(), state: state.New(config.Limits),
		proposals: newMailbox[*proposal](), reads: newMailbox[read](), messages: newMailbox[*raftpb.Message](),
		appends: newMailbox[*raftpb.Message](), applies: newMailbox[applyTask](), snapshots: make(chan snapshotRequest),
		stopping: make(chan struct{}), done: make(chan struct{}),
	}
	last, err := r.restore(recovered)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open replica: %w", err), log.Close())
	}
	r.running.Add(4)
	go r.loop()
	go r.appender()
	go r.applier()
	go r.snapshotter()
	if len(r.conf.GetVoters()) == 1 {
		// The first entry of the new term comes after everything recovered.
		if err := r.WaitApplied(ctx, last+1); err != nil {
			return nil, errors.Join(fmt.Errorf("open replica: replay to index %d: %w", last, err), r.Close())
		}
	}
	return r, nil
}

// restore brings state, storage and core to what was recovered, and gives the
// index of the newest entry.
func (r *Replica) restore(rec *wal.Recovered) (last uint64, err error) {
	began := time.Now()
	meta := rec.Snapshot
	if meta == nil {
		index, term := uint64(firstIndex), uint64(firstTerm)
		meta = &raftpb.SnapshotMetadata{Index: &index, Term: &term, ConfState: &raftpb.ConfState{Voters: []uint64{raftID}}}
		if err := r.log.SaveSnapshot(meta, r.state.View().WriteSnapshot); err != nil {
			return 0, err
		}
	} else if err := r.restoreSnapshot(meta.GetIndex()); err != nil {
		return 0, err
	}
	r.conf = meta.GetConfState()
	if err := r.storage.ApplySnapshot(&raftpb.Snapshot{Metadata: meta}); err != nil {
		return 0, err
	}
	hs := rec.HardState
	if hs == nil {
		term, commit := meta.GetTerm(), meta.GetIndex()
		hs = &raftpb.HardState{Term: &term, Commit: &commit}
	}
	if err := r.storage.SetHardState(hs); err != nil {
		return 0, err
	}
	if err := r.storage.Append(rec.Entries); err != nil {
		return 0, err
	}
	r.replay(rec.Entries, hs.GetCommit())
	r.core, err = newCore(coreConfig{id: raftID, storage: r.storage, applied: hs.GetCommit(), logger: r.logger})
	if err != nil {
		return 0, err
	}
	if len(r.conf.GetVoters()) == 1 {
		if err := r.core.campaign(); err != nil {
			return 0, err
		}
		r.messages.wake <- struct{}{}
	}
	last, err = r.storage.LastIndex()
	r.logger.Debug("replica recovered", "index", last, "snapshot", meta.GetIndex(), "entries", len(rec.Entries), "took", time.Since(began))
	return last, err
}

func (r *Replica) restoreSnapshot(index uint64) error {
	in, err := r.log.OpenSnapshot(index)
	if err != nil {
		return err
	}
	err = errors.Join(r.state.Restore(in), in.Close())
	if problem.HasCode(err, "snapshot.damaged") {
		return fmt.Errorf("snapshot of index %d: %w", index, err)
	}
	return err
}

// replay applies the entries that were known to be committed. Nobody waits for
// them any more.
func (r *Replica) replay(entries []*raftpb.Entry, commit uint64) {
	for len(entries) > 0 && entries[0].GetIndex() <= commit {
		var batch []state.Entry
		for len(entries) > 0 && entries[0].GetIndex() <= commit && len(batch) < replayEntries {
			batch = append(batch, decode(entries[0], nil))
			r.appliedTerm = entries[0].GetTerm()
			entries = entries[1:]
		}
		r.state.Apply(batch)
		r.sinceSnapshot += uint64(len(batch))
	}
}

package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime/debug"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/wal"
)

const (
	// FirstID is the Raft id of the first voter of a cluster.
	FirstID = 1
	// firstIndex and firstTerm of the snapshot that every new cluster begins
	// with: it says who votes.
	firstIndex = 1
	firstTerm  = 1
)

// Open takes Dir, replays what it holds, and gives a running replica. With one
// voter it leads and has applied everything acknowledged when Open returns. The
// problems of [wal.Open] pass through. The caller must Close it.
func Open(ctx context.Context, config Config) (*Replica, error) {
	config = config.withDefaults()
	log, recovered, err := wal.Open(wal.Config{
		Dir: config.Dir, NodeID: config.NodeID, ClusterID: config.ClusterID,
		SegmentBytes: config.SegmentBytes, Logger: config.Logger, Hook: config.Hook,
	})
	if err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	r := build(config, log)
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		boundMemory(0) // what is restored is not known yet
	}
	restored := collectLess()
	last, alone, err := r.restore(recovered)
	restored()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open replica: %w", err), log.Close())
	}
	r.running.Add(5)
	go r.loop()
	go r.collector()
	go r.appender()
	go r.applier()
	go r.snapshotter()
	if alone {
		// The first entry of the new term comes after everything recovered.
		if err := r.WaitApplied(ctx, last+1); err != nil {
			return nil, errors.Join(fmt.Errorf("open replica: replay to index %d: %w", last, err), r.Close())
		}
	}
	return r, nil
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Limits == (state.Limits{}) {
		c.Limits = state.DefaultLimits()
	}
	if c.Tick == 0 {
		c.Tick = tickInterval
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = snapshotEntries
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = snapshotBytes
	}
	if c.TrailingEntries == 0 {
		c.TrailingEntries = trailingEntries
	}
	if c.RaftID == 0 {
		c.RaftID = FirstID
	}
	return c
}

// build makes a replica that has nothing restored and does nothing yet.
func build(config Config, log Storage) *Replica {
	return &Replica{
		config: config, logger: config.Logger, log: log, storage: raft.NewMemoryStorage(), state: state.New(config.Limits),
		proposals: newMailbox[*proposal](), reads: newMailbox[read](), messages: newMailbox[*raftpb.Message](),
		appends: newMailbox[*raftpb.Message](), applies: newMailbox[applyTask](), snapshots: make(chan *snapshotRequest, 1),
		calls: newMailbox[func(*core)](), received: map[uint64]*state.State{},
		stopping: make(chan struct{}), done: make(chan struct{}),
	}
}

// restore brings state, storage and core to what was recovered. It gives the
// index of the newest entry, and whether this replica is the only voter; the loop
// applies what was committed.
func (r *Replica) restore(rec *wal.Recovered) (last uint64, alone bool, err error) {
	began := time.Now()
	meta := rec.Snapshot
	switch {
	case meta != nil:
		err = r.restoreSnapshot(meta.GetIndex())
	case !r.config.Join:
		index, term := uint64(firstIndex), uint64(firstTerm)
		meta = &raftpb.SnapshotMetadata{Index: &index, Term: &term, ConfState: &raftpb.ConfState{Voters: []uint64{r.config.RaftID}}}
		r.state.Apply([]state.Entry{{Index: index}})
		err = r.log.SaveSnapshot(meta, func(w io.Writer) error {
			_, err := writeState(w, r.state.View())
			return err
		})
	}
	if err != nil {
		return 0, false, err
	}
	hs, entries := rec.HardState, rec.Entries
	if planted.Is(planted.RestartForgetsVote) && hs != nil {
		hs = &raftpb.HardState{Term: hs.Term, Commit: hs.Commit}
	}
	if planted.Is(planted.RestartLosesLast) && len(entries) > 0 && entries[len(entries)-1].GetIndex() > hs.GetCommit() {
		entries = entries[:len(entries)-1]
	}
	if meta != nil {
		if err := r.storage.ApplySnapshot(&raftpb.Snapshot{Metadata: meta}); err != nil {
			return 0, false, err
		}
		if hs == nil {
			term, commit := meta.GetTerm(), meta.GetIndex()
			hs = &raftpb.HardState{Term: &term, Commit: &commit}
		}
	}
	if hs != nil {
		if err := r.storage.SetHardState(hs); err != nil {
			return 0, false, err
		}
	}
	if err := r.storage.Append(entries); err != nil {
		return 0, false, err
	}
	r.conf, r.appliedTerm = meta.GetConfState(), meta.GetTerm()
	c := coreConfig{id: r.config.RaftID, storage: r.storage, applied: meta.GetIndex(), logger: r.logger}
	_, _ = rand.Read(c.life[:]) // never fails
	r.core, err = newCore(c)
	if err != nil {
		return 0, false, err
	}
	alone = r.core.sole()
	for _, e := range rec.Entries {
		alone = alone && e.GetType() == raftpb.EntryNormal
	}
	r.messages.wake <- struct{}{} // the loop begins with what there is
	last, err = r.storage.LastIndex()
	r.logger.Debug("replica recovered", "index", last, "snapshot", meta.GetIndex(), "entries", len(rec.Entries), "took", time.Since(began))
	return last, alone, err
}

func (r *Replica) restoreSnapshot(index uint64) error {
	in, err := r.log.OpenSnapshot(index)
	if err != nil {
		return err
	}
	err = errors.Join(readState(in, r.state), in.Close())
	if problem.HasCode(err, "snapshot.damaged") {
		return fmt.Errorf("snapshot of index %d: %w", index, err)
	}
	return err
}

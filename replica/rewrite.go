package replica

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/wal"
)

// Survivor is a stopped replica that is left of a cluster. It is not safe for
// concurrent use.
type Survivor struct {
	// View of everything in its log, committed or not: an entry that was
	// acknowledged may not be known to be committed here.
	View *state.View
	// Term of the newest entry.
	Term uint64
	// Members of Raft after the newest entry.
	Members *raftpb.ConfState

	state *state.State
}

// Survive reads the log of a stopped replica. Config is that of [Open]; nothing is
// changed but a torn end, which is cut. The problems of [wal.Open] pass through.
func Survive(config Config) (*Survivor, error) {
	config = config.withDefaults()
	log, rec, err := wal.Open(wal.Config{Dir: config.Dir, NodeID: config.NodeID, ClusterID: config.ClusterID, Logger: config.Logger})
	if err != nil {
		return nil, fmt.Errorf("read the survivor: %w", err)
	}
	s, err := survive(build(config, log), rec)
	return s, errors.Join(err, log.Close())
}

func survive(r *Replica, rec *wal.Recovered) (*Survivor, error) {
	if rec.Snapshot == nil {
		return nil, errors.New("read the survivor: it has no state yet")
	}
	if _, _, err := r.restore(rec); err != nil {
		return nil, fmt.Errorf("read the survivor: %w", err)
	}
	s := &Survivor{Term: rec.Snapshot.GetTerm(), Members: rec.Snapshot.GetConfState(), state: r.state}
	entries := make([]state.Entry, 0, len(rec.Entries))
	for _, e := range rec.Entries {
		s.Term = e.GetTerm()
		if e.GetType() != raftpb.EntryNormal {
			s.Members = r.core.applyConf(e)
		}
		entries = append(entries, decode(e, nil))
	}
	r.state.Apply(entries)
	s.View = r.state.View()
	return s, nil
}

// Found begins a log in config.Dir, which must be new, with what survived and change
// as the next entry behind it: its only voter is config.RaftID, and its cluster
// config.ClusterID. A change that the state refuses is given as its problem.
func (s *Survivor) Found(config Config, change *blixardv1.Command) error {
	config = config.withDefaults()
	// The change is in the first snapshot, so that nobody ever sees a state without it.
	index := s.View.Index() + 1
	if r := s.state.Apply([]state.Entry{{Index: index, Command: change}}); r[0].Problem != nil {
		return r[0].Problem
	}
	s.View = s.state.View()
	log, rec, err := wal.Open(wal.Config{Dir: config.Dir, NodeID: config.NodeID, ClusterID: config.ClusterID, Logger: config.Logger})
	if err != nil {
		return fmt.Errorf("begin the survivor's log: %w", err)
	}
	if rec.Snapshot != nil {
		return errors.Join(fmt.Errorf("begin the survivor's log: %s holds one already", config.Dir), log.Close())
	}
	meta := &raftpb.SnapshotMetadata{Index: &index, Term: &s.Term, ConfState: &raftpb.ConfState{Voters: []uint64{config.RaftID}}}
	if err := log.SaveSnapshot(meta, s.View.WriteSnapshot); err != nil {
		return errors.Join(fmt.Errorf("begin the survivor's log: %w", err), log.Close())
	}
	return log.Close()
}

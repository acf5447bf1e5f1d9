package daemon

import (
	"path/filepath"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/wal"
)

// LogFile is one file of a node's log or one of its snapshots.
type LogFile struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
	// First and Last index in it; a snapshot has only its own, and its Term.
	First uint64 `json:"first,omitempty"`
	Last  uint64 `json:"last,omitempty"`
	Term  uint64 `json:"term,omitempty"`
	// Entries of a segment; Voters and Learners, by Raft id, of a snapshot.
	Entries  int      `json:"entries,omitempty"`
	Voters   []uint64 `json:"voters,omitempty"`
	Learners []uint64 `json:"learners,omitempty"`
	// State is whole, torn (its end was not written, which a start mends) or
	// damaged.
	State string `json:"state"`
}

// LogEntry is one line of a log.
type LogEntry struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Kind of command, "members" for a change of the replicas, or "empty".
	Kind  string `json:"kind"`
	Actor string `json:"actor,omitempty"`
	Bytes int    `json:"bytes"`
}

// LogContents is what the directory of a stopped node holds.
type LogContents struct {
	Dir       string     `json:"dir"`
	ClusterID string     `json:"cluster"`
	NodeID    string     `json:"node"`
	Term      uint64     `json:"term"`
	Vote      uint64     `json:"vote"`
	Commit    uint64     `json:"commit"`
	Segments  []LogFile  `json:"segments"`
	Snapshots []LogFile  `json:"snapshots"`
	Entries   []LogEntry `json:"entries,omitempty"`
	// Damage is everything that is wrong with segments and with snapshots, with
	// file, offset and the way back.
	SegmentDamage  error `json:"-"`
	SnapshotDamage error `json:"-"`
}

// InspectLog reads the log of a stopped node from its data directory, or from the
// directory raft in it, and changes nothing. It keeps the newest limit entries of
// indexes from to to; to 0 means all. The errors are those of [wal.Inspect].
func InspectLog(dir string, from, to uint64, limit int) (*LogContents, error) {
	if filepath.Base(dir) != raftDir {
		dir = filepath.Join(dir, raftDir)
	}
	out := &LogContents{Dir: dir}
	c, err := wal.Inspect(dir, func(e *raftpb.Entry) {
		if i := e.GetIndex(); i < from || to != 0 && i > to || limit == 0 {
			return
		}
		if len(out.Entries) >= limit {
			out.Entries = append(out.Entries[:0], out.Entries[1:]...)
		}
		out.Entries = append(out.Entries, logEntry(e))
	})
	if err != nil {
		return nil, err
	}
	out.ClusterID, out.NodeID = c.ClusterID, c.NodeID
	out.Term, out.Vote, out.Commit = c.HardState.GetTerm(), c.HardState.GetVote(), c.HardState.GetCommit()
	only := *c
	only.Snapshots = nil
	out.SegmentDamage = only.Damaged()
	out.SnapshotDamage = (&wal.Contents{Snapshots: c.Snapshots}).Damaged()
	for _, s := range c.Segments {
		out.Segments = append(out.Segments, LogFile{
			File: s.Path, Bytes: s.Bytes, First: s.First, Last: s.Last, Entries: s.Entries, State: fileState(s.Torn, s.Err),
		})
	}
	for _, s := range c.Snapshots {
		conf := s.Meta.GetConfState()
		out.Snapshots = append(out.Snapshots, LogFile{
			File: s.Path, Bytes: s.Bytes, Last: s.Meta.GetIndex(), Term: s.Meta.GetTerm(),
			Voters: conf.GetVoters(), Learners: conf.GetLearners(), State: fileState(false, s.Err),
		})
	}
	return out, nil
}

func fileState(torn bool, err error) string {
	switch {
	case err != nil:
		return "damaged"
	case torn:
		return "torn"
	}
	return "whole"
}

func logEntry(e *raftpb.Entry) LogEntry {
	out := LogEntry{Index: e.GetIndex(), Term: e.GetTerm(), Bytes: len(e.GetData()), Kind: "empty"}
	if e.GetType() != raftpb.EntryNormal {
		out.Kind = "members"
		return out
	}
	if len(e.GetData()) == 0 {
		return out
	}
	cmd := &blixardv1.Command{}
	if err := proto.Unmarshal(e.GetData(), cmd); err != nil {
		out.Kind = "unreadable"
		return out
	}
	out.Kind, out.Actor = "unknown", cmd.GetActor()
	m := cmd.ProtoReflect()
	if field := m.WhichOneof(m.Descriptor().Oneofs().ByName("change")); field != nil {
		out.Kind = string(field.Name())
	}
	return out
}

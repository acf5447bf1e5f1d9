package wal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
)

// SegmentFile is one file of the log as Inspect found it.
type SegmentFile struct {
	Path  string
	Bytes int64
	// Entries in it, and the indexes of the first and the last, 0 when there are
	// none.
	Entries     int
	First, Last uint64
	// Torn is set when it ends in a write that did not end, which Open cuts off.
	Torn bool
	// Err is a "data.damaged" with file and offset, nil when every checksum holds.
	Err error
}

// SnapshotFile is one snapshot as Inspect found it; Meta is nil when Err is not.
type SnapshotFile struct {
	Path  string
	Bytes int64
	Meta  *raftpb.SnapshotMetadata
	Err   error
}

// Contents of a directory, in the order of its files.
type Contents struct {
	ClusterID, NodeID string
	Segments          []SegmentFile
	Snapshots         []SnapshotFile
	// HardState is the newest that was read.
	HardState *raftpb.HardState
	// Err is why Open would refuse the directory although no file is damaged by
	// itself: a segment or entries are missing.
	Err error
}

// Inspect reads the directory of a stopped replica, checks every checksum and
// changes nothing. visit, if not nil, gets every entry that can be read, in the
// order of the log, replaced ones too. The error says why nothing can be read at
// all: "data.in_use" while a process has it, "data.not_found", "data.newer".
func Inspect(dir string, visit func(e *raftpb.Entry)) (*Contents, error) {
	if _, err := os.Stat(filepath.Join(dir, logDirName)); errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "data.not_found", "%s holds no log", dir).
			WithHint("name a node's data directory, or the directory raft in it")
	}
	lock, err := os.Open(filepath.Join(dir, lockName))
	switch {
	case err == nil:
		defer func() { _ = lock.Close() }()
		if err := flock(lock, dir); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist): // a copy may lack it
		return nil, err
	}
	l := &Log{config: Config{Dir: dir}}
	defer func() { _ = l.release() }()
	if l.logDir, err = os.Open(filepath.Join(dir, logDirName)); err != nil {
		return nil, err
	}
	id, _, err := readIdentity(dir)
	if err != nil {
		return nil, err
	}
	c := &Contents{ClusterID: id.clusterID, NodeID: id.nodeID}
	if err := c.readSnapshots(filepath.Join(dir, snapDirName)); err != nil {
		return nil, err
	}
	return c, c.readSegments(l, visit)
}

func (c *Contents) readSnapshots(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), snapshotSuffix) {
			continue
		}
		s := SnapshotFile{Path: filepath.Join(dir, f.Name())}
		if st, err := f.Info(); err == nil {
			s.Bytes = st.Size()
		}
		s.Meta, s.Err = verifySnapshot(s.Path)
		c.Snapshots = append(c.Snapshots, s)
	}
	return nil
}

func (c *Contents) readSegments(l *Log, visit func(e *raftpb.Entry)) error {
	sequences, err := l.sequences()
	if err != nil {
		return err
	}
	if len(sequences) == 0 {
		c.Err = damaged(l.logDir.Name(), 0, "every segment of the log is missing")
	}
	rd := c.behindSnapshot()
	number := uint64(0)
	for i, sequence := range sequences {
		s := SegmentFile{Path: l.segmentPath(sequence)}
		if i > 0 && sequence != sequences[i-1]+1 && c.Err == nil {
			c.Err = damaged(l.segmentPath(sequences[i-1]+1), 0, "this segment of the log is missing")
		}
		b, header, err := readSegment(s.Path, sequence)
		if s.Bytes = int64(len(b)); err != nil {
			s.Err = err
			c.Segments = append(c.Segments, s)
			continue
		}
		if i == 0 {
			number = firstNumber(b, header)
		}
		newest := i == len(sequences)-1 || i == len(sequences)-2 && l.unused(sequences[i+1])
		found := scanSegment(b, header, number, newest)
		if found.damage != "" {
			s.Err = damaged(s.Path, found.end, "%s", found.damage)
		}
		number, s.Torn = found.next, found.torn
		for _, p := range found.payloads {
			c.take(p, &s, rd, visit)
		}
		c.Segments = append(c.Segments, s)
	}
	return nil
}

// behindSnapshot gives a reader that follows the newest whole snapshot; nil when
// all are damaged, which is said of them.
func (c *Contents) behindSnapshot() *reader {
	rd := &reader{}
	for _, s := range c.Snapshots {
		if s.Meta.GetIndex() > rd.base {
			rd.base, rd.baseTerm = s.Meta.GetIndex(), s.Meta.GetTerm()
		}
	}
	if len(c.Snapshots) > 0 && rd.base == 0 {
		return nil
	}
	return rd
}

// take notes one frame.
func (c *Contents) take(p payload, s *SegmentFile, rd *reader, visit func(e *raftpb.Entry)) {
	if rd != nil {
		if err := rd.add(p); err != nil && c.Err == nil && s.Err == nil {
			c.Err = damaged(s.Path, 0, "%s", err)
		}
		rd.entries = nil // only their order is looked at
	}
	if p.hard != nil {
		c.HardState = p.hard
	}
	for _, e := range p.entries {
		if s.Entries == 0 {
			s.First = e.GetIndex()
		}
		s.Entries++
		s.Last = e.GetIndex()
		if visit != nil {
			visit(e)
		}
	}
}

// Damaged gives everything that is wrong, nil when nothing is.
func (c *Contents) Damaged() error {
	errs := []error{c.Err}
	for _, s := range c.Segments {
		errs = append(errs, s.Err)
	}
	for _, s := range c.Snapshots {
		errs = append(errs, s.Err)
	}
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return err == nil })...)
}

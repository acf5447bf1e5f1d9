package wal

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
)

const (
	logDirName    = "log"
	snapDirName   = "snap"
	segmentSuffix = ".log"
	// segmentReadMax bounds what is read of one segment: a frame of the largest
	// payload and the rest.
	segmentReadMax = framePayloadMax + segmentBytes
)

// Open takes a directory for this process, checks everything in it and gives
// back what it holds; a new directory is made. It fails with a problem of code
//
//	data.in_use         another process has it (named by its pid)
//	data.newer          a newer version wrote it
//	data.other_node     it belongs to another node
//	data.other_cluster  it belongs to another cluster
//	data.damaged        it is not what was written
//	storage.full        a new directory finds no space
//
// The caller must Close the log.
func Open(config Config) (*Log, *Recovered, error) {
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	l := &Log{config: config, logger: config.Logger}
	r, err := l.open()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open log: %w", err), l.release())
	}
	return l, r, nil
}

func (l *Log) open() (*Recovered, error) {
	c := &l.config
	for _, dir := range []string{c.Dir, filepath.Join(c.Dir, logDirName), filepath.Join(c.Dir, snapDirName)} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return nil, fullOr(err)
		}
	}
	var err error
	if l.lock, err = lockDir(c.Dir); err != nil {
		return nil, err
	}
	if l.logDir, err = os.Open(filepath.Join(c.Dir, logDirName)); err != nil {
		return nil, err
	}
	if l.snapDir, err = os.Open(filepath.Join(c.Dir, snapDirName)); err != nil {
		return nil, err
	}
	if c.SegmentBytes == 0 {
		if c.SegmentBytes, err = fittingSegment(c.Dir); err != nil {
			return nil, err
		}
	}
	id, found, err := checkIdentity(c)
	if err != nil {
		return nil, err
	}
	if !found {
		return l.create()
	}
	l.clusterID = id.clusterID
	return l.recover()
}

// fittingSegment is the size of segments that suits the file system.
func fittingSegment(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return min(segmentBytes, max(segmentBytesMin, int64(st.Blocks)*st.Bsize/fileSystemShare)), nil
}

func fullOr(err error) error {
	if isFull(err) {
		return ErrFull.WithCause(err)
	}
	return err
}

// create makes the first segment and, last, the identity: a directory without
// one was never used, whatever else is in it.
func (l *Log) create() (*Recovered, error) {
	id := identity{format: dirFormat, clusterID: l.config.ClusterID, nodeID: l.config.NodeID}
	if id.nodeID == "" || strings.ContainsAny(id.nodeID+id.clusterID, " \t\r\n") {
		return nil, fmt.Errorf("node id %q or cluster id %q is empty or has spaces", id.nodeID, id.clusterID)
	}
	if id.clusterID == "" {
		id.clusterID = fmt.Sprintf("cluster-%016x", nonce())
	}
	l.clusterID = id.clusterID
	sequences, err := l.sequences()
	if err != nil {
		return nil, err
	}
	for _, s := range sequences { // of a creation that did not come to its end
		if err := os.Remove(l.segmentPath(s)); err != nil {
			return nil, err
		}
	}
	if err := l.allocateSpare(l.config.SegmentBytes); err != nil {
		return nil, fullOr(err)
	}
	file, header, err := l.beginSegment(1, 0)
	if err != nil {
		return nil, fullOr(err)
	}
	l.adopt(file, header, framesOffset, l.config.SegmentBytes, 1)
	if err := l.allocateSpare(l.config.SegmentBytes); err != nil {
		return nil, fullOr(err)
	}
	if err := l.writeIdentity(id); err != nil {
		return nil, fullOr(err)
	}
	return &Recovered{ClusterID: l.clusterID}, nil
}

// sequences gives the numbers of the segments on disk, in order.
func (l *Log) sequences() ([]uint64, error) {
	files, err := os.ReadDir(l.logDir.Name())
	if err != nil {
		return nil, err
	}
	var sequences []uint64
	for _, f := range files {
		hex, ok := strings.CutSuffix(f.Name(), segmentSuffix)
		if !ok {
			continue
		}
		s, err := strconv.ParseUint(hex, 16, 64)
		if err != nil || l.segmentPath(s) != filepath.Join(l.logDir.Name(), f.Name()) {
			return nil, damaged(filepath.Join(l.logDir.Name(), f.Name()), 0, "its name is not one that the log gives")
		}
		sequences = append(sequences, s)
	}
	slices.Sort(sequences)
	return sequences, nil
}

// recover reads everything.
func (l *Log) recover() (*Recovered, error) {
	passedOver, err := l.listSnapshots()
	if err != nil {
		return nil, err
	}
	r := &Recovered{ClusterID: l.clusterID}
	var base uint64
	if len(l.snapshots) > 0 {
		r.Snapshot = l.snapshots[0]
		base = r.Snapshot.GetIndex()
	}
	rd := &reader{base: base, baseTerm: r.Snapshot.GetTerm()}
	if err := l.read(rd); err != nil {
		return nil, errors.Join(passedOver, err) // the log may reach back far enough only for that snapshot
	}
	unmarked := rd.leaveBranch()
	r.Entries, r.HardState = rd.entries, rd.hard
	l.hard = rd.hard
	if l.next = base + 1; len(r.Entries) > 0 {
		l.next = r.Entries[len(r.Entries)-1].GetIndex() + 1
	} else if base == 0 {
		l.next = 0
	}
	l.synced = l.next
	if unmarked {
		l.restart(r.Snapshot)
	}
	if r.HardState != nil && r.HardState.GetCommit() < base {
		r.HardState.Commit = &base // a snapshot holds only what was committed
	}
	if l.hard != nil && l.offset == framesOffset {
		l.Append(l.hard, nil) // the newest segment must hold it before older ones go
	}
	if hs := r.HardState; hs != nil && hs.GetCommit() >= max(l.next, base+1) {
		return nil, damaged(l.logDir.Name(), 0, "entries up to %d were committed, it ends at %d", hs.GetCommit(), max(l.next, base+1)-1)
	}
	if err := l.allocateSpare(l.config.SegmentBytes); err != nil {
		if !isFull(err) {
			return nil, err
		}
		l.setFull(true)
	}
	return r, nil
}

// reader collects the entries of the log behind a snapshot.
type reader struct {
	base, baseTerm uint64 // index and term of the snapshot
	entries        []*raftpb.Entry
	hard           *raftpb.HardState
	// last index seen, 0 before the first entry.
	last uint64
	// termAtBase is the term of the entry of index base, 0 when none was seen
	// since the log began or was restarted.
	termAtBase uint64
	// restarted is the index of the newest restart.
	restarted uint64
}

// add takes in one frame; a gap is told by its index.
func (r *reader) add(p payload) error {
	if p.hard != nil {
		r.hard = p.hard
	}
	if p.restart != nil {
		r.restarted, r.last, r.entries = p.restart.index, p.restart.index, nil
		if r.termAtBase = 0; r.last == r.base {
			r.termAtBase = p.restart.term
		}
	}
	if r.restarted > r.base {
		// Only older snapshots are left: what lies between came with the lost one.
		return fmt.Errorf("the log goes on behind a snapshot of index %d, which is missing or damaged", r.restarted)
	}
	for _, e := range p.entries {
		i := e.GetIndex()
		if r.last == 0 && i > r.base+1 || r.last != 0 && i > r.last+1 || i == 0 {
			return fmt.Errorf("entry %d comes after entry %d: entries are missing", i, max(r.last, r.base))
		}
		r.last = i
		if i <= r.base {
			r.entries = nil // they followed what this one replaced
			if r.termAtBase = 0; i == r.base {
				r.termAtBase = e.GetTerm()
			}
			continue // part of the snapshot
		}
		r.entries = append(r.entries[:min(i-r.base-1, uint64(len(r.entries)))], e)
	}
	return nil
}

// leaveBranch gives up entries that do not follow the snapshot. They are there
// when the machine stopped after a received snapshot had got its name and before
// the log was told; then it tells so.
func (r *reader) leaveBranch() bool {
	if r.last == 0 || r.restarted == r.base && r.base != 0 {
		return false
	}
	if r.last >= r.base && (r.termAtBase == 0 || r.termAtBase == r.baseTerm) {
		return false
	}
	r.entries = nil
	return true
}

// read reads all segments and makes the newest ready for appending.
func (l *Log) read(rd *reader) error {
	sequences, err := l.sequences()
	if err != nil {
		return err
	}
	if len(sequences) == 0 {
		return damaged(l.logDir.Name(), 0, "every segment of the log is missing")
	}
	number := uint64(0) // the first frame says
	for i, sequence := range sequences {
		path := l.segmentPath(sequence)
		if i > 0 && sequence != sequences[i-1]+1 {
			return damaged(l.segmentPath(sequences[i-1]+1), 0, "this segment of the log is missing")
		}
		b, header, err := readSegment(path, sequence)
		if err != nil {
			return err
		}
		if i == 0 {
			number = firstNumber(b, header)
		}
		last := i == len(sequences)-1
		s := scanSegment(b, header, number, last)
		if !last && !s.sealed && i == len(sequences)-2 && l.unused(sequences[i+1]) {
			// The next segment was begun, and this one not yet sealed.
			if err := os.Remove(l.segmentPath(sequences[i+1])); err != nil {
				return err
			}
			sequences, last = sequences[:i+1], true
			s = scanSegment(b, header, number, true)
		}
		if s.damage != "" {
			return damaged(path, s.end, "%s", s.damage)
		}
		for _, p := range s.payloads {
			if err := rd.add(p); err != nil {
				return damaged(path, s.end, "%s", err)
			}
		}
		number = s.next
		if last && s.sealed {
			return damaged(l.segmentPath(sequence+1), 0, "this segment of the log is missing")
		}
		l.mu.Lock()
		l.segments = append(l.segments, segment{sequence: sequence, first: header.first, path: path, bytes: int64(len(b))})
		l.mu.Unlock()
		if last {
			return l.resume(path, header, s, int64(len(b)))
		}
	}
	return nil
}

// readSegment reads a segment and its header.
func readSegment(path string, sequence uint64) ([]byte, segmentHeader, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, segmentHeader{}, err
	}
	if st.Size() > segmentReadMax {
		return nil, segmentHeader{}, damaged(path, segmentReadMax, "the segment is longer than one can be")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, segmentHeader{}, err
	}
	header, err := decodeSegmentHeader(b)
	switch {
	case errors.Is(err, errNewer):
		return nil, header, newer(path, segmentFormat+1)
	case err != nil:
		return nil, header, damaged(path, 0, "%s", err)
	case header.sequence != sequence:
		return nil, header, damaged(path, 0, "it is segment %d, by another name", header.sequence)
	}
	return b, header, nil
}

// firstNumber is the number of a segment's first frame.
func firstNumber(b []byte, h segmentHeader) uint64 {
	if len(b) >= framesOffset+frameHeaderBytes {
		if f, ok := decodeFrameHeader(b[framesOffset:], seed(h.nonce)); ok {
			return f.number
		}
	}
	return 1
}

// unused tells whether a segment was made and never written to.
func (l *Log) unused(sequence uint64) bool {
	b, h, err := readSegment(l.segmentPath(sequence), sequence)
	if err != nil {
		return false
	}
	s := scanSegment(b, h, firstNumber(b, h), true)
	return s.damage == "" && !s.sealed && len(s.payloads) == 0
}

// resume makes a segment ready for appending: what an unfinished write left is
// made zero again, and a length that was cut is put back.
func (l *Log) resume(path string, header segmentHeader, s scan, length int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return err
	}
	if s.torn {
		l.logger.Warn("cut off the unfinished end of the log", "file", path, "offset", s.end)
		err = writeZeros(f, s.end, length)
	}
	if err == nil && length < l.config.SegmentBytes {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, l.config.SegmentBytes); errors.Is(err, unix.EOPNOTSUPP) {
			err = writeZeros(f, length, l.config.SegmentBytes)
		}
		if isFull(err) {
			err = nil // the next append begins a segment when there is space
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("resume %s: %w", path, err), f.Close())
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.adopt(f, header, s.end, st.Size(), s.next)
	return nil
}

// Close lets go of the directory. A hard state that was appended and not synced
// is synced if it can be; nothing acknowledged depends on it.
func (l *Log) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if l.failed == nil && len(l.buf) > 0 {
		err = l.Sync()
	}
	return errors.Join(err, l.release())
}

// release closes every file that is open.
func (l *Log) release() error {
	var errs []error
	for _, f := range []*os.File{l.file, l.snapDir, l.logDir, l.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func newestFirst(a, b *raftpb.SnapshotMetadata) int { return cmp.Compare(b.GetIndex(), a.GetIndex()) }

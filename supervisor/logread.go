package supervisor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

const (
	// readLogBytes at a time; it bounds a reader's memory.
	readLogBytes = 32 << 10
	// followPoll is how often a follower looks for more.
	followPoll = 100 * time.Millisecond
	// lineSearchBytes bounds the search for the beginning of a line; a guest need
	// not write any.
	lineSearchBytes = 4 << 10
)

// LogOptions choose what of a log is read.
type LogOptions struct {
	// TailLines, when set, is how many of the newest lines are read.
	TailLines *uint32
	// Since, when not zero, leaves out what was written before, to the second.
	Since time.Time
	// Follow goes on with what is written later, until the context ends or the log
	// is removed.
	Follow bool
}

// ReadLogs reads a console's log from the oldest byte kept, over its rotations,
// and gives it piece by piece to f, whose error it returns. It works beside the
// supervisor that writes, in any process, and also when none runs. The bytes are
// the guest's own and may be anything. A piece is valid during the call only.
//
// It fails with a problem of kind NotFound when there is no log, and with the
// context's error when that ends.
func ReadLogs(ctx context.Context, path string, o LogOptions, f func([]byte) error) error {
	r := &logReader{path: path, dir: filepath.Dir(path), name: filepath.Base(path), give: f, buf: make([]byte, readLogBytes)}
	segs, err := r.open()
	if err != nil {
		return err
	}
	defer func() { closeSegments(segs) }()
	if len(segs) == 0 {
		return problem.New(problem.NotFound, "logs.missing", "there is no log %s", path)
	}
	if !o.Since.IsZero() {
		if err := r.since(segs, o.Since); err != nil {
			return err
		}
	}
	if o.TailLines != nil {
		if err := r.tail(segs, int(*o.TailLines)); err != nil {
			return err
		}
	}
	for _, s := range segs {
		if err := r.copy(ctx, s); err != nil {
			return err
		}
	}
	if !o.Follow {
		return nil
	}
	last := segs[len(segs)-1]
	closeSegments(segs[:len(segs)-1])
	segs = nil
	return r.follow(ctx, last)
}

// segment is one file of a log.
type segment struct {
	f  *os.File
	id fileID
	// name of the file when it was opened.
	name string
	// from is where reading goes on.
	from int64
}

// fileID names a file whatever it is called.
type fileID struct{ dev, ino uint64 }

// logReader reads the segments of a log.
type logReader struct {
	path, dir, name string
	give            func([]byte) error
	buf             []byte
}

// open gives the segments, the oldest first. A rotation meanwhile moves files to
// names that are opened later, so none is missed, and one seen twice is dropped.
func (r *logReader) open() ([]*segment, error) {
	dir, err := unix.Open(r.dir, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("log directory %s: %w", r.dir, err)
	}
	defer unix.Close(dir)
	var segs []*segment
	seen := make(map[fileID]bool)
	for i := 0; i <= logFilesMax; i++ {
		s, err := openSegment(dir, rotatedName(r.name, i))
		if errors.Is(err, unix.ENOENT) && i == 0 {
			continue // in the middle of a rotation
		}
		if errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			closeSegments(segs)
			return nil, fmt.Errorf("log %s: %w", rotatedName(r.path, i), err)
		}
		if seen[s.id] {
			closeSegments([]*segment{s})
			continue
		}
		seen[s.id] = true
		segs = append([]*segment{s}, segs...)
	}
	return segs, nil
}

func openSegment(dir int, name string) (*segment, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &segment{f: os.NewFile(uintptr(fd), name), id: fileID{uint64(st.Dev), st.Ino}, name: name}, nil
}

func closeSegments(segs []*segment) {
	for _, s := range segs {
		_ = s.f.Close() // opened for reading: nothing can be lost
	}
}

// copy gives a segment from its position to its present end.
func (r *logReader) copy(ctx context.Context, s *segment) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := s.f.ReadAt(r.buf, s.from)
		s.from += int64(n)
		if n > 0 {
			if err := r.give(r.buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// follow goes on behind the newest segment, which it closes.
func (r *logReader) follow(ctx context.Context, s *segment) error {
	defer func() { closeSegments([]*segment{s}) }()
	tick := time.NewTicker(followPoll)
	defer tick.Stop()
	for {
		if err := r.copy(ctx, s); err != nil {
			return err
		}
		next, err := r.next(ctx, s)
		if errors.Is(err, errLogRemoved) {
			return r.copy(ctx, s) // what came since it was read
		}
		if err != nil {
			return err
		}
		if next != nil {
			closeSegments([]*segment{s})
			s = next
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errLogRemoved says that a followed log is not there any more.
var errLogRemoved = errors.New("the log was removed")

// next gives the segment after s, when s was rotated away and is read to its end,
// or nil.
func (r *logReader) next(ctx context.Context, s *segment) (*segment, error) {
	var st unix.Stat_t
	err := unix.Lstat(r.path, &st)
	if err == nil && (fileID{uint64(st.Dev), st.Ino}) == s.id {
		return nil, nil
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	segs, err := r.open()
	if err != nil {
		return nil, err
	}
	if len(segs) == 0 {
		return nil, errLogRemoved
	}
	// What came before the rotation is complete now.
	if err := r.copy(ctx, s); err != nil {
		closeSegments(segs)
		return nil, err
	}
	at := 0 // s itself is gone: go on with the oldest
	for i := range segs {
		if segs[i].id == s.id {
			at = i + 1
		}
	}
	for i, other := range segs {
		if i != at {
			closeSegments([]*segment{other})
		}
	}
	if at == len(segs) {
		return nil, nil // the next one is not made yet
	}
	return segs[at], nil
}

// since sets the positions of segments to a time.
func (r *logReader) since(segs []*segment, t time.Time) error {
	for _, s := range segs {
		st, err := s.f.Stat()
		if err != nil {
			return err
		}
		off, err := r.offsetAt(s, st, t)
		if err != nil {
			return err
		}
		if s.from, err = r.lineStart(s, off, st.Size()); err != nil {
			return err
		}
		if s.from < st.Size() {
			return nil // all that follow are later
		}
	}
	return nil
}

// offsetAt gives the offset of the first byte of a segment that was not written
// before t, to the second. Without an index the file's own time decides.
func (r *logReader) offsetAt(s *segment, st os.FileInfo, t time.Time) (int64, error) {
	f, err := os.OpenFile(filepath.Join(r.dir, indexName(s.name)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		if st.ModTime().Before(t) {
			return st.Size(), nil
		}
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return scanIndex(io.NewSectionReader(f, 0, logBytesMax), st.Size(), t)
}

// scanIndex finds a time in an index: an entry holds for what was written within
// indexEvery after it. Entries that can't be right end the search there.
func scanIndex(rd io.Reader, size int64, t time.Time) (int64, error) {
	want := t.UnixMilli()
	var buf [256 * indexEntryBytes]byte
	at := int64(0) // offset of the newest entry that is old enough
	until := int64(0)
	for first := true; ; {
		n, err := io.ReadFull(rd, buf[:])
		for b := buf[:n-n%indexEntryBytes]; len(b) > 0; b = b[indexEntryBytes:] {
			off, ms := int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:]))
			if off < at || off > size {
				return at, nil
			}
			if ms > want {
				if !first && want >= until {
					return off, nil
				}
				return at, nil
			}
			at, until, first = off, ms+indexEvery.Milliseconds(), false
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			if !first && want >= until {
				return size, nil
			}
			return at, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// lineStart moves an offset forward to the beginning of a line, if one is near.
func (r *logReader) lineStart(s *segment, off, size int64) (int64, error) {
	if off == 0 || off >= size {
		return off, nil
	}
	n, err := s.f.ReadAt(r.buf[:lineSearchBytes], off-1)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if i := bytes.IndexByte(r.buf[:n], '\n'); i >= 0 {
		return off + int64(i), nil
	}
	return off, nil
}

// tail moves the positions of segments forward so that only the newest lines are
// left. A line without its end counts, too.
func (r *logReader) tail(segs []*segment, lines int) error {
	left := lines // lines whose beginning was not found yet
	newest := true
	for i := len(segs) - 1; i >= 0; i-- {
		s := segs[i]
		st, err := s.f.Stat()
		if err != nil {
			return err
		}
		size := max(st.Size(), s.from)
		if left == 0 {
			s.from = size
			continue
		}
		if left, newest, err = r.tailOf(s, size, left, newest); err != nil {
			return err
		}
	}
	return nil
}

// tailOf searches a segment backwards. newest is true until the log's last byte
// was seen, whose newline ends the last line and begins none.
func (r *logReader) tailOf(s *segment, size int64, left int, newest bool) (int, bool, error) {
	for end := size; end > s.from; {
		begin := max(s.from, end-readLogBytes)
		b := r.buf[:end-begin]
		if _, err := s.f.ReadAt(b, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, false, err
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] == '\n' && !newest {
				if left--; left == 0 {
					s.from = begin + int64(i) + 1
					return 0, false, nil
				}
			}
			newest = false
		}
		end = begin
	}
	return left, newest, nil
}

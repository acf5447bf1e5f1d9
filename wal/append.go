package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/invariant"
)

const spareName = "spare.tmp"

// Append adds a hard state, unless it is nil or empty, and entries to the batch
// of the next Sync. Entries may replace earlier ones of the same and higher
// indexes. Nothing reaches the disk yet. The batch must stay below 64 MiB.
func (l *Log) Append(hs *raftpb.HardState, entries []*raftpb.Entry) {
	if len(l.buf) == 0 {
		l.buf = append(l.buf, make([]byte, frameHeaderBytes)...)
	}
	for _, e := range entries {
		if e.GetIndex() > l.next && l.next != 0 {
			invariant.Fail("append entry %d where %d is next: was a Ready left out?", e.GetIndex(), l.next)
		}
		l.buf = appendEntry(l.buf, e)
		l.next = e.GetIndex() + 1
	}
	if hs != nil && !raft.IsEmptyHardState(hs) {
		l.buf = appendHardState(l.buf, hs)
		l.pending = hs
	}
	invariant.That(len(l.buf) <= framePayloadMax, "a batch of %d bytes, at most %d: is the queue of proposals unbounded?",
		len(l.buf), framePayloadMax)
}

// Sync makes the batch durable: when it returns nil, everything appended is on
// the disk. On [ErrFull] nothing was acknowledged and nothing is lost: call Sync
// again when there may be space. Any other error is final, and every later call
// gives it again: what is on the disk is known only after the next Open.
func (l *Log) Sync() error {
	if l.failed != nil {
		return l.failed
	}
	if len(l.buf) == 0 {
		return nil
	}
	need := int64(frameBytes(len(l.buf) - frameHeaderBytes))
	if l.offset+need+int64(frameBytes(0)) > l.size {
		if err := l.cut(need); err != nil {
			return l.fail(err)
		}
	}
	frame := completeFrame(l.buf, frameBatch, l.number, l.seed)
	if err := l.write(frame, PointAppendWrite, PointAppendSync); err != nil {
		return l.fail(err) // l.buf is still without its mark
	}
	if err := l.hook(PointAppendSynced); err != nil {
		return l.fail(err)
	}
	l.synced = l.next
	if l.pending != nil {
		l.hard, l.pending = l.pending, nil
	}
	l.buf = frame[:0]
	if cap(l.buf) > bufferKeptBytes {
		l.buf = nil
	}
	return nil
}

// bufferKeptBytes bounds the memory kept between batches.
const bufferKeptBytes = 4 << 20

// write puts a frame at the end and syncs it.
func (l *Log) write(frame []byte, writePoint, syncPoint string) error {
	err := l.hook(writePoint)
	if err == nil {
		_, err = l.file.WriteAt(frame, l.offset)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", l.segmentPath(l.header.sequence), err)
	}
	if err = l.hook(syncPoint); err == nil {
		err = fdatasync(l.file)
	}
	if err != nil {
		return &syncError{fmt.Errorf("sync %s: %w", l.segmentPath(l.header.sequence), err)}
	}
	l.offset += int64(len(frame))
	l.number++
	return nil
}

// syncError marks a failed fsync: the kernel may have dropped what it could not
// write, so trying again could succeed without the data. It is final even when
// it says that the disk is full.
type syncError struct{ error }

func (e *syncError) Unwrap() error { return e.error }

// fail makes an error the answer of Sync. Lack of space is the one that is not
// final: the frame is written again at the same offset.
func (l *Log) fail(err error) error {
	var s *syncError
	if isFull(err) && !errors.As(err, &s) {
		l.setFull(true)
		return ErrFull.WithCause(err)
	}
	l.failed = fmt.Errorf("log: %w", err)
	return l.failed
}

func (l *Log) setFull(full bool) {
	if l.full.Swap(full) == full {
		return
	}
	if full {
		l.logger.Error("disk of the log is full: changes are refused until there is space", "dir", l.config.Dir)
	} else {
		l.logger.Info("disk of the log has space again", "dir", l.config.Dir)
	}
}

// Full tells whether there is no reserve: new changes should be refused, while
// those under way still have the rest of the newest segment.
func (l *Log) Full() bool { return l.full.Load() }

// Reserve tries to get the reserve back when the disk was full, and tells
// whether it is there. It belongs to the goroutine that appends.
func (l *Log) Reserve() bool {
	if !l.Full() {
		return true
	}
	err := l.allocateSpare(l.config.SegmentBytes)
	if err != nil {
		return false
	}
	l.setFull(false)
	return true
}

// allocateSpare makes the next segment's file, with its blocks reserved.
func (l *Log) allocateSpare(size int64) error {
	path := filepath.Join(l.logDir.Name(), spareName)
	if st, err := os.Stat(path); err == nil && st.Size() >= size {
		return nil
	}
	err := l.hook(PointSpareAllocate)
	if err == nil {
		err = preallocate(path, size)
	}
	if err != nil {
		return fmt.Errorf("allocate %s: %w", path, err)
	}
	return nil
}

// preallocate makes a file of zeros whose blocks are reserved, or none.
func preallocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = writeZeros(f, 0, size)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func writeZeros(f *os.File, from, to int64) error {
	zeros := make([]byte, 1<<20)
	for from < to {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

func fdatasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// cut ends the newest segment and begins the next, with room for a frame of need
// bytes. The next one exists on disk before the seal says so, and holds the hard
// state before anything else, so that older segments can be released.
func (l *Log) cut(need int64) error {
	size := max(l.config.SegmentBytes, framesOffset+need+2*int64(frameBytes(maxHardStateBytes)))
	if err := l.allocateSpare(size); err != nil {
		return err
	}
	file, header, err := l.beginSegment(l.header.sequence+1, l.synced)
	if err != nil {
		return err
	}
	seal := completeFrame(make([]byte, frameHeaderBytes), frameSeal, l.number, l.seed)
	if err := l.write(seal, PointSegmentSeal, PointAppendSync); err != nil {
		return errors.Join(&syncError{err}, file.Close())
	}
	err = l.file.Truncate(l.offset) // gives back space; nothing depends on it
	if err == nil {
		err = l.file.Close()
	}
	if err != nil {
		return errors.Join(&syncError{err}, file.Close())
	}
	l.endSegment()
	st, err := file.Stat()
	if err != nil {
		return &syncError{err}
	}
	l.adopt(file, header, framesOffset, st.Size(), l.number)
	if l.hard != nil {
		state := completeFrame(appendHardState(make([]byte, frameHeaderBytes), l.hard), frameBatch, l.number, l.seed)
		if err := l.write(state, PointSegmentState, PointAppendSync); err != nil {
			return &syncError{err}
		}
	}
	if err := l.allocateSpare(l.config.SegmentBytes); err != nil {
		if !isFull(err) {
			return &syncError{err}
		}
		l.setFull(true)
	}
	return nil
}

// beginSegment makes the spare file the segment of that number. It exists
// durably under its name when this returns.
func (l *Log) beginSegment(sequence, first uint64) (*os.File, segmentHeader, error) {
	header := segmentHeader{sequence: sequence, first: first, nonce: nonce()}
	spare := filepath.Join(l.logDir.Name(), spareName)
	file, err := os.OpenFile(spare, os.O_RDWR|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, header, &syncError{err}
	}
	path := l.segmentPath(sequence)
	err = l.hook(PointSegmentHeader)
	if err == nil {
		_, err = file.WriteAt(header.encode(), 0)
	}
	if err == nil {
		if err = file.Sync(); err == nil {
			err = l.hook(PointSegmentRename)
		}
		if err == nil {
			err = os.Rename(spare, path)
		}
		if err == nil {
			err = l.logDir.Sync()
		}
		if err != nil {
			err = &syncError{err}
		}
	}
	if err != nil {
		return nil, header, errors.Join(fmt.Errorf("begin segment %s: %w", path, err), file.Close())
	}
	return file, header, nil
}

// endSegment notes the final length of the newest segment.
func (l *Log) endSegment() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments[len(l.segments)-1].bytes = l.offset
}

// adopt makes file the newest segment.
func (l *Log) adopt(file *os.File, header segmentHeader, offset, size int64, number uint64) {
	l.file, l.header, l.seed = file, header, seed(header.nonce)
	l.offset, l.size, l.number = offset, size, number
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.segments); n == 0 || l.segments[n-1].sequence != header.sequence {
		l.segments = append(l.segments, segment{sequence: header.sequence, first: header.first, path: l.segmentPath(header.sequence)})
	}
	l.segments[len(l.segments)-1].bytes = size
}

func (l *Log) segmentPath(sequence uint64) string {
	return filepath.Join(l.config.Dir, logDirName, fmt.Sprintf("%016x%s", sequence, segmentSuffix))
}

package supervisor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a console's log.
const (
	logBytesDefault = 16 << 20
	logBytesMin     = 64 << 10
	logBytesMax     = 1 << 30
	logFilesDefault = 2
	logFilesMax     = 16
	// indexShare of a log's bytes may be its index: a guest that writes one byte a
	// second would otherwise have an index of sixteen times its log.
	indexShare = 4
)

// indexEntryBytes of one entry: offset in the log, then Unix time in
// milliseconds, 8 bytes each, big endian.
const indexEntryBytes = 16

// indexEvery is the least time between two entries of an index.
const indexEvery = time.Second

// logFile writes a console's log. Files are made and renamed relative to the
// directory's descriptor and never reached through a symlink. Not safe for
// concurrent use.
type logFile struct {
	name  string
	max   int64
	files int
	now   func() time.Time
	dir   int
	// log and index are -1 when there is none open.
	log, index        int
	bytes, indexBytes int64
	indexed           time.Time
	created           bool // the log did not exist before
}

// openLog opens the log for appending. Zero sizes mean the defaults.
func openLog(path string, bytesMax uint64, filesMax uint32, now func() time.Time) (*logFile, error) {
	l := &logFile{name: filepath.Base(path), now: now, log: -1, index: -1}
	l.max = min(max(int64(min(bytesMax, logBytesMax)), logBytesMin), logBytesMax)
	if bytesMax == 0 {
		l.max = logBytesDefault
	}
	l.files = int(min(filesMax, logFilesMax))
	if l.files == 0 {
		l.files = logFilesDefault
	}
	var err error
	dir := filepath.Dir(path)
	l.dir, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("console log: directory %s: %w", dir, err)
	}
	if err := l.openFile(); err != nil {
		return nil, errors.Join(fmt.Errorf("console log %s: %w", path, err), unix.Close(l.dir))
	}
	return l, nil
}

func (l *logFile) openFile() error {
	var st unix.Stat_t
	err := unix.Fstatat(l.dir, l.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	l.created = errors.Is(err, unix.ENOENT)
	l.log, l.bytes, err = openAppend(l.dir, l.name)
	if err != nil {
		return err
	}
	l.indexed = time.Time{}
	return nil
}

// openAppend opens a regular file of a directory for appending, and gives its
// size.
func openAppend(dir int, name string) (int, int64, error) {
	fd, err := unix.Openat(dir, name,
		unix.O_CREAT|unix.O_NOFOLLOW|unix.O_APPEND|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, fileMode)
	if err != nil {
		return -1, 0, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("not a regular file")
	}
	if err == nil && st.Nlink != 1 {
		err = errors.New("the file has other names, too")
	}
	if err != nil {
		return -1, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, st.Size, nil
}

// write appends a chunk, after a rotation when it would not fit. On an error the
// chunk is lost, wholly or in part; the next call tries again.
func (l *logFile) write(p []byte) error {
	if l.log >= 0 && l.bytes > 0 && (l.bytes+int64(len(p)) > l.max || l.indexBytes >= l.max/indexShare) {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.log < 0 {
		if err := l.openFile(); err != nil {
			return err
		}
	}
	if err := l.mark(); err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := unix.Write(l.log, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		l.bytes += int64(n)
		p = p[n:]
	}
	return nil
}

// mark adds an entry to the index when the newest is old enough.
func (l *logFile) mark() error {
	now := l.now()
	if !l.indexed.IsZero() && now.Sub(l.indexed) < indexEvery && !now.Before(l.indexed) {
		return nil
	}
	if l.index < 0 {
		var err error
		if l.index, l.indexBytes, err = openAppend(l.dir, indexName(l.name)); err != nil {
			return err
		}
		if err := l.mendIndex(); err != nil {
			return err
		}
	}
	var e [indexEntryBytes]byte
	binary.BigEndian.PutUint64(e[:], uint64(l.bytes))
	binary.BigEndian.PutUint64(e[8:], uint64(now.UnixMilli()))
	n, err := unix.Write(l.index, e[:])
	l.indexBytes += int64(max(n, 0))
	if err == nil && n < len(e) {
		err = unix.ENOSPC
	}
	if err != nil {
		return errors.Join(err, l.mendIndex())
	}
	l.indexed = now
	return nil
}

// mendIndex cuts what a failed write may have left of an entry.
func (l *logFile) mendIndex() error {
	if l.indexBytes%indexEntryBytes == 0 {
		return nil
	}
	l.indexBytes -= l.indexBytes % indexEntryBytes
	return unix.Ftruncate(l.index, l.indexBytes)
}

// rotate renames the files; afterwards none is open.
func (l *logFile) rotate() error {
	err := l.closeFiles()
	for i := l.files - 1; i >= 0; i-- {
		from, to := rotatedName(l.name, i), rotatedName(l.name, i+1)
		if i == l.files-1 {
			err = errors.Join(err, remove(l.dir, from), remove(l.dir, indexName(from)))
			continue
		}
		// The index goes first: a log without one is read in whole, an index that
		// belongs to another log would mislead.
		err = errors.Join(err, rename(l.dir, indexName(from), indexName(to)), rename(l.dir, from, to))
	}
	return err
}

func (l *logFile) closeFiles() error {
	var errs []error
	for _, fd := range []*int{&l.log, &l.index} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = -1
	}
	l.bytes, l.indexBytes = 0, 0
	return errors.Join(errs...)
}

func (l *logFile) close() error {
	return errors.Join(l.closeFiles(), unix.Close(l.dir))
}

// discard closes the log and removes it if it was made by openLog and is empty.
func (l *logFile) discard() error {
	var err error
	if l.created && l.bytes == 0 {
		err = remove(l.dir, l.name)
	}
	return errors.Join(err, l.close())
}

// rotatedName is the name after n rotations.
func rotatedName(name string, n int) string {
	if n == 0 {
		return name
	}
	return name + "." + strconv.Itoa(n)
}

func indexName(name string) string { return name + ".idx" }

func remove(dir int, name string) error {
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

func rename(dir int, from, to string) error {
	if err := unix.Renameat(dir, from, dir, to); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rename", Path: from, Err: err}
	}
	return nil
}

func isEIO(err error) bool { return errors.Is(err, unix.EIO) }

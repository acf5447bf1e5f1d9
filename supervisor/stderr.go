package supervisor

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/cgroup"
)

// stderrTail reads what a process writes to its standard error: the end of it is
// kept for the record of the exit, the beginning in a file.
type stderrTail struct {
	pipe *os.File
	// path of the file, made when there is something to write.
	path string
	log  *slog.Logger
	// read is closed when the pipe has given all.
	read chan struct{}

	mu   sync.Mutex
	tail []byte
}

func newStderrTail(pipe *os.File, path string, log *slog.Logger) *stderrTail {
	return &stderrTail{pipe: pipe, path: path, log: log, read: make(chan struct{})}
}

// pump runs until the end of the pipe.
func (s *stderrTail) pump() {
	defer close(s.read)
	var buf [512]byte // a VMM says little here
	out, left := -1, stderrFileBytes
	for {
		n, err := s.pipe.Read(buf[:])
		if n > 0 {
			s.keep(buf[:n])
			if left > 0 {
				out = s.write(out, buf[:min(n, left)])
				left -= n
			}
		}
		if err != nil {
			break
		}
	}
	if out >= 0 {
		if err := unix.Close(out); err != nil {
			s.log.Error("closing the VMM's error log failed", "err", err)
		}
	}
}

func (s *stderrTail) keep(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tail = append(s.tail, p...)
	if extra := len(s.tail) - stderrTailBytes; extra > 0 {
		s.tail = append(s.tail[:0], s.tail[extra:]...)
	}
}

// write appends to the file, which is made anew for each process; failures cost
// only the file.
func (s *stderrTail) write(fd int, p []byte) int {
	if fd < 0 {
		var err error
		if fd, err = createFile(s.path); err != nil {
			s.log.Error("the VMM's error log can't be written", "err", err)
			return -1
		}
	}
	if _, err := unix.Write(fd, p); err != nil {
		s.log.Error("the VMM's error log can't be written", "err", err)
	}
	return fd
}

// createFile replaces a file by an empty one, never through a symlink.
func createFile(path string) (int, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	name := filepath.Base(path)
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return -1, err
	}
	return unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, fileMode)
}

// finish is called once, after the process has ended.
func (s *stderrTail) finish() error {
	err := s.pipe.SetReadDeadline(time.Now().Add(stderrTimeout))
	<-s.read
	return errors.Join(err, s.pipe.Close())
}

// text gives the tail as valid UTF-8.
func (s *stderrTail) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ToValidUTF8(string(s.tail), "\uFFFD")
}

// note adds why the kernel ended a process that could not say so itself.
func (s *stderrTail) note(g *cgroup.Group) {
	if g.OOMKills() > 0 {
		s.keep([]byte("killed by the kernel, because it used more memory than its jail allows\n"))
	}
}

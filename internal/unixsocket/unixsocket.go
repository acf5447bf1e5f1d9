package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

// pathBytesMax is what sockaddr_un holds without its final zero (unix(7)).
const pathBytesMax = 107

// dialTimeout bounds the question whether anybody listens on a socket found.
const dialTimeout = time.Second

// nameBytesMax is what is left for the last element of a path behind
// "/proc/self/fd/NNNNN/".
const nameBytesMax = pathBytesMax - len("/proc/self/fd/1234567/")

// short gives an address for path that fits, and a function that frees what it
// holds; call it after the bind or connect.
func short(path string) (string, func(), error) {
	if len(path) <= pathBytesMax {
		return path, func() {}, nil
	}
	dir, name := filepath.Split(path)
	if len(name) > nameBytesMax {
		return "", nil, problem.New(problem.Invalid, "socket.path_too_long",
			"socket %s: its last element has %d bytes, at most %d fit", path, len(name), nameBytesMax).
			WithHint("choose a shorter file name for the socket")
	}
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name), func() { _ = d.Close() }, nil
}

// Listen makes a socket at path with the given permissions. A socket left by a
// process that is gone is replaced; one that answers is an error of kind
// Conflict. Closing the listener removes the file.
func Listen(path string, mode os.FileMode) (*net.UnixListener, error) {
	addr, free, err := short(path)
	if err != nil {
		return nil, err
	}
	defer free()
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, problem.New(problem.Conflict, "socket.not_a_socket", "%s exists and is not a socket", path).
				WithHint("choose another path for the socket, or move that file away")
		}
		if c, err := net.DialTimeout("unix", addr, dialTimeout); err == nil {
			_ = c.Close()
			return nil, inUse(path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The address may hold a descriptor that is closed by then, so the owner
	// removes the file by its real path.
	l.SetUnlinkOnClose(addr == path)
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func inUse(path string) error {
	return problem.New(problem.Conflict, "socket.in_use", "socket %s is in use by another process", path).
		WithHint("stop that process, or choose another socket with --socket")
}

// Dial connects to the socket at path. It is an error that wraps
// fs.ErrNotExist or syscall.ECONNREFUSED when nothing listens.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	addr, free, err := short(path)
	if err != nil {
		return nil, err
	}
	defer free()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return c.(*net.UnixConn), nil
}

// Absent reports whether err of Dial says that nothing listens there.
func Absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

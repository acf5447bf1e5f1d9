//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

// dialLimit bounds how long a server of the guest may leave a connection unaccepted.
const dialLimit = 10 * time.Second

// loopbacks are where servers of the guest are looked for.
var loopbacks = []struct {
	family int
	addr   func(port int) unix.Sockaddr
}{
	{unix.AF_INET, func(port int) unix.Sockaddr { return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}} }},
	{unix.AF_INET6, func(port int) unix.Sockaddr { return &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}} }},
}

// dialLocal connects to a TCP port of this machine. Plain system calls: the net package's way in links its
// resolver, which this program has no use for.
func dialLocal(port uint16, deadline time.Time) (*os.File, error) {
	var errs []error
	for _, l := range loopbacks {
		f, err := dialOne(l.family, l.addr(int(port)), deadline)
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	return nil, errs[0]
}

func dialOne(family int, addr unix.Sockaddr, deadline time.Time) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Connect(fd, addr)
	f := os.NewFile(uintptr(fd), "connection")
	if err == unix.EINPROGRESS {
		err = awaitConnect(f, deadline)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// awaitConnect waits for the outcome of a connect.
func awaitConnect(f *os.File, deadline time.Time) error {
	raw, err := f.SyscallConn()
	if err == nil {
		err = f.SetWriteDeadline(deadline)
	}
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Write(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || errno != 0 {
			outcome = errors.Join(err, unix.Errno(errno))
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if outcome != nil {
		return outcome
	}
	_ = f.SetWriteDeadline(time.Time{})
	return err
}

func shutdownWrite(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

// dial joins a stream to a server of this machine until both directions ended or either side is gone.
func (s *server) dial(c *call, port uint16) error {
	if port == 0 {
		return &wire.Problem{Kind: wire.KindInvalid, Code: "guest.request", Message: "no port 0"}
	}
	f, err := dialLocal(port, time.Now().Add(dialLimit))
	if err != nil {
		return &wire.Problem{
			Kind: wire.KindUnavailable, Code: "guest.refused",
			Message: wire.CleanText(fmt.Sprintf("connect to port %d: %v", port, err), wire.MaxMessage),
			Hint:    "nothing in the guest listens there on the loopback address",
		}
	}
	if c.respond(wire.Response{}) != nil { // the caller is gone
		return f.Close()
	}
	var answers sync.WaitGroup
	answers.Go(func() { sendAnswers(c, f) })
	takeRequests(c, f)
	_ = f.Close()
	answers.Wait()
	return nil
}

// sendAnswers copies what the server sends. An end other than the server's own breaks the stream.
func sendAnswers(c *call, f *os.File) {
	buf := make([]byte, outputBuffer)
	for {
		n, err := f.Read(buf)
		if n > 0 && c.frame(wire.FrameStdout, buf[:n]) != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			_ = c.frame(wire.FrameStdoutEnd, nil)
			return
		}
		if err != nil {
			_ = c.stream.Close()
			_ = c.stream.SetReadDeadline(time.Unix(1, 0))
			return
		}
	}
}

// takeRequests copies what the caller sends, until the caller or the server is gone.
func takeRequests(c *call, f *os.File) {
	for {
		t, p, err := c.Next()
		switch {
		case err != nil:
			return
		case t == wire.FrameStdinEnd:
			shutdownWrite(f)
		case t == wire.FrameStdin:
			if !writeAlive(f, p, c.alive) {
				return
			}
		default:
			return
		}
	}
}

// writeAlive writes all of p. While the reader of f does not read, alive is asked every inputProbe whether
// the writer is still there.
func writeAlive(f *os.File, p []byte, alive func() bool) bool {
	for len(p) > 0 {
		_ = f.SetWriteDeadline(time.Now().Add(inputProbe))
		n, err := f.Write(p)
		p = p[n:]
		if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || !alive()) {
			return false
		}
	}
	return true
}

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Handle holds a process by a pidfd, so that a signal can't reach another one
// even when the process ends meanwhile. Signal and Close are safe for concurrent
// use; one Wait at a time.
type Handle struct {
	// f is the pidfd in non-blocking mode: the runtime's poller waits for it, and
	// no thread is spent on a process.
	f *os.File
}

// Open takes hold of the process of an identity. It fails with ErrGone when that
// is not there. The caller closes the handle.
func Open(id Identity) (*Handle, error) {
	if id.PID <= 0 {
		return nil, fmt.Errorf("%w: pid %d", ErrGone, id.PID)
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: %v", ErrGone, id)
	}
	if err != nil {
		return nil, fmt.Errorf("process: pidfd of %v: %w", id, err)
	}
	h := &Handle{f: os.NewFile(uintptr(fd), "pidfd")}
	// The order matters: what is looked at after the descriptor is there is what
	// the descriptor holds.
	if err := id.Check(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// NewHandle takes over a pidfd that the kernel gave with the process.
func NewHandle(pidfd int) (*Handle, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		return nil, fmt.Errorf("process: pidfd: %w", err)
	}
	return &Handle{f: os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

// Signal sends a signal. It is ErrGone when the process has ended and was reaped,
// os.ErrClosed when the handle is closed.
func (h *Handle) Signal(sig unix.Signal) error {
	rc, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("process: signal: %w", os.ErrClosed)
	}
	if errors.Is(serr, unix.ESRCH) {
		return ErrGone
	}
	return serr
}

// Wait returns nil when the process has ended, or the context's error. It reaps
// nothing and also serves for processes of others.
func (h *Handle) Wait(ctx context.Context) error {
	rc, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	if err := h.f.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("process: pidfd can't be polled: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = h.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var perr error
	err = rc.Read(func(fd uintptr) bool {
		var ended bool
		ended, perr = readable(int(fd))
		return ended || perr != nil
	})
	switch {
	case perr != nil:
		return fmt.Errorf("process: poll: %w", perr)
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

func readable(fd int) (bool, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// Close lets go of the process; it ends nothing.
func (h *Handle) Close() error { return h.f.Close() }

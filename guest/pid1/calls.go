//go:build linux

package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

// beside calls f where the machine's commands are: in this process's own view, or on a thread in that of the
// image's init.
func (m *machine) beside(f func() error) error {
	main, err := m.mainCommand()
	if err != nil {
		return err
	}
	if !m.cfg.Init {
		return f()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = join(main.pid); err != nil {
			err = fmt.Errorf("join the image's init: %w", err)
			return
		}
		err = f()
	}()
	<-done
	return err
}

// work is beside for what uses files for longer: it is waited for when the machine ends. over is closed
// then, or when f returned.
func (m *machine) work(over func(), f func() error) error {
	m.mu.Lock()
	select {
	case <-m.over:
		m.mu.Unlock()
		return &wire.Problem{Kind: wire.KindUnavailable, Code: "guest.not_running", Message: "the boot is over"}
	default:
	}
	m.workers.Add(1)
	m.mu.Unlock()
	defer m.workers.Done()
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-m.over:
			over()
		case <-ended:
		}
	}()
	err := m.beside(f)
	close(ended)
	<-watched
	return err
}

// fileProblem makes a problem of an error about files.
func fileProblem(code string, err error) error {
	var p *wire.Problem
	if err == nil || errors.As(err, &p) {
		return err
	}
	kind := wire.KindConflict
	switch {
	case errors.Is(err, unix.ENOENT):
		kind = wire.KindNotFound
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF):
		kind = wire.KindUnavailable
	}
	return &wire.Problem{Kind: kind, Code: code, Message: wire.CleanText(err.Error(), wire.MaxMessage)}
}

// more carries out the calls since minor version 1.
func (s *server) more(c *call, req *wire.Request) error {
	switch {
	case req.Method == wire.MethodSetTime:
		return c.respond(wire.Response{ClockOffUS: s.m.plat.setClock(req.TimeUS)})
	case req.Method == wire.MethodTop:
		var list []wire.Process
		err := s.m.beside(func() error {
			list = topProcesses("/proc", "")
			return nil
		})
		if err != nil {
			return err
		}
		return c.respond(wire.Response{Processes: list})
	case req.Method == wire.MethodProbe && req.Probe != nil:
		if err := checkProbe(req.Probe); err != nil {
			return err
		}
		result := probe(req.Probe)
		return c.respond(wire.Response{Probe: &result})
	case req.Method == wire.MethodDial:
		return s.dial(c, req.Port)
	case req.Method == wire.MethodStat:
		return s.stat(c, req.Path)
	case req.Method == wire.MethodCopyTo:
		return s.copyTo(c, req.Path)
	case req.Method == wire.MethodCopyFrom:
		return s.copyFrom(c, req.Path)
	}
	return s.volumes(c, req)
}

// stat tells of a file; a symbolic link is followed unless it leads nowhere.
func (s *server) stat(c *call, name string) error {
	var info wire.FileInfo
	err := s.m.beside(func() error {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return &os.PathError{Op: "stat", Path: name, Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			buf := make([]byte, wire.MaxPath)
			if n, err := unix.Readlink(name, buf); err == nil {
				info.Link = string(buf[:n])
			}
			var target unix.Stat_t
			if unix.Stat(name, &target) == nil {
				st = target
			}
		}
		info.Mode, info.UID, info.GID, info.Size = st.Mode, st.Uid, st.Gid, uint64(st.Size)
		info.MTimeUS = st.Mtim.Nano() / 1000
		return nil
	})
	if err != nil {
		return fileProblem("guest.file", err)
	}
	return c.respond(wire.Response{File: &info})
}

// abort makes the stream's reads and writes end, for a machine that ends.
func (c *call) abort() { _ = c.stream.SetDeadline(time.Unix(1, 0)) }

// done ends a copy with its outcome.
func (c *call) done(err error) {
	var r wire.Response
	if err != nil {
		errors.As(fileProblem("guest.copy", err), &r.Problem)
	}
	_ = c.stream.SetWriteDeadline(time.Now().Add(callsLimit))
	_ = c.frame(wire.FrameDone, r.Encode())
}

// copyTo unpacks the archive that the caller sends.
func (s *server) copyTo(c *call, dir string) error {
	if _, err := s.m.mainCommand(); err != nil {
		return err
	}
	if c.respond(wire.Response{}) != nil {
		return nil //nolint:nilerr // the caller is gone: nobody is left to tell
	}
	in := &inbound{c: c}
	c.done(s.m.work(c.abort, func() error { return unpack(dir, in) }))
	return nil
}

// inbound reads the data that a caller sends.
type inbound struct {
	c     *call
	rest  []byte
	ended bool
}

// Read implements io.Reader. It gives io.EOF only if the caller said that it is the end.
func (r *inbound) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		t, b, err := r.c.Next()
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		case t == wire.FrameStdinEnd:
			r.ended = true
		case t == wire.FrameStdin:
			r.rest = b
		default:
			return 0, wire.ErrFrameType
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// copyFrom sends an archive of what is at a path.
func (s *server) copyFrom(c *call, name string) error {
	work := func(f func() error) error { return s.m.work(c.abort, f) }
	// Once all processes are gone the root is as they left it, and still there until the end
	// is acknowledged: what they made can be taken out then.
	if st, _ := s.m.state(); st.Phase == wire.PhaseExited {
		if err := checkSource(name); err != nil {
			return fileProblem("guest.copy", err)
		}
		work = func(f func() error) error { return f() }
	} else if err := s.m.beside(func() error { return checkSource(name) }); err != nil {
		return fileProblem("guest.copy", err)
	}
	if c.respond(wire.Response{}) != nil {
		return nil //nolint:nilerr // the caller is gone: nobody is left to tell
	}
	c.done(work(func() error {
		w := bufio.NewWriterSize(outbound{c}, wire.MaxData)
		if err := pack(name, w); err != nil {
			return err
		}
		return w.Flush()
	}))
	return nil
}

// outbound sends data to a caller.
type outbound struct{ c *call }

// Write implements io.Writer.
func (w outbound) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); sent += wire.MaxData {
		if err := w.c.frame(wire.FrameStdout, p[sent:min(len(p), sent+wire.MaxData)]); err != nil {
			return sent, err
		}
	}
	return len(p), nil
}

// volumes carries out the calls about volumes.
func (s *server) volumes(c *call, req *wire.Request) error {
	var r wire.Response
	var err error
	switch {
	case req.Method == wire.MethodMount && req.Mount != nil:
		if err = checkMount(req.Mount); err == nil {
			err = s.m.plat.mount(req.Mount, s.m.beside)
		}
	case req.Method == wire.MethodUnmount:
		if err = checkPath(req.Path); err == nil {
			err = s.m.plat.unmount(req.Path, s.m.beside)
		}
	case req.Method == wire.MethodGrow:
		r.Size, err = s.m.plat.grow(req.Path, s.m.beside)
	default:
		return &wire.Problem{
			Kind: wire.KindInvalid, Code: "guest.method", Message: "this guest has no call " + wire.CleanText(string(req.Method), wire.MaxIDLen),
			Hint: "restart the VM, so that it boots with this node's guest bundle",
		}
	}
	if err != nil {
		return fileProblem("guest.volume", err)
	}
	return c.respond(r)
}

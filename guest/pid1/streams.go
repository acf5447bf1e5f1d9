//go:build linux

package pid1

import (
	"encoding/binary"
	"sync"
	"syscall"
	"time"

	"github.com/blixard/blixard/guest/wire"
)

// hangupGrace is the time between SIGHUP and SIGKILL for a process whose caller is gone.
const hangupGrace = 2 * time.Second

// exec runs a further process for as long as its stream lives.
func (s *server) exec(c *call, req *wire.ExecRequest) error {
	main, err := s.m.mainCommand()
	if err != nil {
		return err
	}
	st, _ := s.m.state()
	if st.Phase == wire.PhaseExited {
		return &wire.Problem{Kind: wire.KindUnavailable, Code: "guest.not_running", Message: "the boot is over"}
	}
	dir := req.WorkDir
	if dir == "" {
		dir = s.m.cfg.WorkDir
	}
	user := req.User
	if user == "" {
		user = s.m.cfg.User
	}
	run, err := s.m.startBesideMain(main, command{
		argv: req.Argv, env: mergeEnv(s.m.cfg.Env, req.Env), dir: dir, user: user,
		tty: req.TTY, size: req.Size, stdin: req.Stdin,
	})
	if err != nil {
		return err
	}
	s.m.calls.Add(1)
	defer s.m.calls.Done()
	defer run.close()
	if err := c.respond(wire.Response{PID: run.pid}); err != nil {
		s.abandon(run)
		return nil
	}
	var pumps sync.WaitGroup
	sink := func(t wire.FrameType) func([]byte) {
		return func(p []byte) { _ = c.frame(t, p) }
	}
	pumps.Go(func() { run.pump(run.out, sink(wire.FrameStdout)) })
	if run.err != nil {
		pumps.Go(func() { run.pump(run.err, sink(wire.FrameStderr)) })
	}
	inputEnded := make(chan struct{})
	go func() {
		defer close(inputEnded)
		s.input(c, run, req.Stdin)
	}()
	select {
	case <-run.done:
	case <-inputEnded: // the caller is gone
		s.abandon(run)
	}
	pumps.Wait()
	var exit wire.Exit
	exit.Reason = wire.ExitCommand
	exit.Code, exit.Signal = exitCode(run.status)
	s.sendExit(c, exit)
	run.close() // frees an input that waits for the ended process
	_ = c.stream.SetReadDeadline(time.Unix(1, 0))
	<-inputEnded
	return nil
}

// abandon ends a process whose caller is gone, and waits for that.
func (s *server) abandon(run *running) {
	s.m.reap.signal(run.process, syscall.SIGHUP, true)
	select {
	case <-run.done:
	case <-time.After(hangupGrace):
		s.m.reap.signal(run.process, syscall.SIGKILL, true)
		<-run.done
	}
}

// alive finds out whether the caller still has the stream, by an empty piece of output.
func (c *call) alive() bool { return c.frame(wire.FrameStdout, nil) == nil }

func (s *server) sendExit(c *call, exit wire.Exit) {
	_ = c.frame(wire.FrameExit, exit.Encode())
}

// input carries out a caller's frames until the caller is gone or breaks the protocol.
func (s *server) input(c *call, run *running, stdin bool) {
	for {
		t, p, err := c.Next()
		if err != nil {
			return
		}
		switch t {
		case wire.FrameStdin:
			// A process that closed its input makes the write fail: the rest is dropped as a shell
			// would see it, the process goes on.
			if stdin && !run.writeInput(p, c.alive) {
				return
			}
		case wire.FrameStdinEnd:
			if stdin {
				run.endInput()
			}
		case wire.FrameResize:
			if size, err := wire.ParseResize(p); err == nil {
				run.resize(size)
			}
		case wire.FrameSignal:
			if len(p) == 1 && p[0] >= 1 && p[0] <= 64 {
				s.m.reap.signal(run.process, syscall.Signal(p[0]), false)
			}
		default:
			return
		}
	}
}

// attach joins the main command's output and input.
func (s *server) attach(c *call, req *wire.AttachRequest) error {
	run, err := s.m.mainCommand()
	if err != nil {
		if st, _ := s.m.state(); st.Phase == wire.PhaseExited {
			return s.attachEnded(c, req, *st.Exit)
		}
		return err
	}
	if req.Stdin {
		if err := s.m.takeStdin(); err != nil {
			return err
		}
		defer s.m.giveStdin()
	}
	if req.Size != (wire.WindowSize{}) {
		run.resize(req.Size)
	}
	s.m.calls.Add(1)
	defer s.m.calls.Done()
	r := s.m.out.attach(req.Replay, req.Lossless)
	defer r.detach()
	s.m.mu.Lock()
	release := s.m.releaseHold
	s.m.mu.Unlock()
	release()
	if err := c.respond(wire.Response{PID: run.pid}); err != nil {
		return nil
	}
	inputEnded := make(chan struct{})
	go func() {
		defer close(inputEnded)
		defer r.detach()
		s.input(c, run, req.Stdin)
	}()
	if s.sendOutput(c, r) {
		s.sendExit(c, s.m.awaitExit(inputEnded))
	}
	_ = c.stream.SetReadDeadline(time.Unix(1, 0))
	<-inputEnded
	return nil
}

// attachEnded tells who joins a command that could not be started why, and how that ended.
func (s *server) attachEnded(c *call, req *wire.AttachRequest, exit wire.Exit) error {
	s.m.calls.Add(1)
	defer s.m.calls.Done()
	r := s.m.out.attach(req.Replay, req.Lossless)
	defer r.detach()
	if err := c.respond(wire.Response{}); err != nil {
		return nil
	}
	if exit.Message != "" && c.frame(wire.FrameStderr, []byte("blixard: "+exit.Message+"\n")) != nil {
		return nil
	}
	if s.sendOutput(c, r) {
		s.sendExit(c, exit)
	}
	return nil
}

// sendOutput sends what the reader gets; false means the caller is gone.
func (s *server) sendOutput(c *call, r *reader) bool {
	buf := make([]byte, wire.MaxData)
	for {
		t, n, lost, ok := r.next(buf)
		if !ok {
			return !r.isGone()
		}
		if lost > 0 {
			if c.frame(wire.FrameGap, binary.BigEndian.AppendUint64(nil, uint64(lost))) != nil {
				return false
			}
		}
		if n > 0 && c.frame(t, buf[:n]) != nil {
			return false
		}
	}
}

func (r *reader) isGone() bool {
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	return r.gone
}

// takeStdin makes the caller the one writer beside the console.
func (m *machine) takeStdin() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stdinTaken {
		return &wire.Problem{
			Kind: wire.KindConflict, Code: "guest.stdin_taken", Message: "another attach has the command's input",
			Hint: "attach without input, or end the other attach",
		}
	}
	if m.main.stdin == nil {
		return &wire.Problem{
			Kind: wire.KindConflict, Code: "guest.no_stdin", Message: "the command was started without an input",
			Hint: "attach without input",
		}
	}
	m.stdinTaken = true
	return nil
}

func (m *machine) giveStdin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stdinTaken = false
}

// awaitExit waits for the report of the end, which follows the end of the output, or for gone.
func (m *machine) awaitExit(gone <-chan struct{}) wire.Exit {
	for {
		st, changed := m.state()
		if st.Exit != nil {
			return *st.Exit
		}
		select {
		case <-changed:
		case <-gone:
			return wire.Exit{}
		}
	}
}

package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"google.golang.org/grpc/status"

	"github.com/blixard/blixard/internal/problem"
)

const (
	// inputBytes is read at once; the API takes up to 64 KiB in a message.
	inputBytes = 32 << 10
	// outboxMax messages wait to be sent; the reader of standard input waits
	// beyond it, so a guest that does not read slows the writer.
	outboxMax = 16
	// interruptsMax SIGINTs are passed on to a command that ignores them; one more
	// ends the session.
	interruptsMax = 3
)

// frame is what came from the guest: one of its fields is set.
type frame struct {
	stdout, stderr []byte
	exit           *int32
	started        bool
}

// remote is the other end of exec, attach and console. recv is called by one
// goroutine, the others by another.
type remote struct {
	recv   func() (frame, error)
	stdin  func([]byte) error
	end    func() error
	size   func(columns, rows uint32) error
	signal func(number uint32) error
	// closeSend ends the sending half.
	closeSend func() error
}

// session connects standard streams with a guest.
type session struct {
	a *app
	r remote
	// stdin: pass standard input on. tty: the terminal is raw and its size is
	// told. signals: pass signals on instead of being ended by them.
	stdin, tty, signals bool
	// escape, when not 0, is the byte that ends the session.
	escape byte
	// onStart is called at the first message that tells that the guest is there.
	onStart func()

	outbox chan func() error
	// over is closed when the session ends.
	over chan struct{}
	stop func(error)
	// exited is whether the guest told an exit code.
	exited bool
}

// errEscaped ends a session that a person left.
var errEscaped = errors.New("cli: left by the escape key")

// run carries the session to its end and returns the exit code. The context's
// end, an error of the stream and the escape key end it too.
func (s *session) run(ctx context.Context, cancel context.CancelCauseFunc) (code int32, err error) {
	s.outbox, s.over = make(chan func() error, outboxMax), make(chan struct{})
	s.stop = func(err error) { cancel(err) }
	var raw *rawTerminal
	if s.tty {
		if fd, ok := terminalOf(s.a.stdin); ok {
			if raw, err = makeRaw(fd, s.a.stdout); err != nil {
				return 0, err
			}
		}
	}
	defer raw.restore()
	in, err := newInput(s.a.stdin)
	if err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	if s.stdin {
		wg.Go(func() { s.copyInput(in) })
	}
	wg.Go(s.watchSignals)
	wg.Go(s.send)
	code, err = s.receive()
	close(s.over)
	in.close()
	if in.f == nil && s.stdin {
		// A reader that is no file can't be woken; it ends with its process.
		go func() { wg.Wait(); in.free() }()
	} else {
		wg.Wait()
		in.free()
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return code, err
}

// post hands a message to the sender; false when the session is over.
func (s *session) post(f func() error) bool {
	select {
	case s.outbox <- f:
		return true
	case <-s.over:
		return false
	}
}

func (s *session) send() {
	for {
		select {
		case f := <-s.outbox:
			if f() != nil {
				// What went wrong is told by the receiving half.
				return
			}
		case <-s.over:
			_ = s.r.closeSend()
			return
		}
	}
}

func (s *session) receive() (int32, error) {
	for {
		f, err := s.r.recv()
		if err != nil {
			return 0, err
		}
		if s.onStart != nil {
			s.onStart()
			s.onStart = nil
		}
		switch {
		case f.exit != nil:
			s.exited = true
			return *f.exit, nil
		case len(f.stdout) > 0:
			_, err = s.a.stdout.Write(f.stdout)
		case len(f.stderr) > 0:
			_, err = s.a.stderr.Write(f.stderr)
		}
		if err != nil {
			return 0, err
		}
	}
}

// copyInput passes standard input on until its end, the session's end or the
// escape key.
func (s *session) copyInput(in *input) {
	buf := make([]byte, inputBytes)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			data, left := s.untilEscape(buf[:n])
			if len(data) > 0 && !s.post(func() error { return s.r.stdin(data) }) {
				return
			}
			if left {
				s.stop(errEscaped)
				return
			}
		}
		if errors.Is(err, errInputClosed) {
			return
		}
		if err != nil {
			if s.r.end != nil {
				s.post(s.r.end)
			}
			return
		}
	}
}

// untilEscape copies the bytes before the escape key.
func (s *session) untilEscape(p []byte) (data []byte, left bool) {
	for i, b := range p {
		if s.escape != 0 && b == s.escape {
			return append([]byte(nil), p[:i]...), true
		}
	}
	return append([]byte(nil), p...), false
}

// passedOn are the signals that a guest's command gets.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2}

func (s *session) watchSignals() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGWINCH)
	if s.signals {
		signal.Notify(signals, passedOn...)
	}
	defer signal.Stop(signals)
	interrupts := 0
	for {
		select {
		case <-s.over:
			return
		case got := <-signals:
			n, ok := got.(syscall.Signal)
			if !ok {
				continue
			}
			if n == syscall.SIGWINCH {
				s.tellSize()
				continue
			}
			interrupts++
			if interrupts > interruptsMax {
				s.stop(&signalError{n})
				return
			}
			s.post(func() error { return s.r.signal(uint32(n)) })
		}
	}
}

func (s *session) tellSize() {
	if columns, rows, ok := s.a.terminalSize(); ok && s.tty {
		s.post(func() error { return s.r.size(columns, rows) })
	}
}

// lostConnection reports whether a stream ended for a reason that has nothing to
// do with the guest.
func lostConnection(err error) bool {
	p := problem.From(err)
	if p.Code == "vm.ended" {
		return false // the node says so, and how
	}
	if _, isStatus := status.FromError(err); isStatus && p.Kind == problem.Unavailable {
		return true
	}
	return problem.HasCode(err, "node.connection_lost") || problem.HasCode(err, "node.not_running") || problem.HasCode(err, "node.stopping")
}

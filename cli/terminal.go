package cli

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// restoreSequence undoes what a guest may have left switched on in the terminal:
// colours, a hidden cursor, application keys, bracketed paste and mouse reports.
const restoreSequence = "\x1b[0m\x1b[?25h\x1b[?1l\x1b>\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l"

// rawTerminal is a terminal in raw mode; restore puts it back, once, and is safe
// to call again.
type rawTerminal struct {
	fd   int
	out  io.Writer
	once sync.Once
	old  *term.State
}

func makeRaw(fd int, out io.Writer) (*rawTerminal, error) {
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return &rawTerminal{fd: fd, out: out, old: old}, nil
}

func (r *rawTerminal) restore() {
	if r == nil {
		return
	}
	r.once.Do(func() {
		_, _ = io.WriteString(r.out, restoreSequence)
		_ = term.Restore(r.fd, r.old)
	})
}

// terminalSize gives the size of the terminal among the streams; ok is false
// when there is none.
func (a *app) terminalSize() (columns, rows uint32, ok bool) {
	for _, stream := range []any{a.stdout, a.stdin, a.stderr} {
		fd, isTerminal := terminalOf(stream)
		if !isTerminal {
			continue
		}
		if w, h, err := term.GetSize(fd); err == nil && w > 0 && h > 0 {
			return uint32(min(w, sizeMax)), uint32(min(h, sizeMax)), true
		}
	}
	return 0, 0, false
}

// sizeMax is the API's limit of a terminal's sides.
const sizeMax = 4096

// errInputClosed is what a closed input returns.
var errInputClosed = errors.New("cli: the input was closed")

// input reads standard input so that the reading can be ended without taking a
// byte more than was used: what a person types next belongs to their shell.
type input struct {
	r io.Reader
	// wake is a pipe whose closing ends a poll; nil when r is no file.
	f          *os.File
	wake, wait *os.File
}

func newInput(r io.Reader) (*input, error) {
	in := &input{r: r}
	f, ok := r.(*os.File)
	if !ok {
		return in, nil
	}
	wait, wake, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	in.f, in.wait, in.wake = f, wait, wake
	return in, nil
}

// Read waits for input or the end; after close it fails.
func (in *input) Read(p []byte) (int, error) {
	if in.f == nil {
		return in.r.Read(p)
	}
	fds := []unix.PollFd{{Fd: int32(in.f.Fd()), Events: unix.POLLIN}, {Fd: int32(in.wait.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if fds[1].Revents != 0 {
			return 0, errInputClosed
		}
		if fds[0].Revents != 0 {
			return in.f.Read(p)
		}
	}
}

// close ends a Read that waits; free releases the pipe once no Read is left.
func (in *input) close() {
	if in.f != nil {
		_ = in.wake.Close()
	}
}

func (in *input) free() {
	if in.f != nil {
		_ = in.wait.Close()
	}
}

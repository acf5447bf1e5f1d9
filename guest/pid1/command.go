//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "xterm"

	// outputBuffer is one read of a process's output; also the largest data frame it makes.
	outputBuffer = 32 << 10
	// drainBytes bounds what is still read from a process's pipe after it ended: the largest pipe an
	// unprivileged process can make.
	drainBytes = 1 << 20
	// drainTerminal bounds the wait for a terminal's last output when something else keeps it open.
	drainTerminal = 200 * time.Millisecond
	// inputProbe is how often a writer of input that waits is checked for being there.
	inputProbe = time.Second
)

// command is what to start and on what.
type command struct {
	argv  []string
	env   []string
	dir   string
	user  string
	tty   bool
	size  wire.WindowSize
	stdin bool
}

// running is a started command with this end of its input and output.
type running struct {
	*process
	c     command
	stdin *os.File // the pipe's or terminal's end to write to; nil for none
	tty   *os.File // the terminal's master, or nil
	out   *os.File // standard output's or the terminal's end to read from
	err   *os.File // standard error's; nil with a terminal
}

// start starts a command. Errors are *wire.Problem with the exit code a shell would give.
func (r *reaper) startCommand(c command) (*running, error) {
	if len(c.argv) == 0 || c.argv[0] == "" {
		return nil, startProblem(wire.KindInvalid, wire.CodeNotFound, "no command given")
	}
	who, err := lookupUser("", c.user)
	if err != nil {
		return nil, err
	}
	c.env = completeEnv(c.env, who, c.tty)
	if c.dir == "" {
		c.dir = "/"
	}
	if err := makeDir(c.dir); err != nil {
		return nil, startProblem(wire.KindInvalid, wire.CodeNotExecutable, "working directory: %v", err)
	}
	path, err := lookPath(c.argv[0], envValue(c.env, "PATH"), c.dir)
	if err != nil {
		return nil, err
	}
	run, theirs, err := openStdio(c, who)
	if err != nil {
		return nil, startProblem(wire.KindInternal, wire.CodeNotExecutable, "standard input and output: %v", err)
	}
	defer closeAll(theirs[:]...)
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env,
		Files: []uintptr{theirs[0].Fd(), theirs[1].Fd(), theirs[2].Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: c.tty,
			Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups},
		},
	}
	if run.process, err = r.start(path, c.argv, attr); err != nil {
		run.close()
		code, kind := wire.CodeNotExecutable, wire.KindInvalid
		if errors.Is(err, fs.ErrNotExist) {
			code, kind = wire.CodeNotFound, wire.KindNotFound
		}
		return nil, startProblem(kind, code, "start %s: %v", c.argv[0], err)
	}
	return run, nil
}

// openStdio makes both ends of the standard files.
func openStdio(c command, who account) (*running, [3]*os.File, error) {
	run := &running{c: c}
	var theirs [3]*os.File
	if c.tty {
		master, slave, err := openTerminal(c.size, who)
		if err != nil {
			return nil, theirs, err
		}
		run.tty, run.stdin, run.out = master, master, master
		return run, [3]*os.File{slave, slave, slave}, nil
	}
	var err error
	fail := func(err error) (*running, [3]*os.File, error) {
		closeAll(theirs[:]...)
		run.close()
		return nil, [3]*os.File{}, err
	}
	if c.stdin {
		theirs[0], run.stdin, err = os.Pipe()
	} else {
		theirs[0], err = os.Open(os.DevNull)
	}
	if err != nil {
		return fail(err)
	}
	if run.out, theirs[1], err = os.Pipe(); err != nil {
		return fail(err)
	}
	if run.err, theirs[2], err = os.Pipe(); err != nil {
		return fail(err)
	}
	return run, theirs, nil
}

// close closes this end of everything.
func (r *running) close() {
	closeAll(r.out, r.err, r.stdin)
}

// closeAll closes files, each once, and skips nil ones.
func closeAll(files ...*os.File) {
	for i, f := range files {
		if f == nil || (i > 0 && files[i-1] == f) {
			continue
		}
		_ = f.Close()
	}
}

// pump copies a command's output to sink until its end. After the process ended it takes what the process
// had written by then, and does not wait for others that hold the pipe.
func (r *running) pump(f *os.File, sink func([]byte)) {
	buf := make([]byte, outputBuffer)
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-r.done:
			limit := time.Unix(1, 0)
			if r.tty != nil {
				limit = time.Now().Add(drainTerminal)
			}
			_ = f.SetReadDeadline(limit)
		case <-finished:
		}
	}()
	for {
		n, err := f.Read(buf)
		if n > 0 {
			sink(buf[:n])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			drain(f, buf, sink)
			return
		}
		if err != nil {
			return
		}
	}
}

// drain reads what is there already.
func drain(f *os.File, buf []byte, sink func([]byte)) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for left := drainBytes; left > 0; {
		n := 0
		_ = raw.Control(func(fd uintptr) {
			n, _ = ignoringEINTR(func() (int, error) { return syscall.Read(int(fd), buf) })
		})
		if n <= 0 {
			return
		}
		sink(buf[:n])
		left -= n
	}
}

// writeInput hands p to the process. While the process does not read, alive is asked every inputProbe
// whether the writer is still there; false ends the write and is returned. What a process that
// closed its input does not take is dropped.
func (r *running) writeInput(p []byte, alive func() bool) bool {
	for len(p) > 0 && r.stdin != nil {
		_ = r.stdin.SetWriteDeadline(time.Now().Add(inputProbe))
		n, err := r.stdin.Write(p)
		p = p[n:]
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
		if err != nil && !alive() {
			return false
		}
	}
	return true
}

// endInput ends the standard input: it closes a pipe, and types the end-of-file character on a terminal.
func (r *running) endInput() {
	switch {
	case r.tty != nil:
		_, _ = r.tty.Write([]byte{endOfFile})
	case r.stdin != nil:
		_ = r.stdin.Close()
	}
}

// resize sets the terminal's size, if there is one.
func (r *running) resize(s wire.WindowSize) {
	if r.tty != nil {
		setSize(r.tty, s)
	}
}

// lookPath finds a program as execvp does, relative to dir.
func lookPath(name, path, dir string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for _, d := range strings.Split(path, ":") {
		if d == "" {
			d = "."
		}
		if !strings.HasPrefix(d, "/") {
			d = dir + "/" + d
		}
		full := d + "/" + name
		var st unix.Stat_t
		if unix.Stat(full, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if unix.Access(full, unix.X_OK) == nil {
			return full, nil
		}
		denied = true
	}
	if denied {
		return "", startProblem(wire.KindInvalid, wire.CodeNotExecutable, "%s: not executable", name)
	}
	return "", startProblem(wire.KindNotFound, wire.CodeNotFound, "%s: not found in PATH", name)
}

func envValue(env []string, key string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], key+"="); ok {
			return v
		}
	}
	return ""
}

// completeEnv adds what programs expect and the caller did not give.
func completeEnv(env []string, who account, tty bool) []string {
	out := append([]string(nil), env...)
	add := func(key, value string) {
		for _, e := range env {
			if strings.HasPrefix(e, key+"=") {
				return
			}
		}
		out = append(out, key+"="+value)
	}
	add("PATH", defaultPath)
	add("HOME", who.home)
	if tty {
		add("TERM", defaultTerm)
	}
	return out
}

// mergeEnv puts extra over base, one entry a key.
func mergeEnv(base, extra []string) []string {
	out := make([]string, 0, len(base)+len(extra))
	for _, e := range base {
		key, _, _ := strings.Cut(e, "=")
		if envValue(extra, key) == "" && !hasKey(extra, key) {
			out = append(out, e)
		}
	}
	return append(out, extra...)
}

func hasKey(env []string, key string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, key+"=") {
			return true
		}
	}
	return false
}

func startProblem(kind string, code int, format string, args ...any) *wire.Problem {
	return &wire.Problem{
		Kind: kind, Code: "guest.start", Message: wire.CleanText(fmt.Sprintf(format, args...), wire.MaxMessage), ExitCode: code,
	}
}

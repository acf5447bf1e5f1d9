//go:build linux

package pid1_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/pid1"
	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

const patience = 30 * time.Second

// boot starts a guest in this process and gives a session with it.
func boot(t *testing.T, cfg pid1.LocalConfig) (*pid1.Local, *guest.Session, context.Context) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		ends[i], err = net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg.Token, cfg.BootID = guest.NewToken(), "boot"
	l, err := pid1.StartLocal(ends[0], cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s, err := guest.Connect(ctx, ends[1], cfg.Token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		_ = l.Close()
		cancel()
	})
	return l, s, ctx
}

func configure(ctx context.Context, t *testing.T, s *guest.Session, cfg guest.BootConfig) {
	t.Helper()
	cfg.Image = guest.Disk{Device: "none", FSType: "none"}
	if _, err := s.Configure(ctx, cfg); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, s *guest.Session, kind guest.EventKind) guest.Status {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case e, ok := <-s.Events():
			if !ok {
				t.Fatalf("no event %s: %v", kind, s.Err())
			}
			// The first event tells what has been before the session.
			been := e.Status.ReadyUS > 0
			if kind == guest.EventExited {
				been = e.Status.Exit != nil
			}
			if e.Kind == kind || e.Kind == guest.EventStatus && been {
				return e.Status
			}
		case <-limit:
			t.Fatalf("no event %s", kind)
		}
	}
}

// collect reads a stream to its end.
func collect(t *testing.T, st *guest.Stream) (out, errs string, lost int64, exit guest.Exit) {
	t.Helper()
	for {
		f, err := st.Recv()
		if err != nil {
			t.Fatalf("after %q, %q: %v", out, errs, err)
		}
		switch f.Kind {
		case guest.Ended:
			return out, errs, lost, f.Exit
		case guest.Gap:
			lost += f.Lost
		case guest.Stderr:
			errs += string(f.Data)
		default:
			out += string(f.Data)
		}
	}
}

var sleep = []string{"sleep", "1000"}

func TestLocalLife(t *testing.T) {
	var console bytes.Buffer
	built := make(chan guest.BootConfig, 1)
	l, s, ctx := boot(t, pid1.LocalConfig{Console: &console, BuildRoot: func(cfg wire.BootConfig) error {
		built <- cfg
		return nil
	}})
	configure(ctx, t, s, guest.BootConfig{Hostname: "h", Argv: []string{"sh", "-c", "read line; echo got $line; echo bad >&2; exit 9"}, Stdin: true, HoldOutput: true})
	await(t, s, guest.EventReady)
	if cfg := <-built; cfg.Hostname != "h" {
		t.Errorf("the root was built for %+v", cfg)
	}
	st, err := s.Attach(ctx, guest.AttachRequest{Stdin: true, Replay: guest.ReplayBytes, Lossless: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Attach(ctx, guest.AttachRequest{Stdin: true}); !problem.HasCode(err, "guest.stdin_taken") {
		t.Errorf("a second writer: %v", err)
	}
	if _, err := st.Write([]byte("it\n")); err != nil {
		t.Fatal(err)
	}
	out, errs, lost, exit := collect(t, st)
	if want := (guest.Exit{Reason: guest.ExitCommand, Code: 9}); out != "got it\n" || errs != "bad\n" || lost != 0 || exit != want {
		t.Errorf("%q, %q, lost %d, %+v", out, errs, lost, exit)
	}
	if got := await(t, s, guest.EventExited); got.Phase != guest.PhaseExited || got.Exit.Code != 9 {
		t.Errorf("%+v", got)
	}
	if _, err := s.Exec(ctx, guest.ExecRequest{Argv: sleep}); !problem.HasCode(err, "guest.not_running") {
		t.Errorf("Exec after the end: %v", err)
	}
	if err := s.AckExit(ctx); err != nil {
		t.Error(err)
	}
	<-l.Ended()
	if got := console.String(); !strings.Contains(got, "got it\n") || !strings.Contains(got, "bad\n") {
		t.Errorf("console %q", got)
	}
}

func TestLocalExec(t *testing.T) {
	_, s, ctx := boot(t, pid1.LocalConfig{})
	configure(ctx, t, s, guest.BootConfig{Argv: sleep, Env: []string{"A=1", "B=2", "PATH=" + os.Getenv("PATH")}, WorkDir: "/tmp"})
	await(t, s, guest.EventReady)
	for name, c := range map[string]struct {
		req  guest.ExecRequest
		in   string
		want string
		code int
	}{
		"environment":  {guest.ExecRequest{Argv: []string{"sh", "-c", "echo $A$B; pwd"}, Env: []string{"B=3"}}, "", "13\n/tmp\n", 0},
		"directory":    {guest.ExecRequest{Argv: []string{"pwd"}, WorkDir: "/usr"}, "", "/usr\n", 0},
		"input":        {guest.ExecRequest{Argv: []string{"cat"}, Stdin: true}, strings.Repeat("0123456789", 20_000), strings.Repeat("0123456789", 20_000), 0},
		"terminal":     {guest.ExecRequest{Argv: []string{"sh", "-c", "stty size; cat; exit 5"}, TTY: true, Stdin: true, Size: guest.WindowSize{Columns: 90, Rows: 20}}, "", "20 90\r\n", 5},
		"closed input": {guest.ExecRequest{Argv: []string{"sh", "-c", "exec <&-; exit 2"}, Stdin: true}, strings.Repeat("x", 1000), "", 2},
	} {
		st, err := s.Exec(ctx, c.req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = io.WriteString(st, c.in)
			_ = st.CloseStdin()
		}()
		out, _, _, exit := collect(t, st)
		<-sent
		st.Close()
		out = strings.ReplaceAll(out, "^D\b\b", "") // a terminal's echo of the end of the input
		if out != c.want || exit.Code != c.code {
			t.Errorf("%s: %d bytes %.40q, %+v", name, len(out), out, exit)
		}
	}
	if _, err := s.Exec(ctx, guest.ExecRequest{Argv: []string{"none-such"}}); !problem.HasCode(err, "guest.start") {
		t.Errorf("no such program: %v", err)
	}
	if _, err := s.Attach(ctx, guest.AttachRequest{Stdin: true}); !problem.HasCode(err, "guest.no_stdin") {
		t.Errorf("input of a command without one: %v", err)
	}
}

func TestLocalSignalsAndSize(t *testing.T) {
	_, s, ctx := boot(t, pid1.LocalConfig{})
	configure(ctx, t, s, guest.BootConfig{Argv: sleep})
	await(t, s, guest.EventReady)
	st, err := s.Exec(ctx, guest.ExecRequest{Argv: []string{"sh", "-c", "trap 'stty size; exit 6' WINCH; echo up; while :; do sleep 1000 & wait; done"}, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := st.Resize(guest.WindowSize{Columns: 33, Rows: 44}); err != nil {
		t.Fatal(err)
	}
	if out, _, _, exit := collect(t, st); !strings.Contains(out, "44 33") || exit.Code != 6 {
		t.Errorf("%q, %+v", out, exit)
	}
	// One whose caller goes away is told to hang up, and killed if it does not care.
	stubborn, err := s.Exec(ctx, guest.ExecRequest{Argv: []string{"sh", "-c", "trap '' HUP; echo up; while :; do sleep 1000 & wait; done"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stubborn.Recv(); err != nil {
		t.Fatal(err)
	}
	pid := stubborn.PID()
	stubborn.Close()
	for syscall.Kill(pid, 0) == nil {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("process %d goes on", pid)
		}
	}
}

func TestLocalEnds(t *testing.T) {
	polite := guest.BootConfig{Argv: []string{"sh", "-c", "trap 'exit 5' TERM USR1; echo up; while :; do sleep 1000 & wait; done"}}
	usr1 := polite
	usr1.StopSignal = int(syscall.SIGUSR1)
	stubborn := guest.BootConfig{Argv: []string{"sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000 & wait; done"}}
	terminal := polite
	terminal.TTY = true
	for name, c := range map[string]struct {
		cfg  guest.BootConfig
		ask  func(context.Context, *pid1.Local, *guest.Session) error
		want guest.Exit
	}{
		"stop":        {polite, func(ctx context.Context, _ *pid1.Local, s *guest.Session) error { return s.Stop(ctx, time.Hour) }, guest.Exit{Reason: guest.ExitCommand, Code: 5, Requested: true}},
		"stop signal": {usr1, func(ctx context.Context, _ *pid1.Local, s *guest.Session) error { return s.Stop(ctx, time.Hour) }, guest.Exit{Reason: guest.ExitCommand, Code: 5, Requested: true}},
		"kill": {stubborn, func(ctx context.Context, _ *pid1.Local, s *guest.Session) error {
			return errors.Join(s.Stop(ctx, time.Hour), s.Stop(ctx, 0))
		}, guest.Exit{Reason: guest.ExitCommand, Code: 137, Signal: 9, Requested: true}},
		"reboot":    {terminal, func(ctx context.Context, _ *pid1.Local, s *guest.Session) error { return s.Reboot(ctx, time.Hour) }, guest.Exit{Reason: guest.ExitReboot, Code: 5, Requested: true}},
		"by itself": {polite, func(_ context.Context, l *pid1.Local, _ *guest.Session) error { l.Signal(syscall.SIGUSR2); return nil }, guest.Exit{Reason: guest.ExitPowerOff, Code: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			l, s, ctx := boot(t, pid1.LocalConfig{})
			configure(ctx, t, s, c.cfg)
			await(t, s, guest.EventReady)
			st, err := s.Attach(ctx, guest.AttachRequest{Replay: guest.ReplayBytes, Size: guest.WindowSize{Columns: 10, Rows: 10}})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if f, err := st.Recv(); err != nil || !strings.HasPrefix(string(f.Data), "up") {
				t.Fatalf("%+v, %v", f, err)
			}
			if err := c.ask(ctx, l, s); err != nil {
				t.Fatal(err)
			}
			if got := await(t, s, guest.EventExited).Exit; *got != c.want {
				t.Errorf("%+v, want %+v", *got, c.want)
			}
		})
	}
}

func TestLocalRefuses(t *testing.T) {
	_, s, ctx := boot(t, pid1.LocalConfig{BuildRoot: func(wire.BootConfig) error { return errors.New("no drive") }})
	image := guest.Disk{Device: "d", FSType: "f"}
	for name, cfg := range map[string]guest.BootConfig{
		"no command":     {Image: image},
		"no image":       {Argv: sleep},
		"no file system": {Argv: sleep, Image: image, Writable: &guest.Disk{Device: "x"}},
		"stop signal":    {Argv: sleep, Image: image, StopSignal: -1},
	} {
		if _, err := s.Configure(ctx, cfg); !problem.HasCode(err, "guest.config") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.AckExit(ctx); !problem.HasCode(err, "guest.not_exited") {
		t.Errorf("AckExit: %v", err)
	}
	if _, err := s.Exec(ctx, guest.ExecRequest{Argv: sleep}); !problem.HasCode(err, "guest.not_running") {
		t.Errorf("Exec: %v", err)
	}
	if st, err := s.Stats(ctx); err != nil || st.Processes == 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := s.Ping(ctx); err != nil {
		t.Error(err)
	}
	configure(ctx, t, s, guest.BootConfig{Init: true})
	if _, err := s.Configure(ctx, guest.BootConfig{Argv: sleep, Image: image}); !problem.HasCode(err, "guest.configured") {
		t.Errorf("another configuration: %v", err)
	}
	want := guest.Exit{Reason: guest.ExitBootFailed, Code: guest.CodeBootFailed, Message: "build the root: no drive"}
	if got := await(t, s, guest.EventExited).Exit; *got != want {
		t.Errorf("%+v", *got)
	}
}

// An init that is not there ends the boot with a shell's code.
func TestLocalInitMissing(t *testing.T) {
	_, s, ctx := boot(t, pid1.LocalConfig{})
	configure(ctx, t, s, guest.BootConfig{Init: true, Argv: []string{filepath.Join(t.TempDir(), "init")}})
	if got := await(t, s, guest.EventExited).Exit; got.Code != guest.CodeNotFound || got.Reason != guest.ExitCommand || got.Message == "" {
		t.Errorf("%+v", *got)
	}
}

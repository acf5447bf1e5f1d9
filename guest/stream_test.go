package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

func TestExec(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep, Env: []string{"A=main", "B=main", "PATH=/bin:/usr/bin"}, WorkDir: "/tmp"})
	run := func(req guest.ExecRequest, stdin string) (stdout, stderr string, exit guest.Exit) {
		t.Helper()
		st, err := s.Exec(testContext(t), req)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if req.Stdin {
			if _, err := io.WriteString(st, stdin); err != nil {
				t.Error(err)
			}
			check(t, st.CloseStdin())
		}
		var o, e bytes.Buffer
		exit, err = st.Copy(&o, &e)
		if err != nil {
			t.Error(err)
		}
		if _, err := st.Recv(); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
		return o.String(), e.String(), exit
	}
	out, errs, exit := run(guest.ExecRequest{
		Argv: []string{"sh", "-c", "echo $A $B $HOME $(pwd) $(id -u); echo bad >&2; exit 9"}, Env: []string{"B=exec", "HOME=/h"},
	}, "")
	if out != "main exec /h /tmp 0\n" || errs != "bad\n" || exit.Code != 9 {
		t.Errorf("%q %q %+v", out, errs, exit)
	}
	out, _, _ = run(guest.ExecRequest{Argv: []string{"sh", "-c", "id -u; id -g; pwd; echo $HOME"}, User: "65534:7", WorkDir: "/"}, "")
	if !strings.HasPrefix(out, "65534\n7\n/\n/") {
		t.Errorf("as another user: %q", out)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	out, _, exit = run(guest.ExecRequest{Argv: []string{"cat"}, Stdin: true}, "")
	if out != "" || exit.Code != 0 {
		t.Errorf("cat of nothing: %q %+v", out, exit)
	}
	st, err := s.Exec(testContext(t), guest.ExecRequest{Argv: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	sent := make(chan error)
	go func() {
		_, err := io.WriteString(st, big)
		sent <- errors.Join(err, st.CloseStdin())
	}()
	var echo bytes.Buffer
	if exit, err := st.Copy(&echo, nil); err != nil || exit.Code != 0 || echo.String() != big {
		t.Errorf("1 MiB through cat: %d bytes, %+v, %v", echo.Len(), exit, err)
	}
	check(t, <-sent)
}

func TestExecThatCannotStart(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	for name, c := range map[string]struct {
		req  guest.ExecRequest
		code int
	}{
		"not found":  {guest.ExecRequest{Argv: []string{"no-such-program"}}, 127},
		"no command": {guest.ExecRequest{}, 127},
		"directory":  {guest.ExecRequest{Argv: []string{"/tmp"}}, 126},
		"bad dir":    {guest.ExecRequest{Argv: []string{"true"}, WorkDir: "/dev/null/x"}, 126},
	} {
		_, err := s.Exec(testContext(t), c.req)
		var start *guest.StartError
		if !errors.As(err, &start) || start.ExitCode != c.code || start.Error() == "" {
			t.Errorf("%s: %v", name, err)
		}
		var p *problem.Error
		if !errors.As(err, &p) || p.Code != "guest.start" {
			t.Errorf("%s: no problem in %v", name, err)
		}
	}
}

// A process with a large output that nobody reads waits, and the session goes on beside it.
func TestExecIsFlowControlled(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	st, err := s.Exec(testContext(t), guest.ExecRequest{Argv: []string{"yes"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := s.Ping(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	st.Close()
	st.Close()
	if _, err := st.Recv(); err == nil {
		// what was in the window may still be read; the end must come
		for err == nil {
			_, err = st.Recv()
		}
	}
	if _, err := s.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	dir := t.TempDir()
	_, s := running(t, guest.BootConfig{Argv: sleep})
	for name, end := range map[string]func(*guest.Stream, context.CancelFunc){
		"close":  func(st *guest.Stream, _ context.CancelFunc) { st.Close() },
		"cancel": func(_ *guest.Stream, cancel context.CancelFunc) { cancel() },
		"wait": func(st *guest.Stream, _ context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if _, err := st.Wait(ctx); !problem.HasCode(err, guest.CodeDeadline) {
				t.Errorf("Wait: %v", err)
			}
		},
	} {
		ctx, cancel := context.WithCancel(testContext(t))
		file := dir + "/" + name
		st, err := s.Exec(ctx, guest.ExecRequest{Argv: []string{"sh", "-c", "trap 'echo hup >" + file + "; exit' HUP; echo up; while :; do sleep 1000 & wait; done"}})
		if err != nil {
			t.Fatal(err)
		}
		if f, err := st.Recv(); err != nil || string(f.Data) != "up\n" {
			t.Fatalf("%s: %+v, %v", name, f, err)
		}
		end(st, cancel)
		awaitProcessEnd(t, st.PID())
		st.Close()
		cancel()
	}
}

func awaitProcessEnd(t *testing.T, pid int) {
	t.Helper()
	for begin := time.Now(); syscall.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

func TestSignals(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	st, err := s.Exec(testContext(t), guest.ExecRequest{Argv: []string{"sh", "-c", "trap 'exit 42' USR1; echo up; while :; do sleep 1000 & wait; done"}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []int{0, -1, 65} {
		if err := st.Signal(bad); !problem.Is(err, problem.Invalid) {
			t.Errorf("signal %d: %v", bad, err)
		}
	}
	check(t, st.Signal(int(syscall.SIGUSR1)))
	if exit, err := st.Wait(testContext(t)); err != nil || exit.Code != 42 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestTerminal(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	// The signal of the new size may interrupt read, which then gives nothing.
	script := "stty size; trap 'stty size' WINCH; tty >/dev/null && echo tty; " +
		"until read line && [ \"$line\" ]; do :; done; echo got $line; cat; echo end"
	st, err := s.Exec(testContext(t), guest.ExecRequest{
		Argv: []string{"sh", "-c", script}, TTY: true, Size: guest.WindowSize{Columns: 100, Rows: 30}, Stdin: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	got := ""
	until := func(want string) {
		t.Helper()
		for !strings.Contains(got, want) {
			f, err := st.Recv()
			if err != nil || f.Kind == guest.Ended {
				t.Fatalf("%q, then %+v, %v", got, f, err)
			}
			got += string(f.Data)
		}
	}
	until("30 100\r\n")
	until("tty\r\n")
	check(t, st.Resize(guest.WindowSize{Columns: 91, Rows: 17}))
	_, _ = fmt.Fprintf(st, "hello\n")
	until("got hello\r\n")
	until("17 91\r\n")
	check(t, st.CloseStdin())
	until("end\r\n")
	if exit, err := st.Copy(nil, nil); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestAttach(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: []string{"sh", "-c", "echo hi; while read l; do echo got $l; done; echo bye >&2; exit 4"}, Stdin: true})
	awaitOutput(t, s, "hi\n")
	writer, err := s.Attach(testContext(t), guest.AttachRequest{Stdin: true, Replay: guest.ReplayBytes, Lossless: true})
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := s.Attach(testContext(t), guest.AttachRequest{Stdin: true}); !problem.HasCode(err, "guest.stdin_taken") {
		t.Errorf("second writer: %v", err)
	}
	watcher, err := s.Attach(testContext(t), guest.AttachRequest{Replay: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	_, _ = fmt.Fprintln(writer, "one")
	check(t, writer.CloseStdin())
	for name, st := range map[string]*guest.Stream{"writer": writer, "watcher": watcher} {
		var out, errs bytes.Buffer
		exit, err := st.Copy(&out, &errs)
		if err != nil || out.String() != "hi\ngot one\n" || errs.String() != "bye\n" || exit.Code != 4 || exit.Reason != guest.ExitCommand {
			t.Errorf("%s: %q %q %+v %v", name, out.String(), errs.String(), exit, err)
		}
	}
	late, err := s.Attach(testContext(t), guest.AttachRequest{Replay: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	// Which of the two outputs came last is the pipes' affair: the last bytes are of either.
	var both bytes.Buffer
	if exit, err := late.Copy(&both, &both); err != nil || both.String() != "bye\n" && both.String() != "one\n" || exit.Code != 4 {
		t.Errorf("after the end: %q %+v %v", both.String(), exit, err)
	}
}

func TestAttachWithoutInput(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	if _, err := s.Attach(testContext(t), guest.AttachRequest{Stdin: true}); !problem.HasCode(err, "guest.no_stdin") {
		t.Errorf("%v", err)
	}
	st, err := s.Attach(testContext(t), guest.AttachRequest{Size: guest.WindowSize{Columns: 1, Rows: 1}})
	if err != nil {
		t.Fatal(err)
	}
	st.Close() // leaves the command running
	if st, err := s.Status(testContext(t)); err != nil || st.Phase != guest.PhaseRunning {
		t.Errorf("%+v, %v", st, err)
	}
}

// HoldOutput keeps what is written before the first attach, however much it is.
func TestHoldOutput(t *testing.T) {
	const lines = 40000
	_, s := running(t, guest.BootConfig{Argv: []string{"seq", fmt.Sprint(lines)}, HoldOutput: true})
	st, err := s.Attach(testContext(t), guest.AttachRequest{Replay: guest.ReplayBytes, Lossless: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var out bytes.Buffer
	if _, err := st.Copy(&out, nil); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != lines || !bytes.HasPrefix(out.Bytes(), []byte("1\n2\n")) {
		t.Errorf("%d lines of %d, begin %q", n, lines, out.Bytes()[:8])
	}
}

// A reader that is not lossless and falls behind is told how much it lost.
func TestAttachGap(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: []string{"sh", "-c", "read l; seq 200000; echo done"}, Stdin: true})
	slow, err := s.Attach(testContext(t), guest.AttachRequest{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	_, _ = fmt.Fprintln(slow, "go")
	awaitEvent(t, s, guest.EventExited) // the command ended without being read
	var got, lost int64
	tail := ""
	for {
		f, err := slow.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == guest.Ended {
			break
		}
		if f.Kind == guest.Gap {
			lost += f.Lost
			continue
		}
		got += int64(len(f.Data))
		tail = string(f.Data)
	}
	const total = 9*2 + 90*3 + 900*4 + 9000*5 + 90000*6 + 100001*7 + 5
	if lost == 0 || got+lost != total || !strings.HasSuffix(tail, "done\n") {
		t.Errorf("got %d, lost %d of %d; tail %q", got, lost, total, tail[max(0, len(tail)-10):])
	}
}

func TestTooManyCalls(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	var err error
	var streams []*guest.Stream
	for range wire.MaxStreams {
		var st *guest.Stream
		if st, err = s.Exec(testContext(t), guest.ExecRequest{Argv: sleep}); err != nil {
			break
		}
		streams = append(streams, st)
	}
	if !problem.HasCode(err, guest.CodeBusy) || len(streams) != wire.MaxStreams-1 {
		t.Errorf("%d streams beside the events, then %v", len(streams), err)
	}
	for _, st := range streams {
		st.Close()
	}
}

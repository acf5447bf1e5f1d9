package process_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const tail = " 1 10 10 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3\n"

func TestParseStat(t *testing.T) {
	for name, want := range map[string]string{
		"plain": "sleep", "paren": "a) R 1 2", "blank": "a b c", "empty": "", "newline": "x\ny)", "both": ")(",
	} {
		t.Run(name, func(t *testing.T) {
			s, err := process.ParseStat([]byte("42 (" + want + ") S" + tail))
			if err != nil {
				t.Fatal(err)
			}
			if s.PID != 42 || s.Name != want || s.State != 'S' || s.Parent != 1 || s.Group != 10 || s.Session != 10 || s.StartTime != 4711 {
				t.Fatalf("%+v", s)
			}
		})
	}
	for name, bad := range map[string]string{
		"empty":      "",
		"no name":    "42 S" + tail,
		"no pid":     "(x) S" + tail,
		"pid zero":   "0 (x) S" + tail,
		"pid word":   "a (x) S" + tail,
		"no blank":   "42(x) S" + tail,
		"short":      "42 (x) S 1 2 3",
		"long state": "42 (x) SS" + tail,
		"parent":     "42 (x) S" + strings.Replace(tail, " 1 10", " a 10", 1),
		"start":      "42 (x) S" + strings.Replace(tail, "4711", "-1", 1),
		"too long":   "42 (x) S" + tail + strings.Repeat(" 1", 2000),
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := process.ParseStat([]byte(bad)); !errors.Is(err, process.ErrStat) {
				t.Fatalf("%+v, %v", s, err)
			}
		})
	}
}

func TestParseStatAnyName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "name")
		start := rapid.Uint64().Draw(t, "start")
		pid := rapid.IntRange(1, 1<<22).Draw(t, "pid")
		line := fmt.Sprintf("%d (%s) R%s", pid, name, strings.Replace(tail, "4711", fmt.Sprint(start), 1))
		s, err := process.ParseStat([]byte(line))
		if err != nil || s.PID != pid || s.Name != string(name) || s.StartTime != start {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (sleep) S" + tail))
	f.Add([]byte("42 (a) b) R" + tail))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := process.ParseStat(b)
		if err != nil {
			if s != (process.Stat{}) {
				t.Fatalf("%+v beside %v", s, err)
			}
			return
		}
		if s.PID <= 0 || len(s.Name) > len(b) {
			t.Fatalf("%+v", s)
		}
	})
}

func TestOwnIdentity(t *testing.T) {
	id, err := process.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Check(); err != nil {
		t.Fatal(err)
	}
	later, other := id, id
	later.StartTime++
	other.BootID = "00000000-0000-0000-0000-000000000000"
	for _, i := range []process.Identity{later, other, {}, {PID: -1}, {PID: 1 << 30, BootID: id.BootID}} {
		if err := i.Check(); !errors.Is(err, process.ErrGone) {
			t.Errorf("%v: %v", i, err)
		}
		if h, err := process.Open(i); !errors.Is(err, process.ErrGone) || h != nil {
			t.Errorf("%v: opened: %v", i, err)
		}
	}
	if _, err := process.Identify(0); !errors.Is(err, process.ErrGone) {
		t.Errorf("pid 0: %v", err)
	}
}

func start(t *testing.T) (*exec.Cmd, process.Identity) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	id, err := process.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, id
}

func TestSignalAndWait(t *testing.T) {
	cmd, id := start(t)
	h, err := process.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := h.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("running: %v", err)
	}
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Fatalf("again: %v", err)
	}
	// It is a zombie: named still, but gone.
	if err := id.Check(); !errors.Is(err, process.ErrGone) {
		t.Fatalf("zombie: %v", err)
	}
	_ = cmd.Wait()
	if err := h.Signal(unix.SIGKILL); !errors.Is(err, process.ErrGone) {
		t.Fatalf("reaped: %v", err)
	}
	if _, err := process.Open(id); !errors.Is(err, process.ErrGone) {
		t.Fatalf("open reaped: %v", err)
	}
}

func TestNewHandle(t *testing.T) {
	if _, err := process.NewHandle(-1); err == nil {
		t.Fatal("descriptor -1 was taken")
	}
	_, id := start(t)
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	h, err := process.NewHandle(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Signal(0); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("closed handle: %v", err)
	}
	if err := h.Wait(t.Context()); err == nil {
		t.Fatal("closed handle was awaited")
	}
}

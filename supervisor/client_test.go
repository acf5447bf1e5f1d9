package supervisor

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
)

// testTimeout bounds what should be immediate; the machine may be busy.
const testTimeout = 30 * time.Second

// testClient gives a client of supervisors in this process.
func testClient(t *testing.T) (*Client, string) {
	t.Helper()
	dir := t.TempDir()
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- serve(ctx, Config{Lane: lane, Dir: dir, Version: "test", Log: quiet})
		}()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("%s lane: %v", lane, err)
			}
		})
		for !listens(t.Context(), lanePaths(dir, lane)) {
			select {
			case err := <-ended:
				t.Fatal(err)
			default:
				runtime.Gosched()
			}
		}
	}
	c := NewClient(ClientConfig{Executable: "/nonexistent", Dir: dir})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, dir
}

// launchingClient gives a client that launches supervisors of their own.
func launchingClient(t *testing.T) (*Client, string) {
	t.Helper()
	dir := t.TempDir()
	c := NewClient(ClientConfig{Executable: testExecutable(t), Dir: dir})
	t.Cleanup(func() {
		for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
			endSupervisor(t, dir, lane)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, dir
}

func testExecutable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// endSupervisor kills a lane's supervisor, if there is one, and waits for its
// end.
func endSupervisor(t *testing.T, dir string, lane driver.Lane) {
	t.Helper()
	r, err := ReadRecord(dir, lane)
	if err != nil {
		return
	}
	killIdentity(t, r.Identity(), unix.SIGKILL)
}

func killIdentity(t *testing.T, id process.Identity, sig unix.Signal) {
	t.Helper()
	h, err := process.Open(id)
	if errors.Is(err, process.ErrGone) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Signal(sig); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, h)
}

func awaitEnd(t *testing.T, h *process.Handle) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := h.Wait(ctx); err != nil {
		t.Fatalf("process did not end: %v", err)
	}
}

func request(t *testing.T, id string, argv ...string) *blixardv1.SpawnRequest {
	t.Helper()
	dir := t.TempDir()
	return &blixardv1.SpawnRequest{
		ProcessId: id, AllocationId: "alloc-" + id, Epoch: 3, Argv: argv, WorkingDir: dir,
		LogPath: filepath.Join(dir, "console.log"), Metadata: map[string]string{"k": "v"},
	}
}

func identity(p *blixardv1.SupervisedProcess) process.Identity {
	return process.Identity{PID: int(p.GetPid()), StartTime: p.GetStartTime(), BootID: p.GetBootId()}
}

func TestSpawnWaitForget(t *testing.T) {
	c, dir := launchingClient(t)
	ctx := t.Context()
	if _, err := c.Info(ctx, driver.LaneShared); !problem.Is(err, problem.NotFound) {
		t.Fatalf("info without a supervisor: %v", err)
	}
	req := request(t, "a.1", "/bin/sh", "-c", `echo out; echo err >&2; exit 5`)
	r, err := c.Spawn(ctx, driver.LaneShared, req)
	if err != nil {
		t.Fatal(err)
	}
	if r.GetExisted() || r.GetProcess().GetEpoch() != 3 || r.GetProcess().GetMetadata()["k"] != "v" {
		t.Fatalf("%v", r)
	}
	p, err := c.Wait(ctx, driver.LaneShared, "a.1")
	if err != nil {
		t.Fatal(err)
	}
	if !p.GetExited() || p.GetExit().GetCode() != 5 || p.GetExit().GetStderr() != "err\n" || p.GetExit().GetAt().AsTime().IsZero() {
		t.Fatalf("%v", p)
	}
	if b, err := os.ReadFile(req.LogPath); err != nil || string(b) != "out\n" {
		t.Fatalf("log %q, %v", b, err)
	}
	if b, err := os.ReadFile(req.LogPath + ".vmm"); err != nil || string(b) != "err\n" {
		t.Fatalf("error log %q, %v", b, err)
	}
	if r, err := c.Spawn(ctx, driver.LaneShared, req); err != nil || !r.GetExisted() || !r.GetProcess().GetExited() {
		t.Fatalf("again: %v, %v", r, err)
	}
	if err := c.Signal(ctx, driver.LaneShared, "a.1", int(unix.SIGTERM)); err != nil {
		t.Fatalf("signal after the end: %v", err)
	}
	if err := c.Forget(ctx, driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(ctx, driver.LaneShared, "a.1"); !problem.Is(err, problem.NotFound) {
		t.Fatalf("forgotten: %v", err)
	}
	rec, err := ReadRecord(dir, driver.LaneShared)
	if err != nil || rec.Identity().Check() != nil || rec.Version != "test" {
		t.Fatalf("%+v, %v", rec, err)
	}
	if err := c.Shutdown(ctx, driver.LaneShared); err != nil {
		t.Fatal(err)
	}
}

func TestSupervisorDiesWithItsProcesses(t *testing.T) {
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		t.Run(string(lane), func(t *testing.T) {
			c, dir := launchingClient(t)
			if lane == driver.LaneExclusive {
				if _, err := c.Renew(t.Context(), boottime.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			r, err := c.Spawn(t.Context(), lane, request(t, "a.1", "/bin/sleep", "1000"))
			if err != nil {
				t.Fatal(err)
			}
			h, err := process.Open(identity(r.GetProcess()))
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			endSupervisor(t, dir, lane)
			awaitEnd(t, h)
			if _, err := c.Wait(t.Context(), lane, "a.1"); !problem.Is(err, problem.NotFound) {
				t.Fatalf("wait: %v", err)
			}
			if ps, err := c.List(t.Context(), lane); err != nil || len(ps) != 0 {
				t.Fatalf("list: %v, %v", ps, err)
			}
		})
	}
}

func TestFenceKillsWhileStopped(t *testing.T) {
	c, dir := launchingClient(t)
	if _, err := c.Spawn(t.Context(), driver.LaneExclusive, request(t, "a.1", "/bin/sleep", "1000")); !problem.Is(err, problem.Fenced) {
		t.Fatalf("without a lease: %v", err)
	}
	const lease = 1500 * time.Millisecond
	deadline, err := c.Renew(t.Context(), boottime.Now().Add(lease))
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Spawn(t.Context(), driver.LaneExclusive, request(t, "a.1", "/bin/sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Info(t.Context(), driver.LaneExclusive)
	if err != nil || info.GetBoottimeDeadline() != int64(deadline) || info.GetProcesses() != 1 {
		t.Fatalf("%v, %v", info, err)
	}
	rec, err := ReadRecord(dir, driver.LaneExclusive)
	if err != nil {
		t.Fatal(err)
	}
	sup, err := process.Open(rec.Identity())
	if err != nil {
		t.Fatal(err)
	}
	defer sup.Close()
	kid, err := process.Open(identity(r.GetProcess()))
	if err != nil {
		t.Fatal(err)
	}
	defer kid.Close()
	if err := sup.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, kid)
	awaitEnd(t, sup)
	if late := boottime.Now().Sub(deadline); late < 0 || late > time.Second {
		t.Fatalf("they ended %v after the deadline", late)
	}
}

func TestConsoleSession(t *testing.T) {
	c, _ := testClient(t)
	ctx := t.Context()
	if _, err := c.Spawn(ctx, driver.LaneShared, request(t, "a.1", "/bin/cat")); err != nil {
		t.Fatal(err)
	}
	w := openConsole(t, c, "a.1", true, false)
	if !w.seat(t) {
		t.Fatal("the first writer has no seat")
	}
	w2 := openConsole(t, c, "a.1", true, false)
	if w2.seat(t) {
		t.Fatal("two writers")
	}
	w.write(t, "hello ")
	w.expect(t, "hello ")
	w2.expect(t, "hello ")
	w2.write(t, "dropped")
	w3 := openConsole(t, c, "a.1", true, true)
	if !w3.seat(t) || w.seat(t) {
		t.Fatal("the seat was not stolen")
	}
	w3.expect(t, "hello ")
	w3.write(t, "world")
	for _, x := range []*testConsole{w, w2, w3} {
		x.expect(t, "world")
	}
	if err := c.Signal(ctx, driver.LaneShared, "a.1", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the end: %v", err)
	}
	if _, err := c.Console(ctx, driver.LaneShared, "x", true, true); !problem.Is(err, problem.NotFound) {
		t.Fatalf("unknown: %v", err)
	}
}

type testConsole struct{ c *Console }

func openConsole(t *testing.T, c *Client, id string, write, steal bool) *testConsole {
	t.Helper()
	s, err := c.Console(t.Context(), driver.LaneShared, id, write, steal)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &testConsole{s}
}

func (c *testConsole) seat(t *testing.T) bool {
	t.Helper()
	o, err := c.c.Recv()
	if err != nil || o.Writer == nil {
		t.Fatalf("%+v, %v", o, err)
	}
	return *o.Writer
}

func (c *testConsole) write(t *testing.T, s string) {
	t.Helper()
	if n, err := c.c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatal(n, err)
	}
}

func (c *testConsole) expect(t *testing.T, want string) {
	t.Helper()
	var got strings.Builder
	for got.Len() < len(want) {
		o, err := c.c.Recv()
		if err != nil {
			t.Fatalf("%q, then %v", got.String(), err)
		}
		got.Write(o.Data)
	}
	if got.String() != want {
		t.Fatalf("got %q, want %q", got.String(), want)
	}
}

func TestChildSeesNothingOfTheSupervisor(t *testing.T) {
	// A descriptor that the supervisor inherits must not reach the child either.
	leak, err := unix.Dup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	c, _ := launchingClient(t)
	look := func(id string, argv ...string) (string, *blixardv1.SpawnRequest) {
		req := request(t, id, argv...)
		req.Listeners, req.Env = []string{"agent", "qmp"}, []string{"A=b"}
		if _, err := c.Spawn(t.Context(), driver.LaneShared, req); err != nil {
			t.Fatal(err)
		}
		if p, err := c.Wait(t.Context(), driver.LaneShared, id); err != nil || p.GetExit().GetCode() != 0 {
			t.Fatalf("%v, %v", p, err)
		}
		b, err := os.ReadFile(req.LogPath)
		if err != nil {
			t.Fatal(err)
		}
		return string(b), req
	}
	if env, _ := look("env", "/usr/bin/env"); env != "A=b\n" {
		t.Fatalf("environment %q", env)
	}
	if cwd, req := look("cwd", "/bin/readlink", "/proc/self/cwd"); cwd != req.WorkingDir+"\n" {
		t.Fatalf("directory %q", cwd)
	}
	listing, req := look("fds", "/bin/ls", "-l", "/proc/self/fd")
	fds := regexp.MustCompile(`(?m) (\d+) -> '?([^:'\s]+)`).FindAllStringSubmatch(listing, -1)
	var got []string
	for _, f := range fds {
		got = append(got, f[1]+" "+f[2])
	}
	slave := strings.TrimPrefix(got[0], "0 ")
	want := []string{"0 " + slave, "1 " + slave, "2 pipe", "3 socket", "4 socket", "5 " + slave}
	// ls itself holds the directory.
	if len(got) != 7 || !slices.Equal(got[:6], want) || !strings.HasPrefix(slave, "/dev/pts/") || !strings.HasPrefix(got[6], "6 /proc/") {
		t.Fatalf("descriptors %q in\n%s", got, listing)
	}
	var left []string
	files, err := os.ReadDir(req.WorkingDir)
	for _, f := range files {
		left = append(left, f.Name())
	}
	if err != nil || !slices.Equal(left, []string{"console.log", "console.log.idx"}) {
		t.Fatalf("left: %v, %v", left, err)
	}
}

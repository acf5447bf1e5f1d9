package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*blixardv1.SpawnRequest)
		want   string
	}{
		"good":               {func(*blixardv1.SpawnRequest) {}, ""},
		"id empty":           {func(r *blixardv1.SpawnRequest) { r.ProcessId = "" }, "process id"},
		"id traverses":       {func(r *blixardv1.SpawnRequest) { r.ProcessId = "../x" }, "process id"},
		"id newline":         {func(r *blixardv1.SpawnRequest) { r.ProcessId = "a\n" }, "process id"},
		"id long":            {func(r *blixardv1.SpawnRequest) { r.ProcessId = strings.Repeat("a", 129) }, "process id"},
		"no argv":            {func(r *blixardv1.SpawnRequest) { r.Argv = nil }, "argv has 0"},
		"much argv":          {func(r *blixardv1.SpawnRequest) { r.Argv = make([]string, 513) }, "argv has 513"},
		"relative program":   {func(r *blixardv1.SpawnRequest) { r.Argv[0] = "sh" }, "argv[0]"},
		"zero in argv":       {func(r *blixardv1.SpawnRequest) { r.Argv = append(r.Argv, "a\x00b") }, "argv[1]"},
		"long argv":          {func(r *blixardv1.SpawnRequest) { r.Argv = append(r.Argv, strings.Repeat("a", 1<<18)) }, "argv[1]"},
		"much env":           {func(r *blixardv1.SpawnRequest) { r.Env = make([]string, 129) }, "env has 129"},
		"env without name":   {func(r *blixardv1.SpawnRequest) { r.Env = []string{"=x"} }, "env[0]"},
		"env without =":      {func(r *blixardv1.SpawnRequest) { r.Env = []string{"x"} }, "env[0]"},
		"dir relative":       {func(r *blixardv1.SpawnRequest) { r.WorkingDir = "x" }, "working_dir"},
		"dir unclean":        {func(r *blixardv1.SpawnRequest) { r.WorkingDir = "/x/../y" }, "working_dir"},
		"log relative":       {func(r *blixardv1.SpawnRequest) { r.LogPath = "log" }, "log_path"},
		"much listeners":     {func(r *blixardv1.SpawnRequest) { r.Listeners = make([]string, 9) }, "listeners"},
		"listener traverses": {func(r *blixardv1.SpawnRequest) { r.Listeners = []string{"../x"} }, "listener"},
		"listener dot":       {func(r *blixardv1.SpawnRequest) { r.Listeners = []string{"."} }, "listener"},
		"listener twice":     {func(r *blixardv1.SpawnRequest) { r.Listeners = []string{"a", "a"} }, "listener"},
		"much taps":          {func(r *blixardv1.SpawnRequest) { r.Taps = make([]string, 9) }, "taps"},
		"tap empty":          {func(r *blixardv1.SpawnRequest) { r.Taps = []string{""} }, "tap"},
		"tap is a pattern":   {func(r *blixardv1.SpawnRequest) { r.Taps = []string{"tap%d"} }, "tap"},
		"tap traverses":      {func(r *blixardv1.SpawnRequest) { r.Taps = []string{".."} }, "tap"},
		"tap long":           {func(r *blixardv1.SpawnRequest) { r.Taps = []string{strings.Repeat("a", 16)} }, "tap"},
		"tap twice":          {func(r *blixardv1.SpawnRequest) { r.Taps = []string{"a", "a"} }, "tap"},
		"much files":         {func(r *blixardv1.SpawnRequest) { r.Files = make([]*blixardv1.SpawnFile, 33) }, "files"},
		"file missing":       {func(r *blixardv1.SpawnRequest) { r.Files = []*blixardv1.SpawnFile{nil} }, "files[0]"},
		"file relative":      {func(r *blixardv1.SpawnRequest) { r.Files = []*blixardv1.SpawnFile{{Path: "a"}} }, "files[0]"},
		"file unclean":       {func(r *blixardv1.SpawnRequest) { r.Files = []*blixardv1.SpawnFile{{Path: "/a/../b"}} }, "files[0]"},
		"metadata":           {func(r *blixardv1.SpawnRequest) { r.Metadata = map[string]string{"a": strings.Repeat("b", 1<<15)} }, "metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(t, "a.1", "/bin/true")
			tc.change(r)
			err := validate(r)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !problem.Is(err, problem.Invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v", err)
			}
		})
	}
}

// TestValidateJail: each field that is left out is as strict as can be, or
// refused.
func TestValidateJail(t *testing.T) {
	good := func() *blixardv1.Jail { return &blixardv1.Jail{Uid: 100_000, Gid: 100_000} }
	for name, tc := range map[string]struct {
		change func(*blixardv1.Jail)
		want   string
	}{
		"good":           {func(*blixardv1.Jail) {}, ""},
		"no uid":         {func(j *blixardv1.Jail) { j.Uid = 0 }, "uid"},
		"no gid":         {func(j *blixardv1.Jail) { j.Gid = 0 }, "gid"},
		"system's uid":   {func(j *blixardv1.Jail) { j.Uid = 999 }, "uid"},
		"nobody":         {func(j *blixardv1.Jail) { j.Uid = 65534 }, "uid"},
		"nobody's group": {func(j *blixardv1.Jail) { j.Gid = 65535 }, "gid"},
		"minus one":      {func(j *blixardv1.Jail) { j.Uid = 1<<32 - 1 }, "uid"},
		"little memory":  {func(j *blixardv1.Jail) { j.MemoryBytes = 1<<20 - 1 }, "memory"},
		"much memory":    {func(j *blixardv1.Jail) { j.MemoryBytes = 1<<42 + 1 }, "memory"},
		"much pids":      {func(j *blixardv1.Jail) { j.PidsMax = 1<<16 + 1 }, "processes"},
		"much processor": {func(j *blixardv1.Jail) { j.CpuQuotaPercent = 1 << 20 }, "processor"},
		"many paths":     {func(j *blixardv1.Jail) { j.ReadPaths = make([]string, 65) }, "paths"},
		"root as a path": {func(j *blixardv1.Jail) { j.ReadPaths = []string{"/"} }, "read_paths[0]"},
		"relative path":  {func(j *blixardv1.Jail) { j.ReadPaths = []string{"a"} }, "read_paths[0]"},
		"unclean path":   {func(j *blixardv1.Jail) { j.ReadPaths = []string{"/a/../etc"} }, "read_paths[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			j := good()
			tc.change(j)
			err := validateJail(j, true)
			if tc.want == "" && err != nil || tc.want != "" && (!problem.Is(err, problem.Invalid) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v", err)
			}
		})
	}
	if err := errors.Join(validateJail(nil, true), validateJail(&blixardv1.Jail{}, false)); err != nil {
		t.Error(err)
	}
}

func TestCallsAreRefused(t *testing.T) {
	c, _ := testClient(t)
	ctx, shared := t.Context(), driver.LaneShared
	if _, err := c.Spawn(ctx, shared, &blixardv1.SpawnRequest{}); !problem.Is(err, problem.Invalid) {
		t.Errorf("empty request: %v", err)
	}
	if _, err := c.Spawn(ctx, "other", request(t, "a.1", "/bin/true")); !problem.HasCode(err, "supervisor.lane") {
		t.Errorf("no such lane: %v", err)
	}
	if _, err := c.Wait(ctx, "other", "a.1"); !problem.HasCode(err, "supervisor.lane") {
		t.Errorf("no such lane: %v", err)
	}
	if _, err := c.Console(ctx, "other", "a.1", true, false); !problem.HasCode(err, "supervisor.lane") {
		t.Errorf("no such lane: %v", err)
	}
	r, err := c.Spawn(ctx, shared, request(t, "a.1", "/bin/sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Forget(ctx, shared, "a.1"); !problem.HasCode(err, "supervisor.process_running") {
		t.Errorf("forget a running process: %v", err)
	}
	if err := c.Shutdown(ctx, shared); !problem.HasCode(err, "supervisor.busy") {
		t.Errorf("shutdown of a busy supervisor: %v", err)
	}
	if err := c.Signal(ctx, shared, "a.1", 65); !problem.HasCode(err, "supervisor.signal") {
		t.Errorf("odd signal: %v", err)
	}
	if err := c.Signal(ctx, shared, "b.1", 9); !problem.HasCode(err, "supervisor.process_unknown") {
		t.Errorf("unknown process: %v", err)
	}
	again, err := c.Spawn(ctx, shared, request(t, "a.1", "/bin/false"))
	if err != nil || !again.GetExisted() || again.GetProcess().GetPid() != r.GetProcess().GetPid() {
		t.Errorf("spawn again: %v, %v", again, err)
	}
	if ps, err := c.List(ctx, shared); err != nil || len(ps) != 1 || ps[0].GetMetadata()["k"] != "v" {
		t.Errorf("list: %v, %v", ps, err)
	}
	if err := c.Signal(ctx, shared, "a.1", int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	p, err := c.Wait(ctx, shared, "a.1")
	if err != nil || p.GetExit().GetCode() != -1 || p.GetExit().GetSignal() != uint32(unix.SIGTERM) {
		t.Errorf("%v, %v", p, err)
	}
}

// TestFailedSpawnLeavesNothing, not even a record: the id can be used again.
func TestFailedSpawnLeavesNothing(t *testing.T) {
	c, _ := testClient(t)
	for name, change := range map[string]func(*blixardv1.SpawnRequest){
		"no program":        func(r *blixardv1.SpawnRequest) { r.Argv[0] = "/nonexistent" },
		"program not exec":  func(r *blixardv1.SpawnRequest) { r.Argv[0] = "/etc/passwd" },
		"no directory":      func(r *blixardv1.SpawnRequest) { r.WorkingDir += "x" },
		"linked directory":  func(r *blixardv1.SpawnRequest) { r.WorkingDir = "/proc/self/cwd" },
		"log in a file":     func(r *blixardv1.SpawnRequest) { r.LogPath = "/etc/passwd/log" },
		"listener is taken": func(r *blixardv1.SpawnRequest) { r.Listeners = []string{"a", "b", "file"} },
	} {
		t.Run(name, func(t *testing.T) {
			r := request(t, "a.1", "/bin/true")
			if err := os.WriteFile(filepath.Join(r.WorkingDir, "file"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			dir := r.WorkingDir
			r.Listeners = []string{"a", "b"}
			change(r)
			if _, err := c.Spawn(t.Context(), driver.LaneShared, r); !problem.HasCode(err, "supervisor.spawn_failed") {
				t.Fatalf("%v", err)
			}
			if ps, err := c.List(t.Context(), driver.LaneShared); err != nil || len(ps) != 0 {
				t.Fatalf("%v, %v", ps, err)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) != 1 {
				t.Fatalf("left %v, %v", left, err)
			}
		})
	}
}

// TestStaleSocketIsReplaced: what a killed process left does not hinder the next.
func TestStaleSocketIsReplaced(t *testing.T) {
	c, _ := testClient(t)
	r := request(t, "a.1", "/bin/sleep", "1000")
	r.Listeners = []string{"s"}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(r.WorkingDir, "s")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
}

func TestWholeSessionDies(t *testing.T) {
	c, _ := testClient(t)
	r := request(t, "a.1", "/bin/sh", "-c", "sleep 1000 & echo $!; exit 0")
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(r.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	// The signal was sent before Wait returned; the kernel may still be at it.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	h, err := process.NewHandle(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := h.Wait(ctx); err != nil {
		s, _ := process.ReadStat(pid)
		t.Fatalf("the grandchild lives: %+v: %v", s, err)
	}
}

func TestWindowSize(t *testing.T) {
	c, _ := testClient(t)
	if _, err := c.Spawn(t.Context(), driver.LaneShared, request(t, "a.1", "/bin/sh", "-c", "read x; stty size")); err != nil {
		t.Fatal(err)
	}
	w := openConsole(t, c, "a.1", true, false)
	w.seat(t)
	if err := w.c.Resize(132, 43); err != nil {
		t.Fatal(err)
	}
	w.write(t, "\n")
	w.expect(t, "43 132\n")
	if _, err := w.c.Recv(); err != io.EOF {
		t.Fatalf("%v", err)
	}
	other := openConsole(t, c, "a.1", true, true)
	if other.seat(t) {
		t.Fatal("an ended console has a writer")
	}
	// The session of an ended console may be over by then, and says so.
	if err := other.c.Resize(5000, 1); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	other.expect(t, "43 132\n") // what is kept is shown after the end, too
}

func TestInputIsBounded(t *testing.T) {
	c, _ := testClient(t)
	if _, err := c.Spawn(t.Context(), driver.LaneShared, request(t, "a.1", "/bin/sleep", "1000")); err != nil {
		t.Fatal(err)
	}
	w := openConsole(t, c, "a.1", true, false)
	w.seat(t)
	if err := w.c.Resize(5000, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.Recv(); !problem.HasCode(err, "supervisor.size") {
		t.Fatalf("%v", err)
	}
	// A guest that does not read loses input and hinders nobody: the whole call ends.
	w2 := openConsole(t, c, "a.1", true, false)
	w2.write(t, strings.Repeat("x", 200_000))
	if err := c.Signal(t.Context(), driver.LaneShared, "a.1", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
}

func TestTooManyWatchers(t *testing.T) {
	c, _ := testClient(t)
	if _, err := c.Spawn(t.Context(), driver.LaneShared, request(t, "a.1", "/bin/sleep", "1000")); err != nil {
		t.Fatal(err)
	}
	for range watchersMax {
		openConsole(t, c, "a.1", false, false)
	}
	if _, err := c.Console(t.Context(), driver.LaneShared, "a.1", false, false); !problem.HasCode(err, "supervisor.console_full") {
		t.Fatalf("%v", err)
	}
}

// TestFloodIsSlowed: a guest that writes without end is slowed, the memory stays,
// a slow watcher misses some and is told so, and the end is seen at once.
func TestFloodIsSlowed(t *testing.T) {
	c, _ := testClient(t)
	r := request(t, "a.1", "/usr/bin/yes", "0123456789abcdef0123456789abcde")
	r.LogBytesMax, r.LogFilesMax = 256<<10, 2
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
	slow := openConsole(t, c, "a.1", false, false)
	fast := openConsole(t, c, "a.1", false, false)
	fast.seat(t)
	began, got := time.Now(), 0
	before := heap()
	for got < consoleBytesBurst+consoleBytesPerSecond/2 {
		o, err := fast.c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got += len(o.Data)
	}
	took := time.Since(began)
	if took < 300*time.Millisecond {
		t.Errorf("%d bytes in %v: not slowed", got, took)
	}
	if after := heap(); after > before+4<<20 {
		t.Errorf("the heap grew by %d bytes", after-before)
	}
	var all bytes.Buffer
	for !bytes.Contains(all.Bytes(), []byte("bytes skipped]")) {
		o, err := slow.c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		all.Write(o.Data)
	}
	if err := c.Signal(t.Context(), driver.LaneShared, "a.1", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if _, err := c.Wait(t.Context(), driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > drainTimeout/2 {
		t.Errorf("the end took %v", took)
	}
	for _, name := range []string{"", ".1"} {
		if st, err := os.Stat(r.LogPath + name); err != nil || st.Size() > 256<<10 {
			t.Errorf("%v, %v", st, err)
		}
	}
}

// TestFloodCostsNoMemory: guests that write without end take less than 5 MiB each of a
// supervisor, watched or not.
func TestFloodCostsNoMemory(t *testing.T) {
	c, dir := launchingClient(t)
	if _, err := c.Spawn(t.Context(), driver.LaneShared, request(t, "quiet.1", "/bin/sleep", "1000")); err != nil {
		t.Fatal(err)
	}
	rec, err := ReadRecord(dir, driver.LaneShared)
	if err != nil {
		t.Fatal(err)
	}
	before := residentKiB(t, rec.PID)
	const guests = 3
	for i := range guests {
		r := request(t, fmt.Sprintf("loud.%d", i), "/usr/bin/yes", "\x1b[31mno end")
		r.LogBytesMax, r.LogFilesMax = 256<<10, 2
		if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
			t.Fatal(err)
		}
	}
	watcher := openConsole(t, c, "loud.2", false, false)
	watcher.seat(t)
	for got := 0; got < consoleBytesBurst+consoleBytesPerSecond; {
		o, err := watcher.c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got += len(o.Data)
	}
	grown := residentKiB(t, rec.PID) - before
	t.Logf("%d KiB before, %d more", before, grown)
	if grown > guests*5<<10 {
		t.Errorf("the supervisor grew by %d KiB for %d guests", grown, guests)
	}
}

func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	var kib int
	if _, err := fmt.Sscanf(field(t, procFile(t, uint32(pid), "status"), "VmRSS"), "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestStderrIsBounded(t *testing.T) {
	c, _ := testClient(t)
	r := request(t, "a.1", "/bin/sh", "-c", `yes "$(printf '\377')" | head -c 1000000 >&2; printf end >&2`)
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
	p, err := c.Wait(t.Context(), driver.LaneShared, "a.1")
	if err != nil {
		t.Fatal(err)
	}
	if s := p.GetExit().GetStderr(); !strings.HasSuffix(s, "\uFFFD\nend") || len(s) > 3*stderrTailBytes {
		t.Errorf("%d bytes, %.20q", len(s), s[max(0, len(s)-20):])
	}
	if st, err := os.Stat(r.LogPath + ".vmm"); err != nil || st.Size() != stderrFileBytes {
		t.Errorf("%v, %v", st, err)
	}
}

func TestRenew(t *testing.T) {
	c, _ := testClient(t)
	ctx := t.Context()
	now := boottime.Now()
	at := now.Add(5 * time.Minute)
	if got, err := c.Renew(ctx, at); err != nil || got != at {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := c.Renew(ctx, now.Add(time.Minute)); err != nil || got != at {
		t.Fatalf("an earlier deadline: %v, %v", got, err)
	}
	if _, err := c.Renew(ctx, now.Add(time.Hour)); !problem.HasCode(err, "supervisor.deadline_too_far") {
		t.Fatalf("%v", err)
	}
	if i, err := c.Info(ctx, driver.LaneExclusive); err != nil || i.GetBoottimeDeadline() != 0 {
		t.Fatalf("armed without a process: %v, %v", i, err)
	}
}

// TestFenceIsArmedWithAProcess only.
func TestFenceIsArmedWithAProcess(t *testing.T) {
	k := &fakeKiller{}
	now := boottime.Instant(100)
	f := &Fence{lane: driver.LaneExclusive, timer: k, now: func() boottime.Instant { return now }}
	step := func(what string, err error, want boottime.Instant) {
		t.Helper()
		if err != nil || k.at != want || f.Armed() != want {
			t.Fatalf("%s: %v, timer at %d, armed %d, want %d", what, err, k.at, f.Armed(), want)
		}
	}
	if err := f.Enter(); !problem.Is(err, problem.Fenced) {
		t.Fatalf("without a lease: %v", err)
	}
	_, err := f.Renew(200)
	step("renewed", err, 0)
	step("first", f.Enter(), 200)
	step("second", f.Enter(), 200)
	_, err = f.Renew(300)
	step("renewed", err, 300)
	_, err = f.Renew(250)
	step("earlier", err, 300)
	step("one left", f.Leave(), 300)
	step("none left", f.Leave(), 0)
	now = 300
	if err := f.Enter(); !problem.Is(err, problem.Fenced) || k.at != 0 {
		t.Fatalf("at the deadline: %v", err)
	}
	shared := &Fence{lane: driver.LaneShared}
	if _, err := shared.Renew(1); !problem.Is(err, problem.Invalid) {
		t.Fatalf("%v", err)
	}
}

type fakeKiller struct{ at boottime.Instant }

func (k *fakeKiller) Set(at boottime.Instant) error { k.at = at; return nil }
func (k *fakeKiller) Close() error                  { return nil }

func TestRecord(t *testing.T) {
	p := lanePaths(t.TempDir(), driver.LaneShared)
	if err := makeDir(p); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(p.dir)
	if _, err := ReadRecord(dir, driver.LaneShared); !problem.Is(err, problem.NotFound) {
		t.Fatalf("%v", err)
	}
	want := Record{Format: 1, Lane: driver.LaneShared, PID: 7, StartTime: 8, BootID: "b", Version: "v"}
	if err := writeRecord(p, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadRecord(dir, driver.LaneShared); err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	for text, code := range map[string]string{
		"":                             "supervisor.record_damaged",
		"{}":                           "supervisor.record_damaged",
		`{"format":1,"lane":"shared"}`: "supervisor.record_damaged",
		`{"format":1,"lane":"exclusive","pid":7,"start_time":8,"boot_id":"b"}`: "supervisor.record_damaged",
		`{"format":2,"version":"9"}`:                    "supervisor.record_newer",
		`"` + strings.Repeat("a", recordBytesMax) + `"`: "supervisor.record_damaged",
	} {
		if err := os.WriteFile(p.record, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadRecord(dir, driver.LaneShared); !problem.HasCode(err, code) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"lane":"shared","pid":7,"start_time":8,"boot_id":"b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRecord("x", driver.LaneShared, b); err == nil && (r.PID <= 0 || r.BootID == "") {
			t.Fatalf("%+v", r)
		}
	})
}

func TestSingleInstance(t *testing.T) {
	_, dir := testClient(t)
	err := serve(t.Context(), Config{Lane: driver.LaneShared, Dir: dir})
	if !problem.HasCode(err, "supervisor.running") {
		t.Fatalf("%v", err)
	}
	if err := serve(t.Context(), Config{Lane: "x", Dir: dir}); !problem.HasCode(err, "supervisor.lane") {
		t.Fatalf("%v", err)
	}
	st, err := os.Stat(lanePaths(dir, driver.LaneShared).dir)
	if err != nil || st.Mode().Perm() != dirMode {
		t.Fatalf("%v, %v", st, err)
	}
	if st, err = os.Lstat(lanePaths(dir, driver.LaneShared).socket); err != nil || st.Mode().Perm() != fileMode {
		t.Fatalf("%v, %v", st, err)
	}
}

func TestPeer(t *testing.T) {
	if err := allowUID(0, 1000); err != nil {
		t.Error(err)
	}
	if err := allowUID(1000, 1000); err != nil {
		t.Error(err)
	}
	if err := allowUID(1000, 0); !problem.Is(err, problem.Denied) {
		t.Error(err)
	}
}

func TestExitedAreBounded(t *testing.T) {
	s := &server{procs: map[string]*proc{}}
	for i := range exitedMax + 10 {
		p := &proc{done: make(chan struct{}), seen: &blixardv1.SupervisedProcess{ProcessId: fmt.Sprintf("%05d", i)}}
		p.log = quiet
		p.stderr = &stderrTail{}
		p.setExit(0, time.Unix(int64(i), 0))
		s.procs[p.seen.ProcessId] = p
	}
	running := &proc{done: make(chan struct{}), seen: &blixardv1.SupervisedProcess{ProcessId: "a"}}
	s.procs["a"] = running
	s.dropOldestLocked()
	if len(s.procs) != exitedMax+1 || s.procs["a"] == nil || s.procs["00009"] != nil || s.procs["00010"] == nil {
		t.Fatalf("%d left", len(s.procs))
	}
	if ps := s.all(); !slices.IsSortedFunc(ps, func(a, b *proc) int { return strings.Compare(a.seen.ProcessId, b.seen.ProcessId) }) {
		t.Error("not in order")
	}
}

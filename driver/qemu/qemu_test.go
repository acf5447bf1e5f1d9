package qemu

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/driver/drivertest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
	"github.com/blixard/blixard/supervisor"
)

// The test binary also serves as the program of a supervisor.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "supervisor" {
		os.Exit(supervise(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func supervise(args []string) int {
	fs := flag.NewFlagSet("supervisor", flag.ContinueOnError)
	lane, dir := fs.String("lane", "", ""), fs.String("dir", "", "")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if err := supervisor.Run(context.Background(), supervisor.Config{Lane: driver.Lane(*lane), Dir: *dir}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// spawner gives a client of a real supervisor, which ends with the test.
func spawner(t testing.TB, dir string) *supervisor.Client {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := supervisor.NewClient(supervisor.ClientConfig{Executable: exe, Dir: dir})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func endSupervisor(t testing.TB, dir string) {
	t.Helper()
	r, err := supervisor.ReadRecord(dir, driver.LaneShared)
	if err != nil {
		return
	}
	h, err := process.Open(r.Identity())
	if err != nil {
		return
	}
	defer h.Close()
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), drivertest.Timeout)
	defer cancel()
	if err := h.Wait(ctx); err != nil {
		t.Error(err)
	}
}

// tinyHarness runs the suite over the tiny guest.
func tinyHarness(acpi, jailed bool) drivertest.Harness {
	dirs, n := map[driver.Driver]string{}, 0
	h := drivertest.Harness{}
	h.New = func(t *testing.T) (driver.Driver, driver.Spawner) {
		dir := t.TempDir()
		t.Cleanup(func() { endSupervisor(t, dir) })
		s := spawner(t, dir)
		d := New(Config{Spawner: s, KVMDevice: filepath.Join(dir, "no-kvm")})
		dirs[d] = dir
		return d, s
	}
	h.Again = func(t *testing.T, d driver.Driver) (driver.Driver, driver.Spawner) {
		s := spawner(t, dirs[d])
		return New(Config{Spawner: s, KVMDevice: "/nonexistent"}), s
	}
	h.Config = func(t *testing.T) driver.Config {
		n++
		dir := t.TempDir()
		disk := filepath.Join(dir, "a,b=c.img")
		if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(dir, "image")
		if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		var jail *blixardv1.Jail
		if jailed {
			jail = testJail()
		}
		return driver.Config{
			ProcessID: fmt.Sprintf("alloc-%d.1", n), AllocationID: fmt.Sprintf("alloc-%d", n), Epoch: 7,
			Lane: driver.LaneShared, Dir: dir, VCPUs: 1, MemoryMiB: 32, Kernel: drivertest.TinyKernel(t, dir),
			ACPI: acpi, Console: "ttyS0", Jail: jail, Drives: []driver.Drive{{Path: disk, Serial: "root"}, {Path: image, ReadOnly: true}},
			LogPath: filepath.Join(dir, "console.log"), Metadata: map[string]string{"vm": "tiny"},
		}
	}
	h.Up = func(t *testing.T, cfg driver.Config, s driver.Spawner, _ driver.VM) {
		expectConsole(t, s.(*supervisor.Client), cfg, "", drivertest.TinyHello)
	}
	h.End = func(t *testing.T, cfg driver.Config, s driver.Spawner, _ driver.VM) {
		expectConsole(t, s.(*supervisor.Client), cfg, "xyz", drivertest.TinyHello+"xyz")
		// The session lasts until the machine has ended.
		expectConsole(t, s.(*supervisor.Client), cfg, "r", drivertest.TinyHello+"xyz"+toTheEnd)
	}
	h.DriveBytes = func(t *testing.T, cfg driver.Config, _ driver.Spawner, i int) uint64 {
		st, err := os.Stat(cfg.Drives[i].Path)
		if err != nil {
			t.Fatal(err)
		}
		return uint64(st.Size())
	}
	h.Broken = []drivertest.Broken{
		{Name: "kernel missing", Kind: problem.NotFound, Break: func(c *driver.Config) { c.Kernel += "x" }},
		{Name: "kernel is no kernel", Kind: problem.Invalid, Break: func(c *driver.Config) { c.Kernel = c.Drives[0].Path }},
		{Name: "kernel is a directory", Kind: problem.Invalid, Break: func(c *driver.Config) { c.Kernel = c.Dir }},
		{Name: "initramfs missing", Kind: problem.NotFound, Break: func(c *driver.Config) { c.Initramfs = c.Kernel + "x" }},
		{Name: "disk missing", Kind: problem.NotFound, Break: func(c *driver.Config) { c.Drives[0].Path += "x" }},
		{Name: "disk is a device", Kind: problem.Invalid, Break: func(c *driver.Config) { c.Drives[0].Path = "/dev/null" }},
		{Name: "no processor", Kind: problem.Invalid, Break: func(c *driver.Config) { c.VCPUs = 0 }},
		{Name: "log can't be made", Kind: problem.Internal, Break: func(c *driver.Config) { c.LogPath = c.Dir + "/x/y/log" }},
		// QEMU itself finds this one, after it was started.
		{Name: "disk in use", Kind: problem.Unavailable, Break: func(c *driver.Config) { c.Drives = append(c.Drives, driver.Drive{Path: c.Drives[0].Path}) }},
		{Name: "kernel is a symlink", Kind: problem.Invalid, Break: func(c *driver.Config) { c.Kernel = linkTo(c.Dir, c.Kernel) }},
		{Name: "disk is a symlink", Kind: problem.Invalid, Break: func(c *driver.Config) { c.Drives[0].Path = linkTo(c.Dir, c.Drives[0].Path) }},
		{Name: "no such tap", Kind: problem.NotFound, Break: func(c *driver.Config) {
			c.NICs = []driver.NIC{{MAC: "02:00:00:00:00:01", Tap: "blixard-none"}}
		}},
	}
	return h
}

// linkTo makes a symlink, and gives a path that is not there when it can't.
func linkTo(dir, to string) string {
	link := filepath.Join(dir, "link")
	if os.Symlink(to, link) != nil {
		return "/nonexistent"
	}
	return link
}

// toTheEnd at the end of what is expected is the end of the console.
const toTheEnd = "\x00"

// expectConsole joins a console, says something and reads what it then shows from
// the beginning.
func expectConsole(t *testing.T, c *supervisor.Client, cfg driver.Config, say, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), drivertest.Timeout)
	defer cancel()
	s, err := c.Console(ctx, cfg.Lane, cfg.ProcessID, true, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s, say); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for got.Len() < len(want) {
		o, err := s.Recv()
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("console %q, then %v", got.String(), err)
		}
		if err != nil {
			break
		}
		got.Write(o.Data)
	}
	if !strings.HasPrefix(got.String(), strings.TrimSuffix(want, toTheEnd)) {
		t.Fatalf("console %q, want %q", got.String(), want)
	}
}

// users counts the users of jails, of which each VM has its own.
var users atomic.Uint32

const firstUser = 700_000

func testJail() *blixardv1.Jail {
	id := firstUser + users.Add(1)
	return &blixardv1.Jail{Uid: id, Gid: id}
}

func TestConformanceTiny(t *testing.T) { drivertest.Run(t, tinyHarness(false, false)) }

// TestConformanceJailed: a jail takes nothing from a driver.
func TestConformanceJailed(t *testing.T) { drivertest.Run(t, tinyHarness(false, true)) }

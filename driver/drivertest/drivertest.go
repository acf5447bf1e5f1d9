package drivertest

import (
	"bytes"
	"context"
	_ "embed" // the tiny guest
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// Timeout bounds each wait of the suite, which should be short; the machine may
// be busy.
const Timeout = 20 * time.Second

// Harness is what a driver's test brings along.
type Harness struct {
	// New gives a driver and its spawner on a host where nothing runs.
	New func(t *testing.T) (driver.Driver, driver.Spawner)
	// Again gives what a daemon has after its restart: another driver and spawner
	// over the processes of the ones of New.
	Again func(t *testing.T, d driver.Driver) (driver.Driver, driver.Spawner)
	// Config gives the configuration of a VM that comes up, with a directory of its
	// own and another process id each time.
	Config func(t *testing.T) driver.Config
	// Up waits until the guest runs.
	Up func(t *testing.T, cfg driver.Config, s driver.Spawner, vm driver.VM)
	// End makes the guest end the machine by itself.
	End func(t *testing.T, cfg driver.Config, s driver.Spawner, vm driver.VM)
	// Echoes is whether the guest sends back what comes over its channel.
	Echoes bool
	// Hotplug is whether disks can be attached and detached.
	Hotplug bool
	// DriveBytes gives the size of a disk of a running VM. The disks of Config are one
	// that can be written, of at most 1 MiB, and one that can't.
	DriveBytes func(t *testing.T, cfg driver.Config, s driver.Spawner, index int) uint64
	// PowerButton is whether the machine has one and the guest ends upon it.
	PowerButton bool
	// Broken are changes of a configuration that make the start fail, each with the
	// kind of problem that names it.
	Broken []Broken
}

// Broken is a configuration that can't start.
type Broken struct {
	Name  string
	Break func(cfg *driver.Config)
	Kind  problem.Kind
}

// TinyKernel writes a PVH kernel of 650 bytes into a directory and gives its path.
// It says TinyHello on ttyS0, echoes what comes in there and ends the machine by a
// triple fault upon an 'r'.
func TinyKernel(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "tiny.elf")
	if err := os.WriteFile(path, tinyKernel, 0o600); err != nil {
		t.Fatal(err)
	}
	// A jailed VMM reads it as a user of its own.
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TinyHello is what the tiny kernel says when it is up.
const TinyHello = "tiny guest is up\n"

// tinyKernel is tiny/tiny.s assembled.
//
//go:embed tiny/tiny.elf
var tinyKernel []byte

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"probe":             testProbe,
		"life":              testLife,
		"start again":       testStartAgain,
		"adopt":             testAdopt,
		"channel":           testChannel,
		"power button":      testPowerButton,
		"terminate":         testTerminate,
		"guest ends":        testGuestEnds,
		"failed starts":     testFailedStarts,
		"canceled contexts": testCanceled,
		"close":             testClose,
		"pause":             testPause,
		"hotplug":           testHotplug,
		"resize":            testResize,
		"statistics":        testStatistics,
		"control at end":    testControlAfterEnd,
	} {
		t.Run(name, func(t *testing.T) { test(t, h) })
	}
}

// rig is a driver with a running VM.
type rig struct {
	h   Harness
	d   driver.Driver
	s   driver.Spawner
	cfg driver.Config
	vm  driver.VM
}

func start(t *testing.T, h Harness) *rig {
	t.Helper()
	r := &rig{h: h}
	r.d, r.s = h.New(t)
	r.cfg = h.Config(t)
	var err error
	if r.vm, err = r.d.Start(t.Context(), r.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// within gives a context that ends when something takes far too long.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	t.Cleanup(cancel)
	return ctx
}

func wait(t *testing.T, vm driver.VM) driver.Exit {
	t.Helper()
	exit, err := vm.Wait(within(t))
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return exit
}

// drained reads events until the channel is closed.
func drained(t *testing.T, vm driver.VM) []driver.Event {
	t.Helper()
	var all []driver.Event
	for {
		select {
		case e, ok := <-vm.Events():
			if !ok {
				return all
			}
			all = append(all, e)
		case <-time.After(Timeout):
			t.Fatal("the events do not end")
		}
	}
}

// kept are files that a driver may leave: the console's log.
func nothingLeft(t *testing.T, r *rig) {
	t.Helper()
	list, err := r.s.List(within(t), r.cfg.Lane)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.GetProcessId() == r.cfg.ProcessID {
			t.Errorf("process left: %v", p)
		}
	}
	files, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Type()&os.ModeSocket != 0 {
			t.Errorf("socket left: %s", f.Name())
		}
	}
}

func echo(t *testing.T, r *rig, say string) {
	t.Helper()
	conn, err := r.vm.Connect(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if !r.h.Echoes {
		return
	}
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, say); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(say))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, []byte(say)) {
		t.Fatalf("said %q, heard %q, %v", say, got, err)
	}
}

package fake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/driver/drivertest"
	"github.com/blixard/blixard/driver/fake"
	"github.com/blixard/blixard/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a guest that sends back what comes.
func echo(t *testing.T) fake.Behaviour {
	var echoing sync.WaitGroup
	t.Cleanup(echoing.Wait)
	return fake.Behaviour{Connected: func(_ *fake.Machine, conn fake.GuestConn) {
		echoing.Go(func() { _, _ = io.Copy(conn, conn) })
	}}
}

var errBroken = problem.New(problem.Internal, "driver.broken", "the start fails")

func harness(change func(*fake.Behaviour)) drivertest.Harness {
	hosts, n := map[driver.Driver]*fake.Host{}, 0
	h := drivertest.Harness{Echoes: true, PowerButton: true, Hotplug: true}
	h.New = func(t *testing.T) (driver.Driver, driver.Spawner) {
		b := echo(t)
		change(&b)
		host := fake.NewHost(fake.Config{Now: time.Now, Behave: func(c driver.Config) fake.Behaviour {
			if c.Cmdline == "broken" {
				return fake.Behaviour{StartError: errBroken}
			}
			return b
		}})
		d := host.Driver()
		hosts[d] = host
		return d, host
	}
	h.Again = func(_ *testing.T, d driver.Driver) (driver.Driver, driver.Spawner) {
		return hosts[d].Driver(), hosts[d]
	}
	h.Config = func(t *testing.T) driver.Config {
		n++
		return driver.Config{
			ProcessID: fmt.Sprintf("alloc-%d.1", n), AllocationID: fmt.Sprintf("alloc-%d", n), Epoch: 7, Lane: driver.LaneShared,
			Dir: t.TempDir(), VCPUs: 1, MemoryMiB: 32, Kernel: "kernel", Metadata: map[string]string{"vm": "a"},
			Drives: []driver.Drive{{Path: "disk"}, {Path: "image", ReadOnly: true}},
		}
	}
	h.Up = func(*testing.T, driver.Config, driver.Spawner, driver.VM) {}
	h.End = func(_ *testing.T, cfg driver.Config, s driver.Spawner, _ driver.VM) {
		s.(*fake.Host).Machine(cfg.Lane, cfg.ProcessID).Shutdown()
	}
	h.DriveBytes = func(_ *testing.T, cfg driver.Config, s driver.Spawner, i int) uint64 {
		return s.(*fake.Host).Machine(cfg.Lane, cfg.ProcessID).DriveBytes(i)
	}
	h.Broken = []drivertest.Broken{
		{Name: "no processor", Kind: problem.Invalid, Break: func(c *driver.Config) { c.VCPUs = 0 }},
		{Name: "no memory", Kind: problem.Invalid, Break: func(c *driver.Config) { c.MemoryMiB = 0 }},
		{Name: "no kernel", Kind: problem.NotFound, Break: func(c *driver.Config) { c.Kernel = "" }},
		{Name: "odd process id", Kind: problem.Invalid, Break: func(c *driver.Config) { c.ProcessID = "../a" }},
		{Name: "as told", Kind: problem.Internal, Break: func(c *driver.Config) { c.Cmdline = "broken" }},
	}
	return h
}

// TestConformance holds the fake to what real drivers are held to.
func TestConformance(t *testing.T) {
	drivertest.Run(t, harness(func(*fake.Behaviour) {}))
}

func TestConformanceOfLess(t *testing.T) {
	h := harness(func(b *fake.Behaviour) { b.NoPowerButton, b.NoHotplug = true, true })
	h.PowerButton, h.Hotplug = false, false
	drivertest.Run(t, h)
}

func started(t *testing.T, b fake.Behaviour) (*fake.Host, *fake.Machine, driver.VM) {
	t.Helper()
	host := fake.NewHost(fake.Config{Now: func() time.Time { return time.Unix(7, 0) }, Behave: func(driver.Config) fake.Behaviour { return b }})
	cfg := driver.Config{ProcessID: "a.1", Lane: driver.LaneExclusive, VCPUs: 1, MemoryMiB: 1, Kernel: "k"}
	vm, err := host.Driver().Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Close() })
	return host, host.Machine(cfg.Lane, cfg.ProcessID), vm
}

func TestHungMachine(t *testing.T) {
	_, m, vm := started(t, fake.Behaviour{Hung: true})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := vm.Responsive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hung machine answered %v", err)
	}
	if err := vm.PowerButton(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hung machine heard its button: %v", err)
	}
	if err := vm.Terminate(t.Context()); err != nil || !m.Running() {
		t.Errorf("a hung machine ended upon SIGTERM: %v", err)
	}
	answer := make(chan error, 1)
	go func() { answer <- vm.Responsive(t.Context()) }()
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err == nil {
		t.Error("a killed machine answered")
	}
	if exit, err := vm.Wait(t.Context()); err != nil || exit.Signal != int(syscall.SIGKILL) || !exit.At.Equal(time.Unix(7, 0)) {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestStubbornGuest(t *testing.T) {
	_, m, vm := started(t, fake.Behaviour{IgnorePowerButton: true, IgnoreTerminate: true})
	if err := errors.Join(vm.PowerButton(t.Context()), vm.Terminate(t.Context())); err != nil || !m.Running() {
		t.Errorf("it ended: %v", err)
	}
	m.Change(func(b *fake.Behaviour) { b.IgnoreTerminate = false })
	if err := vm.Terminate(t.Context()); err != nil || m.Running() {
		t.Errorf("it did not end: %v", err)
	}
}

func TestCrashAndLane(t *testing.T) {
	host, m, vm := started(t, fake.Behaviour{})
	m.Crash(3, 0)
	m.Crash(0, syscall.SIGSEGV) // once is enough
	if p, err := host.Wait(t.Context(), driver.LaneExclusive, "a.1"); err != nil || p.GetExit().GetCode() != 3 || !p.GetExited() {
		t.Errorf("%v, %v", p, err)
	}
	if err := vm.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	host, _, vm = started(t, fake.Behaviour{})
	if err := host.Forget(t.Context(), driver.LaneExclusive, "a.1"); !problem.Is(err, problem.Conflict) {
		t.Errorf("a running machine was forgotten: %v", err)
	}
	host.KillLane(driver.LaneExclusive)
	if exit, err := vm.Wait(t.Context()); err != nil || exit.Signal != int(syscall.SIGKILL) {
		t.Errorf("%+v, %v", exit, err)
	}
	for name, err := range map[string]error{
		"signal": host.Signal(t.Context(), driver.LaneExclusive, "a.1", 9), "forget": host.Forget(t.Context(), driver.LaneExclusive, "a.1"),
	} {
		if !problem.Is(err, problem.NotFound) {
			t.Errorf("%s after the supervisor's end: %v", name, err)
		}
	}
	if _, err := host.Wait(t.Context(), driver.LaneExclusive, "a.1"); !problem.Is(err, problem.NotFound) {
		t.Errorf("%v", err)
	}
	if _, err := host.Spawn(t.Context(), driver.LaneShared, nil); err == nil {
		t.Error("it spawned a program")
	}
}

// TestEventsAreBounded: who does not listen loses the oldest.
func TestEventsAreBounded(t *testing.T) {
	_, m, vm := started(t, fake.Behaviour{})
	for range 100 {
		m.Emit(driver.EventStopped, false)
	}
	m.Shutdown()
	var last driver.Event
	n := 0
	for e := range vm.Events() {
		last, n = e, n+1
	}
	if n > 16 || last.Kind != driver.EventShutdown || !last.Guest {
		t.Errorf("%d events, the last %+v", n, last)
	}
}

package drivertest

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

func testProbe(t *testing.T, h Harness) {
	d, _ := h.New(t)
	info, err := d.Probe(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if info.Name == "" || info.Version == "" || info.AcceleratorReason == "" || info.OverheadMiB == 0 {
		t.Errorf("a field is missing: %+v", info)
	}
	if info.Accelerator != driver.AcceleratorKVM && info.Accelerator != driver.AcceleratorTCG {
		t.Errorf("accelerator %q", info.Accelerator)
	}
	again, err := d.Probe(within(t))
	if err != nil || again != info {
		t.Errorf("the answer was not kept: %+v, %v", again, err)
	}
}

// testLife is a VM from start to Forget.
func testLife(t *testing.T, h Harness) {
	r := start(t, h)
	p := r.vm.Process()
	if p.GetProcessId() != r.cfg.ProcessID || p.GetAllocationId() != r.cfg.AllocationID || p.GetEpoch() != r.cfg.Epoch ||
		p.GetPid() == 0 || p.GetStartTime() == 0 || p.GetBootId() == "" || p.GetExited() {
		t.Errorf("process %v", p)
	}
	for k, v := range r.cfg.Metadata {
		if p.GetMetadata()[k] != v {
			t.Errorf("metadata %q is %q, not %q", k, p.GetMetadata()[k], v)
		}
	}
	h.Up(t, r.cfg, r.s, r.vm)
	if err := r.vm.Responsive(within(t)); err != nil {
		t.Errorf("responsive: %v", err)
	}
	if err := r.vm.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	exit := wait(t, r.vm)
	if exit.Code != -1 || exit.Signal != int(syscall.SIGKILL) || exit.At.IsZero() {
		t.Errorf("exit %+v", exit)
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if again, err := r.vm.Wait(within(t)); err != nil || again != exit {
				t.Errorf("wait again: %+v, %v", again, err)
			}
		})
	}
	wg.Wait()
	drained(t, r.vm)
	if err := r.vm.Responsive(within(t)); err == nil {
		t.Error("an ended VM is responsive")
	}
	if c, err := r.vm.Connect(within(t)); err == nil {
		t.Errorf("an ended VM was connected: %v", c.Close())
	}
	if err := errors.Join(r.vm.Terminate(within(t)), r.vm.Kill(within(t))); err != nil {
		t.Errorf("signals after the end: %v", err)
	}
	if err := errors.Join(r.vm.Forget(within(t)), r.vm.Forget(within(t))); err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Kill(within(t)); err != nil {
		t.Errorf("kill after Forget: %v", err)
	}
	nothingLeft(t, r)
	if _, err := r.d.Adopt(within(t), r.cfg.Lane, r.cfg.ProcessID); !problem.Is(err, problem.NotFound) {
		t.Errorf("adopt after Forget: %v", err)
	}
}

// testStartAgain: the same process id is the same VM.
func testStartAgain(t *testing.T, h Harness) {
	r := start(t, h)
	again, err := r.d.Start(within(t), r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	same(t, r.vm, again)
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := r.vm.Responsive(within(t)); err != nil {
		t.Errorf("the first handle does not work any more: %v", err)
	}
	end(t, r)
	// A start that comes late finds the end, and starts nothing.
	late, err := r.d.Start(within(t), r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, late); exit.Signal != int(syscall.SIGKILL) {
		t.Errorf("exit %+v", exit)
	}
	if err := errors.Join(late.Forget(within(t)), late.Close()); err != nil {
		t.Error(err)
	}
	// Another process id is another VM.
	other := h.Config(t)
	vm, err := r.d.Start(within(t), other)
	if err != nil {
		t.Fatal(err)
	}
	r2 := &rig{h: h, d: r.d, s: r.s, cfg: other, vm: vm}
	end(t, r2)
	if err := errors.Join(vm.Forget(within(t)), vm.Close()); err != nil {
		t.Error(err)
	}
	nothingLeft(t, r2)
}

func same(t *testing.T, a, b driver.VM) {
	t.Helper()
	p, q := a.Process(), b.Process()
	if p.GetPid() != q.GetPid() || p.GetStartTime() != q.GetStartTime() || p.GetProcessId() != q.GetProcessId() {
		t.Errorf("%v is not %v", p, q)
	}
}

func end(t *testing.T, r *rig) {
	t.Helper()
	if err := r.vm.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	wait(t, r.vm)
}

// testAdopt: a daemon comes back and finds its VMs.
func testAdopt(t *testing.T, h Harness) {
	r := start(t, h)
	h.Up(t, r.cfg, r.s, r.vm)
	if err := r.vm.Close(); err != nil {
		t.Fatal(err)
	}
	d, s := h.Again(t, r.d)
	if _, err := d.Adopt(within(t), r.cfg.Lane, "nobody.1"); !problem.Is(err, problem.NotFound) {
		t.Errorf("adopt a stranger: %v", err)
	}
	vm, err := d.Adopt(within(t), r.cfg.Lane, r.cfg.ProcessID)
	if err != nil {
		t.Fatal(err)
	}
	same(t, r.vm, vm)
	a := &rig{h: h, d: d, s: s, cfg: r.cfg, vm: vm}
	if err := vm.Responsive(within(t)); err != nil {
		t.Errorf("responsive: %v", err)
	}
	echo(t, a, "adopted")
	end(t, a)
	if err := errors.Join(vm.Forget(within(t)), vm.Close()); err != nil {
		t.Error(err)
	}
	nothingLeft(t, a)
}

// testChannel: one connection after the other, the first at once.
func testChannel(t *testing.T, h Harness) {
	r := start(t, h)
	echo(t, r, "early")
	h.Up(t, r.cfg, r.s, r.vm)
	for range 5 {
		echo(t, r, "hello")
	}
	end(t, r)
}

func testPowerButton(t *testing.T, h Harness) {
	r := start(t, h)
	h.Up(t, r.cfg, r.s, r.vm)
	err := r.vm.PowerButton(within(t))
	if !h.PowerButton {
		if !problem.Is(err, problem.Unavailable) || !problem.HasCode(err, "driver.no_power_button") {
			t.Fatalf("power button: %v", err)
		}
		end(t, r)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, r.vm); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
}

func testTerminate(t *testing.T, h Harness) {
	r := start(t, h)
	h.Up(t, r.cfg, r.s, r.vm)
	if err := r.vm.Terminate(within(t)); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, r.vm); exit.Code != 0 && exit.Signal != int(syscall.SIGTERM) {
		t.Errorf("exit %+v", exit)
	}
	for _, e := range drained(t, r.vm) {
		if e.Guest {
			t.Errorf("the guest is blamed: %+v", e)
		}
	}
}

func testGuestEnds(t *testing.T, h Harness) {
	r := start(t, h)
	h.Up(t, r.cfg, r.s, r.vm)
	h.End(t, r.cfg, r.s, r.vm)
	if exit := wait(t, r.vm); exit.Code != 0 || exit.Signal != 0 {
		t.Errorf("exit %+v", exit)
	}
	said := false
	for _, e := range drained(t, r.vm) {
		said = said || e.Guest && e.Kind == driver.EventShutdown && !e.Time.IsZero()
	}
	if !said {
		t.Error("no event of the guest's shutdown")
	}
}

// testFailedStarts: a refused start leaves nothing, and a right one still works.
func testFailedStarts(t *testing.T, h Harness) {
	d, s := h.New(t)
	for _, b := range h.Broken {
		t.Run(b.Name, func(t *testing.T) {
			cfg := h.Config(t)
			b.Break(&cfg)
			vm, err := d.Start(within(t), cfg)
			if err == nil {
				t.Fatalf("it started: %v", vm.Close())
			}
			if !problem.Is(err, b.Kind) {
				t.Errorf("kind %s, not %s: %v", problem.From(err).Kind, b.Kind, err)
			}
			nothingLeft(t, &rig{s: s, cfg: cfg})
		})
	}
	cfg := h.Config(t)
	vm, err := d.Start(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	end(t, &rig{h: h, d: d, s: s, cfg: cfg, vm: vm})
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

func testCanceled(t *testing.T, h Harness) {
	r := start(t, h)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.vm.Wait(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	cfg := h.Config(t)
	if vm, err := r.d.Start(gone, cfg); err == nil {
		t.Errorf("it started: %v", vm.Close())
	}
	nothingLeft(t, &rig{s: r.s, cfg: cfg})
	end(t, r)
}

// testClose: a closed handle ends nothing and answers nothing.
func testClose(t *testing.T, h Harness) {
	r := start(t, h)
	if err := errors.Join(r.vm.Close(), r.vm.Close()); err != nil {
		t.Fatal(err)
	}
	drained(t, r.vm)
	if _, err := r.vm.Wait(within(t)); err == nil {
		t.Error("a closed handle told of an end")
	}
	vm, err := r.d.Adopt(within(t), r.cfg.Lane, r.cfg.ProcessID)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Responsive(within(t)); err != nil {
		t.Errorf("responsive: %v", err)
	}
	end(t, &rig{h: h, d: r.d, s: r.s, cfg: r.cfg, vm: vm})
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

package drivertest

import (
	"context"
	"testing"
	"time"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// testPause: both ways are told once, whatever is asked twice.
func testPause(t *testing.T, h Harness) {
	r := start(t, h)
	h.Up(t, r.cfg, r.s, r.vm)
	for _, call := range []func(context.Context) error{r.vm.Resume, r.vm.Pause, r.vm.Pause} {
		if err := call(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	expectEvent(t, r.vm, driver.EventStopped)
	if err := r.vm.Responsive(within(t)); err != nil {
		t.Errorf("a paused VM is not responsive: %v", err)
	}
	for range 2 {
		if err := r.vm.Resume(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	expectEvent(t, r.vm, driver.EventResumed)
	h.End(t, r.cfg, r.s, r.vm) // so it really goes on
	wait(t, r.vm)
	for _, e := range drained(t, r.vm) {
		if e.Kind == driver.EventStopped && !e.Guest || e.Kind == driver.EventResumed {
			t.Errorf("told twice: %+v", e)
		}
	}
}

func expectEvent(t *testing.T, vm driver.VM, kind driver.EventKind) {
	t.Helper()
	timeout := time.After(Timeout)
	for {
		select {
		case e, ok := <-vm.Events():
			if !ok {
				t.Fatalf("the events end before %s", kind)
			}
			if e.Kind == kind {
				return
			}
		case <-timeout:
			t.Fatalf("no event %s", kind)
		}
	}
}

func testHotplug(t *testing.T, h Harness) {
	r := start(t, h)
	err := r.vm.AttachDrive(within(t), r.cfg.Drives[0])
	if !h.Hotplug {
		for what, err := range map[string]error{"attach": err, "detach": r.vm.DetachDrive(within(t), 0)} {
			if !problem.Is(err, problem.Unavailable) || !problem.HasCode(err, "driver.no_hotplug") {
				t.Errorf("%s: %v", what, err)
			}
		}
		end(t, r)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]string{len(r.cfg.Drives): "", len(r.cfg.Drives) + 1: "driver.drive", -1: "driver.drive"} {
		if err := r.vm.DetachDrive(within(t), i); want == "" && err != nil || want != "" && !problem.HasCode(err, want) {
			t.Errorf("detach %d: %v", i, err)
		}
	}
	if err := r.vm.DetachDrive(within(t), len(r.cfg.Drives)); !problem.HasCode(err, "driver.drive") {
		t.Errorf("detach again: %v", err)
	}
	end(t, r)
}

func testResize(t *testing.T, h Harness) {
	r := start(t, h)
	const larger = 2 << 20
	for range 2 {
		if err := r.vm.ResizeDrive(within(t), 0, larger); err != nil {
			t.Fatal(err)
		}
		if got := h.DriveBytes(t, r.cfg, r.s, 0); got != larger {
			t.Fatalf("%d bytes", got)
		}
	}
	for _, tc := range []struct {
		index int
		bytes uint64
		code  string
	}{
		{0, larger - 512, "driver.shrink"},
		{0, larger + 1, "driver.size"},
		{0, 0, "driver.size"},
		{1, larger, "driver.drive"},
		{len(r.cfg.Drives), larger, "driver.drive"},
		{-1, larger, "driver.drive"},
	} {
		err := r.vm.ResizeDrive(within(t), tc.index, tc.bytes)
		if !problem.Is(err, problem.Invalid) || !problem.HasCode(err, tc.code) {
			t.Errorf("disk %d to %d bytes: %v, not %s", tc.index, tc.bytes, err, tc.code)
		}
	}
	if got := h.DriveBytes(t, r.cfg, r.s, 0); got != larger {
		t.Errorf("refused, but %d bytes", got)
	}
	end(t, r)
}

func testStatistics(t *testing.T, h Harness) {
	r := start(t, h)
	s, err := r.vm.Statistics(within(t))
	if err != nil || len(s.Drives) != len(r.cfg.Drives) {
		t.Errorf("%+v, %v", s, err)
	}
	end(t, r)
}

// testControlAfterEnd: nothing but the end is told of an ended VM.
func testControlAfterEnd(t *testing.T, h Harness) {
	r := start(t, h)
	end(t, r)
	for name, call := range map[string]func(context.Context) error{
		"pause": r.vm.Pause, "resume": r.vm.Resume,
		"attach": func(ctx context.Context) error { return r.vm.AttachDrive(ctx, r.cfg.Drives[0]) },
		"detach": func(ctx context.Context) error { return r.vm.DetachDrive(ctx, 0) },
		"resize": func(ctx context.Context) error { return r.vm.ResizeDrive(ctx, 0, 2<<20) },
		"statistics": func(ctx context.Context) error {
			_, err := r.vm.Statistics(ctx)
			return err
		},
	} {
		if err := call(within(t)); !problem.Is(err, problem.Unavailable) || problem.HasCode(err, "driver.no_hotplug") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

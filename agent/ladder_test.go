package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// stubVM ends at the rung it is told to.
type stubVM struct {
	driver.VM // nil: what follows is all that a ladder asks for
	endsAt    string
	button    bool
	tried     []string
	once      sync.Once
	ended     chan struct{}
}

func newStubVM(endsAt string, button bool) *stubVM {
	return &stubVM{endsAt: endsAt, button: button, ended: make(chan struct{})}
}

func (v *stubVM) try(rung string) {
	v.tried = append(v.tried, rung)
	if v.endsAt == rung {
		v.once.Do(func() { close(v.ended) })
	}
}

func (v *stubVM) Process() *blixardv1.SupervisedProcess { return &blixardv1.SupervisedProcess{} }

func (v *stubVM) Connect(context.Context) (net.Conn, error)     { return nil, errors.New("no guest") }
func (v *stubVM) Responsive(context.Context) error              { return nil }
func (v *stubVM) Forget(context.Context) error                  { return nil }
func (v *stubVM) Events() <-chan driver.Event                   { return nil }
func (v *stubVM) Close() error                                  { return nil }
func (v *stubVM) Terminate(context.Context) error               { v.try(rungTerminate); return nil }
func (v *stubVM) Kill(context.Context) error                    { v.try(rungKill); return nil }
func (v *stubVM) Stop(_ context.Context, _ time.Duration) error { v.try(rungAgent); return nil }

func (v *stubVM) PowerButton(context.Context) error {
	if !v.button {
		return problem.New(problem.Unavailable, "driver.no_power_button", "none")
	}
	v.try(rungPowerButton)
	return nil
}

func (v *stubVM) Wait(ctx context.Context) (driver.Exit, error) {
	select {
	case <-v.ended:
		return driver.Exit{Code: 0}, nil
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
}

func TestStopLadder(t *testing.T) {
	for _, tc := range []struct {
		name    string
		endsAt  string
		button  bool
		guest   bool
		timeout time.Duration
		force   bool
		rung    string
		within  time.Duration
		tried   int
	}{
		{name: "the guest obeys", endsAt: rungAgent, guest: true, timeout: 10 * time.Second, rung: rungAgent, within: 0, tried: 1},
		{name: "no session", endsAt: rungPowerButton, button: true, timeout: 10 * time.Second, rung: rungPowerButton, within: 0, tried: 1},
		{name: "the guest hangs", endsAt: rungPowerButton, button: true, guest: true, timeout: 10 * time.Second, rung: rungPowerButton, within: 8 * time.Second, tried: 2},
		{name: "no button", endsAt: rungTerminate, guest: true, timeout: 10 * time.Second, rung: rungTerminate, within: 8200 * time.Millisecond, tried: 2},
		{name: "nothing polite works", endsAt: rungKill, button: true, guest: true, timeout: 10 * time.Second, rung: rungKill, within: 10 * time.Second, tried: 4},
		{name: "forced", endsAt: rungKill, button: true, guest: true, timeout: 10 * time.Second, force: true, rung: rungKill, within: 0, tried: 1},
		{name: "no time", endsAt: rungKill, button: true, guest: true, rung: rungKill, within: 0, tried: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				vm := newStubVM(tc.endsAt, tc.button)
				var g stopper
				if tc.guest {
					g = vm
				}
				begin := time.Now()
				rung, _, err := stopLadder(t.Context(), vm, g, tc.timeout, tc.force, slog.New(slog.DiscardHandler))
				if err != nil || rung != tc.rung || len(vm.tried) != tc.tried || time.Since(begin) > tc.within {
					t.Fatalf("rung %q, %v after %v, tried %v", rung, err, time.Since(begin), vm.tried)
				}
			})
		})
	}
}

func TestStopLadderGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := newStubVM("never", false)
		_, _, err := stopLadder(t.Context(), vm, nil, time.Second, false, slog.New(slog.DiscardHandler))
		if !problem.HasCode(err, "vm.unkillable") {
			t.Fatalf("an unkillable process: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			synctest.Wait()
			cancel()
		}()
		if _, _, err := stopLadder(ctx, vm, vm, time.Hour, false, slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) {
			t.Fatalf("canceled: %v", err)
		}
	})
}

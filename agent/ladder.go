package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// Rungs of the stop ladder, as VMStatus.stop_rung has them.
const (
	rungAgent       = "agent"
	rungPowerButton = "power_button"
	rungTerminate   = "sigterm"
	rungKill        = "sigkill"
)

// killWait bounds the wait for a process after SIGKILL: only a process stuck in
// the kernel takes longer, and then the step is tried again.
const killWait = 10 * time.Second

// Shares of the ladder's deadline, in percent from its begin, by which each rung
// must have worked.
const (
	shareAgent       = 80
	sharePowerButton = 90
	shareTerminate   = 100
)

// stopper is what a guest's session offers to the ladder.
type stopper interface {
	Stop(ctx context.Context, grace time.Duration) error
}

// stopLadder ends a VM within timeout plus killWait and says which rung did it.
// guest is nil when no session is there. A canceled ctx ends the climb.
func stopLadder(ctx context.Context, vm driver.VM, guest stopper, timeout time.Duration, force bool, log *slog.Logger) (string, driver.Exit, error) {
	begin := time.Now()
	share := func(percent int) time.Duration {
		return time.Until(begin.Add(timeout * time.Duration(percent) / 100))
	}
	type rung struct {
		name string
		try  func(context.Context) error
		wait time.Duration
	}
	var rungs []rung
	if !force && timeout > 0 {
		if guest != nil {
			rungs = append(rungs, rung{rungAgent, func(ctx context.Context) error {
				// The guest kills what is left at nine tenths of its share, so that
				// its own power-off still fits in.
				return guest.Stop(ctx, timeout*shareAgent*9/1000)
			}, timeout * shareAgent / 100})
		}
		rungs = append(rungs,
			rung{rungPowerButton, vm.PowerButton, timeout * sharePowerButton / 100},
			rung{rungTerminate, vm.Terminate, timeout * shareTerminate / 100})
	}
	for _, r := range rungs {
		limit := share(int(r.wait * 100 / timeout))
		if limit <= 0 {
			continue
		}
		exit, err := tryRung(ctx, vm, r.try, limit)
		if err == nil {
			return r.name, exit, nil
		}
		if ctx.Err() != nil {
			return "", driver.Exit{}, ctx.Err()
		}
		if !problem.HasCode(err, "driver.no_power_button") {
			log.Info("a stop rung did not end the VM", "rung", r.name, "err", err)
		}
	}
	exit, err := tryRung(ctx, vm, vm.Kill, killWait)
	if err != nil {
		return "", driver.Exit{}, problem.New(problem.Unavailable, "vm.unkillable",
			"the hypervisor did not end by SIGKILL within %v", killWait).WithCause(err)
	}
	return rungKill, exit, nil
}

// tryRung makes the attempt and waits for the end of the process, both within
// limit. An attempt that is refused ends the rung at once, but a process that
// ended meanwhile counts.
func tryRung(ctx context.Context, vm driver.VM, try func(context.Context) error, limit time.Duration) (driver.Exit, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := try(ctx); err != nil {
		gone, stop := context.WithTimeout(ctx, refusedWait)
		defer stop()
		if exit, werr := vm.Wait(gone); werr == nil {
			return exit, nil
		}
		return driver.Exit{}, err
	}
	exit, err := vm.Wait(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return driver.Exit{}, problem.New(problem.Unavailable, "vm.still_runs", "the VM still runs after %v", limit)
	}
	return exit, err
}

// refusedWait is the time for an ending process to be noticed after it refused a
// rung for that very reason.
const refusedWait = 100 * time.Millisecond

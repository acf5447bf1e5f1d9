package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/problem"
)

// Deadlines of single steps. A step that runs into one is tried again.
const (
	prepareTimeout = 2 * time.Minute
	startTimeout   = 30 * time.Second
	adoptTimeout   = 10 * time.Second
	removeTimeout  = 2 * time.Minute
	forgetTimeout  = 5 * time.Second
)

// Defaults of a spec that the server leaves at zero.
const (
	defaultVCPUs     = 1
	defaultMemoryMiB = 256
	defaultDiskBytes = 1 << 30
)

// carryOut does one action. It runs in a goroutine of its own, one an
// allocation.
func (a *Agent) carryOut(ctx context.Context, act Action) Done {
	done := Done{Action: act}
	rec := act.Record
	switch act.Kind {
	case ActionPrepare:
		done.Err = within(ctx, prepareTimeout, func(ctx context.Context) error { return a.prepare(ctx, rec) })
	case ActionStart:
		done.Err = within(ctx, prepareTimeout+startTimeout, func(ctx context.Context) error {
			vm, err := a.start(ctx, rec)
			if err == nil {
				done.Started, done.vm = vm.Process(), vm
			}
			return err
		})
	case ActionAdopt:
		done.Err = within(ctx, adoptTimeout, func(ctx context.Context) error { return a.adopt(ctx, rec, &done) })
	case ActionStop, ActionKill:
		a.stop(ctx, act, &done)
	case ActionForget:
		done.Err = within(ctx, forgetTimeout, func(ctx context.Context) error {
			a.unfollow(rec.GetAllocation().GetId())
			err := a.cfg.Spawner.Forget(ctx, LaneOf(rec.GetAllocation().GetSpec()), ProcessID(rec))
			failpoint.Hit("agent.forget.after")
			if problem.Is(err, problem.NotFound) {
				return nil
			}
			return err
		})
	case ActionRemove:
		done.Err = within(ctx, removeTimeout, func(context.Context) error {
			return a.journal.remove(rec.GetAllocation().GetId())
		})
	}
	return done
}

func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// prepare makes the directory and the writable disk; what is there stays.
func (a *Agent) prepare(ctx context.Context, rec *blixardv1.AllocationRecord) error {
	alloc := rec.GetAllocation()
	dir, err := a.journal.path(alloc.GetId())
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("prepare vm %s: %w", alloc.GetVmName(), err)
	}
	failpoint.Hit("agent.prepare.before")
	path := filepath.Join(dir, rootDisk)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	size := alloc.GetSpec().GetDiskBytes()
	if size == 0 {
		size = defaultDiskBytes
	}
	if err := a.cfg.Disks.CreateRoot(ctx, path, size); err != nil {
		return fmt.Errorf("prepare vm %s: %w", alloc.GetVmName(), err)
	}
	failpoint.Hit("agent.prepare.after")
	return nil
}

// start prepares what is missing and starts the VMM of the record's boot.
func (a *Agent) start(ctx context.Context, rec *blixardv1.AllocationRecord) (driver.VM, error) {
	if err := a.prepare(ctx, rec); err != nil {
		return nil, err
	}
	cfg, err := a.driverConfig(rec)
	if err != nil {
		return nil, err
	}
	if err := a.cfg.Disks.Attach(cfg.Dir, cfg.Epoch); err != nil {
		return nil, err
	}
	if cfg.Lane == driver.LaneExclusive {
		// Without a lease that the kernel enforces, an exclusive VM must not run.
		if err := a.renewLease(ctx, 0); err != nil {
			return nil, err
		}
	}
	failpoint.Hit("agent.start.before")
	vm, err := a.cfg.Driver.Start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start vm %s: %w", rec.GetAllocation().GetVmName(), err)
	}
	failpoint.Hit("agent.start.after")
	return vm, nil
}

// metaKernel of a process is the name of the kernel it booted.
const metaKernel = "kernel"

// driverConfig puts together what the driver needs, from the record and the
// bundle alone.
func (a *Agent) driverConfig(rec *blixardv1.AllocationRecord) (driver.Config, error) {
	alloc := rec.GetAllocation()
	spec := alloc.GetSpec()
	k, err := a.cfg.Bundle.Kernel(spec.GetKernel())
	if err != nil {
		return driver.Config{}, err
	}
	img, err := a.cfg.Bundle.Image(spec.GetImage())
	if err != nil {
		return driver.Config{}, err
	}
	dir, err := a.journal.path(alloc.GetId())
	if err != nil {
		return driver.Config{}, err
	}
	token, err := tokenOf(rec)
	if err != nil {
		return driver.Config{}, err
	}
	cfg := driver.Config{
		ProcessID:    ProcessID(rec),
		AllocationID: alloc.GetId(),
		Epoch:        alloc.GetEpoch(),
		Lane:         LaneOf(spec),
		Dir:          dir,
		VCPUs:        orDefault(spec.GetVcpus(), defaultVCPUs),
		MemoryMiB:    orDefault(spec.GetMemoryMib(), defaultMemoryMiB),
		Kernel:       k.Path,
		Initramfs:    k.InitramfsPath,
		Cmdline:      a.commandLine(k) + " " + token.KernelArg(),
		ACPI:         k.ACPI,
		Console:      k.Console,
		Drives:       []driver.Drive{{Path: img.Path, ReadOnly: true}, {Path: filepath.Join(dir, rootDisk)}},
		LogPath:      filepath.Join(dir, consoleLog),
		LogBytesMax:  a.cfg.LogBytesMax,
		LogFilesMax:  a.cfg.LogFilesMax,
		Metadata:     map[string]string{metaKernel: k.Name, "vm": alloc.GetVmName(), "boots": strconv.FormatUint(rec.GetBoots(), 10)},
	}
	return cfg, nil
}

// commandLine is the kernel's, with what an emulated machine must be told.
func (a *Agent) commandLine(k bundle.Kernel) string {
	if a.cfg.Fingerprint.GetAccelerator() == driver.AcceleratorTCG {
		return k.CommandLineTCG(a.cfg.TSCKHz)
	}
	return k.CommandLine()
}

func orDefault(v, def uint32) uint32 {
	if v == 0 {
		return def
	}
	return v
}

func tokenOf(rec *blixardv1.AllocationRecord) (guest.Token, error) {
	var t guest.Token
	if len(rec.GetChannel()) != len(t) {
		return t, problem.New(problem.Internal, "agent.no_channel", "the record of %s has no channel secret", rec.GetAllocation().GetId())
	}
	copy(t[:], rec.GetChannel())
	return t, nil
}

// bootConfig is what the guest is told to become.
func bootConfig(rec *blixardv1.AllocationRecord, img bundle.Image) guest.BootConfig {
	alloc := rec.GetAllocation()
	spec := alloc.GetSpec()
	command := spec.GetCommand()
	if len(command) == 0 {
		command = img.Command
	}
	cfg := guest.BootConfig{
		Hostname:   spec.GetHostname(),
		Argv:       append(append([]string{}, img.Entrypoint...), command...),
		Env:        append([]string{}, img.Env...),
		WorkDir:    spec.GetWorkingDir(),
		TTY:        spec.GetTty(),
		Stdin:      spec.GetStdin(),
		HoldOutput: spec.GetHoldOutput(),
		Image:      guest.Disk{Device: "/dev/vda", FSType: "ext4"},
		Writable:   &guest.Disk{Device: "/dev/vdb", FSType: "ext4"},
	}
	if cfg.Hostname == "" {
		cfg.Hostname = alloc.GetVmName()
	}
	if cfg.WorkDir == "" {
		cfg.WorkDir = img.WorkingDir
	}
	for _, e := range spec.GetEnv() {
		cfg.Env = append(cfg.Env, e.GetName()+"="+e.GetValue())
	}
	return cfg
}

func (a *Agent) adopt(ctx context.Context, rec *blixardv1.AllocationRecord, done *Done) error {
	vm, err := a.cfg.Driver.Adopt(ctx, LaneOf(rec.GetAllocation().GetSpec()), ProcessID(rec))
	if problem.Is(err, problem.NotFound) {
		done.Gone = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("adopt vm %s: %w", rec.GetAllocation().GetVmName(), err)
	}
	done.Started, done.vm = vm.Process(), vm
	failpoint.Hit("agent.adopt.after")
	return nil
}

// stop goes down the ladder, or kills.
func (a *Agent) stop(ctx context.Context, act Action, done *Done) {
	id := act.Record.GetAllocation().GetId()
	ctx, cancel := context.WithTimeout(ctx, act.Timeout+2*killWait)
	defer cancel()
	failpoint.Hit("agent.stop.before")
	f := a.follower(id)
	if f == nil {
		// A VMM that did not let itself be adopted.
		done.Rung = rungKill
		done.Err = a.killProcess(ctx, LaneOf(act.Record.GetAllocation().GetSpec()), ProcessID(act.Record))
		return
	}
	f.mu.Lock()
	f.cancelStop = cancel
	f.mu.Unlock()
	polite := act.Kind == ActionStop && !act.Force && act.Timeout > 0
	var g stopper
	if polite {
		if s := f.waitSession(ctx, min(sessionWait, act.Timeout/4)); s != nil {
			g = s
		}
	}
	rung, exit, err := stopLadder(ctx, f.vm, g, act.Timeout, !polite, f.log)
	if err != nil {
		done.Err = err
		return
	}
	failpoint.Hit("agent.stop.after")
	done.Exit, done.Rung = &exit, rung
}

// sessionWait is how long a stop waits for the guest's session right after the
// daemon's start, before it takes the guest for one that can't be asked.
const sessionWait = 2 * time.Second

// killProcess ends a VMM through the supervisor alone.
func (a *Agent) killProcess(ctx context.Context, lane driver.Lane, processID string) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	err := a.cfg.Spawner.Signal(ctx, lane, processID, int(syscall.SIGKILL))
	if err == nil {
		_, err = a.cfg.Spawner.Wait(ctx, lane, processID)
	}
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

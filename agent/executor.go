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
	// prepareTimeout lets an image of some GiB come over a slow line; a step that is
	// not wanted any more is cancelled before.
	prepareTimeout = 30 * time.Minute
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
		done.Err = within(ctx, prepareTimeout, func(ctx context.Context) error {
			var err error
			done.Image, err = a.prepare(ctx, rec)
			return err
		})
	case ActionStart:
		done.Err = within(ctx, prepareTimeout+startTimeout, func(ctx context.Context) error {
			var vm driver.VM
			var err error
			if done.Image, err = a.prepare(ctx, rec); err != nil {
				return err
			}
			if vm, err = a.start(ctx, rec, done.Image); err == nil {
				done.Started, done.vm = vm.Process(), vm
			}
			return err
		})
	case ActionPause, ActionResume:
		done.Err = within(ctx, adoptTimeout, func(ctx context.Context) error { return a.pauseVM(ctx, act) })
	case ActionAdopt:
		done.Err = within(ctx, adoptTimeout, func(ctx context.Context) error { return a.adopt(ctx, rec, &done) })
	case ActionStop, ActionKill:
		a.stop(ctx, act, &done)
	case ActionForget:
		done.Err = within(ctx, forgetTimeout, func(ctx context.Context) error {
			a.unfollow(rec.GetAllocation().GetId())
			err := a.cfg.Spawner.Forget(ctx, LaneOf(rec.GetAllocation().GetSpec()), ProcessID(rec))
			failpoint.Hit("agent.forget.after")
			if err == nil || problem.Is(err, problem.NotFound) {
				a.cfg.Volumes.Detach(rec.GetAllocation().GetId())
				return nil
			}
			return err
		})
	case ActionRemove:
		done.Err = within(ctx, removeTimeout, func(ctx context.Context) error { return a.remove(ctx, rec) })
	}
	return done
}

func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// remove takes away all of an allocation but its volumes, and its output where that is
// to be kept.
func (a *Agent) remove(ctx context.Context, rec *blixardv1.AllocationRecord) error {
	id := rec.GetAllocation().GetId()
	a.cfg.Volumes.Detach(id)
	if err := a.cfg.Networks.Detach(ctx, id); err != nil {
		return fmt.Errorf("remove vm %s: %w", rec.GetAllocation().GetVmName(), err)
	}
	if keep := rec.GetAllocation().GetKeepOutput(); keep != nil {
		dir, err := a.journal.path(id)
		if err != nil {
			return err
		}
		if err := a.outputs.keep(id, dir, time.Now().Add(keep.AsDuration())); err != nil {
			return err
		}
	}
	if err := a.journal.remove(id); err != nil {
		return err
	}
	a.cfg.Images.Release(id)
	return nil
}

// prepare makes the directory, the writable disk and the image's root disk; what is
// there stays. An allocation that shall not run gets no image.
func (a *Agent) prepare(ctx context.Context, rec *blixardv1.AllocationRecord) (*blixardv1.Image, error) {
	alloc := rec.GetAllocation()
	dir, err := a.journal.path(alloc.GetId())
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("prepare vm %s: %w", alloc.GetVmName(), err)
	}
	failpoint.Hit("agent.prepare.before")
	if alloc.GetDesired() != blixardv1.DesiredAllocation_run {
		return rec.GetImage(), nil
	}
	img, err := a.prepareImage(ctx, rec)
	if err != nil {
		return nil, fmt.Errorf("prepare vm %s: %w", alloc.GetVmName(), err)
	}
	// What can't become a guest is refused before anything is started.
	if _, err := bootConfig(&blixardv1.AllocationRecord{Allocation: alloc, Image: img}); err != nil {
		return nil, fmt.Errorf("prepare vm %s: %w", alloc.GetVmName(), err)
	}
	path := filepath.Join(dir, rootDisk)
	size := alloc.GetSpec().GetDiskBytes()
	if size == 0 {
		size = defaultDiskBytes
	}
	if st, err := os.Lstat(path); err == nil {
		return img, growRoot(path, st, size)
	}
	if err := a.cfg.Disks.CreateRoot(ctx, path, size); err != nil {
		return nil, fmt.Errorf("prepare vm %s: %w", alloc.GetVmName(), err)
	}
	failpoint.Hit("agent.prepare.after")
	return img, nil
}

// growMark beside a root disk says that its file grew, and the file system on it not
// yet: its guest does that.
const growMark = ".grown"

// growRoot makes the file of a root disk larger, to whole blocks.
func growRoot(path string, st fs.FileInfo, size uint64) error {
	size &^= 4095
	if !st.Mode().IsRegular() || uint64(st.Size()) >= size {
		return nil // the driver refuses what is no file
	}
	if err := os.WriteFile(path+growMark, nil, 0o600); err != nil {
		return fmt.Errorf("grow %s: %w", path, err)
	}
	if err := os.Truncate(path, int64(size)); err != nil {
		return fmt.Errorf("grow %s: %w", path, err)
	}
	return nil
}

// prepareImage brings the image, telling the cluster now and then how far it is.
func (a *Agent) prepareImage(ctx context.Context, rec *blixardv1.AllocationRecord) (*blixardv1.Image, error) {
	id := rec.GetAllocation().GetId()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	a.preparing[id] = cancel
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.preparing, id)
		a.mu.Unlock()
	}()
	known := rec.GetImage()
	if known.GetName() != rec.GetAllocation().GetSpec().GetImage() {
		known = nil // the VM was updated to another
	}
	told := time.Now()
	return a.cfg.Images.Ensure(ctx, rec.GetAllocation().GetSpec().GetImage(), known, id, func(text string) {
		if now := time.Now(); now.Sub(told) >= progressEvery {
			told = now
			a.post(ctx, func(time.Time) { a.core.Preparing(id, text) })
		}
	})
}

// progressEvery is the least time between two words about a preparation: each is an
// entry of the log.
const progressEvery = 2 * time.Second

// start starts the VMM of the record's boot, which was prepared.
func (a *Agent) start(ctx context.Context, rec *blixardv1.AllocationRecord, img *blixardv1.Image) (driver.VM, error) {
	cfg, err := a.driverConfig(rec, img)
	if err != nil {
		return nil, err
	}
	if err := a.cfg.Disks.Attach(cfg.Dir, cfg.Epoch); err != nil {
		return nil, err
	}
	if err := a.attach(ctx, rec, &cfg); err != nil {
		return nil, fmt.Errorf("start vm %s: %w", rec.GetAllocation().GetVmName(), err)
	}
	if cfg.Lane == driver.LaneExclusive {
		// Without a lease that the kernel enforces, an exclusive VM must not run, nor after
		// the cluster gave it up and this node has not heard of that.
		if err := a.renewLease(ctx, 0, cfg.AllocationID); err != nil {
			return nil, err
		}
	}
	failpoint.Hit("agent.start.before")
	vm, err := a.cfg.Driver.Start(ctx, cfg)
	if err != nil {
		a.cfg.Volumes.Detach(cfg.AllocationID)
		return nil, fmt.Errorf("start vm %s: %w", rec.GetAllocation().GetVmName(), err)
	}
	failpoint.Hit("agent.start.after")
	return vm, nil
}

// attach gives a VM its volumes and NICs.
func (a *Agent) attach(ctx context.Context, rec *blixardv1.AllocationRecord, cfg *driver.Config) error {
	alloc := rec.GetAllocation()
	paths, err := a.cfg.Volumes.Attach(ctx, alloc)
	if err != nil {
		return err
	}
	for k, path := range paths {
		cfg.Drives = append(cfg.Drives, driver.Drive{Path: path, ReadOnly: alloc.GetVolumes()[k].GetReadOnly(), Serial: volumeSerial(k)})
	}
	cfg.NICs, err = a.cfg.Networks.Attach(ctx, alloc, rec.GetUid())
	if err != nil {
		a.cfg.Volumes.Detach(alloc.GetId())
	}
	for _, n := range cfg.NICs {
		if n.User != nil && cfg.Jail != nil {
			cfg.Jail.HostNetwork = true // its sockets are the hypervisor's
		}
	}
	return err
}

// volumeSerial names the disk of a volume for the guest.
func volumeSerial(index int) string { return "volume" + strconv.Itoa(index) }

// pauseVM stops the processors of a VM, or lets them go on with the right time.
func (a *Agent) pauseVM(ctx context.Context, act Action) error {
	f := a.follower(act.Record.GetAllocation().GetId())
	if f == nil {
		return problem.New(problem.Unavailable, "vm.not_adopted", "the VM is not followed yet")
	}
	if act.Kind == ActionPause {
		f.paused.Store(true)
		return f.vm.Pause(ctx)
	}
	if err := f.vm.Resume(ctx); err != nil {
		return err
	}
	f.paused.Store(false)
	if s := f.session(); s != nil {
		if _, err := s.SetTime(ctx); err != nil {
			f.log.Warn("the guest's clock was not set after a pause", "err", err)
		}
	}
	return nil
}

// metaKernel of a process is the name of the kernel it booted.
const metaKernel = "kernel"

// driverConfig puts together what the driver needs, from the record and the
// bundle alone.
func (a *Agent) driverConfig(rec *blixardv1.AllocationRecord, img *blixardv1.Image) (driver.Config, error) {
	alloc := rec.GetAllocation()
	spec := alloc.GetSpec()
	k, err := a.cfg.Bundle.Kernel(spec.GetKernel())
	if err != nil {
		return driver.Config{}, err
	}
	disk, err := a.cfg.Images.Disk(img)
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
		Drives:       []driver.Drive{{Path: disk, ReadOnly: true}, {Path: filepath.Join(dir, rootDisk)}},
		LogPath:      filepath.Join(dir, consoleLog),
		LogBytesMax:  a.cfg.LogBytesMax,
		LogFilesMax:  a.cfg.LogFilesMax,
		Metadata:     map[string]string{metaKernel: k.Name, "vm": alloc.GetVmName(), "boots": strconv.FormatUint(rec.GetBoots(), 10)},
	}
	if a.cfg.Confine {
		cfg.Jail = &blixardv1.Jail{Uid: rec.GetUid(), Gid: rec.GetUid()}
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
	if act.Record.GetStatus().GetPaused() {
		// One that stands still hears nothing.
		if err := f.vm.Resume(ctx); err != nil {
			f.log.Warn("a paused VM can't be resumed to be stopped", "err", err)
		}
	}
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

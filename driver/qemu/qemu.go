package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// Name of the driver.
	Name = "qemu"
	// DefaultProgram is looked up in PATH.
	DefaultProgram = "qemu-system-x86_64"
	// startTimeout bounds how long a started QEMU may take until it answers over
	// QMP: it needs 20 ms; a host short of memory needs longer.
	startTimeout = 30 * time.Second
	// undoTimeout bounds the undoing of a start, which goes on after the caller's
	// context has ended.
	undoTimeout = 10 * time.Second
)

// Metadata that the driver adds to a process, for Adopt.
const (
	metadataDir    = "driver.dir"
	metadataACPI   = "driver.acpi"
	metadataDrives = "driver.drives"
)

// Config of the driver.
type Config struct {
	// Program is QEMU's path or name; empty means DefaultProgram.
	Program string
	// Spawner owns the processes.
	Spawner driver.Spawner
	// Log; nil means none.
	Log *slog.Logger
	// KVMDevice is /dev/kvm unless a test says otherwise.
	KVMDevice string
}

// QEMU is the driver. It is safe for concurrent use.
type QEMU struct {
	cfg Config
	log *slog.Logger

	// probing is held during a probe; the answer is kept.
	probing sync.Mutex
	mu      sync.Mutex
	probed  *probed
}

// probed is a probe's answer.
type probed struct {
	program string
	// dataPaths are what QEMU reads beside its libraries.
	dataPaths []string
	info      driver.Info
}

var _ driver.Driver = (*QEMU)(nil)

// New makes a driver. It looks at nothing before it is used.
func New(cfg Config) *QEMU {
	if cfg.Program == "" {
		cfg.Program = DefaultProgram
	}
	if cfg.KVMDevice == "" {
		cfg.KVMDevice = kvmDevice
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &QEMU{cfg: cfg, log: log}
}

// Probe implements driver.Driver. It fails with a problem of kind Unavailable
// when QEMU is missing (driver.qemu_missing) or too old (driver.qemu_too_old);
// failures are not kept.
func (d *QEMU) Probe(ctx context.Context) (driver.Info, error) {
	p, err := d.probe(ctx)
	if err != nil {
		return driver.Info{}, err
	}
	return p.info, nil
}

func (d *QEMU) probe(ctx context.Context) (*probed, error) {
	d.probing.Lock()
	defer d.probing.Unlock()
	d.mu.Lock()
	p := d.probed
	d.mu.Unlock()
	if p != nil {
		return p, nil
	}
	program, err := find(d.cfg.Program)
	if err != nil {
		return nil, err
	}
	v, err := version(ctx, program)
	if err != nil {
		return nil, err
	}
	data, err := dataPaths(ctx, program)
	if err != nil {
		return nil, err
	}
	p = &probed{program: program, dataPaths: data, info: driver.Info{Name: Name, Version: v.String(), OverheadMiB: overheadTCGMiB}}
	p.info.Accelerator, p.info.AcceleratorReason = accelerator(ctx, program, d.cfg.KVMDevice)
	if err := ctx.Err(); err != nil {
		return nil, err // the reason may be the caller's haste
	}
	if p.info.Accelerator == driver.AcceleratorKVM {
		p.info.OverheadMiB = overheadKVMMiB
	}
	d.mu.Lock()
	d.probed = p
	d.mu.Unlock()
	return p, nil
}

// Start implements driver.Driver. It returns when QEMU answers over QMP.
func (d *QEMU) Start(ctx context.Context, cfg driver.Config) (driver.VM, error) {
	p, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	args, err := argv(p.program, p.info.Accelerator, cfg)
	if err != nil {
		return nil, err
	}
	if err := checkFiles(cfg); err != nil {
		return nil, err
	}
	began := boottime.Now()
	r, err := d.cfg.Spawner.Spawn(ctx, cfg.Lane, request(cfg, p, args))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", cfg.ProcessID, err), d.undoUnsure(ctx, cfg, began, err))
	}
	v := d.vm(cfg.Lane, r.GetProcess())
	if r.GetExisted() {
		return v, nil
	}
	if err := obeyed(cfg, r.GetProcess()); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", cfg.ProcessID, err), d.undo(ctx, v))
	}
	if err := v.awaitStart(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", cfg.ProcessID, err), d.undo(ctx, v))
	}
	return v, nil
}

// obeyed makes sure that the supervisor knows all of the request that matters: one
// of an older program passes over what it does not know, and a jail is not to be
// passed over.
func obeyed(cfg driver.Config, p *blixardv1.SupervisedProcess) error {
	_, jailed := p.GetMetadata()[driver.MetadataJail]
	_, given := p.GetMetadata()[driver.MetadataFiles]
	if given && (jailed || cfg.Jail == nil) {
		return nil
	}
	return problem.New(problem.Unavailable, "driver.supervisor_old", "the supervisor of the %s lane is of an older version and can't confine VMs", cfg.Lane).
		WithHint("stop the VMs of the node, so that its supervisors can be replaced, and start them again")
}

// request is what the supervisor is asked to start.
func request(cfg driver.Config, p *probed, args []string) *blixardv1.SpawnRequest {
	meta := map[string]string{
		metadataDir: cfg.Dir, metadataACPI: onOff(cfg.ACPI), metadataDrives: strconv.Itoa(len(cfg.Drives)),
	}
	for k, v := range cfg.Metadata {
		meta[k] = v
	}
	fds := describe(cfg)
	return &blixardv1.SpawnRequest{
		ProcessId: cfg.ProcessID, AllocationId: cfg.AllocationID, Epoch: cfg.Epoch,
		Argv: args, Env: []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, WorkingDir: cfg.Dir,
		Listeners: []string{agentSocket, qmpSocket}, Taps: fds.taps, Files: fds.files, Jail: confine(cfg, p),
		LogPath: cfg.LogPath, LogBytesMax: cfg.LogBytesMax, LogFilesMax: cfg.LogFilesMax,
		Metadata: meta,
	}
}

// undo ends what Start began, whatever became of its context.
func (d *QEMU) undo(ctx context.Context, v *vm) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := v.Kill(ctx)
	if err == nil {
		_, err = v.Wait(ctx)
	}
	if err == nil {
		err = v.Forget(ctx)
	}
	if problem.Is(err, problem.NotFound) {
		err = nil // the supervisor is gone, and QEMU with it
	}
	return errors.Join(err, v.Close())
}

// undoUnsure is for a spawn of which nobody knows whether it took place: what was
// started since is ended. What ran before is not touched.
func (d *QEMU) undoUnsure(ctx context.Context, cfg driver.Config, began boottime.Instant, cause error) error {
	if !problem.Is(problem.From(cause), problem.Unavailable) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	list, err := d.cfg.Spawner.List(ctx, cfg.Lane)
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.GetProcessId() == cfg.ProcessID && p.GetStartTime() >= ticks(began) {
			return d.undo(ctx, d.vm(cfg.Lane, p))
		}
	}
	return nil
}

// ticksPerSecond is USER_HZ, the unit of a process's start time.
const ticksPerSecond = 100

func ticks(i boottime.Instant) uint64 {
	return uint64(i) / (uint64(time.Second) / ticksPerSecond)
}

// Adopt implements driver.Driver. It does not wait for QEMU to answer, so a hung
// one can be adopted, too.
func (d *QEMU) Adopt(ctx context.Context, lane driver.Lane, processID string) (driver.VM, error) {
	list, err := d.cfg.Spawner.List(ctx, lane)
	if err != nil {
		return nil, fmt.Errorf("adopt %s: %w", processID, err)
	}
	for _, p := range list {
		if p.GetProcessId() == processID {
			return d.vm(lane, p), nil
		}
	}
	return nil, problem.New(problem.NotFound, "driver.unknown_vm", "no process %s on the %s lane", processID, lane)
}

func (d *QEMU) vm(lane driver.Lane, p *blixardv1.SupervisedProcess) *vm {
	return newVM(d.cfg.Spawner, lane, p, d.log.With("alloc", p.GetAllocationId(), "epoch", p.GetEpoch(), "process", p.GetProcessId()))
}

// checkFiles makes sure that the files of a VM are there and what they should be,
// so that the answer names them.
func checkFiles(cfg driver.Config) error {
	if st, err := os.Lstat(cfg.Dir); err != nil || !st.IsDir() {
		return problem.New(problem.NotFound, "driver.directory_missing", "%s is not a directory", cfg.Dir).WithCause(err)
	}
	if err := checkKernel(cfg.Kernel); err != nil {
		return err
	}
	if cfg.Initramfs != "" {
		if err := checkRegular("initramfs", cfg.Initramfs, true); err != nil {
			return err
		}
	}
	for i, d := range cfg.Drives {
		if err := checkRegular(fmt.Sprintf("disk %d", i), d.Path, d.ReadOnly); err != nil {
			return err
		}
	}
	return nil
}

// checkRegular refuses a path that is no regular file or can't be opened as told.
func checkRegular(what, path string, readOnly bool) error {
	f, err := openRegular(what, path, readOnly)
	if err != nil {
		return err
	}
	return f.Close()
}

func openRegular(what, path string, readOnly bool) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "driver.file_missing", "%s: there is no file %s", what, path)
	}
	if err != nil {
		return nil, problem.New(problem.Invalid, "driver.file", "%s", what).WithCause(err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = problem.New(problem.Invalid, "driver.not_a_file", "%s: %s is not a regular file", what, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

package fake

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// Behaviour is what one machine does.
type Behaviour struct {
	// StartError makes the start fail, with nothing left.
	StartError error
	// NoPowerButton: the machine has none. IgnorePowerButton: the guest does not
	// care. Otherwise the guest ends upon it.
	NoPowerButton, IgnorePowerButton bool
	// IgnoreTerminate: the VMM does not end upon SIGTERM.
	IgnoreTerminate bool
	// NoHotplug: no disk can be attached or detached.
	NoHotplug bool
	// Hung: the VMM answers nothing until it is killed.
	Hung bool
	// Booted is called once, when the machine has started and before Start returns.
	// It must not block.
	Booted func(*Machine)
	// Connected is called with the guest's end of every connection to its channel,
	// before Connect returns. It must not block, and closes conn in the end. Nil
	// means a guest that neither reads nor writes.
	Connected func(m *Machine, conn GuestConn)
}

// Config of a host.
type Config struct {
	// Info is the answer of Probe; the zero value means an invented one.
	Info driver.Info
	// Behave gives the behaviour of a machine; nil means one that runs until it is
	// asked to end.
	Behave func(cfg driver.Config) Behaviour
	// Now gives the time of starts, ends and events.
	Now func() time.Time
	// BootID of the host.
	BootID string
}

// Host is where machines run. It outlives its drivers, as a supervisor does. Its
// methods are safe for concurrent use.
type Host struct {
	cfg Config

	mu       sync.Mutex
	pid      uint32
	machines map[key]*Machine
}

type key struct {
	lane driver.Lane
	id   string
}

// NewHost gives a host on which nothing runs.
func NewHost(cfg Config) *Host {
	if cfg.Info == (driver.Info{}) {
		cfg.Info = driver.Info{
			Name: "fake", Version: "1", Accelerator: driver.AcceleratorTCG, AcceleratorReason: "nothing is really run", OverheadMiB: 1,
		}
	}
	if cfg.Behave == nil {
		cfg.Behave = func(driver.Config) Behaviour { return Behaviour{} }
	}
	if cfg.BootID == "" {
		cfg.BootID = "00000000-0000-4000-8000-000000000001"
	}
	return &Host{cfg: cfg, machines: map[key]*Machine{}}
}

// Driver gives a driver of the host, as a daemon makes one at its start.
func (h *Host) Driver() driver.Driver { return &fakeDriver{h} }

// Machine finds a machine by its process id; nil when there is none.
func (h *Host) Machine(lane driver.Lane, processID string) *Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machines[key{lane, processID}]
}

// Machines gives all machines of a lane, in the order of their starts.
func (h *Host) Machines(lane driver.Lane) []*Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*Machine
	for k, m := range h.machines {
		if k.lane == lane {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b *Machine) int { return int(a.pid) - int(b.pid) })
	return all
}

// KillLane ends all machines of a lane, as the death of its supervisor does, and
// forgets them.
func (h *Host) KillLane(lane driver.Lane) {
	for _, m := range h.Machines(lane) {
		m.end(driver.Exit{Code: -1, Signal: int(syscall.SIGKILL)}, nil)
		h.forget(m)
	}
}

func (h *Host) forget(m *Machine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := (key{m.cfg.Lane, m.cfg.ProcessID}); h.machines[k] == m {
		delete(h.machines, k)
	}
}

// fakeDriver is a daemon's handle on the host.
type fakeDriver struct{ host *Host }

var _ driver.Driver = (*fakeDriver)(nil)

// Probe gives the configured answer.
func (d *fakeDriver) Probe(ctx context.Context) (driver.Info, error) {
	return d.host.cfg.Info, ctx.Err()
}

func check(cfg driver.Config) error {
	switch {
	case cfg.ProcessID == "" || strings.ContainsAny(cfg.ProcessID, "/\x00"):
		return problem.New(problem.Invalid, "driver.process_id", "the process id %q can't be one", cfg.ProcessID)
	case cfg.VCPUs == 0:
		return problem.New(problem.Invalid, "driver.vcpus", "a machine needs a processor")
	case cfg.MemoryMiB == 0:
		return problem.New(problem.Invalid, "driver.memory", "a machine needs memory")
	case cfg.Kernel == "":
		return problem.New(problem.NotFound, "driver.kernel", "a machine needs a kernel")
	}
	return nil
}

// Start starts a machine; see [driver.Driver].
func (d *fakeDriver) Start(ctx context.Context, cfg driver.Config) (driver.VM, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := check(cfg); err != nil {
		return nil, err
	}
	h := d.host
	h.mu.Lock()
	if m := h.machines[key{cfg.Lane, cfg.ProcessID}]; m != nil {
		h.mu.Unlock()
		return m.handle(), nil
	}
	b := h.cfg.Behave(cfg)
	if b.StartError != nil {
		h.mu.Unlock()
		return nil, b.StartError
	}
	h.pid++
	m := &Machine{
		host: h, cfg: cfg, behaviour: b, pid: h.pid, started: h.cfg.Now(),
		done: make(chan struct{}), handles: map[*handle]bool{}, channel: make(chan struct{}, 1),
	}
	for _, disk := range cfg.Drives {
		m.drives = append(m.drives, &disk)
	}
	h.machines[key{cfg.Lane, cfg.ProcessID}] = m
	h.mu.Unlock()
	vm := m.handle()
	if b.Booted != nil {
		b.Booted(m)
	}
	return vm, nil
}

// Adopt finds a machine that another driver started; see [driver.Driver].
func (d *fakeDriver) Adopt(ctx context.Context, lane driver.Lane, processID string) (driver.VM, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := d.host.Machine(lane, processID)
	if m == nil {
		return nil, unknownProcess(processID)
	}
	return m.handle(), nil
}

func unknownProcess(id string) error {
	return problem.New(problem.NotFound, "supervisor.unknown_process", "there is no process %q", id)
}

var _ driver.Spawner = (*Host)(nil)

// Spawn is refused: machines are started by the driver.
func (h *Host) Spawn(context.Context, driver.Lane, *blixardv1.SpawnRequest) (*blixardv1.SpawnResponse, error) {
	return nil, problem.New(problem.Invalid, "supervisor.spawn_failed", "a host without a hypervisor starts no programs")
}

// List gives the processes of a lane.
func (h *Host) List(ctx context.Context, lane driver.Lane) ([]*blixardv1.SupervisedProcess, error) {
	var all []*blixardv1.SupervisedProcess
	for _, m := range h.Machines(lane) {
		all = append(all, m.process())
	}
	return all, ctx.Err()
}

// Wait waits for the end of a process.
func (h *Host) Wait(ctx context.Context, lane driver.Lane, processID string) (*blixardv1.SupervisedProcess, error) {
	m := h.Machine(lane, processID)
	if m == nil {
		return nil, unknownProcess(processID)
	}
	select {
	case <-m.done:
		return m.process(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Signal sends a signal to a process.
func (h *Host) Signal(ctx context.Context, lane driver.Lane, processID string, signal int) error {
	m := h.Machine(lane, processID)
	if m == nil {
		return unknownProcess(processID)
	}
	m.signal(syscall.Signal(signal))
	return ctx.Err()
}

// Forget drops an ended process.
func (h *Host) Forget(ctx context.Context, lane driver.Lane, processID string) error {
	m := h.Machine(lane, processID)
	if m == nil {
		return unknownProcess(processID)
	}
	select {
	case <-m.done:
		h.forget(m)
		return ctx.Err()
	default:
		return problem.New(problem.Conflict, "supervisor.running", "process %q runs", processID)
	}
}

// process is the record of a machine.
func (m *Machine) process() *blixardv1.SupervisedProcess {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &blixardv1.SupervisedProcess{
		ProcessId: m.cfg.ProcessID, AllocationId: m.cfg.AllocationID, Epoch: m.cfg.Epoch,
		Pid: m.pid, StartTime: uint64(m.pid), BootId: m.host.cfg.BootID, Metadata: maps.Clone(m.cfg.Metadata),
		StartedAt: timestamppb.New(m.started),
	}
	if m.exit != nil {
		p.Exited = true
		p.Exit = &blixardv1.ProcessExit{Code: int32(m.exit.Code), Signal: uint32(m.exit.Signal), At: timestamppb.New(m.exit.At)}
	}
	return p
}

var errClosed = errors.New("the handle of the machine is closed")

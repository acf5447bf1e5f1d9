package fake

import (
	"context"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// eventsMax are kept for each handle; further ones take the place of the oldest.
const eventsMax = 16

// GuestConn is the guest's end of the channel.
type GuestConn = net.Conn

// Machine is one VMM process that nobody runs. Its methods are safe for
// concurrent use.
type Machine struct {
	host    *Host
	cfg     driver.Config
	pid     uint32
	started time.Time
	done    chan struct{} // closed at the end
	// channel holds a token while a connection is open.
	channel chan struct{}

	mu        sync.Mutex
	behaviour Behaviour
	exit      *driver.Exit // nil while it runs
	handles   map[*handle]bool
	conns     []net.Conn
	paused    bool
	// drives by their index, nil for one that was taken away; sizes of those that
	// were resized.
	drives []*driver.Drive
	sizes  map[int]uint64
}

// Paused tells whether the guest is stopped.
func (m *Machine) Paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

// Drives gives the disks by their index; one that was taken away is nil.
func (m *Machine) Drives() []*driver.Drive {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.drives)
}

// DriveBytes gives the size that a disk was given while the machine ran, and 0
// when none was.
func (m *Machine) DriveBytes(index int) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sizes[index]
}

// driveLocked finds a disk. m.mu must be held.
func (m *Machine) driveLocked(index int) (*driver.Drive, error) {
	if index < 0 || index >= len(m.drives) || m.drives[index] == nil {
		return nil, problem.New(problem.Invalid, "driver.drive", "the VM has no disk %d", index)
	}
	return m.drives[index], nil
}

// Config the machine was started with.
func (m *Machine) Config() driver.Config { return m.cfg }

// Running tells whether it has not ended.
func (m *Machine) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit == nil
}

// Change changes the behaviour from now on.
func (m *Machine) Change(f func(*Behaviour)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.behaviour)
}

// Shutdown ends the machine as a guest does that powers off.
func (m *Machine) Shutdown() {
	m.end(driver.Exit{}, &driver.Event{Kind: driver.EventShutdown, Guest: true})
}

// Crash ends the VMM with an exit code or, when it is not 0, by a signal.
func (m *Machine) Crash(code int, signal syscall.Signal) {
	if signal != 0 {
		code = -1
	}
	m.end(driver.Exit{Code: code, Signal: int(signal)}, nil)
}

// Emit tells of an event.
func (m *Machine) Emit(kind driver.EventKind, guest bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.emitLocked(driver.Event{Kind: kind, Guest: guest, Time: m.host.cfg.Now()})
}

func (m *Machine) emitLocked(e driver.Event) {
	for h := range m.handles {
		for {
			select {
			case h.events <- e:
			default:
				select {
				case <-h.events: // the oldest
				default:
				}
				continue
			}
			break
		}
	}
}

// end ends the machine once; e, when set, is told before.
func (m *Machine) end(exit driver.Exit, e *driver.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exit != nil {
		return
	}
	exit.At = m.host.cfg.Now()
	m.exit = &exit
	if e != nil {
		e.Time = exit.At
		m.emitLocked(*e)
	}
	for h := range m.handles {
		h.endLocked()
	}
	for _, c := range m.conns {
		_ = c.Close()
	}
	m.conns = nil
	close(m.done)
}

func (m *Machine) signal(s syscall.Signal) {
	m.mu.Lock()
	ignored := s == syscall.SIGTERM && (m.behaviour.IgnoreTerminate || m.behaviour.Hung)
	m.mu.Unlock()
	switch {
	case ignored:
	case s == syscall.SIGTERM: // as QEMU does: an orderly end that is not the guest's
		m.end(driver.Exit{}, &driver.Event{Kind: driver.EventShutdown})
	default:
		m.end(driver.Exit{Code: -1, Signal: int(s)}, nil)
	}
}

func (m *Machine) handle() *handle {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &handle{m: m, events: make(chan driver.Event, eventsMax), closed: make(chan struct{})}
	if m.exit != nil {
		h.endLocked()
		return h
	}
	m.handles[h] = true
	return h
}

// handle is a daemon's view of a machine.
type handle struct {
	m      *Machine
	events chan driver.Event
	closed chan struct{}

	// Guarded by m.mu.
	eventsOver, isClosed bool
}

var _ driver.VM = (*handle)(nil)

// endLocked ends the events. m.mu must be held.
func (h *handle) endLocked() {
	if !h.eventsOver {
		h.eventsOver = true
		close(h.events)
	}
}

// Close lets go of the machine.
func (h *handle) Close() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	delete(h.m.handles, h)
	h.endLocked()
	if !h.isClosed {
		h.isClosed = true
		close(h.closed)
	}
	return nil
}

// Process gives the record of the process.
func (h *handle) Process() *blixardv1.SupervisedProcess { return h.m.process() }

// Events gives what the machine tells.
func (h *handle) Events() <-chan driver.Event { return h.events }

var errEnded = problem.New(problem.Unavailable, "driver.ended", "the machine has ended")

// Responsive fails for an ended machine, and waits for ctx with a hung one.
func (h *handle) Responsive(ctx context.Context) error {
	h.m.mu.Lock()
	hung, ended := h.m.behaviour.Hung, h.m.exit != nil
	h.m.mu.Unlock()
	switch {
	case ended:
		return errEnded
	case !hung:
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-h.m.done:
		return errEnded
	case <-h.closed:
		return errClosed
	}
}

// Connect opens the guest's channel.
func (h *handle) Connect(ctx context.Context) (net.Conn, error) {
	m := h.m
	select {
	case <-m.done:
		return nil, errEnded
	default:
	}
	select {
	case m.channel <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-m.done:
		return nil, errEnded
	}
	ours, theirs := net.Pipe()
	m.mu.Lock()
	if m.exit != nil {
		m.mu.Unlock()
		<-m.channel
		return nil, errEnded
	}
	m.conns = append(m.conns[:0], ours, theirs) // the former connection is closed
	connected := m.behaviour.Connected
	m.mu.Unlock()
	if connected != nil {
		connected(m, theirs)
	}
	return &channelConn{Conn: ours, theirs: theirs, free: sync.OnceFunc(func() { <-m.channel })}, nil
}

// channelConn gives the channel free when it is closed.
type channelConn struct {
	net.Conn
	theirs net.Conn
	free   func()
}

// Close ends the connection on both sides.
func (c *channelConn) Close() error {
	err := c.Conn.Close()
	_ = c.theirs.Close()
	c.free()
	return err
}

// PowerButton asks the guest to end.
func (h *handle) PowerButton(ctx context.Context) error {
	h.m.mu.Lock()
	b := h.m.behaviour
	h.m.mu.Unlock()
	switch {
	case b.NoPowerButton:
		return problem.New(problem.Unavailable, "driver.no_power_button", "the machine has no power button")
	case b.Hung:
		return h.Responsive(ctx)
	case !b.IgnorePowerButton:
		h.m.Shutdown()
	}
	return ctx.Err()
}

// Pause stops the guest.
func (h *handle) Pause(ctx context.Context) error { return h.pause(ctx, true, driver.EventStopped) }

// Resume lets the guest go on.
func (h *handle) Resume(ctx context.Context) error { return h.pause(ctx, false, driver.EventResumed) }

func (h *handle) pause(ctx context.Context, to bool, kind driver.EventKind) error {
	if err := h.Responsive(ctx); err != nil {
		return err
	}
	m := h.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exit != nil {
		return errEnded
	}
	if m.paused != to {
		m.paused = to
		m.emitLocked(driver.Event{Kind: kind, Time: m.host.cfg.Now()})
	}
	return nil
}

// AttachDrive adds a disk, unless the behaviour says that there is no hotplug.
func (h *handle) AttachDrive(ctx context.Context, d driver.Drive) error {
	return h.plug(ctx, func(m *Machine) error {
		m.drives = append(m.drives, &d)
		return nil
	})
}

// DetachDrive takes a disk away.
func (h *handle) DetachDrive(ctx context.Context, index int) error {
	return h.plug(ctx, func(m *Machine) error {
		if _, err := m.driveLocked(index); err != nil {
			return err
		}
		m.drives[index] = nil
		return nil
	})
}

func (h *handle) plug(ctx context.Context, change func(*Machine) error) error {
	if err := h.Responsive(ctx); err != nil {
		return err
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.m.behaviour.NoHotplug {
		return problem.New(problem.Unavailable, "driver.no_hotplug", "the machine takes no disk while it runs, and gives none back").
			WithHint("restart the VM")
	}
	return change(h.m)
}

// ResizeDrive notes a new size, for [Machine.DriveBytes].
func (h *handle) ResizeDrive(ctx context.Context, index int, bytes uint64) error {
	if bytes == 0 || bytes%512 != 0 {
		return problem.New(problem.Invalid, "driver.size", "%d bytes is not a multiple of 512", bytes)
	}
	if err := h.Responsive(ctx); err != nil {
		return err
	}
	m := h.m
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.driveLocked(index)
	switch {
	case err != nil:
		return err
	case d.ReadOnly:
		return problem.New(problem.Invalid, "driver.drive", "disk %d can't be written", index)
	case bytes < m.sizes[index]:
		return problem.New(problem.Invalid, "driver.shrink", "disk %d has %d bytes, it can't be made smaller", index, m.sizes[index])
	}
	if m.sizes == nil {
		m.sizes = map[int]uint64{}
	}
	m.sizes[index] = bytes
	return nil
}

// Statistics gives zeros for each disk: nothing is read or written.
func (h *handle) Statistics(ctx context.Context) (driver.Statistics, error) {
	if err := h.Responsive(ctx); err != nil {
		return driver.Statistics{}, err
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return driver.Statistics{Drives: make([]driver.DriveStatistics, len(h.m.drives))}, nil
}

// Terminate sends SIGTERM.
func (h *handle) Terminate(ctx context.Context) error {
	h.m.signal(syscall.SIGTERM)
	return ctx.Err()
}

// Kill sends SIGKILL.
func (h *handle) Kill(ctx context.Context) error {
	h.m.signal(syscall.SIGKILL)
	return ctx.Err()
}

// Wait waits for the end.
func (h *handle) Wait(ctx context.Context) (driver.Exit, error) {
	if err := ctx.Err(); err != nil {
		return driver.Exit{}, err
	}
	select {
	case <-h.closed:
		return driver.Exit{}, errClosed
	default:
	}
	select {
	case <-h.m.done:
		h.m.mu.Lock()
		defer h.m.mu.Unlock()
		return *h.m.exit, nil
	case <-h.closed:
		return driver.Exit{}, errClosed
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
}

// Forget drops an ended machine.
func (h *handle) Forget(ctx context.Context) error {
	err := h.m.host.Forget(ctx, h.m.cfg.Lane, h.m.cfg.ProcessID)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/unixsocket"
)

const (
	// eventsMax are kept for a reader that is slow.
	eventsMax = 64
	// handshakeTimeout bounds one attempt to get QMP going.
	handshakeTimeout = 5 * time.Second
	// callTimeout bounds a QMP command whose context has no nearer deadline.
	callTimeout = 5 * time.Second
	// lastWordsTimeout bounds the reading of a connection whose QEMU has ended.
	lastWordsTimeout = time.Second
	// Waits between attempts to connect or to ask the supervisor.
	retryFirst = 20 * time.Millisecond
	retryMost  = 2 * time.Second
)

// vm is a VM of this driver.
type vm struct {
	spawner driver.Spawner
	lane    driver.Lane
	process *blixardv1.SupervisedProcess
	dir     string
	acpi    bool
	// drives the VM was started with; -1 when an older program started it.
	drives int
	log    *slog.Logger

	// ctx ends with Close; loops are the goroutines that it ends. running ends with
	// ctx and with the process.
	ctx     context.Context
	cancel  context.CancelFunc
	running context.Context
	stopped context.CancelFunc
	loops   sync.WaitGroup
	// ended is closed when the process has ended or is known to be gone; exit and
	// lost are set before.
	ended chan struct{}
	exit  driver.Exit
	lost  error

	mu     sync.Mutex
	qmp    *qmpConn
	qmpSet chan struct{} // closed and made anew whenever qmp changes
	qmpErr error         // why the newest attempt to connect failed

	// events is written to and closed by the goroutine of control alone.
	events chan driver.Event
}

var _ driver.VM = (*vm)(nil)

func newVM(s driver.Spawner, lane driver.Lane, p *blixardv1.SupervisedProcess, log *slog.Logger) *vm {
	v := &vm{
		spawner: s, lane: lane, process: p,
		dir: p.GetMetadata()[metadataDir], acpi: p.GetMetadata()[metadataACPI] == onOff(true), drives: -1, log: log,
		ended: make(chan struct{}), qmpSet: make(chan struct{}), events: make(chan driver.Event, eventsMax),
	}
	if n, err := strconv.Atoi(p.GetMetadata()[metadataDrives]); err == nil {
		v.drives = n
	}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.running, v.stopped = context.WithCancel(v.ctx)
	v.loops.Go(v.watch)
	v.loops.Go(v.control)
	return v
}

// Process implements driver.VM.
func (v *vm) Process() *blixardv1.SupervisedProcess { return v.process }

// watch waits for the end of the process.
func (v *vm) watch() {
	defer v.stopped()
	for delay := retryFirst; ; delay = min(2*delay, retryMost) {
		p, err := v.spawner.Wait(v.ctx, v.lane, v.process.GetProcessId())
		switch {
		case err == nil:
			v.exit = exitOf(p.GetExit())
			close(v.ended)
			return
		case problem.Is(err, problem.NotFound):
			v.lost = problem.New(problem.NotFound, "driver.process_lost",
				"process %s ended with its supervisor, or was forgotten", v.process.GetProcessId()).WithCause(err)
			close(v.ended)
			return
		case v.ctx.Err() != nil:
			return
		}
		v.log.Warn("waiting for the VMM's end failed, trying again", "err", err)
		if !pause(v.ctx, delay) {
			return
		}
	}
}

func exitOf(e *blixardv1.ProcessExit) driver.Exit {
	return driver.Exit{Code: int(e.GetCode()), Signal: int(e.GetSignal()), At: e.GetAt().AsTime(), Stderr: e.GetStderr()}
}

// pause returns false when the context ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// control keeps a QMP connection for as long as the process runs.
func (v *vm) control() {
	defer close(v.events)
	for delay := retryFirst; v.running.Err() == nil; delay = min(2*delay, retryMost) {
		q, err := v.dial(v.running)
		if err != nil {
			v.setQMP(nil, err)
			pause(v.running, delay)
			continue
		}
		delay = retryFirst
		v.setQMP(q, nil)
		err = v.serve(q)
		v.setQMP(nil, err)
	}
}

// serve reads a connection until it breaks. When the process has ended, what it
// said last is still read; Close does not wait for that.
func (v *vm) serve(q *qmpConn) error {
	last := context.AfterFunc(v.running, func() { _ = q.conn.SetReadDeadline(time.Now().Add(lastWordsTimeout)) })
	defer last()
	closing := context.AfterFunc(v.ctx, func() { _ = q.close() })
	defer closing()
	return errors.Join(q.read(), q.close())
}

func (v *vm) dial(ctx context.Context) (*qmpConn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := unixsocket.Dial(ctx, filepath.Join(v.dir, qmpSocket))
	if err != nil {
		return nil, err
	}
	q := newQMP(conn, v.take)
	if err := q.handshake(ctx); err != nil {
		return nil, errors.Join(err, q.close())
	}
	return q, nil
}

func (v *vm) setQMP(q *qmpConn, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.qmp, v.qmpErr = q, err
	close(v.qmpSet)
	v.qmpSet = make(chan struct{})
}

// connection waits for a QMP connection.
func (v *vm) connection(ctx context.Context) (*qmpConn, error) {
	for {
		v.mu.Lock()
		q, err, changed := v.qmp, v.qmpErr, v.qmpSet
		v.mu.Unlock()
		if q != nil {
			return q, nil
		}
		select {
		case <-changed:
		case <-v.ended:
			return nil, v.gone()
		case <-v.ctx.Done():
			return nil, closedVM(v.process.GetProcessId())
		case <-ctx.Done():
			return nil, problem.New(problem.Unavailable, "driver.vmm_hung", "QEMU does not answer on its control socket").
				WithCause(errors.Join(err, ctx.Err())).WithHint("it is hung or stopped; killing it always works")
		}
	}
}

func closedVM(id string) error {
	return problem.New(problem.Unavailable, "driver.vm_closed", "the handle of process %s is closed", id)
}

// gone is the answer of calls that need a running process.
func (v *vm) gone() error {
	if v.lost != nil {
		return v.lost
	}
	return problem.New(problem.Unavailable, "driver.vmm_ended", "QEMU has ended with code %d, signal %d%s",
		v.exit.Code, v.exit.Signal, quote(v.exit.Stderr))
}

// awaitStart returns nil when QEMU answers for the first time.
func (v *vm) awaitStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	_, err := v.connection(ctx)
	if err == nil {
		return nil
	}
	// The socket breaks a little before the end is known: then the end is the better
	// reason.
	select {
	case <-v.ended:
		return v.gone()
	default:
		return err
	}
}

// Connect implements driver.VM. QEMU serves one connection at a time; one further
// waits in the socket's queue, and more wait here.
func (v *vm) Connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for delay := retryFirst; ; delay = min(2*delay, retryMost) {
		select {
		case <-v.ended:
			return nil, v.gone()
		default:
		}
		conn, err := unixsocket.Dial(ctx, filepath.Join(v.dir, agentSocket))
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, unix.EAGAIN) || !pause(ctx, delay) {
			return nil, problem.New(problem.Unavailable, "driver.channel", "the guest's channel of %s", v.process.GetProcessId()).WithCause(err)
		}
	}
}

// PowerButton implements driver.VM.
func (v *vm) PowerButton(ctx context.Context) error {
	if !v.acpi {
		return problem.New(problem.Unavailable, "driver.no_power_button", "the machine has no power button, since its kernel boots without ACPI").
			WithHint("use the guest's agent, or end the VMM")
	}
	return v.execute(ctx, "system_powerdown", nil, nil)
}

// Responsive implements driver.VM.
func (v *vm) Responsive(ctx context.Context) error {
	var status struct {
		Status string `json:"status"`
	}
	if err := v.execute(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	if status.Status == "" {
		return problem.New(problem.Internal, "driver.qmp", "QEMU answered query-status without a status")
	}
	return nil
}

func (v *vm) execute(ctx context.Context, name string, args, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q, err := v.connection(ctx)
	if err != nil {
		return err
	}
	return q.call(ctx, name, args, out)
}

// Terminate implements driver.VM.
func (v *vm) Terminate(ctx context.Context) error { return v.signal(ctx, unix.SIGTERM) }

// Kill implements driver.VM.
func (v *vm) Kill(ctx context.Context) error { return v.signal(ctx, unix.SIGKILL) }

func (v *vm) signal(ctx context.Context, sig unix.Signal) error {
	err := v.spawner.Signal(ctx, v.lane, v.process.GetProcessId(), int(sig))
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// Wait implements driver.VM. It fails with a problem of kind NotFound and code
// driver.process_lost when the process ended together with its supervisor.
func (v *vm) Wait(ctx context.Context) (driver.Exit, error) {
	select {
	case <-v.ended:
		return v.exit, v.lost
	default:
	}
	select {
	case <-v.ended:
		return v.exit, v.lost
	case <-ctx.Done():
		return driver.Exit{}, fmt.Errorf("wait for %s: %w", v.process.GetProcessId(), ctx.Err())
	case <-v.ctx.Done():
		return driver.Exit{}, closedVM(v.process.GetProcessId())
	}
}

// Forget implements driver.VM.
func (v *vm) Forget(ctx context.Context) error {
	return v.spawner.Forget(ctx, v.lane, v.process.GetProcessId())
}

// Events implements driver.VM.
func (v *vm) Events() <-chan driver.Event { return v.events }

// take translates an event and hands it on.
func (v *vm) take(e qmpEvent) {
	if ev, ok := translate(e); ok {
		v.emit(ev)
	}
}

// kinds of the events that are passed on.
var kinds = map[string]driver.EventKind{
	"SHUTDOWN":       driver.EventShutdown,
	"RESET":          driver.EventReset,
	"GUEST_PANICKED": driver.EventPanicked,
	"STOP":           driver.EventStopped,
	"RESUME":         driver.EventResumed,
}

func translate(e qmpEvent) (driver.Event, bool) {
	kind, known := kinds[e.name]
	if !known {
		return driver.Event{}, false
	}
	var data struct {
		Guest bool `json:"guest"`
	}
	if len(e.data) > 0 && json.Unmarshal(e.data, &data) != nil {
		data.Guest = false // an odd detail does not hide the event
	}
	return driver.Event{Kind: kind, Guest: data.Guest || kind == driver.EventPanicked, Time: e.time}, true
}

// emit adds an event; when nobody reads, the oldest goes.
func (v *vm) emit(e driver.Event) {
	for {
		select {
		case v.events <- e:
			return
		default:
		}
		select {
		case <-v.events:
		default:
		}
	}
}

// Close implements driver.VM.
func (v *vm) Close() error {
	v.cancel()
	v.loops.Wait()
	return nil
}

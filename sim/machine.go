package sim

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/supervisor"
)

const (
	sigKill = 9
	// taskTime is the mean time that the command of a task takes.
	taskTime = 3 * time.Second
)

// machine is what of a host outlives its daemon: the hypervisors, the product's
// fence of the exclusive ones, and the agent's journal, which outlives a power
// failure as well.
type machine struct {
	h    *host
	vmms map[string]*vmm // by process id, with those that ended until they are forgotten
	// fence is that of the exclusive lane's supervisor, nil while there is none.
	fence *supervisor.Fence
	// deadline that the kernel's timer is armed with, 0 when it is not.
	deadline boottime.Instant
	// newest is the latest deadline that the fence was given.
	newest  boottime.Instant
	journal map[string]*blixardv1.AllocationRecord
	// incarnation counts the starts of the daemon.
	incarnation uint64
}

// vmm is one hypervisor with its guest.
type vmm struct {
	m      *machine
	id     string
	rec    *blixardv1.AllocationRecord
	lane   driver.Lane
	start  time.Time // by the host's clock
	ended  bool
	gone   bool // with the supervisor that was its parent
	exit   driver.Exit
	ready  bool
	hung   bool
	bye    *blixardv1.GuestExit
	follow *follower
}

func newMachine(h *host) *machine {
	return &machine{h: h, vmms: map[string]*vmm{}, journal: map[string]*blixardv1.AllocationRecord{}}
}

// boottime is the host's CLOCK_BOOTTIME.
func (h *host) boottime() boottime.Instant { return boottime.Instant(h.elapsed()) }

// Set is the kernel's timer of the fence.
func (m *machine) Set(at boottime.Instant) error {
	m.deadline = at
	m.arm()
	return nil
}

// Close is of no use here: the timer ends with the supervisor.
func (m *machine) Close() error { return nil }

// arm lets the kernel look at the deadline, whatever the daemon does.
func (m *machine) arm() {
	at := m.deadline
	if at == 0 {
		return
	}
	m.h.w.after(time.Duration(float64(at.Sub(m.h.boottime()))/m.h.rate)+time.Nanosecond, func() {
		switch left := at.Sub(m.h.boottime()); {
		case m.deadline != at:
		case left > 0:
			m.arm() // the clock's rate has changed, or the last nanosecond is missing
		default:
			m.fenced()
		}
	})
}

// fenced kills the exclusive lane: its supervisor and all that run there.
func (m *machine) fenced() {
	m.h.w.count("fences")
	m.h.w.note("host %d: the fence falls", m.h.n)
	if left := m.newest.Sub(m.h.boottime()); left > 0 {
		m.h.w.fail("host %d: the fence falls %v before the lease ends", m.h.n, left)
	}
	m.endLane(driver.LaneExclusive)
}

// endLane ends a supervisor with its children.
func (m *machine) endLane(lane driver.Lane) {
	for _, id := range slices.Sorted(maps.Keys(m.vmms)) {
		if v := m.vmms[id]; v.lane == lane {
			v.ended, v.gone = true, true
			delete(m.vmms, id)
			v.tell()
		}
	}
	if lane == driver.LaneExclusive {
		m.fence, m.deadline, m.newest = nil, 0, 0
	}
}

// powerOff ends everything that runs.
func (m *machine) powerOff() {
	m.endLane(driver.LaneShared)
	m.endLane(driver.LaneExclusive)
}

// running gives the hypervisors that run, in the order of their ids.
func (m *machine) running() []*vmm {
	var out []*vmm
	for _, id := range slices.Sorted(maps.Keys(m.vmms)) {
		if v := m.vmms[id]; !v.ended {
			out = append(out, v)
		}
	}
	return out
}

// list is what the supervisors say of their processes.
func (m *machine) list() []*blixardv1.SupervisedProcess {
	var out []*blixardv1.SupervisedProcess
	for _, id := range slices.Sorted(maps.Keys(m.vmms)) {
		out = append(out, m.vmms[id].process())
	}
	return out
}

func (v *vmm) process() *blixardv1.SupervisedProcess {
	p := &blixardv1.SupervisedProcess{
		ProcessId: v.id, AllocationId: v.rec.GetAllocation().GetId(), StartedAt: timestamppb.New(v.start), Exited: v.ended,
	}
	if v.ended {
		p.Exit = &blixardv1.ProcessExit{Code: int32(v.exit.Code), Signal: uint32(v.exit.Signal), At: timestamppb.New(v.exit.At)}
	}
	return p
}

// spawn starts a hypervisor. newest is the deadline that the daemon knows.
func (m *machine) spawn(rec *blixardv1.AllocationRecord, newest boottime.Instant) (*vmm, error) {
	w := m.h.w
	v := &vmm{m: m, id: agent.ProcessID(rec), rec: rec, lane: agent.LaneOf(rec.GetAllocation().GetSpec()), start: m.h.now()}
	if m.vmms[v.id] != nil {
		return nil, problem.New(problem.Conflict, "supervisor.exists", "process %s exists", v.id)
	}
	if v.lane == driver.LaneExclusive {
		if m.fence == nil {
			m.fence = supervisor.NewFence(m.h.boottime, m)
		}
		m.newest = max(m.newest, newest)
		if _, err := m.fence.Renew(newest); err != nil {
			return nil, err
		}
		if err := m.fence.Enter(); err != nil {
			return nil, err
		}
	}
	m.vmms[v.id] = v
	w.count("VMs started")
	w.note("host %d: starts %s of %s, epoch %d, lane %s", m.h.n, v.id, rec.GetAllocation().GetVmName(), rec.GetAllocation().GetEpoch(), v.lane)
	w.checks.started(v)
	if w.healing || !w.chance(w.faults.bootFails) {
		w.after(w.tail(w.faults.boot), v.becomeReady)
	}
	return v, nil
}

func (v *vmm) becomeReady() {
	w := v.m.h.w
	if v.ended {
		return
	}
	v.ready = true
	v.tell()
	ends := w.faults.guestEnds
	if v.rec.GetAllocation().GetKeepOutput() != nil {
		ends = taskTime
	}
	if bad(v.rec.GetAllocation().GetSpec()) {
		ends = badTime
	}
	if ends == 0 {
		return
	}
	w.after(time.Duration(w.ExpFloat64()*float64(ends)), func() {
		if v.ended || w.healing {
			return
		}
		switch p := w.IntN(10); {
		case p < 3:
			w.count("hypervisors that died")
			v.end(driver.Exit{Code: -1, Signal: 11})
		case p < 5:
			w.count("hypervisors that hung")
			v.hung = true
			v.tell()
		case p < 6:
			w.count("guests that ended")
			v.bye = &blixardv1.GuestExit{Reason: "reboot"}
			v.tell()
		default:
			w.count("guests that ended")
			v.bye = &blixardv1.GuestExit{Code: int32(w.IntN(2)), Reason: "exit"}
			v.tell()
		}
	})
}

// end ends the process; its supervisor remembers how.
func (v *vmm) end(exit driver.Exit) {
	if v.ended {
		return
	}
	v.ended, v.exit = true, exit
	v.exit.At = v.m.h.now()
	if v.lane == driver.LaneExclusive {
		if err := v.m.fence.Leave(); err != nil {
			v.m.h.w.fail("host %d: %v", v.m.h.n, err)
		}
	}
	v.tell()
}

// tell lets who follows see what has changed.
func (v *vmm) tell() {
	if v.follow != nil {
		v.follow.look()
	}
}

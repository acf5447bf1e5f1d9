package sim

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// The pauses and deadlines of agent.Run.
const (
	registerTimeout = 10 * time.Second
	watchRetryFirst = 100 * time.Millisecond
	watchRetryMost  = 5 * time.Second
	leaseTimeout    = 5 * time.Second
	reportTimeout   = 10 * time.Second
	reportRetry     = 500 * time.Millisecond
	channelBytes    = 16
)

// keeper is the agent of one start of a host's daemon: the product's core, outbox,
// listing and lease, driven as agent.Run does.
type keeper struct {
	h    *host
	life int
	core *agent.Core
	out  agent.Outbox
	// sending is set while a batch is on its way.
	sending     bool
	incarnation uint64
	lease       agent.Lease
	list        agent.Listing
	// seen is the index up to which changes were told; watching is set while they
	// are.
	seen     uint64
	watching bool
	retry    time.Duration
	follows  map[string]*follower // by allocation
	stops    map[string]*stopping
	wakes    int
	channels uint64
}

// stopping is a stop under way.
type stopping struct{ canceled bool }

// keep starts the host's agent.
func (h *host) keep() {
	m := h.machine
	m.incarnation++
	k := &keeper{
		h: h, life: h.life, incarnation: m.incarnation, retry: watchRetryFirst,
		follows: map[string]*follower{}, stops: map[string]*stopping{},
	}
	k.core = agent.NewCore(agent.Limits{ReadyTimeout: h.w.faults.readyTimeout}, driver.AcceleratorTCG, k.channel)
	h.keeper = k
	k.recover()
	k.turn()
	k.register()
	k.keepLease()
}

func (k *keeper) channel() []byte {
	k.channels++
	b := make([]byte, channelBytes)
	binary.LittleEndian.PutUint64(b, k.channels)
	return b
}

// recover is that of agent.New.
func (k *keeper) recover() {
	m := k.h.machine
	var records []*blixardv1.AllocationRecord
	for _, id := range slices.Sorted(maps.Keys(m.journal)) {
		records = append(records, m.journal[id])
	}
	processes := map[string]*blixardv1.SupervisedProcess{}
	list := m.list()
	for _, p := range list {
		processes[p.GetProcessId()] = p
	}
	for _, p := range agent.Strays(list, records) {
		k.h.w.count("strays")
		m.vmms[p.GetProcessId()].end(driver.Exit{Code: -1, Signal: sigKill})
		delete(m.vmms, p.GetProcessId())
	}
	for _, v := range m.vmms {
		v.follow = nil
	}
	for _, r := range records {
		k.core.Recover(r, processes[agent.ProcessID(r)])
	}
}

// after lets something happen in this agent's life, when the daemon is not paused.
func (k *keeper) after(d time.Duration, do func()) {
	k.h.w.after(d, func() { k.h.actIn(k.life, do) })
}

// post tells the core something.
func (k *keeper) post(tell func(c *agent.Core, now time.Time)) {
	tell(k.core, k.h.now())
	k.turn()
}

// turn does what the core wants, in the order of the product's loop.
func (k *keeper) turn() {
	t := k.core.Turn(k.h.now())
	k.keep(t.Keep)
	k.out.Add(t.Reports)
	k.send()
	for _, a := range t.Actions {
		k.begin(a)
	}
	k.wakes++
	if wake := k.wakes; !t.Wake.IsZero() {
		k.after(time.Duration(float64(t.Wake.Sub(k.h.now()))/k.h.rate)+time.Microsecond, func() {
			if k.wakes == wake {
				k.turn()
			}
		})
	}
}

// keep makes records durable.
func (k *keeper) keep(records []*blixardv1.AllocationRecord) {
	journal := k.h.machine.journal
	if !planted.Is(planted.RecordKeptLate) {
		for _, r := range records {
			journal[r.GetAllocation().GetId()] = r
		}
		return
	}
	k.after(k.h.w.tail(4*k.h.w.faults.action), func() {
		for _, r := range records {
			if id := r.GetAllocation().GetId(); k.core.Record(id) != nil {
				journal[id] = k.core.Record(id)
			}
		}
	})
}

// begin carries an action out, which takes its time and may fail.
func (k *keeper) begin(a agent.Action) {
	w, id := k.h.w, a.Record.GetAllocation().GetId()
	w.count("agents' actions")
	w.note("host %d: %v", k.h.n, a)
	if a.Kind == agent.ActionCancel {
		if s := k.stops[id]; s != nil && !s.canceled {
			s.canceled = true
		}
		return
	}
	if !w.healing && w.chance(w.faults.actionFails) {
		w.count("actions that failed")
		k.after(w.tail(w.faults.action), func() { k.done(agent.Done{Action: a, Err: errAction}) })
		return
	}
	switch a.Kind {
	case agent.ActionStart:
		k.after(w.tail(w.faults.action), func() { k.start(a) })
	case agent.ActionStop, agent.ActionKill:
		k.stop(a)
	default:
		k.after(w.tail(w.faults.action), func() { k.carryOut(a) })
	}
}

var errAction = problem.New(problem.Unavailable, "sim.action", "a step failed")

func (k *keeper) done(d agent.Done) {
	k.post(func(c *agent.Core, now time.Time) { c.ActionDone(d, now) })
}

// carryOut does the steps that take no time of their own.
func (k *keeper) carryOut(a agent.Action) {
	m, id, process := k.h.machine, a.Record.GetAllocation().GetId(), agent.ProcessID(a.Record)
	d := agent.Done{Action: a}
	switch a.Kind {
	case agent.ActionAdopt:
		v := m.vmms[process]
		if d.Gone = v == nil; v != nil {
			d.Started = v.process()
			k.h.w.count("adoptions")
			k.done(d)
			k.follow(v)
			return
		}
	case agent.ActionForget:
		delete(k.follows, id)
		delete(m.vmms, process)
	case agent.ActionRemove:
		delete(m.journal, id)
	}
	k.done(d)
}

// start is that of the executor: an exclusive VM needs a fresh lease first.
func (k *keeper) start(a agent.Action) {
	if agent.LaneOf(a.Record.GetAllocation().GetSpec()) == driver.LaneExclusive {
		k.renew(0, a.Record.GetAllocation().GetId(), func(err error) {
			if err != nil {
				k.done(agent.Done{Action: a, Err: err})
				return
			}
			k.spawn(a)
		})
		return
	}
	k.spawn(a)
}

func (k *keeper) spawn(a agent.Action) {
	v, err := k.h.machine.spawn(a.Record, k.lease.Deadline())
	k.after(k.h.w.tail(k.h.w.faults.action), func() {
		d := agent.Done{Action: a, Err: err}
		if err == nil {
			d.Started = v.process()
		}
		k.done(d)
		if err == nil {
			k.follow(v)
		}
	})
}

// stop ends a hypervisor politely or not. One that ended by itself counts; one that
// is gone with its supervisor makes the step fail.
func (k *keeper) stop(a agent.Action) {
	w, id := k.h.w, a.Record.GetAllocation().GetId()
	s := &stopping{}
	k.stops[id] = s
	rung, takes := "sigkill", w.tail(w.faults.action)
	// One that did not let itself be adopted is killed through the supervisor alone,
	// which does not mind when it is gone.
	alone := k.follows[id] == nil
	if a.Kind == agent.ActionStop && !a.Force && !alone {
		if takes = w.between(0, a.Timeout); !w.chance(0.2) {
			rung = "agent"
		}
	}
	var look func(left time.Duration)
	look = func(left time.Duration) {
		v := k.h.machine.vmms[agent.ProcessID(a.Record)]
		d := agent.Done{Action: a, Rung: rung}
		switch {
		case s.canceled:
			d.Err = context.Canceled
		case v == nil && alone:
		case v == nil:
			d.Err = problem.New(problem.Unavailable, "vm.unkillable", "it is not there")
		case left > 0 && !v.ended:
			step := min(left, stopLook)
			k.after(step, func() { look(left - step) })
			return
		default:
			v.end(driver.Exit{Code: 0})
			exit := v.exit
			d.Exit = &exit
		}
		delete(k.stops, id)
		k.done(d)
	}
	look(takes)
}

// stopLook is how often a stop under way looks whether it was canceled.
const stopLook = 500 * time.Millisecond

// follower sees what becomes of one hypervisor and its guest, and tells the core:
// late, but in order.
type follower struct {
	k    *keeper
	v    *vmm
	told struct{ ready, hung, bye, ended bool }
	last time.Duration
}

func (k *keeper) follow(v *vmm) {
	f := &follower{k: k, v: v}
	v.follow = f
	k.follows[v.rec.GetAllocation().GetId()] = f
	f.look()
}

// later tells the core after what was told before.
func (f *follower) later(d time.Duration, tell func(c *agent.Core, now time.Time)) {
	w := f.k.h.w
	f.last = max(f.last, w.now+d)
	f.k.after(f.last-w.now, func() { f.k.post(tell) })
}

func (f *follower) look() {
	w, v, id, boots := f.k.h.w, f.v, f.v.rec.GetAllocation().GetId(), f.v.rec.GetBoots()
	if f.k.life != f.k.h.life {
		return
	}
	if v.ready && !v.gone && !f.told.ready {
		f.told.ready = true
		f.later(w.tail(w.faults.late), func(c *agent.Core, now time.Time) {
			c.GuestReady(id, boots, agent.ReadyInfo{BootID: v.id}, now)
		})
	}
	if v.hung && !f.told.hung {
		f.told.hung = true
		f.later(time.Second, func(c *agent.Core, _ time.Time) { c.Hung(id, boots) })
	}
	if v.bye != nil && !f.told.bye {
		f.told.bye = true
		f.later(w.tail(w.faults.late), func(c *agent.Core, now time.Time) {
			c.GuestExited(id, boots, v.bye, now)
			// The turn that keeps the goodbye comes before the guest ends.
			w.after(w.between(time.Millisecond, 100*time.Millisecond), func() { v.end(driver.Exit{}) })
		})
	}
	if v.ended && !f.told.ended {
		f.told.ended = true
		exit, known := v.exit, !v.gone
		f.later(w.tail(w.faults.late), func(c *agent.Core, _ time.Time) { c.ProcessEnded(id, boots, exit, known) })
	}
}

// Memory of a host, in MiB: for two VMs, or for one where VMs preempt, so that there is
// something to fight for.
const (
	memoryForTwo = 1400
	memoryForOne = 700
)

func (w *world) memory() uint64 {
	if w.faults.preemption {
		return memoryForOne
	}
	return memoryForTwo
}

// tasksMax of a host: every other takes one task at a time only.
func (h *host) tasksMax() uint32 { return uint32(h.n % 2) }

// register makes the start of the agent known, and then follows its allocations.
func (k *keeper) register() {
	k.watching = false
	k.list = agent.Listing{}
	cmd := &blixardv1.Command{Actor: "agent:" + k.h.nodeID, Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: k.h.nodeID, Name: k.h.nodeID, Incarnation: k.incarnation, Fingerprint: &blixardv1.NodeFingerprint{
			Capacity: &blixardv1.Resources{MemoryMib: k.h.w.memory(), Vcpus: 2}, Images: []string{""}, TasksMax: k.h.tasksMax(),
		},
	}}}
	k.h.propose(registerTimeout, cmd, func(_ state.Result, err error) {
		if err != nil {
			k.lost()
			return
		}
		k.h.read(func(err error) {
			if err != nil {
				k.lost()
				return
			}
			view := k.h.steps.View()
			for _, a := range view.AllocationsOfNode(k.h.nodeID) {
				k.heard(&blixardv1.WatchAllocationsResponse{Allocation: a})
			}
			k.heard(&blixardv1.WatchAllocationsResponse{Synced: true})
			k.seen, k.watching, k.retry = view.Index(), true, watchRetryFirst
			k.h.w.count("agents that listed")
		})
	})
}

// lost tries again after a pause.
func (k *keeper) lost() {
	k.watching = false
	k.after(k.retry, k.register)
	k.retry = min(2*k.retry, watchRetryMost)
}

func (k *keeper) heard(m *blixardv1.WatchAllocationsResponse) {
	if tell := k.list.Take(m); tell != nil {
		k.post(func(c *agent.Core, _ time.Time) { tell(c) })
	}
}

// sawState tells what the host's own view has new of its allocations.
func (k *keeper) sawState() {
	if !k.watching {
		return
	}
	view := k.h.steps.View()
	changes, err := view.ChangesAfter(k.seen)
	if err != nil {
		k.h.w.count("watches that fell behind")
		k.lost()
		return
	}
	k.seen = view.Index()
	for _, c := range changes {
		if c.Kind == state.KindAllocation && c.Allocation.GetNodeId() == k.h.nodeID {
			k.heard(&blixardv1.WatchAllocationsResponse{Allocation: c.Allocation, Removed: c.Deleted})
		}
	}
}

// send reports what waits, one batch at a time.
func (k *keeper) send() {
	if k.sending && !planted.Is(planted.ReportOvertakes) {
		return
	}
	batch := k.out.Next()
	if len(batch) == 0 {
		return
	}
	k.sending = true
	k.h.w.count("reports")
	cmd := &blixardv1.Command{Actor: "agent:" + k.h.nodeID, Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{
		NodeId: k.h.nodeID, Incarnation: k.incarnation, Reports: batch,
	}}}
	k.h.propose(reportTimeout, cmd, func(r state.Result, err error) {
		if err == nil && r.Problem != nil {
			err = r.Problem
		}
		for _, rep := range batch {
			k.h.w.note("host %d: reported %s %v: %v", k.h.n, rep.GetAllocationId(), rep.GetStatus().GetState(), err)
		}
		next := k.out.Settle(err)
		if next {
			k.sending = false
			k.send()
			return
		}
		k.after(reportRetry, func() { k.sending = false; k.send() })
	})
}

// renew asks for the lease and hands its deadline to the fence.
func (k *keeper) renew(ttl time.Duration, allocationID string, done func(error)) {
	sent := k.h.boottime()
	k.h.renewLease(k.incarnation, ttl, allocationID, func(granted time.Duration, err error) {
		if err != nil {
			k.h.w.count("leases refused")
			done(err)
			return
		}
		if planted.Is(planted.LeaseFromReceipt) {
			sent = k.h.boottime()
		}
		k.h.w.count("leases")
		deadline := k.lease.Granted(sent, granted)
		k.renewFence(deadline)
		done(nil)
	})
}

func (k *keeper) renewFence(deadline boottime.Instant) {
	if f := k.h.machine.fence; f != nil {
		k.h.machine.newest = max(k.h.machine.newest, deadline)
		if _, err := f.Renew(deadline); err != nil {
			k.h.w.fail("host %d: %v", k.h.n, err)
		}
	}
}

func (k *keeper) keepLease() {
	k.renew(0, "", func(err error) { k.after(k.lease.RenewAfter(err != nil), k.keepLease) })
}

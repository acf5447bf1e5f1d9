package sim

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash/crc64"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/state"
)

// hashEvery so many indexes, and at every index that another host was hashed at.
const hashEvery = 32

var table = crc64.MakeTable(crc64.ECMA)

// agreed is an entry that some host applied.
type agreed struct{ term, sum uint64 }

// checks hold what must be true at every step.
type checks struct {
	w      *world
	log    map[uint64]agreed
	newest uint64
	// members is the newest entry that changed them.
	members uint64
	states  map[uint64][sha256.Size]byte
	leaders map[uint64]int
	epochs  map[string]uint64
	lives   map[life]string
	acked   map[uint64]bool
	// boots are the processes that were ever started.
	boots map[string]bool
	// seen is the newest index that any host has come to, and down the nodes that
	// are down there.
	seen uint64
	down map[string]bool
	// top is the newest epoch of each VM.
	top map[string]uint64
	// lost are the placements that were given up.
	lost map[string]bool
	// once are the tasks, by id, and whether they are to run at most once; commands is
	// what began of those.
	once     map[string]bool
	commands map[string]string
	// attempts of tasks when they were submitted or retried.
	attempts map[string]uint32
	// excused is the newest attempt of a task that was no try.
	excused map[string]uint32
	// openRuns of schedules, by their ids, are those that are not finished, and runTimes
	// the newest time with a run.
	openRuns map[string]map[string]string
	runTimes map[string]runTime
	// scheduled are the schedules as they are, but those whose times were changed.
	scheduled    map[string]*blixardv1.Schedule
	changedTimes map[string]bool
	// preempts are the preemptions in the log by index, and vms what was declared of the
	// VMs that ever were.
	preempts map[uint64]*blixardv1.PreemptCommand
	vms      map[string]*blixardv1.VMSpec
	// advances are the steps of drains in the log by index, and drains how each is.
	advances map[uint64]bool
	drains   map[string]*blixardv1.NodeDrain
	crews    *crews
}

func newChecks(w *world) *checks {
	return &checks{
		w: w, log: map[uint64]agreed{}, states: map[uint64][sha256.Size]byte{}, leaders: map[uint64]int{},
		epochs: map[string]uint64{}, lives: map[life]string{}, acked: map[uint64]bool{},
		boots: map[string]bool{}, down: map[string]bool{}, top: map[string]uint64{}, lost: map[string]bool{},
		once: map[string]bool{}, commands: map[string]string{}, attempts: map[string]uint32{}, excused: map[string]uint32{},
		openRuns: map[string]map[string]string{}, runTimes: map[string]runTime{}, scheduled: map[string]*blixardv1.Schedule{}, changedTimes: map[string]bool{},
		preempts: map[uint64]*blixardv1.PreemptCommand{}, vms: map[string]*blixardv1.VMSpec{},
		advances: map[uint64]bool{}, drains: map[string]*blixardv1.NodeDrain{}, crews: newCrews(w),
	}
}

// applied: all hosts apply the same entries in the same order, each once.
func (c *checks) applied(h *host, e *raftpb.Entry) {
	index := e.GetIndex()
	if index != h.applied+1 {
		c.w.fail("host %d applied entry %d after %d", h.n, index, h.applied)
	}
	h.applied = index
	one := agreed{e.GetTerm(), crc64.Checksum(e.GetData(), table)}
	if known, ok := c.log[index]; !ok {
		c.log[index] = one
		c.newest = max(c.newest, index)
		if e.GetType() != raftpb.EntryNormal {
			c.members = index
		} else if cmd := (&blixardv1.Command{}); proto.Unmarshal(e.GetData(), cmd) == nil {
			if cmd.GetPreempt() != nil {
				c.preempts[index] = cmd.GetPreempt()
			}
			c.advances[index] = cmd.GetAdvanceDrain() != nil
			c.crews.steps[index] = cmd.GetStepGroups() != nil
		}
		c.w.mix(index, one.term, one.sum)
	} else if known != one {
		c.w.fail("host %d applied entry %d of term %d, another host one of term %d", h.n, index, one.term, known.term)
	}
}

// acknowledged: what a client is told was applied.
func (c *checks) acknowledged(r state.Result, cmd *blixardv1.Command) {
	if _, ok := c.log[r.Index]; !ok {
		c.w.fail("%s was acknowledged at index %d, which nobody applied", proto.MessageName(cmd).Name(), r.Index)
	}
	c.acked[r.Index] = true
	c.w.count("changes")
}

// checkLeader: a term has one leader.
func (h *host) checkLeader() {
	term := h.steps.LeadTerm()
	if term == 0 {
		return
	}
	c := h.w.checks
	if other, ok := c.leaders[term]; !ok {
		c.leaders[term] = h.n
		h.w.count("terms")
		h.w.note("host %d: leads term %d", h.n, term)
	} else if other != h.n {
		h.w.fail("hosts %d and %d lead term %d", other, h.n, term)
	}
}

// checkState: equal indexes are equal states, and what the state promises holds.
func (h *host) checkState() {
	view := h.steps.View()
	index := view.Index()
	h.applied = max(h.applied, index)
	if h.applied != index {
		h.w.fail("host %d is at index %d after it applied %d", h.n, index, h.applied)
	}
	c := h.w.checks
	c.saw(view)
	known, ok := c.states[index]
	if !ok && index%hashEvery != 0 && !h.w.chance(0.03) {
		return
	}
	hash := view.Hash()
	h.w.mix(uint64(hash[0]), uint64(hash[1]))
	if !ok {
		c.states[index] = hash
		c.promises(view)
	} else if known != hash {
		h.w.fail("host %d has another state at index %d", h.n, index)
	}
}

// promises of the state that no command may break.
func (c *checks) promises(view *state.View) {
	used, tasks := map[string]uint64{}, map[string]int{}
	of := map[string]string{}
	for _, a := range view.Allocations() {
		used[a.GetNodeId()] += view.Limits().Reservation(a.GetSpec()).GetMemoryMib()
		if state.Lost(a) {
			continue
		}
		if other, ok := of[a.GetVmId()]; ok {
			c.w.fail("VM %s has allocations %s and %s", a.GetVmId(), other, a.GetId())
		}
		of[a.GetVmId()] = a.GetId()
		if view.VM(a.GetVmId()).GetTask() != "" {
			tasks[a.GetNodeId()]++
		}
	}
	for _, n := range view.Nodes() {
		if got, limit := used[n.GetId()], n.GetAllocatable().GetMemoryMib(); got > limit {
			c.w.fail("node %s gives %d MiB of %d", n.GetName(), got, limit)
		}
		if got, limit := tasks[n.GetId()], int(n.GetFingerprint().GetTasksMax()); limit > 0 && got > limit {
			c.w.fail("node %s runs %d tasks, and takes %d", n.GetName(), got, limit)
		}
		if n.GetDrain().GetState() != blixardv1.DrainState_done {
			continue
		}
		for _, a := range view.AllocationsOfNode(n.GetId()) {
			if !state.Lost(a) && a.GetSpec().GetOnNodeLoss() != blixardv1.NodeLossPolicy_keep {
				c.w.fail("the drain of node %s is done with VM %s on it", n.GetName(), a.GetVmName())
			}
		}
	}
	c.quotas(view)
}

// quotas: what a project is said to have is what its VMs have, and one that has more
// than its quota has no VM that was declared after that was set.
func (c *checks) quotas(view *state.View) {
	has, newest := map[string]*blixardv1.ProjectUsage{}, map[string]*blixardv1.VM{}
	for _, vm := range view.VMs("", 0) {
		project := state.ProjectOf(vm)
		u := has[project]
		if u == nil {
			u = &blixardv1.ProjectUsage{Project: project}
			has[project], newest[project] = u, vm
		}
		u.Vms++
		u.Vcpus += uint64(vm.GetSpec().GetVcpus())
		u.MemoryMib += uint64(vm.GetSpec().GetMemoryMib())
		u.DiskBytes += vm.GetSpec().GetDiskBytes()
		if vm.GetCreateIndex() > newest[project].GetCreateIndex() {
			newest[project] = vm
		}
	}
	open, newestTask := map[string]uint64{}, map[string]*blixardv1.Task{}
	for _, t := range view.Tasks("", 0) {
		if state.Finished(t.GetStatus().GetState()) {
			continue
		}
		project := cmp.Or(t.GetProject(), state.DefaultProject)
		open[project]++
		if t.GetCreateIndex() > newestTask[project].GetCreateIndex() {
			newestTask[project] = t
		}
	}
	for _, said := range view.ProjectUsages("", 0) {
		u, vm := has[said.GetProject()], newest[said.GetProject()]
		if u == nil {
			u = &blixardv1.ProjectUsage{Project: said.GetProject()}
		}
		delete(has, said.GetProject())
		u.Tasks = open[said.GetProject()]
		l := said.GetLimits()
		if t := newestTask[said.GetProject()]; l != nil && l.Tasks != nil && u.GetTasks() > l.GetTasks() && t.GetCreateIndex() > view.Quota(said.GetProject()).GetModifyIndex() {
			c.w.fail("project %s has %d tasks, its quota is %d, and %s was submitted after that was set", said.GetProject(), u.GetTasks(), l.GetTasks(), t.GetName())
		}
		over := l != nil && (l.Vms != nil && u.GetVms() > l.GetVms() || l.MemoryMib != nil && u.GetMemoryMib() > l.GetMemoryMib())
		if over && vm.GetCreateIndex() > view.Quota(said.GetProject()).GetModifyIndex() {
			c.w.fail("project %s has %d VMs and %d MiB, its quota is %d and %d, and VM %s was declared after that was set",
				said.GetProject(), u.GetVms(), u.GetMemoryMib(), l.GetVms(), l.GetMemoryMib(), vm.GetName())
		}
		said.Limits, said.Over = nil, nil
		if !proto.Equal(said, u) {
			c.w.fail("project %s is said to have %v, and its VMs have %v", said.GetProject(), said, u)
		}
	}
	for project, u := range has {
		c.w.fail("nobody says that project %s has %v", project, u)
	}
}

// life of a VM is told by its epoch.
type life struct {
	vm    string
	epoch uint64
}

// saw looks at what is new in the newest state that any host has come to.
func (c *checks) saw(view *state.View) {
	if view.Index() <= c.seen {
		return
	}
	changes, err := view.ChangesAfter(c.seen)
	c.seen = view.Index()
	if err != nil { // after a snapshot, the changes that led there are not known
		c.tasksUnknown()
		c.schedulesUnknown()
		c.crews.reset(view)
		for _, n := range view.Nodes() {
			c.node(n)
		}
		for _, a := range view.Allocations() {
			c.epoch(a)
		}
		for _, vm := range view.VMs("", 0) {
			c.vms[vm.GetId()] = vm.GetSpec()
		}
	}
	for _, ch := range changes {
		switch ch.Kind {
		case state.KindVM:
			c.vms[ch.VM.GetId()] = ch.VM.GetSpec()
			c.crews.vm(ch)
		case state.KindGroup:
			c.crews.group(ch)
		case state.KindNode:
			c.node(ch.Node)
		case state.KindAllocation:
			c.epoch(ch.Allocation)
			if p := c.preempts[ch.Index]; p != nil {
				c.preempted(ch.Allocation, p)
			}
			if c.advances[ch.Index] {
				c.drained(ch.Allocation)
			}
		case state.KindTask:
			c.task(ch.Task)
			c.run(ch.Task, ch.Deleted)
		case state.KindSchedule:
			c.schedule(ch.Schedule, ch.Deleted)
		}
	}
	c.crews.entryEnds()
}

// node: while a node is down, none of its exclusive VMs runs.
func (c *checks) node(n *blixardv1.Node) {
	c.drain(n)
	was := c.down[n.GetId()]
	c.w.note("node %s, start %d, is %v at index %d", n.GetId(), n.GetIncarnation(), n.GetState(), n.GetModifyIndex())
	c.down[n.GetId()] = n.GetState() == blixardv1.NodeState_down
	if was || !c.down[n.GetId()] {
		return
	}
	c.w.count("nodes down")
	for _, h := range c.w.hosts {
		if h.nodeID != n.GetId() {
			continue
		}
		for _, v := range h.machine.running() {
			if v.lane == driver.LaneExclusive {
				c.w.fail("node %s is down and %s of VM %s runs there", n.GetId(), v.id, v.rec.GetAllocation().GetVmName())
			}
		}
	}
}

// started: a VM runs once, each boot of it has a number of its own, and an exclusive
// one runs only on a node that is not down.
func (c *checks) started(v *vmm) {
	a := v.rec.GetAllocation()
	if c.boots[v.id] {
		c.w.fail("%s of VM %s is started for the second time", v.id, a.GetVmName())
	}
	c.boots[v.id] = true
	c.begun(v)
	for _, h := range c.w.hosts {
		for _, other := range h.machine.running() {
			if other != v && other.rec.GetAllocation().GetVmId() == a.GetVmId() && !copies(other, v) {
				c.w.fail("VM %s runs twice: %s on host %d and %s on host %d", a.GetVmName(), other.id, h.n, v.id, v.m.h.n)
			}
		}
	}
	if v.lane == driver.LaneExclusive && c.down[v.m.h.nodeID] {
		c.w.fail("%s of VM %s starts on node %s, which is down", v.id, a.GetVmName(), v.m.h.nodeID)
	}
}

// copies reports whether two that run of one VM may do so: its owner lets a copy run
// while the first is not heard of.
func copies(a, b *vmm) bool {
	return a.rec.GetAllocation().GetId() != b.rec.GetAllocation().GetId() &&
		b.rec.GetAllocation().GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_replace
}

// epoch: two allocations of a VM never have the same epoch, one has never two, and a
// later one has a higher.
func (c *checks) epoch(a *blixardv1.Allocation) {
	if state.Lost(a) && !c.lost[a.GetId()] {
		c.lost[a.GetId()] = true
		c.w.count("placements given up")
		if a.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_failover {
			c.w.count("placements of exclusive VMs given up")
		}
	}
	key := life{a.GetVmId(), a.GetEpoch()}
	if known, ok := c.lives[key]; ok && known != a.GetId() {
		c.w.fail("allocations %s and %s of VM %s have epoch %d", known, a.GetId(), a.GetVmId(), a.GetEpoch())
	}
	if known, ok := c.epochs[a.GetId()]; ok && known != a.GetEpoch() {
		c.w.fail("allocation %s had epoch %d and has %d", a.GetId(), known, a.GetEpoch())
	} else if !ok && a.GetEpoch() <= c.top[a.GetVmId()] {
		c.w.fail("allocation %s of VM %s begins with epoch %d after %d", a.GetId(), a.GetVmId(), a.GetEpoch(), c.top[a.GetVmId()])
	}
	c.lives[key], c.epochs[a.GetId()] = a.GetId(), a.GetEpoch()
	c.top[a.GetVmId()] = max(c.top[a.GetVmId()], a.GetEpoch())
}

// preempted: room is made by VMs of lower priority alone, and by none that stays where it
// is.
func (c *checks) preempted(a *blixardv1.Allocation, p *blixardv1.PreemptCommand) {
	c.w.count("VMs preempted")
	priority := func(spec *blixardv1.VMSpec) uint32 {
		if s := spec.GetScheduling(); s != nil && s.Priority != nil {
			return s.GetPriority()
		}
		return 50
	}
	if own, other := priority(a.GetSpec()), priority(c.vms[p.GetVmId()]); own >= other {
		c.w.fail("VM %s of priority %d makes room for %s of priority %d", a.GetVmName(), own, p.GetVmId(), other)
	}
	if a.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_keep || len(a.GetVolumes()) > 0 {
		c.w.fail("VM %s makes room for %s and is to stay", a.GetVmName(), p.GetVmId())
	}
}

// settled tells whether nodes, VMs and what the state says of them are what they
// shall be once nothing happens any more.
func (w *world) settled(view *state.View) bool {
	w.unsettled = ""
	if w.damaged != nil {
		w.unsettled = fmt.Sprintf("host %d is being replaced", w.damaged.n)
		return false
	}
	if left := view.Schedules("", 1); len(left) > 0 {
		w.unsettled = fmt.Sprintf("schedule %s is there", left[0].GetName())
		return false
	}
	for _, t := range view.Tasks("", 0) {
		if why := w.unsettledTask(view, t); why != "" {
			w.unsettled = fmt.Sprintf("task %s: %s", t.GetName(), why)
			return false
		}
	}
	for _, g := range view.Groups("", 0) {
		if why := w.unsettledGroup(view, g); why != "" {
			w.unsettled = fmt.Sprintf("group %s: %s", g.GetName(), why)
			return false
		}
	}
	for _, h := range w.hosts {
		want := blixardv1.NodeState_ready
		if !h.up {
			want = blixardv1.NodeState_down
		}
		if got := view.Node(h.nodeID).GetState(); got != want {
			w.unsettled = fmt.Sprintf("node %s is %v", h.nodeID, got)
			return false
		}
		if why := w.unsettledDrain(view, view.Node(h.nodeID)); why != "" {
			w.unsettled = fmt.Sprintf("node %s: %s", h.nodeID, why)
			return false
		}
		for _, a := range view.AllocationsOfNode(h.nodeID) {
			if !h.up && w.mayMove(view, a) {
				w.unsettled = fmt.Sprintf("VM %s waits for host %d, which is down", a.GetVmName(), h.n)
				return false
			}
			if why := h.unsettled(a); why != "" {
				w.unsettled = fmt.Sprintf("%s of VM %s on host %d: %s", a.GetId(), a.GetVmName(), h.n, why)
				return false
			}
		}
		for _, id := range slices.Sorted(maps.Keys(h.machine.journal)) {
			if h.up && view.Allocation(id) == nil {
				w.unsettled = fmt.Sprintf("host %d keeps a record of %s", h.n, id)
				return false
			}
		}
		for _, v := range h.machine.running() {
			if view.Allocation(v.rec.GetAllocation().GetId()) == nil {
				w.unsettled = fmt.Sprintf("host %d runs %s, which nobody wants", h.n, v.id)
				return false
			}
		}
	}
	return true
}

// mayMove reports whether a VM of a host that is down shall be placed elsewhere.
func (w *world) mayMove(view *state.View, a *blixardv1.Allocation) bool {
	down, all := 0, 0
	for _, n := range view.Nodes() {
		if n.GetState() == blixardv1.NodeState_down {
			down++
		}
		if n.GetState() != blixardv1.NodeState_left {
			all++
		}
	}
	vm := view.VM(a.GetVmId())
	return down*100 <= all*w.faults.stormPercent && !state.Lost(a) && state.Keeps(vm, a) == ""
}

// unsettled tells what of an allocation is not as it shall be.
func (h *host) unsettled(a *blixardv1.Allocation) string {
	st := a.GetStatus()
	ended := state.Ended(st.GetState()) && st.GetNextStartAt() == nil
	if state.Lost(a) && !h.up {
		return ""
	}
	if !h.up {
		if st.GetState() != blixardv1.AllocationState_unknown && !ended {
			return fmt.Sprintf("it is said to be %v", st.GetState())
		}
		return ""
	}
	rec := h.keeper.core.Record(a.GetId())
	runs := h.machine.vmms[agent.ProcessID(rec)]
	switch {
	case rec == nil:
		return "its agent has no record"
	case a.GetDesired() == blixardv1.DesiredAllocation_remove:
		return "it shall be gone"
	case a.GetDesired() == blixardv1.DesiredAllocation_stop && !ended:
		return fmt.Sprintf("it shall stop and is %v", st.GetState())
	case !ended && st.GetState() != blixardv1.AllocationState_running:
		return fmt.Sprintf("it is %v", st.GetState())
	case (runs != nil && !runs.ended) == ended:
		return fmt.Sprintf("it is %v and %t that it runs; its agent says %v", st.GetState(), runs != nil, rec.GetStatus())
	}
	said, does := proto.CloneOf(st), proto.CloneOf(rec.GetStatus())
	said.Node, does.Node = "", ""
	if !proto.Equal(said, does) {
		return fmt.Sprintf("the state says %v and the node %v", said, does)
	}
	return ""
}

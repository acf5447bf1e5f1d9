package leader

import (
	"maps"
	"slices"
	"strings"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/scheduler"
	"github.com/blixard/blixard/state"
)

// planVMs bounds the VMs of one plan, so that a command stays far below the size
// of a log entry: 256 placements of some 100 bytes each.
const planVMs = 256

// View is what the leader sees. All objects are read-only.
type View interface {
	scheduler.View
	VM(ref string) *blixardv1.VM
	Node(ref string) *blixardv1.Node
	Allocation(id string) *blixardv1.Allocation
	AllocationsOfNode(nodeID string) []*blixardv1.Allocation
	Task(ref string) *blixardv1.Task
	Tasks(after string, limit int) []*blixardv1.Task
	TasksNamed(ref string) []*blixardv1.Task
	Schedule(ref string) *blixardv1.Schedule
	Schedules(after string, limit int) []*blixardv1.Schedule
	Group(ref string) *blixardv1.Group
	Groups(after string, limit int) []*blixardv1.Group
	Replicas(groupID string) []*blixardv1.VM
}

// Core decides what the leader proposes. It is not safe for concurrent use.
type Core struct {
	// Preemption lets VMs that find no room take that of VMs of lower priority. It is set
	// before Reset.
	Preemption bool

	// newID makes the id of an allocation; it is called in a fixed order.
	newID func() string
	// fleet is where VMs are placed.
	fleet *scheduler.Fleet
	// open are the VMs to look at, and blocked those that wait, with what they need:
	// they are looked at again only when a node changes that may have it.
	open    queue
	blocked map[string]*blocked
	// ranks say in which order VMs that need a place get one.
	ranks shrinking[rank]
	// promises are the VMs for which room is made, by their ids.
	promises map[string]*promise
	// stirred: a node changed, so that VMs may now find others that make room. tries are
	// left in this decision to look for such.
	stirred bool
	tries   int
	// social VMs found none and may also wait for what other VMs do.
	social map[string]bool
	// draining nodes still have VMs that must go, and tainted ones have a taint that takes
	// VMs off them.
	draining map[string]bool
	tainted  map[string]bool
	// drains are those that go in steps, by their nodes; nil before they were looked at.
	drains map[string]*drainWatch
	// stranded VMs have a place on a node that is not heard of, and are to be looked
	// at; those that wait are looked at again only when a node changes.
	stranded map[string]bool
	waiting  map[string]bool
	// failing VMs could not run where they were placed, since a time; stuck ones have
	// no other node and are looked at again when one changes.
	failing map[string]time.Time
	stuck   map[string]bool
	// stormPercent of the nodes may be down before VMs wait for them, and storm says
	// so while they do.
	stormPercent int
	storm        string
	tasks        *tasks
	schedules    *schedules
	groups       *groups
}

// blocked is a VM that found no node.
type blocked struct {
	need *blixardv1.Resources
	// generation of the spec that found none.
	generation uint64
	moveTo     string
}

// rank of a VM that needs a place: those of higher priority come first, and of equal ones
// those that wait longer.
type rank struct {
	priority uint32
	// since is the index of the log at which it began to wait. A leader that was not there
	// takes the newest that it can have been.
	since uint64
}

// NewCore makes a core that knows nothing; tell it with Reset. strategy is that of VMs
// that name none. More than stormPercent of the nodes down at once are likelier a fault
// of what is between them than of themselves: their VMs may run on, and the rest would
// have no room for them all.
func NewCore(newID func() string, stormPercent int, strategy blixardv1.Strategy_Enum) *Core {
	return &Core{
		newID: newID, stormPercent: stormPercent, fleet: scheduler.NewFleet(strategy), open: newQueue(), blocked: map[string]*blocked{}, social: map[string]bool{},
		draining: map[string]bool{}, stranded: map[string]bool{}, waiting: map[string]bool{},
		failing: map[string]time.Time{}, stuck: map[string]bool{}, tasks: newTasks(), schedules: newSchedules(), groups: newGroups(),
		promises: map[string]*promise{}, tainted: map[string]bool{}, drains: map[string]*drainWatch{}, tries: preemptTries,
	}
}

// Reset begins anew from a view: everything is looked at again.
func (c *Core) Reset(view View) {
	c.open.clear()
	clear(c.blocked)
	clear(c.social)
	clear(c.draining)
	clear(c.stranded)
	clear(c.waiting)
	clear(c.failing)
	clear(c.stuck)
	c.ranks.clear()
	clear(c.promises)
	clear(c.tainted)
	clear(c.drains)
	c.storm = ""
	c.tasks.reset()
	c.groups.reset()
	for _, g := range view.Groups("", 0) {
		c.groups.changed(g.GetId(), false)
	}
	for _, t := range view.Tasks("", 0) {
		c.tasks.changed(t, false)
	}
	c.schedules.reset()
	for _, s := range view.Schedules("", 0) {
		c.schedules.changed(s.GetId())
	}
	for _, vm := range view.VMs("", 0) {
		if vm.GetTask() != "" {
			c.tasks.attempt(vm, false)
		}
		since := vm.GetModifyIndex()
		if vm.GetStatus().GetEpoch() == 0 {
			since = vm.GetCreateIndex()
		}
		c.look(vm, since)
	}
	for _, n := range view.Nodes() {
		c.lookAt(n)
	}
}

// lookAt takes in whether VMs must go from a node.
func (c *Core) lookAt(n *blixardv1.Node) {
	id := n.GetId()
	if c.tainted[id] = constraint.Untolerated(n.GetTaints(), nil, blixardv1.TaintEffect_evict) != nil; !c.tainted[id] {
		delete(c.tainted, id)
	}
	c.draining[id] = atOnce(n) || c.tainted[id]
	if n.GetDrain() == nil {
		delete(c.drains, id)
	} else if _, known := c.drains[id]; !known {
		c.drains[id] = nil
	}
}

// Changed tells of one change of the state.
func (c *Core) Changed(ch state.Change) {
	switch ch.Kind {
	case state.KindTask:
		c.tasks.changed(ch.Task, ch.Deleted)
	case state.KindSchedule:
		c.schedules.changed(ch.Schedule.GetId())
	case state.KindGroup:
		c.groups.changed(ch.Group.GetId(), ch.Deleted)
	case state.KindVM:
		if id := state.GroupOf(ch.VM); id != "" {
			c.groups.changed(id, false)
		}
		if ch.VM.GetTask() != "" {
			c.tasks.attempt(ch.VM, ch.Deleted)
		}
		if ch.Deleted {
			c.open.remove(ch.VM.GetId())
			delete(c.blocked, ch.VM.GetId())
			delete(c.stranded, ch.VM.GetId())
			delete(c.waiting, ch.VM.GetId())
			delete(c.failing, ch.VM.GetId())
			delete(c.stuck, ch.VM.GetId())
			c.ranks.remove(ch.VM.GetId())
			c.breakPromise(ch.VM.GetId())
		} else {
			c.look(ch.VM, ch.Index)
		}
		for id := range c.social {
			c.wakeOne(id)
		}
		clear(c.social)
	case state.KindNode:
		c.wake(func(b *blocked) bool {
			_, fits := state.Fits(ch.Node.GetAllocatable(), state.Reserved(ch.Node), b.need)
			return fits
		})
		maps.Copy(c.stranded, c.waiting)
		clear(c.waiting)
		clear(c.stuck)
		c.lookAt(ch.Node)
		c.stir(ch.Node)
	case state.KindAllocation:
		c.left(ch)
	case state.KindMember, state.KindVolume, state.KindNetwork:
		c.wake(func(*blocked) bool { return true })
	}
}

// wake looks at blocked VMs again, since there may be a node for them now.
func (c *Core) wake(which func(*blocked) bool) {
	for id, b := range c.blocked {
		if which(b) {
			c.wakeOne(id)
		}
	}
}

func (c *Core) wakeOne(id string) {
	if c.blocked[id] != nil {
		c.open.put(id, c.ranks.of[id])
		delete(c.blocked, id)
	}
}

// look opens a VM that may need something. One that is blocked stays so: the
// change is the reason that was just written to it. index is when it began to wait, if it
// did not wait before.
func (c *Core) look(vm *blixardv1.VM, index uint64) {
	id := vm.GetId()
	if needsPlace(vm) {
		r := c.ranks.of[id]
		if r.since == 0 {
			r.since = index
		}
		r.priority = state.Priority(vm.GetSpec())
		c.ranks.put(id, r)
	} else {
		c.ranks.remove(id)
	}
	if p := c.promises[id]; p != nil && (!needsPlace(vm) || p.generation != vm.GetGeneration() || p.moveTo != vm.GetMoveTo()) {
		c.breakPromise(id)
	}
	if b := c.blocked[id]; b != nil && (!needsPlace(vm) || b.generation != vm.GetGeneration() || b.moveTo != vm.GetMoveTo()) {
		delete(c.blocked, id)
	}
	if hasFailed(vm) {
		if _, known := c.failing[id]; !known {
			c.failing[id] = time.Time{}
		}
	} else {
		delete(c.failing, id)
		delete(c.stuck, id)
	}
	if isStranded(vm) {
		c.stranded[id] = true
	} else {
		delete(c.stranded, id)
		delete(c.waiting, id)
	}
	if (needsPlace(vm) && c.blocked[id] == nil) || shallGo(vm) {
		c.open.put(id, c.ranks.of[id])
	}
}

// isStranded reports whether nothing is heard of a VM that has a place.
func isStranded(vm *blixardv1.VM) bool {
	return vm.GetStatus().GetAllocationId() != "" && vm.GetStatus().GetState() == blixardv1.AllocationState_unknown
}

func needsPlace(vm *blixardv1.VM) bool {
	return !vm.GetDeleting() && vm.GetSpec().GetDesired() == blixardv1.DesiredState_run && vm.GetStatus().GetAllocationId() == ""
}

// shallGo reports whether a VM that is removed when it ends has ended.
func shallGo(vm *blixardv1.VM) bool {
	st := vm.GetStatus()
	return !vm.GetDeleting() && vm.GetSpec().GetRemoveOnExit() && st.GetAllocationId() != "" &&
		state.Ended(st.GetState()) && st.GetNextStartAt() == nil
}

// Decide gives the commands that are due, from the view that all changes told so
// far led to, or a newer one. Call it again until it gives none.
func (c *Core) Decide(view View) []*blixardv1.Command {
	var out []*blixardv1.Command
	plan := &blixardv1.PlaceCommand{}
	c.fleet.Follow(view)
	c.keepPromises(view)
	claims := c.newClaims()
	c.open.each(func(id string) bool {
		if len(plan.Placements) >= planVMs || len(out) >= planVMs {
			return false
		}
		c.open.remove(id)
		vm := view.VM(id)
		switch {
		case vm == nil:
		case shallGo(vm):
			out = append(out, &blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{
				Name: id, ExpectedIndex: vm.GetModifyIndex(),
			}}})
		case needsPlace(vm):
			claims.holdBefore(id)
			out = append(out, c.place(view, vm, plan)...)
			claims.holdAfter(id)
		}
		return true
	})
	if steps := c.tasks.decide(view); len(steps) > 0 {
		out = append(out, stepCommand(steps))
	}
	if cmd := c.lose(view); cmd != nil {
		out = append(out, cmd)
	}
	out = append(out, c.evict(view)...)
	if len(plan.Placements) > 0 {
		// The level is asked for only where it counts: that takes a look at all members.
		plan.BoundsTasks = plan.BoundsTasks && view.FeatureLevel() >= boundsLevel
		out = append(out, &blixardv1.Command{Change: &blixardv1.Command_Place{Place: plan}})
	}
	return out
}

// boundsLevel is the feature level of plans that are checked for what nodes take of tasks.
var boundsLevel = state.Level(&blixardv1.Command{Change: &blixardv1.Command_Place{Place: &blixardv1.PlaceCommand{BoundsTasks: true}}})

func (c *Core) place(view View, vm *blixardv1.VM, plan *blixardv1.PlaceCommand) []*blixardv1.Command {
	d := c.fleet.Place(view, vm)
	if d.Node != nil {
		c.breakPromise(vm.GetId())
		plan.BoundsTasks = plan.BoundsTasks || vm.GetTask() != ""
		plan.Placements = append(plan.Placements, &blixardv1.Placement{
			VmId: vm.GetId(), AllocationId: c.newID(), NodeId: d.Node.GetId(), VmModifyIndex: vm.GetModifyIndex(),
		})
		return nil
	}
	var out []*blixardv1.Command
	if c.Preemption && d.Reason == scheduler.ReasonNoCapacity {
		switch {
		case c.promises[vm.GetId()] != nil:
			d = scheduler.Decision{} // what it waits for was said
		case !c.mayPreempt(view, vm):
		case c.tries == 0:
			c.open.put(vm.GetId(), c.ranks.of[vm.GetId()])
			return nil
		default:
			out = c.preempt(view, vm, &d)
		}
	}
	c.blocked[vm.GetId()] = &blocked{
		need: state.Need(view, vm.GetSpec()), generation: vm.GetGeneration(), moveTo: vm.GetMoveTo(),
	}
	if s := vm.GetSpec().GetScheduling(); len(s.GetAffinities())+len(s.GetSpreads()) > 0 {
		c.social[vm.GetId()] = true
	}
	if st := vm.GetStatus(); d.Reason == "" || st.GetReason() == d.Reason && st.GetMessage() == d.Message {
		return out
	}
	return append(out, &blixardv1.Command{Change: &blixardv1.Command_SetVmReason{SetVmReason: &blixardv1.SetVMReasonCommand{
		VmId: vm.GetId(), Reason: d.Reason, Message: d.Message,
	}}})
}

// Refused tells which parts of a plan were refused when it was applied, because the state
// had moved: they are looked at again, in a view that has what moved.
func (c *Core) Refused(parts []state.Refusal) {
	for _, f := range parts {
		if f.GroupID != "" {
			c.groups.changed(f.GroupID, false)
			continue
		}
		if f.TaskID != "" {
			c.tasks.refused(f.TaskID)
			continue
		}
		if f.ScheduleID != "" {
			c.schedules.changed(f.ScheduleID)
			continue
		}
		c.breakPromise(f.VMID)
		c.open.put(f.VMID, c.ranks.of[f.VMID])
	}
}

// String shows what waits, for scenario files.
func (c *Core) String() string {
	return "open=[" + strings.Join(c.open.ids(), ",") + "] blocked=[" + strings.Join(slices.Sorted(maps.Keys(c.blocked)), ",") + "]"
}

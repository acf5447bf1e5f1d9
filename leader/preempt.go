package leader

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/scheduler"
	"github.com/blixard/blixard/state"
)

const (
	// preemptTries of a decision: each may look at some hundred nodes. VMs beyond that stay
	// open and have their turn in the next.
	preemptTries = 16
	// victimsNamed in the sentence that goes into the state.
	victimsNamed = 5
)

// promise is room that is made for a VM. While it stands the VM takes nothing more, and
// what becomes free of the room is not given to VMs of equal or lower priority: else they
// would take it piece by piece, and the VM preempt for ever.
type promise struct {
	node string // its id
	need *blixardv1.Resources
	rank rank
	// awaits are the allocations that must be gone first; without any left the promise is
	// fulfilled.
	awaits map[string]bool
	// generation and moveTo of the VM that it was made to.
	generation uint64
	moveTo     string
	// unsure: the node changed, and may be none for the VM any more.
	unsure bool
	// held: the fleet keeps the room.
	held bool
}

// preemptLevel is the feature level of PreemptCommand.
var preemptLevel = state.Level(&blixardv1.Command{Change: &blixardv1.Command_Preempt{Preempt: &blixardv1.PreemptCommand{}}})

// mayPreempt reports whether it makes sense to look for VMs that make room for this one.
func (c *Core) mayPreempt(view View, vm *blixardv1.VM) bool {
	return c.fleet.AnyBelow(state.Priority(vm.GetSpec())) && view.FeatureLevel() >= preemptLevel
}

// preempt makes room for a VM that found none, and says so in d; it leaves d and gives
// nothing when there is no way. The promise holds from here on.
func (c *Core) preempt(view View, vm *blixardv1.VM, d *scheduler.Decision) []*blixardv1.Command {
	c.tries--
	p := c.fleet.Preempt(view, vm, c.awaited)
	if p == nil {
		return nil
	}
	made := &promise{
		node: p.Node.GetId(), need: state.Need(view, vm.GetSpec()), rank: c.ranks.of[vm.GetId()], awaits: map[string]bool{},
		generation: vm.GetGeneration(), moveTo: vm.GetMoveTo(),
	}
	cmd := &blixardv1.PreemptCommand{VmId: vm.GetId()}
	var names []string
	for _, a := range p.Awaited {
		made.awaits[a.GetId()] = true
	}
	for _, a := range p.Victims {
		made.awaits[a.GetId()] = true
		cmd.AllocationIds = append(cmd.AllocationIds, a.GetId())
		names = append(names, a.GetVmName())
	}
	c.promises[vm.GetId()] = made
	if len(names) == 0 {
		d.Message = fmt.Sprintf("node %s has room as soon as it has removed what is going", p.Node.GetName())
		return nil
	}
	d.Reason, d.Message = scheduler.ReasonPreempting, fmt.Sprintf("on node %s %s of lower priority", p.Node.GetName(), makeRoom(names))
	return []*blixardv1.Command{{Change: &blixardv1.Command_Preempt{Preempt: cmd}}}
}

func makeRoom(names []string) string {
	slices.Sort(names)
	if len(names) == 1 {
		return "VM " + names[0] + " makes room, which is"
	}
	text := strings.Join(names[:min(len(names), victimsNamed)], ", ")
	if more := len(names) - victimsNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return "VMs " + text + " make room, which are"
}

// awaited reports whether an allocation was to be taken off by this leader, also when the
// view does not say so yet.
func (c *Core) awaited(allocationID string) bool {
	for _, p := range c.promises {
		if p.awaits[allocationID] {
			return true
		}
	}
	return false
}

// breakPromise forgets what was promised to a VM. Others may have the room now.
func (c *Core) breakPromise(vmID string) {
	if c.promises[vmID] == nil {
		return
	}
	delete(c.promises, vmID)
	c.wake(func(*blocked) bool { return true })
}

// left takes in that an allocation changed: one that is gone fulfils promises, and one on
// a tainted node may have to go.
func (c *Core) left(ch state.Change) {
	a := ch.Allocation
	if c.tainted[a.GetNodeId()] {
		c.draining[a.GetNodeId()] = true
	}
	if !ch.Deleted {
		return
	}
	for id, p := range c.promises {
		if delete(p.awaits, a.GetId()); len(p.awaits) == 0 {
			c.breakPromise(id) // it wakes the VM, too
		}
	}
}

// stir takes in that a node changed: what was promised there may not come, and others may
// find VMs that make room.
func (c *Core) stir(n *blixardv1.Node) {
	c.stirred = true
	for _, p := range c.promises {
		if p.node == n.GetId() {
			p.unsure = true
		}
	}
}

// keepPromises takes back what can't come any more, and lets VMs look again that found
// nobody who makes room. The fleet has followed the view.
func (c *Core) keepPromises(view View) {
	for id, p := range c.promises {
		p.held = false
		if p.unsure && !c.fleet.Eligible(view, view.VM(id), p.node) {
			c.breakPromise(id)
		}
		p.unsure = false
	}
	// Those that were left over come first, or they might never have their turn.
	if c.tries == 0 {
		c.tries = preemptTries
		return
	}
	c.tries = preemptTries
	if c.stirred && c.Preemption {
		for id := range c.blocked {
			if c.promises[id] == nil && c.fleet.AnyBelow(c.ranks.of[id].priority) {
				c.wakeOne(id)
			}
		}
	}
	c.stirred = false
}

// claims is what promises keep from others, in the order in which VMs are placed.
type claims struct {
	core *Core
	ids  []string // of the VMs with promises, by rank
	next int
}

func (c *Core) newClaims() *claims {
	out := &claims{core: c}
	for id := range c.promises {
		out.ids = append(out.ids, id)
	}
	slices.SortFunc(out.ids, func(a, b string) int {
		return cmp.Or(cmp.Compare(c.promises[b].rank.priority, c.promises[a].rank.priority), cmp.Compare(a, b))
	})
	return out
}

// holdBefore keeps the room of promises to VMs of at least the priority of the one that
// is placed next, but for its own.
func (l *claims) holdBefore(id string) {
	priority := l.core.ranks.of[id].priority
	for ; l.next < len(l.ids); l.next++ {
		p := l.core.promises[l.ids[l.next]]
		if p != nil && p.rank.priority < priority {
			break
		}
		l.hold(p)
	}
	if p := l.core.promises[id]; p != nil && p.held {
		l.core.fleet.Release(p.node, p.need)
		p.held = false
	}
}

// holdAfter keeps the room of a promise to the VM that was just looked at.
func (l *claims) holdAfter(id string) { l.hold(l.core.promises[id]) }

func (l *claims) hold(p *promise) {
	if p != nil && !p.held {
		l.core.fleet.Hold(p.node, p.need)
		p.held = true
	}
}

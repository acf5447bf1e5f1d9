package state

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// Reasons of evictions.
const (
	EvictDrain = "drain"
	EvictTaint = "taint"
	// evictDeadline is of a drain whose deadline is over.
	evictDeadline = "drain_deadline"
)

// drainNode begins or ends a drain. To begin one again that is the same changes nothing.
func (b *batch) drainNode(c *blixardv1.DrainNodeCommand) Result {
	old, why := b.presentNode(c.GetNode())
	if why != nil {
		return refused(b.index, why)
	}
	if c.GetDeadline() != nil && (!c.GetDrain() || !c.GetGradual() || c.GetDeadline().AsDuration() <= 0) {
		return refused(b.index, problem.New(problem.Invalid, "drain.deadline", "only a drain in steps has a deadline, and it is above 0").
			WithHint("write `blixard node drain %s --deadline 10m`, without --force", old.GetName()))
	}
	d := old.GetDrain()
	if old.GetDraining() == c.GetDrain() && c.GetGradual() == (d != nil) && proto.Equal(d.GetDeadline(), c.GetDeadline()) {
		return Result{Index: b.index, Node: old}
	}
	n := copyNode(old)
	n.Draining, n.Drain = c.GetDrain(), nil
	kind, message := "node.draining", "its VMs go elsewhere and no more are placed on it"
	switch {
	case !c.GetDrain():
		kind, message = "node.drained_end", "it may have VMs again"
	case c.GetGradual():
		n.Drain = &blixardv1.NodeDrain{
			State: blixardv1.DrainState_moving, Deadline: c.GetDeadline(), Left: c.GetDeadline(), BegunIndex: b.index, BegunAt: b.time,
		}
		if c.GetDeadline() != nil {
			message += fmt.Sprintf("; what is left after %v is stopped", c.GetDeadline().AsDuration())
		}
	}
	b.putNode(n)
	b.nodeEvent(n, kind, "", message)
	return Result{Index: b.index, Node: n}
}

func (b *batch) nodeEvent(n *blixardv1.Node, kind, reason, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "node", ObjectId: n.GetId(), ObjectName: n.GetName(), Node: n.GetName(), Reason: reason, Message: message})
}

// advanceDrain carries a drain on.
//
// Invariant: the time that is left never grows, and a deadline that is over stays over, so
// that a change of leader prolongs a drain by no more than what was not noted yet.
func (b *batch) advanceDrain(c *blixardv1.AdvanceDrainCommand) Result {
	old := b.node(c.GetNodeId())
	if why := b.checkAdvance(old, c); why != nil {
		return refused(b.index, why)
	}
	d := proto.CloneOf(old.GetDrain())
	before, was := d.GetState(), d.GetExpired()
	d.State, d.Message, d.Expired = c.GetState(), c.GetMessage(), was || c.GetExpired()
	if c.GetLeft() != nil {
		d.Left = c.GetLeft()
	}
	reason, words := EvictDrain, "it leaves its node and is placed again"
	if d.GetExpired() {
		reason, words = evictDeadline, "the deadline of its node's drain is over: it is stopped, and placed again when there is room"
	}
	r := Result{Index: b.index}
	for _, id := range c.GetAllocationIds() {
		a := b.allocation(id)
		if Going(a) {
			continue
		}
		if why := drains(a, old); why != nil {
			r.Refused = append(r.Refused, Refusal{AllocationID: id, VMID: a.GetVmId(), Problem: why})
			continue
		}
		vm := b.vm(a.GetVmId())
		if vm != nil && b.stopAllocation(a, vm, blixardv1.DesiredAllocation_remove, false, 0) {
			d.Evicted++
			b.vmEvent(vm, "vm.evicted", reason, words)
		}
	}
	n := copyNode(old)
	n.Drain = d
	b.putNode(n)
	r.Node = n
	if d.GetExpired() && !was {
		b.nodeEvent(n, "node.drain_expired", "", fmt.Sprintf("the deadline of %v is over: VMs that are left are stopped", d.GetDeadline().AsDuration()))
	}
	if d.GetState() != before {
		kind := map[blixardv1.DrainState_Enum]string{
			blixardv1.DrainState_moving: "node.drain_moving", blixardv1.DrainState_blocked: "node.drain_blocked", blixardv1.DrainState_done: "node.drained",
		}[d.GetState()]
		b.nodeEvent(n, kind, "", d.GetMessage())
	}
	return r
}

// checkAdvance tells why a drain can't go on in that way.
func (b *batch) checkAdvance(n *blixardv1.Node, c *blixardv1.AdvanceDrainCommand) *problem.Error {
	d := n.GetDrain()
	left := c.GetLeft().AsDuration()
	switch {
	case d == nil || d.GetBegunIndex() != c.GetBegunIndex():
		return problem.New(problem.Conflict, "drain.other", "the drain of index %d is over", c.GetBegunIndex())
	case c.GetState() == blixardv1.DrainState_unspecified:
		return problem.New(problem.Invalid, "drain.state", "a drain has a state")
	case c.GetExpired() && d.GetDeadline() == nil:
		return problem.New(problem.Invalid, "drain.deadline", "the drain of node %q has no deadline", n.GetName())
	case c.GetLeft() != nil && !planted.Is(planted.DrainGrows) && (d.GetLeft() == nil || left < 0 || left > d.GetLeft().AsDuration()):
		return problem.New(problem.Conflict, "drain.left", "the drain of node %q has %v left, which can't become %v", n.GetName(), d.GetLeft().AsDuration(), left)
	case c.GetState() == blixardv1.DrainState_done && !planted.Is(planted.DrainDoneEarly) && slices.ContainsFunc(notLost(all[blixardv1.Allocation](b.db, tableAllocation, indexNode, n.GetId())), leaves):
		return problem.New(problem.Conflict, "drain.not_done", "node %q still has VMs that are to leave it", n.GetName())
	}
	return nil
}

// leaves reports whether a drain of its node takes an allocation off, or has done so.
func leaves(a *blixardv1.Allocation) bool {
	return Stays(a) == "" || a.GetDesired() == blixardv1.DesiredAllocation_remove
}

// drains tells why a drain of a node does not take an allocation off.
func drains(a *blixardv1.Allocation, n *blixardv1.Node) *problem.Error {
	if a.GetNodeId() != n.GetId() {
		return problem.New(problem.Conflict, "drain.elsewhere", "VM %q is not on node %q", a.GetVmName(), n.GetName())
	}
	if why := Stays(a); why != "" && !planted.Is(planted.KeptDrained) {
		return problem.New(problem.Conflict, "drain.stays", "VM %q stays: %s", a.GetVmName(), why)
	}
	return nil
}

// evict takes VMs off their nodes. What is gone already is passed over.
func (b *batch) evict(c *blixardv1.EvictCommand) Result {
	why := "it leaves its node and is placed again"
	if c.GetReason() == EvictTaint {
		why = "it does not tolerate a taint of its node, leaves it and is placed again"
	}
	for _, id := range c.GetAllocationIds() {
		a := b.allocation(id)
		if a == nil {
			continue
		}
		vm := b.vm(a.GetVmId())
		if vm != nil && b.stopAllocation(a, vm, blixardv1.DesiredAllocation_remove, false, 0) {
			b.vmEvent(vm, "vm.evicted", c.GetReason(), why)
		}
	}
	return Result{Index: b.index}
}

// Runs reports whether a VM shall run and so needs a place.
func Runs(vm *blixardv1.VM) bool {
	return vm != nil && !vm.GetDeleting() && vm.GetSpec().GetDesired() == blixardv1.DesiredState_run
}

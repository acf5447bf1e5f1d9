package state

import (
	"fmt"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// PriorityMax is the highest priority of a VM, and PriorityDefault that of one which names
// none. The lowest is 0.
const (
	PriorityMax     = 100
	PriorityDefault = 50
)

// Priority of a VM with that spec, from 0 to PriorityMax.
func Priority(spec *blixardv1.VMSpec) uint32 {
	s := spec.GetScheduling()
	if s == nil || s.Priority == nil {
		return PriorityDefault
	}
	return min(s.GetPriority(), PriorityMax)
}

// Yields reports whether the VM of an allocation may be taken off its node to make room
// for a VM of that spec: it is of lower priority, does not stay, and is not going anyway.
func Yields(a *blixardv1.Allocation, to *blixardv1.VMSpec) bool {
	return !Going(a) && yields(a, to) == nil
}

// Going reports whether an allocation leaves its node: it is removed, or was given up.
func Going(a *blixardv1.Allocation) bool {
	return a == nil || Lost(a) || a.GetDesired() == blixardv1.DesiredAllocation_remove
}

// yields tells why an allocation is not taken off to make room.
//
// Invariant: what makes room has a priority that is lower, not equal. So a VM never takes
// back the room that was taken from it, and preemption comes to an end.
func yields(a *blixardv1.Allocation, to *blixardv1.VMSpec) *problem.Error {
	own, other := Priority(a.GetSpec()), Priority(to)
	if own > other || own == other && !planted.Is(planted.EqualsPreempted) {
		return problem.New(problem.Conflict, "preempt.priority", "VM %q has priority %d, which is not below %d", a.GetVmName(), own, other)
	}
	if why := Stays(a); why != "" && !planted.Is(planted.KeptPreempted) {
		return problem.New(problem.Conflict, "preempt.stays", "VM %q stays: %s", a.GetVmName(), why)
	}
	return nil
}

// preempt takes VMs off their node to make room for one that waits. It looks at
// priorities as they are now, and does all or nothing: part of the room would be of no
// use to who waits, and the harm done. What is going already is passed over.
func (b *batch) preempt(c *blixardv1.PreemptCommand) Result {
	vm := b.vm(c.GetVmId())
	no := func(id string, why *problem.Error) Result {
		return Result{Index: b.index, Problem: why, Refused: []Refusal{{AllocationID: id, VMID: c.GetVmId(), Problem: why}}}
	}
	if vm == nil || vm.GetDeleting() || vm.GetSpec().GetDesired() != blixardv1.DesiredState_run || len(notLost(b.allocationsOf(vm))) > 0 {
		return no("", problem.New(problem.Conflict, "preempt.unwanted", "VM %q does not wait for a node any more", c.GetVmId()))
	}
	var going []*blixardv1.Allocation
	for _, id := range c.GetAllocationIds() {
		a := b.allocation(id)
		if Going(a) {
			continue
		}
		if why := yields(a, vm.GetSpec()); why != nil {
			return no(id, why)
		}
		going = append(going, a)
	}
	for _, a := range going {
		victim := b.vm(a.GetVmId())
		if victim == nil || !b.stopAllocation(b.allocation(a.GetId()), victim, blixardv1.DesiredAllocation_remove, false, 0) {
			continue // named twice
		}
		b.vmEvent(victim, "vm.preempted", "preempted", fmt.Sprintf("it makes room for VM %s of priority %d, its own is %d, and waits for another place",
			vm.GetName(), Priority(vm.GetSpec()), Priority(victim.GetSpec())))
	}
	return Result{Index: b.index, VM: vm}
}

package state

import (
	"slices"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// lose gives up placements of nodes that are down. Each is checked and refused by
// itself.
func (b *batch) lose(c *blixardv1.LoseCommand) Result {
	r := Result{Index: b.index}
	if c.GetStorm() != "" {
		b.event(&blixardv1.Event{Kind: "cluster.storm", ObjectKind: "cluster", ObjectId: b.cluster().GetId(), ObjectName: "cluster", Reason: "storm", Message: c.GetStorm()})
	}
	for _, id := range c.GetAllocationIds() {
		if why := b.loseOne(id); why != nil {
			r.Refused = append(r.Refused, Refusal{AllocationID: id, VMID: b.allocation(id).GetVmId(), Problem: why})
		}
	}
	return r
}

// loseOne makes room for another placement of a VM. The given-up one keeps what it
// reserved until its node, once it is back, has removed it: it may run there.
//
// Of an exclusive VM it is certain that it does not. A node is down only after its
// lease is over on any clock, and gets no other one before an entry of the log says
// that it is ready; that entry comes before this one, which is then refused, or after.
func (b *batch) loseOne(id string) *problem.Error {
	a := b.allocation(id)
	if a == nil || Lost(a) {
		return nil
	}
	n := b.node(a.GetNodeId())
	if n.GetState() != blixardv1.NodeState_down {
		return problem.New(problem.Conflict, "allocation.node_heard", "node %q is %s: VM %q stays there", n.GetName(), n.GetState(), a.GetVmName())
	}
	vm := b.vm(a.GetVmId())
	if why := Keeps(vm, a); why != "" {
		return problem.New(problem.Conflict, "allocation.kept", "VM %q stays on node %q: %s", a.GetVmName(), n.GetName(), why)
	}
	lost := proto.CloneOf(a.GetStatus())
	lost.State, lost.Reason, lost.Message = stLost, "node_lost", "node "+n.GetName()+" is down; the VM is placed elsewhere"
	next := copyAllocation(a)
	next.Status, next.Desired = lost, blixardv1.DesiredAllocation_remove
	b.putAllocation(next)
	b.allocationEvent(next, "allocation.lost", lost)
	if vm.GetStatus().GetEpoch() != a.GetEpoch() {
		return nil
	}
	moving := copyVM(vm)
	moving.Status = &blixardv1.VMStatus{
		State: stPending, Epoch: a.GetEpoch(), Restarts: a.GetStatus().GetRestarts(), Reason: lost.GetReason(),
		Message: "node " + n.GetName() + " is down; the VM is placed again",
	}
	b.putVM(moving)
	return nil
}

// Lost reports whether the cluster gave a placement up. It ends when its node says
// that nothing is left of it, and what the node says of it before that changes nothing.
func Lost(a *blixardv1.Allocation) bool { return a.GetStatus().GetState() == stLost }

// notLost leaves out what was given up.
func notLost(all []*blixardv1.Allocation) []*blixardv1.Allocation {
	return slices.DeleteFunc(slices.Clone(all), Lost)
}

// Stays tells why a VM is not taken off a node that is being emptied; empty when it is.
func Stays(a *blixardv1.Allocation) string {
	switch {
	case len(a.GetVolumes()) > 0:
		return "its volumes are there"
	case a.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_keep:
		return "it is kept on its node"
	}
	return ""
}

// Keeps tells why a VM is not placed elsewhere when the node of its placement is
// down; empty when it is. A VM that shall not run, or has done what it was for, needs
// no other place.
func Keeps(vm *blixardv1.VM, a *blixardv1.Allocation) string {
	switch policy := vm.GetSpec().GetOnNodeLoss(); {
	case vm == nil || vm.GetDeleting():
		return "it is being deleted"
	case policy != blixardv1.NodeLossPolicy_replace && policy != blixardv1.NodeLossPolicy_failover:
		return "it is kept on its node"
	case vm.GetSpec().GetDesired() != blixardv1.DesiredState_run:
		return "it shall not run"
	case len(a.GetVolumes()) > 0:
		return "its volumes are there"
	case a.GetStatus().GetState() != stUnknown:
		return "it had ended"
	}
	return ""
}

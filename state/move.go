package state

import (
	"fmt"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// moveVM takes a VM off its node and says where it is placed next. Nothing is moved
// here: its volumes follow by commands of their own, and it waits for them.
func (b *batch) moveVM(c *blixardv1.MoveVMCommand) Result {
	old, why := b.changeableByHand(c.GetName(), c.GetExpectedIndex())
	if why != nil {
		return refused(b.index, why)
	}
	if c.GetToNodeId() == "" {
		return b.endMove(old)
	}
	to, why := b.presentNode(c.GetToNodeId())
	if why != nil {
		return refused(b.index, why)
	}
	var here []*blixardv1.Allocation
	for _, a := range notLost(b.allocationsOf(old)) {
		if a.GetNodeId() == to.GetId() && a.GetDesired() != blixardv1.DesiredAllocation_remove {
			return b.endMove(old) // it is there
		}
		if n := b.node(a.GetNodeId()); n.GetState() == blixardv1.NodeState_down {
			return refused(b.index, problem.New(problem.Unavailable, "move.node_down", "node %q is down, and VM %q may be running there", n.GetName(), old.GetName()).
				WithHint("wait until it is back; or give it up: blixard cluster remove %s --force", n.GetName()))
		}
		here = append(here, a)
	}
	if why := b.volumesMovable(old, to); why != nil {
		return refused(b.index, why)
	}
	vm := copyVM(old)
	vm.MoveTo = to.GetId()
	b.putVM(vm)
	for _, a := range here {
		b.stopAllocation(a, vm, blixardv1.DesiredAllocation_remove, c.GetForce(), c.GetTimeoutMs())
	}
	if old.GetMoveTo() != vm.GetMoveTo() {
		b.vmEvent(vm, "vm.moving", "move", "it moves to node "+to.GetName())
	}
	return Result{Index: b.index, VM: vm}
}

func (b *batch) endMove(old *blixardv1.VM) Result {
	if old.GetMoveTo() == "" {
		return Result{Index: b.index, VM: old}
	}
	vm := copyVM(old)
	vm.MoveTo = ""
	b.putVM(vm)
	b.vmEvent(vm, "vm.move_ended", "move", "it is placed where it can be")
	return Result{Index: b.index, VM: vm}
}

// volumesMovable refuses a move that a volume would hold up: one that another VM uses, or
// for which there is no room.
func (b *batch) volumesMovable(vm *blixardv1.VM, to *blixardv1.Node) *problem.Error {
	bytes := uint64(0)
	for _, at := range vm.GetSpec().GetVolumes() {
		v := b.volume(at.GetVolume())
		if v == nil || v.GetNodeId() == "" || v.GetNodeId() == to.GetId() {
			continue
		}
		bytes += v.GetSizeBytes()
		for _, id := range v.GetVmIds() {
			other := b.vm(id)
			if id != vm.GetId() && other != nil && len(b.allocationsOf(other)) > 0 {
				return problem.New(problem.Conflict, "volume.in_use", "volume %q of VM %q is also in use by VM %q", v.GetName(), vm.GetName(), other.GetName()).
					WithHint("stop that VM and take the volume from it: blixard volume detach %s %s", other.GetName(), v.GetName())
			}
		}
	}
	if bytes == 0 {
		return nil
	}
	return checkDisk(b, fmt.Sprintf("the volumes of VM %q", vm.GetName()), to, bytes)
}

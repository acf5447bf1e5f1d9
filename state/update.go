package state

import (
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
)

// updateVM replaces the spec of a VM. What it wishes for (run, stop) stays as it is.
// Volumes and networks of a VM that may be running can't change: they are in use.
func (b *batch) updateVM(c *blixardv1.UpdateVMCommand) Result {
	old, why := b.changeableByHand(c.GetName(), c.GetExpectedIndex())
	if why != nil {
		return refused(b.index, why)
	}
	vm := copyVM(old)
	vm.Spec = proto.CloneOf(c.GetSpec())
	vm.Spec.Desired = old.GetSpec().GetDesired()
	if proto.Equal(vm.Spec, old.GetSpec()) {
		return Result{Index: b.index, VM: old}
	}
	allocations := b.allocationsOf(old)
	if why := b.updatable(vm, old, allocations); why != nil {
		return refused(b.index, why)
	}
	if why := b.claimAll(vm, old); why != nil {
		return refused(b.index, why)
	}
	vm.Generation++
	for _, a := range allocations {
		if !Lost(a) {
			b.respec(a, vm)
		}
	}
	b.putVM(vm)
	b.vmEvent(vm, "vm.updated", "", "the spec was replaced")
	return Result{Index: b.index, VM: vm}
}

// updatable checks what a placed VM may become.
func (b *batch) updatable(vm, old *blixardv1.VM, allocations []*blixardv1.Allocation) *problem.Error {
	laneChanges := (vm.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_failover) != (old.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_failover)
	var moved, field string
	switch {
	case !sameVolumes(vm.GetSpec(), old.GetSpec()):
		moved, field = "volumes", "volumes"
	case !sameNetworks(vm.GetSpec(), old.GetSpec()):
		moved, field = "networks", "networks"
	case laneChanges:
		moved, field = "policy for the loss of its node", "on_node_loss"
	}
	for _, a := range allocations {
		if Lost(a) {
			continue
		}
		if moved != "" && (a.GetDesired() == blixardv1.DesiredAllocation_run || !Ended(a.GetStatus().GetState())) {
			return problem.New(problem.Conflict, "vm.running", "the %s of VM %q can't change while it runs: a restart is needed", moved, vm.GetName()).
				WithHint("stop it first: blixard vm stop %s; then repeat this, and start it again", vm.GetName()).WithField("spec.%s", field)
		}
		if vm.GetSpec().GetDiskBytes() < old.GetSpec().GetDiskBytes() {
			return problem.New(problem.Invalid, "vm.disk_shrinks", "the root disk of VM %q can't become smaller", vm.GetName()).
				WithHint("make another VM with a smaller disk").WithField("spec.disk_bytes")
		}
		node := b.node(a.GetNodeId())
		if node == nil {
			continue
		}
		has, next := b.s.limits.Reservation(a.GetSpec()), Need(b, vm.GetSpec())
		short, ok := Fits(node.GetAllocatable(), sub(Reserved(node), has), next)
		// A disk may be given twice since before volumes were counted: what takes no more of
		// it is possible.
		if !ok && (short != "disk" || next.GetDiskBytes() > has.GetDiskBytes()) {
			return problem.New(problem.NoCapacity, "placement.no_room", "node %q has no room for that: %s is short", node.GetName(), short).
				WithHint("%s", roomHint(short))
		}
		for i, at := range vm.GetSpec().GetVolumes() {
			if v := b.volume(at.GetVolume()); v.GetNodeId() != "" && v.GetNodeId() != a.GetNodeId() {
				return problem.New(problem.Conflict, "placement.volume_elsewhere", "volume %q is on node %q, the VM on %q", v.GetName(), v.GetNode(), node.GetName()).
					WithHint("move the volume: blixard volume move %s %s", v.GetName(), node.GetName()).WithField("spec.volumes[%d]", i)
			}
		}
	}
	return nil
}

func sameVolumes(a, b *blixardv1.VMSpec) bool {
	return proto.Equal(&blixardv1.VMSpec{Volumes: a.GetVolumes()}, &blixardv1.VMSpec{Volumes: b.GetVolumes()})
}

func sameNetworks(a, b *blixardv1.VMSpec) bool {
	return proto.Equal(&blixardv1.VMSpec{Networks: a.GetNetworks()}, &blixardv1.VMSpec{Networks: b.GetNetworks()})
}

// respec gives an allocation the VM's newest spec, and reserves by that.
func (b *batch) respec(a *blixardv1.Allocation, vm *blixardv1.VM) {
	node := b.node(a.GetNodeId())
	if node != nil {
		n := copyNode(node)
		n.Allocated = add(sub(node.GetAllocated(), b.s.limits.Reservation(a.GetSpec())), b.s.limits.Reservation(vm.GetSpec()))
		b.putNode(n)
	}
	next := copyAllocation(a)
	next.Spec, next.Generation, next.Interfaces = vm.GetSpec(), vm.GetGeneration(), vm.GetInterfaces()
	if node != nil && !sameVolumes(vm.GetSpec(), a.GetSpec()) {
		given, why := b.giveVolumes(vm.GetSpec().GetVolumes(), node)
		if why == nil { // updatable saw that it fits
			next.Volumes = given
		}
	}
	b.putAllocation(next)
}

// renameVM gives a VM another name. Its host name follows with the next start.
func (b *batch) renameVM(c *blixardv1.RenameVMCommand) Result {
	old, why := b.changeableByHand(c.GetName(), c.GetExpectedIndex())
	if why != nil {
		return refused(b.index, why)
	}
	switch {
	case old.GetName() == c.GetNewName():
		return Result{Index: b.index, VM: old}
	case c.GetNewName() == "" || idPattern.MatchString(c.GetNewName()):
		return refused(b.index, problem.New(problem.Invalid, "vm.name_is_id", "the name %q looks like an id", c.GetNewName()).
			WithHint("choose a name that does not begin with vm- or task- and 16 letters or digits"))
	case objectname.Qualified(old.GetName()) && !objectname.Qualified(c.GetNewName()):
		return refused(b.index, problem.New(problem.Invalid, "name.other_project", "VM %q stays in its project, and %q is a name of project %q", old.GetName(), c.GetNewName(), DefaultProject).
			WithHint("write the new name as %s", objectname.Beside(old.GetName(), c.GetNewName())))
	}
	if why := checkName(c.GetNewName(), old.GetProject()); why != nil {
		return refused(b.index, why)
	}
	if other := b.vm(c.GetNewName()); other != nil && other.GetId() != old.GetId() {
		return refused(b.index, problem.New(problem.Conflict, "vm.name_taken", "there is a VM %q already", c.GetNewName()).
			WithHint("choose another name"))
	}
	vm := copyVM(old)
	vm.Name = c.GetNewName()
	delete(b.byName, old.GetName())
	b.putVM(vm)
	// Written at once: who takes the old name in the same batch must not lose it to
	// the leaving of this one.
	insert(b.db, tableVM, vm)
	for _, a := range b.allocationsOf(vm) {
		next := copyAllocation(a)
		next.VmName = vm.GetName()
		b.putAllocation(next)
	}
	b.vmEvent(vm, "vm.renamed", "", "the name was "+old.GetName())
	return Result{Index: b.index, VM: vm}
}

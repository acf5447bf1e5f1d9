package state

import (
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/invariant"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// place applies a plan. Each placement is checked against the state as it is
// now, which may have moved since the plan was made, and refused by itself.
func (b *batch) place(c *blixardv1.PlaceCommand) Result {
	r := Result{Index: b.index}
	var workers map[string]int
	if c.GetBoundsTasks() {
		workers = map[string]int{}
	}
	for _, p := range c.GetPlacements() {
		if why := b.placeOne(p, workers); why != nil {
			r.Refused = append(r.Refused, Refusal{AllocationID: p.GetAllocationId(), VMID: p.GetVmId(), Problem: why})
		}
	}
	if n := len(r.Refused); n > 0 && n == len(c.GetPlacements()) {
		r.Problem = r.Refused[0].Problem
	}
	return r
}

// placeOne applies one placement. workers are as in [batch.takesTask]; nil where nodes take
// all tasks.
func (b *batch) placeOne(p *blixardv1.Placement, workers map[string]int) *problem.Error {
	vm, node, why := b.placeable(p)
	if why != nil {
		return why
	}
	bounded := workers != nil && vm.GetTask() != ""
	if bounded {
		if why := b.takesTask(node, vm, workers); why != nil {
			return why
		}
	}
	if short, ok := Fits(node.GetAllocatable(), Reserved(node), Need(b, vm.GetSpec())); !ok {
		return problem.New(problem.NoCapacity, "placement.no_room", "node %q has no room for VM %q: %s is short",
			node.GetName(), vm.GetName(), short).
			WithHint("%s", roomHint(short))
	}
	volumes, why := b.giveVolumes(vm.GetSpec().GetVolumes(), node)
	if why != nil {
		return why
	}
	n := copyNode(b.node(node.GetId())) // which has the volumes by now
	n.Allocated = add(n.GetAllocated(), b.s.limits.Reservation(vm.GetSpec()))
	b.putNode(n)

	epoch := vm.GetStatus().GetEpoch() + 1
	if planted.Is(planted.EpochNotRaised) {
		epoch = max(vm.GetStatus().GetEpoch(), 1)
	}
	status := &blixardv1.VMStatus{
		State: stPending, Node: node.GetName(), AllocationId: p.GetAllocationId(), Epoch: epoch,
		Restarts: vm.GetStatus().GetRestarts(), Reason: "placed",
		Message: "placed on node " + node.GetName(),
	}
	a := &blixardv1.Allocation{
		Id: p.GetAllocationId(), VmId: vm.GetId(), VmName: vm.GetName(), NodeId: node.GetId(), Epoch: epoch,
		Desired: blixardv1.DesiredAllocation_run, Spec: vm.GetSpec(), Generation: vm.GetGeneration(),
		StartCount: 1, Status: status, CreateIndex: b.index, Interfaces: vm.GetInterfaces(), Volumes: volumes,
	}
	if vm.GetTask() != "" {
		t := b.task(vm.GetTask())
		a.KeepOutput, a.Once = durationpb.New(TaskKeep(t.GetSpec())), atMostOnce(t)
		a.Artifacts = t.GetSpec().GetArtifacts()
	}
	b.putAllocation(a)
	if bounded {
		workers[node.GetId()]++
	}
	next := copyVM(vm)
	next.Status, next.MoveTo = status, ""
	b.putVM(next)
	b.allocationEvent(a, "allocation.placed", status)
	return nil
}

// roomHint is the way out where something is short on a node.
func roomHint(short string) string {
	if short == "disk" {
		return "delete VMs and volumes there, or give the VM less disk"
	}
	return "stop and delete VMs there, or give the VM less"
}

// takesTask checks what a node takes of tasks. workers are the attempts on the nodes that a
// plan was checked for, by the nodes' ids, so that each is counted once for all of a plan.
func (b *batch) takesTask(node *blixardv1.Node, vm *blixardv1.VM, workers map[string]int) *problem.Error {
	fp := node.GetFingerprint()
	if fp.GetRefusesTasks() {
		return problem.New(problem.Unavailable, "node.no_tasks", "node %q takes no tasks, and VM %q is an attempt of one", node.GetName(), vm.GetName())
	}
	if fp.GetTasksMax() == 0 {
		return nil
	}
	there, counted := workers[node.GetId()]
	if !counted {
		for _, a := range all[blixardv1.Allocation](b.db, tableAllocation, indexNode, node.GetId()) {
			if a.GetKeepOutput() != nil && !Lost(a) { // of a task
				there++
			}
		}
		workers[node.GetId()] = there
	}
	if !TaskFits(fp, there) {
		return problem.New(problem.NoCapacity, "placement.no_worker", "node %q runs %d tasks, and takes no more than %d", node.GetName(), there, fp.GetTasksMax())
	}
	return nil
}

// placeable checks all of a placement but the room.
func (b *batch) placeable(p *blixardv1.Placement) (*blixardv1.VM, *blixardv1.Node, *problem.Error) {
	vm := b.vm(p.GetVmId())
	if vm == nil {
		return nil, nil, problem.New(problem.NotFound, "vm.not_found", "there is no VM %q", p.GetVmId())
	}
	if vm.GetModifyIndex() != p.GetVmModifyIndex() {
		return nil, nil, problem.New(problem.Conflict, "placement.stale",
			"VM %q was changed at index %d after it was planned at %d", vm.GetName(), vm.GetModifyIndex(), p.GetVmModifyIndex())
	}
	if to := b.node(vm.GetMoveTo()); to != nil && to.GetId() != p.GetNodeId() && to.GetState() != blixardv1.NodeState_left {
		return nil, nil, problem.New(problem.Conflict, "placement.moving", "VM %q moves to node %q", vm.GetName(), to.GetName())
	}
	if vm.GetDeleting() || vm.GetSpec().GetDesired() != blixardv1.DesiredState_run {
		return nil, nil, problem.New(problem.Conflict, "placement.unwanted", "VM %q shall not run", vm.GetName())
	}
	for _, a := range b.allocationsOf(vm) {
		if !Lost(a) {
			return nil, nil, problem.New(problem.Conflict, "placement.placed", "VM %q is placed already, as %s", vm.GetName(), a.GetId())
		}
	}
	if p.GetAllocationId() == "" || b.allocation(p.GetAllocationId()) != nil {
		return nil, nil, problem.New(problem.Conflict, "placement.id_taken", "the allocation id %q is empty or taken", p.GetAllocationId())
	}
	node := b.node(p.GetNodeId())
	if node == nil {
		return nil, nil, problem.New(problem.NotFound, "node.not_found", "there is no node %q", p.GetNodeId())
	}
	if node.GetState() != blixardv1.NodeState_ready {
		return nil, nil, problem.New(problem.Unavailable, "node.not_ready", "node %q is %s", node.GetName(), node.GetState())
	}
	if node.GetDraining() {
		return nil, nil, problem.New(problem.Unavailable, "node.draining", "node %q is being emptied", node.GetName())
	}
	if node.GetCordoned() {
		return nil, nil, problem.New(problem.Unavailable, "node.cordoned", "node %q is cordoned", node.GetName())
	}
	if taint := constraint.Untolerated(node.GetTaints(), vm.GetSpec().GetScheduling(), blixardv1.TaintEffect_unspecified); taint != nil {
		return nil, nil, problem.New(problem.Unavailable, "node.tainted", "node %q has the taint %s, which VM %q does not tolerate", node.GetName(), constraint.TaintText(taint), vm.GetName())
	}
	if m := b.member(node.GetId()); m.GetRole() == blixardv1.MemberRole_witness {
		return nil, nil, problem.New(problem.Unavailable, "node.witness", "node %q is a witness and runs no VMs", node.GetName())
	}
	return vm, node, nil
}

// release gives back what a reserved.
func (b *batch) release(a *blixardv1.Allocation) {
	node := b.node(a.GetNodeId())
	if node == nil {
		return
	}
	n := copyNode(node)
	n.Allocated = sub(node.GetAllocated(), b.s.limits.Reservation(a.GetSpec()))
	b.putNode(n)
}

func add(a, more *blixardv1.Resources) *blixardv1.Resources {
	return &blixardv1.Resources{
		Vcpus:     a.GetVcpus() + more.GetVcpus(),
		MemoryMib: a.GetMemoryMib() + more.GetMemoryMib(),
		DiskBytes: a.GetDiskBytes() + more.GetDiskBytes(),
	}
}

func sub(a, less *blixardv1.Resources) *blixardv1.Resources {
	invariant.That(a.GetVcpus() >= less.GetVcpus() && a.GetMemoryMib() >= less.GetMemoryMib() &&
		a.GetDiskBytes() >= less.GetDiskBytes(),
		"released %v of %v: was an allocation counted twice?", less, a)
	return &blixardv1.Resources{
		Vcpus:     a.GetVcpus() - less.GetVcpus(),
		MemoryMib: a.GetMemoryMib() - less.GetMemoryMib(),
		DiskBytes: a.GetDiskBytes() - less.GetDiskBytes(),
	}
}

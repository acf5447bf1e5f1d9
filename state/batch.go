package state

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// batch is one transaction over several entries.
//
// VMs change far more often than anything else, and many times within a batch,
// so they are kept aside and written once when the batch ends; everything else
// is written at once.
type batch struct {
	s  *State
	db *database

	// byID and byName hold the VMs that the batch touched; nil for a dropped one.
	byID   map[string]*blixardv1.VM
	byName map[string]*blixardv1.VM
	// had: so many changes were kept when the batch began. Those of the batch itself stay
	// whole, else nobody could follow it.
	had int
	// level is 0 before it is asked for, and once a member changed.
	level uint32

	// Of the present entry.
	index  uint64
	time   *timestamppb.Timestamp
	actor  string
	number uint32
}

func newBatch(s *State) *batch {
	return &batch{
		s:      s,
		db:     s.db,
		byID:   map[string]*blixardv1.VM{},
		byName: map[string]*blixardv1.VM{},
		had:    len(s.changes),
	}
}

func (b *batch) begin(index uint64, cmd *blixardv1.Command) {
	b.index, b.time, b.actor, b.number = index, cmd.GetTime(), cmd.GetActor(), 0
}

func (b *batch) commit() {
	// A name may have gone from one VM to another, so drop before inserting.
	for id, vm := range b.byID {
		if vm != nil {
			continue
		}
		if old := first[blixardv1.VM](b.db, tableVM, indexID, id); old != nil {
			remove(b.db, tableVM, old)
		}
	}
	for _, vm := range b.byID {
		if vm != nil {
			insert(b.db, tableVM, vm)
		}
	}
	s := b.s
	if n := len(s.events) - s.limits.Events; n > 0 {
		s.events = s.events[n:]
	}
	kept := max(s.limits.Changes, count[blixardv1.VM](b.db, tableVM)/vmsPerChange, len(s.changes)-b.had)
	if n := len(s.changes) - kept; n > 0 {
		s.floor = s.changes[n-1].Index
		s.changes = s.changes[n:]
	}
}

// vm finds a VM by id or name, as named does.
func (b *batch) vm(ref string) *blixardv1.VM {
	if vm := b.vmNamed(ref); vm != nil {
		return vm
	}
	if own, ok := otherName(ref); ok {
		if vm := b.vmNamed(own); vm.GetName() == own && isOf(b.db, vm, ref) {
			return vm
		}
	}
	return nil
}

func (b *batch) vmNamed(ref string) *blixardv1.VM {
	if vm, ok := b.byID[ref]; ok {
		return vm
	}
	if vm, ok := b.byName[ref]; ok && vm != nil {
		return vm
	}
	vm := first[blixardv1.VM](b.db, tableVM, indexID, ref)
	if vm == nil {
		if vm = first[blixardv1.VM](b.db, tableVM, indexName, ref); vm == nil {
			return nil
		}
		if newer, ok := b.byID[vm.GetId()]; ok {
			vm = newer
		}
		if vm.GetName() != ref { // it was dropped, or renamed
			return nil
		}
	}
	return vm
}

// eachVM gives every VM to f, in no order that f may depend on.
func (b *batch) eachVM(f func(*blixardv1.VM)) {
	each(b.db, tableVM, func(vm *blixardv1.VM) {
		if _, touched := b.byID[vm.GetId()]; !touched {
			f(vm)
		}
	})
	for _, vm := range b.byID {
		if vm != nil {
			f(vm)
		}
	}
}

// changeable finds the VM that a command names and checks what all changes of a
// VM check.
func (b *batch) changeable(ref string, expected uint64) (*blixardv1.VM, *problem.Error) {
	vm := b.vm(ref)
	if vm == nil {
		return nil, problem.New(problem.NotFound, "vm.not_found", "there is no VM %q", ref).
			WithHint("`blixard vm list` shows the VMs")
	}
	if expected != 0 && expected != vm.GetModifyIndex() {
		return nil, problem.New(problem.Conflict, "vm.index_mismatch",
			"VM %q was changed at index %d, not %d", vm.GetName(), vm.GetModifyIndex(), expected).
			WithHint("read the VM again and repeat the change with its modify_index")
	}
	return vm, nil
}

// changeableByHand is what all changes check that a person makes to what a VM is or does.
func (b *batch) changeableByHand(ref string, expected uint64) (*blixardv1.VM, *problem.Error) {
	vm, why := b.changeable(ref, expected)
	switch {
	case why != nil:
		return nil, why
	case vm.GetDeleting():
		return nil, deletingProblem(vm)
	case vm.GetTask() != "":
		t := b.task(vm.GetTask())
		return nil, problem.New(problem.Conflict, "vm.of_task", "VM %q is an attempt of task %q", vm.GetName(), t.GetName()).
			WithHint("end it with `blixard task cancel %s`", t.GetName())
	case vm.GetReplica() != nil:
		return nil, b.ofGroup(vm)
	}
	return vm, nil
}

func deletingProblem(vm *blixardv1.VM) *problem.Error {
	return problem.New(problem.Conflict, "vm.deleting", "VM %q is being deleted", vm.GetName()).
		WithHint("wait until it is gone, or use another name")
}

// putVM writes vm, a fresh copy, as changed by the present entry.
func (b *batch) putVM(vm *blixardv1.VM) {
	vm.ModifyIndex = b.index
	if vm.GetReplica() != nil {
		b.noteReady(vm)
	}
	b.byID[vm.GetId()] = vm
	b.byName[vm.GetName()] = vm
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindVM, VM: vm})
	if vm.GetTask() != "" {
		b.followAttempt(vm, false)
	}
}

// dropVM removes vm; vm is its last form.
func (b *batch) dropVM(vm *blixardv1.VM) {
	vm.ModifyIndex = b.index
	b.releaseClaims(vm)
	recount(b.db, nil, vm)
	b.byID[vm.GetId()] = nil
	b.byName[vm.GetName()] = nil
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindVM, VM: vm, Deleted: true})
	b.vmEvent(vm, "vm.deleted", "", "the VM and everything of it is gone")
	if vm.GetTask() != "" {
		b.followAttempt(vm, true)
	}
	if vm.GetReplica() != nil {
		b.replicaGone(vm)
	}
}

func (b *batch) allocation(id string) *blixardv1.Allocation {
	return first[blixardv1.Allocation](b.db, tableAllocation, indexID, id)
}

func (b *batch) allocationsOf(vm *blixardv1.VM) []*blixardv1.Allocation {
	return all[blixardv1.Allocation](b.db, tableAllocation, indexVM, vm.GetId())
}

func (b *batch) putAllocation(a *blixardv1.Allocation) {
	a.ModifyIndex = b.index
	insert(b.db, tableAllocation, a)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindAllocation, Allocation: a})
}

func (b *batch) dropAllocation(a *blixardv1.Allocation) {
	remove(b.db, tableAllocation, a)
	a.ModifyIndex = b.index
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindAllocation, Allocation: a, Deleted: true})
}

func (b *batch) node(id string) *blixardv1.Node {
	return first[blixardv1.Node](b.db, tableNode, indexID, id)
}

func (b *batch) putNode(n *blixardv1.Node) {
	n.ModifyIndex = b.index
	insert(b.db, tableNode, n)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindNode, Node: n})
}

// event records what happened, for people.
func (b *batch) event(e *blixardv1.Event) {
	e.Index, e.Number, e.Time, e.Actor = b.index, b.number, b.time, b.actor
	b.number++
	b.s.events = append(b.s.events, e)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindEvent, Event: e})
}

func (b *batch) vmEvent(vm *blixardv1.VM, kind, reason, message string) {
	b.event(&blixardv1.Event{
		Kind: kind, ObjectKind: "vm", ObjectId: vm.GetId(), ObjectName: vm.GetName(),
		Node: vm.GetStatus().GetNode(), Reason: reason, Message: message,
	})
}

func (b *batch) allocationEvent(a *blixardv1.Allocation, kind string, st *blixardv1.VMStatus) {
	b.event(&blixardv1.Event{
		Kind: kind, ObjectKind: "allocation", ObjectId: a.GetId(), ObjectName: a.GetVmName(),
		Node: st.GetNode(), Reason: st.GetReason(), Message: st.GetMessage(),
	})
}

// copyVM is a copy that shares what it points to with vm.
func copyVM(vm *blixardv1.VM) *blixardv1.VM {
	return &blixardv1.VM{
		Id: vm.Id, Name: vm.Name, Spec: vm.Spec, Status: vm.Status, Generation: vm.Generation,
		CreateIndex: vm.CreateIndex, ModifyIndex: vm.ModifyIndex, CreatedAt: vm.CreatedAt,
		Deleting: vm.Deleting, Labels: vm.Labels, Interfaces: vm.Interfaces, MoveTo: vm.MoveTo, FailedOn: vm.FailedOn,
		Task:    vm.Task,
		Project: vm.Project,
		Replica: vm.Replica, ReadySince: vm.ReadySince,
	}
}

// copyAllocation is a copy that shares what it points to with a.
func copyAllocation(a *blixardv1.Allocation) *blixardv1.Allocation {
	return &blixardv1.Allocation{
		Id: a.Id, VmId: a.VmId, VmName: a.VmName, NodeId: a.NodeId, Epoch: a.Epoch, Desired: a.Desired,
		Spec: a.Spec, Generation: a.Generation, StartCount: a.StartCount, Status: a.Status,
		CreateIndex: a.CreateIndex, ModifyIndex: a.ModifyIndex, ForceStop: a.ForceStop, StopTimeout: a.StopTimeout,
		Interfaces: a.Interfaces, Volumes: a.Volumes, KeepOutput: a.KeepOutput, Once: a.Once, Artifacts: a.Artifacts,
	}
}

// copyNode is a copy that shares what it points to with n.
func copyNode(n *blixardv1.Node) *blixardv1.Node {
	return &blixardv1.Node{
		Id: n.Id, Name: n.Name, State: n.State, Fingerprint: n.Fingerprint, Incarnation: n.Incarnation,
		Allocated: n.Allocated, Allocatable: n.Allocatable, CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
		Draining: n.Draining, LongLease: n.LongLease, Labels: n.Labels, Cordoned: n.Cordoned,
		Downs: n.Downs, Damped: n.Damped, Taints: n.Taints, Drain: n.Drain, Busy: n.Busy, VolumeBytes: n.VolumeBytes,
	}
}

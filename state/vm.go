package state

import (
	"regexp"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// idPattern is what ids look like, and the names of VMs of tasks; a name of that form
// could be taken for one.
var idPattern = regexp.MustCompile(`^(vm-[a-z0-9]{16}|task-[a-z0-9]{16}(-[0-9]+)*)$`)

// Reasons of a VM that has no allocation.
const (
	reasonDeclared = "declared"
	reasonRemoved  = "allocation-removed"
)

func (b *batch) createVM(c *blixardv1.CreateVMCommand) Result {
	if c.GetId() == "" || c.GetName() == "" || c.GetSpec() == nil {
		return refused(b.index, problem.New(problem.Invalid, "vm.incomplete", "a VM needs an id, a name and a spec").
			WithHint("this is a fault of the proposer: report it"))
	}
	if idPattern.MatchString(c.GetName()) {
		return refused(b.index, problem.New(problem.Invalid, "vm.name_is_id", "the name %q looks like an id", c.GetName()).
			WithHint("choose a name that does not begin with vm- or task- and 16 letters or digits").WithField("name"))
	}
	if why := checkName(c.GetName(), c.GetProject()); why != nil {
		return refused(b.index, why)
	}
	if other := b.vm(c.GetName()); other != nil && !planted.Is(planted.NamesTakenTwice) {
		return refused(b.index, problem.New(problem.Conflict, "vm.name_taken", "there is a VM %q already", c.GetName()).
			WithHint("choose another name, or delete that VM first: blixard vm delete %s", c.GetName()).WithField("name"))
	}
	if other := b.vm(c.GetId()); other != nil {
		return refused(b.index, problem.New(problem.Conflict, "vm.id_taken", "the id %q is taken", c.GetId()).
			WithHint("repeat the request: a fresh id is chosen"))
	}
	vm := &blixardv1.VM{
		Id: c.GetId(), Name: c.GetName(), Spec: c.GetSpec(), Generation: 1,
		CreateIndex: b.index, CreatedAt: b.time, Labels: b.s.vocabulary.labelSet(c.GetLabels()), Project: storedProject(c.GetProject()),
		Status: &blixardv1.VMStatus{State: stPending, Reason: reasonDeclared},
	}
	if vm.Spec.GetDesired() == blixardv1.DesiredState_unspecified {
		vm.Spec = proto.CloneOf(vm.Spec)
		vm.Spec.Desired = blixardv1.DesiredState_run
		b.s.vocabulary.spec(vm.Spec)
	}
	if p := b.claimAll(vm, nil); p != nil {
		return refused(b.index, p)
	}
	b.putVM(vm)
	b.vmEvent(vm, "vm.created", reasonDeclared, "the VM was declared")
	return Result{Index: b.index, VM: vm}
}

func (b *batch) labelVM(c *blixardv1.LabelVMCommand) Result {
	old, p := b.changeable(c.GetName(), c.GetExpectedIndex())
	if p != nil {
		return refused(b.index, p)
	}
	if old.GetDeleting() {
		return refused(b.index, deletingProblem(old))
	}
	if old.GetReplica() != nil {
		return refused(b.index, b.ofGroup(old))
	}
	vm := copyVM(old)
	vm.Labels = b.s.vocabulary.labelSet(c.GetLabels())
	b.putVM(vm)
	b.vmEvent(vm, "vm.labeled", "", "the labels were replaced")
	return Result{Index: b.index, VM: vm}
}

func (b *batch) setVMDesired(c *blixardv1.SetVMDesiredCommand) Result {
	old, p := b.changeableByHand(c.GetName(), c.GetExpectedIndex())
	if p != nil {
		return refused(b.index, p)
	}
	switch c.GetDesired() {
	case blixardv1.DesiredState_run:
		return b.startVM(old, c)
	case blixardv1.DesiredState_stop:
		return b.stopVM(old, c)
	}
	return refused(b.index, problem.New(problem.Invalid, "vm.desired", "%v is no state to wish for", c.GetDesired()).
		WithHint("ask for run or stop"))
}

// startVM starts or restarts. To start a VM that runs, or is about to, changes
// nothing; a VM whose life ended is started afresh.
func (b *batch) startVM(old *blixardv1.VM, c *blixardv1.SetVMDesiredCommand) Result {
	wanted := old.GetSpec().GetDesired() == blixardv1.DesiredState_run
	if wanted && !c.GetStartAgain() && !Ended(old.GetStatus().GetState()) {
		return Result{Index: b.index, VM: old}
	}
	vm := b.withDesired(old, blixardv1.DesiredState_run)
	b.putVM(vm)
	for _, a := range b.allocationsOf(vm) {
		if a.GetDesired() == blixardv1.DesiredAllocation_remove {
			continue
		}
		next := copyAllocation(a)
		next.Desired = blixardv1.DesiredAllocation_run
		next.Spec, next.Generation = vm.GetSpec(), vm.GetGeneration()
		next.StartCount++
		next.ForceStop, next.StopTimeout = c.GetForce(), timeout(c.GetTimeoutMs())
		b.putAllocation(next)
		if n := b.node(a.GetNodeId()); n.GetState() == blixardv1.NodeState_down {
			b.unknown(next, n)
		}
	}
	if c.GetStartAgain() {
		b.vmEvent(vm, "vm.desired", "restart", "a restart was asked for")
	} else {
		b.vmEvent(vm, "vm.desired", "run", "a start was asked for")
	}
	return Result{Index: b.index, VM: vm}
}

// stopVM stops. To stop a VM that shall stop already changes nothing, unless it
// adds force or another timeout.
func (b *batch) stopVM(old *blixardv1.VM, c *blixardv1.SetVMDesiredCommand) Result {
	vm := old
	if old.GetSpec().GetDesired() != blixardv1.DesiredState_stop {
		vm = b.withDesired(old, blixardv1.DesiredState_stop)
		b.putVM(vm)
	}
	changed := vm != old
	for _, a := range b.allocationsOf(vm) {
		changed = b.stopAllocation(a, vm, blixardv1.DesiredAllocation_stop, c.GetForce(), c.GetTimeoutMs()) || changed
	}
	if changed {
		b.vmEvent(vm, "vm.desired", "stop", "a stop was asked for")
	}
	return Result{Index: b.index, VM: vm}
}

// stopAllocation makes the node stop or remove a, and reports whether that
// changed anything. Force is never taken back, and remove never becomes stop.
func (b *batch) stopAllocation(a *blixardv1.Allocation, vm *blixardv1.VM, desired blixardv1.DesiredAllocation_Enum,
	force bool, timeoutMs int64,
) bool {
	if Lost(a) {
		return false // its node removes it as soon as it hears of it
	}
	if a.GetDesired() == blixardv1.DesiredAllocation_remove {
		desired = blixardv1.DesiredAllocation_remove
	}
	stopping := a.GetDesired() != blixardv1.DesiredAllocation_run
	force = force || stopping && a.GetForceStop()
	limit := timeout(timeoutMs)
	if a.GetDesired() == desired && force == a.GetForceStop() && (limit == nil || proto.Equal(limit, a.GetStopTimeout())) {
		return false
	}
	next := copyAllocation(a)
	next.Desired, next.ForceStop = desired, force
	if limit != nil || !stopping {
		next.StopTimeout = limit
	}
	next.Spec, next.Generation = vm.GetSpec(), vm.GetGeneration()
	b.putAllocation(next)
	return true
}

func (b *batch) deleteVM(c *blixardv1.DeleteVMCommand) Result {
	old, p := b.changeable(c.GetName(), c.GetExpectedIndex())
	if p != nil {
		return refused(b.index, p)
	}
	// What was given up is of no VM any more; its node removes it.
	allocations := notLost(b.allocationsOf(old))
	vm := old
	if !old.GetDeleting() {
		vm = copyVM(old)
		vm.Deleting = true
		if len(allocations) == 0 {
			b.dropVM(vm)
			return Result{Index: b.index, VM: vm}
		}
		b.putVM(vm)
		b.vmEvent(vm, "vm.deleting", "", "a delete was asked for")
	}
	for _, a := range allocations {
		b.stopAllocation(a, vm, blixardv1.DesiredAllocation_remove, c.GetForce(), c.GetTimeoutMs())
	}
	return Result{Index: b.index, VM: vm}
}

// setVMReason tells why a VM waits for a node. It says nothing new of a VM that
// has an allocation, and nothing twice.
func (b *batch) setVMReason(c *blixardv1.SetVMReasonCommand) Result {
	old, p := b.changeable(c.GetVmId(), 0)
	if p != nil {
		return refused(b.index, p)
	}
	st := old.GetStatus()
	if st.GetAllocationId() != "" {
		return refused(b.index, problem.New(problem.Conflict, "vm.placed", "VM %q is placed", old.GetName()))
	}
	if st.GetReason() == c.GetReason() && st.GetMessage() == c.GetMessage() {
		return Result{Index: b.index, VM: old}
	}
	vm := copyVM(old)
	vm.Status = proto.CloneOf(st)
	vm.Status.Reason, vm.Status.Message = c.GetReason(), c.GetMessage()
	b.putVM(vm)
	b.vmEvent(vm, "vm.waiting", c.GetReason(), c.GetMessage())
	return Result{Index: b.index, VM: vm}
}

// withDesired is a copy of vm with another wish, which is an edit of the spec.
func (b *batch) withDesired(old *blixardv1.VM, desired blixardv1.DesiredState_Enum) *blixardv1.VM {
	vm := copyVM(old)
	if vm.GetSpec().GetDesired() != desired {
		vm.Spec = proto.CloneOf(vm.Spec)
		vm.Spec.Desired = desired
		vm.Generation++
	}
	return vm
}

func timeout(ms int64) *durationpb.Duration {
	if ms <= 0 {
		return nil
	}
	return durationpb.New(time.Duration(ms) * time.Millisecond)
}

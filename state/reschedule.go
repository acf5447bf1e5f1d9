package state

import (
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// reschedulesDefault for VMs that name no number.
const reschedulesDefault = 3

// notOfTheNode are the beginnings of reasons that would be the same on every node.
var notOfTheNode = []string{"image.", "secret.", "volume."}

// Reschedulable reports whether a VM that failed where it was placed is to be tried on
// another node: the fault may be the node's. That a guest's command ended, however, is
// the guest's own doing, and one that is not restarted is not tried elsewhere either.
func Reschedulable(vm *blixardv1.VM, a *blixardv1.Allocation) bool {
	st, spec := a.GetStatus(), vm.GetSpec()
	switch {
	case a == nil || Lost(a) || a.GetDesired() != blixardv1.DesiredAllocation_run || vm.GetStatus().GetEpoch() != a.GetEpoch(),
		vm.GetDeleting() || spec.GetDesired() != blixardv1.DesiredState_run || spec.GetRemoveOnExit(),
		st.GetState() != stFailed || st.GetNextStartAt() != nil || st.ExitCode != nil,
		spec.GetRestart().GetMode() == blixardv1.RestartMode_never,
		Stays(a) != "":
		return false
	}
	most := uint32(reschedulesDefault)
	if spec.Reschedules != nil {
		most = spec.GetReschedules()
	}
	return uint32(len(vm.GetFailedOn())) < most &&
		!slices.ContainsFunc(notOfTheNode, func(prefix string) bool { return strings.HasPrefix(st.GetReason(), prefix) })
}

// reschedule takes a VM off a node that can't run it. The scheduler keeps away from nodes
// on which it failed as long as there are others.
func (b *batch) reschedule(c *blixardv1.RescheduleCommand) Result {
	a := b.allocation(c.GetAllocationId())
	vm := b.vm(a.GetVmId())
	if !Reschedulable(vm, a) {
		return refused(b.index, problem.New(problem.Conflict, "reschedule.unwanted", "the VM of allocation %q is not to be tried elsewhere any more", c.GetAllocationId()))
	}
	next := copyVM(vm)
	next.FailedOn = append(slices.Clone(vm.GetFailedOn()), a.GetNodeId())
	b.putVM(next)
	b.stopAllocation(a, next, blixardv1.DesiredAllocation_remove, true, 0)
	b.vmEvent(next, "vm.rescheduled", a.GetStatus().GetReason(), "it failed on node "+a.GetStatus().GetNode()+" and is tried on another: "+a.GetStatus().GetMessage())
	return Result{Index: b.index, VM: next}
}

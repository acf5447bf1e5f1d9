package state

import (
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// report takes in what a node observed. Each report is checked and refused by
// itself, so that one that is out of date does not hold up the others.
func (b *batch) report(c *blixardv1.ReportCommand) Result {
	// A report of an earlier start may come behind those of this one, which know better.
	if n := b.node(c.GetNodeId()); c.GetIncarnation() != 0 && c.GetIncarnation() < n.GetIncarnation() {
		b.s.fencedReports.Add(1)
		return refused(b.index, problem.New(problem.Fenced, "report.incarnation", "start %d of the agent of node %q is over: start %d is known", c.GetIncarnation(), n.GetName(), n.GetIncarnation()).
			WithHint("its newer start reports how everything is"))
	}
	r := Result{Index: b.index}
	for _, rep := range c.GetReports() {
		if why := b.reportOne(c.GetNodeId(), rep); why != nil {
			r.Refused = append(r.Refused, Refusal{AllocationID: rep.GetAllocationId(), Problem: why})
		}
	}
	if n := len(r.Refused); n > 0 && n == len(c.GetReports()) {
		r.Problem = r.Refused[0].Problem
	}
	return r
}

func (b *batch) reportOne(nodeID string, rep *blixardv1.AllocationReport) *problem.Error {
	a := b.allocation(rep.GetAllocationId())
	if a == nil {
		if rep.GetRemoved() {
			return nil // said before
		}
		return problem.New(problem.NotFound, "allocation.not_found", "there is no allocation %q", rep.GetAllocationId()).
			WithHint("the node stops it and removes what is left of it")
	}
	if a.GetNodeId() != nodeID {
		return problem.New(problem.Conflict, "allocation.other_node", "allocation %q is of node %q, not %q", a.GetId(), a.GetNodeId(), nodeID)
	}
	if rep.GetEpoch() != a.GetEpoch() {
		b.s.fencedReports.Add(1)
		return problem.New(problem.Fenced, "allocation.fenced", "epoch %d of allocation %q is over: it is %d now",
			rep.GetEpoch(), a.GetId(), a.GetEpoch()).
			WithHint("the node stops it and removes what is left of it")
	}
	if rep.GetRemoved() {
		b.removed(a, rep.GetStatus())
		return nil
	}
	if Lost(a) {
		return nil // only its removal counts
	}
	now, next := a.GetStatus().GetState(), rep.GetStatus().GetState()
	if !LegalMove(now, next) && !laterLife(a.GetStatus(), rep.GetStatus()) {
		b.s.illegalMoves.Add(1)
		return problem.New(problem.Conflict, "allocation.illegal_move", "allocation %q cannot go from %s to %s", a.GetId(), now, next).
			WithHint("report the end of the VM's life, stopped or failed, before its next one")
	}
	b.observe(a, rep.GetStatus())
	return nil
}

// laterLife tells that a report is of a start after the one that is known: the end
// between was lost with the daemon that kept it in memory. Starts are counted, and the
// clock, which may be off, tells only of those that are not. Nothing returns to
// pending.
func laterLife(known, reported *blixardv1.VMStatus) bool {
	if reported.GetState() == stPending {
		return false
	}
	return reported.GetStartCount() > known.GetStartCount() || reported.GetRestarts() > known.GetRestarts() ||
		known.GetStartedAt() != nil && reported.GetStartedAt() != nil && reported.GetStartedAt().AsTime().After(known.GetStartedAt().AsTime())
}

// observe writes a status that was checked.
func (b *batch) observe(old *blixardv1.Allocation, reported *blixardv1.VMStatus) {
	status := proto.CloneOf(reported)
	status.AllocationId, status.Epoch = old.GetId(), old.GetEpoch()
	status.Node = old.GetStatus().GetNode()
	b.s.vocabulary.status(status)
	if proto.Equal(status, old.GetStatus()) {
		return
	}
	a := copyAllocation(old)
	a.Status = status
	b.putAllocation(a)
	if vm := b.vm(a.GetVmId()); vm != nil && vm.GetStatus().GetEpoch() == a.GetEpoch() {
		next := copyVM(vm)
		next.Status = status
		if status.GetState() == stRunning {
			next.FailedOn = nil // that node can run it
		}
		b.putVM(next)
	}
	before := old.GetStatus()
	if before.GetState() != status.GetState() || before.GetReason() != status.GetReason() ||
		before.GetBootId() != status.GetBootId() && status.GetBootId() != "" {
		b.allocationEvent(a, "allocation."+status.GetState().String(), status)
	}
}

// removed drops an allocation of which the node holds nothing any more, and the
// VM with it when it is being deleted.
func (b *batch) removed(old *blixardv1.Allocation, last *blixardv1.VMStatus) {
	b.release(old)
	a := copyAllocation(old)
	b.dropAllocation(a)
	b.allocationEvent(a, "allocation.removed", a.GetStatus())
	vm := b.vm(a.GetVmId())
	if vm == nil {
		return
	}
	next := copyVM(vm)
	if vm.GetDeleting() && len(notLost(b.allocationsOf(vm))) == 0 {
		b.dropVM(next)
		return
	}
	if vm.GetStatus().GetEpoch() != a.GetEpoch() {
		return
	}
	exit := a.GetStatus().ExitCode
	if last != nil && last.ExitCode != nil {
		exit = last.ExitCode
	}
	// The epoch stays: it is the counter that the next allocation goes on from.
	state := stPending
	if vm.GetSpec().GetDesired() == blixardv1.DesiredState_stop {
		state = stStopped
	}
	next.Status = &blixardv1.VMStatus{
		State: state, Epoch: a.GetEpoch(), Restarts: a.GetStatus().GetRestarts(),
		ExitCode: exit, Reason: reasonRemoved,
		Message: "its allocation is gone from node " + a.GetStatus().GetNode(),
	}
	b.putVM(next)
}

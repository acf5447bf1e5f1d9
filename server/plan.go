package server

import (
	"cmp"
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/scheduler"
	"github.com/blixard/blixard/state"
)

// plan places VMs one after the other on a view, and changes nothing.
type plan struct {
	view    remaining
	fleet   *scheduler.Fleet
	preempt bool
}

// remaining is a view without allocations that would be gone.
type remaining struct {
	*state.View
	gone map[string]bool
}

// AllocationsOfNode as in [state.View.AllocationsOfNode].
func (v remaining) AllocationsOfNode(nodeID string) []*blixardv1.Allocation {
	return slices.DeleteFunc(slices.Clone(v.View.AllocationsOfNode(nodeID)), func(a *blixardv1.Allocation) bool { return v.gone[a.GetId()] })
}

func (s *Server) newPlan(view *state.View) *plan {
	return &plan{view: remaining{view, map[string]bool{}}, fleet: s.fleet(view), preempt: s.cfg.Preemption}
}

// place says where a VM would go, and who would make room for it.
func (p *plan) place(one *blixardv1.PlannedVM) {
	d := p.fleet.Place(p.view, one.GetVm())
	if p.preempt && d.Reason == scheduler.ReasonNoCapacity {
		if made := p.fleet.Preempt(p.view, one.GetVm(), func(string) bool { return false }); made != nil {
			for _, a := range slices.Concat(made.Victims, made.Awaited) {
				p.view.gone[a.GetId()] = true
				p.fleet.Release(made.Node.GetId(), p.view.Limits().Reservation(a.GetSpec()))
			}
			if next := p.fleet.Place(p.view, one.GetVm()); next.Node != nil {
				d = next
				one.Preempts = preemption(made)
			}
		}
	}
	one.To, one.Reason, one.Message = d.Node.GetName(), d.Reason, d.Message
}

// placedAnew says where the VMs of a node would go that is barred: those of the highest
// priority get their places first, as the leader gives them. They are in the order of their
// names.
func (p *plan) placedAnew(node *blixardv1.Node) []*blixardv1.PlannedVM {
	var vms []*blixardv1.PlannedVM
	for _, a := range p.view.AllocationsOfNode(node.GetId()) {
		vm := p.view.VM(a.GetVmId())
		if vm.GetStatus().GetAllocationId() != a.GetId() || a.GetDesired() == blixardv1.DesiredAllocation_remove {
			continue
		}
		one := &blixardv1.PlannedVM{Vm: vm}
		if why := state.Stays(a); why != "" {
			one.Stays, one.Message = true, why
		} else if !state.Runs(vm) {
			one.Message = "it is stopped, and gets its place when it is started"
		}
		vms = append(vms, one)
	}
	slices.SortFunc(vms, func(a, b *blixardv1.PlannedVM) int {
		return cmp.Or(cmp.Compare(state.Priority(b.GetVm().GetSpec()), state.Priority(a.GetVm().GetSpec())), strings.Compare(a.GetVm().GetName(), b.GetVm().GetName()))
	})
	for _, one := range vms {
		if !one.GetStays() && state.Runs(one.GetVm()) {
			p.place(one)
		}
	}
	slices.SortFunc(vms, func(a, b *blixardv1.PlannedVM) int { return strings.Compare(a.GetVm().GetName(), b.GetVm().GetName()) })
	return vms
}

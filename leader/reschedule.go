package leader

import (
	"maps"
	"slices"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// Waits before a VM that failed is tried on another node: none the first time, and then
// from rescheduleWait on, four times as long each time.
const (
	rescheduleWait    = 10 * time.Second
	rescheduleWaitMax = 10 * time.Minute
)

// hasFailed is whether a VM may be one that its node can't run.
func hasFailed(vm *blixardv1.VM) bool {
	st := vm.GetStatus()
	return st.GetAllocationId() != "" && st.GetState() == blixardv1.AllocationState_failed && st.GetNextStartAt() == nil
}

// Reschedule gives the commands that take VMs off nodes which can't run them. now is of
// any clock that goes on; a wait begins when the core first hears of the failure.
func (c *Core) Reschedule(view View, now time.Time) []*blixardv1.Command {
	if len(c.failing) == 0 || view.FeatureLevel() < rescheduleLevel {
		return nil
	}
	var out []*blixardv1.Command
	followed := false
	for _, id := range slices.Sorted(maps.Keys(c.failing)) {
		if len(out) >= planVMs {
			break // the rest comes in the next round
		}
		if c.stuck[id] {
			continue
		}
		vm := view.VM(id)
		a := view.Allocation(vm.GetStatus().GetAllocationId())
		if !state.Reschedulable(vm, a) {
			c.stuck[id] = true
			continue
		}
		since := c.failing[id]
		if since.IsZero() {
			since = now
			c.failing[id] = now
		}
		if now.Sub(since) < waitOf(len(vm.GetFailedOn())) {
			continue
		}
		if !followed {
			c.fleet.Follow(view)
			for _, p := range c.promises {
				c.fleet.Hold(p.node, p.need)
			}
			followed = true
		}
		if !c.fleet.Elsewhere(view, vm, a.GetNodeId()) {
			c.stuck[id] = true
			continue
		}
		delete(c.failing, id)
		out = append(out, &blixardv1.Command{Change: &blixardv1.Command_Reschedule{Reschedule: &blixardv1.RescheduleCommand{AllocationId: a.GetId()}}})
	}
	return out
}

// waitOf gives the wait before the try after so many.
func waitOf(tries int) time.Duration {
	if tries == 0 {
		return 0
	}
	wait := rescheduleWait
	for range tries - 1 {
		wait = min(4*wait, rescheduleWaitMax)
	}
	return wait
}

// rescheduleLevel is the feature level of RescheduleCommand.
var rescheduleLevel = state.Level(&blixardv1.Command{Change: &blixardv1.Command_Reschedule{Reschedule: &blixardv1.RescheduleCommand{}}})

package agent

import (
	"cmp"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// boots reports whether a guest of the instance is between the start of its VMM and
// ready, or its VMM is about to be started.
func (i *instance) boots() bool {
	return i.rec.GetStatus().GetState() == blixardv1.AllocationState_starting &&
		(i.process == processRunning || i.busy == ActionStart && i.rec.GetImage() != nil)
}

// before orders who boots first where not all may: who did not fail lately, then by
// priority, then by id, so that the order of actions does not depend on the map's.
func (i *instance) before(j *instance, a, b string) int {
	return cmp.Or(
		cmp.Compare(i.rec.GetFailedBoots(), j.rec.GetFailedBoots()),
		cmp.Compare(priority(j.alloc), priority(i.alloc)),
		cmp.Compare(a, b),
	)
}

// defaultPriority of a spec that names none.
const defaultPriority = 50

func priority(a *blixardv1.Allocation) uint32 {
	if p := a.GetSpec().GetScheduling(); p != nil && p.Priority != nil {
		return p.GetPriority()
	}
	return defaultPriority
}

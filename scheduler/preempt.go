package scheduler

import (
	"cmp"
	"slices"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// preemptNodesMax nodes, those with the most free memory in each class first, are looked
// at for VMs that make room. A node has some tens of VMs, so this is some ten thousand
// steps, a few milliseconds.
const preemptNodesMax = 256

// Occupied is a view that knows what is on nodes.
type Occupied interface {
	View
	VM(ref string) *blixardv1.VM
	// AllocationsOfNode as in [state.View.AllocationsOfNode].
	AllocationsOfNode(nodeID string) []*blixardv1.Allocation
}

// Preemption says what must be gone from a node so that a VM has room there.
type Preemption struct {
	Node *blixardv1.Node
	// Victims are to be taken off; none when what is going already makes the room.
	Victims []*blixardv1.Allocation
	// Awaited are those that were going before.
	Awaited []*blixardv1.Allocation
}

// Preempt chooses VMs of lower priority that make room for one which found no node for
// want of room alone; nil when there are none. It does the least harm: it takes the node
// whose victims have the lowest highest priority, of these the one with the fewest, and
// then the one where the least memory is freed beyond the need; equal ones by name.
// going tells of allocations that are to be taken off although the view does not say so
// yet. Nothing is taken.
func (f *Fleet) Preempt(view Occupied, vm *blixardv1.VM, going func(allocationID string) bool) *Preemption {
	if !f.AnyBelow(state.Priority(vm.GetSpec())) {
		return nil
	}
	q := f.ask(view, vm)
	var best *harm
	look := func(s *slot) {
		if reason, _ := personal(q, s, false); reason != "" {
			return
		}
		// Volumes stay.
		if _, ever := state.Fits(s.node.GetAllocatable(), &blixardv1.Resources{DiskBytes: s.node.GetVolumeBytes()}, q.need); !ever {
			return
		}
		if h := f.harm(view, q, s, going); h != nil && (best == nil || h.compare(best) < 0) {
			best = h
		}
	}
	if only, some := f.only(q); some {
		for _, s := range only {
			if reason, _ := rules(q, s, false); reason == "" && s.barred == "" {
				look(s)
			}
		}
	} else {
		looked := 0
		for _, c := range f.partition(q.keys).ranks {
			any, _ := c.tree.Min()
			if reason, _ := rules(q, any, false); reason != "" {
				continue
			}
			c.tree.Descend(func(s *slot) bool {
				look(s)
				looked++
				return looked < preemptNodesMax
			})
		}
	}
	if best == nil {
		return nil
	}
	return &best.Preemption
}

// harm of a preemption on a node.
type harm struct {
	Preemption
	// highest priority of the victims, -1 without any.
	highest int
	// spare is the memory that would be left.
	spare uint64
}

func (h *harm) compare(o *harm) int {
	return cmp.Or(cmp.Compare(h.highest, o.highest), cmp.Compare(len(h.Victims), len(o.Victims)), cmp.Compare(h.spare, o.spare),
		cmp.Compare(h.Node.GetName(), o.Node.GetName()))
}

// harm gives the least that makes room on a node; nil when nothing does.
func (f *Fleet) harm(view Occupied, q *question, s *slot, going func(string) bool) *harm {
	limits := view.Limits()
	h := &harm{Preemption: Preemption{Node: s.node}, highest: -1}
	r := &gap{has: s.node.GetAllocatable(), used: s.used, need: q.need}
	var able []*prey
	for _, a := range view.AllocationsOfNode(s.node.GetId()) {
		size := limits.Reservation(a.GetSpec())
		switch {
		case state.Going(a) || going(a.GetId()):
			h.Awaited = append(h.Awaited, a)
			r.used = less(r.used, size)
		case state.Yields(a, q.spec) && !wanted(view, q, a):
			able = append(able, &prey{Allocation: a, size: size, priority: state.Priority(a.GetSpec())})
		}
	}
	chosen, enough := r.choose(able)
	if !enough || len(chosen)+len(h.Awaited) == 0 {
		return nil
	}
	for _, p := range chosen {
		h.Victims = append(h.Victims, p.Allocation)
		h.highest = max(h.highest, int(p.priority))
		r.used = less(r.used, p.size)
	}
	slices.SortFunc(h.Victims, func(a, b *blixardv1.Allocation) int { return cmp.Compare(a.GetId(), b.GetId()) })
	h.spare = free(r.has.GetMemoryMib(), r.used.GetMemoryMib()+r.need.GetMemoryMib())
	return h
}

// wanted reports whether the VM must be near that one: without it the node would be none.
func wanted(view Occupied, q *question, a *blixardv1.Allocation) bool {
	for _, m := range q.must {
		if !m.GetApart() && hasLabel(view.VM(a.GetVmId()).GetLabels(), label{m.GetKey(), m.GetValue()}) {
			return true
		}
	}
	return false
}

// prey is an allocation that may make room.
type prey struct {
	*blixardv1.Allocation
	size     *blixardv1.Resources
	priority uint32
}

// gap is the room that is looked for on a node.
type gap struct{ has, used, need *blixardv1.Resources }

// without tells what is short once those are gone; ok when nothing is.
func (r *gap) without(gone []*prey) (short string, ok bool) {
	used := r.used
	for _, p := range gone {
		used = less(used, p.size)
	}
	return state.Fits(r.has, used, r.need)
}

// choose gives those that make the room: with the lowest highest priority that is
// possible, then few, then small. For one resource that is short the number is the least;
// for several at once it is near it, since the exact answer would take far longer to find.
func (r *gap) choose(able []*prey) (chosen []*prey, enough bool) {
	slices.SortFunc(able, func(a, b *prey) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.GetId(), b.GetId()))
	})
	n, left := 0, r.used
	for ; ; n++ {
		if _, ok := state.Fits(r.has, left, r.need); ok {
			break
		}
		if n == len(able) {
			return nil, false
		}
		left = less(left, able[n].size)
	}
	if n == 0 {
		return nil, true
	}
	for highest := able[n-1].priority; n < len(able) && able[n].priority == highest; {
		n++
	}
	rest := slices.Clone(able[:n])
	for {
		short, ok := r.without(chosen)
		if ok {
			break
		}
		at := largest(rest, short)
		chosen, rest = append(chosen, rest[at]), slices.Delete(rest, at, at+1)
	}
	chosen = r.prune(chosen)
	for i := range chosen {
		r.shrink(chosen, i, rest)
	}
	return r.prune(chosen), true
}

// shrink puts one that frees less memory in the place of a chosen one, if it does as well.
func (r *gap) shrink(chosen []*prey, i int, rest []*prey) {
	for k, other := range rest {
		before := chosen[i]
		if other.size.GetMemoryMib() >= before.size.GetMemoryMib() {
			continue
		}
		if chosen[i] = other; r.fits(chosen) {
			rest[k] = before
		} else {
			chosen[i] = before
		}
	}
}

func (r *gap) fits(gone []*prey) bool {
	_, ok := r.without(gone)
	return ok
}

// prune leaves those out that are not needed, of higher priority first.
func (r *gap) prune(chosen []*prey) []*prey {
	byHarm := slices.Clone(chosen)
	slices.SortStableFunc(byHarm, func(a, b *prey) int { return cmp.Compare(b.priority, a.priority) })
	for _, p := range byHarm {
		rest := slices.DeleteFunc(slices.Clone(chosen), func(o *prey) bool { return o == p })
		if r.fits(rest) {
			chosen = rest
		}
	}
	return chosen
}

// largest of what is short; equal ones are in the order of their priority.
func largest(of []*prey, short string) int {
	size := func(p *prey) uint64 {
		switch short {
		case "memory":
			return p.size.GetMemoryMib()
		case "vcpus":
			return uint64(p.size.GetVcpus())
		}
		return p.size.GetDiskBytes()
	}
	at := 0
	for i, p := range of {
		if size(p) > size(of[at]) {
			at = i
		}
	}
	return at
}

func less(a, b *blixardv1.Resources) *blixardv1.Resources {
	return &blixardv1.Resources{
		Vcpus:     uint32(free(uint64(a.GetVcpus()), uint64(b.GetVcpus()))),
		MemoryMib: free(a.GetMemoryMib(), b.GetMemoryMib()),
		DiskBytes: free(a.GetDiskBytes(), b.GetDiskBytes()),
	}
}

// AnyBelow reports whether VMs of a lower priority may be placed somewhere. Those of the
// default priority are taken to be there.
func (f *Fleet) AnyBelow(priority uint32) bool {
	if priority > state.PriorityDefault {
		return true
	}
	for _, n := range f.ranks[:priority] {
		if n > 0 {
			return true
		}
	}
	return false
}

// rank counts a VM by its priority, when it has a place and not the default one.
func (f *Fleet) rank(vm *blixardv1.VM, gone bool) {
	id, next := vm.GetId(), uint32(state.PriorityDefault)
	if !gone && vm.GetStatus().GetAllocationId() != "" {
		next = state.Priority(vm.GetSpec())
	}
	if old, known := f.ranked[id]; known {
		f.ranks[old]--
		delete(f.ranked, id)
	}
	if next != state.PriorityDefault {
		f.ranked[id] = next
		f.ranks[next]++
	}
}

// Hold keeps room on a node for a VM that waits there, until Follow or Release: others
// find it taken.
func (f *Fleet) Hold(nodeID string, need *blixardv1.Resources) {
	if s := f.slots[nodeID]; s != nil {
		f.touched = append(f.touched, s)
		f.reserve(s, sum(s.used, need))
	}
}

// Release gives back what was held.
func (f *Fleet) Release(nodeID string, need *blixardv1.Resources) {
	if s := f.slots[nodeID]; s != nil {
		f.reserve(s, less(s.used, need))
	}
}

// Eligible reports whether a VM could be on a node if there was room.
func (f *Fleet) Eligible(view View, vm *blixardv1.VM, nodeID string) bool {
	s := f.slots[nodeID]
	if s == nil || s.barred != "" {
		return false
	}
	q := f.ask(view, vm)
	if reason, _ := rules(q, s, false); reason != "" {
		return false
	}
	reason, _ := personal(q, s, false)
	return reason == ""
}

package leader

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/scheduler"
	"github.com/blixard/blixard/state"
)

const (
	// drainParallel VMs of a node are on their way at once: others get the memory and the disk
	// of the hosts meanwhile, and a place that is a bad one has taken no more than these.
	drainParallel = 4
	// drainNotes of a deadline: that often what is left of it is written down, so 16 small
	// entries a drain, and a change of leader prolongs it by a sixteenth at most.
	drainNotes = 16
	// drainNoteMin is the least time between two notes.
	drainNoteMin = time.Second
	// drainTellEvery is the least time between two sentences that say the same of other
	// numbers.
	drainTellEvery = 5 * time.Second
	// drainNamed VMs in a sentence, and drainTextMax bytes of why one has no place.
	drainNamed   = 5
	drainTextMax = 512
)

// drainWatch is what this leader knows of a drain in steps.
type drainWatch struct {
	begun uint64 // the index of the log at which it began
	// ends is when the deadline is over, by the clock of this leader.
	ends time.Time
	// told is when it was last said how far the drain is.
	told time.Time
	// seen is the index of the view in which there was nothing to do.
	seen uint64
	// moving are the VMs that this leader took off and that may not run elsewhere yet.
	moving map[string]bool
}

// Drains gives the commands that carry drains on. now is of any clock that goes on: what is
// left of a deadline is counted by it from when this leader first heard of the drain.
func (c *Core) Drains(view View, now time.Time) []*blixardv1.Command {
	if len(c.drains) == 0 {
		return nil
	}
	var out []*blixardv1.Command
	followed := false
	for _, id := range slices.Sorted(maps.Keys(c.drains)) {
		node := view.Node(id)
		d := node.GetDrain()
		if d == nil {
			delete(c.drains, id)
			continue
		}
		w := c.drains[id]
		if w == nil || w.begun != d.GetBegunIndex() {
			left := d.GetLeft().AsDuration()
			if planted.Is(planted.DrainGrows) {
				left = d.GetDeadline().AsDuration()
			}
			w = &drainWatch{begun: d.GetBegunIndex(), ends: now.Add(left), moving: map[string]bool{}}
			c.drains[id] = w
		}
		expires := d.GetDeadline() != nil && !d.GetExpired() && !now.Before(w.ends)
		if w.seen == view.Index() && !expires && !w.noteDue(d, now) {
			continue
		}
		if !followed {
			c.fleet.Follow(view)
			for _, p := range c.promises {
				c.fleet.Hold(p.node, p.need)
			}
			followed = true
		}
		if cmd := c.advance(view, node, w, now); cmd != nil {
			out = append(out, &blixardv1.Command{Change: &blixardv1.Command_AdvanceDrain{AdvanceDrain: cmd}})
		} else {
			w.seen = view.Index()
		}
	}
	return out
}

// left of the deadline, not below 0.
func (w *drainWatch) left(now time.Time) time.Duration { return max(w.ends.Sub(now), 0) }

// noteDue reports whether what is left of the deadline is to be written down.
func (w *drainWatch) noteDue(d *blixardv1.NodeDrain, now time.Time) bool {
	if d.GetDeadline() == nil || d.GetExpired() {
		return false
	}
	return d.GetLeft().AsDuration()-w.left(now) >= max(d.GetDeadline().AsDuration()/drainNotes, drainNoteMin)
}

// advance looks at one drain; nil when there is nothing to do or to say.
func (c *Core) advance(view View, node *blixardv1.Node, w *drainWatch, now time.Time) *blixardv1.AdvanceDrainCommand {
	d := node.GetDrain()
	cmd := &blixardv1.AdvanceDrainCommand{NodeId: node.GetId(), BegunIndex: d.GetBegunIndex(), Expired: d.GetExpired()}
	if d.GetDeadline() != nil && !d.GetExpired() {
		cmd.Left = durationpb.New(min(w.left(now), d.GetLeft().AsDuration()))
		cmd.Expired = cmd.GetLeft().AsDuration() == 0
		if planted.Is(planted.DrainGrows) {
			cmd.Left = durationpb.New(w.left(now))
		}
	}
	r := c.rest(view, node, w)
	var homeless, why string
	switch {
	case cmd.GetExpired():
		for _, a := range r.left[:min(len(r.left), planVMs)] {
			cmd.AllocationIds = append(cmd.AllocationIds, a.GetId())
		}
	default:
		var able []*blixardv1.Allocation
		able, homeless, why = c.able(view, &r)
		for _, a := range able[:min(len(able), max(drainParallel-r.going, 0))] {
			cmd.AllocationIds = append(cmd.AllocationIds, a.GetId())
		}
	}
	r.describe(cmd, homeless, why)
	other := cmd.GetState() != d.GetState() || cmd.GetExpired() != d.GetExpired() || len(cmd.GetAllocationIds()) > 0
	says := cmd.GetMessage() != d.GetMessage() && (w.told.IsZero() || now.Sub(w.told) >= drainTellEvery)
	if !other && !says && !w.noteDue(d, now) {
		return nil
	}
	w.told = now
	for _, id := range cmd.GetAllocationIds() {
		w.moving[view.Allocation(id).GetVmId()] = true
	}
	return cmd
}

// rest of a drain.
type rest struct {
	// left are to leave and have not begun to, those of the lowest priority first.
	left []*blixardv1.Allocation
	// going is how many are on their way, of which here are still on the node.
	going, here int
	// homeless are those on their way that have no place yet.
	homeless []*blixardv1.VM
	// stay are the names of those that a drain leaves.
	stay []string
}

func (c *Core) rest(view View, node *blixardv1.Node, w *drainWatch) rest {
	var r rest
	counted := map[string]bool{}
	for _, a := range view.AllocationsOfNode(node.GetId()) {
		switch {
		case state.Lost(a):
		case state.Going(a):
			r.going++
			r.here++
			counted[a.GetVmId()] = true
			if vm := view.VM(a.GetVmId()); state.Runs(vm) {
				r.homeless = append(r.homeless, vm)
			}
		case state.Stays(a) != "" && !planted.Is(planted.KeptDrained):
			r.stay = append(r.stay, a.GetVmName()+" ("+state.Stays(a)+")")
		default:
			r.left = append(r.left, a)
		}
	}
	slices.SortFunc(r.left, func(a, b *blixardv1.Allocation) int {
		return cmp.Or(cmp.Compare(state.Priority(a.GetSpec()), state.Priority(b.GetSpec())), cmp.Compare(a.GetVmName(), b.GetVmName()))
	})
	slices.Sort(r.stay)
	for id := range w.moving {
		if !c.onItsWay(view.VM(id), node) {
			delete(w.moving, id)
		} else if !counted[id] {
			r.going++
			if vm := view.VM(id); vm.GetStatus().GetAllocationId() == "" {
				r.homeless = append(r.homeless, vm)
			}
		}
	}
	slices.SortFunc(r.homeless, func(a, b *blixardv1.VM) int {
		return cmp.Or(cmp.Compare(state.Priority(b.GetSpec()), state.Priority(a.GetSpec())), cmp.Compare(a.GetName(), b.GetName()))
	})
	return r
}

// onItsWay reports whether a VM that was taken off a node may be about to run elsewhere. One
// that waits for room is not: others would wait for it.
func (c *Core) onItsWay(vm *blixardv1.VM, node *blixardv1.Node) bool {
	st := vm.GetStatus()
	switch {
	case vm == nil || vm.GetDeleting():
		return false
	case st.GetNode() == node.GetName():
		return true
	case st.GetAllocationId() == "":
		return needsPlace(vm) && c.blocked[vm.GetId()] == nil
	}
	switch st.GetState() {
	case blixardv1.AllocationState_pending, blixardv1.AllocationState_preparing, blixardv1.AllocationState_starting:
		return true
	}
	return false
}

// able gives those that are left and have a place elsewhere, in their order, and tells of
// those that have none. Those on their way get their places first, and then those of the
// highest priority: what is left of the room decides which of the others may go. The fleet
// has followed the view, and takes the places until it follows again.
func (c *Core) able(view View, r *rest) (able []*blixardv1.Allocation, homeless, why string) {
	for _, vm := range r.homeless {
		c.fleet.Place(view, vm)
	}
	var without []string
	// One at a time may count on others to make room: the next would count on the same.
	preempts := c.Preemption && r.going == 0
	goes := map[string]bool{}
	for _, a := range slices.Backward(r.left) {
		vm := view.VM(a.GetVmId())
		if !state.Runs(vm) {
			goes[a.GetId()] = true // it gets its place when it is started
			continue
		}
		switch d := c.fleet.Place(view, vm); {
		case d.Node != nil:
			goes[a.GetId()] = true
		case preempts && d.Reason == scheduler.ReasonNoCapacity && c.mayPreempt(view, vm) && c.fleet.Preempt(view, vm, c.awaited) != nil:
			preempts, goes[a.GetId()] = false, true
		default:
			without, why = append(without, a.GetVmName()), d.Message
		}
	}
	for _, a := range r.left {
		if goes[a.GetId()] {
			able = append(able, a)
		}
	}
	slices.Sort(without)
	return able, named(without), why
}

// named lists the first of some names.
func named(names []string) string {
	text := strings.Join(names[:min(len(names), drainNamed)], ", ")
	if more := len(names) - drainNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// describe says in cmd how far the drain is, once its allocations are taken off.
func (r *rest) describe(cmd *blixardv1.AdvanceDrainCommand, homeless, why string) {
	left := len(r.left) - len(cmd.GetAllocationIds())
	stay := ""
	if len(r.stay) > 0 {
		stay = "; " + named(r.stay) + " stay"
		if len(r.stay) == 1 {
			stay += "s"
		}
	}
	switch {
	case left+r.here+len(cmd.GetAllocationIds()) == 0 || planted.Is(planted.DrainDoneEarly) && left == 0:
		cmd.State, cmd.Message = blixardv1.DrainState_done, "all VMs have left that were to"+stay
	case homeless != "" && r.going+len(cmd.GetAllocationIds()) == 0:
		cmd.State = blixardv1.DrainState_blocked
		cmd.Message = fmt.Sprintf("no other node can have %s: %s", homeless, cut(why))
		if cmd.GetLeft() != nil {
			cmd.Message += "; what is left at the deadline is stopped"
		}
	default:
		cmd.State = blixardv1.DrainState_moving
		cmd.Message = fmt.Sprintf("%d VMs wait for their turn, %d leave%s", left, r.here+len(cmd.GetAllocationIds()), stay)
	}
}

// cut bounds a sentence.
func cut(text string) string {
	if len(text) <= drainTextMax {
		return text
	}
	return strings.ToValidUTF8(text[:drainTextMax], "") + "..."
}

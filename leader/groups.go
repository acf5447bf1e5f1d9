package leader

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/state"
)

const (
	// groupStepsMax of one command, and groupMovesMax replicas that one step makes or removes.
	groupStepsMax = 64
	groupMovesMax = 64
	// replicaRetryWait before a replica that ended is replaced, doubled by each further
	// failure up to replicaRetryMax.
	replicaRetryWait = time.Second
	replicaRetryMax  = time.Minute
	// blockedWait before a replica that could not be made is tried again.
	blockedWait = 5 * time.Second
	// restartsFailing of a replica on its node are a failure of its version.
	restartsFailing = 3
	// failuresFailing of replicas of a version are a failure of its rollout.
	failuresFailing = 2
)

// reasonGoing of a group that waits until a replica is gone.
const reasonGoing = "group.replica_going"

// groups decides what comes next of groups. It counts time by this leader's own clock, from
// when it first saw something. It is not safe for concurrent use.
type groups struct {
	dirty map[string]bool
	due   map[string]time.Time
	// marks are when what a group waits for was first seen, by group and by a word for it.
	marks map[string]map[string]time.Time
}

func newGroups() *groups {
	return &groups{dirty: map[string]bool{}, due: map[string]time.Time{}, marks: map[string]map[string]time.Time{}}
}

func (g *groups) reset() {
	clear(g.dirty)
	clear(g.due)
	clear(g.marks)
}

// changed tells of a change of a group, or of a VM of it.
func (g *groups) changed(id string, deleted bool) {
	if deleted {
		delete(g.dirty, id)
		delete(g.due, id)
		delete(g.marks, id)
		return
	}
	g.dirty[id] = true
}

// groupLook is one look at a group.
type groupLook struct {
	group   *blixardv1.Group
	spec    *blixardv1.GroupSpec
	newest  *blixardv1.GroupVersion
	now     time.Time
	wall    time.Time
	before  map[string]time.Time // marks
	marks   map[string]time.Time
	wake    time.Duration // until the next look; 0 for none
	live    []*blixardv1.VM
	going   []*blixardv1.VM // that are being deleted
	isAvail map[string]bool
	step    *blixardv1.GroupStep
}

// since tells how long ago something was first seen.
func (l *groupLook) since(word string) time.Duration {
	at, known := l.before[word]
	if !known {
		at = l.now
	}
	l.marks[word] = at
	return l.now.Sub(at)
}

// reached reports whether so much has passed, and else wakes when it has.
func (l *groupLook) reached(passed, want time.Duration) bool {
	if passed >= want {
		return true
	}
	if left := want - passed; l.wake == 0 || left < l.wake {
		l.wake = left
	}
	return false
}

// GroupsDue gives the command that carries groups on. now is of a clock that does not jump;
// wall is the clock of the log, by which a leader that just began knows since when a
// replica is ready.
func (c *Core) GroupsDue(view View, now, wall time.Time) []*blixardv1.Command {
	if view.FeatureLevel() < groupLevel {
		return nil
	}
	g := c.groups
	for id, at := range g.due {
		if !now.Before(at) {
			g.dirty[id] = true
		}
	}
	var steps []*blixardv1.GroupStep
	for _, id := range slices.Sorted(maps.Keys(g.dirty)) {
		if len(steps) >= groupStepsMax {
			break
		}
		delete(g.dirty, id)
		delete(g.due, id)
		group := view.Group(id)
		if group == nil || group.GetDeleting() {
			delete(g.marks, id)
			continue
		}
		l := newGroupLook(group, view.Replicas(id), now, wall, g.marks[id])
		l.decide()
		g.marks[id] = l.marks
		if l.wake > 0 {
			g.due[id] = now.Add(l.wake)
		}
		if l.worth() {
			steps = append(steps, l.step)
		}
	}
	if len(steps) == 0 {
		return nil
	}
	return []*blixardv1.Command{groupCommand(steps)}
}

func groupCommand(steps []*blixardv1.GroupStep) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_StepGroups{StepGroups: &blixardv1.StepGroupsCommand{Steps: steps}}}
}

// groupLevel is the feature level of StepGroupsCommand.
var groupLevel = state.Level(groupCommand(nil))

func newGroupLook(group *blixardv1.Group, vms []*blixardv1.VM, now, wall time.Time, before map[string]time.Time) *groupLook {
	l := &groupLook{
		group: group, spec: group.GetSpec(), newest: state.NewestVersion(group), now: now, wall: wall, before: before, marks: map[string]time.Time{},
		isAvail: map[string]bool{}, step: &blixardv1.GroupStep{GroupId: group.GetId(), GroupModifyIndex: group.GetModifyIndex()},
	}
	for _, vm := range vms {
		if vm.GetDeleting() {
			l.going = append(l.going, vm)
			continue
		}
		l.live = append(l.live, vm)
		if since := vm.GetReadySince(); since != nil {
			word := fmt.Sprintf("ready %s %d.%d", vm.GetId(), since.GetSeconds(), since.GetNanos())
			passed := max(l.since(word), l.wall.Sub(since.AsTime()))
			l.isAvail[vm.GetId()] = l.reached(passed, state.MinHealthy(l.spec))
		}
	}
	slices.SortFunc(l.live, func(a, b *blixardv1.VM) int {
		return cmp.Or(cmp.Compare(a.GetReplica().GetOrdinal(), b.GetReplica().GetOrdinal()), cmp.Compare(a.GetCreateIndex(), b.GetCreateIndex()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return l
}

func (l *groupLook) updated(vm *blixardv1.VM) bool {
	return vm.GetReplica().GetVersion() == l.newest.GetTemplate()
}

// over reports whether a replica ended and does not start again by itself.
func over(vm *blixardv1.VM) bool {
	st := vm.GetStatus()
	return state.Ended(st.GetState()) && st.GetNextStartAt() == nil
}

// decide fills the step.
func (l *groupLook) decide() {
	l.count()
	switch {
	case l.end():
	case l.spec.GetStable():
		l.moveStable()
	default:
		l.move()
	}
}

// count counts the replicas as they are.
func (l *groupLook) count() {
	st := &blixardv1.GroupStatus{Replicas: uint32(len(l.live))}
	if was := l.group.GetStatus(); st.Replicas < l.spec.GetReplicas() {
		st.Reason, st.Message = was.GetReason(), was.GetMessage()
	}
	for _, vm := range l.live {
		if state.Ready(vm) {
			st.Ready++
		}
		if l.isAvail[vm.GetId()] {
			st.Available++
		}
		if l.updated(vm) {
			st.Updated++
			if l.isAvail[vm.GetId()] {
				st.UpdatedAvailable++
			}
		}
	}
	l.step.Status = st
}

// worth reports whether the step says anything.
func (l *groupLook) worth() bool {
	s, st := l.step.GetStatus(), l.group.GetStatus()
	return len(l.step.GetCreate())+len(l.step.GetRemove()) > 0 || l.step.GetEnd() != 0 || l.step.GetFailures() > 0 ||
		s.GetReplicas() != st.GetReplicas() || s.GetReady() != st.GetReady() || s.GetAvailable() != st.GetAvailable() ||
		s.GetReason() != st.GetReason() || s.GetUpdated() != st.GetUpdated() || s.GetUpdatedAvailable() != st.GetUpdatedAvailable()
}

// hasWay reports whether there is a version that replicas are of while the newest is not
// promoted, paused or failed.
func (l *groupLook) hasWay() bool {
	return l.way() != 0 && l.way() != l.newest.GetTemplate()
}

// way gives the template of the version to go back to; 0 when there is none.
func (l *groupLook) way() uint64 {
	return state.VersionOf(l.group, l.group.GetStatus().GetGoodVersion()).GetTemplate()
}

// target is how many replicas shall be of the newest version.
func (l *groupLook) target() int {
	wished := int(l.spec.GetReplicas())
	updated := min(int(l.step.GetStatus().GetUpdated()), wished)
	switch canaries := int(l.spec.GetUpdate().GetCanary()); {
	case l.newest.GetState() == blixardv1.RolloutState_complete || !l.hasWay():
		return wished
	case l.spec.GetPaused() || l.newest.GetState() == blixardv1.RolloutState_failed:
		return updated
	case canaries > 0 && !l.newest.GetPromoted() && !l.newest.GetRollback():
		return min(canaries, wished)
	}
	return wished
}

// end decides what the rollout comes to, if it comes to anything.
func (l *groupLook) end() bool {
	late := l.newest.GetState() == blixardv1.RolloutState_failed // it may still become what it shall be
	if !state.Rolling(l.newest.GetState()) && !late {
		return false
	}
	st, wished := l.step.GetStatus(), l.spec.GetReplicas()
	finish := func(to blixardv1.RolloutState_Enum, format string, args ...any) bool {
		l.step.End, l.step.Message = to, fmt.Sprintf(format, args...)
		return true
	}
	if st.GetReplicas() == wished && st.GetUpdatedAvailable() == wished || planted.Is(planted.RolloutStalls) && st.GetUpdatedAvailable() > 0 {
		return finish(blixardv1.RolloutState_complete, "")
	}
	if late || l.spec.GetPaused() && l.hasWay() {
		return false
	}
	target := uint32(l.target())
	if target < wished && st.GetUpdatedAvailable() >= target {
		switch {
		case l.spec.GetUpdate().GetAutoPromote():
			return finish(blixardv1.RolloutState_rolling, "")
		case l.newest.GetState() != blixardv1.RolloutState_canary:
			return finish(blixardv1.RolloutState_canary, "%d of %d replicas are of version %d, which waits to be promoted", st.GetUpdatedAvailable(), wished, l.newest.GetNumber())
		}
		return false
	}
	if vm, why := l.failing(); vm != nil {
		return finish(blixardv1.RolloutState_failed, "replica %s %s", vm.GetName(), why)
	}
	progress := max(l.group.GetStatus().GetProgress(), st.GetUpdatedAvailable())
	deadline := state.ProgressDeadline(l.spec)
	word := fmt.Sprintf("progress %d %d", l.group.GetStatus().GetAttempt(), progress)
	if l.reached(l.since(word), deadline) {
		why := l.group.GetStatus().GetMessage()
		if why == "" {
			why = l.waitsFor()
		}
		return finish(blixardv1.RolloutState_failed, "no more than %d of its %d replicas were available after %v: %s", progress, target, deadline, why)
	}
	return false
}

// waitsFor names what the first replica that is not available waits for.
func (l *groupLook) waitsFor() string {
	for _, vm := range l.live {
		if l.updated(vm) && !l.isAvail[vm.GetId()] {
			st := vm.GetStatus()
			what := st.GetMessage()
			if st.GetHealthMessage() != "" {
				what = st.GetHealthMessage()
			}
			return fmt.Sprintf("VM %s is %s: %s", vm.GetName(), st.GetState(), what)
		}
	}
	return "the others are not replaced yet"
}

// failing gives a replica that shows that the newest version fails, and how.
func (l *groupLook) failing() (*blixardv1.VM, string) {
	for _, vm := range l.live {
		st := vm.GetStatus()
		switch {
		case !l.updated(vm) || state.Ready(vm) && l.isAvail[vm.GetId()]:
		case over(vm) && (l.group.GetStatus().GetFailures()+1 >= failuresFailing || vm.GetSpec().GetRestart().GetMode() != blixardv1.RestartMode_never):
			return vm, fmt.Sprintf("is %s: %s", st.GetState(), st.GetMessage())
		case st.GetRestarts() >= restartsFailing:
			return vm, fmt.Sprintf("was started again %d times: %s", st.GetRestarts(), st.GetMessage())
		case st.GetHealth() == blixardv1.Health_unhealthy:
			return vm, "is unhealthy: " + st.GetHealthMessage()
		}
	}
	return nil, ""
}

// create makes so many replicas of a version, unless the newest try waits.
func (l *groupLook) create(n int, version uint64, ordinals ...uint32) {
	st := l.group.GetStatus()
	if n <= 0 || planted.Is(planted.ReplicaNotReplaced) && st.GetMade() >= uint64(l.spec.GetReplicas()) {
		return
	}
	if st.GetReason() != "" && st.GetReason() != reasonGoing && !l.reached(l.since(fmt.Sprintf("blocked %d", st.GetMade())), blockedWait) {
		return
	}
	for i := range min(n, groupMovesMax-len(l.step.Create)) {
		r := &blixardv1.Replica{GroupId: l.group.GetId(), Version: version}
		if len(ordinals) > 0 {
			r.Ordinal = ordinals[i]
		}
		l.step.Create = append(l.step.Create, r)
	}
}

func (l *groupLook) remove(reason string, vms ...*blixardv1.VM) {
	for _, vm := range vms {
		if len(l.step.Remove) == groupMovesMax {
			return
		}
		l.step.Remove = append(l.step.Remove, vm.GetId())
		l.step.RemoveReason = reason
	}
}

// replaceOver removes replicas that ended for good, after a wait that grows with the
// failures; it reports whether there were such.
func (l *groupLook) replaceOver() bool {
	failures := l.group.GetStatus().GetFailures()
	wait := replicaRetryWait
	for n := failures; n > 0 && wait < replicaRetryMax; n-- {
		wait *= 2
	}
	for _, vm := range l.live {
		if over(vm) && l.reached(l.since("over "+vm.GetId()), min(wait, replicaRetryMax)) {
			l.remove("ended", vm)
			l.step.Failures++
		}
	}
	return len(l.step.Remove) > 0
}

// spare is how many replicas may be taken away: those beyond what must be available, but for
// those of the newest version that are not yet.
func (l *groupLook) spare() int {
	st := l.step.GetStatus()
	least := int(l.spec.GetReplicas()) - state.Unavailable(l.spec)
	return max(0, len(l.live)-least-int(st.GetUpdated()-st.GetUpdatedAvailable()))
}

// move makes and removes replicas that are not stable.
func (l *groupLook) move() {
	if l.replaceOver() {
		return
	}
	wished, st := int(l.spec.GetReplicas()), l.step.GetStatus()
	surge := state.Surge(l.spec)
	if planted.Is(planted.SurgeNotChecked) {
		surge += 2
	}
	target, updated := l.target(), int(st.GetUpdated())
	others := len(l.live) - updated
	if !state.Rolling(l.newest.GetState()) && l.newest.GetState() != blixardv1.RolloutState_failed && others == 0 {
		surge = 0
	}
	// First as many as there shall be, and more of the newest version while it is rolled out.
	if others+updated < wished || updated < target && len(l.live) < wished+surge {
		more := min(max(0, target-updated), wished+surge-len(l.live))
		l.create(more, l.newest.GetTemplate())
		if rest := wished - len(l.live) - more; rest > 0 && l.hasWay() {
			l.create(rest, l.way())
		}
		if len(l.step.Create) > 0 {
			return
		}
	}
	// Then those go that are too many: what is not available first, then old versions, then
	// the newest.
	old := l.pick(func(vm *blixardv1.VM) bool { return !l.updated(vm) })
	fresh := l.pick(l.updated)
	tooOld := others - (wished - target)
	if surplus := len(l.live) - wished - surge; surplus > 0 {
		l.remove("scaled", append(slices.Clone(old), fresh...)[:surplus]...)
		return
	}
	if target < wished && updated > target {
		l.remove("scaled", l.may(fresh[:updated-target])...)
		return
	}
	if updated >= wished && others == 0 && len(l.live) > wished {
		l.remove("scaled", l.may(fresh[:len(l.live)-wished])...)
		return
	}
	if n := min(tooOld, len(old)); n > 0 {
		l.remove("updated", l.may(old[:n])...)
	}
}

// pick gives the replicas of a kind in the order in which they go.
func (l *groupLook) pick(which func(*blixardv1.VM) bool) []*blixardv1.VM {
	var vms []*blixardv1.VM
	for _, vm := range l.live {
		if which(vm) {
			vms = append(vms, vm)
		}
	}
	rank := func(vm *blixardv1.VM) int {
		switch {
		case l.isAvail[vm.GetId()]:
			return 2
		case state.Ready(vm):
			return 1
		}
		return 0
	}
	slices.SortStableFunc(vms, func(a, b *blixardv1.VM) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.GetReplica().GetOrdinal(), a.GetReplica().GetOrdinal()), cmp.Compare(b.GetCreateIndex(), a.GetCreateIndex()))
	})
	return vms
}

// may gives the first of vms that may go without leaving too few available.
func (l *groupLook) may(vms []*blixardv1.VM) []*blixardv1.VM {
	if planted.Is(planted.AvailabilityNotChecked) {
		return vms
	}
	spare := l.spare()
	left := int(l.step.GetStatus().GetAvailable()) - (int(l.spec.GetReplicas()) - state.Unavailable(l.spec))
	var out []*blixardv1.VM
	for _, vm := range vms {
		if state.Ready(vm) {
			if left <= 0 {
				continue
			}
			if l.isAvail[vm.GetId()] {
				left--
			}
		}
		if len(out) < spare {
			out = append(out, vm)
		}
	}
	return out
}

// moveStable makes and removes stable replicas: each has its place, and is replaced in it,
// the highest first.
func (l *groupLook) moveStable() {
	if l.replaceOver() {
		return
	}
	wished := l.spec.GetReplicas()
	here := map[uint32]bool{}
	var beyond, old []*blixardv1.VM
	for _, vm := range l.live {
		here[vm.GetReplica().GetOrdinal()] = true
		switch {
		case vm.GetReplica().GetOrdinal() >= wished:
			beyond = append(beyond, vm)
		case !l.updated(vm):
			old = append(old, vm)
		}
	}
	if len(beyond) > 0 {
		slices.Reverse(beyond)
		l.remove("scaled", beyond...)
		return
	}
	waits := map[uint32]bool{}
	for _, vm := range l.going {
		waits[vm.GetReplica().GetOrdinal()] = true
		if st := l.step.GetStatus(); vm.GetReplica().GetOrdinal() < wished && st.GetReason() == "" {
			st.Reason, st.Message = reasonGoing, fmt.Sprintf("VM %s is made again once node %s has removed it", vm.GetName(), vm.GetStatus().GetNode())
		}
	}
	target, updated := l.target(), int(l.step.GetStatus().GetUpdated())
	var fresh, back []uint32
	missing := 0
	for i := wished; i > 0; i-- {
		switch ordinal := i - 1; {
		case here[ordinal]:
		case waits[ordinal]:
			missing++
		case updated+len(fresh) < target:
			fresh = append(fresh, ordinal)
		default:
			back = append(back, ordinal)
		}
	}
	if len(fresh)+len(back) > 0 {
		l.create(len(fresh), l.newest.GetTemplate(), fresh...)
		if l.hasWay() {
			l.create(len(back), l.way(), back...)
		}
		return
	}
	if n := target - updated - missing; n > 0 {
		slices.Reverse(old)
		l.remove("updated", l.may(old[:min(n, len(old))])...)
	}
}

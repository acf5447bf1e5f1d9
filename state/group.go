package state

import (
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

const (
	rolling    = blixardv1.RolloutState_rolling
	canary     = blixardv1.RolloutState_canary
	complete   = blixardv1.RolloutState_complete
	failed     = blixardv1.RolloutState_failed
	rolledBack = blixardv1.RolloutState_rolled_back
	superseded = blixardv1.RolloutState_superseded
)

// groupIDPattern is what ids look like; a name of that form could be taken for one.
var groupIDPattern = regexp.MustCompile(`^group-[a-z0-9]{16}$`)

// GroupOf gives the id of the group of a VM, "" when it has none.
func GroupOf(vm *blixardv1.VM) string { return vm.GetReplica().GetGroupId() }

// VersionOf gives a version of a group that is remembered, or nil.
func VersionOf(g *blixardv1.Group, number uint64) *blixardv1.GroupVersion {
	for _, v := range g.GetVersions() {
		if v.GetNumber() == number {
			return v
		}
	}
	return nil
}

// ofTemplate gives the newest version of a template.
func ofTemplate(g *blixardv1.Group, template uint64) *blixardv1.GroupVersion {
	var found *blixardv1.GroupVersion
	for _, v := range g.GetVersions() {
		if v.GetTemplate() == template {
			found = v
		}
	}
	return found
}

// NewestVersion gives the version that the replicas shall be of.
func NewestVersion(g *blixardv1.Group) *blixardv1.GroupVersion {
	return VersionOf(g, g.GetStatus().GetVersion())
}

// Rolling reports whether a rollout goes on or waits.
func Rolling(s blixardv1.RolloutState_Enum) bool { return s == rolling || s == canary }

func (b *batch) group(ref string) *blixardv1.Group { return groupNamed(b.db, ref) }

func (b *batch) putGroup(g *blixardv1.Group) {
	g.ModifyIndex = b.index
	insert(b.db, tableGroup, g)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindGroup, Group: g})
}

func (b *batch) dropGroup(old *blixardv1.Group) {
	g := copyGroup(old)
	remove(b.db, tableGroup, old)
	g.ModifyIndex, g.Deleting = b.index, true
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindGroup, Group: g, Deleted: true})
	b.groupEvent(g, "group.deleted", "", "the group and its VMs are gone")
}

func (b *batch) groupEvent(g *blixardv1.Group, kind, reason, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "group", ObjectId: g.GetId(), ObjectName: g.GetName(), Reason: reason, Message: message})
}

// copyGroup is a copy with a status and a list of versions of its own. A version that
// changes is replaced in it: see changeVersion.
func copyGroup(g *blixardv1.Group) *blixardv1.Group {
	return &blixardv1.Group{
		Id: g.Id, Name: g.Name, Spec: g.Spec, Status: proto.CloneOf(g.Status), Generation: g.Generation, CreateIndex: g.CreateIndex,
		ModifyIndex: g.ModifyIndex, CreatedAt: g.CreatedAt, Deleting: g.Deleting, Project: g.Project,
		Versions: append([]*blixardv1.GroupVersion(nil), g.Versions...),
	}
}

// changeVersion replaces the newest version of g, a fresh copy, by one that is changed.
func changeVersion(g *blixardv1.Group, change func(*blixardv1.GroupVersion)) {
	last := len(g.Versions) - 1
	v := g.Versions[last]
	next := &blixardv1.GroupVersion{
		Number: v.Number, Vm: v.Vm, Labels: v.Labels, CreatedAt: v.CreatedAt, Actor: v.Actor, Cause: v.Cause,
		State: v.State, Message: v.Message, Promoted: v.Promoted, Rollback: v.Rollback, Template: v.Template,
	}
	change(next)
	g.Versions[last] = next
}

func groupNotFound(ref string) *problem.Error {
	return problem.New(problem.NotFound, "group.not_found", "there is no group %q", ref).
		WithHint("`blixard group list` shows the groups")
}

// changeableGroup finds a group that is not being deleted.
func (b *batch) changeableGroup(ref string) (*blixardv1.Group, *problem.Error) {
	g := b.group(ref)
	switch {
	case g == nil:
		return nil, groupNotFound(ref)
	case g.GetDeleting():
		return nil, problem.New(problem.Conflict, "group.deleting", "group %q is being deleted", g.GetName()).
			WithHint("wait until it is gone, or use another name")
	}
	return g, nil
}

// createGroup declares a group; the leader makes its replicas.
func (b *batch) createGroup(c *blixardv1.CreateGroupCommand) Result {
	switch {
	case c.GetId() == "" || c.GetName() == "" || c.GetSpec().GetVm() == nil:
		return refused(b.index, problem.New(problem.Invalid, "group.incomplete", "a group needs an id, a name and a template").
			WithHint("this is a fault of the proposer: report it"))
	case groupIDPattern.MatchString(c.GetName()) || idPattern.MatchString(c.GetName()):
		return refused(b.index, problem.New(problem.Invalid, "group.name_is_id", "the name %q looks like an id", c.GetName()).
			WithHint("choose a name that does not begin with group-, vm- or task- and 16 letters or digits").WithField("name"))
	case b.group(c.GetName()) != nil || b.group(c.GetId()) != nil:
		return refused(b.index, problem.New(problem.Conflict, "group.name_taken", "there is a group %q already", c.GetName()).
			WithHint("choose another name, or change that group: blixard group update %s", c.GetName()).WithField("name"))
	case count[blixardv1.Group](b.db, tableGroup) >= groupsMax:
		return refused(b.index, problem.New(problem.NoCapacity, "group.too_many", "there are %d groups", groupsMax).
			WithHint("delete those that are not needed"))
	}
	if why := checkName(c.GetName(), c.GetProject()); why != nil {
		return refused(b.index, why)
	}
	if why := CheckGroup(c.GetSpec()); why != nil {
		return refused(b.index, why.Under("spec"))
	}
	g := &blixardv1.Group{
		Id: c.GetId(), Name: c.GetName(), Spec: c.GetSpec(), Generation: 1, CreateIndex: b.index, CreatedAt: b.time,
		Project: storedProject(c.GetProject()), Status: &blixardv1.GroupStatus{},
	}
	b.addVersion(g, "created", nil, false)
	b.putGroup(g)
	b.groupEvent(g, "group.created", "", fmt.Sprintf("the group was declared with %d replicas", g.GetSpec().GetReplicas()))
	return Result{Index: b.index, Group: g}
}

// addVersion makes a version of the template in the spec of g, a fresh copy; of is the
// version that it is of, if it was there before.
func (b *batch) addVersion(g *blixardv1.Group, cause string, of *blixardv1.GroupVersion, rollback bool) {
	st := g.Status
	if last := NewestVersion(g); last != nil && Rolling(last.GetState()) {
		changeVersion(g, func(v *blixardv1.GroupVersion) {
			v.State, v.Message = superseded, fmt.Sprintf("version %d came before it was complete", st.Version+1)
		})
	}
	st.Version++
	st.Attempt++
	st.Progress, st.Failures, st.Updated, st.UpdatedAvailable = 0, 0, 0, 0
	st.Reason, st.Message = "", ""
	template := st.Version
	if of != nil {
		template = of.GetTemplate()
	}
	g.Versions = append(g.Versions, &blixardv1.GroupVersion{
		Number: st.Version, Template: template, Vm: g.Spec.Vm, Labels: g.Spec.Labels, CreatedAt: b.time, Actor: b.actor, Cause: cause, State: rolling, Rollback: rollback,
	})
	trimVersions(g)
	if st.Version > 1 {
		b.groupEvent(g, "group.rollout", "begun", fmt.Sprintf("version %d is rolled out: %s", st.Version, cause))
	}
}

// trimVersions forgets the oldest versions of g, a fresh copy; never the newest and the one
// to go back to.
func trimVersions(g *blixardv1.Group) {
	for len(g.Versions) > 2 && (len(g.Versions) > versionsMax || proto.Size(g) > groupBytesMax) {
		oldest := 0
		if g.Versions[0].GetNumber() == g.GetStatus().GetGoodVersion() {
			oldest = 1
		}
		g.Versions = append(g.Versions[:oldest], g.Versions[oldest+1:]...)
	}
}

func (b *batch) updateGroup(c *blixardv1.UpdateGroupCommand) Result {
	old, why := b.changeableGroup(c.GetName())
	if why != nil {
		return refused(b.index, why)
	}
	spec := c.GetSpec()
	fixed := "stable"
	if spec.GetStable() == old.GetSpec().GetStable() {
		fixed = "volumes"
	}
	switch {
	case c.GetExpectedGeneration() != 0 && c.GetExpectedGeneration() != old.GetGeneration():
		return refused(b.index, problem.New(problem.Conflict, "group.generation_mismatch", "group %q is of generation %d, not %d", old.GetName(), old.GetGeneration(), c.GetExpectedGeneration()).
			WithHint("read the group again and repeat the change"))
	case spec.GetVm() == nil:
		return refused(b.index, problem.New(problem.Invalid, "group.incomplete", "a group needs a template"))
	case spec.GetStable() != old.GetSpec().GetStable() || !sameReplicaVolumes(spec, old.GetSpec()):
		return refused(b.index, problem.New(problem.Invalid, "group.names_change", "whether the replicas of group %q are stable, and their own volumes, can't change", old.GetName()).
			WithHint("make another group").WithField("spec.%s", fixed))
	}
	if why := CheckGroup(spec); why != nil {
		return refused(b.index, why.Under("spec"))
	}
	if proto.Equal(spec, old.GetSpec()) {
		return Result{Index: b.index, Group: old}
	}
	g := copyGroup(old)
	g.Spec = spec
	g.Generation++
	if spec.GetReplicas() != old.GetSpec().GetReplicas() {
		b.groupEvent(g, "group.scaled", "", fmt.Sprintf("from %d to %d replicas", old.GetSpec().GetReplicas(), spec.GetReplicas()))
	}
	if !proto.Equal(spec.GetVm(), old.GetSpec().GetVm()) || !sameLabels(spec.GetLabels(), old.GetSpec().GetLabels()) {
		b.addVersion(g, "updated", nil, false)
	} else {
		b.groupEvent(g, "group.updated", "", "the rules of the group were changed")
	}
	b.putGroup(g)
	return Result{Index: b.index, Group: g}
}

func sameReplicaVolumes(x, y *blixardv1.GroupSpec) bool {
	return proto.Equal(&blixardv1.GroupSpec{Volumes: x.GetVolumes()}, &blixardv1.GroupSpec{Volumes: y.GetVolumes()})
}

func sameLabels(x, y map[string]string) bool {
	return proto.Equal(&blixardv1.GroupSpec{Labels: x}, &blixardv1.GroupSpec{Labels: y})
}

// changeGroup carries out a person's wish.
func (b *batch) changeGroup(c *blixardv1.ChangeGroupCommand) Result {
	old, why := b.changeableGroup(c.GetName())
	if why != nil {
		return refused(b.index, why)
	}
	g := copyGroup(old)
	g.Generation++
	changed := false
	switch c.GetChange() {
	case blixardv1.GroupChange_scale:
		changed, why = b.scale(g, c.GetReplicas())
	case blixardv1.GroupChange_pause:
		if changed = !g.GetSpec().GetPaused(); changed {
			g.Spec = proto.CloneOf(g.Spec)
			g.Spec.Paused = true
			b.groupEvent(g, "group.paused", "", "no replica is replaced by one of another version until it is resumed")
		}
	case blixardv1.GroupChange_resume:
		changed = b.resume(g)
	case blixardv1.GroupChange_promote:
		changed, why = true, b.promote(g)
	case blixardv1.GroupChange_restart:
		changed = true
		b.addVersion(g, "restart", nil, false)
	case blixardv1.GroupChange_undo:
		changed, why = true, b.undo(g, c.GetVersion())
	default:
		why = problem.New(problem.Invalid, "group.change", "%v is no change of a group", c.GetChange())
	}
	switch {
	case why != nil:
		return refused(b.index, why)
	case !changed:
		return Result{Index: b.index, Group: old}
	}
	b.putGroup(g)
	return Result{Index: b.index, Group: g}
}

func (b *batch) scale(g *blixardv1.Group, replicas uint32) (changed bool, why *problem.Error) {
	before := g.GetSpec().GetReplicas()
	if replicas == before {
		return false, nil
	}
	g.Spec = proto.CloneOf(g.Spec)
	g.Spec.Replicas = replicas
	if why := CheckGroup(g.Spec); why != nil {
		return false, why
	}
	b.groupEvent(g, "group.scaled", "", fmt.Sprintf("from %d to %d replicas", before, replicas))
	return true, nil
}

// resume ends a pause, and gives a rollout that failed its time anew.
func (b *batch) resume(g *blixardv1.Group) bool {
	again := NewestVersion(g).GetState() == failed
	if !g.GetSpec().GetPaused() && !again {
		return false
	}
	if g.GetSpec().GetPaused() {
		g.Spec = proto.CloneOf(g.Spec)
		g.Spec.Paused = false
	}
	if again {
		changeVersion(g, func(v *blixardv1.GroupVersion) { v.State, v.Message = rolling, "" })
	}
	g.Status.Attempt++
	g.Status.Progress, g.Status.Failures = 0, 0
	b.groupEvent(g, "group.resumed", "", "the rollout goes on")
	return true
}

func (b *batch) promote(g *blixardv1.Group) *problem.Error {
	v := NewestVersion(g)
	if g.GetSpec().GetUpdate().GetCanary() == 0 || !Rolling(v.GetState()) || v.GetPromoted() || g.GetStatus().GetGoodVersion() == 0 {
		return problem.New(problem.Conflict, "group.no_canary", "no version of group %q waits to be promoted: version %d is %s", g.GetName(), v.GetNumber(), words(v.GetState())).
			WithHint("`blixard group update --canary 1` makes later versions begin with one replica and wait")
	}
	b.promoteVersion(g)
	return nil
}

func (b *batch) promoteVersion(g *blixardv1.Group) {
	changeVersion(g, func(v *blixardv1.GroupVersion) { v.State, v.Promoted, v.Message = rolling, true, "" })
	g.Status.Attempt++
	b.groupEvent(g, "group.promoted", "", fmt.Sprintf("version %d goes on beyond its canaries", g.GetStatus().GetVersion()))
}

// undo takes the template of an earlier version.
func (b *batch) undo(g *blixardv1.Group, number uint64) *problem.Error {
	newest := g.GetStatus().GetVersion()
	to := VersionOf(g, number)
	var known []string
	for _, v := range g.GetVersions() {
		if v.GetNumber() == newest {
			continue
		}
		known = append(known, fmt.Sprint(v.GetNumber()))
		if number == 0 && v.GetState() == complete {
			to = v
		}
	}
	switch {
	case to == nil && number == 0:
		return problem.New(problem.NotFound, "group.no_version", "group %q has no earlier version whose rollout was complete", g.GetName()).
			WithHint("`blixard group history %s` shows its versions; name one with --to-version", g.GetName())
	case to == nil:
		p := problem.New(problem.NotFound, "group.no_version", "group %q has no version %d", g.GetName(), number)
		if len(known) == 0 {
			return p.WithHint("it has none but the present one, %d", newest)
		}
		return p.WithHint("it can be %s; %d is the present one, and at most %d are kept", strings.Join(known, ", "), newest, versionsMax)
	case to.GetNumber() == newest:
		return problem.New(problem.Conflict, "group.version_is_present", "group %q is of version %d", g.GetName(), newest).
			WithHint("`blixard group history %s` shows the earlier ones", g.GetName())
	}
	return b.goBack(g, to, fmt.Sprintf("undo to %d", to.GetNumber()), false)
}

// goBack makes a version of the template of an earlier one.
func (b *batch) goBack(g *blixardv1.Group, to *blixardv1.GroupVersion, cause string, rollback bool) *problem.Error {
	spec := proto.CloneOf(g.Spec)
	spec.Vm, spec.Labels = to.GetVm(), to.GetLabels()
	if why := CheckGroup(spec); why != nil {
		return why // its number of replicas, or its rules, do not fit that template
	}
	g.Spec = spec
	b.addVersion(g, cause, to, rollback)
	return nil
}

func words(s blixardv1.RolloutState_Enum) string { return strings.ReplaceAll(s.String(), "_", " ") }

// deleteGroup deletes the VMs; the group goes with the last of them.
func (b *batch) deleteGroup(c *blixardv1.DeleteGroupCommand) Result {
	old := b.group(c.GetName())
	if old == nil {
		return refused(b.index, groupNotFound(c.GetName()))
	}
	if old.GetDeleting() {
		return Result{Index: b.index, Group: old}
	}
	g := copyGroup(old)
	g.Deleting = true
	b.putGroup(g)
	b.groupEvent(g, "group.deleting", "", "a delete was asked for")
	vms := b.replicasOf(g.GetId())
	if len(vms) == 0 {
		b.dropGroup(g)
	}
	for _, vm := range vms { // the last one takes the group with it
		b.deleteVM(&blixardv1.DeleteVMCommand{Name: vm.GetId()})
	}
	return Result{Index: b.index, Group: g}
}

// rollBack goes back to the good version of g, a fresh copy, when its owner wants it and
// it can be done; it reports whether it was.
func (b *batch) rollBack(g *blixardv1.Group, why string) bool {
	newest, good := NewestVersion(g), VersionOf(g, g.GetStatus().GetGoodVersion())
	if !g.GetSpec().GetUpdate().GetAutoRollback() || good == nil || newest.GetRollback() || good.GetNumber() == newest.GetNumber() {
		return false
	}
	changeVersion(g, func(v *blixardv1.GroupVersion) { v.State, v.Message = rolledBack, why })
	b.groupEvent(g, "group.rolled_back", "failed", fmt.Sprintf("version %d failed, and version %d is taken again: %s", newest.GetNumber(), good.GetNumber(), why))
	if b.goBack(g, good, fmt.Sprintf("rollback of %d to %d: %s", newest.GetNumber(), good.GetNumber(), why), true) != nil {
		changeVersion(g, func(v *blixardv1.GroupVersion) { v.State = failed })
	}
	return true
}

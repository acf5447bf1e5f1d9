package state

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// replicasOf gives the VMs of a group, those that are being deleted too, ordered by id.
func (b *batch) replicasOf(groupID string) []*blixardv1.VM {
	var vms []*blixardv1.VM
	for _, vm := range all[blixardv1.VM](b.db, tableVM, indexGroup, groupID) {
		if _, touched := b.byID[vm.GetId()]; !touched {
			vms = append(vms, vm)
		}
	}
	for _, vm := range b.byID {
		if vm != nil && GroupOf(vm) == groupID {
			vms = append(vms, vm)
		}
	}
	slices.SortFunc(vms, func(x, y *blixardv1.VM) int { return cmp.Compare(x.GetId(), y.GetId()) })
	return vms
}

// Ready reports whether a VM runs, and is healthy where it has a check.
func Ready(vm *blixardv1.VM) bool {
	st := vm.GetStatus()
	return !vm.GetDeleting() && st.GetState() == stRunning && !st.GetPaused() &&
		(vm.GetSpec().GetHealth() == nil || st.GetHealth() == blixardv1.Health_healthy)
}

// noteReady notes since when a replica is ready; vm is about to be put. Another start begins
// anew.
func (b *batch) noteReady(vm *blixardv1.VM) {
	before := b.vm(vm.GetId())
	switch {
	case !Ready(vm):
		vm.ReadySince = nil
	case vm.ReadySince == nil || !proto.Equal(before.GetStatus().GetStartedAt(), vm.GetStatus().GetStartedAt()):
		vm.ReadySince = b.time
	}
}

// replicaGone is told of a VM that is dropped: a group that is being deleted goes with its
// last one.
func (b *batch) replicaGone(vm *blixardv1.VM) {
	if g := b.group(GroupOf(vm)); g.GetDeleting() && len(b.replicasOf(g.GetId())) == 0 {
		b.dropGroup(g)
	}
}

// ofGroup is why a person can't change a replica alone.
func (b *batch) ofGroup(vm *blixardv1.VM) *problem.Error {
	name := b.group(GroupOf(vm)).GetName()
	return problem.New(problem.Conflict, "vm.of_group", "VM %q is a replica of group %q", vm.GetName(), name).
		WithHint("change all of them with `blixard group update %s`, or delete this one to have it replaced: blixard vm delete %s", name, vm.GetName())
}

// stepGroups carries groups on. Each step is refused by itself.
func (b *batch) stepGroups(c *blixardv1.StepGroupsCommand) Result {
	r := Result{Index: b.index}
	for _, s := range c.GetSteps() {
		if why := b.stepGroup(s); why != nil {
			r.Refused = append(r.Refused, Refusal{GroupID: s.GetGroupId(), Problem: why})
		}
	}
	if n := len(r.Refused); n > 0 && n == len(c.GetSteps()) {
		r.Problem = r.Refused[0].Problem
	}
	return r
}

func (b *batch) stepGroup(s *blixardv1.GroupStep) *problem.Error {
	old, why := b.changeableGroup(s.GetGroupId())
	if why != nil {
		return why
	}
	if old.GetModifyIndex() != s.GetGroupModifyIndex() {
		return problem.New(problem.Conflict, "group.stale", "group %q was changed at index %d, not %d", old.GetName(), old.GetModifyIndex(), s.GetGroupModifyIndex())
	}
	if why := b.stepFits(old, s); why != nil {
		return why
	}
	g := copyGroup(old)
	take(g, s)
	for _, id := range s.GetRemove() {
		vm := b.vm(id)
		b.groupEvent(g, "group.replica_removed", s.GetRemoveReason(), fmt.Sprintf("VM %s of version %d: %s", vm.GetName(), vm.GetReplica().GetVersion(), s.GetRemoveReason()))
		b.deleteVM(&blixardv1.DeleteVMCommand{Name: id})
	}
	for _, r := range s.GetCreate() {
		if why := b.makeReplica(g, r); why != nil {
			if g.Status.Reason != why.Code || g.Status.Message != why.Message {
				b.groupEvent(g, "group.blocked", why.Code, why.Message)
			}
			g.Status.Reason, g.Status.Message = why.Code, why.Message
			break
		}
	}
	b.endRollout(g, s)
	b.putGroup(g)
	return nil
}

// take takes over what the leader observed of g, a fresh copy.
func take(g *blixardv1.Group, s *blixardv1.GroupStep) {
	st, seen := g.Status, s.GetStatus()
	st.Replicas, st.Ready, st.Available = seen.GetReplicas(), seen.GetReady(), seen.GetAvailable()
	st.Updated, st.UpdatedAvailable = seen.GetUpdated(), seen.GetUpdatedAvailable()
	st.Progress = max(st.Progress, st.UpdatedAvailable)
	if st.Failures += s.GetFailures(); st.UpdatedAvailable >= g.GetSpec().GetReplicas() {
		st.Failures = 0
	}
	st.Reason, st.Message = seen.GetReason(), seen.GetMessage()
	if len(s.GetCreate()) > 0 {
		st.Reason, st.Message = "", ""
	}
}

// stepFits looks whether a step keeps to what the group allows, as its VMs are now: they
// may have changed since the leader looked.
func (b *batch) stepFits(g *blixardv1.Group, s *blixardv1.GroupStep) *problem.Error {
	unfit := func(format string, args ...any) *problem.Error {
		return problem.New(problem.Conflict, "group.unfit", "group %q: %s", g.GetName(), fmt.Sprintf(format, args...))
	}
	spec := g.GetSpec()
	live, ready, gone := 0, 0, 0
	for _, vm := range b.replicasOf(g.GetId()) {
		switch {
		case vm.GetDeleting():
			continue
		case !containsString(s.GetRemove(), vm.GetId()):
			live++
			if Ready(vm) {
				ready++
			}
			continue
		case Ready(vm) && (!spec.GetStable() || vm.GetReplica().GetOrdinal() < spec.GetReplicas()):
			gone++
		}
		live++
	}
	least := int(spec.GetReplicas()) - Unavailable(spec)
	if gone > 0 && ready < least && !planted.Is(planted.AvailabilityNotChecked) {
		return unfit("%d ready replicas would be left, and it wants %d", ready, least)
	}
	for i, id := range s.GetRemove() {
		if vm := b.vm(id); vm == nil || vm.GetId() != id || GroupOf(vm) != g.GetId() || vm.GetDeleting() || containsString(s.GetRemove()[:i], id) {
			return unfit("%s is no replica to remove", id)
		}
	}
	most := int(spec.GetReplicas()) + Surge(spec)
	if n := live - len(s.GetRemove()) + len(s.GetCreate()); len(s.GetCreate()) > 0 && n > most && !planted.Is(planted.SurgeNotChecked) {
		return unfit("it would have %d replicas, and allows %d", n, most)
	}
	for _, r := range s.GetCreate() {
		if r.GetGroupId() != g.GetId() || ofTemplate(g, r.GetVersion()) == nil || r.GetOrdinal() > 0 && r.GetOrdinal() >= spec.GetReplicas() {
			return unfit("number %d of version %d is no replica to make", r.GetOrdinal(), r.GetVersion())
		}
	}
	newest := NewestVersion(g)
	switch s.GetEnd() {
	case blixardv1.RolloutState_unspecified:
	case rolling, canary, complete, failed:
		late := s.GetEnd() == complete && newest.GetState() == failed
		if !late && !Rolling(newest.GetState()) {
			return unfit("the rollout of version %d is %s", newest.GetNumber(), words(newest.GetState()))
		}
	default:
		return unfit("%s is no end of a rollout", words(s.GetEnd()))
	}
	return nil
}

// endRollout takes over what the leader found of the rollout of the newest version.
func (b *batch) endRollout(g *blixardv1.Group, s *blixardv1.GroupStep) {
	number := g.GetStatus().GetVersion()
	switch s.GetEnd() {
	case rolling:
		b.promoteVersion(g)
	case canary:
		changeVersion(g, func(v *blixardv1.GroupVersion) { v.State, v.Message = canary, s.GetMessage() })
		b.groupEvent(g, "group.rollout", "canary", s.GetMessage())
	case complete:
		changeVersion(g, func(v *blixardv1.GroupVersion) { v.State, v.Message = complete, "" })
		g.Status.GoodVersion, g.Status.Failures = number, 0
		b.groupEvent(g, "group.rollout", "complete", fmt.Sprintf("all %d replicas are of version %d and available", g.GetSpec().GetReplicas(), number))
	case failed:
		if b.rollBack(g, s.GetMessage()) {
			return
		}
		changeVersion(g, func(v *blixardv1.GroupVersion) { v.State, v.Message = failed, s.GetMessage() })
		b.groupEvent(g, "group.rollout", "failed", fmt.Sprintf("version %d: %s", number, s.GetMessage()))
	}
}

// suffixLength of the names of replicas that are not stable: 25 bits.
const suffixLength = 5

// replicaID is made of the group and how many replicas it had: the same wherever it is
// made, and never met again.
func replicaID(g *blixardv1.Group) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s %d", g.GetId(), g.GetStatus().GetMade())))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// makeReplica declares one VM of g, a fresh copy.
func (b *batch) makeReplica(g *blixardv1.Group, r *blixardv1.Replica) *problem.Error {
	g.Status.Made++
	v, id := ofTemplate(g, r.GetVersion()), replicaID(g)
	name := g.GetName() + "-" + id[:suffixLength]
	if g.GetSpec().GetStable() {
		name = fmt.Sprintf("%s-%d", g.GetName(), r.GetOrdinal())
	}
	if other := b.vm(name); other != nil {
		if GroupOf(other) == g.GetId() {
			return problem.New(problem.Conflict, "group.replica_there", "VM %q is there still", name).WithHint("it is made when that one is gone")
		}
		return problem.New(problem.Conflict, "vm.name_taken", "VM %q has the name of a replica, and is not one of the group", name).
			WithHint("rename that VM: blixard vm rename %s OTHER", name)
	}
	spec := proto.CloneOf(v.GetVm())
	spec.Desired = blixardv1.DesiredState_run
	vm := &blixardv1.VM{
		Id: "vm-" + id, Name: name, Spec: spec, Generation: 1, CreateIndex: b.index, CreatedAt: b.time, Labels: v.GetLabels(),
		Project: g.GetProject(), Replica: r, Status: &blixardv1.VMStatus{State: stPending, Reason: reasonDeclared},
	}
	if why := b.makeReplicaVolumes(g, vm); why != nil {
		return why
	}
	if why := b.claimAll(vm, nil); why != nil {
		return why
	}
	b.putVM(vm)
	b.vmEvent(vm, "vm.created", reasonDeclared, fmt.Sprintf("group %s made it, of version %d", g.GetName(), r.GetVersion()))
	return nil
}

// makeReplicaVolumes gives a VM the volumes of its replica, and makes those that are not there:
// of a replica before, or made beforehand. None is made for a VM that the quota refuses.
func (b *batch) makeReplicaVolumes(g *blixardv1.Group, vm *blixardv1.VM) *problem.Error {
	var missing []*blixardv1.CreateVolumeCommand
	var bytes uint64
	counted := b.FeatureLevel() >= levelOfVolumeQuota
	for _, t := range g.GetSpec().GetVolumes() {
		volume := replicaVolume(t.GetName(), g.GetName(), vm.GetReplica().GetOrdinal())
		vm.Spec.Volumes = append(vm.Spec.Volumes, &blixardv1.VolumeAttachment{Volume: volume, Path: t.GetPath()})
		if b.volume(volume) != nil {
			continue
		}
		c := &blixardv1.CreateVolumeCommand{Id: "vol-" + volumeID(g, volume), Name: volume, SizeBytes: t.GetSizeBytes()}
		if counted {
			c.Project = g.GetProject()
			bytes += t.GetSizeBytes()
		}
		missing = append(missing, c)
	}
	if counted && len(missing) > 0 {
		if why := b.quotaAllows(vm, nil, bytes); why != nil {
			return why
		}
	}
	for _, c := range missing {
		if made := b.createVolume(c); made.Problem != nil {
			return made.Problem
		}
	}
	return nil
}

func volumeID(g *blixardv1.Group, volume string) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s %d %s", g.GetId(), g.GetStatus().GetMade(), volume)))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// Group finds a group by its id or name; nil when there is none.
func (v *View) Group(ref string) *blixardv1.Group { return groupNamed(v.db, ref) }

// Groups gives at most limit groups whose name comes after the given one, as VMs does.
func (v *View) Groups(after string, limit int) []*blixardv1.Group {
	return listAfter[blixardv1.Group](v.db, tableGroup, indexName, after, limit)
}

// Replicas gives the VMs of a group, by its id, those that are being deleted too, ordered
// by their ids.
func (v *View) Replicas(groupID string) []*blixardv1.VM {
	return all[blixardv1.VM](v.db, tableVM, indexGroup, groupID)
}

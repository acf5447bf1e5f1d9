package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// groupNames are those of groups; what begins with s has stable replicas.
var groupNames = []string{"g0", "s0"}

// badValue of the variable V makes a command end soon: see machine.becomeReady.
const (
	badValue = "0"
	badTime  = 200 * time.Millisecond
)

// bad reports whether a VM is of a version that does not work.
func bad(spec *blixardv1.VMSpec) bool {
	return len(spec.GetEnv()) > 0 && spec.GetEnv()[0].GetValue() == badValue
}

// groupReplicasMax of a group: a few, so that what else there is still finds room.
const groupReplicasMax = 3

// groups creates groups, scales, updates, undoes and deletes them, and deletes replicas.
func (w *world) groups() {
	kinds := []string{"create", "create", "scale", "update", "update", "undo", "pause", "resume", "restart", "promote", "replica", "replica", "delete"}
	var next func()
	next = func() {
		if w.quiet {
			return
		}
		cmd := w.groupChange(groupNames[w.IntN(len(groupNames))], kinds[w.IntN(len(kinds))])
		w.request(&request{cmd: cmd, tries: 3, done: func(_ state.Result, err error, _ bool) {
			if err == nil {
				w.count("operations on groups")
			}
			w.after(w.tail(4*w.faults.think), next)
		}})
	}
	w.after(time.Second, next)
}

func (w *world) groupSpec(stable bool) *blixardv1.GroupSpec {
	spec := &blixardv1.GroupSpec{
		Replicas: uint32(w.IntN(groupReplicasMax + 1)), Stable: stable,
		Vm: &blixardv1.VMSpec{
			MemoryMib: 64, Vcpus: 1, OnNodeLoss: blixardv1.NodeLossPolicy_replace, Env: []*blixardv1.EnvVar{{Name: "V", Value: fmt.Sprint(w.IntN(3))}},
			Restart: &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_always, Backoff: durationpb.New(100 * time.Millisecond)},
		},
		Update: &blixardv1.UpdateRules{
			MinHealthy: durationpb.New(w.between(0, time.Second)), ProgressDeadline: durationpb.New(w.between(10*time.Second, 20*time.Second)),
			AutoRollback: w.chance(0.5),
		},
	}
	if !stable {
		spec.Update.MaxSurge = proto.Uint32(uint32(w.IntN(3)))
	}
	spec.Update.MaxUnavailable = proto.Uint32(uint32(w.IntN(3)))
	if state.Surge(spec) == 0 && state.Unavailable(spec) == 0 {
		spec.Update.MaxUnavailable = proto.Uint32(1)
	}
	if w.chance(0.5) {
		spec.Update.Canary, spec.Update.AutoPromote = 1, w.chance(0.5)
	}
	return spec
}

func (w *world) groupChange(name, kind string) *blixardv1.Command {
	w.keys++
	cmd := &blixardv1.Command{Key: fmt.Sprintf("key-%d", w.keys), Actor: "client", Time: timestamppb.New(epoch.Add(w.now))}
	spec := w.groupSpec(strings.HasPrefix(name, "s"))
	change := &blixardv1.ChangeGroupCommand{Name: name, Replicas: spec.GetReplicas(), Change: blixardv1.GroupChange_Enum(blixardv1.GroupChange_Enum_value[kind])}
	cmd.Change = &blixardv1.Command_ChangeGroup{ChangeGroup: change}
	switch kind {
	case "create":
		cmd.Change = &blixardv1.Command_CreateGroup{CreateGroup: &blixardv1.CreateGroupCommand{Id: fmt.Sprintf("group-%d", w.keys), Name: name, Spec: spec}}
	case "update":
		cmd.Change = &blixardv1.Command_UpdateGroup{UpdateGroup: &blixardv1.UpdateGroupCommand{Name: name, Spec: spec}}
	case "delete":
		cmd.Change = &blixardv1.Command_DeleteGroup{DeleteGroup: &blixardv1.DeleteGroupCommand{Name: name}}
	case "replica":
		cmd.Change = &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: w.someReplica(name)}}
	}
	return cmd
}

// someReplica names a replica of a group, as some host knows it.
func (w *world) someReplica(name string) string {
	view := w.any().steps.View()
	vms := view.Replicas(view.Group(name).GetId())
	if len(vms) == 0 {
		return name + "-0"
	}
	return vms[w.IntN(len(vms))].GetId()
}

// crews are the replicas of groups as the log left them, to hold each step of the leader
// against what the group allows.
type crews struct {
	w      *world
	steps  map[uint64]bool // entries that carried groups on
	groups map[string]*blixardv1.Group
	vms    map[string]*blixardv1.VM
	// before are the counts of the groups that the present entry touches.
	index  uint64
	before map[string]crewCount
}

// crewCount of replicas that are not being deleted, and of those that are ready and not beyond
// the number.
type crewCount struct{ live, needed int }

func newCrews(w *world) *crews {
	return &crews{
		w: w, steps: map[uint64]bool{}, groups: map[string]*blixardv1.Group{}, vms: map[string]*blixardv1.VM{},
		before: map[string]crewCount{},
	}
}

func (c *crews) reset(view *state.View) {
	clear(c.groups)
	clear(c.vms)
	clear(c.before)
	for _, g := range view.Groups("", 0) {
		c.groups[g.GetId()] = g
		for _, vm := range view.Replicas(g.GetId()) {
			c.vms[vm.GetId()] = vm
		}
	}
}

func (c *crews) count(groupID string) (n crewCount) {
	spec := c.groups[groupID].GetSpec()
	for _, vm := range c.vms {
		if vm.GetReplica().GetGroupId() != groupID || vm.GetDeleting() {
			continue
		}
		n.live++
		healthy := vm.GetStatus().GetState() == blixardv1.AllocationState_running
		if healthy && (!spec.GetStable() || vm.GetReplica().GetOrdinal() < spec.GetReplicas()) {
			n.needed++
		}
	}
	return n
}

// begin begins an entry, unless it is the present one.
func (c *crews) begin(index uint64) {
	if index != c.index {
		c.entryEnds()
		c.index = index
	}
}

func (c *crews) vm(ch state.Change) {
	id := ch.VM.GetReplica().GetGroupId()
	if id == "" {
		return
	}
	c.begin(ch.Index)
	if _, known := c.before[id]; !known && c.steps[ch.Index] {
		c.before[id] = c.count(id)
	}
	if c.vms[ch.VM.GetId()] = ch.VM; ch.Deleted {
		delete(c.vms, ch.VM.GetId())
	}
}

// entryEnds: a step of the leader makes no more replicas than the group allows, and takes none
// away of those that it needs. What surge and unavailable mean is said here again.
func (c *crews) entryEnds() {
	for id, before := range c.before {
		g, after := c.groups[id], c.count(id)
		wished, rules := int(g.GetSpec().GetReplicas()), g.GetSpec().GetUpdate()
		if most := wished + int(rules.GetMaxSurge()); after.live > before.live && after.live > most {
			c.w.fail("group %s goes from %d to %d replicas, and allows %d", g.GetName(), before.live, after.live, most)
		}
		if least := wished - int(rules.GetMaxUnavailable()); after.needed < before.needed && after.needed < least {
			c.w.fail("group %s goes from %d to %d ready replicas, and needs %d", g.GetName(), before.needed, after.needed, least)
		}
	}
	clear(c.before)
}

// group: a rollout is complete only when all replicas are of its version, and one that fails
// is rolled back where that is wished for.
func (c *crews) group(ch state.Change) {
	g := ch.Group
	c.begin(ch.Index)
	was := c.groups[g.GetId()]
	if c.groups[g.GetId()] = g; ch.Deleted {
		delete(c.groups, g.GetId())
		return
	}
	v, before := state.NewestVersion(g), state.NewestVersion(was)
	if before.GetNumber() < v.GetNumber() && state.VersionOf(g, before.GetNumber()).GetState() == blixardv1.RolloutState_rolled_back {
		c.w.count("rollouts rolled back")
	}
	if before.GetNumber() != v.GetNumber() || before.GetState() == v.GetState() || !c.steps[ch.Index] {
		return
	}
	switch v.GetState() {
	case blixardv1.RolloutState_complete:
		c.w.count("rollouts complete")
		for _, vm := range c.vms {
			if r := vm.GetReplica(); r.GetGroupId() == g.GetId() && !vm.GetDeleting() && r.GetVersion() != v.GetTemplate() {
				c.w.fail("version %d of group %s is complete, and VM %s is of template %d", v.GetNumber(), g.GetName(), vm.GetName(), r.GetVersion())
			}
		}
	case blixardv1.RolloutState_failed:
		good := state.VersionOf(g, g.GetStatus().GetGoodVersion())
		if g.GetSpec().GetUpdate().GetAutoRollback() && !v.GetRollback() && good != nil && good != v {
			c.w.fail("version %d of group %s failed and was not rolled back", v.GetNumber(), g.GetName())
		}
	case blixardv1.RolloutState_canary:
		c.w.count("rollouts that waited")
	}
}

// unsettledGroup tells what of a group is not as it shall be once nothing happens any more.
func (w *world) unsettledGroup(view *state.View, g *blixardv1.Group) string {
	st, v, wished := g.GetStatus(), state.NewestVersion(g), g.GetSpec().GetReplicas()
	live := slices.DeleteFunc(view.Replicas(g.GetId()), func(vm *blixardv1.VM) bool { return vm.GetDeleting() })
	waits := func(vm *blixardv1.VM) bool {
		st := vm.GetStatus()
		return st.GetAllocationId() == "" && st.GetReason() != "" && st.GetReason() != "declared"
	}
	if st.GetReason() != "" || slices.ContainsFunc(live, waits) {
		return "" // it says why
	}
	switch {
	case g.GetDeleting():
		if len(view.Replicas(g.GetId())) > 0 {
			return "" // they wait for their nodes
		}
		return "it has no VMs and is not gone"
	case v.GetState() == blixardv1.RolloutState_canary, g.GetSpec().GetPaused(), v.GetState() == blixardv1.RolloutState_failed && v.GetMessage() != "":
		if len(live) < int(wished) {
			return fmt.Sprintf("it has %d replicas of %d", len(live), wished)
		}
		return ""
	case v.GetState() != blixardv1.RolloutState_complete:
		return fmt.Sprintf("version %d is %v", v.GetNumber(), v.GetState())
	case len(live) != int(wished):
		return fmt.Sprintf("it has %d replicas of %d", len(live), wished)
	}
	for _, vm := range live {
		if vm.GetReplica().GetVersion() != v.GetTemplate() {
			return fmt.Sprintf("VM %s is of template %d, and the newest is %d", vm.GetName(), vm.GetReplica().GetVersion(), v.GetTemplate())
		}
	}
	return ""
}

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
			Restart: &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_always},
		},
		Update: &blixardv1.UpdateRules{
			MinHealthy: durationpb.New(w.between(0, time.Second)), ProgressDeadline: durationpb.New(w.between(10*time.Second, time.Minute)),
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
	if w.chance(0.3) {
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

// groupEntry: a step of the leader leaves no more replicas than the group allows, and takes
// none away of those that it needs. before and after are the states around its entry.
func (c *checks) groupEntry(before, after *state.View, g *blixardv1.Group) {
	spec := g.GetSpec()
	count := func(view *state.View) (live, needed int) {
		for _, vm := range view.Replicas(g.GetId()) {
			if vm.GetDeleting() {
				continue
			}
			live++
			if state.Ready(vm) && (!spec.GetStable() || vm.GetReplica().GetOrdinal() < spec.GetReplicas()) {
				needed++
			}
		}
		return live, needed
	}
	wasLive, wasNeeded := count(before)
	live, needed := count(after)
	most := int(spec.GetReplicas()) + surgeOf(spec)
	if live > wasLive && live > most {
		c.w.fail("group %s goes from %d to %d replicas, and allows %d", g.GetName(), wasLive, live, most)
	}
	if least := int(spec.GetReplicas()) - unavailableOf(spec); needed < wasNeeded && needed < least {
		c.w.fail("group %s goes from %d to %d ready replicas, and needs %d", g.GetName(), wasNeeded, needed, least)
	}
}

// surgeOf and unavailableOf say again what the rules of a group mean, for the simulator's groups,
// which all name what they allow but for stable ones.
func surgeOf(spec *blixardv1.GroupSpec) int       { return int(spec.GetUpdate().GetMaxSurge()) }
func unavailableOf(spec *blixardv1.GroupSpec) int { return int(spec.GetUpdate().GetMaxUnavailable()) }

// group: what became of rollouts.
func (c *checks) group(g *blixardv1.Group) {
	v := state.NewestVersion(g)
	if v.GetState() == blixardv1.RolloutState_complete {
		c.w.count("rollouts complete")
	}
	for _, v := range g.GetVersions() {
		if v.GetState() == blixardv1.RolloutState_rolled_back {
			c.w.count("rollouts rolled back")
		}
		if good := g.GetStatus().GetGoodVersion(); v.GetState() == blixardv1.RolloutState_failed && v.GetNumber() == g.GetStatus().GetVersion() &&
			g.GetSpec().GetUpdate().GetAutoRollback() && !v.GetRollback() && good != 0 && good != v.GetNumber() && c.failedAt[g.GetId()] != v.GetNumber() {
			// The rules may have changed since: only the entry in which it failed counts.
			c.failedAt[g.GetId()] = v.GetNumber()
			c.w.fail("version %d of group %s failed and was not rolled back", v.GetNumber(), g.GetName())
		} else if v.GetState() == blixardv1.RolloutState_failed {
			c.failedAt[g.GetId()] = v.GetNumber()
		}
	}
}

// unsettledGroup tells what of a group is not as it shall be once nothing happens any more.
func (w *world) unsettledGroup(view *state.View, g *blixardv1.Group) string {
	st, v, wished := g.GetStatus(), state.NewestVersion(g), g.GetSpec().GetReplicas()
	live := view.Replicas(g.GetId())
	if slices.ContainsFunc(live, func(vm *blixardv1.VM) bool { return vm.GetStatus().GetReason() == "no-capacity" }) {
		return "" // it says so
	}
	switch {
	case g.GetDeleting():
		return "it is being deleted"
	case v.GetState() == blixardv1.RolloutState_canary, g.GetSpec().GetPaused(), v.GetState() == blixardv1.RolloutState_failed && v.GetMessage() != "":
		if len(live) < int(wished) && st.GetReason() == "" {
			return fmt.Sprintf("it has %d replicas of %d", len(live), wished)
		}
		return ""
	case v.GetState() != blixardv1.RolloutState_complete:
		return fmt.Sprintf("version %d is %v", v.GetNumber(), v.GetState())
	case len(live) != int(wished) && st.GetReason() == "":
		return fmt.Sprintf("it has %d replicas of %d", len(live), wished)
	}
	for _, vm := range live {
		if vm.GetReplica().GetVersion() != v.GetTemplate() {
			return fmt.Sprintf("VM %s is of template %d, and the newest is %d", vm.GetName(), vm.GetReplica().GetVersion(), v.GetTemplate())
		}
	}
	return ""
}

package leader

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// crew is a cluster with a group, whose time is that of its log: a second for each command.
type crew struct {
	*cluster
	bad map[string]bool // commands that never run
	log []string
}

func newCrew(t *testing.T) *crew {
	c := &crew{cluster: newCluster(t), bad: map[string]bool{}}
	c.node("a", 1<<20)
	c.state.View()
	return c
}

func (c *crew) now() time.Time { return time.Unix(int64(c.index), 0) }

func (c *crew) change(ch *blixardv1.ChangeGroupCommand) state.Result {
	ch.Name = "web"
	return c.apply(&blixardv1.Command{Change: &blixardv1.Command_ChangeGroup{ChangeGroup: ch}})
}

func crewSpec(command string, replicas uint32) *blixardv1.GroupSpec {
	return &blixardv1.GroupSpec{
		Replicas: replicas, Update: &blixardv1.UpdateRules{MinHealthy: durationpb.New(3 * time.Second), ProgressDeadline: durationpb.New(200 * time.Second)},
		Vm: &blixardv1.VMSpec{
			Image: "busybox", MemoryMib: 64, DiskBytes: 1 << 20, Command: []string{command},
			Restart: &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_always},
		},
	}
}

// tell reports a state of a VM.
func (c *crew) tell(vm *blixardv1.VM, st blixardv1.AllocationState_Enum, removed bool) {
	now := vm.GetStatus()
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{NodeId: "node-a", Reports: []*blixardv1.AllocationReport{
		{AllocationId: now.GetAllocationId(), Epoch: now.GetEpoch(), Status: &blixardv1.VMStatus{State: st, Message: "it " + st.String()}, Removed: removed},
	}}}})
}

// work lets the nodes do what they shall with one VM.
func (c *crew) work(vm *blixardv1.VM) bool {
	st := vm.GetStatus()
	switch {
	case st.GetAllocationId() == "":
		return false
	case vm.GetDeleting():
		c.tell(vm, blixardv1.AllocationState_stopped, true)
	case state.Ended(st.GetState()):
		return false
	case c.bad[vm.GetSpec().GetCommand()[0]]:
		c.tell(vm, blixardv1.AllocationState_failed, false)
	case st.GetState() == blixardv1.AllocationState_pending:
		c.tell(vm, blixardv1.AllocationState_running, false)
	default:
		return false
	}
	return true
}

func (c *crew) replicas() []*blixardv1.VM {
	g := c.state.View().Group("web")
	vms := c.state.View().Replicas(g.GetId())
	slices.SortFunc(vms, func(x, y *blixardv1.VM) int { return strings.Compare(x.GetName(), y.GetName()) })
	return vms
}

// step lets the leader look once.
func (c *crew) step() int {
	n := 0
	c.settle()
	for _, cmd := range c.core.GroupsDue(c.state.View(), c.now(), c.now()) {
		for _, s := range cmd.GetStepGroups().GetSteps() {
			var words []string
			for _, r := range s.GetCreate() {
				words = append(words, fmt.Sprintf("make %d of template %d", r.GetOrdinal(), r.GetVersion()))
			}
			for range s.GetRemove() {
				words = append(words, "remove "+s.GetRemoveReason())
			}
			if s.GetEnd() != 0 {
				words = append(words, strings.TrimSpace(s.GetEnd().String()+" "+c.plain(s.GetMessage())))
			}
			if len(words) > 0 {
				c.log = append(c.log, strings.Join(words, ", "))
			}
		}
		n++
		if r := c.apply(cmd); r.Problem != nil {
			c.log = append(c.log, "refused: "+r.Problem.Code)
		}
	}
	c.settle()
	return n
}

// plain leaves out what is random in a name.
func (c *crew) plain(text string) string {
	for i, vm := range c.replicas() {
		if !c.state.View().Group("web").GetSpec().GetStable() {
			text = strings.ReplaceAll(text, vm.GetName(), fmt.Sprintf("web-(%d)", i))
		}
	}
	return text
}

// rest goes on until nothing more happens.
func (c *crew) rest() bool {
	for quiet, i := 0, 0; i < 2000; i++ {
		busy := c.step() > 0
		for _, vm := range c.replicas() {
			busy = c.work(vm) || busy
		}
		if busy {
			quiet = 0
			continue
		}
		if quiet++; quiet > 400 { // longer than any deadline and wait here
			return true
		}
		c.apply(&blixardv1.Command{Change: &blixardv1.Command_SetVmReason{SetVmReason: &blixardv1.SetVMReasonCommand{VmId: "nobody"}}}) // a second
	}
	return false
}

// TestGroups walks the scenarios of testdata/groups: the log of what the leader does, and
// what there is in the end.
func TestGroups(t *testing.T) {
	datadriven.Walk(t, "testdata/groups", func(t *testing.T, path string) {
		c := newCrew(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			c.log = nil
			switch d.Cmd {
			case "create":
				spec := crewSpec("one", 0)
				if err := prototext.Unmarshal([]byte(d.Input), &blixardv1.GroupSpec{}); err != nil {
					t.Fatal(err)
				}
				given := &blixardv1.GroupSpec{}
				_ = prototext.Unmarshal([]byte(d.Input), given)
				proto.Merge(spec, given)
				if r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateGroup{CreateGroup: &blixardv1.CreateGroupCommand{Id: "group-web", Name: "web", Spec: spec}}}); r.Problem != nil {
					return r.Problem.Error()
				}
			case "update":
				spec := proto.CloneOf(c.state.View().Group("web").GetSpec())
				spec.Vm.Command = []string{d.CmdArgs[0].Key}
				if r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateGroup{UpdateGroup: &blixardv1.UpdateGroupCommand{Name: "web", Spec: spec}}}); r.Problem != nil {
					return r.Problem.Error()
				}
			case "bad":
				c.bad[d.CmdArgs[0].Key] = true
			case "good":
				delete(c.bad, d.CmdArgs[0].Key)
			case "change":
				ch := &blixardv1.ChangeGroupCommand{}
				if err := prototext.Unmarshal([]byte(d.Input), ch); err != nil {
					t.Fatal(err)
				}
				if r := c.change(ch); r.Problem != nil {
					return r.Problem.Error()
				}
			case "kill":
				c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: c.replicas()[0].GetName()}}})
			default:
				t.Fatalf("no command %s", d.Cmd)
			}
			if !c.rest() {
				t.Fatal("the group does not come to rest")
			}
			g := c.state.View().Group("web")
			v := state.NewestVersion(g)
			out := strings.Join(c.log, "\n")
			if out != "" {
				out += "\n"
			}
			out += fmt.Sprintf("version %d (%s) is %s %s\n", v.GetNumber(), c.plain(v.GetCause()), v.GetState(), c.plain(v.GetMessage()))
			for i, vm := range c.replicas() {
				name := vm.GetName()
				if !g.GetSpec().GetStable() {
					name = fmt.Sprintf("web-(%d)", i)
				}
				out += fmt.Sprintf("%s %s %s\n", name, vm.GetSpec().GetCommand()[0], vm.GetStatus().GetState())
			}
			return out
		})
	})
}

// TestGroupsKeepTheirBounds: whatever fails and whenever, a step of the leader never leaves
// more replicas than allowed, nor takes one away that is needed; and once nothing fails any
// more, all replicas are of the newest version.
func TestGroupsKeepTheirBounds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCrew(t)
		replicas := uint32(rapid.IntRange(0, 5).Draw(rt, "replicas"))
		spec := crewSpec("one", replicas)
		spec.Stable = rapid.Bool().Draw(rt, "stable")
		surge, out := uint32(rapid.IntRange(0, 2).Draw(rt, "surge")), uint32(rapid.IntRange(0, 2).Draw(rt, "unavailable"))
		if spec.Stable {
			surge = 0
		}
		if surge == 0 {
			out = max(out, 1)
		}
		spec.Update.MaxSurge, spec.Update.MaxUnavailable = &surge, &out
		spec.Update.Canary = uint32(rapid.IntRange(0, 1).Draw(rt, "canary"))
		spec.Update.AutoPromote = true
		spec.Update.AutoRollback = rapid.Bool().Draw(rt, "rollback")
		c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateGroup{CreateGroup: &blixardv1.CreateGroupCommand{Id: "group-web", Name: "web", Spec: spec}}})
		for range rapid.IntRange(1, 60).Draw(rt, "events") {
			vms := c.replicas()
			switch what := rapid.IntRange(0, 12).Draw(rt, "event"); {
			case what == 0:
				next := proto.CloneOf(c.state.View().Group("web").GetSpec())
				next.Vm.Command = []string{rapid.SampledFrom([]string{"one", "two", "three", "bad"}).Draw(rt, "command")}
				c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateGroup{UpdateGroup: &blixardv1.UpdateGroupCommand{Name: "web", Spec: next}}})
			case what == 1:
				c.change(&blixardv1.ChangeGroupCommand{Change: blixardv1.GroupChange_scale, Replicas: uint32(rapid.IntRange(0, 5).Draw(rt, "scale"))})
			case what == 2:
				c.change(&blixardv1.ChangeGroupCommand{Change: rapid.SampledFrom([]blixardv1.GroupChange_Enum{
					blixardv1.GroupChange_pause, blixardv1.GroupChange_resume, blixardv1.GroupChange_undo, blixardv1.GroupChange_restart,
				}).Draw(rt, "change")})
			case what == 3:
				c.bad["bad"] = rapid.Bool().Draw(rt, "bad")
			case what == 4 && len(vms) > 0:
				vm := rapid.SampledFrom(vms).Draw(rt, "deleted")
				c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: vm.GetId()}}})
			case what == 5 && len(vms) > 0:
				if vm := rapid.SampledFrom(vms).Draw(rt, "fails"); vm.GetStatus().GetState() == blixardv1.AllocationState_running {
					c.tell(vm, blixardv1.AllocationState_failed, false)
				}
			case what == 6:
				c.core.Reset(c.state.View()) // another leader
			case what < 10 && len(vms) > 0:
				c.work(rapid.SampledFrom(vms).Draw(rt, "worked on"))
			default:
				before := c.count()
				c.step()
				after := c.count()
				g := c.state.View().Group("web").GetSpec()
				most := max(before.live, int(g.GetReplicas())+state.Surge(g))
				if after.live > most {
					rt.Fatalf("a step made %d replicas of %d, and %d are allowed", after.live, before.live, most)
				}
				least := int(g.GetReplicas()) - state.Unavailable(g)
				if after.needed < before.needed && after.needed < least {
					rt.Fatalf("a step left %d ready replicas of %d, and %d are needed", after.needed, before.needed, least)
				}
			}
		}
		c.bad = map[string]bool{}
		c.change(&blixardv1.ChangeGroupCommand{Change: blixardv1.GroupChange_resume})
		if !c.rest() {
			rt.Fatalf("the group does not come to rest: %v", c.log)
		}
		g := c.state.View().Group("web")
		v := state.NewestVersion(g)
		if v.GetState() == blixardv1.RolloutState_failed {
			c.change(&blixardv1.ChangeGroupCommand{Change: blixardv1.GroupChange_resume})
			c.rest()
			g = c.state.View().Group("web")
			v = state.NewestVersion(g)
		}
		if v.GetState() != blixardv1.RolloutState_complete || g.GetStatus().GetAvailable() != g.GetSpec().GetReplicas() {
			rt.Fatalf("in the end version %v, status %v, wished for %d", v, g.GetStatus(), g.GetSpec().GetReplicas())
		}
		for _, vm := range c.replicas() {
			if vm.GetReplica().GetVersion() != v.GetTemplate() {
				rt.Fatalf("VM %s is of template %d, the newest is %d", vm.GetName(), vm.GetReplica().GetVersion(), v.GetTemplate())
			}
		}
	})
}

type crewCount struct{ live, needed int }

// count counts the replicas, and those that are ready and not beyond the number.
func (c *crew) count() (n crewCount) {
	g := c.state.View().Group("web").GetSpec()
	for _, vm := range c.replicas() {
		if vm.GetDeleting() {
			continue
		}
		n.live++
		if state.Ready(vm) && (!g.GetStable() || vm.GetReplica().GetOrdinal() < g.GetReplicas()) {
			n.needed++
		}
	}
	return n
}

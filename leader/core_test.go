package leader

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// cluster drives a core with the product's own state, as the run loop does.
type cluster struct {
	t     testing.TB
	state *state.State
	core  *Core
	index uint64
	ids   int
}

func newCluster(t testing.TB) *cluster {
	c := &cluster{t: t, state: state.New(state.DefaultLimits())}
	c.core = NewCore(func() string { c.ids++; return fmt.Sprintf("alloc-%d", c.ids) }, 50, blixardv1.Strategy_spread)
	c.core.Reset(c.state.View())
	return c
}

func (c *cluster) apply(cmd *blixardv1.Command) state.Result {
	c.t.Helper()
	before := c.index
	c.index++
	if cmd.Time == nil {
		cmd.Time = timestamppb.New(time.Unix(int64(c.index), 0))
	}
	r := c.state.Apply([]state.Entry{{Index: c.index, Command: cmd}})[0]
	changes, err := c.state.View().ChangesAfter(before)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, ch := range changes {
		c.core.Changed(ch)
	}
	c.core.Refused(r.Refused)
	return r
}

// settle applies what the core decides until it is quiet, and gives how many
// commands that took.
func (c *cluster) settle() int {
	c.t.Helper()
	n := 0
	for range 100 {
		cmds := c.core.Decide(c.state.View())
		if len(cmds) == 0 {
			return n
		}
		for _, cmd := range cmds {
			n++
			c.apply(cmd)
		}
	}
	c.t.Fatalf("the leader does not come to rest: %s", c.core)
	return 0
}

func (c *cluster) node(name string, memoryMiB uint64) {
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: "node-" + name, Name: name, Incarnation: 1,
		Fingerprint: &blixardv1.NodeFingerprint{
			Capacity: &blixardv1.Resources{Vcpus: 4, MemoryMib: memoryMiB, DiskBytes: 1 << 40},
			Images:   []string{"busybox"}, Kernels: []string{"own"},
		},
	}}})
}

func (c *cluster) create(name string, change func(*blixardv1.VMSpec)) {
	spec := &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 256, DiskBytes: 1 << 30, Desired: blixardv1.DesiredState_run}
	if change != nil {
		change(spec)
	}
	r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
		Id: "id-" + name, Name: name, Spec: spec,
	}}})
	if r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
}

func (c *cluster) report(vm string, change func(*blixardv1.VMStatus), removed bool) {
	c.t.Helper()
	st := c.state.View().VM(vm).GetStatus()
	next := proto.CloneOf(st)
	if change != nil {
		change(next)
	}
	r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{
		NodeId: "node-a", Reports: []*blixardv1.AllocationReport{{AllocationId: st.GetAllocationId(), Epoch: st.GetEpoch(), Status: next, Removed: removed}},
	}}})
	if r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
}

func (c *cluster) wantNode(vm, node, reason string) {
	c.t.Helper()
	st := c.state.View().VM(vm).GetStatus()
	if st.GetNode() != node || reason != "" && st.GetReason() != reason {
		c.t.Fatalf("VM %s is on %q (%s: %s), want %q (%s)", vm, st.GetNode(), st.GetReason(), st.GetMessage(), node, reason)
	}
}

func TestVMWaitsForANodeThenRuns(t *testing.T) {
	c := newCluster(t)
	c.create("web", nil)
	c.settle()
	c.wantNode("web", "", "no_nodes")
	c.node("a", 4096)
	c.settle()
	c.wantNode("web", "a", "placed")
}

func TestBlockedVMIsPlacedWhenRoomAppears(t *testing.T) {
	c := newCluster(t)
	c.node("a", 400)
	c.create("one", nil)
	c.create("two", nil)
	c.settle()
	c.wantNode("one", "a", "")
	c.wantNode("two", "", "no_capacity")
	// Blocked, it costs nothing until something changes.
	if n := c.settle(); n != 0 {
		t.Fatalf("%d commands without a reason", n)
	}
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: "one"}}})
	c.report("one", nil, true)
	c.settle()
	c.wantNode("two", "a", "")
}

func TestStoppedOrDeletedVMIsNotPlaced(t *testing.T) {
	c := newCluster(t)
	c.create("a", nil)
	c.create("b", nil)
	c.settle()
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_SetVmDesired{SetVmDesired: &blixardv1.SetVMDesiredCommand{
		Name: "a", Desired: blixardv1.DesiredState_stop,
	}}})
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: "b"}}})
	c.node("a", 4096)
	c.settle()
	c.wantNode("a", "", "")
	if vm := c.state.View().VM("b"); vm != nil {
		t.Fatalf("b is still there: %v", vm)
	}
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_SetVmDesired{SetVmDesired: &blixardv1.SetVMDesiredCommand{
		Name: "a", Desired: blixardv1.DesiredState_run,
	}}})
	c.settle()
	c.wantNode("a", "a", "placed")
}

func TestRemoveOnExit(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.create("job", func(s *blixardv1.VMSpec) { s.RemoveOnExit = true })
	c.settle()
	c.report("job", func(s *blixardv1.VMStatus) { s.State = blixardv1.AllocationState_running }, false)
	c.report("job", func(s *blixardv1.VMStatus) {
		s.State = blixardv1.AllocationState_failed
		s.NextStartAt = timestamppb.New(time.Unix(1e9, 0))
	}, false)
	c.settle()
	if c.state.View().VM("job").GetDeleting() {
		t.Fatal("deleted although a restart is due")
	}
	c.report("job", func(s *blixardv1.VMStatus) {
		s.State = blixardv1.AllocationState_failed
		s.NextStartAt = nil
	}, false)
	c.settle()
	if !c.state.View().VM("job").GetDeleting() {
		t.Fatal("not deleted after its end")
	}
	c.report("job", nil, true)
	if c.state.View().VM("job") != nil {
		t.Fatal("still there after its removal")
	}
}

// A new leader, which knows nothing but a view, decides the same.
func TestResetFindsWhatIsOpen(t *testing.T) {
	c := newCluster(t)
	for k := range planVMs + 10 {
		c.create(fmt.Sprintf("vm-%03d", k), func(s *blixardv1.VMSpec) { s.MemoryMib = 64 })
	}
	c.node("a", 1<<20)
	c.node("b", 1<<20)
	fresh := NewCore(c.core.newID, 50, blixardv1.Strategy_spread)
	fresh.Reset(c.state.View())
	c.core = fresh
	c.settle()
	placed := 0
	for _, vm := range c.state.View().VMs("", 0) {
		if vm.GetStatus().GetNode() != "" {
			placed++
		}
	}
	if want := 4 * int(state.DefaultLimits().VCPUOvercommit) * 2; placed != min(want, planVMs+10) {
		t.Fatalf("%d placed, want %d", placed, min(want, planVMs+10))
	}
	if !slices.Contains([]string{"a", "b"}, c.state.View().VM("vm-000").GetStatus().GetNode()) {
		t.Fatal("not on a or b")
	}
}

// A drain takes what can go, and leaves what is kept or has volumes.
func TestDrainLeavesWhatStays(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVolume{CreateVolume: &blixardv1.CreateVolumeCommand{Id: "vol-1", Name: "data", SizeBytes: 1 << 30}}})
	c.create("goes", func(s *blixardv1.VMSpec) { s.OnNodeLoss = blixardv1.NodeLossPolicy_replace })
	c.create("kept", func(s *blixardv1.VMSpec) { s.OnNodeLoss = blixardv1.NodeLossPolicy_keep })
	c.create("has-data", func(s *blixardv1.VMSpec) {
		s.OnNodeLoss = blixardv1.NodeLossPolicy_replace
		s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "data", Path: "/data"}}
	})
	c.settle()
	c.node("b", 4096)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_DrainNode{DrainNode: &blixardv1.DrainNodeCommand{Node: "a", Drain: true}}})
	c.settle()
	desired := func(vm string) string {
		return c.state.View().Allocation(c.state.View().VM(vm).GetStatus().GetAllocationId()).GetDesired().String()
	}
	if got := []string{desired("goes"), desired("kept"), desired("has-data")}; !slices.Equal(got, []string{"remove", "run", "run"}) {
		t.Fatalf("they shall %v", got)
	}
	c.report("goes", nil, true)
	c.settle()
	c.wantNode("goes", "b", "placed")
	c.wantNode("has-data", "a", "")
}

// A VM that waits is looked at again when what it waits for may be there: its own rules,
// another VM, a label, a node that is no longer cordoned.
func TestWaitingVMsWake(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	near := func(s *blixardv1.VMSpec) {
		s.Scheduling = &blixardv1.Scheduling{Affinities: []*blixardv1.Affinity{{Key: "app", Value: "db"}}}
	}
	zone := func(s *blixardv1.VMSpec) {
		s.Scheduling = &blixardv1.Scheduling{Constraints: []*blixardv1.Constraint{{Key: "zone", Operator: blixardv1.Operator_equal, Values: []string{"x"}}}}
	}
	c.create("near", near)
	c.create("zone", zone)
	c.create("edited", zone)
	c.settle()
	c.wantNode("near", "", "affinity")
	c.wantNode("zone", "", "constraint")
	spec := proto.CloneOf(c.state.View().VM("edited").GetSpec())
	spec.Scheduling = nil
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateVm{UpdateVm: &blixardv1.UpdateVMCommand{Name: "edited", Spec: spec}}})
	c.settle()
	c.wantNode("edited", "a", "placed")
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_LabelVm{LabelVm: &blixardv1.LabelVMCommand{Name: "edited", Labels: map[string]string{"app": "db"}}}})
	c.settle()
	c.wantNode("near", "a", "placed")
	update := func(u *blixardv1.UpdateNodeCommand) {
		u.Node = "a"
		if r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: u}}); r.Problem != nil {
			t.Fatal(r.Problem)
		}
		c.settle()
	}
	update(&blixardv1.UpdateNodeCommand{Cordoned: proto.Bool(true), SetLabels: map[string]string{"zone": "x"}})
	c.wantNode("zone", "", "no_nodes")
	update(&blixardv1.UpdateNodeCommand{Cordoned: proto.Bool(false)})
	c.wantNode("zone", "a", "placed")
}

// A plan that was made before a node was cordoned is refused.
func TestCordonedNodeRefusesAnOlderPlan(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.create("late", nil)
	cmds := c.core.Decide(c.state.View())
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: "a", Cordoned: proto.Bool(true)}}})
	if r := c.apply(cmds[0]); r.Problem == nil || r.Problem.Code != "node.cordoned" {
		t.Fatalf("the plan was taken: %v", r.Problem)
	}
	c.settle()
	c.wantNode("late", "", "no_nodes")
}

package leader

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

func (c *cluster) move(vm, to string) state.Result {
	return c.apply(&blixardv1.Command{Change: &blixardv1.Command_MoveVm{MoveVm: &blixardv1.MoveVMCommand{Name: vm, ToNodeId: to}}})
}

func (c *cluster) wantCode(r state.Result, code string) {
	c.t.Helper()
	if r.Problem == nil || r.Problem.Code != code {
		c.t.Errorf("%v, want %s", r.Problem, code)
	}
}

// gone tells that a VM's node removed what it had of it.
func (c *cluster) gone(vm string) {
	c.t.Helper()
	a := c.state.View().Allocation(c.state.View().VM(vm).GetStatus().GetAllocationId())
	if a.GetDesired() != blixardv1.DesiredAllocation_remove {
		c.t.Fatalf("%s shall %s", vm, a.GetDesired())
	}
	if why := c.told(a, blixardv1.AllocationState_stopped, true); why != nil {
		c.t.Fatal(why)
	}
	c.settle()
}

func (c *cluster) moveVolume(name, from, to string) {
	c.t.Helper()
	v := c.state.View().Volume(name)
	if r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_MoveVolume{MoveVolume: &blixardv1.MoveVolumeCommand{
		VolumeId: v.GetId(), FromNodeId: from, ToNodeId: to, Epoch: v.GetEpoch(),
	}}}); r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
	c.settle()
}

// A VM that moves leaves its node, waits for its volumes and is placed where they went
// and nowhere else, also when another node would be better.
func TestMove(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVolume{CreateVolume: &blixardv1.CreateVolumeCommand{Id: "vol-1", Name: "data", SizeBytes: 1 << 30}}})
	withData := func(s *blixardv1.VMSpec) {
		s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "data", Path: "/data"}}
	}
	c.create("db", withData)
	c.create("plain", nil)
	c.settle()
	c.running("db")
	c.running("plain")
	c.node("b", 1024)
	c.node("c", 1<<20)

	c.wantCode(c.move("db", "node-x"), "node.not_found")
	c.wantCode(c.move("nobody", "node-b"), "vm.not_found")
	if r := c.move("db", "node-a"); r.Problem != nil || r.VM.GetMoveTo() != "" {
		t.Errorf("to where it is: %v, %v", r.VM, r.Problem)
	}
	if r := c.move("db", "node-b"); r.Problem != nil || r.VM.GetMoveTo() != "node-b" {
		t.Fatalf("%v, %v", r.VM, r.Problem)
	}
	c.settle()
	c.wantNode("db", "a", "") // until its node has removed it
	epoch := c.state.View().VM("db").GetStatus().GetEpoch()
	c.gone("db")
	c.wantNode("db", "", "volume_elsewhere")
	if m := c.state.View().VM("db").GetStatus().GetMessage(); m != "volume data is not on node b" {
		t.Errorf("it says %q", m)
	}
	c.moveVolume("data", "node-a", "node-b")
	c.wantNode("db", "b", "placed")
	if vm := c.state.View().VM("db"); vm.GetMoveTo() != "" || vm.GetStatus().GetEpoch() != epoch+1 {
		t.Errorf("it still moves, or has an old epoch: %v", vm)
	}

	// Without volumes it goes at once; to a node without room it waits there.
	if r := c.move("plain", "node-b"); r.Problem != nil {
		t.Fatal(r.Problem)
	}
	c.gone("plain")
	c.wantNode("plain", "b", "placed")
	c.running("plain")
	c.node("d", 100)
	if r := c.move("plain", "node-d"); r.Problem != nil {
		t.Fatal(r.Problem)
	}
	c.gone("plain")
	c.wantNode("plain", "", "no_capacity")
	if m := c.state.View().VM("plain").GetStatus().GetMessage(); !strings.HasPrefix(m, "node d has too little memory") || strings.Contains(m, "node a") {
		t.Errorf("it says %q", m)
	}
	// Its end is the way out.
	if r := c.move("plain", ""); r.Problem != nil {
		t.Fatal(r.Problem)
	}
	c.settle()
	c.wantNode("plain", "c", "placed")
}

// What can't move is refused and runs on: its node is not heard of, another VM has the
// volume, or it is being deleted.
func TestMoveIsRefused(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVolume{CreateVolume: &blixardv1.CreateVolumeCommand{Id: "vol-1", Name: "data", SizeBytes: 1 << 30}}})
	reads := func(s *blixardv1.VMSpec) {
		s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "data", Path: "/data", ReadOnly: true}}
	}
	c.create("one", reads)
	c.create("two", reads)
	c.create("other", nil)
	c.settle()
	c.running("other")
	c.node("b", 4096)
	c.wantCode(c.move("one", "node-b"), "volume.in_use")
	c.nodeState("a", down)
	c.wantCode(c.move("other", "node-b"), "move.node_down")
	c.nodeState("a", ready)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: "other"}}})
	c.wantCode(c.move("other", "node-b"), "vm.deleting")
}

// A plan that was made before the move began does not place the VM elsewhere.
func TestAnOlderPlanDoesNotEndAMove(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.node("b", 4096)
	c.create("vm", func(s *blixardv1.VMSpec) { s.Desired = blixardv1.DesiredState_run })
	vm := c.state.View().VM("vm")
	plan := c.core.Decide(c.state.View())
	if r := c.move("vm", "node-b"); r.Problem != nil {
		t.Fatal(r.Problem)
	}
	late := proto.CloneOf(plan[0].GetPlace())
	late.Placements[0].NodeId, late.Placements[0].VmModifyIndex = "node-a", c.state.View().VM("vm").GetModifyIndex()
	c.wantCode(c.apply(&blixardv1.Command{Change: &blixardv1.Command_Place{Place: late}}), "placement.moving")
	c.settle()
	c.wantNode("vm", "b", "placed")
	if vm.GetMoveTo() != "" || c.state.View().VM("vm").GetMoveTo() != "" {
		t.Error("it still moves")
	}
}

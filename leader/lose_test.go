package leader

import (
	"fmt"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

func (c *cluster) nodeState(name string, st blixardv1.NodeState_Enum) state.Result {
	return c.apply(&blixardv1.Command{Change: &blixardv1.Command_SetNodeState{SetNodeState: &blixardv1.SetNodeStateCommand{
		NodeId: "node-" + name, Incarnation: 1, State: st, Reason: "test",
	}}})
}

func (c *cluster) running(vm string) *blixardv1.Allocation {
	c.t.Helper()
	a := c.state.View().Allocation(c.state.View().VM(vm).GetStatus().GetAllocationId())
	if why := c.told(a, blixardv1.AllocationState_running, false); why != nil {
		c.t.Fatal(why)
	}
	return a
}

// told reports for the node of a placement.
func (c *cluster) told(a *blixardv1.Allocation, st blixardv1.AllocationState_Enum, removed bool) *problem.Error {
	c.t.Helper()
	return c.apply(&blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{
		NodeId: a.GetNodeId(), Reports: []*blixardv1.AllocationReport{{
			AllocationId: a.GetId(), Epoch: a.GetEpoch(), Status: &blixardv1.VMStatus{State: st}, Removed: removed,
		}},
	}}}).Problem
}

func policy(p blixardv1.NodeLossPolicy_Enum) func(*blixardv1.VMSpec) {
	return func(s *blixardv1.VMSpec) { s.OnNodeLoss = p }
}

const (
	keep     = blixardv1.NodeLossPolicy_keep
	replace  = blixardv1.NodeLossPolicy_replace
	failover = blixardv1.NodeLossPolicy_failover
	ready    = blixardv1.NodeState_ready
	suspect  = blixardv1.NodeState_suspect
	down     = blixardv1.NodeState_down
)

// Of a node that is down, what may move runs elsewhere under a higher epoch; its
// reservation stays until the node has removed it, and what the node says of it
// before does not count.
func TestVMsOfALostNodeRunElsewhere(t *testing.T) {
	c := newCluster(t)
	c.node("a", 1<<20)
	c.create("kept", policy(keep))
	c.create("copy", policy(replace))
	c.create("one", policy(failover))
	c.create("done", policy(replace))
	c.settle()
	c.running("kept")
	a := c.running("copy")
	one := c.running("one")
	c.running("done")
	c.report("done", func(s *blixardv1.VMStatus) { s.State = blixardv1.AllocationState_stopped }, false)
	c.node("b", 1<<20)

	c.nodeState("a", suspect)
	c.settle()
	c.wantNode("copy", "a", "")
	c.wantNode("one", "a", "")
	before := c.state.View().Node("a").GetAllocated().GetMemoryMib()
	c.nodeState("a", down)
	c.settle()
	for _, vm := range []string{"copy", "one"} {
		c.wantNode(vm, "b", "placed")
		if e := c.state.View().VM(vm).GetStatus().GetEpoch(); e != 2 {
			t.Errorf("%s has epoch %d", vm, e)
		}
	}
	c.wantNode("kept", "a", "node_down")
	c.wantNode("done", "a", "")
	if got := c.state.View().Node("a").GetAllocated().GetMemoryMib(); got != before {
		t.Errorf("the lost node has %d MiB reserved, had %d", got, before)
	}
	if err := MayStart(c.state.View().Allocation(one.GetId()), "node-a"); !problem.HasCode(err, "allocation.lost") {
		t.Errorf("the lost one may start: %v", err)
	}
	if err := MayStart(c.state.View().Allocation(c.state.View().VM("one").GetStatus().GetAllocationId()), "node-b"); err != nil {
		t.Error(err)
	}

	// The node is back.
	c.nodeState("a", ready)
	if why := c.told(a, blixardv1.AllocationState_running, false); why != nil {
		t.Error(why)
	}
	left := c.state.View().Allocation(a.GetId())
	if !state.Lost(left) || left.GetDesired() != blixardv1.DesiredAllocation_remove {
		t.Errorf("the lost placement is %v", left)
	}
	for _, old := range []*blixardv1.Allocation{a, one} {
		if why := c.told(old, blixardv1.AllocationState_stopped, true); why != nil {
			t.Error(why)
		}
	}
	c.settle()
	c.wantNode("copy", "b", "")
	if got := c.state.View().Node("a").GetAllocated().GetMemoryMib(); got >= before {
		t.Errorf("the node that is back has %d MiB reserved, had %d", got, before)
	}
}

// A VM whose places are all lost can be deleted, and the name given anew, while the
// old node is away.
func TestALostPlaceHoldsNothingUp(t *testing.T) {
	c := newCluster(t)
	c.node("a", 1<<20)
	c.create("copy", policy(replace))
	c.settle()
	old := c.running("copy")
	c.node("b", 1<<20)
	c.nodeState("a", down)
	c.settle()
	c.wantNode("copy", "b", "placed")
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: "copy"}}})
	now := c.state.View().Allocation(c.state.View().VM("copy").GetStatus().GetAllocationId())
	if why := c.told(now, blixardv1.AllocationState_stopped, true); why != nil {
		t.Fatal(why)
	}
	if c.state.View().VM("copy") != nil {
		t.Fatal("it is not gone")
	}
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
		Id: "id-again", Name: "copy", Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 256, DiskBytes: 1 << 30},
	}}})
	c.settle()
	c.wantNode("copy", "b", "placed")
	c.nodeState("a", ready)
	if why := c.told(old, blixardv1.AllocationState_stopped, true); why != nil {
		t.Fatal(why)
	}
	if got := c.state.View().Node("a").GetAllocated().GetMemoryMib(); got != 0 {
		t.Errorf("%d MiB are reserved for nothing", got)
	}
}

// A VM that shall start while its node is down starts elsewhere.
func TestStartWhileTheNodeIsDown(t *testing.T) {
	c := newCluster(t)
	c.node("a", 1<<20)
	c.create("copy", policy(replace))
	c.settle()
	c.running("copy")
	desired := func(d blixardv1.DesiredState_Enum) {
		c.apply(&blixardv1.Command{Change: &blixardv1.Command_SetVmDesired{SetVmDesired: &blixardv1.SetVMDesiredCommand{Name: "copy", Desired: d}}})
	}
	desired(blixardv1.DesiredState_stop)
	c.report("copy", func(s *blixardv1.VMStatus) { s.State = blixardv1.AllocationState_stopped }, false)
	c.node("b", 1<<20)
	c.nodeState("a", down)
	c.settle()
	c.wantNode("copy", "a", "")
	desired(blixardv1.DesiredState_run)
	c.settle()
	c.wantNode("copy", "b", "placed")
}

// When many nodes are down at once, their VMs wait, and an event says so once.
func TestStormMovesNothing(t *testing.T) {
	c := newCluster(t)
	for k := range 3 {
		c.node(fmt.Sprint("abc"[k:k+1]), 1000)
		c.create(fmt.Sprint("vm-on-", "abc"[k:k+1]), policy(replace))
		c.settle()
		c.running(fmt.Sprint("vm-on-", "abc"[k:k+1]))
	}
	c.nodeState("a", down)
	c.settle()
	c.wantNode("vm-on-a", "b", "")
	c.nodeState("b", down)
	c.settle()
	c.wantNode("vm-on-b", "b", "node_down")
	storms := 0
	for _, e := range c.state.View().Events(nil, 0) {
		if e.GetKind() == "cluster.storm" {
			storms++
			t.Log(e.GetMessage())
		}
	}
	if storms != 1 {
		t.Errorf("%d events tell of it", storms)
	}
	c.nodeState("a", ready)
	c.settle()
	c.wantNode("vm-on-b", "c", "")
}

package leader

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// fails tells that a VM could not run where it is.
func (c *cluster) fails(vm, reason string, exit *int32) {
	c.t.Helper()
	a := c.state.View().Allocation(c.state.View().VM(vm).GetStatus().GetAllocationId())
	status := &blixardv1.VMStatus{State: blixardv1.AllocationState_failed, Reason: reason, Message: "as " + reason + " says", ExitCode: exit}
	r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{
		NodeId: a.GetNodeId(), Reports: []*blixardv1.AllocationReport{{AllocationId: a.GetId(), Epoch: a.GetEpoch(), Status: status}},
	}}})
	if r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
	c.settle()
}

// at lets the core look at what failed, and tells whether it took a VM off its node.
func (c *cluster) at(now time.Duration) bool {
	c.t.Helper()
	cmds := c.core.Reschedule(c.state.View(), time.Unix(1000, 0).Add(now))
	for _, cmd := range cmds {
		if r := c.apply(cmd); r.Problem != nil {
			c.t.Fatal(r.Problem)
		}
	}
	c.settle()
	return len(cmds) > 0
}

// A VM that its node can't run is tried on others, later each time, on none twice while
// there is another, and no more than so often in a row.
func TestFailedVMIsTriedElsewhere(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{"a", "b", "c"} {
		c.node(name, 4096)
	}
	c.create("vm", policy(replace))
	c.settle()
	seen := map[string]bool{}
	now := time.Duration(0)
	for try := range 4 {
		node := c.state.View().VM("vm").GetStatus().GetNode()
		if seen[node] && try < 3 || node == "" {
			t.Fatalf("try %d is on %q, after %v", try, node, seen)
		}
		seen[node] = true
		c.fails("vm", "boot_failed", nil)
		if try == 3 {
			break
		}
		wait := []time.Duration{0, 10 * time.Second, 40 * time.Second}[try]
		if wait > 0 {
			if c.at(now) || c.at(now+wait-time.Second) {
				t.Fatalf("try %d came before %v", try+1, wait)
			}
		}
		if now += wait; !c.at(now) {
			t.Fatalf("try %d did not come after %v", try+1, wait)
		}
		c.gone("vm")
	}
	if now += time.Hour; c.at(now) {
		t.Error("it is tried for ever")
	}
	// One that ran begins to count anew.
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_SetVmDesired{SetVmDesired: &blixardv1.SetVMDesiredCommand{Name: "vm", Desired: blixardv1.DesiredState_run}}})
	c.running("vm")
	if len(c.state.View().VM("vm").GetFailedOn()) != 0 {
		t.Error("what failed before it ran still counts")
	}
	c.fails("vm", "vmm_lost", nil)
	if !c.at(now) {
		t.Error("it is not tried elsewhere again")
	}
}

// What is not the node's fault, or shall stay there, or has no other node, is left alone.
func TestFailuresThatStay(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*blixardv1.VMSpec)
		reason string
		exit   *int32
	}{
		"its command ended":       {reason: "restart_limit", exit: proto.Int32(7)},
		"its image is not there":  {reason: "image.not_found"},
		"it is never restarted":   {reason: "vmm_lost", change: func(s *blixardv1.VMSpec) { s.Restart = &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_never} }},
		"it is kept on its node":  {reason: "boot_failed", change: func(s *blixardv1.VMSpec) { s.OnNodeLoss = blixardv1.NodeLossPolicy_keep }},
		"it is not to be":         {reason: "boot_failed", change: func(s *blixardv1.VMSpec) { s.Reschedules = proto.Uint32(0) }},
		"no other node can do it": {reason: "boot_failed", change: func(s *blixardv1.VMSpec) { s.MemoryMib = 4000 }},
		"it has a volume": {reason: "boot_failed", change: func(s *blixardv1.VMSpec) {
			s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "data", Path: "/data"}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVolume{CreateVolume: &blixardv1.CreateVolumeCommand{Id: "vol-1", Name: "data", SizeBytes: 1 << 30}}})
			c.node("a", 4096)
			c.create("vm", func(s *blixardv1.VMSpec) {
				s.OnNodeLoss = replace
				if tc.change != nil {
					tc.change(s)
				}
			})
			c.settle()
			c.node("b", 2048)
			c.fails("vm", tc.reason, tc.exit)
			if c.at(0) || c.at(time.Hour) {
				t.Error("it is tried elsewhere")
			}
			c.wantNode("vm", "a", tc.reason)
			if name != "no other node can do it" {
				return
			}
			c.node("c", 8192)
			if !c.at(2 * time.Hour) {
				t.Error("it is not tried on a node that came later")
			}
		})
	}
}

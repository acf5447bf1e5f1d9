package leader

import (
	"strings"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// volume makes one of so many GiB on a node; "" makes it nowhere yet.
func (c *cluster) volume(name, node string, gib uint64) {
	c.t.Helper()
	if r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVolume{CreateVolume: &blixardv1.CreateVolumeCommand{
		Id: "vol-" + name, Name: name, SizeBytes: gib << 30, NodeId: node,
	}}}); r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
}

// TestVMsWaitForTheRoomOfVolumes: VMs for which volumes leave no disk wait, and are placed
// when one is gone, moves away or becomes smaller.
func TestVMsWaitForTheRoomOfVolumes(t *testing.T) {
	large := func(s *blixardv1.VMSpec) { s.DiskBytes = 100 << 30 }
	for name, frees := range map[string][]*blixardv1.Command{
		"gone": {
			{Change: &blixardv1.Command_DeleteVolume{DeleteVolume: &blixardv1.DeleteVolumeCommand{Name: "data"}}},
			{Change: &blixardv1.Command_ReleaseVolume{ReleaseVolume: &blixardv1.ReleaseVolumeCommand{VolumeId: "vol-data", NodeId: "node-a"}}},
		},
		"smaller": {{Change: &blixardv1.Command_ResizeVolume{ResizeVolume: &blixardv1.ResizeVolumeCommand{Name: "data", SizeBytes: 800 << 30}}}},
		"away":    {{Change: &blixardv1.Command_MoveVolume{MoveVolume: &blixardv1.MoveVolumeCommand{VolumeId: "vol-data", FromNodeId: "node-a", ToNodeId: "node-b"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.node("a", 4096) // with 1 TiB of disk
			c.node("b", 100)  // too small for a VM
			c.volume("data", "node-a", 1000)
			c.create("large", large)
			c.settle()
			c.wantNode("large", "", "no_capacity")
			if m := c.state.View().VM("large").GetStatus().GetMessage(); !strings.Contains(m, "node a has too little disk: 24576 MiB free, 102400 MiB needed") {
				t.Errorf("it says %q", m)
			}
			c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: "a", SetLabels: map[string]string{"x": "y"}}}})
			if got := c.core.String(); got != "open=[] blocked=[id-large]" {
				t.Errorf("a node that still has no room wakes: %s", got)
			}
			for i, cmd := range frees {
				if n := c.settle(); n != 0 {
					t.Fatalf("%d commands without a reason", n)
				}
				if r := c.apply(cmd); r.Problem != nil {
					t.Fatal(r.Problem)
				}
				if i < len(frees)-1 {
					c.settle()
					c.wantNode("large", "", "no_capacity") // its node still has the disk
				}
			}
			c.settle()
			c.wantNode("large", "a", "placed")
		})
	}
}

// A VM brings its volumes that are nowhere yet, and waits with them.
func TestFreshVolumesWaitForRoom(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.volume("data", "node-a", 1000)
	c.volume("fresh", "", 24)
	c.create("db", func(s *blixardv1.VMSpec) {
		s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "fresh", Path: "/data"}}
	})
	c.settle()
	c.wantNode("db", "", "no_capacity")
	if m := c.state.View().VM("db").GetStatus().GetMessage(); !strings.Contains(m, "24576 MiB free, 25600 MiB needed (root disk and volumes)") {
		t.Errorf("it says %q", m)
	}
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_ResizeVolume{ResizeVolume: &blixardv1.ResizeVolumeCommand{Name: "fresh", SizeBytes: 23 << 30}}})
	c.settle()
	c.wantNode("db", "a", "placed")
	if n := c.state.View().Node("a"); n.GetVolumeBytes() != 1023<<30 || n.GetAllocated().GetDiskBytes() != 1<<30 {
		t.Errorf("the node has %v", n)
	}
}

package scheduler

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// volumes has a node's volumes take so many GiB of its 100.
func volumes(n *blixardv1.Node, gib uint64) *blixardv1.Node {
	n.VolumeBytes = gib << 30
	return n
}

func withFresh(s *blixardv1.VMSpec) {
	s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "fresh"}}
}

// TestVolumesTakeRoom: what volumes have of a disk is not given to VMs, and a VM takes the
// room of its volumes that are nowhere yet.
func TestVolumesTakeRoom(t *testing.T) {
	for _, tc := range []struct {
		name    string
		nodes   []*blixardv1.Node
		vm      *blixardv1.VM
		level   uint32
		node    string
		message string
	}{
		{name: "elsewhere", nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 100), volumes(node("b", 4000, 0), 99)}, vm: vm(nil), node: "b"},
		{
			name: "full", nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 100)}, vm: vm(nil),
			message: "node a has too little disk: 0 MiB free, 1024 MiB needed",
		},
		{
			name: "more than full", nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 120)}, vm: vm(nil),
			message: "node a has too little disk: 0 MiB free, 1024 MiB needed",
		},
		{name: "fresh", nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 90), volumes(node("b", 4000, 0), 89)}, vm: vm(withFresh), node: "b"},
		{
			name: "no room for a fresh one", nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 90)}, vm: vm(withFresh),
			message: "node a has too little disk: 10240 MiB free, 11264 MiB needed (root disk and volumes)",
		},
		{
			name: "a fresh one of an older cluster", nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 90)}, vm: vm(withFresh),
			level: 18, node: "a",
		},
		{name: "a placed one is counted", nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 99)}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "placed"}}
		}), node: "a"},
	} {
		v := view{nodes: tc.nodes, level: tc.level}
		d := placed(v, tc.vm)
		if d.Node.GetName() != tc.node || !strings.Contains(d.Message, tc.message) {
			t.Errorf("%s: it is placed on %q: %s", tc.name, d.Node.GetName(), d.Message)
		}
		if tc.message != "" && d.Reason != ReasonNoCapacity {
			t.Errorf("%s: the reason is %s", tc.name, d.Reason)
		}
	}
}

// What a placement takes with its volumes is not given to the next, until Follow.
func TestVolumesOfPlacementsTakeRoom(t *testing.T) {
	n := volumes(node("a", 9000, 0), 80)
	v := view{nodes: []*blixardv1.Node{n}}
	f := NewFleet(0)
	f.Follow(v)
	for i, want := range []string{"a", ""} {
		if got := f.Place(v, vm(withFresh)); got.Node.GetName() != want {
			t.Fatalf("placement %d goes to %q: %s", i, got.Node.GetName(), got.Message)
		}
	}
	f.forget()
	for i, want := range []string{"a", ""} {
		if got := f.Place(v, vm(withFresh)); got.Node.GetName() != want {
			t.Fatalf("once what was placed is forgotten placement %d goes to %q: %s", i, got.Node.GetName(), got.Message)
		}
	}
	// The node as it was but for its volumes.
	for _, gib := range []uint64{95, 70} {
		next := volumes(proto.CloneOf(n), gib)
		next.Fingerprint = n.GetFingerprint()
		f.putNode(v, next)
		if got := f.Place(v, vm(withFresh)); (got.Node == nil) != (gib == 95) {
			t.Errorf("with %d GiB of volumes it is placed on %q: %s", gib, got.Node.GetName(), got.Message)
		}
	}
}

// TestVolumesAreNoPrey: VMs are not taken off where volumes leave no room, and where they
// do it is enough of them.
func TestVolumesAreNoPrey(t *testing.T) {
	v := &occupied{view: view{nodes: []*blixardv1.Node{volumes(node("a", 9000, 0), 95)}}}
	large := func(gib uint64) func(*blixardv1.VMSpec) {
		return func(s *blixardv1.VMSpec) { s.DiskBytes = gib << 30 }
	}
	for _, name := range []string{"x", "y", "z"} {
		v.put("a", name, 10, 400, nil)
	}
	preempt := func(one *blixardv1.VM) string {
		f := NewFleet(0)
		f.Follow(v)
		return words(f.Preempt(v, one, none))
	}
	if got := preempt(waiting(50, 400, large(6))); got != "nothing" {
		t.Errorf("for what never fits beside the volumes: %s", got)
	}
	if got := preempt(waiting(50, 400, large(4))); !strings.Contains(got, "x") || strings.Contains(got, "z") {
		t.Errorf("two VMs make the room, not %s", got)
	}
	if got := preempt(waiting(50, 400, func(s *blixardv1.VMSpec) { withFresh(s) })); got != "nothing" {
		t.Errorf("for a fresh volume: %s", got)
	}
}

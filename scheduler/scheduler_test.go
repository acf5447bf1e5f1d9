package scheduler

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

type view struct {
	nodes []*blixardv1.Node
	vms   []*blixardv1.VM
	// level is the newest when it is 0.
	level uint32
}

func (v view) Index() uint64            { return 7 }
func (v view) Limits() state.Limits     { return state.DefaultLimits() }
func (v view) Nodes() []*blixardv1.Node { return v.nodes }

func (v view) VMs(string, int) []*blixardv1.VM { return v.vms }

func (v view) ChangesAfter(uint64) ([]state.Change, error) { return nil, errors.New("not kept") }

// Image knows that node b has nginx.
func (v view) Image(name string) *blixardv1.Image {
	if name == nginx {
		return &blixardv1.Image{Name: nginx, NodeIds: []string{"id-b"}}
	}
	return nil
}

const nginx = "docker.io/library/nginx:latest"

func (v view) FeatureLevel() uint32 { return cmp.Or(v.level, state.FeatureLevel) }

func (v view) Member(string) *blixardv1.Member { return nil }

// Volume knows "placed", on node a, and "fresh" of 10 GiB, nowhere yet.
func (v view) Volume(ref string) *blixardv1.Volume {
	switch ref {
	case "placed":
		return &blixardv1.Volume{Name: ref, NodeId: "id-a"}
	case "fresh":
		return &blixardv1.Volume{Name: ref, SizeBytes: 10 << 30}
	}
	return nil
}

// Network knows "nat" and "user", named for their types.
func (v view) Network(ref string) *blixardv1.Network {
	return &blixardv1.Network{Name: ref, Type: blixardv1.NetworkType_Enum(blixardv1.NetworkType_Enum_value[ref])}
}

func node(name string, memory, used uint64) *blixardv1.Node {
	return &blixardv1.Node{
		Id: "id-" + name, Name: name, State: blixardv1.NodeState_ready,
		Fingerprint: &blixardv1.NodeFingerprint{Images: []string{"busybox"}, Kernels: []string{"own", "debian"}},
		Allocatable: &blixardv1.Resources{Vcpus: 8, MemoryMib: memory, DiskBytes: 100 << 30},
		Allocated:   &blixardv1.Resources{MemoryMib: used},
	}
}

func placed(v View, vm *blixardv1.VM) Decision {
	f := NewFleet(blixardv1.Strategy_unspecified)
	f.Follow(v)
	return f.Place(v, vm)
}

func cordoned(n *blixardv1.Node) *blixardv1.Node {
	n.Cordoned = true
	return n
}

func nat(n *blixardv1.Node) *blixardv1.Node {
	n.Fingerprint.NetworkTypes = []string{"nat"}
	return n
}

func vm(change func(*blixardv1.VMSpec)) *blixardv1.VM {
	s := &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 256, DiskBytes: 1 << 30}
	if change != nil {
		change(s)
	}
	return &blixardv1.VM{Id: "vm-1", Name: "a", Spec: s}
}

func TestPlace(t *testing.T) {
	down := node("down", 9000, 0)
	down.State = blixardv1.NodeState_down
	for _, tc := range []struct {
		name    string
		nodes   []*blixardv1.Node
		vm      *blixardv1.VM
		node    string
		reason  string
		message string
	}{
		{name: "most free memory", nodes: []*blixardv1.Node{node("a", 4000, 2000), node("b", 3000, 0)}, vm: vm(nil), node: "b"},
		{name: "equal by name", nodes: []*blixardv1.Node{node("b", 3000, 0), node("a", 3000, 0)}, vm: vm(nil), node: "a"},
		{name: "none", vm: vm(nil), reason: ReasonNoNodes, message: "no node is known"},
		{name: "down", nodes: []*blixardv1.Node{down}, vm: vm(nil), reason: ReasonNoNodes, message: "node down is down"},
		{
			name: "image", nodes: []*blixardv1.Node{node("a", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) { s.Image = "nope" }),
			reason: ReasonNoImage, message: `no image "nope" (it has busybox)`,
		},
		{name: "volume", nodes: []*blixardv1.Node{node("a", 2000, 0), node("b", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "placed"}, {Volume: "fresh"}}
		}), node: "a"},
		{
			name: "volume elsewhere", nodes: []*blixardv1.Node{node("b", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) {
				s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "placed"}}
			}), reason: ReasonVolumes, message: "volume placed is not on node b",
		},
		{name: "network", nodes: []*blixardv1.Node{node("b", 4000, 0), nat(node("a", 2000, 0))}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Networks = []*blixardv1.NetworkAttachment{{Network: "nat"}}
		}), node: "a"},
		{
			name: "network impossible", nodes: []*blixardv1.Node{nat(node("a", 4000, 0))}, vm: vm(func(s *blixardv1.VMSpec) {
				s.Networks = []*blixardv1.NetworkAttachment{{Network: "user"}}
			}), reason: ReasonNoNetwork, message: "node a can't do networks of type user",
		},
		{name: "an image from a registry", nodes: []*blixardv1.Node{node("a", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Image = "docker.io/library/redis:latest"
		}), node: "a"},
		{name: "a node that has the image", nodes: []*blixardv1.Node{node("a", 4000, 0), node("b", 3900, 0), node("c", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Image = nginx
		}), node: "b"},
		{name: "much less room where the image is", nodes: []*blixardv1.Node{node("a", 4000, 0), node("b", 3000, 0)}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Image = nginx
		}), node: "a"},
		{name: "pack", nodes: []*blixardv1.Node{node("a", 4000, 1000), node("b", 4000, 3600), node("c", 4000, 2000), node("d", 2000, 500)}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Scheduling = &blixardv1.Scheduling{Strategy: blixardv1.Strategy_pack}
		}), node: "b"},
		{name: "pack into what has room", nodes: []*blixardv1.Node{node("a", 4000, 1000), node("b", 4000, 3700), node("c", 4000, 2000)}, vm: vm(func(s *blixardv1.VMSpec) {
			s.Scheduling = &blixardv1.Scheduling{Strategy: blixardv1.Strategy_pack}
		}), node: "c"},
		{name: "cordoned", nodes: []*blixardv1.Node{cordoned(node("a", 4000, 0))}, vm: vm(nil), reason: ReasonNoNodes, message: "node a is cordoned"},
		{
			name: "kernel", nodes: []*blixardv1.Node{node("a", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) { s.Kernel = "nope" }),
			reason: ReasonNoKernel, message: `no kernel "nope" (it has own, debian)`,
		},
		{name: "memory", nodes: []*blixardv1.Node{node("a", 100, 0)}, vm: vm(nil), reason: ReasonNoCapacity, message: "memory: 100 MiB free"},
		{
			name: "vcpus", nodes: []*blixardv1.Node{node("a", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) { s.Vcpus = 9 }),
			reason: ReasonNoCapacity, message: "vcpus: 8 free, 9 needed",
		},
		{
			name: "disk", nodes: []*blixardv1.Node{node("a", 4000, 0)}, vm: vm(func(s *blixardv1.VMSpec) { s.DiskBytes = 1 << 40 }),
			reason: ReasonNoCapacity, message: "disk: 102400 MiB free",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := placed(view{nodes: tc.nodes}, tc.vm)
			if d.Node.GetName() != tc.node || d.Reason != tc.reason || !strings.Contains(d.Message, tc.message) {
				t.Fatalf("got node %q, %q, %q", d.Node.GetName(), d.Reason, d.Message)
			}
		})
	}
}

func TestExplainIsBounded(t *testing.T) {
	var nodes []*blixardv1.Node
	for k := range 40 {
		nodes = append(nodes, node(fmt.Sprintf("n%02d", k), 10, 0))
	}
	d := placed(view{nodes: nodes}, vm(nil))
	if !strings.HasSuffix(d.Message, "and 35 more") {
		t.Fatalf("message %q", d.Message)
	}
}

// A plan of many VMs never gives out more than there is.
func TestPlanNeverOverfills(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []*blixardv1.Node
		for k := range rapid.IntRange(1, 5).Draw(t, "nodes") {
			nodes = append(nodes, node(fmt.Sprint("n", k), rapid.Uint64Range(0, 3000).Draw(t, "memory"), 0))
		}
		v, taken := view{nodes: nodes}, map[string]uint64{}
		f := NewFleet(blixardv1.Strategy_Enum(rapid.IntRange(0, 2).Draw(t, "strategy")))
		f.Follow(v)
		for range rapid.IntRange(1, 40).Draw(t, "vms") {
			one := vm(func(s *blixardv1.VMSpec) { s.MemoryMib = rapid.Uint32Range(64, 900).Draw(t, "guest") })
			if d := f.Place(v, one); d.Node != nil {
				taken[d.Node.GetId()] += v.Limits().Reservation(one.GetSpec()).GetMemoryMib()
			}
		}
		for _, n := range nodes {
			if used := taken[n.GetId()]; used > n.GetAllocatable().GetMemoryMib() {
				t.Fatalf("node %s: %d MiB of %d", n.GetName(), used, n.GetAllocatable().GetMemoryMib())
			}
		}
	})
}

package scheduler

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/state"
)

// occupied is a view with what is on its nodes.
type occupied struct {
	view
	allocations map[string][]*blixardv1.Allocation
}

func (v occupied) AllocationsOfNode(nodeID string) []*blixardv1.Allocation {
	return v.allocations[nodeID]
}

func (v occupied) VM(ref string) *blixardv1.VM {
	for _, vm := range v.vms {
		if vm.GetId() == ref {
			return vm
		}
	}
	return nil
}

// put places a VM of a priority that takes so much memory in all.
func (v *occupied) put(node, name string, priority uint32, memory uint64, change func(*blixardv1.Allocation)) {
	one := vm(func(s *blixardv1.VMSpec) {
		s.MemoryMib = uint32(memory - state.DefaultLimits().OverheadMiB)
		s.Scheduling = &blixardv1.Scheduling{Priority: &priority}
	})
	one.Id, one.Name, one.Status = name, name, &blixardv1.VMStatus{AllocationId: "al-" + name, Node: node}
	a := &blixardv1.Allocation{Id: "al-" + name, VmId: name, VmName: name, NodeId: "id-" + node, Desired: blixardv1.DesiredAllocation_run, Spec: one.Spec}
	if change != nil {
		change(a)
	}
	if v.allocations == nil {
		v.allocations = map[string][]*blixardv1.Allocation{}
	}
	v.allocations["id-"+node] = append(v.allocations["id-"+node], a)
	v.vms = append(v.vms, one)
	for _, n := range v.nodes {
		if n.GetName() == node {
			n.Allocated = sum(n.Allocated, v.Limits().Reservation(a.GetSpec()))
		}
	}
}

// waiting is a VM that needs so much memory in all.
func waiting(priority uint32, memory uint64, change func(*blixardv1.VMSpec)) *blixardv1.VM {
	return vm(func(s *blixardv1.VMSpec) {
		s.MemoryMib = uint32(memory - state.DefaultLimits().OverheadMiB)
		s.Scheduling = &blixardv1.Scheduling{Priority: &priority}
		if change != nil {
			change(s)
		}
	})
}

func none(string) bool { return false }

func words(p *Preemption) string {
	if p == nil {
		return "nothing"
	}
	var names []string
	for _, a := range p.Victims {
		names = append(names, a.GetVmName())
	}
	return p.Node.GetName() + ": " + strings.Join(names, " ")
}

func TestPreempt(t *testing.T) {
	removing := func(a *blixardv1.Allocation) { a.Desired = blixardv1.DesiredAllocation_remove }
	kept := func(a *blixardv1.Allocation) {
		a.Spec = proto.CloneOf(a.Spec)
		a.Spec.OnNodeLoss = blixardv1.NodeLossPolicy_keep
	}
	volumes := func(a *blixardv1.Allocation) { a.Volumes = []*blixardv1.AllocatedVolume{{Name: "data"}} }
	type placed struct {
		node, name string
		priority   uint32
		memory     uint64
		change     func(*blixardv1.Allocation)
	}
	for _, tc := range []struct {
		name   string
		nodes  []*blixardv1.Node
		placed []placed
		vm     *blixardv1.VM
		want   string
	}{
		{"lower", nil, []placed{{"a", "x", 40, 900, nil}}, waiting(50, 500, nil), "a: x"},
		{"equal", nil, []placed{{"a", "x", 50, 900, nil}}, waiting(50, 500, nil), "nothing"},
		{"higher", nil, []placed{{"a", "x", 60, 900, nil}}, waiting(50, 500, nil), "nothing"},
		{"kept", nil, []placed{{"a", "x", 0, 900, kept}}, waiting(100, 500, nil), "nothing"},
		{"with volumes", nil, []placed{{"a", "x", 0, 900, volumes}}, waiting(100, 500, nil), "nothing"},
		{"not enough", nil, []placed{{"a", "x", 0, 400, nil}, {"a", "y", 90, 500, nil}}, waiting(50, 600, nil), "nothing"},
		{"larger than the node", nil, []placed{{"a", "x", 0, 900, nil}}, waiting(50, 2000, nil), "nothing"},
		{"fewest", nil, []placed{{"a", "x", 10, 200, nil}, {"a", "y", 10, 300, nil}, {"a", "z", 10, 500, nil}}, waiting(50, 500, nil), "a: z"},
		{"smallest that does", nil, []placed{{"a", "x", 10, 500, nil}, {"a", "y", 10, 300, nil}, {"a", "z", 10, 200, nil}}, waiting(50, 250, nil), "a: y"},
		{"two when one is not enough", nil, []placed{{"a", "x", 10, 400, nil}, {"a", "y", 10, 350, nil}, {"a", "z", 10, 250, nil}}, waiting(50, 600, nil), "a: y z"},
		{"the lowest rather than the fewest", nil, []placed{{"a", "x", 30, 500, nil}, {"a", "y", 10, 250, nil}, {"a", "z", 10, 250, nil}}, waiting(50, 500, nil), "a: y z"},
		{
			"the node with the lowest highest",
			[]*blixardv1.Node{node("a", 1000, 0), node("b", 1000, 0)},
			[]placed{{"a", "x", 30, 900, nil}, {"b", "y", 20, 400, nil}, {"b", "z", 10, 500, nil}},
			waiting(50, 900, nil), "b: y z",
		},
		{
			"the node with the fewest",
			[]*blixardv1.Node{node("a", 1000, 0), node("b", 1000, 0)},
			[]placed{{"a", "y", 20, 400, nil}, {"a", "z", 20, 500, nil}, {"b", "x", 20, 900, nil}},
			waiting(50, 900, nil), "b: x",
		},
		{
			"the node with the least memory freed beyond the need",
			[]*blixardv1.Node{node("a", 1000, 0), node("b", 1000, 0)},
			[]placed{{"a", "x", 20, 1000, nil}, {"b", "y", 20, 600, nil}, {"b", "z", 60, 400, nil}},
			waiting(50, 500, nil), "b: y",
		},
		{"what goes anyway is enough", nil, []placed{{"a", "x", 90, 500, removing}, {"a", "y", 10, 500, nil}}, waiting(50, 500, nil), "a: "},
		{"what goes anyway helps", nil, []placed{{"a", "x", 90, 300, removing}, {"a", "y", 10, 300, nil}, {"a", "z", 10, 400, nil}}, waiting(50, 600, nil), "a: y"},
		{"another node's rules", nil, []placed{{"a", "x", 10, 900, nil}}, waiting(50, 500, func(s *blixardv1.VMSpec) { s.Scheduling.Constraints = only("zone=x").Constraints }), "nothing"},
		{"a named node", nil, []placed{{"a", "x", 10, 900, nil}}, waiting(50, 500, func(s *blixardv1.VMSpec) { s.Scheduling.Constraints = only("node.name=a").Constraints }), "a: x"},
		{"a named node that is none", []*blixardv1.Node{cordoned(node("a", 1000, 0))}, []placed{{"a", "x", 10, 900, nil}}, waiting(50, 500, func(s *blixardv1.VMSpec) { s.Scheduling.Constraints = only("node.name=a").Constraints }), "nothing"},
		{"a cordoned node", []*blixardv1.Node{cordoned(node("a", 1000, 0))}, []placed{{"a", "x", 10, 900, nil}}, waiting(50, 500, nil), "nothing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := occupied{view: view{nodes: tc.nodes}}
			if v.nodes == nil {
				v.nodes = []*blixardv1.Node{node("a", 1000, 0)}
			}
			for _, p := range tc.placed {
				v.put(p.node, p.name, p.priority, p.memory, p.change)
			}
			f := NewFleet(blixardv1.Strategy_unspecified)
			f.Follow(v)
			if got := words(f.Preempt(v, tc.vm, none)); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// Processors and disks are room, too.
func TestPreemptForProcessors(t *testing.T) {
	v := occupied{view: view{nodes: []*blixardv1.Node{node("a", 100_000, 0)}}}
	v.put("a", "big", 10, 50_000, nil)
	v.put("a", "many", 10, 1000, func(a *blixardv1.Allocation) { a.Spec.Vcpus = 6 })
	v.nodes[0].Allocated.Vcpus = 7
	f := NewFleet(blixardv1.Strategy_unspecified)
	f.Follow(v)
	if got := words(f.Preempt(v, waiting(50, 500, func(s *blixardv1.VMSpec) { s.Vcpus = 4 }), none)); got != "a: many" {
		t.Errorf("%s", got)
	}
}

// A VM that another must be near does not make room for it.
func TestPreemptLeavesCompany(t *testing.T) {
	v := occupied{view: view{nodes: []*blixardv1.Node{node("a", 1000, 0)}}}
	v.put("a", "db", 10, 500, nil)
	v.put("a", "job", 20, 500, nil)
	v.vms[0].Labels = map[string]string{"app": "db"}
	f := NewFleet(blixardv1.Strategy_unspecified)
	f.Follow(v)
	if got := words(f.Preempt(v, waiting(50, 500, func(s *blixardv1.VMSpec) { s.Scheduling.Affinities = near(0, "db", "").Affinities }), none)); got != "a: job" {
		t.Errorf("%s", got)
	}
	if got := words(f.Preempt(v, waiting(50, 1000, func(s *blixardv1.VMSpec) { s.Scheduling.Affinities = near(0, "db", "").Affinities }), none)); got != "nothing" {
		t.Errorf("%s", got)
	}
}

// Room that is held is not given to others, and counts again once it is released.
func TestHold(t *testing.T) {
	v := view{nodes: []*blixardv1.Node{node("a", 1000, 0)}}
	f := NewFleet(blixardv1.Strategy_unspecified)
	f.Follow(v)
	need := v.Limits().Reservation(waiting(50, 700, nil).GetSpec())
	f.Hold("id-a", need)
	f.Hold("id-nowhere", need)
	if d := f.Place(v, waiting(50, 400, nil)); d.Reason != ReasonNoCapacity {
		t.Errorf("%v", d)
	}
	f.Release("id-a", need)
	if d := f.Place(v, waiting(50, 400, nil)); d.Node.GetName() != "a" {
		t.Errorf("%v", d)
	}
	f.Hold("id-a", need)
	f.Follow(v)
	if d := f.Place(v, waiting(50, 1000, nil)); d.Node.GetName() != "a" {
		t.Errorf("what was held outlives Follow: %v", d)
	}
}

// Whatever is on the nodes: what is taken is of lower priority and may go, it is enough,
// nothing of it is needless, and no victims of a lower highest priority would do.
func TestPreemptionIsLeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := occupied{}
		for k := range rapid.IntRange(1, 3).Draw(t, "nodes") {
			v.nodes = append(v.nodes, node(fmt.Sprint("n", k), rapid.Uint64Range(300, 1500).Draw(t, "memory"), 0))
		}
		v.nodes = slices.Clone(v.nodes)
		for k := range rapid.IntRange(0, 9).Draw(t, "placed") {
			n := v.nodes[rapid.IntRange(0, len(v.nodes)-1).Draw(t, "on")]
			memory := rapid.Uint64Range(100, 400).Draw(t, "takes")
			if n.GetAllocated().GetMemoryMib()+memory > n.GetAllocatable().GetMemoryMib() || n.GetAllocated().GetVcpus() >= 7 {
				continue
			}
			v.put(n.GetName(), "vm-"+strconv.Itoa(k), rapid.SampledFrom([]uint32{0, 20, 50, 70}).Draw(t, "priority"), memory, func(a *blixardv1.Allocation) {
				if rapid.IntRange(0, 5).Draw(t, "kept") == 0 {
					a.Spec = proto.CloneOf(a.Spec)
					a.Spec.OnNodeLoss = blixardv1.NodeLossPolicy_keep
				}
				if rapid.IntRange(0, 5).Draw(t, "going") == 0 {
					a.Desired = blixardv1.DesiredAllocation_remove
				}
				a.Spec.Vcpus = rapid.Uint32Range(1, 2).Draw(t, "vcpus")
			})
		}
		f := NewFleet(blixardv1.Strategy_unspecified)
		f.Follow(v)
		one := waiting(rapid.SampledFrom([]uint32{0, 20, 50, 70}).Draw(t, "own"), rapid.Uint64Range(100, 1400).Draw(t, "needs"), func(s *blixardv1.VMSpec) {
			s.Vcpus = rapid.Uint32Range(1, 8).Draw(t, "needs vcpus")
		})
		need := v.Limits().Reservation(one.GetSpec())
		fits := func(n *blixardv1.Node, gone func(*blixardv1.Allocation) bool) bool {
			used := n.GetAllocated()
			for _, a := range v.AllocationsOfNode(n.GetId()) {
				if a.GetDesired() == blixardv1.DesiredAllocation_remove || gone(a) {
					used = less(used, v.Limits().Reservation(a.GetSpec()))
				}
			}
			_, ok := state.Fits(n.GetAllocatable(), used, need)
			return ok
		}
		// highest that must go from any node, by trying all; -1 for nobody.
		highest, possible := 101, false
		for _, n := range v.nodes {
			for top := -1; top < int(state.Priority(one.GetSpec())); top++ {
				if fits(n, func(a *blixardv1.Allocation) bool {
					return state.Yields(a, one.GetSpec()) && int(state.Priority(a.GetSpec())) <= top
				}) {
					highest, possible = min(highest, top), true
				}
			}
		}
		if f.Place(v, one).Node != nil {
			return
		}
		p := f.Preempt(v, one, none)
		if p == nil {
			if possible && f.AnyBelow(state.Priority(one.GetSpec())) {
				t.Fatalf("none is found, though those of priority %d would do", highest)
			}
			return
		}
		got := -1
		for _, a := range p.Victims {
			if state.Priority(a.GetSpec()) >= state.Priority(one.GetSpec()) || state.Stays(a) != "" || a.GetNodeId() != p.Node.GetId() {
				t.Fatalf("it takes %v", a)
			}
			got = max(got, int(state.Priority(a.GetSpec())))
			if fits(p.Node, func(o *blixardv1.Allocation) bool { return o != a && slices.Contains(p.Victims, o) }) {
				t.Fatalf("%s is taken for nothing", a.GetVmName())
			}
		}
		if !fits(p.Node, func(a *blixardv1.Allocation) bool { return slices.Contains(p.Victims, a) }) {
			t.Fatalf("%s is not enough", words(p))
		}
		if got != highest {
			t.Fatalf("%s takes priority %d, and %d would do", words(p), got, highest)
		}
	})
}

// Nodes with taints are for those that tolerate them, and a fleet that follows knows.
func TestTaintsKeepOff(t *testing.T) {
	h := newHosts(t)
	h.node("a", 100_000, "")
	h.node("b", 10_000, "pool=gpu")
	taint := func(node string, set []string, drop ...string) {
		c := &blixardv1.UpdateNodeCommand{Node: node, DropTaints: drop}
		for _, text := range set {
			one, err := constraint.ParseTaint(text)
			if err != nil {
				t.Fatal(err)
			}
			c.SetTaints = append(c.SetTaints, one)
		}
		h.must(h.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: c}}))
	}
	tolerates := func(text string, also *blixardv1.Scheduling) *blixardv1.Scheduling {
		one, err := constraint.ParseToleration(text)
		if err != nil {
			t.Fatal(err)
		}
		also.Tolerations = append(also.Tolerations, one)
		return also
	}
	h.want("1", "", nil, "a")
	taint("a", []string{"gpu=yes:no-schedule"})
	h.want("2", "", nil, "b")
	h.want("3", "", tolerates("gpu", &blixardv1.Scheduling{}), "a")
	h.want("4", "", tolerates("gpu=no", &blixardv1.Scheduling{}), "b")
	taint("b", []string{"dead:evict"})
	h.want("5", "", nil, "taint: node a has the taint gpu=yes:no-schedule, which the VM does not tolerate; node b has the taint dead:evict, ")
	h.want("6", "", only("pool=other"), "constraint: ")
	h.want("7", "", tolerates("dead", only("pool=gpu")), "b")
	h.want("8", "", tolerates("dead:no-schedule", only("pool=gpu")), "taint: node a does not meet pool=gpu: it has no pool; node b has the taint dead:evict")
	taint("a", nil, "gpu")
	if got := h.place("5"); got != "a" {
		t.Errorf("5 goes to %s", got)
	}
}

package leader

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// priority of a VM that takes so much memory in all, and moves when it must.
func priority(p uint32, memoryMiB uint64) func(*blixardv1.VMSpec) {
	return func(s *blixardv1.VMSpec) {
		s.MemoryMib = uint32(memoryMiB - state.DefaultLimits().OverheadMiB)
		s.OnNodeLoss = replace
		s.Scheduling = &blixardv1.Scheduling{Priority: &p}
	}
}

func newPreemptive(t *testing.T) *cluster {
	c := newCluster(t)
	c.core.Preemption = true
	return c
}

// going are the VMs that leave their nodes, with commas between.
func (c *cluster) going() string {
	var names []string
	for _, a := range c.state.View().Allocations() {
		if state.Going(a) {
			names = append(names, a.GetVmName())
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

func (c *cluster) wantGoing(want string) {
	c.t.Helper()
	if got := c.going(); got != want {
		c.t.Fatalf("%q leave their nodes, want %q", got, want)
	}
}

// fresh puts a new leader into office.
func (c *cluster) fresh() {
	next := NewCore(c.core.newID, 50, blixardv1.Strategy_spread)
	next.Preemption = c.core.Preemption
	next.Reset(c.state.View())
	c.core = next
}

// Of VMs that wait, those of higher priority are placed first, and of equal ones those
// that wait longer, also when the leader changes.
func TestPlacedInOrderOfPriority(t *testing.T) {
	for _, change := range []bool{false, true} {
		c := newCluster(t)
		c.create("z-first", priority(50, 300))
		c.create("a-second", priority(50, 300))
		c.create("low", priority(10, 300))
		c.create("high", priority(90, 300))
		c.create("default", func(s *blixardv1.VMSpec) { s.MemoryMib = 220 })
		c.settle()
		if change {
			c.fresh()
		}
		for k, want := range []string{"high", "z-first", "a-second", "default", "low"} {
			c.node(fmt.Sprint("n", k), 300)
			c.settle()
			c.wantNode(want, fmt.Sprint("n", k), "placed")
		}
	}
}

// One that lost its place waits behind those of equal priority that waited before.
func TestWaitingBeginsWithTheLossOfThePlace(t *testing.T) {
	c := newCluster(t)
	c.node("a", 300)
	c.create("old", priority(50, 300))
	c.settle()
	c.create("waits", priority(50, 300))
	c.settle()
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_Evict{Evict: &blixardv1.EvictCommand{AllocationIds: []string{"alloc-1"}, Reason: "test"}}})
	c.gone("old")
	c.wantNode("waits", "a", "placed")
	c.wantNode("old", "", "no_capacity")
}

func TestPreemptionIsOffUnlessAskedFor(t *testing.T) {
	c := newCluster(t)
	c.node("a", 1000)
	c.create("low", priority(10, 900))
	c.settle()
	c.create("high", priority(90, 900))
	c.settle()
	c.wantNode("high", "", "no_capacity")
	c.wantGoing("")
}

// Preemption takes what is enough, once, and gives the room to who asked for it.
func TestPreemption(t *testing.T) {
	c := newPreemptive(t)
	c.node("a", 1000)
	c.create("low", priority(10, 500))
	c.create("other", priority(20, 400))
	c.create("equal", priority(90, 100))
	c.settle()
	c.running("low")
	c.create("high", priority(90, 600))
	c.settle()
	c.wantGoing("low,other")
	c.wantNode("high", "", "preempting")
	if m := c.state.View().VM("high").GetStatus().GetMessage(); m != "on node a VMs low, other make room, which are of lower priority" {
		t.Errorf("it says %q", m)
	}
	events := c.state.View().Events(&blixardv1.EventFilter{Kinds: []string{"vm.preempted"}}, 0)
	if len(events) != 2 || events[0].GetReason() != "preempted" || !strings.Contains(events[1].GetMessage(), "it makes room for VM high of priority 90, its own is 10") {
		t.Errorf("the events are %v", events)
	}
	// One of the two is gone: neither it nor another one takes the room piece by piece.
	c.create("small", priority(50, 100))
	c.gone("low")
	c.wantNode("low", "", "no_capacity")
	c.wantNode("small", "", "no_capacity")
	c.wantGoing("other")
	c.gone("other")
	c.wantNode("high", "a", "placed")
	c.wantNode("small", "a", "placed")
	c.wantNode("other", "", "no_capacity")
	// Those that made room are placed as soon as there is some.
	c.node("b", 1000)
	c.settle()
	c.wantNode("low", "b", "placed")
	c.wantNode("other", "b", "placed")
	c.wantNode("equal", "a", "")
}

// While victims stop, a new leader takes nothing more.
func TestPreemptionAcrossLeaders(t *testing.T) {
	c := newPreemptive(t)
	c.node("a", 1000)
	for k := range 3 {
		c.create(fmt.Sprint("low-", k), priority(10, 300))
	}
	c.settle()
	c.create("high", priority(90, 500))
	c.settle()
	c.wantGoing("low-0,low-1")
	c.fresh()
	c.settle()
	c.wantGoing("low-0,low-1")
	c.wantNode("high", "", "no_capacity")
	c.gone("low-0")
	c.fresh()
	c.settle()
	c.wantGoing("low-1")
	c.wantNode("low-0", "", "")
	c.gone("low-1")
	c.wantNode("high", "a", "placed")
}

// One that finds room elsewhere takes it, and what stops for it is placed again.
func TestRoomElsewhere(t *testing.T) {
	c := newPreemptive(t)
	c.node("a", 1000)
	c.create("low", priority(10, 900))
	c.settle()
	c.create("high", priority(90, 900))
	c.settle()
	c.wantGoing("low")
	c.node("b", 1000)
	c.settle()
	c.wantNode("high", "b", "placed")
	c.gone("low")
	c.wantNode("low", "a", "placed")
}

// When the node is none any more, others make room.
func TestPromiseOfANodeThatIsLost(t *testing.T) {
	for name, lose := range map[string]func(c *cluster){
		"down": func(c *cluster) { c.nodeState("a", down) },
		"cordoned": func(c *cluster) {
			c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: "a", Cordoned: proto.Bool(true)}}})
		},
		"tainted": func(c *cluster) { c.taint("a", blixardv1.TaintEffect_no_schedule) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newPreemptive(t)
			c.node("a", 1000)
			c.create("low", priority(10, 900))
			c.settle()
			c.node("b", 1000)
			c.create("middle", priority(20, 900))
			c.settle()
			c.create("high", priority(90, 900))
			c.settle()
			c.wantGoing("low")
			lose(c)
			c.settle()
			if got := c.state.View().Allocation(c.state.View().VM("middle").GetStatus().GetAllocationId()); !state.Going(got) {
				t.Fatalf("nothing is done: %s", c.going())
			}
			c.gone("middle")
			c.wantNode("high", "b", "placed")
		})
	}
}

func (c *cluster) taint(node string, effect blixardv1.TaintEffect_Enum) {
	c.t.Helper()
	if r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{
		Node: node, SetTaints: []*blixardv1.Taint{{Key: "gpu", Effect: effect}},
	}}}); r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
}

// The state refuses victims that were raised meanwhile, and the leader looks anew.
func TestRaisedMeanwhile(t *testing.T) {
	c := newPreemptive(t)
	c.node("a", 1000)
	c.create("low", priority(10, 500))
	c.create("middle", priority(20, 500))
	c.settle()
	c.create("high", priority(90, 500))
	cmds := c.core.Decide(c.state.View())
	if len(cmds) != 2 || !slices.Equal(cmds[0].GetPreempt().GetAllocationIds(), []string{c.state.View().VM("low").GetStatus().GetAllocationId()}) {
		t.Fatalf("%v", cmds)
	}
	spec := proto.CloneOf(c.state.View().VM("low").GetSpec())
	spec.Scheduling.Priority = proto.Uint32(95)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateVm{UpdateVm: &blixardv1.UpdateVMCommand{Name: "low", Spec: spec}}})
	c.wantCode(c.apply(cmds[0]), "preempt.priority")
	c.settle()
	c.wantGoing("middle")
	c.gone("middle")
	c.wantNode("high", "a", "placed")
}

// One whose priority is raised while it waits takes room, and one that is deleted while
// room is made for it leaves that to others.
func TestPromiseOfAVMThatChanges(t *testing.T) {
	c := newPreemptive(t)
	c.node("a", 1000)
	c.create("low", priority(50, 900))
	c.settle()
	c.create("high", priority(50, 900))
	c.settle()
	c.wantNode("high", "", "no_capacity")
	spec := proto.CloneOf(c.state.View().VM("high").GetSpec())
	spec.Scheduling.Priority = proto.Uint32(51)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateVm{UpdateVm: &blixardv1.UpdateVMCommand{Name: "high", Spec: spec}}})
	c.settle()
	c.wantGoing("low")
	c.create("small", priority(10, 100))
	c.settle()
	c.wantNode("small", "", "no_capacity")
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: "high"}}})
	c.settle()
	c.wantNode("small", "a", "placed")
	c.gone("low")
	c.wantNode("low", "a", "placed")
}

// One of still higher priority does not lose by what others were promised.
func TestTwoWhoPreempt(t *testing.T) {
	c := newPreemptive(t)
	c.node("a", 1000)
	c.node("b", 1000)
	c.create("low-a", priority(10, 900))
	c.create("low-b", priority(10, 900))
	c.settle()
	c.create("high", priority(80, 900))
	c.create("higher", priority(90, 900))
	c.settle()
	c.wantGoing("low-a,low-b")
	c.gone("low-a")
	c.gone("low-b")
	c.wantNode("higher", c.state.View().VM("higher").GetStatus().GetNode(), "placed")
	c.wantNode("high", c.state.View().VM("high").GetStatus().GetNode(), "placed")
	c.create("highest", priority(100, 900))
	c.settle()
	c.wantGoing("high")
}

// Older members do not know how to preempt.
func TestOlderMembersDoNotPreempt(t *testing.T) {
	c := newPreemptive(t)
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
		ClusterId: "x", CaCertificate: []byte("ca"), Member: &blixardv1.Member{NodeId: "node-a", Name: "a", RaftId: 1, Address: "a:1", FeatureLevel: preemptLevel - 1},
	}}})
	c.node("a", 1000)
	c.create("low", priority(10, 900))
	c.settle()
	c.create("high", priority(90, 900))
	c.settle()
	c.wantNode("high", "", "no_capacity")
	c.wantGoing("")
}

// A taint that evicts takes off what does not tolerate it, as a drain does, and comes again
// when a VM does not tolerate it any more.
func TestTaintEvicts(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	tolerates := func(s *blixardv1.VMSpec) {
		s.OnNodeLoss = replace
		s.Scheduling = &blixardv1.Scheduling{Tolerations: []*blixardv1.Toleration{{Key: "gpu"}}}
	}
	c.create("goes", policy(replace))
	c.create("exclusive", policy(failover))
	c.create("kept", policy(keep))
	c.create("tolerates", tolerates)
	c.settle()
	for _, vm := range []string{"goes", "exclusive", "kept", "tolerates"} {
		c.running(vm)
	}
	c.node("b", 4096)
	c.taint("a", blixardv1.TaintEffect_no_schedule)
	c.settle()
	c.wantGoing("")
	c.taint("a", blixardv1.TaintEffect_evict)
	c.settle()
	c.wantGoing("exclusive,goes")
	c.gone("goes")
	c.wantNode("goes", "b", "placed")
	events := c.state.View().Events(&blixardv1.EventFilter{Kinds: []string{"vm.evicted"}}, 0)
	if len(events) != 2 || events[0].GetReason() != "taint" {
		t.Errorf("the events are %v", events)
	}
	c.fresh()
	c.gone("exclusive")
	c.wantNode("exclusive", "b", "placed")
	spec := proto.CloneOf(c.state.View().VM("tolerates").GetSpec())
	spec.Scheduling = nil
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateVm{UpdateVm: &blixardv1.UpdateVMCommand{Name: "tolerates", Spec: spec}}})
	c.settle()
	c.wantGoing("tolerates")
}

// More VMs than a decision looks at all have their turn.
func TestManyWhoPreempt(t *testing.T) {
	c := newPreemptive(t)
	n := preemptTries + 5
	c.node("a", uint64(n)*300)
	for k := range n {
		c.create(fmt.Sprint("low-", k), priority(10, 300))
	}
	c.settle()
	for k := range n {
		c.create(fmt.Sprint("high-", k), priority(60, 300))
	}
	c.settle()
	c.core.Decide(c.state.View())
	c.settle()
	if got := strings.Count(c.going(), "low-"); got != n {
		t.Errorf("%d of %d make room", got, n)
	}
}

// Whatever is created, changed, removed and lost, in whatever order: nothing of equal or
// higher priority makes room, nothing is asked for twice, all comes to rest, and then
// nobody waits for whom VMs of lower priority could make room.
func TestPreemptionComesToRest(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newPreemptive(t)
		nodes := map[string]bool{}
		made := 0
		decide := func() {
			for _, cmd := range c.core.Decide(c.state.View()) {
				if p := cmd.GetPreempt(); p != nil {
					to := c.state.View().VM(p.GetVmId())
					for _, id := range p.GetAllocationIds() {
						a := c.state.View().Allocation(id)
						if state.Priority(a.GetSpec()) >= state.Priority(to.GetSpec()) || state.Stays(a) != "" {
							rt.Fatalf("%v makes room for %v", a, to)
						}
						if state.Going(a) {
							rt.Fatalf("%v goes already", a)
						}
					}
				}
				c.apply(cmd)
			}
		}
		names := func() []string {
			var all []string
			for _, vm := range c.state.View().VMs("", 0) {
				all = append(all, vm.GetName())
			}
			return all
		}
		vm := func() string { return rapid.SampledFrom(append(names(), "nobody")).Draw(rt, "vm") }
		leave := func() {
			for _, a := range c.state.View().Allocations() {
				if state.Going(a) && rapid.Bool().Draw(rt, "gone") {
					if why := c.told(a, blixardv1.AllocationState_stopped, true); why != nil {
						rt.Fatal(why)
					}
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"node": func(*rapid.T) {
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "node")
				if !nodes[name] {
					c.node(name, rapid.Uint64Range(500, 1500).Draw(rt, "memory"))
					nodes[name] = true
				}
			},
			"state": func(*rapid.T) {
				if len(nodes) == 0 {
					return
				}
				name := rapid.SampledFrom(slices.Sorted(maps.Keys(nodes))).Draw(rt, "node")
				switch rapid.IntRange(0, 3).Draw(rt, "what") {
				case 0:
					c.nodeState(name, rapid.SampledFrom([]blixardv1.NodeState_Enum{ready, down}).Draw(rt, "state"))
				case 1:
					c.taint(name, blixardv1.TaintEffect_Enum(rapid.IntRange(1, 2).Draw(rt, "effect")))
				case 2:
					c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: name, DropTaints: []string{"gpu"}}}})
				default:
					c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: name, Cordoned: proto.Bool(rapid.Bool().Draw(rt, "cordoned"))}}})
				}
			},
			"create": func(*rapid.T) {
				made++
				c.create(fmt.Sprint("vm-", made), func(s *blixardv1.VMSpec) {
					priority(rapid.SampledFrom([]uint32{0, 20, 50, 80}).Draw(rt, "priority"), rapid.Uint64Range(150, 700).Draw(rt, "memory"))(s)
					s.OnNodeLoss = rapid.SampledFrom([]blixardv1.NodeLossPolicy_Enum{keep, replace, replace, failover}).Draw(rt, "policy")
				})
			},
			"delete": func(*rapid.T) {
				c.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: vm()}}})
			},
			"raise": func(*rapid.T) {
				if old := c.state.View().VM(vm()); old != nil {
					spec := proto.CloneOf(old.GetSpec())
					spec.Scheduling.Priority = proto.Uint32(rapid.SampledFrom([]uint32{0, 20, 50, 80}).Draw(rt, "priority"))
					c.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateVm{UpdateVm: &blixardv1.UpdateVMCommand{Name: old.GetName(), Spec: spec}}})
				}
			},
			"decide": func(*rapid.T) { decide() },
			"leader": func(*rapid.T) { c.fresh() },
			"leave":  func(*rapid.T) { leave() },
		})
		for _, name := range slices.Sorted(maps.Keys(nodes)) {
			c.nodeState(name, ready)
		}
		for range 200 {
			before := c.index
			decide()
			decide() // those for whom there was no time before
			for _, a := range c.state.View().Allocations() {
				if state.Going(a) {
					if why := c.told(a, blixardv1.AllocationState_stopped, true); why != nil {
						rt.Fatal(why)
					}
					break
				}
			}
			if c.index == before {
				c.atRest(rt)
				return
			}
		}
		rt.Fatalf("it does not come to rest: %s", c.core)
	})
}

// atRest checks that nobody waits who could have a place.
func (c *cluster) atRest(t *rapid.T) {
	view := c.state.View()
	if len(c.core.promises) > 0 {
		t.Fatalf("promises are left: %v", c.core.promises)
	}
	fresh := NewCore(c.core.newID, 50, blixardv1.Strategy_spread)
	fresh.Preemption = true
	fresh.Reset(view)
	for _, cmd := range fresh.Decide(view) {
		if cmd.GetPreempt() != nil || cmd.GetPlace() != nil {
			t.Fatalf("a new leader would still do %v; %s", cmd, c.core)
		}
	}
}

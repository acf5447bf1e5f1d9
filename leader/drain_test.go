package leader

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// drain begins one in steps; a deadline of 0 means none.
func (c *cluster) drain(node string, deadline time.Duration) {
	cmd := &blixardv1.DrainNodeCommand{Node: node, Drain: true, Gradual: true}
	if deadline > 0 {
		cmd.Deadline = durationpb.New(deadline)
	}
	if r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_DrainNode{DrainNode: cmd}}); r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
}

// carryOn applies what drains and the rest of the core decide at a time, until that is
// nothing, and gives the VMs that were taken off, in their order.
func (c *cluster) carryOn(now time.Time) []string {
	c.t.Helper()
	var gone []string
	for range 50 {
		c.settle()
		cmds := c.core.Drains(c.state.View(), now)
		if len(cmds) == 0 {
			return gone
		}
		for _, cmd := range cmds {
			for _, id := range cmd.GetAdvanceDrain().GetAllocationIds() {
				gone = append(gone, c.state.View().Allocation(id).GetVmName())
			}
			if r := c.apply(cmd); r.Problem != nil || len(r.Refused) > 0 {
				c.t.Fatal(r.Problem, r.Refused)
			}
		}
	}
	c.t.Fatal("the drain does not come to rest")
	return nil
}

// emptied lets what leaves a node be gone, and run where it is placed next.
func (c *cluster) emptied(now time.Time, names ...string) []string {
	c.t.Helper()
	for _, name := range names {
		c.gone(name)
	}
	c.settle()
	for _, name := range names {
		if c.state.View().VM(name).GetStatus().GetAllocationId() != "" {
			c.running(name)
		}
	}
	return c.carryOn(now)
}

func (c *cluster) wantDrain(node string, want blixardv1.DrainState_Enum, words string) {
	c.t.Helper()
	d := c.state.View().Node(node).GetDrain()
	if d.GetState() != want || !strings.Contains(d.GetMessage(), words) {
		c.t.Fatalf("the drain of %s is %v: %q, want %v with %q", node, d.GetState(), d.GetMessage(), want, words)
	}
}

// start is any time; drains only look at what has passed since.
var start = time.Unix(1_000_000, 0)

// Those of the lowest priority leave first, a few at a time, and the drain ends.
func TestDrainByPriority(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4000)
	for k, p := range []uint32{90, 10, 50, 30, 70, 20} {
		name := fmt.Sprintf("vm-%d-%d", p, k)
		c.create(name, priority(p, 300))
		c.settle()
		c.running(name)
	}
	c.create("kept", func(s *blixardv1.VMSpec) { s.OnNodeLoss = blixardv1.NodeLossPolicy_keep })
	c.settle()
	c.node("b", 4000)
	c.drain("a", 0)
	if got := c.carryOn(start); !slices.Equal(got, []string{"vm-10-1", "vm-20-5", "vm-30-3", "vm-50-2"}) {
		t.Fatalf("%v leave first", got)
	}
	c.wantDrain("a", blixardv1.DrainState_moving, "2 VMs wait for their turn, 4 leave")
	if got := c.emptied(start, "vm-20-5"); !slices.Equal(got, []string{"vm-70-4"}) {
		t.Fatalf("%v leave next", got)
	}
	if got := c.emptied(start, "vm-10-1", "vm-30-3"); !slices.Equal(got, []string{"vm-90-0"}) {
		t.Fatalf("%v leave last", got)
	}
	c.emptied(start, "vm-50-2", "vm-70-4", "vm-90-0")
	c.wantDrain("a", blixardv1.DrainState_done, "kept (it is kept on its node) stays")
	c.wantNode("kept", "a", "placed")
	c.wantNode("vm-90-0", "b", "")
}

// The last node that fits keeps its VMs until the deadline, and says why; then they stop.
func TestDrainIsBlockedAndExpires(t *testing.T) {
	c := newCluster(t)
	c.node("a", 1000)
	c.node("b", 300)
	c.create("big", priority(50, 800))
	c.settle()
	c.running("big")
	c.drain("a", time.Minute)
	if got := c.carryOn(start); len(got) > 0 {
		t.Fatalf("%v left", got)
	}
	c.wantDrain("a", blixardv1.DrainState_blocked, "no other node can have big: node a is being emptied; node b has too little memory")
	c.wantNode("big", "a", "")
	if got := c.carryOn(start.Add(59 * time.Second)); len(got) > 0 {
		t.Fatalf("%v left", got)
	}
	if got := c.carryOn(start.Add(time.Minute)); !slices.Equal(got, []string{"big"}) {
		t.Fatalf("%v are stopped at the deadline", got)
	}
	if d := c.state.View().Node("a").GetDrain(); !d.GetExpired() || d.GetEvicted() != 1 {
		t.Fatal(d)
	}
	c.emptied(start.Add(time.Minute), "big")
	c.wantDrain("a", blixardv1.DrainState_done, "all VMs have left")
	c.wantNode("big", "", "no_capacity")
	events := ""
	for _, e := range c.state.View().Events(nil, 0) {
		events += e.GetKind() + " "
	}
	for _, kind := range []string{"node.draining", "node.drain_blocked", "node.drain_expired", "node.drained"} {
		if !strings.Contains(events, kind) {
			t.Errorf("no %s among %s", kind, events)
		}
	}
	// Room that comes lets it go on.
	c.node("c", 1000)
	c.settle()
	c.wantNode("big", "c", "placed")
}

// A blocked drain goes on when there is room, and one of low priority does not take the
// room of one of high.
func TestDrainGoesOn(t *testing.T) {
	c := newCluster(t)
	c.node("a", 1000)
	c.create("low", priority(10, 400))
	c.create("high", priority(90, 400))
	c.settle()
	c.running("low")
	c.running("high")
	c.drain("a", 0)
	c.carryOn(start)
	c.wantDrain("a", blixardv1.DrainState_blocked, "high, low")
	c.node("b", 500)
	if got := c.carryOn(start); !slices.Equal(got, []string{"high"}) {
		t.Fatalf("%v leave", got)
	}
	c.emptied(start, "high")
	c.wantNode("high", "b", "")
	c.wantDrain("a", blixardv1.DrainState_blocked, "no other node can have low")
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_DrainNode{DrainNode: &blixardv1.DrainNodeCommand{Node: "a"}}})
	c.carryOn(start)
	if n := c.state.View().Node("a"); n.GetDraining() || n.GetDrain() != nil {
		t.Fatal(n)
	}
}

// With preemption a VM leaves also when others of lower priority make room for it.
func TestDrainPreempts(t *testing.T) {
	c := newPreemptive(t)
	c.node("a", 1000)
	c.create("high", priority(90, 800))
	c.settle()
	c.running("high")
	c.node("b", 900)
	c.create("low", priority(10, 600))
	c.settle()
	c.running("low")
	c.drain("a", 0)
	if got := c.carryOn(start); !slices.Equal(got, []string{"high"}) {
		t.Fatalf("%v leave", got)
	}
	c.emptied(start)
	c.gone("high")
	c.wantNode("high", "", "preempting")
	c.wantGoing("low")
	c.gone("low")
	c.wantNode("high", "b", "placed")
	c.carryOn(start)
	c.wantDrain("a", blixardv1.DrainState_done, "all VMs have left")
}

// What is left of a deadline is in the state: leaders that change, whose clocks show any
// time, prolong a drain by a sixteenth each at most, and never end it early.
func TestDrainDeadlineSurvivesLeaders(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(t)
		c.node("a", 1000)
		c.create("only", priority(50, 800))
		c.settle()
		c.running("only")
		deadline := time.Duration(rapid.IntRange(16, 7200).Draw(rt, "deadline")) * time.Second
		c.drain("a", deadline)
		passed, changes := time.Duration(0), 0
		clock := start
		for {
			gone := c.carryOn(clock)
			if len(gone) > 0 {
				break
			}
			step := time.Duration(rapid.Int64Range(1, int64(deadline/32)).Draw(rt, "step"))
			passed += step
			clock = clock.Add(step)
			if rapid.IntRange(0, 7).Draw(rt, "change") == 0 {
				changes++
				c.fresh()
				clock = time.Unix(rapid.Int64Range(0, 4_000_000_000).Draw(rt, "clock"), 0)
			}
			if passed > deadline+time.Duration(changes+1)*(deadline/drainNotes+deadline/32+drainNoteMin) {
				rt.Fatalf("%v have passed of %v with %d changes of leader", passed, deadline, changes)
			}
		}
		if passed < deadline {
			rt.Fatalf("it ended after %v of %v", passed, deadline)
		}
	})
}

// Whatever VMs there are: none leaves while one of lower priority that could leave stays, and
// at most drainParallel are on their way.
func TestDrainOrderProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(t)
		c.node("a", 100_000)
		n := rapid.IntRange(1, 12).Draw(rt, "VMs")
		for k := range n {
			name := fmt.Sprint("vm-", k)
			c.create(name, priority(uint32(rapid.IntRange(0, 4).Draw(rt, "priority")*25), uint64(rapid.IntRange(150, 500).Draw(rt, "memory"))))
			c.settle()
			if c.state.View().VM(name).GetStatus().GetNode() == "a" {
				c.running(name)
			}
		}
		c.node("b", uint64(rapid.IntRange(200, 8000).Draw(rt, "room")))
		c.drain("a", 0)
		for range 4 * n {
			left := map[string]uint32{}
			view := c.state.View()
			for _, a := range view.AllocationsOfNode("node-a") {
				if !state.Going(a) {
					left[a.GetVmName()] = state.Priority(a.GetSpec())
				}
			}
			able, _, _ := func() ([]*blixardv1.Allocation, string, string) {
				c.core.fleet.Follow(view)
				w := c.core.drains["node-a"]
				if w == nil {
					w = &drainWatch{}
				}
				r := c.core.rest(view, view.Node("a"), w)
				return c.core.able(view, &r)
			}()
			gone := c.carryOn(start)
			for k, name := range gone {
				if able[k].GetVmName() != name {
					rt.Fatalf("%v leave, of %v", gone, left)
				}
				if k > 0 && left[gone[k-1]] > left[name] {
					rt.Fatalf("%v leave, of %v", gone, left)
				}
			}
			going := strings.FieldsFunc(c.going(), func(r rune) bool { return r == ',' })
			if len(going) > drainParallel {
				rt.Fatalf("%v are on their way at once", going)
			}
			if len(going) == 0 {
				break
			}
			c.gone(going[0])
			c.settle()
			if c.state.View().VM(going[0]).GetStatus().GetAllocationId() != "" {
				c.running(going[0])
			}
		}
		d := c.state.View().Node("a").GetDrain()
		if rest := len(c.state.View().AllocationsOfNode("node-a")); (rest == 0) != (d.GetState() == blixardv1.DrainState_done) || rest > 0 && d.GetState() != blixardv1.DrainState_blocked {
			rt.Fatalf("%v with %d VMs on the node", d, rest)
		}
	})
}

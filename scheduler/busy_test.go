package scheduler

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// busy makes nodes busy or calm.
func (h *hosts) busy(is bool, names ...string) {
	set := &blixardv1.SetBusyCommand{}
	for _, name := range names {
		set.Nodes = append(set.Nodes, &blixardv1.NodeBusy{NodeId: "node-" + name, Busy: is})
	}
	h.must(h.apply(&blixardv1.Command{Change: &blixardv1.Command_SetBusy{SetBusy: set}}))
}

func strategy(s blixardv1.Strategy_Enum) *blixardv1.Scheduling {
	return &blixardv1.Scheduling{Strategy: s}
}

// TestBusyNodesComeLast: a VM that wishes nothing goes to a busy node only when no other can
// have it, however nodes are filled; what must be is kept, and strong wishes are.
func TestBusyNodesComeLast(t *testing.T) {
	h := newHosts(t)
	h.node("a", 100_000, "zone=x")
	h.node("b", 2_000, "zone=y")
	h.node("c", 1_000, "zone=z")
	h.busy(true, "a")
	h.want("spread", "", nil, "b")
	h.want("pack", "", strategy(blixardv1.Strategy_pack), "c")
	h.want("must", "", only("zone=x"), "a")
	h.want("named", "", only("node.name=a"), "a")
	h.want("wish", "", prefer(100, "zone=x"), "b")
	strong := prefer(100, "zone=x")
	strong.Preferences = append(strong.Preferences, prefer(100, "node.name=a").Preferences...)
	h.want("wishes", "", strong, "a")
	// Of busy ones the strategy chooses.
	h.busy(true, "b", "c")
	h.want("all busy", "", nil, "a")
	h.want("all busy, packed", "", strategy(blixardv1.Strategy_pack), "c")
	h.busy(false, "b")
	h.want("calm again", "", nil, "b")
	// One that comes and goes is still worse, and one that is full is none.
	h.must(h.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: "b", Damped: proto.Bool(true)}}}))
	h.want("unsteady", "", nil, "a")
	h.busy(false, "a")
	h.want("steady and calm", "", nil, "a")
}

// TestBusyZones: VMs that must be near or apart, or in shares, are so whatever the load.
func TestBusyZones(t *testing.T) {
	h := newHosts(t)
	for k := range 6 {
		h.node(fmt.Sprint("n", k), 10_000, fmt.Sprint("zone=z", k%3))
	}
	h.busy(true, "n0", "n1", "n3")
	counts := map[string]int{}
	for k := range 9 {
		h.create(fmt.Sprint("web-", k), "app=web", &blixardv1.Scheduling{Spreads: []*blixardv1.Spread{{Key: "app", Value: "web", Over: "zone"}}})
		node := h.place(fmt.Sprint("web-", k))
		counts[h.state.View().Node(node).GetFingerprint().GetLabels()["zone"]]++
		if node == "n1" {
			t.Errorf("VM %d is on n1, and n4 is of the same zone and calm", k)
		}
	}
	if counts["z0"] != 3 || counts["z1"] != 3 || counts["z2"] != 3 {
		t.Errorf("they are spread as %v, and all nodes of z0 are busy", counts)
	}
	h.want("near", "", near(0, "web", "zone"), "n5")
	h.want("db", "app=db", only("node.name=n0"), "n0")
	h.want("with-db", "", near(0, "db", ""), "n0")
	h.want("apart", "", apart(0, "db", "zone"), "n2")
}

// TestBusyNodesAreExplained: the points that a high load costs are told.
func TestBusyNodesAreExplained(t *testing.T) {
	h := newHosts(t)
	h.node("a", 10_000, "")
	h.node("b", 5_000, "")
	h.busy(true, "a")
	h.create("web", "", nil)
	view := h.state.View()
	h.fleet.Follow(view)
	d, verdicts := h.fleet.Explain(view, view.VM("web"))
	part := func(what string, points float64) *blixardv1.NodePoints {
		return &blixardv1.NodePoints{What: what, Points: points}
	}
	spread := func(left float64) *blixardv1.NodePoints { return part("spread: much memory is left", left) }
	want := []*blixardv1.NodeVerdict{
		{Node: "b", Possible: true, Points: 46.64, Parts: []*blixardv1.NodePoints{spread(46.64)}},
		{Node: "a", Possible: true, Points: -103.36, Parts: []*blixardv1.NodePoints{spread(96.64), part("its load is high", pointsBusy)}},
	}
	if diff := cmp.Diff(want, verdicts, protocmp.Transform()); diff != "" || d.Node.GetName() != "b" {
		t.Errorf("it goes to %s: %s", d.Node.GetName(), diff)
	}
}

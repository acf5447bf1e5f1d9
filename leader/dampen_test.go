package leader

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// A node that is lost again and again gets VMs only when no other node can have them,
// until it was steady for a while.
func TestFlappingNodesAreDamped(t *testing.T) {
	c := newCluster(t)
	c.node("a", 1<<20)
	c.node("b", 1000)
	dampen := func(after time.Duration) string {
		t.Helper()
		newest := time.Unix(int64(c.index), 0)
		cmds := Dampen(c.state.View(), newest.Add(after))
		for _, cmd := range cmds {
			if r := c.apply(cmd); r.Problem != nil {
				t.Fatal(r.Problem)
			}
		}
		if len(cmds) == 0 {
			return ""
		}
		events := c.state.View().Events(nil, 1)
		return events[0].GetKind() + " " + events[0].GetObjectName()
	}
	for range flapsMin - 1 {
		c.nodeState("a", down)
		c.nodeState("a", ready)
		if got := dampen(0); got != "" {
			t.Fatalf("too early: %s", got)
		}
	}
	c.nodeState("a", down)
	c.nodeState("a", ready)
	if got := dampen(time.Minute); got != "node.damped a" {
		t.Fatalf("got %q", got)
	}
	if got := dampen(time.Minute); got != "" {
		t.Errorf("said twice: %s", got)
	}
	c.create("elsewhere", nil)
	c.create("large", func(s *blixardv1.VMSpec) { s.MemoryMib = 2000 })
	c.settle()
	c.wantNode("elsewhere", "b", "placed")
	c.wantNode("large", "a", "placed")
	if got := dampen(steadyAfter); got != "node.steady a" {
		t.Fatalf("got %q", got)
	}
	c.create("after", nil)
	c.settle()
	c.wantNode("after", "a", "placed")
	for range 20 {
		c.nodeState("b", down)
		c.nodeState("b", ready)
	}
	if n := len(c.state.View().Node("b").GetDowns()); n != 8 {
		t.Errorf("%d times are kept", n)
	}
}

// Losses that are far apart do not count.
func TestRareLossesDoNotDamp(t *testing.T) {
	n := &blixardv1.Node{}
	at := time.Unix(1_000_000, 0)
	for k := range 8 {
		n.Downs = append(n.Downs, timestamppb.New(at.Add(time.Duration(k)*31*time.Minute)))
	}
	if flaps(n, at.Add(7*31*time.Minute)) {
		t.Error("a loss each half an hour is flapping")
	}
}

package sim

import (
	"fmt"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// drain: what is left of a deadline never grows, and one that is over stays over, whoever
// leads.
func (c *checks) drain(n *blixardv1.Node) {
	was, is := c.drains[n.GetId()], n.GetDrain()
	c.drains[n.GetId()] = is
	if was.GetBegunIndex() != is.GetBegunIndex() || is == nil {
		return
	}
	if is.GetLeft().AsDuration() > was.GetLeft().AsDuration() || was.GetExpired() && !is.GetExpired() {
		c.w.fail("the drain of node %s had %v left and has %v", n.GetName(), was, is)
	}
	if is.GetExpired() && !was.GetExpired() {
		c.w.count("drains whose deadline came")
	}
	if is.GetState() == blixardv1.DrainState_done && was.GetState() != is.GetState() {
		c.w.count("drains that ended")
	}
}

// drained: a drain leaves what is kept on its node.
func (c *checks) drained(a *blixardv1.Allocation) {
	c.w.count("VMs drained in steps")
	if a.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_keep || len(a.GetVolumes()) > 0 {
		c.w.fail("VM %s leaves a node that is drained and is to stay", a.GetVmName())
	}
}

// unsettledDrain tells why a drain is to go on once nothing happens any more: one that has a
// deadline comes to its end, and another too, or says what it waits for.
func (w *world) unsettledDrain(view *state.View, n *blixardv1.Node) string {
	d := n.GetDrain()
	if d == nil || n.GetState() != blixardv1.NodeState_ready || d.GetState() == blixardv1.DrainState_done {
		return ""
	}
	if d.GetState() == blixardv1.DrainState_blocked && d.GetDeadline() == nil {
		return ""
	}
	return fmt.Sprintf("its drain is %v with %d VMs: %s", d.GetState(), len(view.AllocationsOfNode(n.GetId())), d.GetMessage())
}

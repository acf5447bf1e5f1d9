package leader

import (
	"slices"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/state"
)

// evict empties nodes of what must go at once: draining ones of all, tainted ones of what does not
// tolerate it. What stays, stays in either case.
func (c *Core) evict(view View) []*blixardv1.Command {
	var nodes []string
	for id, draining := range c.draining {
		if draining {
			nodes = append(nodes, id)
		}
	}
	slices.Sort(nodes)
	ids := map[string][]string{}
	count := 0
	for _, id := range nodes {
		c.draining[id] = false
		node := view.Node(id)
		for _, a := range view.AllocationsOfNode(id) {
			if count >= planVMs {
				c.draining[id] = true // the rest comes in the next round
				break
			}
			if why := mustGo(node, a); why != "" {
				ids[why] = append(ids[why], a.GetId())
				count++
			}
		}
	}
	var out []*blixardv1.Command
	for _, why := range []string{state.EvictDrain, state.EvictTaint} {
		if len(ids[why]) > 0 {
			out = append(out, &blixardv1.Command{Change: &blixardv1.Command_Evict{Evict: &blixardv1.EvictCommand{AllocationIds: ids[why], Reason: why}}})
		}
	}
	return out
}

// mustGo tells why an allocation is to leave its node; empty when it may be there.
func mustGo(n *blixardv1.Node, a *blixardv1.Allocation) string {
	switch {
	case state.Going(a) || state.Stays(a) != "":
		return ""
	case atOnce(n):
		return state.EvictDrain
	case constraint.Untolerated(n.GetTaints(), a.GetSpec().GetScheduling(), blixardv1.TaintEffect_evict) != nil:
		return state.EvictTaint
	}
	return ""
}

// atOnce reports whether a node is emptied at once, and not in steps.
func atOnce(n *blixardv1.Node) bool { return n.GetDraining() && n.GetDrain() == nil }

package leader

import (
	"fmt"
	"maps"
	"slices"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// lose gives up the places of VMs on nodes that are down. None is given up while too
// many nodes are down, which is said once.
func (c *Core) lose(view View) *blixardv1.Command {
	if len(c.stranded) == 0 || view.FeatureLevel() < loseLevel {
		return nil
	}
	cmd := &blixardv1.LoseCommand{}
	before := c.storm
	c.storm = storm(view.Nodes(), c.stormPercent)
	if c.storm != "" && before == "" {
		cmd.Storm = c.storm
	}
	for _, id := range slices.Sorted(maps.Keys(c.stranded)) {
		if len(cmd.AllocationIds) >= planVMs {
			break // the rest comes in the next round
		}
		delete(c.stranded, id)
		c.waiting[id] = true
		if a := lost(view, view.VM(id)); a != nil && c.storm == "" {
			cmd.AllocationIds = append(cmd.AllocationIds, a.GetId())
		}
	}
	if len(cmd.GetAllocationIds()) == 0 && cmd.GetStorm() == "" {
		return nil
	}
	return &blixardv1.Command{Change: &blixardv1.Command_Lose{Lose: cmd}}
}

// lost gives the placement of a VM that is to be given up, nil when there is none.
func lost(view View, vm *blixardv1.VM) *blixardv1.Allocation {
	a := view.Allocation(vm.GetStatus().GetAllocationId())
	if a == nil || state.Keeps(vm, a) != "" {
		return nil
	}
	if view.Node(a.GetNodeId()).GetState() != blixardv1.NodeState_down {
		return nil
	}
	return a
}

// loseLevel is the feature level of LoseCommand.
var loseLevel = state.Level(&blixardv1.Command{Change: &blixardv1.Command_Lose{Lose: &blixardv1.LoseCommand{}}})

// storm says how many nodes are down when they are too many, else nothing.
func storm(nodes []*blixardv1.Node, percent int) string {
	down, all := 0, 0
	for _, n := range nodes {
		switch n.GetState() {
		case blixardv1.NodeState_left:
			continue
		case blixardv1.NodeState_down:
			down++
		}
		all++
	}
	if down*100 <= all*percent {
		return ""
	}
	return fmt.Sprintf("%d of %d nodes are down, more than %d %%: VMs of theirs wait until some are back", down, all, percent)
}

// MayStart tells whether a node may start an exclusive VM under a lease that was just
// granted to it: the cluster may have given the allocation up while the node had none.
// view is of after the grant.
func MayStart(a *blixardv1.Allocation, nodeID string) error {
	if a != nil && a.GetNodeId() == nodeID && !state.Lost(a) || planted.Is(planted.StartUnasked) {
		return nil
	}
	return problem.New(problem.Fenced, "allocation.lost", "the cluster has given this placement of the VM up").
		WithHint("the node removes what is left of it")
}

package state

import (
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// registerNode makes a node known or renews what is known of it. A start of the
// agent that is older than the newest known one is refused, so that a copied
// data directory cannot take a node's place silently.
func (b *batch) registerNode(c *blixardv1.RegisterNodeCommand) Result {
	if c.GetNodeId() == "" || c.GetName() == "" {
		return refused(b.index, problem.New(problem.Invalid, "node.incomplete", "a node needs an id and a name"))
	}
	if other := first[blixardv1.Node](b.txn, tableNode, indexName, c.GetName()); other != nil && other.GetId() != c.GetNodeId() {
		return refused(b.index, problem.New(problem.Conflict, "node.name_taken", "there is a node %q already, with id %q", c.GetName(), other.GetId()).
			WithHint("give this node another name"))
	}
	old := b.node(c.GetNodeId())
	next := &blixardv1.Node{Id: c.GetNodeId(), Allocated: &blixardv1.Resources{}, CreateIndex: b.index}
	if old != nil {
		if c.GetIncarnation() < old.GetIncarnation() {
			return refused(b.index, problem.New(problem.Fenced, "node.incarnation",
				"start %d of node %q is over: start %d is known", c.GetIncarnation(), old.GetName(), old.GetIncarnation()).
				WithHint("was its data directory copied or restored? Run it on one host only"))
		}
		next = copyNode(old)
	}
	next.Name, next.Incarnation, next.Fingerprint = c.GetName(), c.GetIncarnation(), c.GetFingerprint()
	next.State = blixardv1.NodeState_ready
	next.Allocatable = b.s.limits.Allocatable(c.GetFingerprint().GetCapacity())
	if old != nil && proto.Equal(old, next) {
		return Result{Index: b.index, Node: old}
	}
	b.putNode(next)
	kind, message := "node.registered", "the node is known and ready"
	if old != nil {
		kind, message = "node.renewed", "the node's agent started or learned more of its host"
	}
	b.event(&blixardv1.Event{
		Kind: kind, ObjectKind: "node", ObjectId: next.GetId(), ObjectName: next.GetName(), Node: next.GetName(), Message: message,
	})
	return Result{Index: b.index, Node: next}
}

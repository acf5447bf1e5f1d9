package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/problem"
)

func removedProblem(name string) *problem.Error {
	return problem.New(problem.Fenced, "member.removed", "node %q is no member of this cluster", name).
		WithHint("it was removed; start it with an empty --data-dir and let it join again")
}

// registerNode makes a node known or renews what is known of it. A start of the
// agent that is older than the newest known one is refused, so that a copied
// data directory cannot take a node's place silently.
func (b *batch) registerNode(c *blixardv1.RegisterNodeCommand) Result {
	if c.GetNodeId() == "" || c.GetName() == "" {
		return refused(b.index, problem.New(problem.Invalid, "node.incomplete", "a node needs an id and a name"))
	}
	if other := first[blixardv1.Node](b.db, tableNode, indexName, c.GetName()); other != nil && other.GetId() != c.GetNodeId() {
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
		if old.GetState() == blixardv1.NodeState_left {
			return refused(b.index, removedProblem(old.GetName()))
		}
		// A long lease of the earlier start lasts on: its fence is not moved back.
		next = copyNode(old)
	}
	if m := b.member(c.GetNodeId()); b.cluster() != nil && (m == nil || m.GetRemoved()) {
		return refused(b.index, removedProblem(c.GetName()))
	}
	next.Name, next.Incarnation, next.Fingerprint = c.GetName(), c.GetIncarnation(), c.GetFingerprint()
	next.State = blixardv1.NodeState_ready
	next.Allocatable = b.s.limits.Allocatable(settings(b.db), c.GetFingerprint().GetCapacity())
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

// presentNode finds a node that has not left, by id or name.
func (b *batch) presentNode(ref string) (*blixardv1.Node, *problem.Error) {
	n := b.node(ref)
	if n == nil {
		n = first[blixardv1.Node](b.db, tableNode, indexName, ref)
	}
	if n == nil || n.GetState() == blixardv1.NodeState_left {
		return nil, problem.New(problem.NotFound, "node.not_found", "there is no node %q", ref).
			WithHint("`blixard node list` shows the nodes")
	}
	return n, nil
}

// downsKept of a node.
const downsKept = 8

// nodeLabelsMax of a node.
const nodeLabelsMax = 64

// updateNode changes the labels and taints that people gave a node, and whether it takes
// VMs.
func (b *batch) updateNode(c *blixardv1.UpdateNodeCommand) Result {
	old, why := b.presentNode(c.GetNode())
	if why != nil {
		return refused(b.index, why)
	}
	n := copyNode(old)
	n.Labels = maps.Clone(old.GetLabels())
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	for _, k := range c.GetDropLabels() {
		if _, has := n.Labels[k]; !has {
			why := problem.New(problem.NotFound, "label.not_found", "node %q has no label %q", old.GetName(), k).
				WithHint("`blixard node list` shows the labels of nodes")
			if _, fixed := old.GetFingerprint().GetLabels()[k]; fixed {
				why = problem.New(problem.Conflict, "label.configured", "the label %q of node %q comes from its configuration", k, old.GetName()).
					WithHint("take it out of node.labels there, or give it another value here")
			}
			return refused(b.index, why)
		}
		delete(n.Labels, k)
	}
	for k, v := range c.GetSetLabels() {
		if strings.HasPrefix(k, constraint.FactPrefix) {
			return refused(b.index, problem.New(problem.Invalid, "label.reserved", "labels that begin with %q are facts and can't be set: %q", constraint.FactPrefix, k).
				WithHint("choose another name"))
		}
		n.Labels[k] = v
	}
	if len(n.Labels) > nodeLabelsMax {
		return refused(b.index, problem.New(problem.Invalid, "label.too_many", "node %q would have %d labels, at most %d are possible", old.GetName(), len(n.Labels), nodeLabelsMax).
			WithHint("remove some: blixard node label %s KEY-", old.GetName()))
	}
	if why := retaint(n, c); why != nil {
		return refused(b.index, why)
	}
	if c.Cordoned != nil {
		n.Cordoned = c.GetCordoned()
	}
	if c.Damped != nil {
		n.Damped = c.GetDamped()
	}
	tainted := !constraint.SameTaints(n.Taints, old.GetTaints())
	if maps.Equal(n.Labels, old.GetLabels()) && n.Cordoned == old.GetCordoned() && n.Damped == old.GetDamped() && !tainted {
		return Result{Index: b.index, Node: old}
	}
	b.putNode(n)
	kind, message := "node.labeled", "its labels were changed"
	switch {
	case n.Damped && !old.GetDamped():
		kind, message = "node.damped", fmt.Sprintf("it was lost %d times lately: VMs are placed elsewhere where they can be", len(n.GetDowns()))
	case !n.Damped && old.GetDamped():
		kind, message = "node.steady", "it was not lost for a while: VMs are placed on it as on others"
	case n.Cordoned && !old.GetCordoned():
		kind, message = "node.cordoned", "no more VMs are placed on it"
	case !n.Cordoned && old.GetCordoned():
		kind, message = "node.uncordoned", "VMs are placed on it again"
	case tainted:
		kind, message = "node.tainted", "its taints are now "+taintsText(n.Taints)
	}
	b.event(&blixardv1.Event{
		Kind: kind, ObjectKind: "node", ObjectId: n.GetId(), ObjectName: n.GetName(), Node: n.GetName(), Message: message,
	})
	return Result{Index: b.index, Node: n}
}

// setNodeState takes in what the leader found out of a node's lease. VMs of a node
// that is down are unknown, and stay where they are: nothing tells that they ended.
func (b *batch) setNodeState(c *blixardv1.SetNodeStateCommand) Result {
	old := b.node(c.GetNodeId())
	switch {
	case old == nil:
		return refused(b.index, problem.New(problem.NotFound, "node.not_found", "there is no node %q", c.GetNodeId()))
	case old.GetIncarnation() != c.GetIncarnation():
		return refused(b.index, problem.New(problem.Conflict, "node.incarnation", "node %q is at start %d, not %d", old.GetName(), old.GetIncarnation(), c.GetIncarnation()))
	case old.GetState() == blixardv1.NodeState_left:
		return refused(b.index, problem.New(problem.Conflict, "node.left", "node %q left the cluster", old.GetName()))
	case old.GetState() == c.GetState() && (c.GetLongLease() == nil || proto.Equal(c.GetLongLease(), old.GetLongLease())):
		return Result{Index: b.index, Node: old}
	}
	switch c.GetState() {
	case blixardv1.NodeState_ready, blixardv1.NodeState_suspect, blixardv1.NodeState_down:
	default:
		return refused(b.index, problem.New(problem.Invalid, "node.state", "a lease does not make a node %s", c.GetState()))
	}
	n := copyNode(old)
	n.State = c.GetState()
	if n.State == blixardv1.NodeState_down && old.GetState() != n.State {
		n.Downs = append(slices.Clone(n.Downs), b.time)
		n.Downs = n.Downs[max(0, len(n.Downs)-downsKept):]
	}
	if c.GetLongLease() != nil {
		n.LongLease = c.GetLongLease()
	}
	b.putNode(n)
	if n.GetState() == old.GetState() {
		return Result{Index: b.index, Node: n}
	}
	b.event(&blixardv1.Event{
		Kind: "node." + n.GetState().String(), ObjectKind: "node", ObjectId: n.GetId(), ObjectName: n.GetName(), Node: n.GetName(),
		Reason: c.GetReason(),
	})
	if n.GetState() == blixardv1.NodeState_down {
		for _, a := range all[blixardv1.Allocation](b.db, tableAllocation, indexNode, n.GetId()) {
			b.unheard(a, n)
		}
	}
	return Result{Index: b.index, Node: n}
}

// setBusy takes in which nodes have a high load and which no longer do. The leader saw a
// moment ago how they were: what is otherwise by now needs no answer.
func (b *batch) setBusy(c *blixardv1.SetBusyCommand) Result {
	for _, one := range c.GetNodes() {
		old := b.node(one.GetNodeId())
		if old == nil || old.GetState() == blixardv1.NodeState_left || old.GetBusy() == one.GetBusy() {
			continue
		}
		n := copyNode(old)
		n.Busy = one.GetBusy()
		b.putNode(n)
		load := "its load is not looked at"
		if one.LoadPercent != nil {
			load = fmt.Sprintf("its load is %d %%", one.GetLoadPercent())
		}
		kind, message := "node.calm", load+": VMs are placed on it as on others"
		if n.Busy {
			kind, message = "node.busy", load+": VMs are placed elsewhere where they can be"
		}
		b.nodeEvent(n, kind, "load", message)
	}
	return Result{Index: b.index}
}

// unheard makes an allocation unknown, unless its life had ended before.
func (b *batch) unheard(a *blixardv1.Allocation, n *blixardv1.Node) {
	st := a.GetStatus()
	if Ended(st.GetState()) && st.GetNextStartAt() == nil || st.GetState() == stUnknown {
		return
	}
	b.unknown(a, n)
}

// unknown makes an allocation of a node that is down one of which nothing is known.
func (b *batch) unknown(a *blixardv1.Allocation, n *blixardv1.Node) {
	if Lost(a) {
		return
	}
	next := proto.CloneOf(a.GetStatus())
	next.State, next.Reason = stUnknown, "node_down"
	next.Message = "node " + n.GetName() + " is not heard of; the VM may be running there"
	b.observe(a, next)
}

package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/scheduler"
	"github.com/blixard/blixard/state"
)

// fleet is that of a view, to be asked once.
func (s *Server) fleet(view *state.View) *scheduler.Fleet {
	fleet := scheduler.NewFleet(s.cfg.Strategy)
	fleet.Follow(view)
	return fleet
}

// ExplainVM tells what the scheduler makes of a VM that is there, or would be.
func (s vmService) ExplainVM(ctx context.Context, req *blixardv1.ExplainVMRequest) (*blixardv1.ExplainVMResponse, error) {
	if (req.GetName() == "") == (req.GetSpec() == nil) {
		return nil, problem.New(problem.Invalid, "explain.what", "either a name or a spec is to be explained")
	}
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	vm := view.VM(req.GetName())
	if req.GetSpec() != nil {
		spec := proto.CloneOf(req.GetSpec())
		if err := s.complete(ctx, spec); err != nil {
			return nil, problem.Under("spec", err)
		}
		vm = &blixardv1.VM{Spec: spec, Labels: req.GetLabels()}
	} else if vm == nil {
		return nil, notFound(req.GetName())
	}
	fleet := s.fleet(view)
	d, verdicts := fleet.Explain(view, vm)
	resp := &blixardv1.ExplainVMResponse{
		Vm: vm, Node: d.Node.GetName(), Reason: d.Reason, Message: d.Message, Nodes: verdicts, Index: view.Index(),
	}
	if s.cfg.Preemption && d.Reason == scheduler.ReasonNoCapacity {
		resp.Preempts = preemption(fleet.Preempt(view, vm, func(string) bool { return false }))
	}
	return resp, nil
}

// preemption tells of one in the words of the API; nil stays nil.
func preemption(p *scheduler.Preemption) *blixardv1.Preemption {
	if p == nil {
		return nil
	}
	told := &blixardv1.Preemption{Node: p.Node.GetName()}
	for _, a := range p.Victims {
		told.Vms = append(told.Vms, &blixardv1.PreemptedVM{Name: a.GetVmName(), Priority: state.Priority(a.GetSpec())})
	}
	slices.SortFunc(told.Vms, func(a, b *blixardv1.PreemptedVM) int { return strings.Compare(a.GetName(), b.GetName()) })
	return told
}

// MoveVM chooses or checks the node, and takes the VM off its own.
func (s vmService) MoveVM(ctx context.Context, req *blixardv1.MoveVMRequest) (*blixardv1.MoveVMResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	vm := view.VM(req.GetName())
	if vm == nil {
		return nil, notFound(req.GetName())
	}
	cmd := &blixardv1.MoveVMCommand{Name: vm.GetId(), ExpectedIndex: req.GetExpectedIndex(), Force: req.GetForce(), TimeoutMs: req.GetTimeout().AsDuration().Milliseconds()}
	node := ""
	if !req.GetCancel() {
		to, err := s.target(view, vm, req.GetNode())
		if err != nil {
			return nil, err
		}
		cmd.ToNodeId, node = to.GetId(), to.GetName()
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_MoveVm{MoveVm: cmd}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.MoveVMResponse{Vm: r.VM, Node: node}, nil
}

// target gives the node that a VM moves to: the named one, that of a move that has begun,
// or the best other one. Its volumes come along, and so take of its disk
// instead of saying where it is.
func (s *Server) target(view *state.View, vm *blixardv1.VM, name string) (*blixardv1.Node, error) {
	at := view.Allocation(vm.GetStatus().GetAllocationId()).GetNodeId()
	if name == "" && vm.GetMoveTo() != "" {
		name = vm.GetMoveTo()
	}
	fleet := s.fleet(view)
	probe := &blixardv1.VM{Id: vm.GetId(), Name: vm.GetName(), Spec: proto.CloneOf(vm.GetSpec()), Labels: vm.GetLabels()}
	probe.Spec.Volumes = nil
	// need is what it takes there with its volumes.
	need := func(nodeID string) uint64 { return state.NeedToMove(view, vm.GetSpec(), nodeID).GetDiskBytes() }
	if name == "" {
		for _, v := range vm.GetSpec().GetVolumes() {
			if at == "" {
				at = view.Volume(v.GetVolume()).GetNodeId()
			}
		}
		fleet.Bar(at, "is where the VM is")
		probe.Spec.DiskBytes = need("")
		d := fleet.Place(view, probe)
		if d.Node == nil {
			return nil, problem.New(problem.NoCapacity, "move.no_place", "no other node can have VM %q: %s", vm.GetName(), d.Message).
				WithHint("make room or add a node; `blixard vm explain %s` tells of each", vm.GetName())
		}
		return d.Node, nil
	}
	to, err := nodeOf(view, name)
	if err != nil {
		return nil, err
	}
	if to.GetId() == at {
		return to, nil
	}
	probe.MoveTo, probe.Spec.DiskBytes = to.GetId(), need(to.GetId())
	if d := fleet.Place(view, probe); d.Node == nil {
		return nil, problem.New(problem.NoCapacity, "move.impossible", "VM %q can't run there: %s", vm.GetName(), d.Message).
			WithHint("choose another node, or leave --to out")
	}
	return to, nil
}

// PlanDrain places the node's VMs one after the other, as if it were not there.
func (s nodeService) PlanDrain(ctx context.Context, req *blixardv1.PlanDrainRequest) (*blixardv1.PlanDrainResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	node, err := nodeOf(view, req.GetNode())
	if err != nil {
		return nil, err
	}
	plan := s.newPlan(view)
	plan.fleet.Bar(node.GetId(), "is being emptied")
	steps := plan.placedAnew(node)
	slices.SortStableFunc(steps, func(a, b *blixardv1.PlannedVM) int {
		return cmp.Compare(state.Priority(a.GetVm().GetSpec()), state.Priority(b.GetVm().GetSpec()))
	})
	return &blixardv1.PlanDrainResponse{Node: node, Steps: steps}, nil
}

// Simulate places the VMs of nodes that are left out, and then those of the request.
func (s nodeService) Simulate(ctx context.Context, req *blixardv1.SimulateRequest) (*blixardv1.SimulateResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	plan := s.newPlan(view)
	var without []*blixardv1.Node
	for _, name := range req.GetWithoutNodes() {
		node, err := nodeOf(view, name)
		if err != nil {
			return nil, err
		}
		plan.fleet.Bar(node.GetId(), "is left out")
		without = append(without, node)
	}
	resp := &blixardv1.SimulateResponse{Index: view.Index()}
	for _, node := range without {
		resp.Vms = append(resp.Vms, plan.placedAnew(node)...)
	}
	for i, one := range req.GetVms() {
		spec := proto.CloneOf(one.GetSpec())
		if err := s.complete(ctx, spec); err != nil {
			return nil, problem.Under(fmt.Sprintf("vms[%d].spec", i), err)
		}
		// An id of its own, since VMs with labels are counted by it.
		vm := &blixardv1.VM{Id: fmt.Sprintf("simulated-%d", i), Name: one.GetName(), Spec: spec, Labels: one.GetLabels()}
		planned := &blixardv1.PlannedVM{Vm: vm}
		plan.place(planned)
		resp.Vms = append(resp.Vms, planned)
	}
	return resp, nil
}

func nodeOf(view *state.View, name string) (*blixardv1.Node, error) {
	node := view.Node(name)
	if node == nil || node.GetState() == blixardv1.NodeState_left {
		return nil, problem.New(problem.NotFound, "node.not_found", "there is no node %q", name).WithHint("`blixard node list` shows the nodes")
	}
	return node, nil
}

// checkScheduling refuses rules that no node could ever meet, and keys that nothing has.
func checkScheduling(view *state.View, sched *blixardv1.Scheduling) error {
	if sched == nil {
		return nil
	}
	for i, c := range sched.GetConstraints() {
		if err := checkConstraint(c); err != nil {
			return problem.Under(fmt.Sprintf("constraints[%d]", i), err)
		}
	}
	for i, p := range sched.GetPreferences() {
		if err := checkConstraint(p.GetConstraint()); err != nil {
			return problem.Under(fmt.Sprintf("preferences[%d].constraint", i), err)
		}
	}
	if err := contradiction(sched.GetConstraints()); err != nil {
		return err
	}
	if err := checkTolerations(sched.GetTolerations()); err != nil {
		return err
	}
	if err := checkSpreads(sched.GetSpreads()); err != nil {
		return err
	}
	for i, a := range sched.GetAffinities() {
		if err := checkFact(a.GetOver(), "over"); err != nil {
			return problem.Under(fmt.Sprintf("affinities[%d]", i), err)
		}
		for _, b := range sched.GetAffinities()[:i] {
			if a.GetKey() == b.GetKey() && a.GetValue() == b.GetValue() && a.GetOver() == b.GetOver() && a.GetApart() != b.GetApart() &&
				a.GetWeight() == 0 && b.GetWeight() == 0 {
				return problem.New(problem.Invalid, "affinity.contradiction", "the VM must be both near VMs with %s=%s and apart from them", a.GetKey(), a.GetValue()).
					WithHint("leave one of both out, or give it a weight").WithField("affinities[%d]", i)
			}
		}
	}
	return nil
}

// checkTolerations refuses those of which one makes another needless: somebody meant
// something else.
func checkTolerations(all []*blixardv1.Toleration) error {
	for i, a := range all {
		for _, b := range all[:i] {
			if a.GetKey() == b.GetKey() && a.GetEffect() == b.GetEffect() && (a.GetValue() == b.GetValue() || a.GetValue() == "" || b.GetValue() == "") {
				return problem.New(problem.Invalid, "toleration.twice", "one of the tolerations %s and %s is needless", constraint.TolerationText(b), constraint.TolerationText(a)).
					WithHint("leave one of both out: a toleration without a value is of any").WithField("tolerations[%d]", i)
			}
		}
	}
	return nil
}

// checkConstraint refuses one that no node could be asked about.
func checkConstraint(c *blixardv1.Constraint) error {
	if !constraint.Valid(c) {
		return problem.New(problem.Invalid, "constraint.values", "%s of %q takes another number of values than %d", c.GetOperator(), c.GetKey(), len(c.GetValues())).
			WithHint("in and not_in take one and more, exists and absent none, all others one").WithField("values")
	}
	return checkFact(c.GetKey(), "key")
}

// checkFact refuses keys that look like facts and are none; field has the key.
func checkFact(key, field string) error {
	facts := scheduler.Facts()
	if slices.Contains(facts, key) || !strings.HasPrefix(key, constraint.FactPrefix) {
		return nil
	}
	p := problem.New(problem.Invalid, "constraint.fact", "nodes have no fact %q", key).WithField("%s", field)
	if near := nearest.Of(key, facts); near != "" {
		return p.WithHint("did you mean %s?", near)
	}
	return p.WithHint("facts are %s", strings.Join(facts, ", "))
}

// contradiction refuses constraints of which two can't both be met.
func contradiction(all []*blixardv1.Constraint) error {
	for i, a := range all {
		for _, b := range all[:i] {
			if a.GetKey() == b.GetKey() && constraint.Contradict(a, b) {
				return problem.New(problem.Invalid, "constraint.contradiction", "no node can meet both %s and %s", constraint.Text(b), constraint.Text(a)).
					WithHint("leave one of both out; for one value or another write '%s in a,b'", a.GetKey()).WithField("constraints[%d]", i)
			}
		}
	}
	return nil
}

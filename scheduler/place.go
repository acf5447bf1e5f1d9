package scheduler

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// Reasons why a VM waits, from the one that is farthest from a place.
const (
	ReasonNoNodes    = "no_nodes"
	ReasonNoImage    = "image_unknown"
	ReasonNoKernel   = "kernel_unknown"
	ReasonVolumes    = "volume_elsewhere"
	ReasonNoNetwork  = "network_impossible"
	ReasonConstraint = "constraint"
	ReasonTaint      = "taint"
	ReasonAffinity   = "affinity"
	ReasonSpread     = "spread"
	// ReasonNoWorker: the nodes take no tasks, or no more of them.
	ReasonNoWorker   = "no_worker"
	ReasonNoCapacity = "no_capacity"
	// ReasonPreempting is of a VM for which others are taken off a node.
	ReasonPreempting = "preempting"
)

// nearness orders the reasons: what is said of all nodes together is what is missing
// of the node that is nearest to being one.
var nearness = []string{
	ReasonNoNodes, ReasonNoImage, ReasonNoKernel, ReasonVolumes, ReasonNoNetwork, ReasonConstraint, ReasonTaint, ReasonAffinity, ReasonSpread, ReasonNoWorker, ReasonNoCapacity,
}

// Limits of a decision.
const (
	// scanMax nodes of a class are looked at for one without a penalty.
	scanMax = 64
	// holdersMax nodes that have the image are looked at.
	holdersMax = 64
	// explainMax nodes are named in the sentence that goes into the state.
	explainMax = 5
)

// Decision is the outcome for one VM: a node, or the reason for none.
type Decision struct {
	Node *blixardv1.Node
	// Reason is a stable word and Message a sentence; empty with a node.
	Reason  string
	Message string
}

// Place chooses the node with the most points among those that the VM may run on and
// that have room; equal ones by name, so that equal views give equal decisions. What it
// takes of the node counts for the next placements until Follow.
func (f *Fleet) Place(view View, vm *blixardv1.VM) Decision {
	q := f.ask(view, vm)
	s := f.best(q)
	if s == nil {
		return f.refusal(q)
	}
	f.touched = append(f.touched, s)
	f.reserve(s, s.plus(q.need))
	if vm.GetTask() != "" {
		s.placedTasks++
	}
	if len(vm.GetLabels()) > 0 {
		f.added = append(f.added, vm.GetId())
		f.join(vm.GetId(), member{at: s, labels: vm.GetLabels()})
	}
	return Decision{Node: s.node}
}

// question is a VM to be placed, and what of it does not depend on a node.
type question struct {
	vm   *blixardv1.VM
	spec *blixardv1.VMSpec
	// need is as state.Need has it.
	need *blixardv1.Resources
	pack bool
	// own is where it is counted now.
	own member
	// networks are the types of its networks.
	networks []string
	// pin is the node that has its volumes, and volume the one that says so; lost is
	// one that is nowhere.
	pin, volume, lost string
	// workers are the fleet's.
	workers map[string]int
	// not is a node that is not meant.
	not string
	// moveTo is the node that it moves to.
	moveTo string
	// holders have its image, when it is not one that all have: holderIDs in order.
	holders   map[string]bool
	holderIDs []string
	// must and should are its affinities.
	must, should []affinity
	spreads      []spread
	// keys that its rules look at, sorted, but for the name.
	keys []string
}

// affinity with the VMs that it is about.
type affinity struct {
	*blixardv1.Affinity
	group *group // nil when there are none
	// counts are those of the group over the values of a shared place; nil when the place is
	// the node.
	counts map[string]int
	// self: the asking VM is one of them, and counted.
	self bool
}

// ask makes the question of a VM. It is the fleet's and lasts until the next.
func (f *Fleet) ask(view View, vm *blixardv1.VM) *question {
	spec := vm.GetSpec()
	q := &f.question
	*q = question{
		vm: vm, spec: spec, need: state.Need(view, spec), own: f.vms[vm.GetId()], workers: f.workers,
		networks: q.networks[:0], must: q.must[:0], should: q.should[:0], keys: q.keys[:0], spreads: q.spreads[:0],
	}
	strategy := spec.GetScheduling().GetStrategy()
	if strategy == blixardv1.Strategy_unspecified {
		strategy = f.strategy
	}
	q.pack = strategy == blixardv1.Strategy_pack
	for _, at := range spec.GetNetworks() {
		if kind := view.Network(at.GetNetwork()).GetType().String(); !slices.Contains(q.networks, kind) {
			q.networks = append(q.networks, kind)
		}
	}
	for _, at := range spec.GetVolumes() {
		switch v := view.Volume(at.GetVolume()); {
		case v == nil:
			q.lost = at.GetVolume()
		case v.GetNodeId() != "" && q.pin != "" && q.pin != v.GetNodeId():
			q.lost = at.GetVolume() // they are apart
		case v.GetNodeId() != "":
			q.pin, q.volume = v.GetNodeId(), at.GetVolume()
		}
	}
	if f.slots[vm.GetMoveTo()] != nil {
		q.moveTo = vm.GetMoveTo()
	}
	if strings.Contains(spec.GetImage(), "/") {
		q.holderIDs = view.Image(spec.GetImage()).GetNodeIds()
		q.holders = make(map[string]bool, len(q.holderIDs))
		for _, id := range q.holderIDs {
			q.holders[id] = true
		}
	}
	key := func(k string) {
		if at, there := slices.BinarySearch(q.keys, k); !there && k != "" && k != factName {
			q.keys = slices.Insert(q.keys, at, k)
		}
	}
	for _, a := range spec.GetScheduling().GetAffinities() {
		key(a.GetOver())
		l := label{a.GetKey(), a.GetValue()}
		one := affinity{Affinity: a, group: f.groups[l], self: hasLabel(q.own.labels, l)}
		if over := a.GetOver(); one.group != nil && over != "" && over != factName {
			one.counts = one.group.counts(over)
		}
		if a.GetWeight() == 0 {
			q.must = append(q.must, one)
		} else {
			q.should = append(q.should, one)
		}
	}
	for _, one := range spec.GetScheduling().GetSpreads() {
		key(one.GetOver())
		q.spreads = append(q.spreads, f.spread(one, f.groups[label{one.GetKey(), one.GetValue()}], q.own))
	}
	for _, c := range spec.GetScheduling().GetConstraints() {
		key(c.GetKey())
	}
	for _, p := range spec.GetScheduling().GetPreferences() {
		key(p.GetConstraint().GetKey())
	}
	return q
}

// score of a possible node: wishes are whole numbers, so that their sum does not depend
// on the order, and fill is what the strategy says, from 0 to 100.
type score struct {
	wishes int
	fill   float64
}

func (s score) points() float64 { return float64(s.wishes) + s.fill }

// search is the best that was found.
type search struct {
	slot   *slot
	points float64
}

// offer takes s when it is better. Equal ones are ordered as the trees are.
func (b *search) offer(q *question, s *slot, points float64) {
	if b.slot == nil || points > b.points || points == b.points && (s.name < b.slot.name) != q.pack {
		b.slot, b.points = s, points
	}
}

func (f *Fleet) best(q *question) *slot {
	var b search
	if only, some := f.only(q); some {
		for _, s := range only {
			f.consider(&b, q, s)
		}
		return b.slot
	}
	for _, c := range f.partition(q.keys).ranks {
		f.scan(&b, q, c)
	}
	for _, s := range f.favoured(q) {
		f.consider(&b, q, s)
	}
	return b.slot
}

// only gives the nodes that alone can be meant, if there are such.
func (f *Fleet) only(q *question) (slots []*slot, some bool) {
	one := func(s *slot) {
		if s != nil && !slices.Contains(slots, s) {
			slots = append(slots, s)
		}
	}
	if q.moveTo != "" {
		one(f.slots[q.moveTo])
		return slots, true
	}
	if q.pin != "" {
		one(f.slots[q.pin])
		return slots, true
	}
	for _, c := range q.spec.GetScheduling().GetConstraints() {
		if c.GetKey() == factName && (c.GetOperator() == blixardv1.Operator_equal || c.GetOperator() == blixardv1.Operator_in) {
			for _, name := range c.GetValues() {
				one(f.names[name])
			}
			return slots, true
		}
	}
	return nil, false
}

// favoured gives nodes that may be better than what is free there says.
func (f *Fleet) favoured(q *question) []*slot {
	var slots []*slot
	for _, id := range q.holderIDs[:min(len(q.holderIDs), holdersMax)] {
		if s := f.slots[id]; s != nil {
			slots = append(slots, s)
		}
	}
	for _, a := range q.should {
		if a.group != nil && !a.GetApart() {
			slots = slices.AppendSeq(slots, maps.Keys(a.group.nodes))
		}
	}
	for _, p := range q.spec.GetScheduling().GetPreferences() {
		if p.GetConstraint().GetKey() == factName {
			for _, name := range p.GetConstraint().GetValues() {
				if s := f.names[name]; s != nil {
					slots = append(slots, s)
				}
			}
		}
	}
	return slots
}

func (f *Fleet) consider(b *search, q *question, s *slot) {
	if reason, _ := judge(q, s, false); reason != "" {
		return
	}
	b.offer(q, s, f.score(q, s, nil).points())
}

// scan looks at the nodes of a class in the order of the strategy. The first one that
// is possible and costs nothing is the best of them.
func (f *Fleet) scan(b *search, q *question, c *class) {
	any, _ := c.tree.Min()
	if reason, _ := rules(q, any, false); reason != "" {
		return
	}
	shared := sharedWishes(q, any, nil)
	// No node of the class has more; of its own a node has at most what favoured knows.
	if top, _ := c.tree.Max(); b.slot != nil && float64(shared)+f.fillMost(q, top) < b.points {
		return
	}
	looked := 0
	visit := func(s *slot) bool {
		if s.free < q.need.GetMemoryMib() {
			return q.pack // the others have more, or less
		}
		if reason, _ := ownRules(q, s, false); reason != "" {
			return true
		}
		own, lost := ownWishes(q, s, nil)
		b.offer(q, s, score{wishes: shared + own, fill: f.fill(q, s)}.points())
		looked++
		return lost > 0 && looked < scanMax
	}
	if q.pack {
		c.tree.AscendGreaterOrEqual(f.first(q.need.GetMemoryMib()), visit)
		return
	}
	c.tree.Descend(visit)
}

// first gives what comes before all nodes with that memory free, until it is asked again.
func (f *Fleet) first(free uint64) *slot {
	f.pivot.free, f.pivot.name = free, "\U0010ffff"
	return &f.pivot
}

// plus gives what is used of a node and more, which takes the place of what was.
func (s *slot) plus(more *blixardv1.Resources) *blixardv1.Resources {
	if s.taken == nil {
		s.taken = &blixardv1.Resources{}
	}
	t := s.taken
	t.Vcpus, t.MemoryMib, t.DiskBytes = s.used.GetVcpus()+more.GetVcpus(), s.used.GetMemoryMib()+more.GetMemoryMib(), s.used.GetDiskBytes()+more.GetDiskBytes()
	return t
}

// refusal says why there is no node.
func (f *Fleet) refusal(q *question) Decision {
	if len(f.order) == 0 {
		return Decision{Reason: ReasonNoNodes, Message: "no node is known yet"}
	}
	nearest := 0
	nearer := func(reason string) { nearest = max(nearest, slices.Index(nearness, reason)) }
	asked := f.order
	only, some := f.only(q)
	if some && len(only) > 0 {
		asked = only
	}
	var why []string
	for _, s := range asked[:min(len(asked), explainMax)] {
		reason, message := judge(q, s, true)
		nearer(reason)
		why = append(why, message)
	}
	if more := len(asked) - len(why); more > 0 {
		why = append(why, fmt.Sprintf("and %d more", more))
	}
	if some && len(only) > 0 {
		return Decision{Reason: nearness[nearest], Message: strings.Join(why, "; ")}
	}
	for _, c := range f.partition(q.keys).ranks {
		any, _ := c.tree.Min()
		if reason, _ := rules(q, any, false); reason != "" {
			nearer(reason)
			continue
		}
		looked := 0
		c.tree.Descend(func(s *slot) bool {
			reason, _ := judge(q, s, false)
			nearer(reason)
			looked++
			return looked < scanMax && nearest < len(nearness)-1
		})
	}
	return Decision{Reason: nearness[nearest], Message: strings.Join(why, "; ")}
}

func sum(a, b *blixardv1.Resources) *blixardv1.Resources {
	return &blixardv1.Resources{
		Vcpus:     a.GetVcpus() + b.GetVcpus(),
		MemoryMib: a.GetMemoryMib() + b.GetMemoryMib(),
		DiskBytes: a.GetDiskBytes() + b.GetDiskBytes(),
	}
}

// share of a whole in a hundred.
func share(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return math.Min(100, 100*float64(part)/float64(whole))
}

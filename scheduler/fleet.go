package scheduler

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/google/btree"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/state"
)

// View is what a decision sees. All objects are read-only.
type View interface {
	Index() uint64
	Limits() state.Limits
	Nodes() []*blixardv1.Node
	// VMs as in [state.View.VMs].
	VMs(after string, limit int) []*blixardv1.VM
	// ChangesAfter as in [state.View.ChangesAfter].
	ChangesAfter(index uint64) ([]state.Change, error)
	// Member of a node; nil when it is none.
	Member(ref string) *blixardv1.Member
	// FeatureLevel, with Limits and Volume, says how much a VM needs.
	FeatureLevel() uint32
	// Volume, Network and Image by name; nil when there is none.
	Volume(ref string) *blixardv1.Volume
	Network(ref string) *blixardv1.Network
	Image(name string) *blixardv1.Image
}

// Fleet is what is known of nodes and VMs, kept so that placing a VM looks at few
// nodes: those that its rules can't tell apart are a class, ordered by what they have
// free. It is not safe for concurrent use.
type Fleet struct {
	strategy blixardv1.Strategy_Enum
	// index of the view that it follows; valid once begun.
	index uint64
	begun bool

	slots map[string]*slot // by the node's id
	names map[string]*slot // by the node's name
	order []*slot          // by the node's name
	vms   map[string]member
	// attempts are the VMs of tasks that have their place, and workers how many of them
	// are on a node, by its name: it may become known after them.
	attempts map[string]string
	workers  map[string]int
	groups   map[label]*group
	// ranked are the VMs with a place whose priority is not the default, and ranks counts
	// them by it.
	ranked map[string]uint32
	ranks  [state.PriorityMax + 1]int
	// partitions of the nodes into classes, for the sets of keys that VMs ask for; asked
	// counts the questions.
	partitions []*partition
	asked      uint64
	// question is used again and again, since each costs much of what placing a VM does.
	question question
	// pivot is no node, and what nodes are compared with.
	pivot slot
	// values that nodes have, by keys that were asked for.
	values map[string]map[string]bool
	// largest memory that a node may give.
	largest uint64

	// touched and added are what placements since Follow took.
	touched []*slot
	added   []string
}

// slot is a node.
type slot struct {
	node *blixardv1.Node
	name string // of the node
	// used is what is reserved, by the state and by placements since Follow, and free
	// the memory that is left.
	used *blixardv1.Resources
	free uint64
	// taken is used once placements took something; it is the slot's own.
	taken  *blixardv1.Resources
	labels map[string]string
	// placedTasks since Follow; those before are in the fleet's workers.
	placedTasks int
	// barred says why no VM is placed on it; only others have classes, one in each
	// partition, in their order.
	barred  string
	classes []*class
}

// partition of the nodes by their bundle and networks and by the values of some keys.
type partition struct {
	keys  []string
	byKey map[string]*class
	ranks []*class // by key
	// last is the newest question that it was for.
	last uint64
}

// class is nodes with equal values of a partition's keys.
type class struct {
	key  string
	tree *btree.BTreeG[*slot]
}

// partitionsMax are kept; each costs a step of a tree with every placement.
const partitionsMax = 16

// member is a VM with labels that has its place.
type member struct {
	at     *slot
	labels map[string]string
}

type label struct{ key, value string }

// group is the VMs with a label.
type group struct {
	total int
	nodes map[*slot]int
	// over counts them by the value of a label or fact of their nodes, for the keys
	// that were asked for.
	over map[string]map[string]int
}

// branches of the trees: wide enough that one of a few nodes is one array.
const branches = 32

// NewFleet makes a fleet that knows nothing; tell it with Follow. strategy is for VMs
// that name none.
func NewFleet(strategy blixardv1.Strategy_Enum) *Fleet {
	if strategy == blixardv1.Strategy_unspecified {
		strategy = blixardv1.Strategy_spread
	}
	return &Fleet{strategy: strategy}
}

// Follow brings the fleet to a view, and forgets what was placed since: the view has
// what was applied.
func (f *Fleet) Follow(view View) {
	f.forget()
	if f.begun {
		if changes, err := view.ChangesAfter(f.index); err == nil {
			for _, c := range changes {
				f.changed(view, c)
			}
			f.index = view.Index()
			return
		}
	}
	f.slots, f.names, f.order = map[string]*slot{}, map[string]*slot{}, nil
	clear(f.values)
	f.partitions, f.vms, f.groups = nil, map[string]member{}, map[label]*group{}
	f.ranked, f.ranks = map[string]uint32{}, [state.PriorityMax + 1]int{}
	f.attempts, f.workers = map[string]string{}, map[string]int{}
	f.largest = 0
	for _, n := range view.Nodes() {
		f.putNode(view, n)
	}
	for _, vm := range view.VMs("", 0) {
		f.putVM(vm, false)
	}
	f.begun, f.index = true, view.Index()
}

func (f *Fleet) changed(view View, c state.Change) {
	switch c.Kind {
	case state.KindNode:
		f.putNode(view, c.Node)
	case state.KindMember:
		if s := f.slots[c.Member.GetNodeId()]; s != nil {
			f.place(view, s)
		}
	case state.KindVM:
		f.putVM(c.VM, c.Deleted)
	}
}

// forget undoes what placements took.
func (f *Fleet) forget() {
	for _, s := range f.touched {
		s.placedTasks = 0
		f.reserve(s, state.Reserved(s.node))
	}
	for _, id := range f.added {
		f.join(id, member{})
	}
	f.touched, f.added = nil, nil
}

func (f *Fleet) putNode(view View, n *blixardv1.Node) {
	s := f.slots[n.GetId()]
	if n.GetState() == blixardv1.NodeState_left {
		if s != nil {
			f.dropNode(s)
		}
		return
	}
	if s == nil {
		s = &slot{}
		f.slots[n.GetId()] = s
	}
	old := s.node
	s.node, s.name = n, n.GetName()
	if old.GetName() != n.GetName() {
		if old != nil {
			delete(f.names, old.GetName())
			f.order = slices.DeleteFunc(f.order, func(o *slot) bool { return o == s })
		}
		f.names[n.GetName()] = s
		at, _ := slices.BinarySearchFunc(f.order, n.GetName(), func(o *slot, name string) int { return cmp.Compare(o.node.GetName(), name) })
		f.order = slices.Insert(f.order, at, s)
	}
	if old != nil && sameFacts(old, n) {
		f.reserve(s, state.Reserved(n))
		return
	}
	// Nodes become busy and calm often, and what is counted of VMs by labels lasts on.
	if old == nil || !sameValues(old, n) {
		f.relabeled()
		s.labels = constraint.Labels(n)
	}
	f.place(view, s)
	f.resized(old.GetAllocatable().GetMemoryMib(), n.GetAllocatable().GetMemoryMib())
}

// resized keeps largest right when a node has other memory to give.
func (f *Fleet) resized(before, after uint64) {
	if f.largest = max(f.largest, after); before != f.largest || after == f.largest {
		return
	}
	f.largest = 0
	for _, o := range f.order {
		f.largest = max(f.largest, o.node.GetAllocatable().GetMemoryMib())
	}
}

// sameValues reports whether the labels and facts of a node are the same.
func sameValues(a, b *blixardv1.Node) bool {
	return a.GetFingerprint() == b.GetFingerprint() && a.GetName() == b.GetName() && maps.Equal(a.GetLabels(), b.GetLabels())
}

// sameFacts reports whether what was reserved is all that may differ.
func sameFacts(a, b *blixardv1.Node) bool {
	return sameValues(a, b) && a.GetState() == b.GetState() && a.GetDraining() == b.GetDraining() &&
		a.GetCordoned() == b.GetCordoned() && a.GetDamped() == b.GetDamped() && a.GetBusy() == b.GetBusy() &&
		constraint.SameTaints(a.GetTaints(), b.GetTaints()) &&
		a.GetAllocatable().GetMemoryMib() == b.GetAllocatable().GetMemoryMib()
}

// Bar takes a node out until the fleet is made anew: no VM is placed on it. why goes on a
// sentence that begins with the node's name, such as "is left out".
func (f *Fleet) Bar(nodeID, why string) {
	if s := f.slots[nodeID]; s != nil {
		f.leaveClasses(s)
		s.barred = why
	}
}

func (f *Fleet) dropNode(s *slot) {
	f.leaveClasses(s)
	delete(f.slots, s.node.GetId())
	delete(f.names, s.node.GetName())
	f.order = slices.DeleteFunc(f.order, func(o *slot) bool { return o == s })
	f.resized(s.node.GetAllocatable().GetMemoryMib(), 0)
	f.relabeled()
}

// relabeled forgets what is counted by labels and facts of nodes.
func (f *Fleet) relabeled() {
	clear(f.values)
	for _, g := range f.groups {
		clear(g.over)
	}
}

// place puts a slot into the classes of its facts.
func (f *Fleet) place(view View, s *slot) {
	f.leaveClasses(s)
	s.barred = barred(view, s.node)
	s.used = state.Reserved(s.node)
	s.free = free(s.node.GetAllocatable().GetMemoryMib(), s.used.GetMemoryMib())
	if s.barred != "" {
		return
	}
	for _, p := range f.partitions {
		s.classes = append(s.classes, p.take(s))
	}
}

// take puts a slot into the class of its facts.
func (p *partition) take(s *slot) *class {
	key := classKey(s, p.keys)
	c := p.byKey[key]
	if c == nil {
		c = &class{key: key, tree: btree.NewG(branches, lessFree)}
		p.byKey[key] = c
		at, _ := slices.BinarySearchFunc(p.ranks, key, func(c *class, key string) int { return strings.Compare(c.key, key) })
		p.ranks = slices.Insert(p.ranks, at, c)
	}
	c.tree.ReplaceOrInsert(s)
	return c
}

// partition gives the one for a set of sorted keys; the one that was not asked for
// longest makes room for another.
func (f *Fleet) partition(keys []string) *partition {
	f.asked++
	oldest := -1
	for k, p := range f.partitions {
		if slices.Equal(p.keys, keys) {
			p.last = f.asked
			return p
		}
		if oldest < 0 || p.last < f.partitions[oldest].last {
			oldest = k
		}
	}
	p := &partition{keys: slices.Clone(keys), byKey: map[string]*class{}, last: f.asked}
	if len(f.partitions) < partitionsMax {
		oldest = len(f.partitions)
		f.partitions = append(f.partitions, nil)
	}
	f.partitions[oldest] = p
	for _, s := range f.order {
		if s.barred != "" {
			continue
		}
		if oldest == len(s.classes) {
			s.classes = append(s.classes, nil)
		}
		s.classes[oldest] = p.take(s)
	}
	return p
}

func (f *Fleet) leaveClasses(s *slot) {
	for k, c := range s.classes {
		c.tree.Delete(s)
		if p := f.partitions[k]; c.tree.Len() == 0 {
			delete(p.byKey, c.key)
			p.ranks = slices.DeleteFunc(p.ranks, func(o *class) bool { return o == c })
		}
	}
	s.classes = nil
}

// reserve says what is used of a node from now on.
func (f *Fleet) reserve(s *slot, used *blixardv1.Resources) {
	left := free(s.node.GetAllocatable().GetMemoryMib(), used.GetMemoryMib())
	if left == s.free {
		s.used = used
		return
	}
	for _, c := range s.classes {
		c.tree.Delete(s)
	}
	s.used, s.free = used, left
	for _, c := range s.classes {
		c.tree.ReplaceOrInsert(s)
	}
}

// lessFree orders by free memory, and equal ones by name from the last: the first from
// behind is the one with the most, and of equal ones the first by name.
func lessFree(a, b *slot) bool {
	if a.free != b.free {
		return a.free < b.free
	}
	return a.name > b.name
}

func barred(view View, n *blixardv1.Node) string {
	switch {
	case n.GetState() != blixardv1.NodeState_ready:
		return "is " + n.GetState().String()
	case n.GetDraining():
		return "is being emptied"
	case n.GetCordoned():
		return "is cordoned"
	case view.Member(n.GetId()).GetRole() == blixardv1.MemberRole_witness:
		return "is a witness"
	}
	return ""
}

// classKey holds all that rules with those keys look at.
func classKey(s *slot, keys []string) string {
	fp := s.node.GetFingerprint()
	var b strings.Builder
	put := func(words ...string) {
		for _, w := range words {
			b.WriteString(w)
			b.WriteByte(0)
		}
		b.WriteByte(1)
	}
	for _, key := range keys {
		if v, has := s.fact(key); has {
			put(v)
		} else {
			put()
		}
	}
	if s.node.GetDamped() {
		put("damped")
	}
	if s.node.GetBusy() {
		put("busy")
	}
	for _, t := range s.node.GetTaints() {
		put(t.GetKey(), t.GetValue(), t.GetEffect().String())
	}
	put(fp.GetImages()...)
	put(fp.GetKernels()...)
	put(fp.GetNetworkTypes()...)
	put(fp.GetNetworkReason())
	return b.String()
}

func (f *Fleet) putVM(vm *blixardv1.VM, gone bool) {
	f.rank(vm, gone)
	f.putAttempt(vm, gone)
	next := member{}
	if len(vm.GetLabels()) > 0 && !gone && vm.GetStatus().GetAllocationId() != "" {
		if s := f.names[vm.GetStatus().GetNode()]; s != nil {
			next = member{at: s, labels: vm.GetLabels()}
		}
	}
	f.join(vm.GetId(), next)
}

// putAttempt counts the VMs of tasks by their nodes.
func (f *Fleet) putAttempt(vm *blixardv1.VM, gone bool) {
	if vm.GetTask() == "" {
		return
	}
	next := ""
	if !gone && vm.GetStatus().GetAllocationId() != "" {
		next = vm.GetStatus().GetNode()
	}
	old := f.attempts[vm.GetId()]
	if old == next {
		return
	}
	if old != "" {
		if f.workers[old]--; f.workers[old] == 0 {
			delete(f.workers, old)
		}
		delete(f.attempts, vm.GetId())
	}
	if next != "" {
		f.workers[next]++
		f.attempts[vm.GetId()] = next
	}
}

// join says where a VM is, and with which labels; nowhere takes it out.
func (f *Fleet) join(id string, next member) {
	old, known := f.vms[id]
	if known && old.at == next.at && maps.Equal(old.labels, next.labels) {
		return
	}
	for k, v := range old.labels {
		f.count(label{k, v}, old.at, -1)
	}
	if next.at == nil {
		delete(f.vms, id)
		return
	}
	f.vms[id] = next
	for k, v := range next.labels {
		f.count(label{k, v}, next.at, 1)
	}
}

func (f *Fleet) count(l label, at *slot, by int) {
	g := f.groups[l]
	if g == nil {
		g = &group{nodes: map[*slot]int{}, over: map[string]map[string]int{}}
		f.groups[l] = g
	}
	g.total += by
	if g.nodes[at] += by; g.nodes[at] == 0 {
		delete(g.nodes, at)
	}
	for key, counts := range g.over {
		if v, has := at.fact(key); has {
			counts[v] += by
		}
	}
	if g.total == 0 {
		delete(f.groups, l)
	}
}

// counts gives how many VMs of a group are on nodes, by the value of a label or fact. It
// changes with the group.
func (g *group) counts(key string) map[string]int {
	counts := g.over[key]
	if counts == nil {
		counts = map[string]int{}
		for at, n := range g.nodes {
			if v, has := at.fact(key); has {
				counts[v] += n
			}
		}
		g.over[key] = counts
	}
	return counts
}

const factName = "node.name"

// facts are the keys that every node has beside its labels.
var facts = []string{
	factName, "node.arch", "node.accelerator", "node.driver", "node.driver_version", "node.version", "node.kernel", "node.domain",
}

// Facts are the keys of constraints that are no labels.
func Facts() []string { return slices.Clone(facts) }

// fact gives the value of a label or fact.
func (s *slot) fact(key string) (value string, has bool) {
	if !strings.HasPrefix(key, "node.") {
		value, has = s.labels[key]
		return value, has
	}
	fp := s.node.GetFingerprint()
	switch key {
	case factName:
		value = s.node.GetName()
	case "node.arch":
		value = fp.GetArch()
	case "node.accelerator":
		value = fp.GetAccelerator()
	case "node.driver":
		value = fp.GetDriver()
	case "node.driver_version":
		value = fp.GetDriverVersion()
	case "node.version":
		value = fp.GetBlixardVersion()
	case "node.kernel":
		value = fp.GetKernelRelease()
	case "node.domain":
		value = fp.GetFailureDomain()
	}
	return value, value != ""
}

func free(all, used uint64) uint64 {
	if used > all {
		return 0
	}
	return all - used
}

package scheduler

import (
	"fmt"
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/state"
)

// Points of what is no wish of the VM's.
const (
	// pointsFailed of a node for each time that the VM failed there: more than all wishes
	// together, so that it is taken only when there is no other.
	pointsFailed = -10_000
	// pointsDamped of a node that was lost again and again, for the same reason.
	pointsDamped = -5_000
	// pointsBusy of a node whose load is high: more than what the strategy and the image make
	// together (100 and 10), so that it comes after all others for a VM that wishes nothing,
	// and less than a turn of a spread that must be kept or than three strong wishes (100
	// each), so that these are worth a wait for a processor.
	pointsBusy = -200
	// pointsImage of a node that has the image: it need not be brought there.
	pointsImage = 10
	// weightDefault of a preference.
	weightDefault = 50
)

// judge tells why a VM can't run on a node; an empty reason means that it can. The
// message is made only when told to.
func judge(q *question, s *slot, tell bool) (reason, message string) {
	if s.barred != "" {
		return say(ReasonNoNodes, tell, "node %s %s", s.node.GetName(), s.barred)
	}
	if reason, message = rules(q, s, tell); reason != "" {
		return reason, message
	}
	return ownRules(q, s, tell)
}

// say makes a message when it is to be told.
func say(reason string, tell bool, format string, args ...any) (string, string) {
	if !tell {
		return reason, ""
	}
	return reason, fmt.Sprintf(format, args...)
}

// rules look at what is equal in a class, and at the volumes.
func rules(q *question, s *slot, tell bool) (reason, message string) {
	name, fp := s.node.GetName(), s.node.GetFingerprint()
	if q.moveTo != "" && q.moveTo != s.node.GetId() {
		return say(ReasonConstraint, tell, "node %s is not the one that the VM moves to", name)
	}
	// A canonical name has a registry: such an image is brought to any node.
	if q.holders == nil && !slices.Contains(fp.GetImages(), q.spec.GetImage()) {
		return say(ReasonNoImage, tell, "node %s has no image %q (it has %s)", name, q.spec.GetImage(), strings.Join(fp.GetImages(), ", "))
	}
	if k := q.spec.GetKernel(); k != "" && !slices.Contains(fp.GetKernels(), k) {
		return say(ReasonNoKernel, tell, "node %s has no kernel %q (it has %s)", name, k, strings.Join(fp.GetKernels(), ", "))
	}
	if q.lost != "" {
		return say(ReasonVolumes, tell, "volume %s is not on node %s", q.lost, name)
	}
	if q.pin != "" && q.pin != s.node.GetId() {
		return say(ReasonVolumes, tell, "volume %s is not on node %s", q.volume, name)
	}
	for _, kind := range q.networks {
		if !slices.Contains(fp.GetNetworkTypes(), kind) {
			why := fp.GetNetworkReason()
			if why == "" {
				why = "its version is too old"
			}
			return say(ReasonNoNetwork, tell, "node %s can't do networks of type %s: %s", name, kind, why)
		}
	}
	for _, c := range q.spec.GetScheduling().GetConstraints() {
		if c.GetKey() != factName && !meets(s, c) {
			return unmet(s, c, tell)
		}
	}
	if taint := constraint.Untolerated(s.node.GetTaints(), q.spec.GetScheduling(), blixardv1.TaintEffect_unspecified); taint != nil {
		if !tell {
			return ReasonTaint, ""
		}
		return say(ReasonTaint, tell, "node %s has the taint %s, which the VM does not tolerate", name, constraint.TaintText(taint))
	}
	if reason, message = shares(q, s, tell); reason != "" {
		return reason, message
	}
	return social(q, s, false, tell)
}

// ownRules look at what may differ between nodes of a class.
func ownRules(q *question, s *slot, tell bool) (reason, message string) {
	if reason, message = personal(q, s, tell); reason != "" {
		return reason, message
	}
	return room(q, s, tell)
}

// personal are the own rules but for the room.
func personal(q *question, s *slot, tell bool) (reason, message string) {
	if q.not != "" && q.not == s.node.GetId() {
		return say(ReasonConstraint, tell, "node %s is not meant", s.node.GetName())
	}
	if q.vm.GetTask() != "" {
		if reason, message = worker(q, s, tell); reason != "" {
			return reason, message
		}
	}
	for _, c := range q.spec.GetScheduling().GetConstraints() {
		if c.GetKey() == factName && !meets(s, c) {
			return unmet(s, c, tell)
		}
	}
	return social(q, s, true, tell)
}

// worker looks at what a node takes of tasks. One that has its place counts where it is.
func worker(q *question, s *slot, tell bool) (reason, message string) {
	name, fp := s.node.GetName(), s.node.GetFingerprint()
	if fp.GetRefusesTasks() {
		return say(ReasonNoWorker, tell, "node %s takes no tasks", name)
	}
	running := q.workers[name] + s.placedTasks
	if !state.TaskFits(fp, running) {
		return say(ReasonNoWorker, tell, "node %s runs %d tasks, and takes no more than %d", name, running, fp.GetTasksMax())
	}
	return "", ""
}

// place gives the value that makes the place that an affinity is about; itself says that
// it is the node alone.
func place(a affinity, s *slot) (value string, itself bool) {
	if a.GetOver() == "" || a.GetOver() == factName {
		return "", true
	}
	value, has := s.fact(a.GetOver())
	return value, !has
}

func unmet(s *slot, c *blixardv1.Constraint, tell bool) (reason, message string) {
	if !tell {
		return ReasonConstraint, ""
	}
	has := "it has no " + c.GetKey()
	if v, ok := s.fact(c.GetKey()); ok {
		has = c.GetKey() + " is " + v
	}
	return say(ReasonConstraint, tell, "node %s does not meet %s: %s", s.node.GetName(), constraint.Text(c), has)
}

func meets(s *slot, c *blixardv1.Constraint) bool {
	v, has := s.fact(c.GetKey())
	return constraint.Met(c, v, has)
}

// social looks at the other VMs that must or must not be there: on the node itself, or in
// a place that it shares.
func social(q *question, s *slot, itself, tell bool) (reason, message string) {
	for _, a := range q.must {
		value, node := place(a, s)
		if node != itself {
			continue
		}
		n := others(q, a, s, value, node)
		if a.GetApart() {
			if n > 0 {
				return say(ReasonAffinity, tell, "node %s%s has %s with %s=%s already", s.node.GetName(), placeText(s, a), vms(n), a.GetKey(), a.GetValue())
			}
			continue
		}
		if n == 0 && !firstOfItsKind(q, a) {
			return say(ReasonAffinity, tell, "node %s%s has no VM with %s=%s", s.node.GetName(), placeText(s, a), a.GetKey(), a.GetValue())
		}
	}
	return "", ""
}

// others gives how many VMs with the label of a are in a place, without the asking one.
func others(q *question, a affinity, s *slot, value string, itself bool) int {
	if a.group == nil {
		return 0
	}
	n := 0
	if itself {
		n = a.group.nodes[s]
	} else {
		n = a.counts[value]
	}
	if n == 0 || !a.self {
		return n
	}
	at := q.own.at
	if there, node := place(a, at); itself && at == s || !itself && !node && there == value {
		n--
	}
	return n
}

// firstOfItsKind: a VM that shall be where VMs with a label of its own are begins
// anywhere when there is none.
func firstOfItsKind(q *question, a affinity) bool {
	total := 0
	if a.group != nil {
		total = a.group.total
	}
	if a.self {
		total--
	}
	return total == 0 && hasLabel(q.vm.GetLabels(), label{a.GetKey(), a.GetValue()})
}

func hasLabel(labels map[string]string, l label) bool {
	v, has := labels[l.key]
	return has && v == l.value
}

// placeText names what is shared, when it is not the node.
func placeText(s *slot, a affinity) string {
	if v, has := s.fact(a.GetOver()); has {
		return ", by its " + a.GetOver() + " " + v + ","
	}
	return ""
}

func vms(n int) string {
	if n == 1 {
		return "a VM"
	}
	return fmt.Sprintf("%d VMs", n)
}

// room looks at resources.
func room(q *question, s *slot, tell bool) (reason, message string) {
	short, ok := state.Fits(s.node.GetAllocatable(), s.used, q.need)
	if ok {
		return "", ""
	}
	if !tell {
		return ReasonNoCapacity, ""
	}
	return ReasonNoCapacity, fmt.Sprintf("node %s has too little %s", s.node.GetName(), shortText(short, s.node.GetAllocatable(), s.used, q))
}

func shortText(short string, allocatable, used *blixardv1.Resources, q *question) string {
	more := q.need
	switch short {
	case "memory":
		return fmt.Sprintf("memory: %d MiB free, %d MiB needed (guest and hypervisor)",
			free(allocatable.GetMemoryMib(), used.GetMemoryMib()), more.GetMemoryMib())
	case "vcpus":
		return fmt.Sprintf("vcpus: %d free, %d needed",
			free(uint64(allocatable.GetVcpus()), uint64(used.GetVcpus())), more.GetVcpus())
	}
	what := ""
	if more.GetDiskBytes() > q.spec.GetDiskBytes() {
		what = " (root disk and volumes)"
	}
	return fmt.Sprintf("disk: %d MiB free, %d MiB needed%s",
		free(allocatable.GetDiskBytes(), used.GetDiskBytes())>>20, more.GetDiskBytes()>>20, what)
}

// score of a possible node. tell is told what it is made of, unless it is nil.
func (f *Fleet) score(q *question, s *slot, tell func(what string, points float64)) score {
	fill := f.fill(q, s)
	if tell != nil {
		what := "spread: much memory is left"
		if q.pack {
			what = "pack: little memory is left"
		}
		tell(what, fill)
	}
	shared := sharedWishes(q, s, tell)
	own, _ := ownWishes(q, s, tell)
	return score{wishes: shared + own, fill: fill}
}

// fill is what the strategy makes of the memory that would be left.
func (f *Fleet) fill(q *question, s *slot) float64 {
	left := share(free(s.free, q.need.GetMemoryMib()), f.largest)
	if q.pack {
		return 100 - left
	}
	return left
}

// fillMost bounds fill of nodes that have at most as much free as top.
func (f *Fleet) fillMost(q *question, top *slot) float64 {
	if q.pack {
		return 100
	}
	return f.fill(q, top)
}

// sharedWishes are what is equal in a class.
func sharedWishes(q *question, s *slot, tell func(string, float64)) int {
	total := 0
	if s.node.GetDamped() {
		total += pointsDamped
		if tell != nil {
			tell("it was lost again and again", pointsDamped)
		}
	}
	if s.node.GetBusy() {
		total += pointsBusy
		if tell != nil {
			tell("its load is high", pointsBusy)
		}
	}
	for _, p := range q.spec.GetScheduling().GetPreferences() {
		if p.GetConstraint().GetKey() != factName {
			total += preferred(p, s, tell)
		}
	}
	for i := range q.spreads {
		points := q.spreads[i].points(s)
		total += points
		if points != 0 && tell != nil {
			tell("other values of "+q.spreads[i].GetOver()+" are farther from their share", float64(points))
		}
	}
	for _, a := range q.should {
		if value, itself := place(a, s); !itself {
			total += company(a, others(q, a, s, value, itself), tell)
		}
	}
	return total
}

// ownWishes are what may differ between nodes of a class; lost of it, as a number above
// 0, may be better on another node.
func ownWishes(q *question, s *slot, tell func(string, float64)) (total, lost int) {
	if q.holders[s.node.GetId()] {
		total += pointsImage
		if tell != nil {
			tell("it has the image", pointsImage)
		}
	}
	one := func(points int) {
		total += points
		lost -= min(points, 0)
	}
	for _, id := range q.vm.GetFailedOn() {
		if id == s.node.GetId() {
			one(pointsFailed)
			if tell != nil {
				tell("it failed there", pointsFailed)
			}
		}
	}
	for _, p := range q.spec.GetScheduling().GetPreferences() {
		if p.GetConstraint().GetKey() == factName {
			one(preferred(p, s, tell))
		}
	}
	for _, a := range q.should {
		if value, itself := place(a, s); itself {
			one(company(a, others(q, a, s, value, itself), tell))
		}
	}
	return total, lost
}

func preferred(p *blixardv1.Preference, s *slot, tell func(string, float64)) int {
	if !meets(s, p.GetConstraint()) {
		return 0
	}
	if tell != nil {
		tell("it meets "+constraint.Text(p.GetConstraint()), float64(weight(p)))
	}
	return weight(p)
}

// company is what n VMs are worth that are in the place already.
func company(a affinity, n int, tell func(string, float64)) int {
	if n == 0 {
		return 0
	}
	points, what := int(a.GetWeight()), ""
	if a.GetApart() {
		points = -n * points
	}
	if tell != nil {
		if what = "near "; a.GetApart() {
			what = vms(n) + " with "
		}
		tell(what+a.GetKey()+"="+a.GetValue(), float64(points))
	}
	return points
}

func weight(p *blixardv1.Preference) int {
	if p.GetWeight() == 0 {
		return weightDefault
	}
	return int(p.GetWeight())
}

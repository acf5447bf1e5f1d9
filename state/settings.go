package state

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of the ratios, in percent of what a node has.
const (
	ratioMin       = 10
	cpuRatioMax    = 6400
	memoryRatioMax = 400
	diskRatioMax   = 1000
	// overNodesNamed in a refusal.
	overNodesNamed = 3
	// eventsKeepMax is ten years, so that no sum of times overflows.
	eventsKeepMax = 10 * 365 * 24 * time.Hour
)

// settings are nil before any were set.
func settings(db *database) *blixardv1.Settings {
	return first[blixardv1.Settings](db, tableSettings, indexID, settingsID)
}

// Settings of the cluster with the defaults filled in; a fresh object.
func (v *View) Settings() *blixardv1.Settings {
	s := &blixardv1.Settings{}
	if set := settings(v.db); set != nil {
		s = proto.CloneOf(set)
	}
	r := v.limits.ratios(s)
	s.CpuPercent, s.MemoryPercent, s.DiskPercent = r.cpu, r.memory, r.disk
	return s
}

// ratios are how much of what a node has may be reserved, in percent.
type ratios struct{ cpu, memory, disk uint32 }

// ratios of settings, with the defaults for what is not set.
func (l Limits) ratios(s *blixardv1.Settings) ratios {
	r := ratios{cpu: 100 * l.VCPUOvercommit, memory: 100, disk: 100}
	if n := s.GetCpuPercent(); n != 0 {
		r.cpu = n
	}
	if n := s.GetMemoryPercent(); n != 0 {
		r.memory = n
	}
	if n := s.GetDiskPercent(); n != 0 {
		r.disk = n
	}
	return r
}

// Allocatable is what VMs may reserve in all on a node of that capacity, by settings that
// may be nil. It is the only place that knows of overcommitment: the scheduler and the
// checks of the state take what a node has from it. A capacity of 0 disk bytes means that
// the node does not bound disks.
func (l Limits) Allocatable(s *blixardv1.Settings, capacity *blixardv1.Resources) *blixardv1.Resources {
	r := l.ratios(s)
	return &blixardv1.Resources{
		Vcpus:     uint32(percent(uint64(capacity.GetVcpus()), r.cpu)),
		MemoryMib: percent(capacity.GetMemoryMib(), r.memory),
		DiskBytes: percent(capacity.GetDiskBytes(), r.disk),
	}
}

// percent of n, without overflow where n is below a fortieth of what 64 bits hold. What is
// not 0 does not become 0: for disks that would mean no bound.
func percent(n uint64, p uint32) uint64 {
	if n == 0 {
		return 0
	}
	return max(n/100*uint64(p)+n%100*uint64(p)/100, 1)
}

// setSettings changes what is set, and what all nodes have to give.
func (b *batch) setSettings(c *blixardv1.SetSettingsCommand) Result {
	old := settings(b.db)
	if c.GetExpectedIndex() != 0 && c.GetExpectedIndex() != old.GetModifyIndex() {
		return refused(b.index, problem.New(problem.Conflict, "settings.index_mismatch", "the settings were changed at index %d, not %d", old.GetModifyIndex(), c.GetExpectedIndex()).
			WithHint("read them again with `blixard cluster settings`, and repeat the change"))
	}
	next := &blixardv1.Settings{}
	if old != nil {
		next = proto.CloneOf(old)
	}
	for _, one := range []struct {
		name    string
		to      *uint32
		percent *uint32
		most    uint32
	}{
		{"scheduler.overcommit.cpu", &next.CpuPercent, c.CpuPercent, cpuRatioMax},
		{"scheduler.overcommit.memory", &next.MemoryPercent, c.MemoryPercent, memoryRatioMax},
		{"scheduler.overcommit.disk", &next.DiskPercent, c.DiskPercent, diskRatioMax},
	} {
		if one.percent == nil {
			continue
		}
		if p := *one.percent; p != 0 && (p < ratioMin || p > one.most) {
			return refused(b.index, problem.New(problem.Invalid, "settings.range", "%s can't be %g", one.name, float64(p)/100).
				WithHint("it is from %g to %g", float64(ratioMin)/100, float64(one.most)/100))
		}
		*one.to = *one.percent
	}
	if keep := c.GetEventsKeep(); keep != nil {
		if d := keep.AsDuration(); d < 0 || d > eventsKeepMax {
			return refused(b.index, problem.New(problem.Invalid, "settings.range", "events.keep can't be %v", d).WithHint("it is from 0, which means for ever, to ten years"))
		}
		next.EventsKeep = keep
	}
	if old != nil && proto.Equal(old, next) {
		return Result{Index: b.index, Settings: old}
	}
	if why := b.resize(next); why != nil {
		return refused(b.index, why)
	}
	next.ModifyIndex = b.index
	insert(b.db, tableSettings, next)
	b.event(&blixardv1.Event{Kind: "cluster.settings", ObjectKind: "cluster", ObjectId: b.cluster().GetId(), ObjectName: "cluster", Message: "the settings are now " + settingsText(b.s.limits, next)})
	return Result{Index: b.index, Settings: next}
}

// resize gives all nodes what they have by other settings, or refuses to: what is reserved
// must be there.
func (b *batch) resize(next *blixardv1.Settings) *problem.Error {
	nodes := every[blixardv1.Node](b.db, tableNode, indexID)
	var over []string
	disks := false
	var resized []*blixardv1.Node
	for _, n := range nodes {
		allocatable := b.s.limits.Allocatable(next, n.GetFingerprint().GetCapacity())
		if n.GetState() == blixardv1.NodeState_left || proto.Equal(allocatable, n.GetAllocatable()) {
			continue
		}
		short, ok := Fits(allocatable, Reserved(n), nil)
		// A disk may be given twice since before volumes were counted: one that becomes no
		// smaller is no worse.
		if !ok && (short != "disk" || allocatable.GetDiskBytes() < n.GetAllocatable().GetDiskBytes()) && !planted.Is(planted.RatioNotChecked) {
			over = append(over, fmt.Sprintf("node %s (%s)", n.GetName(), short))
			disks = disks || short == "disk"
			continue
		}
		n = copyNode(n)
		n.Allocatable = allocatable
		resized = append(resized, n)
	}
	if len(over) > 0 {
		has := "VMs"
		if disks {
			has = "VMs and volumes"
		}
		text := strings.Join(over[:min(len(over), overNodesNamed)], ", ")
		if more := len(over) - overNodesNamed; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		return problem.New(problem.Conflict, "settings.in_use", "more is given to %s than there would be, on %s", has, text).
			WithHint("let %s go from there first, by `blixard node drain` or `blixard vm move`, or choose a larger ratio", has)
	}
	for _, n := range resized {
		b.putNode(n)
	}
	return nil
}

func settingsText(l Limits, s *blixardv1.Settings) string {
	r := l.ratios(s)
	keep := "for ever"
	if d := s.GetEventsKeep().AsDuration(); d > 0 {
		keep = d.String()
	}
	return fmt.Sprintf("scheduler.overcommit.cpu=%g memory=%g disk=%g events.keep=%s", float64(r.cpu)/100, float64(r.memory)/100, float64(r.disk)/100, keep)
}

// pruneEvents forgets the oldest events. Which those are is in the command: replicas do
// not look at times.
func (b *batch) pruneEvents(c *blixardv1.PruneEventsCommand) Result {
	events := b.s.events
	n := 0
	for n < len(events) && events[n].GetIndex() <= c.GetThroughIndex() {
		n++
	}
	b.s.events = events[n:]
	return Result{Index: b.index}
}

// OldestEvent that is kept; nil when there is none.
func (v *View) OldestEvent() *blixardv1.Event {
	if len(v.events) == 0 {
		return nil
	}
	return v.events[0]
}

// EventsThrough gives the index of the newest event of which it and all before are older
// than a time, 0 when the oldest is not. Times in the log may go back with a change of
// leader: an event that is too young keeps those behind it.
func (v *View) EventsThrough(before time.Time) uint64 {
	through := uint64(0)
	for _, e := range v.events {
		if !e.GetTime().AsTime().Before(before) {
			break
		}
		through = e.GetIndex()
	}
	return through
}

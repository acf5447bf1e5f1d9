package leader

import (
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// A node becomes busy when its load was busyPercent or more for loadSteady without a break,
// and calm when it was less than calmPercent for as long. In between it stays what it is, so
// that one near a bound does not change all the time.
const (
	busyPercent = 80
	calmPercent = 60
	loadSteady  = 30 * time.Second
	// busyBatchMax nodes are in one command, of some 30 bytes each; the others are in that
	// of the next round, a quarter of a second later.
	busyBatchMax = 256
)

// load is what is known of the load of a node.
type load struct {
	// percent that was heard of last, nil for none.
	percent *uint32
	level   loadLevel
	// first and last are when it was heard of at that level.
	first, last time.Time
}

type loadLevel uint8

// The levels. They are not stored. A node that tells no load is as one that has none.
const (
	loadLow    loadLevel = 1
	loadMiddle loadLevel = 2
	loadHigh   loadLevel = 3
)

func levelOfLoad(percent *uint32) loadLevel {
	switch {
	case percent == nil || *percent < calmPercent:
		return loadLow
	case *percent < busyPercent:
		return loadMiddle
	}
	return loadHigh
}

// Loaded notes the load that a node told with a lease that it got; nil when it told none. A
// figure counts as long as that lease: one that comes later begins anew.
func (t *Table) Loaded(nodeID string, percent *uint32, now time.Time) {
	l, level := &t.of(nodeID).load, levelOfLoad(percent)
	if l.level != level || now.Sub(l.last) > t.TTL {
		l.level, l.first = level, now
	}
	l.percent, l.last = percent, now
}

// Busy gives the command that tells which nodes became busy and which are no longer. Where
// the load is not to be looked at, none is busy.
func (t *Table) Busy(view View, look bool) []*blixardv1.Command {
	set := &blixardv1.SetBusyCommand{}
	t.each(view.Nodes(), func(n *blixardv1.Node, g *grant) {
		busy := look && g.load.busy(n.GetBusy(), t.Steady)
		if busy == n.GetBusy() || n.GetState() == blixardv1.NodeState_left || len(set.Nodes) == busyBatchMax {
			return
		}
		one := &blixardv1.NodeBusy{NodeId: n.GetId(), Busy: busy}
		if look {
			one.LoadPercent = g.load.percent
		}
		set.Nodes = append(set.Nodes, one)
	})
	// The level is asked for only where it counts: that takes a look at all members.
	if len(set.Nodes) == 0 || view.FeatureLevel() < busyLevel {
		return nil
	}
	return []*blixardv1.Command{{Change: &blixardv1.Command_SetBusy{SetBusy: set}}}
}

// busy reports whether a node shall be busy that is so or not now.
func (l *load) busy(now bool, steady time.Duration) bool {
	switch {
	case l.last.Sub(l.first) < steady:
		return now
	case l.level == loadHigh:
		return true
	}
	return now && l.level != loadLow
}

// busyLevel is the feature level of the command.
var busyLevel = state.Level(&blixardv1.Command{Change: &blixardv1.Command_SetBusy{SetBusy: &blixardv1.SetBusyCommand{}}})

// Loaded as in [Table.Loaded].
func (l *Leases) Loaded(nodeID string, percent *uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.Loaded(nodeID, percent, time.Now())
}

func (l *Leases) busy(view View, look bool) []*blixardv1.Command {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Busy(view, look)
}

package state

import (
	"fmt"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// levelOfVolumeRoom is the first at which volumes count to the disk of their node. Before
// that nothing is noted of them on nodes, so that older replicas have the same state.
const levelOfVolumeRoom = 19

// Reserved is what is given of a node: to its allocations, and of its disk also to the
// volumes that are on it. It is not to be changed.
func Reserved(n *blixardv1.Node) *blixardv1.Resources {
	if n.GetVolumeBytes() == 0 {
		return n.GetAllocated()
	}
	return add(n.GetAllocated(), &blixardv1.Resources{DiskBytes: n.GetVolumeBytes()})
}

// Sizes is what tells how much a VM needs.
type Sizes interface {
	Limits() Limits
	// Volume by id or name; nil when there is none.
	Volume(ref string) *blixardv1.Volume
	leveled
}

type leveled interface{ FeatureLevel() uint32 }

// Need is what a VM of that spec takes of the node where it is placed: what it reserves,
// and the disk of its volumes that are on no node yet.
func Need(of Sizes, spec *blixardv1.VMSpec) *blixardv1.Resources {
	return need(of, spec, func(v *blixardv1.Volume) bool { return v.GetNodeId() == "" })
}

// NeedToMove is what a VM of that spec takes of a node to which it moves with its volumes;
// without an id, of one that has none of them.
func NeedToMove(of Sizes, spec *blixardv1.VMSpec, nodeID string) *blixardv1.Resources {
	return need(of, spec, func(v *blixardv1.Volume) bool { return nodeID == "" || v.GetNodeId() != nodeID })
}

func need(of Sizes, spec *blixardv1.VMSpec, comes func(*blixardv1.Volume) bool) *blixardv1.Resources {
	r := of.Limits().Reservation(spec)
	// The level is asked for only where it counts: that takes a look at all members.
	if len(spec.GetVolumes()) == 0 || of.FeatureLevel() < levelOfVolumeRoom {
		return r
	}
	for _, at := range spec.GetVolumes() {
		if v := of.Volume(at.GetVolume()); v != nil && comes(v) {
			r.DiskBytes += v.GetSizeBytes()
		}
	}
	return r
}

// Limits, Volume and FeatureLevel make a batch one of [Sizes].
func (b *batch) Limits() Limits { return b.s.limits }

// Volume as in [batch.volume].
func (b *batch) Volume(ref string) *blixardv1.Volume { return b.volume(ref) }

// FeatureLevel as it is now.
func (b *batch) FeatureLevel() uint32 {
	if b.level == 0 {
		b.level = featureLevel(b.db)
	}
	return b.level
}

// CheckVolume refuses to bring so many more bytes of a volume to a node whose disk has no
// room for them.
func (v *View) CheckVolume(name string, n *blixardv1.Node, more uint64) error {
	if why := checkVolume(v, name, n, more); why != nil {
		return why
	}
	return nil
}

func checkVolume(at leveled, name string, n *blixardv1.Node, more uint64) *problem.Error {
	return checkDisk(at, fmt.Sprintf("volume %q", name), n, more)
}

// checkDisk refuses to bring so much to a node; at is the state or what becomes of it.
func checkDisk(at leveled, what string, n *blixardv1.Node, more uint64) *problem.Error {
	all, used := n.GetAllocatable().GetDiskBytes(), Reserved(n).GetDiskBytes()
	left := all - min(all, used)
	if n == nil || all == 0 || more <= left || planted.Is(planted.RoomNotCounted) || at.FeatureLevel() < levelOfVolumeRoom {
		return nil
	}
	return problem.New(problem.NoCapacity, "placement.no_room", "node %q has no room for %s: disk is short, %s free, %s needed",
		n.GetName(), what, units.Size(left).Human(), units.Size(more).Human()).
		WithHint("delete volumes and VMs there that nobody needs, or move some to another node: blixard volume move VOLUME NODE")
}

// countVolume keeps what projects and nodes have of volumes when one becomes another; nil
// is none.
func (b *batch) countVolume(old, next *blixardv1.Volume) {
	if old.GetSizeBytes() != next.GetSizeBytes() && b.FeatureLevel() >= levelOfVolumeQuota {
		recountVolume(b.db, next, old)
	}
	from, to := old.GetNodeId(), next.GetNodeId()
	if from == to && old.GetSizeBytes() == next.GetSizeBytes() || b.FeatureLevel() < levelOfVolumeRoom {
		return
	}
	if from == to {
		b.addVolumeBytes(to, old.GetSizeBytes(), next.GetSizeBytes())
		return
	}
	b.addVolumeBytes(from, old.GetSizeBytes(), 0)
	b.addVolumeBytes(to, 0, next.GetSizeBytes())
}

func (b *batch) addVolumeBytes(nodeID string, less, more uint64) {
	if old := b.node(nodeID); old != nil {
		n := copyNode(old)
		n.VolumeBytes = sub(&blixardv1.Resources{DiskBytes: old.GetVolumeBytes()}, &blixardv1.Resources{DiskBytes: less}).GetDiskBytes() + more
		b.putNode(n)
	}
}

// rises reports whether the members may all come to know a level, or not all any more, when
// one becomes another; nil is none.
func rises(level uint32, old, next *blixardv1.Member) bool {
	below := func(m *blixardv1.Member) bool { return m != nil && !m.GetRemoved() && m.GetFeatureLevel() < level }
	return below(old) != below(next)
}

// countVolumes counts them on all nodes, since members may know of that now, or one does
// not.
func (b *batch) countVolumes() {
	sums := volumeSums(b.db)
	for _, old := range every[blixardv1.Node](b.db, tableNode, indexID) {
		if old.GetVolumeBytes() != sums[old.GetId()] {
			n := copyNode(old)
			n.VolumeBytes = sums[old.GetId()]
			b.putNode(n)
		}
	}
}

// volumeSums is what nodes have of volumes, by their ids; nothing where that is not counted.
func volumeSums(db *database) map[string]uint64 {
	if featureLevel(db) < levelOfVolumeRoom {
		return nil
	}
	sums := map[string]uint64{}
	each(db, tableVolume, func(v *blixardv1.Volume) {
		if v.GetNodeId() != "" {
			sums[v.GetNodeId()] += v.GetSizeBytes()
		}
	})
	return sums
}

// checkVolumeBytes holds what nodes say of volumes against the volumes. A snapshot of a
// version that did not count them has nothing of it.
func checkVolumeBytes(db *database) error {
	sums := volumeSums(db)
	for _, n := range every[blixardv1.Node](db, tableNode, indexID) {
		if n.GetVolumeBytes() == 0 {
			n.VolumeBytes = sums[n.GetId()]
		}
		if n.GetVolumeBytes() != sums[n.GetId()] {
			return damaged("node %s has %d bytes of volumes, its volumes %d", n.GetId(), n.GetVolumeBytes(), sums[n.GetId()])
		}
	}
	return nil
}

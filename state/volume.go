package state

import (
	"slices"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// volumesMax of the cluster: some 300 bytes each.
	volumesMax = 1 << 20
	// snapshotsMax of one volume.
	snapshotsMax = 256
)

// volume finds a volume by id or name.
func (b *batch) volume(ref string) *blixardv1.Volume {
	return byRef[blixardv1.Volume](b.db, tableVolume, ref)
}

// copyVolume is a copy that shares what it points to with v.
func copyVolume(v *blixardv1.Volume) *blixardv1.Volume {
	return &blixardv1.Volume{
		Id: v.Id, Name: v.Name, SizeBytes: v.SizeBytes, NodeId: v.NodeId, Node: v.Node, Epoch: v.Epoch, VmIds: v.VmIds,
		Snapshots: v.Snapshots, Labels: v.Labels, Deleting: v.Deleting, CreateIndex: v.CreateIndex, ModifyIndex: v.ModifyIndex,
		CreatedAt: v.CreatedAt, Source: v.Source, Made: v.Made, Project: v.Project,
	}
}

// putVolume writes v, a fresh copy.
func (b *batch) putVolume(v *blixardv1.Volume) {
	v.ModifyIndex = b.index
	b.countVolume(first[blixardv1.Volume](b.db, tableVolume, indexID, v.GetId()), v)
	insert(b.db, tableVolume, v)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindVolume, Volume: v})
}

func (b *batch) volumeEvent(v *blixardv1.Volume, kind, message string) {
	b.event(&blixardv1.Event{
		Kind: kind, ObjectKind: "volume", ObjectId: v.GetId(), ObjectName: v.GetName(), Node: v.GetNode(), Message: message, Project: v.GetProject(),
	})
}

func volumeNotFound(ref string) *problem.Error {
	return problem.New(problem.NotFound, "volume.not_found", "there is no volume %q", ref).
		WithHint("`blixard volume list` shows the volumes; make one with `blixard volume create %s`", ref)
}

func volumeDeleting(v *blixardv1.Volume) *problem.Error {
	return problem.New(problem.Conflict, "volume.deleting", "volume %q is being deleted", v.GetName()).
		WithHint("wait until it is gone, or use another name")
}

func (b *batch) createVolume(c *blixardv1.CreateVolumeCommand) Result {
	if c.GetId() == "" || c.GetName() == "" || c.GetSizeBytes() == 0 {
		return refused(b.index, problem.New(problem.Invalid, "volume.incomplete", "a volume needs an id, a name and a size"))
	}
	if old := b.volume(c.GetName()); old != nil {
		if old.GetDeleting() {
			return refused(b.index, volumeDeleting(old))
		}
		return refused(b.index, problem.New(problem.Conflict, "volume.name_taken", "there is a volume %q already", c.GetName()).
			WithHint("choose another name").WithField("name"))
	}
	if n := count[blixardv1.Volume](b.db, tableVolume); n >= volumesMax {
		return refused(b.index, problem.New(problem.NoCapacity, "volume.too_many", "there are %d volumes", n).WithHint("delete those that are not used"))
	}
	v := &blixardv1.Volume{
		Id: c.GetId(), Name: c.GetName(), SizeBytes: c.GetSizeBytes(), Labels: c.GetLabels(), Source: c.GetSource(), Made: c.GetMade(),
		CreatedAt: b.time, CreateIndex: b.index, Project: storedProject(c.GetProject()),
	}
	if why := quotaAllowsDisk(b, v.GetProject(), v.GetSizeBytes()); why != nil {
		return refused(b.index, why.WithField("size_bytes"))
	}
	if c.GetNodeId() != "" {
		n := b.node(c.GetNodeId())
		if n == nil || n.GetState() == blixardv1.NodeState_left {
			return refused(b.index, problem.New(problem.NotFound, "node.not_found", "there is no node %q", c.GetNodeId()).
				WithHint("`blixard node list` shows the nodes"))
		}
		if why := checkVolume(b, v.GetName(), n, v.GetSizeBytes()); why != nil {
			return refused(b.index, why.WithField("size_bytes"))
		}
		v.NodeId, v.Node = n.GetId(), n.GetName()
	}
	b.putVolume(v)
	b.volumeEvent(v, "volume.created", "the volume was declared")
	return Result{Index: b.index, Volume: v}
}

// changeableVolume finds a volume that is not being deleted.
func (b *batch) changeableVolume(ref string) (*blixardv1.Volume, *problem.Error) {
	v := b.volume(ref)
	switch {
	case v == nil:
		return nil, volumeNotFound(ref)
	case v.GetDeleting():
		return nil, volumeDeleting(v)
	}
	return v, nil
}

func (b *batch) resizeVolume(c *blixardv1.ResizeVolumeCommand) Result {
	old, why := b.changeableVolume(c.GetName())
	if why != nil {
		return refused(b.index, why)
	}
	v := copyVolume(old)
	if c.GetSizeBytes() != 0 {
		v.SizeBytes = c.GetSizeBytes()
	}
	v.Made = v.Made || c.GetMade()
	if v.GetSizeBytes() == old.GetSizeBytes() && v.GetMade() == old.GetMade() {
		return Result{Index: b.index, Volume: old}
	}
	if v.GetSizeBytes() > old.GetSizeBytes() {
		if why := quotaAllowsDisk(b, v.GetProject(), v.GetSizeBytes()-old.GetSizeBytes()); why != nil {
			return refused(b.index, why)
		}
		if why := checkVolume(b, v.GetName(), b.node(v.GetNodeId()), v.GetSizeBytes()-old.GetSizeBytes()); why != nil {
			return refused(b.index, why)
		}
	}
	b.putVolume(v)
	if v.GetSizeBytes() != old.GetSizeBytes() {
		b.volumeEvent(v, "volume.resized", "the volume has another size")
	}
	return Result{Index: b.index, Volume: v}
}

// deleteVolume drops a volume that no node has, or makes its node remove it.
func (b *batch) deleteVolume(c *blixardv1.DeleteVolumeCommand) Result {
	old := b.volume(c.GetName())
	if old == nil {
		return refused(b.index, volumeNotFound(c.GetName()))
	}
	if old.GetDeleting() {
		return Result{Index: b.index, Volume: old}
	}
	if len(old.GetVmIds()) > 0 {
		return refused(b.index, b.volumeUsed(old))
	}
	v := copyVolume(old)
	v.Deleting = true
	n := b.node(v.GetNodeId())
	if v.GetNodeId() == "" || n == nil || n.GetState() == blixardv1.NodeState_left {
		b.dropVolume(old, v)
		return Result{Index: b.index, Volume: v}
	}
	b.putVolume(v)
	b.volumeEvent(v, "volume.deleting", "a delete was asked for")
	return Result{Index: b.index, Volume: v}
}

func (b *batch) dropVolume(old, last *blixardv1.Volume) {
	last.ModifyIndex = b.index
	b.countVolume(old, nil)
	remove(b.db, tableVolume, old)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindVolume, Volume: last, Deleted: true})
	b.volumeEvent(last, "volume.deleted", "the volume is gone")
}

func (b *batch) volumeUsed(v *blixardv1.Volume) *problem.Error {
	name := v.GetVmIds()[0]
	if vm := b.vm(name); vm != nil {
		name = vm.GetName()
	}
	return problem.New(problem.Conflict, "volume.in_use", "volume %q is in use by VM %q", v.GetName(), name).
		WithHint("stop that VM and take the volume from it: blixard volume detach %s %s", name, v.GetName())
}

// releaseVolume drops a deleted volume of which its node has nothing any more.
func (b *batch) releaseVolume(c *blixardv1.ReleaseVolumeCommand) Result {
	old := b.volume(c.GetVolumeId())
	if old == nil {
		return Result{Index: b.index}
	}
	if !old.GetDeleting() || old.GetNodeId() != c.GetNodeId() {
		return refused(b.index, problem.New(problem.Conflict, "volume.kept", "volume %q is not for node %s to remove", old.GetName(), c.GetNodeId()))
	}
	last := copyVolume(old)
	b.dropVolume(old, last)
	return Result{Index: b.index, Volume: last}
}

// moveVolume makes another node the one that has the volume.
func (b *batch) moveVolume(c *blixardv1.MoveVolumeCommand) Result {
	old, why := b.changeableVolume(c.GetVolumeId())
	if why != nil {
		return refused(b.index, why)
	}
	to := b.node(c.GetToNodeId())
	switch {
	case to == nil || to.GetState() == blixardv1.NodeState_left:
		return refused(b.index, problem.New(problem.NotFound, "node.not_found", "there is no node %q", c.GetToNodeId()))
	case old.GetNodeId() != c.GetFromNodeId() || old.GetEpoch() != c.GetEpoch():
		return refused(b.index, problem.New(problem.Conflict, "volume.changed", "volume %q was given to a VM, or moved, since the copy began", old.GetName()).
			WithHint("stop that VM, and move again"))
	case b.volumeBusy(old):
		return refused(b.index, b.volumeUsed(old))
	}
	if to.GetId() != old.GetNodeId() {
		if why := checkVolume(b, old.GetName(), to, old.GetSizeBytes()); why != nil {
			return refused(b.index, why)
		}
	}
	v := copyVolume(old)
	v.NodeId, v.Node = to.GetId(), to.GetName()
	// Whatever the old node may still do with its copy is fenced off.
	v.Epoch++
	b.putVolume(v)
	b.volumeEvent(v, "volume.moved", "the volume moved from node "+old.GetNode())
	return Result{Index: b.index, Volume: v}
}

// volumeBusy is whether a VM that has the volume is placed, and so may run.
func (b *batch) volumeBusy(v *blixardv1.Volume) bool {
	for _, id := range v.GetVmIds() {
		if vm := b.vm(id); vm != nil && len(b.allocationsOf(vm)) > 0 {
			return true
		}
	}
	return false
}

func (b *batch) snapshotVolume(c *blixardv1.SnapshotVolumeCommand) Result {
	old, why := b.changeableVolume(c.GetVolumeId())
	if why != nil {
		return refused(b.index, why)
	}
	at := -1
	for i, s := range old.GetSnapshots() {
		if s.GetName() == c.GetSnapshot().GetName() {
			at = i
		}
	}
	v := copyVolume(old)
	switch {
	case c.GetDrop() && at < 0:
		return refused(b.index, problem.New(problem.NotFound, "volume.snapshot_not_found", "volume %q has no snapshot %q", old.GetName(), c.GetSnapshot().GetName()).
			WithHint("`blixard volume show %s` lists its snapshots", old.GetName()))
	case c.GetDrop():
		v.Snapshots = append(append([]*blixardv1.VolumeSnapshot{}, old.GetSnapshots()[:at]...), old.GetSnapshots()[at+1:]...)
		b.putVolume(v)
		b.volumeEvent(v, "volume.snapshot_deleted", "snapshot "+c.GetSnapshot().GetName()+" is gone")
		return Result{Index: b.index, Volume: v}
	case at >= 0:
		return refused(b.index, problem.New(problem.Conflict, "volume.snapshot_taken", "volume %q has a snapshot %q already", old.GetName(), c.GetSnapshot().GetName()).
			WithHint("choose another name"))
	case len(old.GetSnapshots()) >= snapshotsMax:
		return refused(b.index, problem.New(problem.NoCapacity, "volume.snapshots", "volume %q has %d snapshots", old.GetName(), len(old.GetSnapshots())).
			WithHint("delete some of them"))
	}
	s := proto.CloneOf(c.GetSnapshot())
	s.CreatedAt = b.time
	v.Snapshots = append(append([]*blixardv1.VolumeSnapshot{}, old.GetSnapshots()...), s)
	b.putVolume(v)
	b.volumeEvent(v, "volume.snapshot", "snapshot "+s.GetName()+" was made")
	return Result{Index: b.index, Volume: v}
}

// volumesFree gives the volumes of a VM's spec if it may have them.
func (b *batch) volumesFree(vm *blixardv1.VM) ([]*blixardv1.Volume, *problem.Error) {
	var volumes []*blixardv1.Volume
	names, paths := map[string]bool{}, map[string]bool{}
	node := ""
	for i, at := range vm.GetSpec().GetVolumes() {
		v, why := b.changeableVolume(at.GetVolume())
		if why != nil {
			return nil, why.WithField("spec.volumes[%d].volume", i)
		}
		if names[v.GetId()] || paths[at.GetPath()] {
			return nil, problem.New(problem.Invalid, "volume.twice", "volume %q or path %s is named twice", v.GetName(), at.GetPath()).
				WithHint("name each volume and each path once").WithField("spec.volumes[%d]", i)
		}
		names[v.GetId()], paths[at.GetPath()] = true, true
		if why := b.ofOtherProject(v, vm); why != nil {
			return nil, why.WithField("spec.volumes[%d]", i)
		}
		for _, id := range v.GetVmIds() {
			if id != vm.GetId() && !(at.GetReadOnly() && b.onlyReads(id, v)) {
				other := copyVolume(v)
				other.VmIds = []string{id}
				return nil, b.volumeUsed(other).WithField("spec.volumes[%d]", i)
			}
		}
		if v.GetNodeId() != "" {
			if node != "" && node != v.GetNodeId() {
				return nil, problem.New(problem.Conflict, "volume.apart", "the VM's volumes are on different nodes").
					WithHint("move one of them: blixard volume move %s NODE", v.GetName()).WithField("spec.volumes[%d]", i)
			}
			node = v.GetNodeId()
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

// ofOtherProject says why a VM can't have a volume of a project. One that it has stays.
func (b *batch) ofOtherProject(v *blixardv1.Volume, vm *blixardv1.VM) *problem.Error {
	if v.GetProject() == "" || v.GetProject() == vm.GetProject() || slices.Contains(v.GetVmIds(), vm.GetId()) || b.FeatureLevel() < levelOfVolumeQuota {
		return nil
	}
	return problem.New(problem.Conflict, "volume.other_project", "volume %q is of project %q, and the VM of project %q", v.GetName(), v.GetProject(), ProjectOf(vm)).
		WithHint("make one for this project: blixard volume create NAME --project %s", ProjectOf(vm))
}

// onlyReads is whether a VM has the volume read-only.
func (b *batch) onlyReads(vmID string, v *blixardv1.Volume) bool {
	for _, at := range b.vm(vmID).GetSpec().GetVolumes() {
		if at.GetVolume() == v.GetName() {
			return at.GetReadOnly()
		}
	}
	return true
}

// giveVolumes gives a VM's volumes to an allocation on node: each has to be there,
// or nowhere yet. Nothing is changed when one is refused.
func (b *batch) giveVolumes(attachments []*blixardv1.VolumeAttachment, node *blixardv1.Node) ([]*blixardv1.AllocatedVolume, *problem.Error) {
	for _, at := range attachments {
		v := b.volume(at.GetVolume())
		if v == nil {
			return nil, volumeNotFound(at.GetVolume())
		}
		if v.GetNodeId() != "" && v.GetNodeId() != node.GetId() {
			return nil, problem.New(problem.Conflict, "placement.volume_elsewhere", "volume %q is on node %q, not %q", v.GetName(), v.GetNode(), node.GetName())
		}
	}
	var given []*blixardv1.AllocatedVolume
	for _, at := range attachments {
		v := copyVolume(b.volume(at.GetVolume()))
		v.NodeId, v.Node = node.GetId(), node.GetName()
		v.Epoch++
		b.putVolume(v)
		given = append(given, &blixardv1.AllocatedVolume{
			VolumeId: v.GetId(), Name: v.GetName(), Path: at.GetPath(), ReadOnly: at.GetReadOnly(), Epoch: v.GetEpoch(), SizeBytes: v.GetSizeBytes(),
		})
	}
	return given, nil
}

// Volume finds a volume by its id or name; nil when there is none.
func (v *View) Volume(ref string) *blixardv1.Volume {
	return byRef[blixardv1.Volume](v.db, tableVolume, ref)
}

// Volumes gives all volumes, ordered by name.
func (v *View) Volumes() []*blixardv1.Volume {
	return every[blixardv1.Volume](v.db, tableVolume, indexName)
}

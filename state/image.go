package state

import (
	"slices"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// imagesMax of the cluster: some 1 KiB each.
const imagesMax = 16384

func (b *batch) image(name string) *blixardv1.Image {
	return first[blixardv1.Image](b.db, tableImage, indexID, name)
}

func (b *batch) putImageObject(i *blixardv1.Image) {
	i.ModifyIndex = b.index
	insert(b.db, tableImage, i)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindImage, Image: i})
}

func (b *batch) imageEvent(i *blixardv1.Image, kind, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "image", ObjectId: i.GetDigest(), ObjectName: i.GetName(), Message: message})
}

// putImage takes in that a node has an image, or has it no more.
func (b *batch) putImage(c *blixardv1.PutImageCommand) Result {
	given := c.GetImage()
	if given.GetName() == "" || given.GetDigest() == "" || c.GetNodeId() == "" {
		return refused(b.index, problem.New(problem.Invalid, "image.incomplete", "an image needs a name and a digest, and a node"))
	}
	old := b.image(given.GetName())
	same := old != nil && old.GetDigest() == given.GetDigest()
	switch {
	case c.GetGone():
		if !same || !slices.Contains(old.GetNodeIds(), c.GetNodeId()) {
			return Result{Index: b.index, Image: old}
		}
		next := proto.CloneOf(old)
		next.NodeIds = withoutString(next.NodeIds, c.GetNodeId())
		b.putImageObject(next)
		return Result{Index: b.index, Image: next}
	case same && slices.Contains(old.GetNodeIds(), c.GetNodeId()):
		return Result{Index: b.index, Image: old}
	case same:
		if old.GetDiskDigest() != given.GetDiskDigest() {
			return refused(b.index, problem.New(problem.Conflict, "image.other_disk",
				"node %s made another root disk of image %q than the others have", c.GetNodeId(), old.GetName()).
				WithHint("do all nodes run the same version?"))
		}
		next := proto.CloneOf(old)
		next.NodeIds = append(next.NodeIds, c.GetNodeId())
		slices.Sort(next.NodeIds)
		b.putImageObject(next)
		return Result{Index: b.index, Image: next}
	case old != nil && c.GetKeepName():
		return Result{Index: b.index, Image: old}
	}
	if n := count[blixardv1.Image](b.db, tableImage); old == nil && n >= imagesMax {
		return refused(b.index, problem.New(problem.NoCapacity, "image.too_many", "the cluster knows %d images", n).
			WithHint("`blixard image prune` removes those that no VM uses"))
	}
	next := proto.CloneOf(given)
	next.NodeIds = []string{c.GetNodeId()}
	next.CreatedAt, next.CreateIndex = b.time, b.index
	b.putImageObject(next)
	b.imageEvent(next, "image.added", "the image was brought in")
	return Result{Index: b.index, Image: next}
}

// dropImages forgets images; their nodes remove the disks.
func (b *batch) dropImages(c *blixardv1.DropImageCommand) Result {
	used := b.imagesUsed()
	r := Result{Index: b.index}
	var drop []*blixardv1.Image
	for _, name := range c.GetNames() {
		i := b.image(name)
		if i == nil {
			return refused(b.index, imageNotFound(name))
		}
		if vm := used[name]; vm != "" {
			if c.GetUnusedOnly() {
				continue
			}
			return refused(b.index, problem.New(problem.Conflict, "image.in_use", "image %q is in use by VM %q", name, vm).
				WithHint("delete the VMs that use it first"))
		}
		drop = append(drop, i)
	}
	for _, i := range drop {
		last := proto.CloneOf(i)
		last.ModifyIndex = b.index
		remove(b.db, tableImage, i)
		b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindImage, Image: last, Deleted: true})
		b.imageEvent(last, "image.removed", "the image is no more known")
		r.Images = append(r.Images, last)
	}
	return r
}

// imagesUsed gives, for each image that VMs use, the first of them by name.
func (b *batch) imagesUsed() map[string]string {
	used := map[string]string{}
	b.eachVM(func(vm *blixardv1.VM) {
		image := vm.GetSpec().GetImage()
		if first := used[image]; first == "" || vm.GetName() < first {
			used[image] = vm.GetName()
		}
	})
	return used
}

func imageNotFound(name string) *problem.Error {
	return problem.New(problem.NotFound, "image.not_found", "the cluster has no image %q", name).
		WithHint("`blixard image list` shows what there is; bring it in with `blixard image pull %s`", name)
}

// Image finds an image by its name; nil when there is none.
func (v *View) Image(name string) *blixardv1.Image {
	return first[blixardv1.Image](v.db, tableImage, indexID, name)
}

// Images gives all images, ordered by name.
func (v *View) Images() []*blixardv1.Image {
	return every[blixardv1.Image](v.db, tableImage, indexID)
}

package volume

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// Resize makes a disk that no VM has larger or smaller, and the ext4 file system on it.
// It works on a copy that then takes the disk's place, so that a crash leaves the one
// or the other; an inode number that was known is no longer valid. A size that it has
// is no error, and lets the file system fill the disk. A disk without an ext file
// system is only made larger. It is durable on return.
// Problems: Invalid volume.size; NotFound volume.not_found; Conflict volume.in_use,
// volume.too_small (with the least size), volume.no_file_system, volume.damaged,
// volume.resize; NoCapacity volume.quota; Unavailable disk.full, volume.busy.
func (s *Store) Resize(ctx context.Context, id string, sizeBytes uint64) error {
	size, err := checkSize(sizeBytes)
	if err != nil {
		return err
	}
	d, done, err := s.hold(ctx, id, exclusive)
	if err != nil {
		return err
	}
	defer done()
	old, err := d.Open(diskImage, os.O_RDWR)
	if err != nil {
		return disk.Problem(d.Path(diskImage), err)
	}
	defer func() { _ = old.Close() }()
	if err := atRest(id, old); err != nil {
		return err
	}
	st, err := disk.StatFile(old)
	if err != nil {
		return err
	}
	super, isExt, err := readSuper(old)
	if err != nil {
		return err
	}
	has := uint64(st.Size)
	switch {
	case !isExt && size < has:
		return problem.New(problem.Conflict, "volume.no_file_system", "volume %s has no ext4 file system that could be made smaller", id).
			WithHint("make another volume of that size and copy what is needed")
	case !isExt:
		return s.growFile(old, has, size)
	case size == has && super.bytes()+super.blockBytes > has:
		return nil
	}
	r, err := s.reserve(max(size, has) - has)
	if err != nil {
		return err
	}
	defer r.release()
	err = s.build(d, diskImage, func(f *os.File) error {
		if err := disk.Copy(ctx, f, old, nil); err != nil {
			return err
		}
		s.at("volume.resize.copied")
		if err := keepOwner(f, old); err != nil {
			return err
		}
		return s.resizeFile(ctx, id, f, has, size)
	})
	if err != nil {
		return err
	}
	if err := atRest(id, old); err != nil {
		return errors.Join(err, d.Remove(diskImage+newSuffix))
	}
	if err := r.publish(d, diskImage+newSuffix, diskImage, false); err != nil {
		return err
	}
	s.at("volume.resize.done")
	return nil
}

// resizeFile works on the copy.
func (s *Store) resizeFile(ctx context.Context, id string, f *os.File, has, size uint64) error {
	if err := repair(ctx, f, true); err != nil {
		return err
	}
	s.at("volume.resize.checked")
	super, isExt, err := readSuper(f)
	if err != nil {
		return err
	}
	if !isExt {
		return toolProblem(nil, "volume.damaged", "check the file system", "it has no superblock any more")
	}
	if size < has {
		least, err := leastBytes(ctx, f, super)
		if err != nil {
			return err
		}
		if size < least {
			return tooSmall(id, size, least)
		}
	}
	// resize2fs 1.47 breaks off in the middle when a file system of one block group
	// grows beyond the room that it has for group descriptors; not so from two groups.
	group := super.blockBytes * super.blockBytes * 8
	if super.bytes() <= group && size > 2*group {
		if err := resizeFS(ctx, id, f, 2*group, has); err != nil {
			return err
		}
	}
	if err := resizeFS(ctx, id, f, size, has); err != nil {
		return err
	}
	s.at("volume.resize.resized")
	if super, isExt, err = readSuper(f); err != nil {
		return err
	}
	if !isExt || super.bytes() > size {
		return problem.New(problem.Internal, "volume.resize", "resize2fs made a file system of %d bytes, not %d", super.bytes(), size)
	}
	return f.Truncate(int64(size))
}

// resizeFS runs resize2fs for a file system that had a disk of that many bytes.
func resizeFS(ctx context.Context, id string, f *os.File, size, has uint64) error {
	// resize2fs cuts a file that is larger than what it is told, and may not make it
	// larger.
	st, err := disk.StatFile(f)
	if err == nil && uint64(st.Size) < size {
		err = f.Truncate(int64(size))
	}
	if err != nil {
		return err
	}
	_, words, err := tool(ctx, f, "resize2fs", disk.FileArg, strconv.FormatUint(size>>10, 10)+"K")
	switch {
	case err == nil:
		return nil
	case size < has && (strings.Contains(words, "smaller than minimum") || strings.Contains(words, "No space left on device")):
		return tooSmall(id, size, size+smallStep)
	}
	return toolProblem(err, "volume.resize", "resize the file system", words)
}

// smallStep is what one tries next when resize2fs finds no room where it had said
// that there was.
const smallStep = 4 << 20

func tooSmall(id string, size, least uint64) error {
	least = (least + 1<<20 - 1) &^ (1<<20 - 1)
	return problem.New(problem.Conflict, "volume.too_small", "what is on volume %s needs %d bytes, not %d", id, least, size).
		WithHint("choose at least %sMiB, or delete files from it first", strconv.FormatUint(least>>20, 10))
}

// GrowFile makes the disk larger under a running VM, whose guest then grows the file
// system. A size that it has is no error. It is durable on return.
// Problems: Invalid volume.size, volume.grow_only; NotFound volume.not_found;
// NoCapacity volume.quota; Unavailable volume.busy.
func (s *Store) GrowFile(ctx context.Context, id string, sizeBytes uint64) error {
	size, err := checkSize(sizeBytes)
	if err != nil {
		return err
	}
	d, done, err := s.hold(ctx, id, exclusive)
	if err != nil {
		return err
	}
	defer done()
	f, err := d.Open(diskImage, os.O_RDWR)
	if err != nil {
		return disk.Problem(d.Path(diskImage), err)
	}
	defer func() { _ = f.Close() }()
	st, err := disk.StatFile(f)
	if err != nil {
		return err
	}
	if size < uint64(st.Size) {
		return problem.New(problem.Invalid, "volume.grow_only", "volume %s has %d bytes: a running VM can only have more, not %d", id, st.Size, size).
			WithHint("stop the VM, then make the volume smaller")
	}
	return s.growFile(f, uint64(st.Size), size)
}

// growFile is one step for the file system, and so needs no copy.
func (s *Store) growFile(f *os.File, has, size uint64) error {
	r, err := s.reserve(size - has)
	if err != nil {
		return err
	}
	defer r.release()
	if err := r.settle(func() error { return f.Truncate(int64(size)) }); err != nil {
		return disk.Problem(f.Name(), err)
	}
	s.at("volume.grow.cut")
	if err := f.Sync(); err != nil {
		return disk.Problem(f.Name(), err)
	}
	return nil
}

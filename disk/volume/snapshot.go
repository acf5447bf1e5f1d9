package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// Snapshot keeps what is on the disk now, under an id that is used once: one that is
// there is left as it is, and no error. Of a disk that a VM writes it keeps what a
// power cut would, if the file system can share extents; else the VM must be paused
// meanwhile. It is durable on return.
// Problems: NotFound volume.not_found; NoCapacity volume.quota; Unavailable disk.full,
// volume.busy.
func (s *Store) Snapshot(ctx context.Context, id, snapshot string, progress disk.Progress) error {
	if err := check("snapshot", snapshot); err != nil {
		return err
	}
	d, done, err := s.hold(ctx, id, shared)
	if err != nil {
		return err
	}
	defer done()
	name := snapshotImage(snapshot)
	switch there, err := d.Open(name, os.O_RDONLY); {
	case err == nil:
		return there.Close()
	case !errors.Is(err, fs.ErrNotExist):
		return disk.Problem(d.Path(name), err)
	}
	from, err := d.Open(diskImage, os.O_RDONLY)
	if err != nil {
		return disk.Problem(d.Path(diskImage), err)
	}
	defer func() { _ = from.Close() }()
	st, err := disk.StatFile(from)
	if err != nil {
		return err
	}
	r, err := s.reserve(usedBytes(st))
	if err != nil {
		return err
	}
	defer r.release()
	err = s.build(d, name, func(f *os.File) error {
		err := disk.Copy(ctx, f, from, progress)
		s.at("volume.snapshot.copied")
		return err
	})
	if err != nil {
		return err
	}
	if err := r.publish(d, name+newSuffix, name, true); err != nil {
		return err
	}
	s.at("volume.snapshot.done")
	return nil
}

// openSnapshot of a volume.
func openSnapshot(id string, d *disk.Dir, snapshot string) (*os.File, error) {
	f, err := d.Open(snapshotImage(snapshot), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, snapshotNotFound(id, snapshot)
	}
	if err != nil {
		return nil, disk.Problem(d.Path(snapshotImage(snapshot)), err)
	}
	return f, nil
}

// Restore brings a disk that no VM has back to a snapshot, with the size that it had
// then. What was written since is gone, and so it is not for repeating once a VM has
// the volume again. It is durable on return.
// Problems: NotFound volume.not_found, volume.snapshot_not_found; Conflict
// volume.in_use; NoCapacity volume.quota; Unavailable disk.full, volume.busy.
func (s *Store) Restore(ctx context.Context, id, snapshot string) error {
	if err := check("snapshot", snapshot); err != nil {
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
	from, err := openSnapshot(id, d, snapshot)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	has, err := disk.StatFile(old)
	if err != nil {
		return err
	}
	had, err := disk.StatFile(from)
	if err != nil {
		return err
	}
	r, err := s.reserve(uint64(max(had.Size, has.Size) - has.Size))
	if err != nil {
		return err
	}
	defer r.release()
	err = s.build(d, diskImage, func(f *os.File) error {
		err := disk.Copy(ctx, f, from, nil)
		s.at("volume.restore.copied")
		return errors.Join(err, keepOwner(f, old))
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
	s.at("volume.restore.done")
	return nil
}

// DeleteSnapshot removes a snapshot, durably; one that is not there is no error.
func (s *Store) DeleteSnapshot(ctx context.Context, id, snapshot string) error {
	if err := check("snapshot", snapshot); err != nil {
		return err
	}
	release, err := s.acquire(ctx, id, exclusive)
	if err != nil {
		return err
	}
	defer release()
	d, err := s.dir.Sub(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return disk.Problem(s.dir.Path(id), err)
	}
	defer func() { _ = d.Close() }()
	if err := s.removeSnapshot(d, snapshot); err != nil {
		return err
	}
	return s.dropEmpty(id)
}

func (s *Store) removeSnapshot(d *disk.Dir, snapshot string) error {
	name := snapshotImage(snapshot)
	if err := errors.Join(d.Remove(name), d.Sync()); err != nil {
		return disk.Problem(d.Path(name), err)
	}
	s.at("volume.delete_snapshot.done")
	return nil
}

// Clone makes the disk of the volume to from a snapshot of id, or from its disk if
// snapshot is empty, which then no VM may have. Its file system gets a UUID of its own,
// so that one VM can have both. One that is there is left as it is, as with [Store.Ensure].
// It is durable on return.
// Problems: Invalid volume.same; NotFound volume.not_found, volume.snapshot_not_found,
// volume.lost; Conflict volume.in_use; NoCapacity volume.quota; Unavailable disk.full,
// volume.busy.
func (s *Store) Clone(ctx context.Context, id, snapshot, to string, progress disk.Progress) (created bool, err error) {
	if snapshot != "" {
		if err := check("snapshot", snapshot); err != nil {
			return false, err
		}
	}
	if id == to {
		return false, problem.New(problem.Invalid, "volume.same", "volume %s cannot be a clone of itself", id).WithHint("give the clone another name")
	}
	release, err := s.acquireBoth(ctx, id, to)
	if err != nil {
		return false, err
	}
	defer release()
	if _, err := s.existing(to); err == nil || !problem.HasCode(err, "volume.not_found") {
		return false, err
	}
	if err := s.untouched(to); err != nil {
		return false, err
	}
	d, err := s.open(id)
	if err != nil {
		return false, err
	}
	defer func() { _ = d.Close() }()
	from, err := s.source(id, d, snapshot)
	if err != nil {
		return false, err
	}
	defer func() { _ = from.Close() }()
	err = s.clone(ctx, from, to, progress)
	return err == nil, err
}

// acquireBoth takes the gates in the order of the ids, or two clones could wait for
// each other.
func (s *Store) acquireBoth(ctx context.Context, from, to string) (release func(), err error) {
	first, second, firstHow, secondHow := from, to, shared, exclusive
	if to < from {
		first, second, firstHow, secondHow = to, from, exclusive, shared
	}
	releaseFirst, err := s.acquire(ctx, first, firstHow)
	if err != nil {
		return nil, err
	}
	releaseSecond, err := s.acquire(ctx, second, secondHow)
	if err != nil {
		releaseFirst()
		return nil, err
	}
	return func() { releaseSecond(); releaseFirst() }, nil
}

// source of a clone or of a move: a snapshot, or the disk at rest.
func (s *Store) source(id string, d *disk.Dir, snapshot string) (*os.File, error) {
	if snapshot != "" {
		return openSnapshot(id, d, snapshot)
	}
	f, err := d.Open(diskImage, os.O_RDWR) // for the question who has it
	if err != nil {
		return nil, disk.Problem(d.Path(diskImage), err)
	}
	if err := atRest(id, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s *Store) clone(ctx context.Context, from *os.File, to string, progress disk.Progress) (err error) {
	st, err := disk.StatFile(from)
	if err != nil {
		return err
	}
	r, err := s.reserve(uint64(st.Size))
	if err != nil {
		return err
	}
	defer r.release()
	d, err := s.mkdir(to)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.Close())
		if err != nil {
			err = errors.Join(err, s.dropEmpty(to))
		}
	}()
	err = s.build(d, diskImage, func(f *os.File) error {
		if err := disk.Copy(ctx, f, from, progress); err != nil {
			return err
		}
		s.at("volume.clone.copied")
		err := s.renew(ctx, to, f)
		s.at("volume.clone.renewed")
		return err
	})
	if err != nil {
		return err
	}
	if err := r.publish(d, diskImage+newSuffix, diskImage, true); err != nil {
		return err
	}
	s.at("volume.clone.done")
	return nil
}

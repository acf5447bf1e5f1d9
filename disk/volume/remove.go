package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// Delete removes a volume with all its files; one that is not there is no error. It
// vanishes in one step, durably; a crash before its room is free is finished by Open.
// Problems: Conflict volume.in_use; Unavailable volume.busy.
func (s *Store) Delete(ctx context.Context, id string) error {
	release, err := s.acquire(ctx, id, exclusive)
	if err != nil {
		return err
	}
	defer release()
	return s.remove(id)
}

// remove wants the gate of id.
func (s *Store) remove(id string) error {
	if err := s.removable(id); err != nil {
		return err
	}
	gone := deletedPrefix + id
	if err := s.root.RemoveAll(gone); err != nil { // what an error left
		return disk.Problem(s.dir.Path(gone), err)
	}
	if err := s.dir.Rename(id, gone); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return disk.Problem(s.dir.Path(id), err)
	}
	if err := s.dir.Sync(); err != nil {
		return disk.Problem(s.dir.Path(id), err)
	}
	s.at("volume.delete.renamed")
	if err := s.root.RemoveAll(gone); err != nil {
		return disk.Problem(s.dir.Path(gone), err)
	}
	s.at("volume.delete.done")
	return nil
}

// removable refuses while a VM has the disk. What is no regular file no VM has.
func (s *Store) removable(id string) error {
	d, err := s.open(id)
	if err != nil {
		return nil //nolint:nilerr // what is no volume is only removed
	}
	defer func() { _ = d.Close() }()
	f, err := d.Open(diskImage, os.O_RDWR)
	if err != nil {
		return nil //nolint:nilerr // the same
	}
	defer func() { _ = f.Close() }()
	return atRest(id, f)
}

// Sweep removes the volumes that keep does not want, and of the others the snapshots
// that keepSnapshot does not want, and tells what it removed, as "id" or "id/snapshot".
// keep is asked while no other step of that volume goes on, and must answer from a
// state that knows all that was begun here; a volume in use, by a VM or by another
// step, is passed over. It goes on after an error.
func (s *Store) Sweep(keep func(id string) bool, keepSnapshot func(id, snapshot string) bool) (removed []string, err error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		more, e := s.sweep(id, keep, keepSnapshot)
		removed, err = append(removed, more...), errors.Join(err, e)
	}
	return removed, err
}

func (s *Store) sweep(id string, keep func(id string) bool, keepSnapshot func(id, snapshot string) bool) (removed []string, err error) {
	release, free := s.try(id)
	if !free {
		return nil, nil
	}
	defer release()
	if !keep(id) {
		err := s.remove(id)
		if problem.HasCode(err, "volume.in_use") {
			s.log.Warn("a VM has a volume that should be gone", "volume", id)
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []string{id}, nil
	}
	d, err := s.dir.Sub(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, disk.Problem(s.dir.Path(id), err)
	}
	defer func() { _ = d.Close() }()
	names, err := d.Names()
	if err != nil {
		return nil, disk.Problem(s.dir.Path(id), err)
	}
	for _, name := range names {
		snapshot, is := snapshotOf(name)
		if !is || keepSnapshot(id, snapshot) {
			continue
		}
		if err := s.removeSnapshot(d, snapshot); err != nil {
			return removed, err
		}
		removed = append(removed, id+"/"+snapshot)
	}
	return removed, nil
}

package volume

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// reserve takes that many bytes of the quota for a step, before it makes anything.
// The caller ends it with publish or release, once. Problem: NoCapacity volume.quota.
func (s *Store) reserve(want uint64) (*reservation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quota > 0 && want > 0 {
		taken, err := s.takenLocked()
		if err != nil {
			return nil, err
		}
		// Subtracting cannot wrap: an over-full store has no room at all.
		if taken > s.quota || want > s.quota-taken {
			return nil, problem.New(problem.NoCapacity, "volume.quota", "the volumes of this node may take %d bytes: %d are taken, %d more are asked for",
				s.quota, taken, want).WithHint("delete volumes or snapshots that are not needed, or raise the node's quota")
		}
	}
	s.reserved += want
	return &reservation{s: s, bytes: want}, nil
}

// reservation is a part of the quota that no file stands for yet.
type reservation struct {
	s     *Store
	bytes uint64
}

// release gives it back.
func (r *reservation) release() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.releaseLocked()
}

func (r *reservation) releaseLocked() {
	r.s.reserved -= r.bytes
	r.bytes = 0
}

// publish makes a finished file visible, durably: from here on it is what the quota
// counts. fresh means that none of that name may be there.
func (r *reservation) publish(d *disk.Dir, tmp, name string, fresh bool) error {
	rename := d.Rename
	if fresh {
		rename = d.RenameNew
	}
	if err := r.settle(func() error { return rename(tmp, name) }); err != nil {
		return errors.Join(disk.Problem(d.Path(name), err), d.Remove(tmp))
	}
	if err := d.Sync(); err != nil {
		return disk.Problem(d.Path(name), err)
	}
	return nil
}

// settle runs the step from which on a file stands for what was reserved.
func (r *reservation) settle(step func() error) error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	err := step()
	if err == nil {
		r.releaseLocked()
	}
	return err
}

// takenLocked is what counts against the quota: the size of each disk and of what is
// on its way here, the room of each snapshot, and what is reserved.
func (s *Store) takenLocked() (uint64, error) {
	taken := s.reserved
	ids, err := s.ids()
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		n, err := s.takenBy(id)
		if err != nil {
			return 0, err
		}
		taken += n
	}
	return taken, nil
}

func (s *Store) takenBy(id string) (uint64, error) {
	d, err := s.dir.Sub(id)
	if errors.Is(err, fs.ErrNotExist) || problem.HasCode(err, "disk.not_directory") {
		return 0, nil // gone, or no volume
	}
	if err != nil {
		return 0, disk.Problem(s.dir.Path(id), err)
	}
	defer func() { _ = d.Close() }()
	names, err := d.Names()
	if err != nil {
		return 0, disk.Problem(d.File().Name(), err)
	}
	taken := uint64(0)
	for _, name := range names {
		_, isSnapshot := snapshotOf(name)
		isIncoming := strings.HasPrefix(name, incomingPrefix) && strings.HasSuffix(name, imageSuffix)
		if name != diskImage && !isSnapshot && !isIncoming {
			continue
		}
		st, err := d.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone
		case err != nil:
			return 0, disk.Problem(d.Path(name), err)
		case isSnapshot:
			taken += usedBytes(st)
		default:
			taken += uint64(st.Size)
		}
	}
	return taken, nil
}

// Taken is what counts against the quota now, in bytes.
func (s *Store) Taken() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takenLocked()
}

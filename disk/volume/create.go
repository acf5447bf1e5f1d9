package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// Ensure makes the disk of a volume, with an empty ext4 file system that fills it, and
// gives its path. A disk that is there is left exactly as it is, whatever its size.
// mustExist says that the volume had been in use before: then nothing is made anew,
// since that would pass off an empty disk for what was lost. The same holds when this
// node has traces of it. It is durable on return.
// Problems: Invalid volume.size, volume.bad_id; NotFound volume.lost; NoCapacity
// volume.quota; Unavailable disk.full, disk.no_mkfs, disk.mkfs, volume.busy.
func (s *Store) Ensure(ctx context.Context, id string, sizeBytes uint64, mustExist bool) (path string, created bool, err error) {
	size, err := checkSize(sizeBytes)
	if err != nil {
		return "", false, err
	}
	for _, how := range []access{shared, exclusive} {
		release, err := s.acquire(ctx, id, how)
		if err != nil {
			return "", false, err
		}
		path, err = s.existing(id)
		if problem.HasCode(err, "volume.not_found") && how == exclusive {
			path, err = s.create(ctx, id, size, mustExist)
			created = err == nil
		}
		release()
		if err == nil || !problem.HasCode(err, "volume.not_found") {
			return path, created, err
		}
	}
	return "", false, notFound(id)
}

// existing checks the disk that is there and gives its path.
func (s *Store) existing(id string) (string, error) {
	d, err := s.open(id)
	if err != nil {
		return "", err
	}
	defer func() { _ = d.Close() }()
	f, err := d.Open(diskImage, os.O_RDONLY)
	if err != nil {
		return "", disk.Problem(d.Path(diskImage), err)
	}
	return f.Name(), f.Close()
}

func (s *Store) create(ctx context.Context, id string, size uint64, mustExist bool) (path string, err error) {
	if mustExist {
		return "", lost(id, "it had been in use")
	}
	if err := s.untouched(id); err != nil {
		return "", err
	}
	r, err := s.reserve(size)
	if err != nil {
		return "", err
	}
	defer r.release()
	d, err := s.mkdir(id)
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, d.Close())
		if err != nil {
			err = errors.Join(err, s.dropEmpty(id))
		}
	}()
	err = s.build(d, diskImage, func(f *os.File) error {
		if err := f.Truncate(int64(size)); err != nil {
			return err
		}
		s.at("volume.ensure.made")
		// A checksum seed of its own lets a clone have another UUID at no cost.
		err := disk.Format(ctx, f, "", "-b", "4096", "-O", "metadata_csum_seed")
		s.at("volume.ensure.formatted")
		return err
	})
	if err != nil {
		return "", err
	}
	if err := r.publish(d, diskImage+newSuffix, diskImage, true); err != nil {
		return "", err
	}
	s.at("volume.ensure.done")
	return d.Path(diskImage), nil
}

func lost(id, why string) error {
	return problem.New(problem.NotFound, "volume.lost", "the disk of volume %s is not on this node: %s", id, why).
		WithHint("bring its files back to this node, or restore a backup; delete the volume if what was on it is not needed")
}

// untouched refuses to make a disk where there are traces of one.
func (s *Store) untouched(id string) error {
	d, err := s.dir.Sub(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return disk.Problem(s.dir.Path(id), err)
	}
	defer func() { _ = d.Close() }()
	names, err := d.Names()
	if err != nil {
		return disk.Problem(s.dir.Path(id), err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, newSuffix) {
			return lost(id, "there is "+d.Path(name)+" without it")
		}
	}
	return nil
}

// mkdir makes the directory of a volume, durably, and opens it.
func (s *Store) mkdir(id string) (*disk.Dir, error) {
	if err := s.dir.Mkdir(id); err != nil {
		return nil, disk.Problem(s.dir.Path(id), err)
	}
	d, err := s.dir.Sub(id)
	if err == nil {
		err = s.dir.Sync()
	}
	if err != nil {
		return nil, disk.Problem(s.dir.Path(id), err)
	}
	return d, nil
}

// build makes a file beside name, to be published, and has it durable. On an error
// nothing is left. Problem: Unavailable volume.busy when another step makes it.
func (s *Store) build(d *disk.Dir, name string, fill func(f *os.File) error) (err error) {
	tmp := name + newSuffix
	f, err := d.Create(tmp)
	if errors.Is(err, fs.ErrExist) {
		return problem.New(problem.Unavailable, "volume.busy", "%s is being made", d.Path(name)).WithHint("try again when it is done")
	}
	if err != nil {
		return disk.Problem(d.Path(tmp), err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(disk.Problem(d.Path(name), err), d.Remove(tmp))
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	return f.Sync()
}

// Attach allows the placement of that epoch to use a volume, as [disk.Attach] does:
// an older one than the newest seen is refused, and the newest is durable on return.
// It waits while the disk is replaced, so that nobody opens one that is about to go.
// Problems: Fenced disk.fenced, disk.epoch_damaged; NotFound volume.not_found;
// Unavailable volume.busy.
func (s *Store) Attach(ctx context.Context, id string, epoch uint64) error {
	d, done, err := s.hold(ctx, id, shared)
	if err != nil {
		return err
	}
	defer done()
	s.epochMu.Lock()
	defer s.epochMu.Unlock()
	if err := disk.Attach(d, epoch); err != nil {
		return err
	}
	s.at("volume.attach.done")
	return nil
}

// File opens the disk of a volume for who attaches it: the file that is handed over is
// regular, whatever is at its path meanwhile. flag is os.O_RDONLY or os.O_RDWR.
// Problems: NotFound volume.not_found, Internal disk.not_regular.
func (s *Store) File(ctx context.Context, id string, flag int) (*os.File, error) {
	d, done, err := s.hold(ctx, id, shared)
	if err != nil {
		return nil, err
	}
	defer done()
	f, err := d.Open(diskImage, flag)
	if err != nil {
		return nil, disk.Problem(d.Path(diskImage), err)
	}
	return f, nil
}

// keepOwner gives a file that takes the place of old the same owner and mode: a VM's
// process may have rights of its own to its disk.
func keepOwner(f, old *os.File) error {
	st, err := disk.StatFile(old)
	if err != nil {
		return err
	}
	return errors.Join(f.Chown(int(st.Uid), int(st.Gid)), f.Chmod(fs.FileMode(st.Mode&0o777)))
}

// atRest refuses a step on a disk that a hypervisor has open: QEMU holds locks on it
// (fcntl(2), F_OFD_SETLK). f is open for writing.
func atRest(id string, f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	if l.Type != unix.F_UNLCK {
		return problem.New(problem.Conflict, "volume.in_use", "a VM has the disk of volume %s open", id).
			WithHint("stop the VM first")
	}
	return nil
}

// List tells of all volumes that have a disk, by id in no order.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, id := range ids {
		info, err := s.Stat(ctx, id)
		if problem.HasCode(err, "volume.not_found") {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	return out, nil
}

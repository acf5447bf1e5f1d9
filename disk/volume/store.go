package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of a volume, in bytes. A size is rounded down to whole blocks of 4 KiB.
const (
	MinBytes = disk.MinRootBytes
	MaxBytes = disk.MaxRootBytes
)

// fsBlockBytes is the block of the file systems made here, whatever their size, since
// a small volume may grow large.
const fsBlockBytes = 4 << 10

// DiskFile is the name of a volume's disk among its files.
const DiskFile = "disk"

// Names in the directory of the store and of a volume.
const (
	imageSuffix    = ".img"
	snapshotPrefix = "snap-"
	newSuffix      = ".new"
	incomingPrefix = "in-"
	markSuffix     = ".mark"
	deletedPrefix  = ".deleted-"
	diskImage      = DiskFile + imageSuffix
)

// idPattern is what an id must be to become the name of a file.
var idPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Config of a store.
type Config struct {
	// Dir holds the volumes. It is made, with mode 0700, and belongs to one Store.
	Dir string
	// QuotaBytes bounds what the volumes of this node may ever take: the sizes of the
	// disks, and what the snapshots take. 0 is no bound.
	QuotaBytes uint64
	// Logger may be nil.
	Logger *slog.Logger
}

// Store keeps the files of this node's volumes. It is safe for concurrent use: steps
// that change a volume wait for each other, and for those that read it, as long as
// their context allows.
type Store struct {
	dir   *disk.Dir
	quota uint64
	log   *slog.Logger
	// hook of the tests is called at each failpoint.
	hook func(point string)
	// lent holds a descriptor of the root for the removal of what is no file.
	root *os.Root

	mu    sync.Mutex
	gates map[string]*gate
	// reserved bytes of steps that have not shown their file yet.
	reserved uint64
	// receiving names the incoming files that a receiver has, as "<id>/<file>".
	receiving map[string]bool
	// epochMu keeps the writers of epochs apart.
	epochMu sync.Mutex
}

// Open takes a directory of volumes and removes what a crash left of unfinished steps.
// Problems: Conflict volume.store_busy when another Store has the directory.
func Open(cfg Config) (_ *Store, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, disk.Problem(cfg.Dir, err)
	}
	dir, err := disk.OpenDir(cfg.Dir)
	if err != nil {
		return nil, disk.Problem(cfg.Dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.Close())
		}
	}()
	if err := lock(dir); err != nil {
		return nil, err
	}
	if err := dir.File().Chmod(0o700); err != nil {
		return nil, disk.Problem(cfg.Dir, err)
	}
	// The same directory, whatever is at its path by now.
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(dir.File().Fd())))
	if err != nil {
		return nil, disk.Problem(cfg.Dir, err)
	}
	s := &Store{dir: dir, root: root, quota: cfg.QuotaBytes, log: cfg.Logger, gates: map[string]*gate{}, receiving: map[string]bool{}}
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return s, nil
}

// Close lets the directory go. No other call may be under way, and no incoming file.
func (s *Store) Close() error {
	// Not only by closing: a program that is being started has all files for a moment.
	err := unix.Flock(int(s.dir.File().Fd()), unix.LOCK_UN)
	return errors.Join(err, s.root.Close(), s.dir.Close())
}

// lockWait is how long a process that was killed may hold its lock: what it was just
// starting has its files until then.
const lockWait = time.Second

// lock takes the directory for this Store, until it is closed.
func lock(dir *disk.Dir) error {
	for deadline := time.After(lockWait); ; {
		err := unix.Flock(int(dir.File().Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("volume: lock %s: %w", dir.File().Name(), err)
		}
		select {
		case <-time.After(lockWait / 50):
		case <-deadline:
			return problem.New(problem.Conflict, "volume.store_busy", "another process has the volumes in %s", dir.File().Name()).
				WithHint("only one blixard may use that directory: stop the other one")
		}
	}
}

// at marks a point where a test may end the process.
func (s *Store) at(point string) {
	failpoint.Hit(point)
	if s.hook != nil {
		s.hook(point)
	}
}

// recover removes unfinished steps. What it does not know it leaves alone.
func (s *Store) recover() error {
	names, err := s.dir.Names()
	if err != nil {
		return disk.Problem(s.dir.File().Name(), err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, deletedPrefix) {
			if err := s.root.RemoveAll(name); err != nil {
				return disk.Problem(s.dir.Path(name), err)
			}
			continue
		}
		if !idPattern.MatchString(name) {
			s.log.Warn("this is no volume", "path", s.dir.Path(name))
			continue
		}
		d, err := s.dir.Sub(name)
		if problem.HasCode(err, "disk.not_directory") {
			s.log.Warn("this is no volume", "path", s.dir.Path(name))
			continue
		}
		if err != nil {
			return disk.Problem(s.dir.Path(name), err)
		}
		err = errors.Join(s.recoverVolume(d), d.Close())
		if err != nil {
			return disk.Problem(s.dir.Path(name), err)
		}
		if err := s.dropEmpty(name); err != nil {
			return err
		}
	}
	return s.dir.Sync()
}

func (s *Store) recoverVolume(d *disk.Dir) error {
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		rest, isIncoming := strings.CutPrefix(name, incomingPrefix)
		image, isImage := strings.CutSuffix(rest, imageSuffix)
		marked, isMark := strings.CutSuffix(rest, markSuffix)
		worthless := strings.HasSuffix(name, newSuffix) ||
			// An incoming file and its mark are of worth only together.
			isIncoming && isImage && !slices.Contains(names, incomingMark(image)) ||
			isIncoming && isMark && !slices.Contains(names, incomingImage(marked))
		if !worthless {
			continue
		}
		if err := d.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// dropEmpty removes the directory of a volume that has no files.
func (s *Store) dropEmpty(id string) error {
	err := s.dir.Remove(id)
	if errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return disk.Problem(s.dir.Path(id), err)
}

// check refuses what may not name a file.
func check(what, id string) error {
	if !idPattern.MatchString(id) {
		return problem.New(problem.Invalid, "volume.bad_id", "%s id %.80q is not usable as a name", what, id).
			WithHint("ids have lower-case letters, digits and dashes, at most 63")
	}
	return nil
}

// checkSize gives a size in whole blocks.
func checkSize(size uint64) (uint64, error) {
	if size < MinBytes || size > MaxBytes {
		return 0, problem.New(problem.Invalid, "volume.size", "a volume has from %d MiB to %d TiB, not %d bytes",
			uint64(MinBytes)>>20, uint64(MaxBytes)>>40, size).WithHint("choose a size within these bounds")
	}
	return size &^ (fsBlockBytes - 1), nil
}

func notFound(id string) error {
	return problem.New(problem.NotFound, "volume.not_found", "no files of volume %s on this node", id).
		WithHint("see on which node it is: `blixard volume show`")
}

func snapshotNotFound(id, snapshot string) error {
	return problem.New(problem.NotFound, "volume.snapshot_not_found", "volume %s has no file of snapshot %s on this node", id, snapshot).
		WithHint("see which snapshots it has: `blixard volume show`")
}

// open gives the directory of a volume that has a disk.
func (s *Store) open(id string) (*disk.Dir, error) {
	d, err := s.dir.Sub(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, disk.Problem(s.dir.Path(id), err)
	}
	if _, err := d.Stat(diskImage); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(notFound(id), d.Close())
	} else if err != nil {
		return nil, errors.Join(disk.Problem(d.Path(diskImage), err), d.Close())
	}
	return d, nil
}

// Info of a volume's files. Sizes are in bytes.
type Info struct {
	ID string
	// SizeBytes of the disk, UsedBytes of it that take room. Where the file system
	// shares extents, what is shared counts for each that has it.
	SizeBytes, UsedBytes uint64
	// ModTime is when the disk was last written.
	ModTime time.Time
	// Device and Inode say which file the disk is now.
	Device, Inode uint64
	// Epoch is the newest that used it.
	Epoch     uint64
	Snapshots []SnapshotInfo
}

// SnapshotInfo is of a snapshot's file.
type SnapshotInfo struct {
	ID                   string
	SizeBytes, UsedBytes uint64
	ModTime              time.Time
}

// Stat tells of a volume. Problems: NotFound volume.not_found, Internal
// disk.not_regular, Fenced disk.epoch_damaged.
func (s *Store) Stat(ctx context.Context, id string) (Info, error) {
	d, done, err := s.hold(ctx, id, shared)
	if err != nil {
		return Info{}, err
	}
	defer done()
	return stat(id, d)
}

func stat(id string, d *disk.Dir) (Info, error) {
	info := Info{ID: id}
	names, err := d.Names()
	if err != nil {
		return info, disk.Problem(d.File().Name(), err)
	}
	for _, name := range names {
		snapshot, isSnapshot := snapshotOf(name)
		if name != diskImage && !isSnapshot {
			continue
		}
		st, err := d.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return info, disk.Problem(d.Path(name), err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return info, problem.New(problem.Internal, "disk.not_regular", "%s is not a regular file", d.Path(name)).
				WithHint("a link or a device was put there by somebody else: find out who, then remove it")
		}
		size, used, at := uint64(st.Size), usedBytes(st), time.Unix(st.Mtim.Unix())
		if isSnapshot {
			info.Snapshots = append(info.Snapshots, SnapshotInfo{ID: snapshot, SizeBytes: size, UsedBytes: used, ModTime: at})
			continue
		}
		info.SizeBytes, info.UsedBytes, info.ModTime = size, used, at
		info.Device, info.Inode = st.Dev, st.Ino
	}
	info.Epoch, err = disk.Epoch(d)
	return info, err
}

// usedBytes by st_blocks, whose unit is always 512.
func usedBytes(st unix.Stat_t) uint64 { return uint64(st.Blocks) * 512 }

// snapshotOf gives the id of the snapshot whose file has that name.
func snapshotOf(name string) (string, bool) {
	id, isSnapshot := strings.CutPrefix(name, snapshotPrefix)
	id, isImage := strings.CutSuffix(id, imageSuffix)
	return id, isSnapshot && isImage && idPattern.MatchString(id)
}

func snapshotImage(id string) string { return snapshotPrefix + id + imageSuffix }

// ids of the directories that may be volumes.
func (s *Store) ids() ([]string, error) {
	names, err := s.dir.Names()
	if err != nil {
		return nil, disk.Problem(s.dir.File().Name(), err)
	}
	var ids []string
	for _, name := range names {
		if idPattern.MatchString(name) {
			ids = append(ids, name)
		}
	}
	return ids, nil
}

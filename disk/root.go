package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// Bounds of a root disk, in bytes.
const (
	MinRootBytes = 16 << 20
	MaxRootBytes = 16 << 40
)

// Limits of the templates.
const (
	// templatesMax are kept, the newest used: each takes some 100 KiB to a few MiB
	// of disk, since it is sparse.
	templatesMax = 16
	// mkfsTimeout bounds the making of a file system; 16 TiB take a few seconds.
	mkfsTimeout = time.Minute
	// mkfsOutputMax of the program's words is quoted.
	mkfsOutputMax = 1 << 10
)

// Roots makes writable root disks from templates that it keeps in a directory of
// its own. It is safe for concurrent use by one process.
type Roots struct {
	dir string
	// mkfs is the program, found in PATH and where Debian has it.
	mkfs func() (string, error)

	mu sync.Mutex
	// making holds a lock for each template.
	making map[string]*sync.Mutex
}

// NewRoots keeps its templates in dir, which is made when needed.
func NewRoots(dir string) *Roots {
	return &Roots{dir: dir, mkfs: findMkfs, making: map[string]*sync.Mutex{}}
}

func findMkfs() (string, error) {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", problem.New(problem.Unavailable, "disk.no_mkfs", "the program mkfs.ext4 is missing").
		WithHint("install it: apt-get install e2fsprogs")
}

// CreateRoot makes a sparse file of that many bytes with an empty ext4 file
// system. The file must not exist. On an error nothing is left behind. Problems:
// Invalid for a size out of bounds, Unavailable disk.full when there is no space.
func (r *Roots) CreateRoot(ctx context.Context, path string, size uint64) error {
	if size < MinRootBytes || size > MaxRootBytes {
		return problem.New(problem.Invalid, "disk.size", "a root disk has from %d MiB to %d TiB, not %d bytes",
			MinRootBytes>>20, uint64(MaxRootBytes)>>40, size).WithHint("choose a size within these bounds")
	}
	size = size &^ 4095 // whole blocks
	template, err := r.template(ctx, size)
	if err != nil {
		return err
	}
	if err := clone(template, path); err != nil {
		return diskError(path, err)
	}
	return nil
}

// template gives the file of that size, making it when it is missing.
func (r *Roots) template(ctx context.Context, size uint64) (string, error) {
	name := "ext4-" + strconv.FormatUint(size, 10) + ".img"
	path := filepath.Join(r.dir, name)
	r.mu.Lock()
	lock := r.making[name]
	if lock == nil {
		lock = &sync.Mutex{}
		r.making[name] = lock
	}
	r.mu.Unlock()
	lock.Lock()
	defer lock.Unlock()
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && uint64(st.Size()) == size {
		now := time.Now()
		_ = os.Chtimes(path, now, now) // for the choice of what is kept; a failure costs only speed
		return path, nil
	}
	if err := r.make(ctx, path, size); err != nil {
		return "", err
	}
	r.prune(name)
	return path, nil
}

func (r *Roots) make(ctx context.Context, path string, size uint64) (err error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return diskError(r.dir, err)
	}
	mkfs, err := r.mkfs()
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return diskError(tmp, err)
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	if err := f.Truncate(int64(size)); err != nil {
		return diskError(tmp, err)
	}
	ctx, cancel := context.WithTimeout(ctx, mkfsTimeout)
	defer cancel()
	// Lazy tables and journal leave the file sparse; the root's own blocks are not
	// reserved, since root is all there is in the guest.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-L", "root",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1", tmp)
	if size < smallDisk {
		// 1 KiB blocks and a small journal, or nothing would be left for files.
		cmd.Args = slices.Insert(cmd.Args, 2, "-J", "size=4")
	}
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		words := strings.TrimSpace(string(out.Bytes()[:min(out.Len(), mkfsOutputMax)]))
		if strings.Contains(words, "No space left") {
			return diskError(tmp, unix.ENOSPC)
		}
		return problem.New(problem.Unavailable, "disk.mkfs", "mkfs.ext4 failed: %s", words).WithCause(err).
			WithHint("see whether the disk of %s has room and is writable", r.dir)
	}
	if err := f.Sync(); err != nil {
		return diskError(tmp, err)
	}
	return os.Rename(tmp, path)
}

// smallDisk is below what mkfs.ext4 gives a journal of its own size.
const smallDisk = 128 << 20

// prune removes the templates that were not used for longest, but never keep.
func (r *Roots) prune(keep string) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return
	}
	type file struct {
		name string
		used time.Time
	}
	var files []file
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || e.Name() == keep || !strings.HasSuffix(e.Name(), ".img") {
			continue
		}
		files = append(files, file{e.Name(), st.ModTime()})
	}
	slices.SortFunc(files, func(a, b file) int { return b.used.Compare(a.used) })
	for k, f := range files {
		if k >= templatesMax-1 {
			_ = os.Remove(filepath.Join(r.dir, f.name)) // an open one is still cloned to its end
		}
	}
}

// clone copies from to a new file to: by reference where the file system can,
// else only the parts that hold data. On an error nothing is left.
func clone(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, dst.Close())
		if err != nil {
			_ = os.Remove(to)
		}
	}()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	return copyData(dst, src, st.Size())
}

// copyData copies the extents that hold data (lseek(2), SEEK_DATA).
func copyData(dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, begin), io.NewSectionReader(src, begin, end-begin)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// diskError makes a full disk a problem with a way out.
func diskError(path string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return problem.New(problem.Unavailable, "disk.full", "no space for %s", path).WithCause(err).
			WithHint("make room on that disk, or delete VMs that are not needed")
	}
	if errors.Is(err, fs.ErrExist) {
		return problem.New(problem.Conflict, "disk.exists", "%s exists already", path).WithHint("remove it first")
	}
	return fmt.Errorf("disk %s: %w", path, err)
}

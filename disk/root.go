package disk

import (
	"context"
	"errors"
	"fmt"
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
	if err := clone(ctx, template, path); err != nil {
		return Problem(path, err)
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
		return Problem(r.dir, err)
	}
	mkfs, err := r.mkfs()
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return Problem(tmp, err)
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	if err := f.Truncate(int64(size)); err != nil {
		return Problem(tmp, err)
	}
	if err := format(ctx, mkfs, f, "root"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return Problem(tmp, err)
	}
	return os.Rename(tmp, path)
}

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

// clone copies from to a new file to. On an error nothing is left.
func clone(ctx context.Context, from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
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
	return Copy(ctx, dst, src, nil)
}

// Problem makes a full disk a problem with a way out: Unavailable disk.full. What is
// a problem already, or the end of a context, or no error, stays one.
func Problem(path string, err error) error {
	var known *problem.Error
	if err == nil || errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return full(path).WithCause(err)
	}
	if errors.Is(err, unix.EFBIG) {
		return problem.New(problem.Invalid, "disk.too_large", "the file system of %s holds no file as large", path).WithCause(err).
			WithHint("choose a smaller size")
	}
	if errors.Is(err, fs.ErrExist) {
		return problem.New(problem.Conflict, "disk.exists", "%s exists already", path).WithHint("remove it first")
	}
	return fmt.Errorf("disk %s: %w", path, err)
}

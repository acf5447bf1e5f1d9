package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// Dir is an open directory whose entries are reached by one name each, below its
// descriptor and never through a link: who swaps a path for a symlink moves nothing.
// It is safe for concurrent use; Close it once.
type Dir struct {
	f *os.File
}

// OpenDir opens a directory by its path, which is trusted but for its last part:
// that must not be a link.
func OpenDir(path string) (*Dir, error) {
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Dir{f: os.NewFile(uintptr(fd), path)}, nil
}

// Close lets the directory go.
func (d *Dir) Close() error { return d.f.Close() }

// File is the directory itself, for locks and modes; it stays d's.
func (d *Dir) File() *os.File { return d.f }

// Path of an entry, for messages and programs that want one.
func (d *Dir) Path(name string) string { return filepath.Join(d.f.Name(), name) }

// one refuses what is more than a name of an entry.
func one(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, filepath.Separator) {
		return fmt.Errorf("%q is not the name of an entry: %w", name, fs.ErrInvalid)
	}
	return nil
}

func (d *Dir) pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: d.Path(name), Err: err}
}

// Sub opens a directory in d. What is none, or a link to one, is a problem of code
// disk.not_directory.
func (d *Dir) Sub(name string) (*Dir, error) {
	if err := one(name); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(d.f.Fd()), name, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, problem.New(problem.Internal, "disk.not_directory", "%s is not a directory", d.Path(name)).WithCause(err).
			WithHint("a link or a file was put there by somebody else: find out who, then remove it")
	}
	if err != nil {
		return nil, d.pathError("open", name, err)
	}
	return &Dir{f: os.NewFile(uintptr(fd), d.Path(name))}, nil
}

// Mkdir makes a directory of mode 0700; one that is there is no error.
func (d *Dir) Mkdir(name string) error {
	if err := one(name); err != nil {
		return err
	}
	err := unix.Mkdirat(int(d.f.Fd()), name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return d.pathError("mkdir", name, err)
}

// Create makes a file of mode 0600 that must not be there.
func (d *Dir) Create(name string) (*os.File, error) {
	return d.open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
}

// Open opens a regular file that has no other name; a link, a device or a second
// name of a file is a problem of code disk.not_regular. flag is os.O_RDONLY or
// os.O_RDWR.
func (d *Dir) Open(name string, flag int) (*os.File, error) {
	// Without O_NONBLOCK the opening of a pipe would wait for its other end.
	f, err := d.open(name, flag|unix.O_NONBLOCK)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) {
		return nil, notRegular(d.Path(name))
	}
	if err != nil {
		return nil, err
	}
	st, err := StatFile(f)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 1) {
		err = notRegular(d.Path(name))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func notRegular(path string) error {
	return problem.New(problem.Internal, "disk.not_regular", "%s is not a regular file of its own", path).
		WithHint("a link or a device was put there by somebody else: find out who, then remove it")
}

func (d *Dir) open(name string, flag int) (*os.File, error) {
	if err := one(name); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(d.f.Fd()), name, flag|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, d.pathError("open", name, err)
	}
	return os.NewFile(uintptr(fd), d.Path(name)), nil
}

// Stat tells of an entry itself, never of what it links to.
func (d *Dir) Stat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := one(name); err != nil {
		return st, err
	}
	err := unix.Fstatat(int(d.f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, d.pathError("stat", name, err)
}

// Rename gives an entry another name in d, in place of what has it.
func (d *Dir) Rename(from, to string) error { return d.rename(from, to, 0) }

// RenameNew is Rename that fails when the name is taken.
func (d *Dir) RenameNew(from, to string) error { return d.rename(from, to, unix.RENAME_NOREPLACE) }

func (d *Dir) rename(from, to string, flags uint) error {
	if err := errors.Join(one(from), one(to)); err != nil {
		return err
	}
	fd := int(d.f.Fd())
	return d.pathError("rename", to, unix.Renameat2(fd, from, fd, to, flags))
}

// Remove removes a file, or an empty directory. One that is gone is no error.
func (d *Dir) Remove(name string) error {
	if err := one(name); err != nil {
		return err
	}
	err := unix.Unlinkat(int(d.f.Fd()), name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(int(d.f.Fd()), name, unix.AT_REMOVEDIR)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return d.pathError("remove", name, err)
}

// Names lists the entries, in no order.
func (d *Dir) Names() ([]string, error) {
	// A descriptor of its own: two readers of one would each see half.
	fd, err := unix.Openat(int(d.f.Fd()), ".", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, d.pathError("read", ".", err)
	}
	f := os.NewFile(uintptr(fd), d.f.Name())
	defer func() { _ = f.Close() }()
	return f.Readdirnames(-1)
}

// Sync makes the names in d durable.
func (d *Dir) Sync() error { return d.f.Sync() }

// WriteFile puts a small file in place of what has the name, durable when it
// returns. Calls for one name must not overlap.
func (d *Dir) WriteFile(name string, b []byte) (err error) {
	tmp := name + ".new"
	if err := d.Remove(tmp); err != nil { // what a crash left
		return err
	}
	f, err := d.Create(tmp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Remove(tmp))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := d.Rename(tmp, name); err != nil {
		return err
	}
	return d.Sync()
}

// ReadFile reads at most that many bytes of a small file.
func (d *Dir) ReadFile(name string, bytesMax int64) ([]byte, error) {
	f, err := d.Open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, bytesMax))
}

// StatFile is fstat(2).
func StatFile(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st, nil
}

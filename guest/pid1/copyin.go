//go:build linux

package pid1

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// copyBuffer is one read of an archive's file; one that is all zeros becomes a hole.
	copyBuffer = 32 << 10
	// dirTimesMax bounds the directories whose time of change is set at the end, when nothing more is made in
	// them: 16,384 names of some 50 bytes are 1 MiB.
	dirTimesMax = 16_384
	// xattrPrefix begins the archive's records of extended attributes.
	xattrPrefix = "SCHILY.xattr."
)

// unpacker makes the files of an archive below a directory. What the archive names is looked up with that
// directory as the root, so no symbolic link leads out of it, be it the archive's or one that was there.
type unpacker struct {
	root  int
	buf   []byte
	zeros []byte
	dirs  []dirTime

	// parent is the directory of the newest entry, called parentName: archives go through them in order.
	parent     int
	parentName string
}

type dirTime struct {
	name  string
	mtime time.Time
}

// unpack makes the files of a tar archive below dir, which is made when it is missing. It reads r to its end.
func unpack(dir string, r io.Reader) error {
	if dir != "/" {
		if err := checkPath(dir); err != nil {
			return err
		}
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	root, err := openDir(dir)
	if err != nil {
		return err
	}
	u := &unpacker{root: root, parent: -1, buf: make([]byte, copyBuffer), zeros: make([]byte, copyBuffer)}
	defer u.close()
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		name, err := entryName(h.Name)
		if err == nil {
			err = u.entry(name, h, archive)
		}
		if err != nil {
			return fmt.Errorf("%.256s: %w", h.Name, err)
		}
	}
	for _, d := range u.dirs {
		if parent, err := u.open(path.Dir(d.name)); err == nil {
			_ = setTime(parent, path.Base(d.name), d.mtime)
			_ = unix.Close(parent)
		}
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

func (u *unpacker) close() {
	if u.parent >= 0 {
		_ = unix.Close(u.parent)
	}
	_ = unix.Close(u.root)
}

// entryName is an entry's path below the directory, "." for that itself.
func entryName(name string) (string, error) {
	if len(name) > wire.MaxPath {
		return "", unix.ENAMETOOLONG
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New("the path leads out of the archive")
		}
	}
	return path.Clean(strings.TrimLeft(name, "/") + "/."), nil
}

// open opens a directory below the root, and makes it if it is missing.
func (u *unpacker) open(name string) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(u.root, name, how)
	if err != unix.ENOENT || name == "." {
		return fd, err
	}
	parent, err := u.open(path.Dir(name))
	if err != nil {
		return -1, err
	}
	err = unix.Mkdirat(parent, path.Base(name), 0o755)
	_ = unix.Close(parent)
	if err != nil && err != unix.EEXIST {
		return -1, err
	}
	return unix.Openat2(u.root, name, how)
}

// entry makes one file.
func (u *unpacker) entry(name string, h *tar.Header, content io.Reader) error {
	if name == "." {
		return nil // the directory that was named keeps what it has
	}
	if dir := path.Dir(name); u.parent < 0 || u.parentName != dir {
		fd, err := u.open(dir)
		if err != nil {
			return err
		}
		if u.parent >= 0 {
			_ = unix.Close(u.parent)
		}
		u.parent, u.parentName = fd, dir
	}
	base, mode := path.Base(name), uint32(h.Mode&0o7777)
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.regular(base, h, content)
	case tar.TypeDir:
		return u.directory(name, base, h)
	case tar.TypeLink:
		return u.link(name, base, h.Linkname)
	case tar.TypeSymlink:
		return u.node(base, h, func() error { return unix.Symlinkat(h.Linkname, u.parent, base) })
	case tar.TypeFifo:
		return u.node(base, h, func() error { return unix.Mknodat(u.parent, base, unix.S_IFIFO|mode, 0) })
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		return u.node(base, h, func() error { return unix.Mknodat(u.parent, base, kind|mode, int(dev)) })
	}
	return fmt.Errorf("an entry of type %q can't be made", h.Typeflag)
}

// replace calls make once more without what is in its way, unless that is a directory.
func (u *unpacker) replace(base string, make func() error) error {
	err := make()
	if err != unix.EEXIST {
		return err
	}
	if err := unix.Unlinkat(u.parent, base, 0); err != nil && err != unix.ENOENT {
		return err
	}
	return make()
}

// node makes a file without content.
func (u *unpacker) node(base string, h *tar.Header, make func() error) error {
	if err := u.replace(base, make); err != nil {
		return err
	}
	if err := unix.Fchownat(u.parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink { // takes the process's umask from the mode
		if err := unix.Fchmodat(u.parent, base, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
	}
	return setTime(u.parent, base, h.ModTime)
}

func setTime(dir int, base string, t time.Time) error {
	ts := []unix.Timespec{unix.NsecToTimespec(t.UnixNano()), unix.NsecToTimespec(t.UnixNano())}
	return unix.UtimesNanoAt(dir, base, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// link makes a further name of a file of the archive.
func (u *unpacker) link(name, base, target string) error {
	of, err := entryName(target)
	if err != nil {
		return err
	}
	if of == name {
		return errors.New("a link to itself")
	}
	dir, err := u.open(path.Dir(of))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return u.replace(base, func() error { return unix.Linkat(dir, path.Base(of), u.parent, base, 0) })
}

// directory makes one, or takes one that is there, also by way of a symbolic link.
func (u *unpacker) directory(name, base string, h *tar.Header) error {
	err := unix.Mkdirat(u.parent, base, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(u.parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if fd, err := u.open(name); err == nil {
				return unix.Close(fd)
			}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = u.replace(base, func() error { return unix.Mkdirat(u.parent, base, 0o700) })
		} else {
			err = nil
		}
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := unix.Fchownat(u.parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if len(u.dirs) < dirTimesMax {
		u.dirs = append(u.dirs, dirTime{name, h.ModTime})
	}
	return unix.Fchmodat(u.parent, base, uint32(h.Mode&0o7777), 0)
}

// regular makes a file with content; one that can't be made whole is removed.
func (u *unpacker) regular(base string, h *tar.Header, content io.Reader) error {
	fd := -1
	err := u.replace(base, func() (err error) {
		fd, err = unix.Openat(u.parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = u.writeContent(fd, content)
	if err == nil {
		err = finishFile(fd, h)
	}
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	if err == nil {
		err = setTime(u.parent, base, h.ModTime)
	}
	if err != nil {
		_ = unix.Unlinkat(u.parent, base, 0)
	}
	return err
}

func finishFile(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	for record, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(record, xattrPrefix); ok {
			if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && err != unix.ENOTSUP {
				return fmt.Errorf("attribute %.64s: %w", name, err)
			}
		}
	}
	return nil
}

// writeContent writes a file's bytes and leaves holes where they are zero for long.
func (u *unpacker) writeContent(fd int, content io.Reader) error {
	size := int64(0)
	for {
		n, err := wire.Fill(content, u.buf)
		if n < len(u.buf) || string(u.buf) != string(u.zeros) {
			for b := u.buf[:n]; len(b) > 0; {
				done, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(fd, b, size+int64(n-len(b))) })
				if err != nil {
					return os.NewSyscallError("write", err)
				}
				b = b[done:]
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return os.NewSyscallError("truncate", unix.Ftruncate(fd, size))
}

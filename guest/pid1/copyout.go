//go:build linux

package pid1

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// linksMax bounds the files with several names that are remembered; further ones are packed once a name.
	linksMax = 65_536
	// xattrBytes bounds the attributes' names and each value: the kernel's own limit of a list.
	xattrBytes = 64 << 10
)

// kernelFiles are file systems of which only the mount point is packed: their files are the kernel's views of
// itself, and some have no end.
var kernelFiles = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true,
	unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true,
}

// errShrank is of a file that became shorter after its size had been told.
var errShrank = errors.New("the file became shorter while it was read")

// packer writes files into an archive.
type packer struct {
	w     *tar.Writer
	links map[inode]string
	buf   []byte
}

type inode struct{ dev, ino uint64 }

// checkSource refuses a path that can't be packed, before anything was sent.
func checkSource(name string) error {
	if name != "/" {
		if err := checkPath(name); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return &os.PathError{Op: "copy", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return &os.PathError{Op: "copy", Path: name, Err: errors.New("a socket has no content")}
	}
	return nil
}

// pack writes a file, or a directory with all that is in it, as a tar archive whose first entry is its base
// name. Symbolic links are packed as such.
func pack(name string, w io.Writer) error {
	p := &packer{w: tar.NewWriter(w), links: map[inode]string{}, buf: make([]byte, copyBuffer)}
	parent, err := openDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base, as := path.Base(name), path.Base(name)
	if name == "/" {
		base, as = ".", "."
	}
	if err := p.file(parent, base, as, 0); err != nil {
		return err
	}
	return p.w.Close()
}

// file packs what is called base in a directory, under the name as. dev is the directory's device, zero at the
// top.
func (p *packer) file(dir int, base, as string, dev uint64) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return p.problem(as, dev, err)
	}
	h := header(as, &st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p.directory(dir, base, h, &st, dev)
	case unix.S_IFREG:
		return p.regular(dir, base, h, dev)
	case unix.S_IFLNK:
		buf := make([]byte, wire.MaxPath)
		n, err := unix.Readlinkat(dir, base, buf)
		if err != nil {
			return p.problem(as, dev, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(buf[:n])
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil // a socket is only its process's
	}
	return p.write(h)
}

// problem names the file of an error. What vanished below the top while it was packed is none.
func (p *packer) problem(as string, dev uint64, err error) error {
	if dev != 0 && err == unix.ENOENT {
		return nil
	}
	return fmt.Errorf("%s: %w", as, err)
}

func (p *packer) write(h *tar.Header) error {
	if err := p.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// header describes a file. Times are whole seconds, which every form of archive holds without an extension.
func header(as string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Name: as, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Sec, 0),
	}
}

func (p *packer) directory(dir int, base string, h *tar.Header, st *unix.Stat_t, dev uint64) error {
	as := h.Name
	h.Typeflag, h.Name = tar.TypeDir, as+"/"
	if err := p.write(h); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return p.problem(as, dev, err)
	}
	f := os.NewFile(uintptr(fd), as)
	defer f.Close()
	if st.Dev != dev {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil || kernelFiles[fs.Type] {
			return err
		}
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		below := as + "/" + name
		if as == "." {
			below = name
		}
		if err := p.file(fd, name, below, st.Dev); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) regular(dir int, base string, h *tar.Header, dev uint64) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return p.problem(h.Name, dev, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return p.problem(h.Name, dev, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG { // it was changed for another in between
		return nil
	}
	h = header(h.Name, &st)
	h.Typeflag = tar.TypeReg
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if other, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, other
			return p.write(h)
		}
		if len(p.links) < linksMax {
			p.links[id] = h.Name
		}
	}
	h.Size, h.PAXRecords = st.Size, attributes(fd)
	if err := p.write(h); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
		b := p.buf[:min(left, int64(len(p.buf)))]
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, b) })
		if err == nil && n == 0 {
			err = errShrank
		}
		if err == nil {
			_, err = p.w.Write(b[:n])
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		left -= int64(n)
	}
	return nil
}

// attributes reads the capabilities and user attributes of a file, as an archive has them.
func attributes(fd int) map[string]string {
	size, err := unix.Flistxattr(fd, nil)
	if err != nil || size <= 0 || size > xattrBytes {
		return nil
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(fd, list); err != nil {
		return nil
	}
	var records map[string]string
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") || strings.Contains(name, "=") {
			continue
		}
		value := make([]byte, xattrBytes)
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			continue
		}
		if records == nil {
			records = map[string]string{}
		}
		records[xattrPrefix+name] = string(value[:n])
	}
	return records
}

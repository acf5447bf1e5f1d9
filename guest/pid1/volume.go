//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

// runOptions are what an image's own init would mount its /run with.
const runOptions = "mode=0755"

// lostFound is what a fresh ext4 holds.
const lostFound = "lost+found"

// mountVolume mounts a volume below the root.
func mountVolume(v *wire.Mount) error {
	var flags uintptr
	if v.ReadOnly {
		flags = unix.MS_RDONLY
	}
	var covered unix.Stat_t
	known := unix.Stat(v.Path, &covered) == nil
	if err := mountDisk(v.Disk, v.Path, flags); err != nil {
		return fmt.Errorf("volume %s: %w", v.Path, err)
	}
	if known && !v.ReadOnly {
		inherit(v.Path, &covered)
	}
	return nil
}

// inherit gives the root of a fresh volume the mode and owner of the directory that it covers, so that a
// command which is not root's can write where its image lets it. What fails is what a command would be told.
func inherit(path string, covered *unix.Stat_t) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Uid != 0 || st.Gid != 0 {
		return
	}
	if covered.Uid == 0 && covered.Gid == 0 && covered.Mode&0o7777 == st.Mode&0o7777 {
		return
	}
	for _, name := range listSmall(path) {
		if name != lostFound {
			return
		}
	}
	_ = unix.Chown(path, int(covered.Uid), int(covered.Gid))
	_ = unix.Chmod(path, covered.Mode&0o7777)
}

// mountVolumes mounts the configuration's volumes and keeps a descriptor of each for the end.
func (r *root) mountVolumes(mounts []wire.Mount) error {
	for i := range mounts {
		if err := mountVolume(&mounts[i]); err != nil {
			return err
		}
		if err := r.keep(mounts[i].Path); err != nil {
			return err
		}
	}
	return nil
}

// volume is one that is mounted in this process's own view.
type volume struct {
	path string
	fd   int
}

// cleanVolumes leaves the volumes as an unmount would.
func (r *root) cleanVolumes() error {
	var errs []error
	for _, v := range r.kept {
		at := fmt.Sprintf("/proc/self/fd/%d", v.fd)
		if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			errs = append(errs, &os.PathError{Op: "remount", Path: v.path, Err: err})
		}
	}
	return errors.Join(errs...)
}

const (
	// growLimit bounds the wait for the kernel to notice that a drive has grown.
	growLimit = time.Second
	// sectorBytes is the unit of /sys/dev/block/*/size.
	sectorBytes = 512
	// resizeExt4 is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64): the new size in blocks.
	resizeExt4 = 0x40086610
)

// mount mounts a volume where the commands are, once its drive is there. One that is mounted already is no
// error.
func (k *kernel) mount(v *wire.Mount, beside func(func() error) error) error {
	device, err := findDevice(v.Disk.Device, deviceLimit)
	if err != nil {
		return &wire.Problem{Kind: wire.KindUnavailable, Code: "guest.volume", Message: wire.CleanText(err.Error(), wire.MaxMessage)}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	own := false // it was mounted in this process's own view
	err = beside(func() error {
		var at, drive unix.Stat_t
		if unix.Stat(v.Path, &at) == nil && unix.Stat(device, &drive) == nil && at.Dev == drive.Rdev {
			return nil
		}
		own = !k.init
		return mountVolume(v)
	})
	if err != nil || !own {
		return err
	}
	return k.root.keep(v.Path)
}

// unmount takes a volume away. One that is not mounted is no error.
func (k *kernel) unmount(path string, beside func(func() error) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.init {
		return k.root.unmount(path)
	}
	err := beside(func() error {
		unix.Sync()
		return unmount(path)
	})
	if err != nil {
		return err
	}
	return k.root.unmount(path)
}

func unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	switch err {
	case nil, unix.EINVAL, unix.ENOENT:
		return nil
	case unix.EBUSY:
		return &wire.Problem{
			Kind: wire.KindConflict, Code: "guest.volume_busy", Message: "the volume at " + wire.CleanText(path, wire.MaxIDLen) + " is in use",
			Hint: "end what has files open there, or stop the VM",
		}
	}
	return &os.PathError{Op: "unmount", Path: path, Err: err}
}

// keep remembers a volume for the machine's end.
func (r *root) keep(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	r.kept = append(r.kept, volume{path: path, fd: fd})
	return nil
}

// unmount unmounts a volume in this process's own view, where one is kept. Its descriptor must go first.
func (r *root) unmount(path string) error {
	for i, v := range r.kept {
		if v.path != path {
			continue
		}
		_ = unix.Close(v.fd)
		if err := unmount(path); err != nil {
			fd, openErr := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if openErr == nil {
				r.kept[i].fd = fd
			}
			return err
		}
		r.kept = append(r.kept[:i], r.kept[i+1:]...)
		return nil
	}
	return nil
}

// grow makes a file system as large as its drive: a volume, or that of the writable disk where path is the
// root. It gives its size afterwards, in bytes as statfs counts them.
func (k *kernel) grow(path string, beside func(func() error) error) (size uint64, err error) {
	if path == "/" {
		if k.root == nil || !k.root.disks {
			return 0, &wire.Problem{Kind: wire.KindConflict, Code: "guest.volume", Message: "the root has no disk of its own"}
		}
		return growExt4(k.root.data)
	}
	if err := checkPath(path); err != nil {
		return 0, err
	}
	err = beside(func() error {
		fd, err := openDir(path)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		size, err = growExt4(fd)
		return err
	})
	return size, err
}

// growExt4 makes an ext4 as large as its drive, which may be about to grow.
func growExt4(fd int) (size uint64, err error) {
	before, err := ext4Size(fd)
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	drive := fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Dev), unix.Minor(st.Dev))
	size = before.bytes
	tried := uint64(0)
	poll(growLimit, func() bool {
		sectors, _ := strconv.ParseUint(readLine(drive), 10, 54)
		blocks := sectors * sectorBytes / before.block
		if blocks == tried {
			return false
		}
		tried = blocks
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), resizeExt4, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
			err = os.NewSyscallError("resize the file system", errno)
			return true
		}
		after, statErr := ext4Size(fd)
		err, size = statErr, after.bytes
		return err != nil || size != before.bytes
	})
	return size, err
}

type fsSize struct{ bytes, block uint64 }

func ext4Size(fd int) (fsSize, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fsSize{}, os.NewSyscallError("statfs", err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return fsSize{}, &wire.Problem{Kind: wire.KindConflict, Code: "guest.volume", Message: "no ext4 is mounted there"}
	}
	return fsSize{bytes: fs.Blocks * uint64(fs.Bsize), block: uint64(fs.Bsize)}, nil
}

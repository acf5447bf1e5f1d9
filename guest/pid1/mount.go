//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

// Directories of the initramfs in which the root is built.
const (
	imageDir = "/blixard/image"
	dataDir  = "/blixard/data"
	rootDir  = "/blixard/root"
)

const (
	// deviceLimit bounds the wait for a drive, which its driver may still be finding.
	deviceLimit = 5 * time.Second
	devicePoll  = time.Millisecond
	sysBlock    = "/sys/block"
)

// mountFlags are the options of fstab that are flags of mount(2).
var mountFlags = map[string]uintptr{
	"defaults": 0, "rw": 0, "ro": unix.MS_RDONLY, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME,
	"relatime": unix.MS_RELATIME, "nodev": unix.MS_NODEV, "nosuid": unix.MS_NOSUID, "noexec": unix.MS_NOEXEC,
	"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "lazytime": unix.MS_LAZYTIME,
}

// splitOptions parts fstab options into flags and the file system's own data.
func splitOptions(options string) (flags uintptr, data string) {
	var rest []string
	for o := range strings.SplitSeq(options, ",") {
		if f, ok := mountFlags[o]; ok {
			flags |= f
		} else if o != "" {
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}

// mountAt makes dir and mounts on it.
func mountAt(source, dir, fstype string, flags uintptr, data string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", source, fstype, dir, err)
	}
	return nil
}

// mountKernel mounts what the channel needs: devices, processes, /sys.
func mountKernel() error {
	return errors.Join(
		mountAt("dev", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"),
		mountAt("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		mountAt("sys", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
	)
}

// mountMore mounts what commands need, below the same directories. A kernel without one of them is no
// reason to fail.
func mountMore() {
	_ = mountAt("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5")
	_ = mountAt("shm", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	_ = mountAt("mqueue", "/dev/mqueue", "mqueue", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if exists("/sys/fs/cgroup") {
		_ = mountAt("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "nsdelegate")
	}
	_ = unix.Symlink("/proc/self/fd", "/dev/fd")
	_ = unix.Symlink("/proc/self/fd/0", "/dev/stdin")
	_ = unix.Symlink("/proc/self/fd/1", "/dev/stdout")
	_ = unix.Symlink("/proc/self/fd/2", "/dev/stderr")
}

// poll asks until the answer is yes, at most limit, and gives the last answer. Nothing tells process 1 of a
// driver's finds.
func poll(limit time.Duration, f func() bool) bool {
	for begin := time.Now(); !f(); time.Sleep(devicePoll) {
		if time.Since(begin) > limit {
			return false
		}
	}
	return true
}

// findDevice gives the path of a drive, once it is there.
func findDevice(device string, limit time.Duration) (path string, err error) {
	if !poll(limit, func() bool {
		path = device
		if serial, ok := strings.CutPrefix(device, wire.DevicePrefix); ok {
			path = bySerial(sysBlock, serial)
		}
		return path != "" && exists(path)
	}) {
		return "", fmt.Errorf("drive %s did not appear within %s", device, limit)
	}
	return path, nil
}

// bySerial finds the drive whose serial number is serial.
func bySerial(dir, serial string) string {
	for _, name := range listSmall(dir) {
		if strings.TrimRight(readLine(dir+"/"+name+"/serial"), "\x00 ") == serial {
			return "/dev/" + name
		}
	}
	return ""
}

func mountDisk(d wire.Disk, dir string, flags uintptr) error {
	path, err := findDevice(d.Device, deviceLimit)
	if err != nil {
		return err
	}
	more, data := splitOptions(d.Options)
	return mountAt(path, dir, d.FSType, flags|more, data)
}

// root is the root of the VM after the switch, with what is needed to leave it cleanly.
type root struct {
	data  int  // the writable disk's mount
	old   int  // the initramfs
	disks bool // data is a drive
	// kept are the volumes mounted in this process's own view.
	kept []volume
}

// buildRoot mounts the image, lays the writable disk or memory over it, and makes that the root of
// this process and all mounts.
func buildRoot(cfg *wire.BootConfig) (*root, error) {
	r := &root{disks: cfg.Writable != nil}
	var err error
	if r.old, err = openDir("/"); err != nil {
		return nil, err
	}
	if err := mountDisk(cfg.Image, imageDir, unix.MS_RDONLY); err != nil {
		return nil, err
	}
	if cfg.Writable != nil {
		err = mountDisk(*cfg.Writable, dataDir, 0)
	} else {
		err = mountAt("data", dataDir, "tmpfs", 0, "mode=0755")
	}
	if err != nil {
		return nil, err
	}
	if err := mountOverlay(); err != nil {
		return nil, err
	}
	if r.data, err = openDir(dataDir); err != nil {
		return nil, err
	}
	if err := switchRoot(); err != nil {
		return nil, err
	}
	if cfg.Init {
		// An init that finds its /run mounted keeps it, and so what is put there before its start.
		if err := mountAt("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, runOptions); err != nil {
			return nil, err
		}
	}
	return r, r.mountVolumes(cfg.Mounts)
}

// openDir opens a directory for as long as the machine lives.
func openDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// mountOverlay lays dataDir over imageDir at rootDir. The root directory's own mode and owner come from
// the upper directory, so it gets the image's.
func mountOverlay() error {
	upper, work := dataDir+"/upper", dataDir+"/work"
	var st unix.Stat_t
	if err := unix.Stat(imageDir, &st); err != nil {
		return err
	}
	if err := unix.Mkdir(upper, 0o755); err == nil {
		_ = unix.Chown(upper, int(st.Uid), int(st.Gid))
		_ = unix.Chmod(upper, st.Mode&0o7777)
	} else if err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: upper, Err: err}
	}
	if err := unix.Mkdir(work, 0o700); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: work, Err: err}
	}
	return mountAt("blixard", rootDir, "overlay", 0, "lowerdir="+imageDir+",upperdir="+upper+",workdir="+work)
}

// switchRoot moves the kernel's file systems into rootDir and rootDir to the root.
func switchRoot() error {
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := makeDir(rootDir + dir); err != nil {
			return err
		}
		if err := unix.Mount(dir, rootDir+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := unix.Chdir(rootDir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// clean makes the disks as an unmount would leave them. Nothing may be writing any more.
func (r *root) clean() error {
	unix.Sync()
	if r == nil {
		return nil
	}
	err := errors.Join(r.cleanVolumes(), unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if r.disks {
		path := fmt.Sprintf("/proc/self/fd/%d", r.data)
		err = errors.Join(err, unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	}
	return err
}

// forget frees the initramfs, which nothing can reach any more but the open file of it.
func (r *root) forget() {
	var fs unix.Statfs_t
	if unix.Fstatfs(r.old, &fs) != nil || (fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC) {
		return
	}
	var st unix.Stat_t
	if unix.Fstat(r.old, &st) == nil {
		removeBelow(r.old, st.Dev)
	}
}

// removeBelow removes what is in a directory and on the same file system.
func removeBelow(dir int, dev uint64) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != dev {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			_ = unix.Unlinkat(dir, name, 0)
			continue
		}
		if sub, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			removeBelow(sub, dev)
			_ = unix.Close(sub)
			_ = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		}
	}
}

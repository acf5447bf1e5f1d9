//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"

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
		fd, err := openDir(mounts[i].Path)
		if err != nil {
			return err
		}
		r.volumes = append(r.volumes, volume{path: mounts[i].Path, fd: fd})
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
	for _, v := range r.volumes {
		at := fmt.Sprintf("/proc/self/fd/%d", v.fd)
		if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			errs = append(errs, &os.PathError{Op: "remount", Path: v.path, Err: err})
		}
	}
	return errors.Join(errs...)
}

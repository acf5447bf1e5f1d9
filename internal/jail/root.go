package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// rootOptions bound the file system of the new root, which holds directories,
	// empty files to mount on and device nodes: some 200 of them.
	rootOptionSize   = "1m"
	rootOptionInodes = "4096"
	rootMode         = "0755"
	// mountPoint of the new root while it is built: a directory that every host has
	// and that hides nothing there that a jail shows.
	mountPoint = "/sys"
	// descriptors is where files can be opened by their number.
	descriptors = "/proc/self/fd"
)

// device is a device node of the new root.
type device struct {
	path         string
	major, minor uint32
	mode         uint32
	// own gives it to the jail's user.
	own bool
}

var devices = []device{
	{"/dev/null", 1, 3, 0o666, false},
	{"/dev/urandom", 1, 9, 0o444, false},
}

var kvmNode = device{kvm, 10, 232, 0o600, true}

// newRoot gives the thread namespaces and a root directory of its own. It returns
// false when the host does not allow that.
func newRoot(c Config) (bool, error) {
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if !c.HostNetwork {
		flags |= unix.CLONE_NEWNET
	}
	err := unix.Unshare(flags)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		return false, nil
	}
	if err != nil {
		return false, step("namespaces", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return false, step("private-mounts", err)
	}
	root, err := mountRoot()
	if err != nil {
		return false, step("mount-root", err)
	}
	defer unix.Close(root)
	if err := (&tree{root: root}).build(c); err != nil {
		return false, err
	}
	if err := step("pivot-root", pivot(root)); err != nil {
		return false, err
	}
	return true, nil
}

// mountRoot mounts an empty file system and gives a descriptor of it.
func mountRoot() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{{"size", rootOptionSize}, {"nr_inodes", rootOptionInodes}, {"mode", rootMode}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("option %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, err
	}
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, mountPoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, errors.Join(err, unix.Close(root))
	}
	return root, nil
}

// pivot makes a mount the root directory; the old one is out of reach then.
func pivot(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	// The old root is stacked on the new one, and so found as "." to be taken away.
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// tree is a root directory that is being built.
type tree struct {
	root int
	// made are the files and directories in it, with a "/" at the end for directories
	// whose content is shown.
	made map[string]bool
	// bound devices need their mount to allow them.
	bound []string
}

func (t *tree) build(c Config) error {
	for _, what := range []struct {
		name  string
		paths []string
	}{{"program", []string{c.Program}}, {"libraries", c.Libraries}, {"read-paths", withoutDevices(c.ReadPaths)}} {
		// A directory comes before what is in it, which needs no mount of its own then.
		paths := slices.Clone(what.paths)
		slices.Sort(paths)
		for _, p := range paths {
			if err := t.bind(p, p); err != nil {
				return step(what.name, err)
			}
		}
	}
	for _, f := range c.Files {
		if err := t.file(f); err != nil {
			return step("files", fmt.Errorf("%s: %w", f.Path, err))
		}
	}
	list := devices
	if slices.Contains(c.ReadPaths, kvm) {
		list = append(slices.Clone(devices), kvmNode)
	}
	for _, d := range list {
		if err := t.device(d, c); err != nil {
			return step("devices", fmt.Errorf("%s: %w", d.path, err))
		}
	}
	return step("read-only", t.seal())
}

func withoutDevices(paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return p == kvm })
}

// bind shows what is at from in the old root at to in the new one. The last
// element of from may be a symlink.
func (t *tree) bind(from, to string) error {
	if t.made[to] || t.covered(to) {
		return nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		defer t.cover(to)
	default:
		return fmt.Errorf("%s is neither a file nor a directory", from)
	}
	return t.attach(fd, st.Mode, to)
}

// file shows an opened file by its number, after making sure that its path still
// leads to it.
func (t *tree) file(f File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, f.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != f.Device || st.Ino != f.Inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("another file has taken its place")
	}
	return t.attach(fd, st.Mode, descriptors+"/"+strconv.Itoa(f.FD))
}

// attach mounts a detached mount in the new root.
func (t *tree) attach(fd int, mode uint32, to string) error {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		if err := t.mkdir(to); err != nil {
			return err
		}
	} else if err := t.create(to, func(name string) error { return unix.Mknodat(t.root, name, unix.S_IFREG|0o444, 0) }); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", t.root, relative(to), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", to, err)
	}
	return nil
}

// device makes a node, or shows the host's where none can be made.
func (t *tree) device(d device, c Config) error {
	err := t.create(d.path, func(name string) error {
		return unix.Mknodat(t.root, name, unix.S_IFCHR|d.mode, int(unix.Mkdev(d.major, d.minor)))
	})
	if errors.Is(err, unix.EPERM) {
		return t.bindDevice(d)
	}
	if err != nil {
		return err
	}
	name := relative(d.path)
	if err := unix.Fchmodat(t.root, name, d.mode, 0); err != nil {
		return err
	}
	if !d.own {
		return nil
	}
	return unix.Fchownat(t.root, name, int(c.UID), int(c.GID), unix.AT_SYMLINK_NOFOLLOW)
}

func (t *tree) bindDevice(d device) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, d.path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	t.bound = append(t.bound, d.path)
	return t.attach(fd, unix.S_IFCHR, d.path)
}

// seal makes everything read-only. Only the device nodes are devices.
func (t *tree) seal() error {
	const readOnly = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID
	err := unix.MountSetattr(t.root, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: readOnly | unix.MOUNT_ATTR_NODEV})
	if err != nil {
		return err
	}
	err = unix.MountSetattr(t.root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOEXEC, Attr_clr: unix.MOUNT_ATTR_NODEV})
	for _, p := range t.bound {
		if err == nil {
			err = unix.MountSetattr(t.root, relative(p), 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NODEV})
		}
	}
	return err
}

// relative is a path from the new root.
func relative(path string) string { return strings.TrimPrefix(path, "/") }

// create makes a file by a function, in a directory that is made before. A file
// that is there already is an error: two mounts of one name are a mistake.
func (t *tree) create(path string, make func(name string) error) error {
	if err := t.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := make(relative(path)); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	t.note(path)
	return nil
}

func (t *tree) note(path string) {
	if t.made == nil {
		t.made = map[string]bool{}
	}
	t.made[path] = true
}

func (t *tree) mkdir(path string) error {
	if path == "/" || t.made[path] {
		return nil
	}
	if err := t.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := unix.Mkdirat(t.root, relative(path), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make %s: %w", path, err)
	}
	t.note(path)
	return nil
}

// cover notes a directory whose content is shown.
func (t *tree) cover(path string) {
	t.note(path)
	t.note(path + "/")
}

// covered tells whether a path is in a directory that is shown.
func (t *tree) covered(path string) bool {
	for p := path; p != "/"; p = filepath.Dir(p) {
		if t.made[p+"/"] {
			return true
		}
	}
	return false
}

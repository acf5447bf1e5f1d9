package jail

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights of Landlock, by the version of its interface that brought them.
const (
	rightsFirst  = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1 // all of version 1
	rightsRead   = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	rightsDevice = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE

	versionRefer    = 2
	versionTruncate = 3
	versionNetwork  = 4
	versionIoctl    = 5
	versionScope    = 6
)

// ruleset is what is forbidden unless a rule allows it.
type ruleset struct{ fs, net, scope uint64 }

// rulesetFor gives all that a version can forbid.
func rulesetFor(version int, hostNetwork bool) ruleset {
	r := ruleset{fs: rightsFirst}
	if version >= versionRefer {
		r.fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= versionTruncate {
		r.fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version >= versionNetwork && !hostNetwork {
		r.net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if version >= versionIoctl {
		r.fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if version >= versionScope {
		r.scope = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	return r
}

// size of the structure that a version knows.
func (r ruleset) size(version int) uintptr {
	switch {
	case version >= versionScope:
		return unsafe.Sizeof(r)
	case version >= versionNetwork:
		return unsafe.Offsetof(r.scope)
	default:
		return unsafe.Offsetof(r.net)
	}
}

// landlockVersion gives the version of the interface; 0 means there is none.
func landlockVersion() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// restrict lets the thread open nothing but what the jail has. inside is whether
// the thread has the jail's root directory: then all in it may be read.
func restrict(c Config, inside bool) ([]string, error) {
	version := landlockVersion()
	if version == 0 {
		return []string{"the kernel has no Landlock"}, nil
	}
	r := rulesetFor(version, c.HostNetwork)
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&r)), r.size(version), 0)
	if errno != 0 {
		return nil, errno
	}
	set := int(fd)
	defer unix.Close(set)
	for path, rights := range allowed(c, inside) {
		if err := allow(set, path, rights&r.fs); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(set), 0, 0); errno != 0 {
		return nil, errno
	}
	var notices []string
	if version < versionScope {
		notices = append(notices, fmt.Sprintf("Landlock of version %d: network and signals are not confined in full", version))
	}
	return notices, nil
}

// allowed gives what may be opened, and how.
func allowed(c Config, inside bool) map[string]uint64 {
	rules := map[string]uint64{"/dev/null": rightsDevice, "/dev/urandom": unix.LANDLOCK_ACCESS_FS_READ_FILE}
	if slices.Contains(c.ReadPaths, kvm) {
		rules[kvm] = rightsDevice | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if inside {
		rules["/"] = rightsRead
		return rules
	}
	paths := append([]string{c.Program}, c.Libraries...)
	for _, p := range append(paths, withoutDevices(c.ReadPaths)...) {
		rules[p] = rightsRead
	}
	for _, f := range c.Files {
		rules[f.Path] = unix.LANDLOCK_ACCESS_FS_READ_FILE
	}
	return rules
}

// allow adds a rule for a file or what is below a directory.
func allow(set int, path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // what is not there needs no rule
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &^= unix.LANDLOCK_ACCESS_FS_READ_DIR
	}
	// The kernel's structure is packed: rights, then the descriptor.
	rule := struct {
		rights uint64
		parent int32
	}{rights, int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

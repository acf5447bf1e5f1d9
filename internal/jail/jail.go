package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Config of a jail.
type Config struct {
	// Program is what will be started, Libraries what [Libraries] found for it.
	Program   string
	Libraries []string
	// ReadPaths are files and directories that may be read, too. Of devices only
	// /dev/kvm can be among them; it may be written.
	ReadPaths []string
	// Files that can be opened by their number.
	Files []File
	// UID and GID own the process's devices, when the caller is root.
	UID, GID uint32
	// HostNetwork leaves the thread in the host's network.
	HostNetwork bool
}

// File is an opened file.
type File struct {
	// FD of the process.
	FD int
	// Path it was opened by; it must still be that file.
	Path string
	// Device and Inode say which file it is.
	Device, Inode uint64
}

// StepError is the failure of one step.
type StepError struct {
	Step string
	Err  error
}

// Error implements error.
func (e *StepError) Error() string { return fmt.Sprintf("step %s: %v", e.Step, e.Err) }

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }

func step(name string, err error) error {
	if err == nil {
		return nil
	}
	return &StepError{name, err}
}

const kvm = "/dev/kvm"

// Enter confines the calling thread, for good: the caller has locked it and ends
// it in the end, and its working directory is its own (CLONE_FS). It gives what
// could not be done for want of rights or of a newer kernel. On an error the
// thread is confined in part.
//
// The thread keeps the caller's user and capabilities, since it has to change
// the user of what it forks; a process forked and given a user of its own has
// none.
func Enter(c Config) (notices []string, err error) {
	root := os.Geteuid() == 0
	if root {
		if err := step("capabilities", needed()); err != nil {
			return nil, err
		}
	}
	if err := step("no-new-privileges", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); err != nil {
		return nil, err
	}
	inside := false
	if root {
		if inside, err = newRoot(c); err != nil {
			return nil, err
		}
		if !inside {
			notices = append(notices, "mounting is not permitted: no root directory of its own")
		}
		if err := step("bounding-set", dropBounding()); err != nil {
			return nil, err
		}
	} else {
		notices = append(notices, "not root: no user, no namespaces and no root directory of its own")
	}
	more, err := restrict(c, inside)
	return append(notices, more...), step("landlock", err)
}

// needed fails when root lacks a right without which a jail would be none. KILL
// is needed at the end: the kernel asks for it when it kills a child of another
// user because its parent has ended.
func needed() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for _, c := range []struct {
		number int
		name   string
	}{{unix.CAP_KILL, "KILL"}, {unix.CAP_SETUID, "SETUID"}, {unix.CAP_SETGID, "SETGID"}, {unix.CAP_SETPCAP, "SETPCAP"}} {
		if data[0].Effective&(1<<c.number) == 0 {
			return fmt.Errorf("root lacks CAP_%s", c.name)
		}
	}
	// What an exec would hand on.
	data[0].Inheritable, data[1].Inheritable = 0, 0
	return unix.Capset(&hdr, &data[0])
}

// capabilitiesMax bounds the search for the newest capability.
const capabilitiesMax = 64

func dropBounding() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for c := range capabilitiesMax {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > 0 {
			return nil // the kernel knows no further
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	// filesMax that a process may have open: a user-mode network has one for each
	// connection of its guest.
	filesMax = 4096
	// oomScore makes the kernel choose a VMM before any daemon.
	oomScore = 500
)

// rlimit is a bound of a process.
type rlimit struct {
	resource int
	name     string
	max      uint64
}

// Limit bounds a process that the calling thread, confined by Enter, has forked,
// by what belongs to processes and not to threads. Its user may have processesMax
// processes and threads, 0 for no bound, which counts only with a user of its own.
// It gives what could not be done.
func Limit(pid int, c Config, processesMax uint32) (notices []string, err error) {
	limits := []rlimit{
		{unix.RLIMIT_CORE, "core", 0},
		{unix.RLIMIT_NOFILE, "nofile", filesMax},
		{unix.RLIMIT_MEMLOCK, "memlock", 0},
		{unix.RLIMIT_MSGQUEUE, "msgqueue", 0},
		{unix.RLIMIT_NICE, "nice", 0},
		{unix.RLIMIT_RTPRIO, "rtprio", 0},
	}
	root := os.Geteuid() == 0
	if root && processesMax > 0 {
		limits = append(limits, rlimit{unix.RLIMIT_NPROC, "nproc", uint64(processesMax)})
	}
	if root {
		// The kernel asks for CAP_SYS_RESOURCE, which root often lacks, or for the same
		// real user. The effective one stays.
		if err := step("limit-user", realUser(c.UID, c.GID)); err != nil {
			return nil, err
		}
		defer func() {
			if rerr := step("limit-user", realUser(0, 0)); err == nil {
				err = rerr
			}
		}()
	}
	for _, l := range limits {
		err := unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: l.max, Max: l.max}, nil)
		if errors.Is(err, unix.EPERM) { // the limit is lower already
			notices = append(notices, "limit "+l.name+": "+err.Error())
			continue
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // it may have ended
			return nil, step("limit-"+l.name, err)
		}
	}
	return notices, nil
}

// realUser changes the calling thread alone, as the functions of the library do
// not.
func realUser(uid, gid uint32) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), keep, keep); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), keep, keep); errno != 0 {
		return errno
	}
	return nil
}

// Expose makes the kernel end a process before any daemon, when the host has no
// memory left. Any thread of the caller may do it. It gives what could not be done.
func Expose(pid int) (notices []string, err error) {
	err = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(oomScore)), 0)
	if errors.Is(err, fs.ErrPermission) {
		return []string{"oom_score_adj: " + err.Error()}, nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil // it has ended
	}
	return nil, step("oom-score", err)
}

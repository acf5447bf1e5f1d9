//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

// An image's own init is process 1 of a PID namespace whose parent is this agent. So the agent stays the
// machine's process 1, its session goes on, no program of the guest can end it by accident, and the
// kernel itself says how init ended the machine: reboot(2) in such a namespace ends its process 1 by
// SIGHUP for a restart and by SIGINT for a halt or a power-off.

const (
	// defaultInit is started when the configuration names none.
	defaultInit = "/sbin/init"
	// stageName is argument zero of this program between fork and the exec of the image's init.
	stageName = "@blixard-stage"
	// self is this program, also after the root was changed.
	self = "/proc/self/exe"
	// initPowerOff is SIGRTMIN+4, which asks systemd for a power-off.
	initPowerOff = syscall.Signal(38)
)

// startInit starts the image's init in namespaces of its own. Its output goes the way of a command's.
func (r *reaper) startInit(argv, env []string, dir string) (*running, error) {
	if len(argv) == 0 {
		argv = []string{defaultInit}
	}
	c := command{argv: argv, env: completeEnv(env, account{home: "/root"}, false), dir: dir}
	if c.dir == "" {
		c.dir = "/"
	}
	path, err := lookPath(argv[0], envValue(c.env, "PATH"), c.dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		code, kind := wire.CodeNotExecutable, wire.KindInvalid
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			code, kind = wire.CodeNotFound, wire.KindNotFound
		}
		return nil, startProblem(kind, code, "the image's init %s: %v", path, err)
	}
	run, theirs, err := openStdio(c, account{})
	if err != nil {
		return nil, startProblem(wire.KindInternal, wire.CodeNotExecutable, "standard input and output: %v", err)
	}
	defer closeAll(theirs[:]...)
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env,
		Files: []uintptr{theirs[0].Fd(), theirs[1].Fd(), theirs[2].Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS},
	}
	if run.process, err = r.start(self, append([]string{stageName, path}, argv...), attr); err != nil {
		run.close()
		return nil, startProblem(wire.KindInternal, wire.CodeNotExecutable, "start the image's init: %v", err)
	}
	return run, nil
}

// stage is the first program of the new namespaces: it mounts the /proc that belongs to them and becomes
// the image's init. It returns only when that fails, with an exit code.
func stage(args []string) int {
	fail := func(code int, err error) int {
		_, _ = fmt.Fprintf(os.Stderr, "blixard-guest: the image's init: %v\r\n", err)
		return code
	}
	if len(args) < 2 {
		return fail(wire.CodeNotExecutable, errors.New("no program given"))
	}
	if err := mountProc(); err != nil {
		return fail(wire.CodeBootFailed, err)
	}
	return fail(wire.CodeNotExecutable, syscall.Exec(args[0], args[1:], os.Environ()))
}

// mountProc puts the process table of this PID namespace in the place of its parent's.
func mountProc() error {
	// What is mounted from here on stays in this namespace, whatever the parent's mounts are.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /proc: %w", err)
	}
	return mountAt("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// startBeside starts a command in the namespaces of the process pid.
func (r *reaper) startBeside(pid int, c command) (*running, error) {
	var run *running
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread is in other namespaces from here on and ends with the goroutine.
		runtime.LockOSThread()
		if err = join(pid); err != nil {
			err = startProblem(wire.KindUnavailable, wire.CodeNotExecutable, "join the image's init: %v", err)
			return
		}
		run, err = r.startCommand(c)
	}()
	<-done
	return run, err
}

// join moves this thread into the mounts, and its children into the process table, of the process pid.
func join(pid int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // root and working directory of the thread's own
		return os.NewSyscallError("unshare", err)
	}
	dir := "/proc/" + strconv.Itoa(pid) + "/ns/"
	var fds [2]int
	kinds := [2]int{unix.CLONE_NEWPID, unix.CLONE_NEWNS}
	for i, name := range []string{"pid", "mnt"} {
		fd, err := unix.Open(dir+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir + name, Err: err}
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	for i, fd := range fds {
		if err := unix.Setns(fd, kinds[i]); err != nil {
			return os.NewSyscallError("setns", err)
		}
	}
	return nil
}

// initExit says how the image's init ended: what it asked the kernel for, or its own end.
func initExit(s syscall.WaitStatus) (reason wire.ExitReason, code, signal int) {
	if s.Signaled() {
		switch s.Signal() {
		case syscall.SIGHUP:
			return wire.ExitReboot, 0, 0
		case syscall.SIGINT:
			return wire.ExitPowerOff, 0, 0
		}
	}
	code, signal = exitCode(s)
	return wire.ExitCommand, code, signal
}

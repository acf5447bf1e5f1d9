package supervisor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/jail"
)

// listenBacklog of a VMM's sockets: one client is served, some may queue.
const listenBacklog = 8

// errStopped is the answer of a forker that has stopped.
var errStopped = errors.New("the supervisor is stopping")

// forker starts processes from one OS thread.
//
// Invariant: the thread lives until stop, since PDEATHSIG is sent when the thread
// that forked ends, not the process. The thread has a working directory of its
// own (CLONE_FS), so sockets are bound by their bare names in the directory of
// the VM: no path length matters, no symlink is followed, and the name is right
// in the VMM, too, which removes it when it ends in order.
type forker struct {
	calls chan func()
	done  chan struct{}
	// threads of jailed processes.
	threads sync.WaitGroup
}

func newForker() (*forker, error) {
	f := &forker{calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go f.loop(ready)
	return f, <-ready
}

func (f *forker) loop(ready chan<- error) {
	defer close(f.done)
	// Never unlocked: the thread ends with this goroutine, and with it whatever
	// it forked.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		ready <- fmt.Errorf("a working directory of the forking thread's own: %w", err)
		return
	}
	ready <- nil
	for call := range f.calls {
		call()
	}
}

// stop ends the thread. Processes it forked should have ended before: they are
// killed with it, unless it is the program's first thread, which can't end alone.
// Nothing may be called afterwards.
func (f *forker) stop() {
	close(f.calls)
	<-f.done
	f.threads.Wait()
}

// command is a process to start.
type command struct {
	argv, env []string
	dir       string
	listeners []string
	taps      []string
	files     []*blixardv1.SpawnFile
	// jail is nil for a process that is not confined.
	jail *confinement
}

// child is a process that was started.
type child struct {
	pid, pidfd int
	// pty is the master side, stderr the read end.
	pty, stderr *os.File
	// files it was given, and what its jail lacks.
	files   []jail.File
	notices []string
}

func (c child) close() error {
	return errors.Join(c.pty.Close(), c.stderr.Close(), unix.Close(c.pidfd))
}

// start starts a process. The caller calls release when it has ended. On an error
// nothing of it is left but, possibly, its sockets.
func (f *forker) start(cmd command) (c child, release func(), err error) {
	if cmd.jail != nil {
		ended := make(chan struct{})
		c, err := f.jailed(cmd, ended)
		return c, sync.OnceFunc(func() { close(ended) }), err
	}
	type answer struct {
		c   child
		err error
	}
	got := make(chan answer, 1)
	call := func() {
		c, err := start(cmd)
		got <- answer{c, err}
	}
	select {
	case f.calls <- call:
		a := <-got
		return a.c, func() {}, a.err
	case <-f.done:
		return child{}, func() {}, errStopped
	}
}

// start runs on the forker's thread, or on that of one jailed process.
func start(cmd command) (child, error) {
	dir, err := unix.Open(cmd.dir, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0)
	if err != nil {
		return child{}, fmt.Errorf("working directory %s: %w", cmd.dir, err)
	}
	defer unix.Close(dir)
	if err := unix.Fchdir(dir); err != nil {
		return child{}, fmt.Errorf("working directory %s: %w", cmd.dir, err)
	}
	// The VM's directory shall not be held by an idle thread.
	defer func() { _ = unix.Chdir("/") }()
	socks, err := listenAll(dir, cmd.listeners)
	if err != nil {
		return child{}, err
	}
	// The process has its own copies.
	defer func() { _ = closeAll(socks) }()
	o, err := openAll(cmd, firstFD+len(socks))
	if err != nil {
		return child{}, errors.Join(err, removeSockets(dir, cmd.listeners))
	}
	defer func() { _ = closeAll(o.fds) }()
	c, err := fork(cmd, socks, o)
	if err != nil {
		// A confined thread can't remove them any more; the caller does.
		return child{}, err
	}
	return c, nil
}

// firstFD of a process behind the standard ones.
const firstFD = 3

// fork starts the process in the present directory. On an error its sockets are
// left.
func fork(cmd command, socks []int, o opened) (child, error) {
	pty, slave, err := openPTY()
	if err != nil {
		return child{}, fmt.Errorf("console: %w", err)
	}
	defer unix.Close(slave)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return child{}, errors.Join(fmt.Errorf("pipe: %w", err), pty.Close())
	}
	defer unix.Close(pipe[1])
	if err := unix.SetNonblock(pipe[0], true); err != nil {
		return child{}, errors.Join(err, pty.Close(), unix.Close(pipe[0]))
	}
	stderr := os.NewFile(uintptr(pipe[0]), "stderr")
	pidfd := -1
	files := []uintptr{uintptr(slave), uintptr(slave), uintptr(pipe[1])}
	for _, fd := range slices.Concat(socks, o.fds, []int{slave}) {
		files = append(files, uintptr(fd))
	}
	env := cmd.env
	if env == nil {
		env = []string{} // nil would mean the supervisor's own
	}
	forkAs := func(user *syscall.Credential) (int, error) {
		pid, err := syscall.ForkExec(cmd.argv[0], cmd.argv, &syscall.ProcAttr{
			Env:   env,
			Files: files,
			// The user is changed before PDEATHSIG is set, which the change would clear.
			Sys: &syscall.SysProcAttr{Setsid: true, Credential: user, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd},
		})
		if err != nil {
			return 0, fmt.Errorf("start %s: %w", cmd.argv[0], err)
		}
		return pid, nil
	}
	c := child{pty: pty, stderr: stderr, files: o.files}
	if cmd.jail != nil {
		c.pid, c.notices, err = cmd.jail.confined(cmd.jail.config(cmd, o.files), forkAs)
	} else {
		c.pid, err = forkAs(nil)
	}
	if err != nil {
		if pidfd >= 0 {
			err = errors.Join(err, unix.Close(pidfd))
		}
		return child{}, errors.Join(err, pty.Close(), stderr.Close())
	}
	c.pidfd = pidfd
	return c, nil
}

// listenAll makes sockets in the present directory, which is dir. On an error
// none is left.
func listenAll(dir int, names []string) ([]int, error) {
	socks := make([]int, 0, len(names))
	for i, name := range names {
		s, err := listen(dir, name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("socket %s: %w", name, err), closeAll(socks), removeSockets(dir, names[:i]))
		}
		socks = append(socks, s)
	}
	return socks, nil
}

func listen(dir int, name string) (int, error) {
	if err := removeSockets(dir, []string{name}); err != nil {
		return -1, err
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// The mode of the directory keeps others out until the mode of the file does.
	if err := unix.Bind(s, &unix.SockaddrUnix{Name: name}); err != nil {
		return -1, errors.Join(err, unix.Close(s))
	}
	err = unix.Fchmodat(dir, name, fileMode, 0)
	if err == nil {
		err = unix.Listen(s, listenBacklog)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(s), removeSockets(dir, []string{name}))
	}
	return s, nil
}

// removeSockets removes those of the names in a directory that are sockets; any
// other file is an error and stays.
func removeSockets(dir int, names []string) error {
	var errs []error
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case err == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK:
			err = errors.New("a file of that name is there and is not a socket")
		case err == nil:
			if err = unix.Unlinkat(dir, name, 0); errors.Is(err, unix.ENOENT) {
				err = nil
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func closeAll(fds []int) error {
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

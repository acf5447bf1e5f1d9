//go:build linux

package pid1

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a child of this init. done is closed when it has ended and status is set.
type process struct {
	pid    int
	done   chan struct{}
	status syscall.WaitStatus
}

// reaper starts children and collects ended ones. Safe for concurrent use.
type reaper struct {
	// each makes it wait for each child by itself, in a process that has other children. What a child
	// leaves behind in its process group ends with it, for there is no process 1 to collect it.
	// Otherwise collect must be called after each SIGCHLD; it takes orphans too, and all children
	// of the process must be started here.
	each bool

	mu       sync.Mutex
	children map[int]*process
	wg       sync.WaitGroup // of each
}

func newReaper(each bool) *reaper { return &reaper{each: each, children: map[int]*process{}} }

// start runs a program. The lock is held from fork to the entry in children, so that collect never
// meets a child that is not there yet.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, done: make(chan struct{})}
	r.children[pid] = p
	if r.each {
		r.wg.Go(func() { r.await(p) })
	}
	return p, nil
}

// await waits for one child and ends its process group. The child keeps its number until the lock is
// held, so that neither this nor signal ever meets a stranger.
func (r *reaper) await(p *process) {
	for unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	_, _ = syscall.Wait4(p.pid, &p.status, 0, nil)
	delete(r.children, p.pid)
	close(p.done)
}

// killChildren ends all children with their process groups and waits for them, with each only.
func (r *reaper) killChildren() {
	r.mu.Lock()
	for pid := range r.children {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// collect takes every process that has ended already and reports whether no child is left at all. It is
// called after each SIGCHLD.
func (r *reaper) collect() (none bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return err == syscall.ECHILD
		}
		if p := r.children[pid]; p != nil {
			delete(r.children, pid)
			p.status = status
			close(p.done)
		}
	}
}

// signal sends a signal to a child that has not been collected, so never to a stranger with its number.
// A negative group sends it to the child's process group.
func (r *reaper) signal(p *process, sig syscall.Signal, group bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[p.pid] != p {
		return
	}
	if group {
		_ = syscall.Kill(-p.pid, sig)
		return
	}
	_ = syscall.Kill(p.pid, sig)
}

// exitCode turns a wait status into the code a shell would give, and the signal or zero.
func exitCode(s syscall.WaitStatus) (code, signal int) {
	if s.Signaled() {
		return 128 + int(s.Signal()), int(s.Signal())
	}
	return s.ExitStatus(), 0
}

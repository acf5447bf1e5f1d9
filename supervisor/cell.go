package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/cgroup"
	"github.com/blixard/blixard/internal/jail"
	"github.com/blixard/blixard/internal/problem"
)

// groupPrefix keeps names of processes and of the kernel's own files apart.
const groupPrefix = "vm-"

// confinement is the jail of one process.
type confinement struct {
	*blixardv1.Jail
	libraries []string
}

// jailed starts a process in a jail, from a thread of its own: what a jail
// consists of is mostly the thread's, is inherited by what it forks, and can't be
// taken off again.
//
// Invariant: the thread lives until release is closed, which is after the process
// has ended; the forker's comment says why.
func (f *forker) jailed(cmd command, release <-chan struct{}) (child, error) {
	type answer struct {
		c   child
		err error
	}
	got := make(chan answer, 1)
	f.threads.Go(func() {
		onOwnThread(func() {
			c, err := startIn(cmd)
			got <- answer{c, err}
			if err == nil {
				<-release
			}
		})
	})
	a := <-got
	return a.c, a.err
}

// onOwnThread runs a function on a thread that ends with it, and returns when the
// function has. It is never the program's first thread, by which the whole
// process is judged from outside and which can't end alone.
func onOwnThread(run func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() != unix.Getpid() {
			run()
			return
		}
		// While this goroutine holds the first thread, another one can't get it.
		defer runtime.UnlockOSThread()
		onOwnThread(run)
	}()
	<-done
}

// startIn runs on the thread of one jailed process.
func startIn(cmd command) (child, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return child{}, fmt.Errorf("a working directory of the thread's own: %w", err)
	}
	return start(cmd)
}

// config is the jail of a command with its opened files.
func (c *confinement) config(cmd command, files []jail.File) jail.Config {
	var readable []jail.File
	for i, f := range files {
		if cmd.files[i].GetReadOnly() {
			readable = append(readable, f)
		}
	}
	return jail.Config{
		Program: cmd.argv[0], Libraries: c.libraries, ReadPaths: c.GetReadPaths(), Files: readable,
		UID: c.GetUid(), GID: c.GetGid(), HostNetwork: c.GetHostNetwork(),
	}
}

// confined forks by a function from this thread, which is confined before for
// good, and bounds what was forked. On an error nothing runs.
func (c *confinement) confined(cfg jail.Config, fork func(*syscall.Credential) (int, error)) (int, []string, error) {
	notices, err := jail.Enter(cfg)
	if err != nil {
		return 0, nil, &jailError{err}
	}
	var user *syscall.Credential
	if os.Geteuid() == 0 {
		user = &syscall.Credential{Uid: c.GetUid(), Gid: c.GetGid()}
	}
	pid, err := fork(user)
	if err != nil {
		return 0, nil, err
	}
	more, err := jail.Limit(pid, cfg, c.GetPidsMax())
	if err != nil {
		return 0, nil, errors.Join(&jailError{err}, end(pid))
	}
	return pid, append(notices, more...), nil
}

// end kills and reaps a child that nobody follows.
func end(pid int) error {
	err := unix.Kill(pid, unix.SIGKILL)
	_, werr := unix.Wait4(pid, nil, 0, nil)
	return errors.Join(err, werr)
}

// jailError is a jail that could not be made.
type jailError struct{ error }

func (e *jailError) Unwrap() error { return e.error }

// prepare finds out what a jail needs before anything is started.
func (s *server) prepare(r *blixardv1.SpawnRequest) (*confinement, *cgroup.Group, []string, error) {
	j := r.GetJail()
	if j == nil {
		return nil, nil, nil, nil
	}
	if os.Geteuid() == 0 {
		for _, p := range s.all() {
			if p.uid == j.GetUid() && !p.exited() {
				return nil, nil, nil, problem.New(problem.Conflict, "supervisor.uid_taken",
					"user %d is that of process %s, which runs", j.GetUid(), p.seen.GetProcessId()).
					WithHint("give each VM a user of its own")
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	libs, err := s.libraries.Of(ctx, r.GetArgv()[0])
	if err != nil {
		return nil, nil, nil, &jailError{&jail.StepError{Step: "libraries", Err: err}}
	}
	g, notices, err := s.groups.Make(groupPrefix+r.GetProcessId(), cgroup.Limits{
		MemoryBytes: j.GetMemoryBytes(), PidsMax: j.GetPidsMax(), CPUQuotaPercent: j.GetCpuQuotaPercent(),
	})
	if err != nil {
		return nil, nil, nil, &jailError{&jail.StepError{Step: "cgroup", Err: err}}
	}
	return &confinement{Jail: j, libraries: libs}, g, notices, nil
}

// bound puts a started process under the limits that belong to processes.
func bound(pid int, c *confinement, g *cgroup.Group) ([]string, error) {
	if c == nil {
		return nil, nil
	}
	if err := g.Add(pid); err != nil {
		return nil, &jailError{&jail.StepError{Step: "cgroup", Err: err}}
	}
	notices, err := jail.Expose(pid)
	if err != nil {
		return nil, &jailError{err}
	}
	return notices, nil
}

// describe adds to a process's metadata what was made of its request.
func describe(meta map[string]string, c child, jailed bool, notices []string) map[string]string {
	if len(c.files) == 0 && !jailed {
		return meta
	}
	meta = maps.Clone(meta)
	if meta == nil {
		meta = map[string]string{}
	}
	var ids []string
	for _, f := range c.files {
		ids = append(ids, fmt.Sprintf("%d:%d", f.Device, f.Inode))
	}
	if len(ids) > 0 {
		meta[driver.MetadataFiles] = strings.Join(ids, " ")
	}
	if jailed {
		meta[driver.MetadataJail] = strings.Join(notices, "; ")
	}
	return meta
}

// spawnFailed makes the answer for a failed start.
func spawnFailed(id string, err error) error {
	var j *jailError
	if errors.As(err, &j) {
		// The cause names the step.
		return problem.New(problem.Internal, "supervisor.jail", "process %s can't be confined", id).WithCause(err).
			WithHint("nothing is run outside of its jail; see that the supervisor has root's capabilities and the host a recent kernel")
	}
	if errors.Is(err, errNoTap) {
		return problem.New(problem.NotFound, "supervisor.tap", "start process %s", id).WithCause(err)
	}
	if errors.Is(err, errTapBusy) {
		return problem.New(problem.Conflict, "supervisor.tap_busy", "start process %s", id).WithCause(err)
	}
	return problem.New(problem.Internal, "supervisor.spawn_failed", "start process %s", id).WithCause(err).
		WithHint("see that the program and the directory exist and that the host has room")
}

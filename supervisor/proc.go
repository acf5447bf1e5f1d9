package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/cgroup"
	"github.com/blixard/blixard/internal/process"
)

const (
	// stderrTailBytes of a process are kept for its exit.
	stderrTailBytes = 4 << 10
	// stderrFileBytes of a process are kept in a file.
	stderrFileBytes = 256 << 10
	// stderrTimeout bounds how long stderr is read after the process has ended.
	stderrTimeout = 200 * time.Millisecond
)

// proc is a VMM process, from its start to Forget.
type proc struct {
	// seen is what is told of the process; exited and exit are guarded by mu.
	mu   sync.Mutex
	seen *blixardv1.SupervisedProcess

	handle  *process.Handle
	console *console
	stderr  *stderrTail
	// dir and sockets are what to remove at the end.
	dir     string
	sockets []string
	// uid of a jailed process, group its control group, or nil; release lets the
	// thread go that forked it.
	uid     uint32
	group   *cgroup.Group
	release func()
	log     *slog.Logger
	// done is closed when exit is set and everything of the process is freed but
	// its ring.
	done chan struct{}
}

// snapshot gives what is told of the process. The exit is never changed once it
// is set, so it may be shared.
func (p *proc) snapshot() *blixardv1.SupervisedProcess {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen
	return &blixardv1.SupervisedProcess{
		ProcessId: s.ProcessId, AllocationId: s.AllocationId, Epoch: s.Epoch,
		Pid: s.Pid, StartTime: s.StartTime, BootId: s.BootId, StartedAt: s.StartedAt,
		Exited: s.Exited, Exit: s.Exit, Metadata: s.Metadata,
	}
}

func (p *proc) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends a signal; it does nothing when the process has ended.
func (p *proc) signal(sig unix.Signal) error {
	if p.exited() {
		return nil
	}
	err := p.handle.Signal(sig)
	if errors.Is(err, process.ErrGone) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// follow runs until the process has ended and everything of it is freed.
func (p *proc) follow(pumps *sync.WaitGroup) {
	if err := p.handle.Wait(context.Background()); err != nil {
		p.log.Error("waiting for a process failed", "err", err)
	}
	pid := int(p.seen.Pid)
	// What the process left in its own session dies with it. It is not reaped
	// yet, so its number can't be another's.
	if err := unix.Kill(-pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EPERM) {
		p.log.Error("ending a process's group failed", "err", err)
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			p.log.Error("reaping a process failed", "err", err)
		}
		break
	}
	at := time.Now()
	p.release()
	err := errors.Join(p.stderr.finish(), p.console.finish(), p.handle.Close(), removeIn(p.dir, p.sockets))
	pumps.Wait()
	if p.group != nil {
		p.stderr.note(p.group)
		err = errors.Join(err, p.group.Remove())
	}
	if err != nil {
		p.log.Error("cleaning up after a process failed", "err", err)
	}
	p.setExit(ws, at)
}

func (p *proc) setExit(ws unix.WaitStatus, at time.Time) {
	exit := &blixardv1.ProcessExit{At: timestamppb.New(at), Stderr: p.stderr.text()}
	switch {
	case ws.Signaled():
		exit.Code, exit.Signal = -1, uint32(ws.Signal())
	default:
		exit.Code = int32(ws.ExitStatus())
	}
	p.mu.Lock()
	p.seen.Exited, p.seen.Exit = true, exit
	p.mu.Unlock()
	p.log.Info("process ended", "code", exit.Code, "signal", exit.Signal)
	close(p.done)
}

// removeIn removes sockets from a directory that may be gone.
func removeIn(path string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	dir, err := unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("directory %s: %w", path, err)
	}
	return errors.Join(removeSockets(dir, names), unix.Close(dir))
}

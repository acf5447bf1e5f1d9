package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
	"github.com/blixard/blixard/internal/unixsocket"
)

const (
	// launchTimeout bounds a launch whose context has no nearer deadline: a
	// supervisor listens after some 50 ms; a host that swaps needs longer.
	launchTimeout = 20 * time.Second
	// launchPoll is how often a launch looks whether the supervisor listens.
	launchPoll = 2 * time.Millisecond
	// ownLogBytesMax of a supervisor's own log; a longer one is set aside at launch.
	ownLogBytesMax = 1 << 20
	// complaintBytes of the log are quoted when a launch failed.
	complaintBytes = 2 << 10
)

// LaunchConfig says how to start a supervisor.
type LaunchConfig struct {
	// Executable is run as "EXECUTABLE supervisor --lane LANE --dir DIR".
	Executable string
	Dir        string
	Lane       driver.Lane
	// Env of the supervisor; nil means empty.
	Env []string
}

// Launch starts the supervisor of a lane in a session of its own and returns when
// it listens. When one runs already it gives that one's record. The supervisor
// outlives the caller. It is a child of the caller all the same: [Client] reaps
// it; who calls Launch alone leaves that to the end of the own process.
func Launch(ctx context.Context, cfg LaunchConfig) (Record, error) {
	r, _, err := launch(ctx, cfg)
	return r, err
}

// launch also gives the handle of the child, which the caller reaps and closes;
// nil when another one's supervisor was found.
func launch(ctx context.Context, cfg LaunchConfig) (Record, *process.Handle, error) {
	if err := checkLane(cfg.Lane); err != nil {
		return Record{}, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	p := lanePaths(cfg.Dir, cfg.Lane)
	if err := makeDir(p); err != nil {
		return Record{}, nil, err
	}
	if listens(ctx, p) {
		r, err := ReadRecord(cfg.Dir, cfg.Lane)
		return r, nil, err
	}
	cmd, pidfd, err := startDetached(cfg, p)
	if err != nil {
		return Record{}, nil, launchFailed(cfg.Lane, err)
	}
	h, err := process.NewHandle(pidfd)
	if err != nil {
		return Record{}, nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	r, err := awaitListening(ctx, cfg, p, h)
	if err == nil {
		// From here on the handle alone stands for the child.
		return r, h, cmd.Process.Release()
	}
	_ = h.Signal(unix.SIGKILL)
	_ = cmd.Wait()
	return Record{}, nil, errors.Join(err, h.Close())
}

func launchFailed(lane driver.Lane, err error) error {
	return problem.New(problem.Internal, "supervisor.launch_failed", "start the supervisor of the %s lane", lane).WithCause(err).
		WithHint("see the file log in the supervisor's directory")
}

func startDetached(cfg LaunchConfig, p paths) (*exec.Cmd, int, error) {
	if err := keepDescriptors(); err != nil {
		return nil, -1, err
	}
	out, err := openOwnLog(p)
	if err != nil {
		return nil, -1, err
	}
	defer out.Close()
	pidfd := -1
	cmd := exec.Command(cfg.Executable, "supervisor", "--lane", string(cfg.Lane), "--dir", cfg.Dir)
	cmd.Dir, cmd.Env = "/", cfg.Env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	return cmd, pidfd, errors.Join(cmd.Start(), err)
}

func openOwnLog(p paths) (*os.File, error) {
	if st, err := os.Lstat(p.log); err == nil && st.Size() > ownLogBytesMax {
		if err := os.Rename(p.log, p.log+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW, fileMode)
}

// awaitListening polls: a lane is launched once in the life of a node, and an
// attempt to connect costs some 20 µs.
func awaitListening(ctx context.Context, cfg LaunchConfig, p paths, h *process.Handle) (Record, error) {
	tick := time.NewTicker(launchPoll)
	defer tick.Stop()
	for {
		ended := hasEnded(h)
		if listens(ctx, p) {
			return ReadRecord(cfg.Dir, cfg.Lane)
		}
		if ended {
			return Record{}, launchFailed(cfg.Lane, fmt.Errorf("it ended at once: %s", complaint(p)))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Record{}, launchFailed(cfg.Lane, fmt.Errorf("it did not listen in time: %w", ctx.Err()))
		}
	}
}

func hasEnded(h *process.Handle) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return h.Wait(ctx) == nil
}

// listens reports whether a supervisor answers on its socket.
func listens(ctx context.Context, p paths) bool {
	c, err := unixsocket.Dial(ctx, p.socket)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// complaint quotes the end of a supervisor's log.
func complaint(p paths) string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > complaintBytes {
		if _, err := f.Seek(-complaintBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, complaintBytes))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

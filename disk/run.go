package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// Limits of a program that works on a disk.
const (
	// outputBytesMax of what it says are kept.
	outputBytesMax = 1 << 10
	// runWait after its end for its output; its children are not waited for.
	runWait = 5 * time.Second
)

// FindTool gives the path of a program of e2fsprogs, from PATH or where Debian has
// it. Problem: Unavailable disk.no_tool.
func FindTool(name string) (string, error) {
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if p, err := exec.LookPath(p); err == nil {
			return p, nil
		}
	}
	return "", problem.New(problem.Unavailable, "disk.no_tool", "the program %s is missing", name).
		WithHint("install it: apt-get install e2fsprogs")
}

// FileArg among the arguments of a program that [RunOn] runs is the file that it works
// on: what is at the name of the file meanwhile does not matter.
const FileArg = "/proc/self/fd/3"

// RunOn runs a program on the regular file f, its argument [FileArg], and waits for its
// end. code is its exit code, -1 without one; words are the first
// KiB of what it said. The file is reached by descriptor alone, cannot grow beyond the
// size that it has at any time, and the program does not outlive this process.
func RunOn(ctx context.Context, f *os.File, program string, args ...string) (code int, words string, err error) {
	st, err := StatFile(f)
	if err != nil {
		return -1, "", err
	}
	// The kernel ends the program with the thread that started it, and only that thread
	// lets it go on, so that must be here until the end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Ptrace: true}
	cmd.WaitDelay = runWait
	var out bytes.Buffer
	cmd.Stdout = &head{&out, outputBytesMax}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return -1, "", err
	}
	if err = limit(cmd.Process.Pid, uint64(st.Size)); err != nil {
		_ = cmd.Process.Kill()
	}
	err = errors.Join(err, cmd.Wait())
	words = strings.Join(strings.Fields(out.String()), " ")
	if e := context.Cause(ctx); e != nil && err != nil {
		err = errors.Join(e, err)
	}
	return cmd.ProcessState.ExitCode(), words, err
}

// limit bounds the traced program pid, which stops before its first instruction, and
// then lets it run. One that has ended already needs no limit.
func limit(pid int, fileBytesMax uint64) error {
	// WNOWAIT leaves its end, should that be what came, to who waits for it.
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for the start of a program: %w", err)
		}
	}
	for _, l := range []struct {
		what int
		max  uint64
	}{{unix.RLIMIT_FSIZE, fileBytesMax}, {unix.RLIMIT_CORE, 0}} {
		if err := unix.Prlimit(pid, l.what, &unix.Rlimit{Cur: l.max, Max: l.max}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("limiting a program: %w", err)
		}
	}
	// A disk that makes a program take all memory costs the program, not a VM.
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("1000"), 0)
	if err := unix.PtraceDetach(pid); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("letting a program run: %w", err)
	}
	return nil
}

// head keeps the first bytes and takes the rest.
type head struct {
	w    io.Writer
	left int
}

func (h *head) Write(b []byte) (int, error) {
	k := min(h.left, len(b))
	h.left -= k
	if _, err := h.w.Write(b[:k]); err != nil {
		return 0, err
	}
	return len(b), nil
}

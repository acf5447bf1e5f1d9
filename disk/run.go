package disk

import (
	"bytes"
	"context"
	"errors"
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
// size that it has, and the program does not outlive this process.
func RunOn(ctx context.Context, f *os.File, program string, args ...string) (code int, words string, err error) {
	st, err := StatFile(f)
	if err != nil {
		return -1, "", err
	}
	// The kernel ends the program with the thread that started it, and so that must be
	// here until the end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = runWait
	var out bytes.Buffer
	cmd.Stdout = &head{&out, outputBytesMax}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return -1, "", err
	}
	for _, l := range []struct {
		what int
		max  uint64
	}{{unix.RLIMIT_FSIZE, uint64(st.Size)}, {unix.RLIMIT_CORE, 0}} {
		// One that has ended already needs no limit.
		if e := unix.Prlimit(cmd.Process.Pid, l.what, &unix.Rlimit{Cur: l.max, Max: l.max}, nil); e != nil && !errors.Is(e, unix.ESRCH) {
			err = e
		}
	}
	if err != nil {
		_ = cmd.Process.Kill()
	}
	// A disk that makes a program take all memory costs the program, not a VM.
	_ = os.WriteFile("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/oom_score_adj", []byte("1000"), 0)
	err = errors.Join(err, cmd.Wait())
	words = strings.Join(strings.Fields(out.String()), " ")
	if e := context.Cause(ctx); e != nil && err != nil {
		err = errors.Join(e, err)
	}
	return cmd.ProcessState.ExitCode(), words, err
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

package cli_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTerminal joins a guest's shell by console, exec and run from real terminals.
func TestTerminal(t *testing.T) {
	n := startNode(t)
	n.run(t, "vm", "create", "sh", "--image", "busybox", "--memory", "128MiB", "-it", "--", "sh")

	t.Run("console", func(t *testing.T) {
		first := n.open(t, "vm", "console", "sh")
		first.see("Ctrl-] leaves")
		first.typed("\r")
		first.see("# ")
		if first.canonical() {
			t.Error("the terminal is not raw while the console is joined")
		}
		first.typed("echo first$((40+2))\r")
		first.see("first42")

		// Another session watches what the first one types, until it takes its place.
		second := n.open(t, "vm", "console", "sh")
		second.see("another session writes (--steal takes its place)")
		second.see("first42") // the replay of the last screen
		first.typed("echo second$((1+1))\r")
		second.see("second2")
		second.leave()
		third := n.open(t, "vm", "console", "sh", "--steal")
		third.see("second2")
		third.typed("echo third$((2+1))\r")
		third.see("third3")
		first.see("third3")
		third.leave()
		first.leave()

		watch := n.open(t, "vm", "console", "sh", "--watch")
		watch.see("watching; Ctrl-] leaves")
		watch.see("third3")
		watch.leave()
	})
	t.Run("exec", func(t *testing.T) {
		p := n.open(t, "vm", "exec", "-it", "sh", "--", "sh", "-c", `stty size; read line; stty size; echo "got $line"; exit 5`)
		p.see("31 97")
		p.resize(40, 120)
		p.typed("word\r")
		p.see("40 120")
		p.see("got word")
		p.ends(5)
	})
	t.Run("interrupt", func(t *testing.T) {
		p := n.open(t, "vm", "exec", "-it", "sh", "--", "sh", "-c", `trap 'echo interrupted; exit 9' INT; echo waits; while :; do sleep 1; done`)
		p.see("waits")
		p.typed("\x03") // a key, which the guest's terminal makes a signal
		p.see("interrupted")
		p.ends(9)
	})
	n.run(t, "vm", "delete", "--force", "sh")
	t.Run("run", func(t *testing.T) {
		p := n.open(t, "run", "--rm", "-it", "--memory", "128MiB", "busybox", "--", "sh", "-c", `stty size; tty; exit 4`)
		p.see("31 97")
		p.see("/dev/")
		p.ends(4)
	})
	t.Run("table", func(t *testing.T) {
		p := n.open(t, "node", "list")
		p.see("\x1b[1mNAME") // a terminal gets colours
		p.ends(0)
	})
}

// testNode is a detached node in a directory of its own.
type testNode struct{ dir string }

// startNode starts one that the end of the test stops.
func startNode(t *testing.T) *testNode {
	t.Helper()
	bundle, err := filepath.Abs("../bin/bundle")
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{dir: t.TempDir()}
	t.Cleanup(func() {
		_ = n.command("node", "stop").Run()
		for begin := time.Now(); len(processes(n.dir)) > 0; <-time.After(lookAgain) {
			if time.Since(begin) < eventLimit/3 {
				continue // a supervisor ends by itself, a moment after its daemon
			}
			for pid, args := range processes(n.dir) {
				t.Errorf("left running: %s", args)
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	n.run(t, "node", "start", "--detach", "--data-dir", filepath.Join(n.dir, "data"), "--socket", filepath.Join(n.dir, "s"), "--bundle-dir", bundle, "--bind", "127.0.0.1:0")
	return n
}

func (n *testNode) command(args ...string) *exec.Cmd {
	cmd := exec.Command("blixard", args...)
	cmd.Dir = n.dir
	cmd.Env = append(append(os.Environ(), coverEnv()...), "BLIXARD_ADDR=unix:"+filepath.Join(n.dir, "s"), "TERM=xterm", "NO_COLOR=")
	return cmd
}

func (n *testNode) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("blixard %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// terminal is a program with a terminal, and the person before it.
type terminal struct {
	t             *testing.T
	cmd           *exec.Cmd
	master, slave *os.File
	before        unix.Termios
	reading       sync.WaitGroup

	mu sync.Mutex
	// shown is all that came, of which seen bytes were looked at.
	shown bytes.Buffer
	seen  int
}

// open starts the program in a terminal of 31 rows and 97 columns.
func (n *testNode) open(t *testing.T, args ...string) *terminal {
	t.Helper()
	p := &terminal{t: t, cmd: n.command(args...)}
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.master = os.NewFile(uintptr(m), "master")
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if p.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	p.resize(31, 97)
	p.before = p.termios()
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = p.slave, p.slave, p.slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.reading.Go(p.read)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		_ = p.slave.Close()
		_ = p.master.Close()
		p.reading.Wait()
	})
	return p
}

func (p *terminal) read() {
	buf := make([]byte, 4096)
	for {
		k, err := p.master.Read(buf)
		p.mu.Lock()
		p.shown.Write(buf[:k])
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// see waits until the text comes, behind what was seen before.
func (p *terminal) see(text string) {
	p.t.Helper()
	for begin := time.Now(); ; <-time.After(lookAgain) {
		p.mu.Lock()
		rest := p.shown.String()[p.seen:]
		i := strings.Index(rest, text)
		if i >= 0 {
			p.seen += i + len(text)
		}
		p.mu.Unlock()
		if i >= 0 {
			return
		}
		if time.Since(begin) > eventLimit {
			p.t.Fatalf("%v: %q did not come: %q", p.cmd.Args, text, rest)
		}
	}
}

func (p *terminal) typed(keys string) {
	p.t.Helper()
	if _, err := p.master.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

// leave presses the escape key: the program ends in order and the terminal is as
// it was, though the VM goes on.
func (p *terminal) leave() {
	p.t.Helper()
	p.typed("\x1d")
	p.see("Left the console of sh.")
	p.ends(0)
}

// ends waits for the program's end.
func (p *terminal) ends(code int) {
	p.t.Helper()
	kill := time.AfterFunc(eventLimit, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	_ = p.cmd.Wait()
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("%v ended with %v, not %d", p.cmd.Args, p.cmd.ProcessState, code)
	}
	if after := p.termios(); after != p.before {
		p.t.Errorf("%v left the terminal as %+v, it was %+v", p.cmd.Args, after, p.before)
	}
}

func (p *terminal) termios() unix.Termios {
	p.t.Helper()
	s, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *s
}

// canonical is whether the terminal still edits lines itself.
func (p *terminal) canonical() bool { return p.termios().Lflag&unix.ICANON != 0 }

func (p *terminal) resize(rows, columns uint16) {
	p.t.Helper()
	size := &unix.Winsize{Row: rows, Col: columns}
	if err := unix.IoctlSetWinsize(int(p.slave.Fd()), unix.TIOCSWINSZ, size); err != nil {
		p.t.Fatal(err)
	}
}

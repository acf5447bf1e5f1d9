package daemon_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/problem"
)

// The tests of this package run the real program with real microVMs. They need a
// guest bundle: `make bundle` makes it where bundleDir looks.

// bootLimit bounds the wait for a VM to run: a boot under emulation takes a
// second or two, and this machine may be busy with other tests.
const bootLimit = 90 * time.Second

// built is the program with failpoints, built once for all tests.
var built = sync.OnceValues(func() (string, error) {
	if p := os.Getenv("BLIXARD_TEST_BINARY"); p != "" {
		return p, nil
	}
	dir, err := os.MkdirTemp("", "blixard-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "blixard")
	cmd := exec.Command("go", "build", "-tags", "failpoints", "-o", path, "github.com/blixard/blixard/cmd/blixard")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if p, err := built(); err == nil && os.Getenv("BLIXARD_TEST_BINARY") == "" {
		_ = os.RemoveAll(filepath.Dir(p))
	}
	os.Exit(code)
}

// bundleDir is where the tests' guest bundle is.
func bundleDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../bin/bundle")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err != nil {
		t.Fatalf("no guest bundle in %s: run `make bundle`", dir)
	}
	return dir
}

// node is a daemon of its own process, in a directory of its own.
type node struct {
	t      testing.TB
	dir    string
	data   string
	socket string
	bundle string
	flags  []string
	env    []string
	// host is the network namespace it runs in; empty for the test's own.
	host string

	cmd    *exec.Cmd
	exited chan struct{}
	client *client.Client
}

// newNode makes a node that is not started. At the end of the test everything of
// it is ended, and it is an error if anything is left.
func newNode(t testing.TB, flags ...string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, dir: dir, data: filepath.Join(dir, "data"), socket: filepath.Join(dir, "s"), bundle: bundleDir(t), flags: flags}
	t.Cleanup(n.cleanup)
	return n
}

func startNode(t testing.TB, flags ...string) *node {
	t.Helper()
	n := newNode(t, flags...)
	n.start()
	return n
}

func (n *node) command(args ...string) *exec.Cmd {
	n.t.Helper()
	p, err := built()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(p, args...)
	if n.host != "" {
		cmd = exec.Command("nsenter", append([]string{"--net=/run/netns/" + n.host, p}, args...)...)
	}
	cmd.Env = append(append(os.Environ(), "BLIXARD_ADDR=unix:"+n.socket, "BLIXARD_NODE_BIND=127.0.0.1:0", "BLIXARD_NETWORK_DEFAULT=none",
		"BLIXARD_SCHEDULER_LOAD=off"), n.env...)
	if coverDir != "" {
		cmd.Env = append(cmd.Env, "GOCOVERDIR="+coverDir)
	}
	return cmd
}

// coverDir is where a program built with -cover puts what ran; `make cover` names
// it. The go command gives the tests a GOCOVERDIR of their own, whose content it
// throws away.
var coverDir = os.Getenv("BLIXARD_TEST_COVERDIR")

// start starts the daemon and waits until it answers.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	if !n.answers() {
		n.t.Fatalf("the daemon ended:\n%s", n.log())
	}
}

// answers waits until the daemon answers, or reports false when it ended first.
func (n *node) answers() bool {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		c, err := client.Dial(ctx, client.Config{Addr: "unix:" + n.socket, Timeout: 20 * time.Second})
		if err == nil {
			if _, err = c.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{}); err == nil {
				n.client = c
				return true
			}
			_ = c.Close()
		}
		select {
		case <-n.exited:
			return false
		case <-ctx.Done():
			n.t.Fatalf("the daemon does not answer: %v\n%s", err, n.log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (n *node) launch() {
	n.t.Helper()
	if err := os.MkdirAll(n.data, 0o700); err != nil {
		n.t.Fatal(err)
	}
	out, err := os.OpenFile(filepath.Join(n.dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	n.cmd = n.command(append([]string{"node", "start", "--data-dir", n.data, "--socket", n.socket, "--bundle-dir", n.bundle, "--log-level", "debug"}, n.flags...)...)
	n.cmd.Stdout, n.cmd.Stderr = out, out
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.exited = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(n.cmd, n.exited)
}

func (n *node) log() string {
	b, _ := os.ReadFile(filepath.Join(n.dir, "daemon.log"))
	return string(b[max(0, len(b)-8000):])
}

// kill9 ends the daemon as a crash does.
func (n *node) kill9() {
	n.t.Helper()
	_ = n.cmd.Process.Kill()
	<-n.exited
	_ = n.client.Close()
}

// stop ends the daemon as a person does.
func (n *node) stop() {
	n.t.Helper()
	_ = n.client.Close()
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
	case <-time.After(30 * time.Second):
		n.t.Fatalf("the daemon does not stop:\n%s", n.log())
	}
}

func (n *node) cleanup() {
	if n.t.Failed() {
		n.t.Logf("the daemon's log:\n%s", n.log())
	}
	end, patience := syscall.SIGKILL, 10*time.Second
	if coverDir != "" {
		// A process that is killed can't tell what of it ran.
		end, patience = syscall.SIGTERM, 30*time.Second
	}
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(end)
		<-n.exited
	}
	if n.client != nil {
		_ = n.client.Close()
	}
	for _, lane := range []string{"shared", "exclusive"} {
		if pid := n.supervisor(lane); pid != 0 {
			_ = syscall.Kill(pid, end)
		}
	}
	eventually(n.t, "every process of the node ends", patience, func() bool { return len(n.processes()) == 0 })
}

// processes are those whose arguments or directory name this node.
func (n *node) processes() map[int]string { return boottest.Processes(n.dir) }

// supervisor gives the pid of a lane's supervisor; 0 when there is none.
func (n *node) supervisor(lane string) int {
	for pid, args := range n.processes() {
		if strings.Contains(args, " supervisor ") && strings.Contains(args, lane) {
			return pid
		}
	}
	return 0
}

// qemus are the pids of the node's hypervisors.
func (n *node) qemus() []int {
	var out []int
	for pid, args := range n.processes() {
		if strings.Contains(args, "qemu-system") {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

func eventually(t testing.TB, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Errorf("not within %v: %s", limit, what)
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}

// create declares a VM and gives its first form.
func (n *node) create(name string, change func(*blixardv1.VMSpec)) *blixardv1.VM {
	n.t.Helper()
	spec := &blixardv1.VMSpec{Image: "busybox", MemoryMib: 128, DiskBytes: 64 << 20, Command: []string{"sleep", "1000000"}}
	if change != nil {
		change(spec)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resp, err := n.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: name, Spec: spec})
	if err != nil {
		n.t.Fatalf("create %s: %v", name, err)
	}
	return resp.GetVm()
}

// await watches until the VM is as wanted; nil stands for a VM that is gone.
func (n *node) await(name, what string, ok func(*blixardv1.VM) bool) *blixardv1.VM {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	var last *blixardv1.VM
	for {
		w, err := n.client.VMs().WatchVMs(ctx, &blixardv1.WatchVMsRequest{Name: name})
		for err == nil {
			var m *blixardv1.WatchVMsResponse
			if m, err = w.Recv(); err != nil {
				break
			}
			vm := m.GetVm()
			if m.GetDeleted() {
				vm = nil
			} else if vm == nil {
				continue
			} else {
				last = vm
			}
			if ok(vm) {
				return vm
			}
		}
		if problem.Is(err, problem.NotFound) && ok(nil) {
			return nil
		}
		if ctx.Err() != nil {
			n.t.Fatalf("VM %s: not within %v: %s; the last state is %v (%s: %s)\n%s", name, bootLimit, what,
				last.GetStatus().GetState(), last.GetStatus().GetReason(), last.GetStatus().GetMessage(), n.log())
		}
		<-time.After(20 * time.Millisecond)
	}
}

func running(vm *blixardv1.VM) bool {
	return vm.GetStatus().GetState() == blixardv1.AllocationState_running
}

func (n *node) awaitRunning(name string) *blixardv1.VM {
	n.t.Helper()
	return n.await(name, "it runs", running)
}

func (n *node) delete(name string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := n.client.VMs().DeleteVM(ctx, &blixardv1.DeleteVMRequest{Name: name, Force: true}); err != nil && !problem.Is(err, problem.NotFound) {
		n.t.Fatalf("delete %s: %v", name, err)
	}
	n.await(name, "it is gone", func(vm *blixardv1.VM) bool { return vm == nil })
}

// exec runs a command in a VM by the command line and gives its output.
func (n *node) exec(name string, argv ...string) (string, error) {
	n.t.Helper()
	cmd := n.command(append([]string{"vm", "exec", name, "--"}, argv...)...)
	cmd.Stderr = io.Discard
	out, err := cmd.Output()
	return string(out), err
}

// leftovers are what is in the node's directories of VMs.
func (n *node) leftovers() []string {
	var out []string
	vms, _ := filepath.Glob(filepath.Join(n.data, "vms", "*"))
	out = append(out, vms...)
	for _, pid := range n.qemus() {
		out = append(out, fmt.Sprint("qemu ", pid))
	}
	return out
}

// arm makes the next start of the daemon end itself at a point.
func (n *node) arm(point string) { n.env = []string{failpoint.Env + "=" + point} }

func (n *node) disarm() { n.env = nil }

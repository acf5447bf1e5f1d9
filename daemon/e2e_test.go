package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/failpoint"
)

// Promise 4: VMs go on running while the daemon is killed, and are adopted again
// with their boots, consoles and guests.
func TestTenVMsOutliveKill9(t *testing.T) {
	n := startNode(t)
	const vms = 10
	before := map[string]*blixardv1.VM{}
	for k := range vms {
		n.create(fmt.Sprint("vm", k), nil)
	}
	for k := range vms {
		vm := n.awaitRunning(fmt.Sprint("vm", k))
		before[vm.GetName()] = vm
	}
	pids := n.qemus()
	n.kill9()
	if got := n.qemus(); fmt.Sprint(got) != fmt.Sprint(pids) {
		t.Fatalf("hypervisors %v before the kill, %v after", pids, got)
	}
	n.start()
	resp, err := n.client.VMs().ListVMs(t.Context(), &blixardv1.ListVMsRequest{})
	if err != nil || len(resp.GetVms()) != vms {
		t.Fatalf("%d VMs, %v", len(resp.GetVms()), err)
	}
	for _, vm := range resp.GetVms() {
		was := before[vm.GetName()].GetStatus()
		if st := vm.GetStatus(); st.GetBootId() != was.GetBootId() || !running(vm) || st.GetEpoch() != was.GetEpoch() {
			t.Errorf("VM %s was boot %s epoch %d, is %s boot %s epoch %d", vm.GetName(), was.GetBootId(), was.GetEpoch(), st.GetState(), st.GetBootId(), st.GetEpoch())
		}
	}
	eventually(t, "the guest answers the new daemon", 20*time.Second, func() bool {
		id, err := n.exec("vm3", "cat", "/proc/sys/kernel/random/boot_id")
		return err == nil && strings.TrimSpace(id) == before["vm3"].GetStatus().GetBootId()
	})
	if got := n.qemus(); fmt.Sprint(got) != fmt.Sprint(pids) {
		t.Fatalf("hypervisors %v before, %v after the new start", pids, got)
	}
}

// Twenty boots of twenty, with each kernel of the bundle.
func TestTwentyBootsOfTwenty(t *testing.T) {
	n := startNode(t, "--boot-tries", "1")
	var kernels []string
	eventually(t, "the node is registered", 10*time.Second, func() bool {
		st, err := n.client.Nodes().GetStatus(t.Context(), &blixardv1.GetStatusRequest{})
		kernels = st.GetNode().GetFingerprint().GetKernels()
		return err == nil && len(kernels) > 0
	})
	if len(kernels) < 2 {
		t.Fatalf("the bundle has only the kernels %v: run `make kernel bundle`", kernels)
	}
	for _, kernel := range kernels {
		t.Run(kernel, func(t *testing.T) {
			var wg sync.WaitGroup
			for lane := range 2 { // two at a time, as many as there are processors
				wg.Go(func() {
					for k := range 10 {
						name := fmt.Sprintf("%s-%d-%d", kernel, lane, k)
						n.create(name, func(s *blixardv1.VMSpec) { s.Kernel = kernel; s.Restart = never() })
						if vm := n.awaitRunning(name); vm.GetStatus().GetKernel() != kernel {
							t.Errorf("VM %s booted kernel %q", name, vm.GetStatus().GetKernel())
						}
						n.delete(name)
					}
				})
			}
			wg.Wait()
		})
	}
}

func never() *blixardv1.RestartPolicy {
	return &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_never}
}

// The daemon dies at every point of create, start, stop and delete; after its
// restart the step is finished, and in the end nothing is left.
func TestKillAtEveryPoint(t *testing.T) {
	for _, point := range failpoint.Points {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			n := startNode(t)
			n.create("base", nil)
			n.awaitRunning("base")
			n.stop()
			n.arm(point)
			n.launch()
			// The life of a VM, as far as the daemon lives: each step again after its
			// death, as a person would repeat it.
			died := n.lifeUntilDeath()
			if !died {
				t.Fatalf("the point %s was never reached", point)
			}
			if ws, ok := n.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("the daemon ended by itself: %v", n.cmd.ProcessState)
			}
			n.disarm()
			n.start()
			n.finishLife()
			n.delete("base")
			eventually(t, "nothing is left", 20*time.Second, func() bool { return len(n.leftovers()) == 0 })
			if left := n.leftovers(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// lifeUntilDeath drives a VM through its life by the command line and reports
// whether the daemon died on the way.
func (n *node) lifeUntilDeath() bool {
	if !n.answers() {
		return true
	}
	for _, args := range [][]string{
		{"vm", "create", "probe", "--image", "busybox", "--memory", "128MiB", "--disk", "64MiB", "--", "sleep", "1000000"},
		{"vm", "stop", "probe"},
		{"vm", "start", "probe"},
		{"vm", "exec", "probe", "--", "true"},
		{"run", "--rm", "--name", "short", "busybox", "--", "true"},
		{"vm", "delete", "probe"},
	} {
		cmd := n.command(append([]string{"--timeout", "20s"}, args...)...)
		if err := cmd.Start(); err != nil {
			n.t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = cmd.Wait() // the daemon's death makes it fail, and that is the point
		}()
		select {
		case <-n.exited:
			_ = cmd.Process.Kill()
			<-done
			return true
		case <-done:
		}
	}
	// What goes on behind the last command may still lead to the point.
	select {
	case <-n.exited:
		return true
	case <-time.After(2 * time.Second):
		return false
	}
}

// finishLife waits until all VMs are at rest and deletes them.
func (n *node) finishLife() {
	n.t.Helper()
	n.awaitRunning("base")
	for _, name := range []string{"probe", "short"} {
		n.delete(name)
	}
}

func TestLostVMM(t *testing.T) {
	n := startNode(t)
	n.create("a", nil)
	first := n.awaitRunning("a")
	pid := n.qemus()[0]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := n.await("a", "it runs again", func(vm *blixardv1.VM) bool {
		return running(vm) && vm.GetStatus().GetBootId() != first.GetStatus().GetBootId()
	})
	if again.GetStatus().GetRestarts() != 1 || again.GetStatus().GetEpoch() != first.GetStatus().GetEpoch() {
		t.Fatalf("after the restart: %v", again.GetStatus())
	}
	// One whose policy is never stays down, with a reason.
	n.create("b", func(s *blixardv1.VMSpec) { s.Restart = never() })
	n.awaitRunning("b")
	for _, p := range n.qemus() {
		if p != n.qemuOf("a") {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
	}
	vm := n.await("b", "it failed", func(vm *blixardv1.VM) bool { return vm.GetStatus().GetState() == blixardv1.AllocationState_failed })
	if vm.GetStatus().GetReason() != "vmm_lost" || !strings.Contains(vm.GetStatus().GetMessage(), "signal 9") {
		t.Fatalf("status %v", vm.GetStatus())
	}
}

func (n *node) qemuOf(name string) int {
	resp, err := n.client.VMs().GetVM(context.Background(), &blixardv1.GetVMRequest{Name: name})
	if err != nil {
		n.t.Fatal(err)
	}
	id := resp.GetVm().GetStatus().GetAllocationId()
	for pid, args := range n.processes() {
		if strings.Contains(args, "guest="+id+".") {
			return pid
		}
	}
	return 0
}

// A stopped hypervisor answers nothing: it is noticed, ended and started anew; and
// deleting a VM whose hypervisor hangs always ends.
func TestHungVMM(t *testing.T) {
	n := startNode(t)
	n.create("hangs", nil)
	n.create("deleted", nil)
	first := n.awaitRunning("hangs")
	n.awaitRunning("deleted")
	for _, pid := range n.qemus() {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	n.delete("deleted")
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("deleting it took %v", took)
	}
	n.await("hangs", "it runs again", func(vm *blixardv1.VM) bool {
		return running(vm) && vm.GetStatus().GetBootId() != first.GetStatus().GetBootId()
	})
}

// If the supervisor dies its VMs die with it, and are started again by policy.
func TestLostSupervisor(t *testing.T) {
	n := startNode(t)
	n.create("a", nil)
	n.create("b", func(s *blixardv1.VMSpec) { s.Restart = never() })
	first := n.awaitRunning("a")
	n.awaitRunning("b")
	pids := n.qemus()
	if err := syscall.Kill(n.supervisor("shared"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old hypervisors end", 5*time.Second, func() bool {
		for _, p := range pids {
			if syscall.Kill(p, 0) == nil {
				return false
			}
		}
		return true
	})
	n.await("a", "it runs again", func(vm *blixardv1.VM) bool {
		return running(vm) && vm.GetStatus().GetBootId() != first.GetStatus().GetBootId()
	})
	n.await("b", "it failed", func(vm *blixardv1.VM) bool { return vm.GetStatus().GetState() == blixardv1.AllocationState_failed })
}

// The fence is the kernel's: with daemon and supervisor both stopped, an exclusive
// VM is gone at its deadline, and a shared one is not.
func TestExclusiveVMEndsWithItsLease(t *testing.T) {
	const ttl = 3 * time.Second
	n := startNode(t, "--lease-ttl", ttl.String())
	n.create("exclusive", func(s *blixardv1.VMSpec) { s.OnNodeLoss = blixardv1.NodeLossPolicy_failover })
	n.create("shared", nil)
	n.awaitRunning("exclusive")
	n.awaitRunning("shared")
	fenced, free := n.qemuOf("exclusive"), n.qemuOf("shared")
	lane := n.supervisor("exclusive")
	if fenced == 0 || free == 0 || lane == 0 {
		t.Fatalf("processes %d, %d, %d", fenced, free, lane)
	}
	// It lives for more than a period while the daemon renews.
	<-time.After(ttl + time.Second)
	if syscall.Kill(fenced, 0) != nil {
		t.Fatal("it ended although its lease was renewed")
	}
	for _, pid := range []int{lane, n.cmd.Process.Pid} {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	stopped := time.Now()
	eventually(t, "the exclusive VM ends", ttl+2*time.Second, func() bool { return !alive(fenced) })
	t.Logf("it was gone %v after the stop; its lease lasts %v", time.Since(stopped), ttl)
	if !alive(free) {
		t.Error("the shared VM ended too")
	}
	_ = syscall.Kill(n.cmd.Process.Pid, syscall.SIGCONT)
	n.await("exclusive", "it runs again on the same node", running)
}

// alive tells a living process from a dead or unreaped one.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// A planned restart of the daemon asks for one long lease first, so exclusive VMs
// outlive it.
func TestExclusiveVMOutlivesAPlannedRestart(t *testing.T) {
	n := startNode(t, "--lease-ttl", "2s", "--lease-restart", "30s")
	n.create("exclusive", func(s *blixardv1.VMSpec) { s.OnNodeLoss = blixardv1.NodeLossPolicy_failover })
	first := n.awaitRunning("exclusive")
	pid := n.qemuOf("exclusive")
	n.stop()
	<-time.After(4 * time.Second) // two periods
	if !alive(pid) {
		t.Fatal("it ended during the planned restart")
	}
	n.start()
	vm := n.awaitRunning("exclusive")
	if vm.GetStatus().GetBootId() != first.GetStatus().GetBootId() {
		t.Fatal("it was booted anew")
	}
}

// A guest's reboot keeps its disk and its place.
func TestGuestRebootKeepsTheDisk(t *testing.T) {
	n := startNode(t)
	n.create("a", nil)
	first := n.awaitRunning("a")
	if _, err := n.exec("a", "sh", "-c", "echo kept >/kept && sync"); err != nil {
		t.Fatal(err)
	}
	_, _ = n.exec("a", "reboot") // ends with the guest
	vm := n.await("a", "it runs again", func(vm *blixardv1.VM) bool {
		return running(vm) && vm.GetStatus().GetBootId() != first.GetStatus().GetBootId()
	})
	if vm.GetStatus().GetAllocationId() != first.GetStatus().GetAllocationId() {
		t.Fatal("it was placed anew")
	}
	out, err := n.exec("a", "cat", "/kept")
	if err != nil || out != "kept\n" {
		t.Fatalf("after the reboot: %q, %v", out, err)
	}
}

// A console flood neither grows the daemon nor fills the disk.
func TestConsoleFlood(t *testing.T) {
	n := startNode(t, "--console-log-size", "1MiB", "--console-log-files", "2")
	n.create("quiet", nil)
	n.awaitRunning("quiet")
	before := n.memory()
	n.create("loud", func(s *blixardv1.VMSpec) { s.Command = []string{"yes", strings.Repeat("flood", 200)} })
	vm := n.awaitRunning("loud")
	dir := filepath.Join(n.data, "vms", vm.GetStatus().GetAllocationId())
	eventually(t, "the log is rotated", 60*time.Second, func() bool {
		m, _ := filepath.Glob(filepath.Join(dir, "console.log.*"))
		return len(m) > 0
	})
	var size int64
	files, _ := filepath.Glob(filepath.Join(dir, "console.log*"))
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			size += st.Size()
		}
	}
	if size > 3<<20 {
		t.Errorf("the logs take %d bytes", size)
	}
	if grown := n.memory() - before; grown > 10<<20 {
		t.Errorf("daemon and supervisor grew by %d bytes", grown)
	}
	if out, err := n.exec("quiet", "echo", "fine"); err != nil || out != "fine\n" {
		t.Errorf("the other VM: %q, %v", out, err)
	}
	n.delete("loud")
}

// memory of daemon and supervisors that is theirs alone, in bytes.
func (n *node) memory() int64 {
	var sum int64
	for pid, args := range n.processes() {
		if strings.Contains(args, "qemu-system") {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
			if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
				kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
				sum += kib << 10
			}
		}
	}
	return sum
}

// Two hundred rounds of create, start, stop and delete leave nothing behind.
func TestTwoHundredRoundsLeaveNothing(t *testing.T) {
	n := startNode(t)
	const lanes, rounds = 4, 50
	interfaces := interfaceNames(t)
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for k := range rounds {
				name := fmt.Sprintf("r%d-%d", lane, k)
				n.create(name, nil)
				switch k % 5 {
				case 0: // at once
				case 1:
					n.awaitRunning(name)
				case 2: // in the middle of the start
					n.await(name, "it starts", func(vm *blixardv1.VM) bool {
						return vm.GetStatus().GetState() >= blixardv1.AllocationState_starting
					})
				case 3:
					n.awaitRunning(name)
					if out, err := n.command("vm", "stop", name).CombinedOutput(); err != nil {
						t.Errorf("stop: %v\n%s", err, out)
					}
				case 4:
					if out, err := n.command("vm", "stop", name).CombinedOutput(); err != nil {
						t.Errorf("stop: %v\n%s", err, out)
					}
					if out, err := n.command("vm", "start", name).CombinedOutput(); err != nil {
						t.Errorf("start: %v\n%s", err, out)
					}
				}
				n.delete(name)
			}
		})
	}
	wg.Wait()
	if left := n.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if after := interfaceNames(t); after != interfaces {
		t.Errorf("interfaces were %s, are %s", interfaces, after)
	}
	n.stop()
	eventually(t, "no process is left", 10*time.Second, func() bool { return len(n.processes()) == 0 })
}

func interfaceNames(t *testing.T) string {
	dirs, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range dirs {
		if !strings.HasPrefix(d.Name(), "blxprobe") { // of a daemon beside, and gone with the file that made it
			names = append(names, d.Name())
		}
	}
	return strings.Join(names, " ")
}

// What cannot be started is refused with a way out, and changes nothing.
func TestDaemonRefusals(t *testing.T) {
	used := startNode(t)
	fakeQEMU := filepath.Join(t.TempDir(), "qemu-old")
	if err := os.WriteFile(fakeQEMU, []byte("#!/bin/sh\necho 'QEMU emulator version 5.2.0'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		setup func(*node)
		code  string
	}{
		{"data directory in use", func(n *node) { n.data = used.data }, "data.in_use"},
		{"socket in use", func(n *node) { n.socket = used.socket }, "socket.in_use"},
		{"socket is a file", func(n *node) {
			if err := os.WriteFile(n.socket, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "socket.not_a_socket"},
		{"socket name too long", func(n *node) { n.socket = filepath.Join(n.dir, strings.Repeat("s", 120)) }, "socket.path_too_long"},
		{"newer data", func(n *node) {
			if err := os.MkdirAll(n.data, 0o700); err != nil {
				t.Fatal(err)
			}
			b, _ := json.Marshal(map[string]any{"format": 99, "node_id": "node-x"})
			if err := os.WriteFile(filepath.Join(n.data, "node.json"), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "data.newer"},
		{"damaged identity", func(n *node) {
			if err := os.MkdirAll(n.data, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(n.data, "node.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "data.damaged"},
		{"QEMU missing", func(n *node) { n.flags = []string{"--qemu-path", "/nonexistent/qemu"} }, "driver.qemu_missing"},
		{"QEMU too old", func(n *node) { n.flags = []string{"--qemu-path", fakeQEMU} }, "driver.qemu_too_old"},
		{"no bundle", func(n *node) { n.bundle = filepath.Join(n.dir, "none") }, "bundle."},
		{"reserves everything", func(n *node) { n.flags = []string{"--node-reserved-memory", "1TiB"} }, "config."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			tc.setup(n)
			out, err := n.command(append([]string{"node", "start", "--data-dir", n.data, "--socket", n.socket, "--bundle-dir", n.bundle}, n.flags...)...).CombinedOutput()
			var exit *exec.ExitError
			if err == nil || !errorsAs(err, &exit) || !strings.Contains(string(out), "code: "+tc.code) || !strings.Contains(string(out), "hint: ") {
				t.Fatalf("%v\n%s", err, out)
			}
			early := strings.HasPrefix(tc.code, "socket.") || strings.HasPrefix(tc.code, "bundle.")
			if _, err := os.Lstat(n.data); early && err == nil {
				t.Error("the refusal left a data directory")
			}
			if st, err := os.Lstat(n.socket); err == nil && st.Mode()&os.ModeSocket != 0 && n.socket != used.socket {
				t.Error("the refusal left a socket")
			}
			if strings.Contains(string(out), "goroutine ") {
				t.Fatalf("a stack trace:\n%s", out)
			}
		})
	}
	// The node whose directory was asked for goes on.
	if _, err := used.client.Nodes().GetStatus(t.Context(), &blixardv1.GetStatusRequest{}); err != nil {
		t.Fatal(err)
	}
}

func errorsAs(err error, target **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*target = e
	return ok
}

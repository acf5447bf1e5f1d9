package daemon_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestMovedVolumeStaysAway: a node that a volume was moved from never starts a VM on
// what it had, not even when an old copy of the disk comes back.
func TestMovedVolumeStaysAway(t *testing.T) {
	c := startCluster(t)
	first, second := c.nodes[0], c.nodes[1]
	first.blixard("volume", "create", "data", "--size", "64MiB", "--node", "n1")
	create := func() {
		first.create("a", func(s *blixardv1.VMSpec) {
			s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "data", Path: "/data"}}
			s.Restart = &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_always}
		})
	}
	create()
	first.awaitRunning("a")
	write := func(n *node, text string) {
		t.Helper()
		if _, err := n.exec("a", "sh", "-c", "echo "+text+" >>/data/log && sync"); err != nil {
			t.Fatal(err)
		}
	}
	write(first, "old")
	first.blixard("vm", "stop", "a")
	resp, err := first.client.Volumes().GetVolume(t.Context(), &blixardv1.GetVolumeRequest{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	dir, old := filepath.Join(first.data, "volumes", resp.GetVolume().GetId()), filepath.Join(first.dir, "old")
	run(t, "", "cp", "-a", dir, old)
	// What is in use is not moved, whether its VM runs or not.
	for _, verb := range []string{"start", "stop"} {
		first.blixard("vm", verb, "a")
		if out, err := first.command("volume", "move", "data", "n2").CombinedOutput(); err == nil {
			t.Errorf("a volume that is in use was moved:\n%s", out)
		}
	}
	if files, err := filepath.Glob(filepath.Join(second.data, "volumes", "vol-*")); len(files) > 0 || err != nil {
		t.Errorf("what was not to move left %v on the other node, %v", files, err)
	}
	first.blixard("volume", "detach", "a", "data")
	first.blixard("volume", "move", "data", "n2")
	eventually(t, "the old node has no files of it", healLimit, func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
	// The VM that had it is placed where it was, and can't have it back.
	out, err := first.command("volume", "attach", "a", "data", "/data").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "placement.volume_elsewhere") {
		t.Errorf("the old VM has the volume again: %v\n%s", err, out)
	}
	first.delete("a")
	create()
	if node := first.awaitRunning("a").GetStatus().GetNode(); node != "n2" {
		t.Errorf("it runs on %s", node)
	}
	write(second, "new")

	// The old disk is put back while the node's daemon is dead, and the VM's is, too.
	first.kill9()
	run(t, "", "cp", "-a", old, dir)
	second.powerLoss()
	first.launch()
	if !first.answers() {
		t.Fatalf("the daemon ended:\n%s", first.log())
	}
	eventually(t, "there is a leader", healLimit, func() bool { return c.leader() != nil })
	_, _ = first.command("--timeout", "10s", "vm", "restart", "a").CombinedOutput() // there is nowhere to
	if pids := first.qemus(); len(pids) > 0 {
		t.Fatalf("the old node runs hypervisors %v on its old copy", pids)
	}
	second.start()
	vm := first.await("a", "it runs again", func(vm *blixardv1.VM) bool { return running(vm) && vm.GetStatus().GetNode() == "n2" })
	var log string
	eventually(t, "the guest answers", 30*time.Second, func() bool { log, err = first.exec("a", "cat", "/data/log"); return err == nil })
	if log != "old\nnew\n" {
		t.Errorf("on %s the volume has %q", vm.GetStatus().GetNode(), log)
	}
	if pids := first.qemus(); len(pids) > 0 {
		t.Errorf("the old node runs hypervisors %v", pids)
	}
	// The old copy is told of, and nobody touched it.
	if st := first.blixard("node", "status"); !strings.Contains(st, resp.GetVolume().GetId()) {
		t.Errorf("the status does not tell of the stray disk:\n%s", st)
	}
	if out, err := exec.Command("diff", "-r", old, dir).CombinedOutput(); err != nil {
		t.Errorf("the old copy was changed: %v\n%s", err, out)
	}
}

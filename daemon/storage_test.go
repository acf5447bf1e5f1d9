package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// label makes one change of a VM that need not run.
func (n *node) label(name, value string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := n.client.VMs().LabelVM(ctx, &blixardv1.LabelVMRequest{Name: name, Labels: map[string]string{"l": value}})
	return err
}

func (n *node) get(name string) *blixardv1.VM {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resp, err := n.client.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: name})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetVm()
}

// idle is a spec of a VM that shall not run.
func idle(spec *blixardv1.VMSpec) { spec.Desired = blixardv1.DesiredState_stop }

// newestSegment gives the newest file of the node's log, what it holds, and where
// what was written ends.
func (n *node) newestSegment() (path string, content []byte, end int) {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.data, "raft", "log", "*.log"))
	if err != nil || len(files) == 0 {
		n.t.Fatalf("%v, %v", files, err)
	}
	slices.Sort(files)
	path = files[len(files)-1]
	if content, err = os.ReadFile(path); err != nil {
		n.t.Fatal(err)
	}
	return path, content, len(bytes.TrimRight(content, "\x00"))
}

// TestTornLog: a log that ends within its last write loses at most that one, and
// the node goes on.
func TestTornLog(t *testing.T) {
	n := startNode(t)
	n.create("a", idle)
	for i := range 20 {
		if err := n.label("a", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	n.kill9()
	path, _, end := n.newestSegment()
	if err := os.Truncate(path, int64(end-20)); err != nil {
		t.Fatal(err)
	}
	n.start()
	if got := n.get("a").GetLabels()["l"]; got != "18" && got != "19" {
		t.Errorf("the label is %q", got)
	}
	if err := n.label("a", "after"); err != nil {
		t.Fatal(err)
	}
	n.kill9()
	n.start()
	if got := n.get("a").GetLabels()["l"]; got != "after" {
		t.Errorf("the label is %q", got)
	}
}

// TestDamagedLog: a byte that changed on the disk is told with its file, and
// nothing is guessed.
func TestDamagedLog(t *testing.T) {
	n := startNode(t)
	n.create("a", idle)
	for i := range 20 {
		if err := n.label("a", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	n.kill9()
	path, content, end := n.newestSegment()
	const firstFrame = 4096 // behind the header's page
	at := (firstFrame + end) / 2
	content[at] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	n.launch()
	if n.answers() {
		t.Fatal("a node with a damaged log answers")
	}
	for _, want := range []string{"data.damaged", filepath.Base(path), "offset"} {
		if !strings.Contains(n.log(), want) {
			t.Errorf("the refusal does not say %q:\n%s", want, n.log())
		}
	}
	content[at] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	if got := n.get("a").GetLabels()["l"]; got != "19" {
		t.Errorf("the label is %q", got)
	}
}

// TestFullDisk: a node whose disk is full refuses changes and says why, still
// answers, and goes on by itself when there is space.
func TestFullDisk(t *testing.T) {
	_ = t.TempDir() // so that its removal comes last
	data := ""
	t.Cleanup(func() {
		if out, err := exec.Command("umount", data).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	n := newNode(t)
	data = n.data
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(n.dir, "image")
	for _, command := range [][]string{
		{"truncate", "-s", "64M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, data},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	n.start()
	n.create("a", idle)
	ballast := filepath.Join(data, "ballast")
	fill(t, ballast)
	big := strings.Repeat("x", 1000)
	err := n.label("a", big)
	acknowledged := 0
	for ; err == nil; err = n.label("a", fmt.Sprint(acknowledged, big)) {
		acknowledged++
		fill(t, ballast)
	}
	if !problem.HasCode(err, "storage.full") && !problem.HasCode(err, "change.unknown") {
		t.Fatalf("after %d changes: %v", acknowledged, err)
	}
	eventually(t, "changes are refused at once", 30*time.Second, func() bool { return problem.HasCode(n.label("a", "y"), "storage.full") })
	if got := n.get("a").GetName(); got != "a" {
		t.Errorf("read %q", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	st, err := n.client.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{})
	if err != nil || !strings.Contains(strings.Join(st.GetNotices(), " "), "disk") {
		t.Errorf("the status says %v, %v", st.GetNotices(), err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "changes are taken again", 30*time.Second, func() bool { return n.label("a", "after") == nil })
	n.kill9()
	n.start()
	if got := n.get("a").GetLabels()["l"]; got != "after" {
		t.Errorf("the label is %q", got)
	}
}

// fill makes a file grow until there is no space.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1 << 20, 4096} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

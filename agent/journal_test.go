package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

func testRecord(id string) *blixardv1.AllocationRecord {
	return &blixardv1.AllocationRecord{
		Format: recordFormat, Boots: 1, Channel: make([]byte, channelBytes),
		Allocation: &blixardv1.Allocation{Id: id, Spec: &blixardv1.VMSpec{Image: "busybox"}},
		Status:     &blixardv1.VMStatus{State: blixardv1.AllocationState_running},
	}
}

func TestJournalKeepsAndRemoves(t *testing.T) {
	j, err := openJournal(filepath.Join(t.TempDir(), "vms"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"alloc-a", "alloc-b"} {
		if err := j.put(testRecord(id)); err != nil {
			t.Fatal(err)
		}
	}
	// What a crash left: a directory whose record was never written, or is gone.
	if err := os.MkdirAll(filepath.Join(j.dir, "alloc-c", "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := j.load()
	if err != nil || len(got) != 2 || !proto.Equal(got[0], testRecord("alloc-a")) {
		t.Fatalf("load: %v, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(j.dir, "alloc-c")); !os.IsNotExist(err) {
		t.Fatalf("the unannounced directory is still there: %v", err)
	}
	if err := os.WriteFile(filepath.Join(j.dir, "alloc-a", rootDisk), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := j.remove("alloc-a"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err = j.load(); err != nil || len(got) != 1 {
		t.Fatalf("after the removal: %v, %v", got, err)
	}
}

func TestJournalRemovalDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	if err := os.WriteFile(canary, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(filepath.Join(dir, "vms"))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.put(testRecord("alloc-a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(j.dir, "alloc-a", "out")); err != nil {
		t.Fatal(err)
	}
	if err := j.remove("alloc-a"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "keep" {
		t.Fatalf("the canary is %q, %v", b, err)
	}
}

func TestJournalRefuses(t *testing.T) {
	j, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "..", "a/b", "A", strings.Repeat("a", 64), "a\x00"} {
		if err := j.put(testRecord(id)); !problem.HasCode(err, "allocation.bad_id") {
			t.Errorf("put %q: %v", id, err)
		}
		if err := j.remove(id); !problem.HasCode(err, "allocation.bad_id") {
			t.Errorf("remove %q: %v", id, err)
		}
	}
	damage := map[string]func(string) error{
		"garbage":   func(p string) error { return os.WriteFile(p, []byte("\xff\xff"), 0o600) },
		"empty":     func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"too large": func(p string) error { return os.Truncate(p, recordBytesMax+1) },
		"a link":    func(p string) error { _ = os.Remove(p); return os.Symlink("/etc/passwd", p) },
		"of another": func(p string) error {
			b, err := proto.Marshal(testRecord("alloc-z"))
			if err != nil {
				return err
			}
			return os.WriteFile(p, b, 0o600)
		},
	}
	for name, do := range damage {
		if err := j.put(testRecord("alloc-a")); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(j.dir, "alloc-a", recordFile)
		if err := do(path); err != nil {
			t.Fatal(err)
		}
		if _, err := j.load(); !problem.HasCode(err, "agent.record_damaged") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		_ = os.Remove(path)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := proto.Marshal(testRecord("alloc-a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		if r.GetFormat() != recordFormat || r.GetAllocation().GetSpec() == nil || r.GetStatus() == nil {
			t.Fatalf("accepted an incomplete record %v", r)
		}
		// What is accepted must not break the core.
		c := NewCore(Limits{}, "tcg", func() []byte { return make([]byte, channelBytes) })
		c.Recover(r, nil)
		c.Synced()
		c.Poll(r.GetStatus().GetStartedAt().AsTime())
	})
}

func TestNewestOnlyKeepsEnds(t *testing.T) {
	report := func(id string, s blixardv1.AllocationState_Enum) *blixardv1.AllocationReport {
		return &blixardv1.AllocationReport{AllocationId: id, Status: &blixardv1.VMStatus{State: s}}
	}
	got := newestOnly([]*blixardv1.AllocationReport{
		report("a", blixardv1.AllocationState_running),
		report("a", blixardv1.AllocationState_failed),
		report("b", blixardv1.AllocationState_preparing),
		report("a", blixardv1.AllocationState_stopped),
		report("a", blixardv1.AllocationState_starting),
		report("b", blixardv1.AllocationState_running),
		report("a", blixardv1.AllocationState_running),
	})
	var s []string
	for _, r := range got {
		s = append(s, r.GetAllocationId()+" "+r.GetStatus().GetState().String())
	}
	if strings.Join(s, ", ") != "a stopped, b running, a running" {
		t.Fatal(s)
	}
}

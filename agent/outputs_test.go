package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

// The output of a VM that is gone is kept for its time and no longer, whatever a crash
// left in the middle.
func TestOutputsAreKeptForTheirTime(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(filepath.Join(dir, "vms"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := openOutputs(filepath.Join(dir, "outputs"))
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{journal: j, outputs: o}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	from := filepath.Join(j.dir, "alloc-1")
	for _, name := range []string{consoleLog, consoleLog + ".1", consoleLog + ".vmm", rootDisk} {
		write(filepath.Join(from, name), name)
	}
	if path, kept, err := a.Output("alloc-1"); err != nil || kept || path != filepath.Join(from, consoleLog) {
		t.Errorf("before: %s, %v, %v", path, kept, err)
	}
	now := time.Unix(1_800_000_000, 0)
	for range 2 { // the second time as after a crash
		if err := o.keep("alloc-1", from, now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadDir(filepath.Join(o.dir, "alloc-1"))
	if err != nil || len(kept) != 3 {
		t.Errorf("kept: %v, %v", kept, err)
	}
	if path, kept, err := a.Output("alloc-1"); err != nil || !kept || path != filepath.Join(o.dir, "alloc-1", consoleLog) {
		t.Errorf("after: %s, %v, %v", path, kept, err)
	}
	if err := o.keep("alloc-2", filepath.Join(j.dir, "alloc-2"), now); err != nil {
		t.Errorf("a VM without output: %v", err)
	}
	write(filepath.Join(o.dir, "half", consoleLog), "what a crash left")
	write(filepath.Join(o.dir, "odd", untilFile), string(make([]byte, untilBytesMax+1)))
	for _, tc := range []struct {
		after time.Duration
		left  int
	}{{0, 1}, {59 * time.Minute, 1}, {time.Hour, 0}} {
		if err := o.sweep(now.Add(tc.after)); err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(o.dir); len(left) != tc.left {
			t.Errorf("after %v: %v", tc.after, left)
		}
	}
	if _, _, err := a.Output("alloc-1"); !problem.Is(err, problem.NotFound) {
		t.Errorf("gone: %v", err)
	}
	if _, _, err := a.Output("../x"); !problem.HasCode(err, "allocation.bad_id") {
		t.Errorf("a name that leads out: %v", err)
	}
}

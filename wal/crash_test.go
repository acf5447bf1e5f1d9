package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
)

// writer does with a log what a replica does, and remembers what was acknowledged.
type writer struct {
	l     *Log
	acked uint64 // newest entry of a Sync that succeeded
	index uint64
	saved uint64 // newest snapshot that was saved or installed
}

func (w *writer) write(n int, size int) error {
	from := w.index + 1
	w.index += uint64(n)
	w.l.Append(hard(2, 1, w.acked), entries(2, from, w.index, size))
	err := w.l.Sync()
	if err == nil {
		w.acked = w.index
	}
	return err
}

func (w *writer) save() error {
	err := w.l.SaveSnapshot(meta(w.acked, 2), body(fmt.Sprintf("state at %d", w.acked)))
	if err == nil {
		w.saved = w.acked
	}
	return err
}

func (w *writer) install() error {
	at := w.index + 100
	if err := w.l.ReceiveSnapshot(meta(at, 2), strings.NewReader("received")); err != nil {
		return err
	}
	if err := w.l.InstallSnapshot(meta(at, 2)); err != nil {
		return err
	}
	w.index = at
	if err := w.write(1, 10); err != nil {
		return err
	}
	w.saved = at
	return w.l.Release()
}

// work fills several segments and passes every step that reaches the disk.
func (w *writer) work() error {
	for range 4 {
		for range 8 {
			if err := w.write(3, 4000); err != nil {
				return err
			}
		}
		if err := w.save(); err != nil {
			return err
		}
	}
	return w.install()
}

var errCrash = errors.New("the machine stops here")

// TestCrashAtEveryPoint stops at each step that reaches the disk, each time it
// comes, and opens again: everything acknowledged is there, without a hole.
func TestCrashAtEveryPoint(t *testing.T) {
	for _, point := range Points() {
		t.Run(point, func(t *testing.T) {
			for n := 1; ; n++ {
				reached := crashAt(t, point, n)
				if !reached {
					if n == 1 {
						t.Fatal("the step was never reached")
					}
					return
				}
				if n >= 6 {
					return // the steps of a log repeat
				}
			}
		})
	}
}

func crashAt(t *testing.T, point string, n int) (reached bool) {
	t.Helper()
	c := config(t.TempDir())
	seen := 0
	c.Hook = func(p string) error {
		if p == point {
			if seen++; seen >= n { // nothing works after the machine stopped
				return errCrash
			}
		}
		return nil
	}
	w := &writer{}
	l, _, err := Open(c)
	if err == nil {
		w.l = l
		err = w.work()
		_ = l.Close()
	}
	if err != nil && !errors.Is(err, errCrash) {
		t.Fatalf("%s, time %d: %v", point, n, err)
	}
	reached = seen >= n
	c.Hook = nil
	for range 2 { // what the first Open mends, the second finds in order
		l, r, err := Open(c)
		if err != nil {
			t.Fatalf("%s, time %d: %v", point, n, err)
		}
		checkRecovered(t, fmt.Sprintf("%s, time %d", point, n), w, r)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return reached
}

func checkRecovered(t *testing.T, what string, w *writer, r *Recovered) {
	t.Helper()
	base := r.Snapshot.GetIndex()
	if base < w.saved {
		t.Fatalf("%s: the snapshot of %d is gone, there is %d", what, w.saved, base)
	}
	last := base
	for _, e := range r.Entries {
		if last++; e.GetIndex() != last || !bytes.HasPrefix(e.GetData(), fmt.Appendf(nil, "2/%d", last)) {
			t.Fatalf("%s: entry %d is in the place of %d", what, e.GetIndex(), last)
		}
	}
	if last < w.acked {
		t.Fatalf("%s: entry %d was acknowledged, the log ends at %d", what, w.acked, last)
	}
}

// small gives a closed log of one segment with five frames, the path of the
// segment and where each frame ends.
func small(t *testing.T) (c Config, path string, ends []int64) {
	t.Helper()
	c = config(t.TempDir())
	l, _ := mustOpen(t, c)
	for i := uint64(1); i <= 5; i++ {
		mustSave(t, l, hard(1, 1, i-1), entries(1, i, i, 100*int(i)))
		ends = append(ends, l.offset)
	}
	path = l.segmentPath(l.header.sequence)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return c, path, ends
}

// TestTornTail: a file that ends anywhere within the last frame gives all frames
// before it, and can be written again.
func TestTornTail(t *testing.T) {
	c, path, ends := small(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, end := ends[len(ends)-2], ends[len(ends)-1]
	for cut := before; cut < end; cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l, r, err := Open(c)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if len(r.Entries) != 4 {
			t.Fatalf("cut at %d: %d entries", cut, len(r.Entries))
		}
		l.Append(nil, entries(1, 5, 5, 10))
		if err := errors.Join(l.Sync(), l.Close()); err != nil {
			t.Fatal(err)
		}
		if l, r, err = Open(c); err != nil || len(r.Entries) != 5 || len(r.Entries[4].GetData()) != 10 {
			t.Fatalf("cut at %d and written again: %v, %v", cut, r, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLostSectors: of the last frame any sector may never have been written; of
// the frames before it none.
func TestLostSectors(t *testing.T) {
	c, path, ends := small(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for sector := int64(framesOffset); sector < ends[len(ends)-1]; sector += sectorBytes {
		b := bytes.Clone(whole)
		from, to := max(sector, ends[len(ends)-2]), sector+sectorBytes
		torn := from < to // only what belongs to the last frame
		if !torn {
			from = sector
		}
		clear(b[from:to])
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, r, err := Open(c)
		if torn {
			if err != nil || len(r.Entries) != 4 {
				t.Errorf("the end at %d was not written: %v, %v", from, r, err)
			}
		} else if !problem.HasCode(err, "data.damaged") || !strings.Contains(err.Error(), path) {
			t.Errorf("the sector at %d was lost: %v", sector, err)
		}
		if err == nil {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestFlippedBytes: every byte that was synced counts. The rest of a segment is
// not looked at.
func TestFlippedBytes(t *testing.T) {
	c, path, ends := small(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	offsets := []int64{}
	for i := range int64(segmentHeaderBytes) {
		offsets = append(offsets, i)
	}
	for i := int64(framesOffset); i < ends[len(ends)-1]; i++ {
		offsets = append(offsets, i)
	}
	for _, at := range offsets {
		b := bytes.Clone(whole)
		b[at] ^= 0x10
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(c); !problem.HasCode(err, "data.damaged") && !problem.HasCode(err, "data.newer") || !strings.Contains(err.Error(), path) {
			t.Errorf("byte %d was changed: %v", at, err)
		}
	}
	for name, change := range map[string]func() error{
		"missing":  func() error { return os.Remove(path) },
		"another":  func() error { return os.WriteFile(filepath.Join(filepath.Dir(path), "x.log"), nil, 0o600) },
		"too long": func() error { return os.Truncate(path, segmentReadMax+1) },
	} {
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(c); !problem.HasCode(err, "data.damaged") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Remove(filepath.Join(filepath.Dir(path), "x.log")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// TestMissingSegment: the middle of the log is not passed over.
func TestMissingSegment(t *testing.T) {
	c := config(t.TempDir())
	l, _ := mustOpen(t, c)
	for i := uint64(1); i <= 100; i++ {
		mustSave(t, l, hard(1, 1, i-1), entries(1, i, i, 2000))
	}
	paths := []string{}
	for _, s := range l.segments {
		paths = append(paths, s.path)
	}
	if len(paths) < 3 {
		t.Fatalf("%d segments", len(paths))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(c); !problem.HasCode(err, "data.damaged") {
			t.Errorf("without %s: %v", path, err)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	}
	l, r := mustOpen(t, c)
	if len(r.Entries) != 100 {
		t.Errorf("%d entries", len(r.Entries))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedSnapshot: the older one and the log behind it are enough; without
// them the damage is told.
func TestDamagedSnapshot(t *testing.T) {
	c := config(t.TempDir())
	l, _ := mustOpen(t, c)
	w := &writer{l: l}
	for range 2 {
		if err := errors.Join(w.write(3, 10), w.save()); err != nil {
			t.Fatal(err)
		}
	}
	newest, older := l.snapshotPath(6), l.snapshotPath(3)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		b := bytes.Clone(whole)
		b[at] ^= 1
		for name, damage := range map[string][]byte{"byte changed": b, "cut": whole[:at]} {
			if err := os.WriteFile(newest, damage, 0o600); err != nil {
				t.Fatal(err)
			}
			l, r, err := Open(c)
			if err != nil || r.Snapshot.GetIndex() != 3 || len(r.Entries) != 3 {
				t.Fatalf("%s at %d: %v, %v", name, at, r, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(os.WriteFile(newest, whole, 0o600), os.Rename(newest, older)); err != nil {
		t.Fatal(err)
	}
	if _, r, err := Open(c); err == nil && r.Snapshot != nil {
		t.Errorf("a snapshot by another name was taken: %v", r.Snapshot)
	}
}

func TestIdentity(t *testing.T) {
	c := config(t.TempDir())
	c.ClusterID = "cluster-a"
	l, _ := mustOpen(t, c)
	if _, _, err := Open(c); !problem.HasCode(err, "data.in_use") || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a directory in use: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	other := c
	other.NodeID = "node-2"
	if _, _, err := Open(other); !problem.HasCode(err, "data.other_node") {
		t.Errorf("%v", err)
	}
	other = c
	other.ClusterID = "cluster-b"
	if _, _, err := Open(other); !problem.HasCode(err, "data.other_cluster") {
		t.Errorf("%v", err)
	}
	path := filepath.Join(c.Dir, identityName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Replace(whole, []byte("format 1"), []byte("format 9"), 1)
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(c); !problem.HasCode(err, "data.newer") {
		t.Errorf("%v", err)
	}
	for at := range whole {
		b := bytes.Clone(whole)
		b[at] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(c); err == nil {
			t.Fatalf("byte %d of the identity was changed, and nobody noticed", at)
		}
	}
	for _, bad := range []Config{{Dir: t.TempDir()}, {Dir: t.TempDir(), NodeID: "a b"}} {
		if _, _, err := Open(bad); err == nil {
			t.Errorf("%+v was opened", bad)
		}
	}
}

// TestFailedSyncIsFinal: after it nothing is known of the disk (what the kernel
// could not write it may have dropped), so nothing is tried again.
func TestFailedSyncIsFinal(t *testing.T) {
	c := config(t.TempDir())
	fail := false
	c.Hook = func(point string) error {
		if fail && point == PointAppendSync {
			return syscall.EIO
		}
		return nil
	}
	l, _ := mustOpen(t, c)
	mustSave(t, l, hard(1, 1, 0), entries(1, 1, 1, 10))
	fail = true
	l.Append(nil, entries(1, 2, 2, 10))
	if err := l.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	fail = false
	if err := l.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a later Sync gave %v", err)
	}
	if err := l.InstallSnapshot(meta(9, 1)); !errors.Is(err, syscall.EIO) {
		t.Errorf("a later install gave %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, r := mustOpen(t, c); len(r.Entries) < 1 {
		t.Errorf("what was synced is gone: %v", r)
	}
}

// TestFullDisk fills a small file system for real: nothing acknowledged is lost,
// what waits stays, and writing goes on when there is space.
func TestFullDisk(t *testing.T) {
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	for _, command := range [][]string{
		{"truncate", "-s", "16M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	c := config(filepath.Join(dir, "raft"))
	c.SegmentBytes = 1 << 20
	l, _ := mustOpen(t, c)
	w := &writer{l: l}
	if err := w.write(1, 10); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := fill(ballast); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		err = w.write(1, 200<<10)
	}
	if !problem.HasCode(err, "storage.full") || !l.Full() || l.Reserve() {
		t.Fatalf("%v, full %v", err, l.Full())
	}
	if err := l.SaveSnapshot(meta(w.acked, 2), body(strings.Repeat("x", 1<<20))); !problem.HasCode(err, "storage.full") {
		t.Errorf("a snapshot on a full disk: %v", err)
	}
	if err := l.ReceiveSnapshot(meta(w.acked+9, 2), strings.NewReader(strings.Repeat("x", 1<<20))); !problem.HasCode(err, "storage.full") {
		t.Errorf("a snapshot from a peer: %v", err)
	}
	if err := l.Sync(); !problem.HasCode(err, "storage.full") {
		t.Errorf("still no space: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if !l.Reserve() || l.Full() {
		t.Fatal("space was not noticed")
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	w.acked = w.index
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, r := mustOpen(t, c)
	checkRecovered(t, "after the disk was full", w, r)
	if err := l.Close(); err != nil { // before the file system goes
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.Entries, func(e *raftpb.Entry) bool { return e.GetIndex() == w.index }) {
		t.Error("what waited for space is gone")
	}
}

// fill writes until there is no space.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(b)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

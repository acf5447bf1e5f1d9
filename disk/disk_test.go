package disk

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

func TestCreateRoot(t *testing.T) {
	dir := t.TempDir()
	r := NewRoots(filepath.Join(dir, "templates"))
	for _, size := range []uint64{MinRootBytes, 64 << 20, 1 << 30, 1<<40 + 123} {
		path := filepath.Join(dir, "root.img")
		if err := r.CreateRoot(t.Context(), path, size); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		st, err := os.Stat(path)
		if err != nil || uint64(st.Size()) != size&^4095 {
			t.Fatalf("%d bytes: %v, %v", size, st.Size(), err)
		}
		if used := st.Sys().(*syscall.Stat_t).Blocks * 512; size >= 1<<30 && used > 128<<20 {
			t.Errorf("%d bytes take %d on disk", size, used)
		}
		if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("%d bytes: e2fsck: %v\n%s", size, err, out)
		}
		if err := r.CreateRoot(t.Context(), path, size); !problem.HasCode(err, "disk.exists") {
			t.Errorf("over an existing one: %v", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []uint64{0, MinRootBytes - 1, MaxRootBytes + 1} {
		if err := r.CreateRoot(t.Context(), filepath.Join(dir, "x"), bad); !problem.HasCode(err, "disk.size") {
			t.Errorf("%d bytes: %v", bad, err)
		}
	}
}

func TestTemplatesAreMadeOnceAndBounded(t *testing.T) {
	dir := t.TempDir()
	r := NewRoots(filepath.Join(dir, "templates"))
	var mu sync.Mutex
	made := 0
	r.mkfs = func() (string, error) { mu.Lock(); defer mu.Unlock(); made++; return findMkfs() }
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			if err := r.CreateRoot(context.Background(), filepath.Join(dir, "r"+string(rune('a'+k))), 32<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Fatalf("made %d times", made)
	}
	for k := range templatesMax + 4 {
		path := filepath.Join(dir, "more")
		if err := r.CreateRoot(t.Context(), path, uint64(33+k)<<20); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(path)
	}
	kept, err := os.ReadDir(r.dir)
	if err != nil || len(kept) != templatesMax {
		t.Fatalf("%d templates kept, %v", len(kept), err)
	}
}

func TestMkfsTroubleLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	r := NewRoots(filepath.Join(dir, "templates"))
	fake := filepath.Join(dir, "mkfs")
	for _, tc := range []struct{ script, code string }{
		{"#!/bin/sh\necho 'No space left on device' >&2; exit 1\n", "disk.full"},
		{"#!/bin/sh\necho odd >&2; exit 3\n", "disk.mkfs"},
	} {
		if err := os.WriteFile(fake, []byte(tc.script), 0o755); err != nil {
			t.Fatal(err)
		}
		r.mkfs = func() (string, error) { return fake, nil }
		if err := r.CreateRoot(t.Context(), filepath.Join(dir, "root"), 32<<20); !problem.HasCode(err, tc.code) {
			t.Errorf("want %s: %v", tc.code, err)
		}
	}
	r.mkfs = func() (string, error) { return "", problem.New(problem.Unavailable, "disk.no_mkfs", "x") }
	if err := r.CreateRoot(t.Context(), filepath.Join(dir, "root"), 32<<20); !problem.HasCode(err, "disk.no_mkfs") {
		t.Errorf("without mkfs: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(r.dir, "*"))
	if len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

// A disk without space refuses and leaves no half file.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "small.img"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	r := NewRoots(filepath.Join(dir, "templates"))
	if err := r.CreateRoot(t.Context(), img, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer func() { _ = exec.Command("umount", mnt).Run() }()
	if err := os.WriteFile(filepath.Join(mnt, "fill"), make([]byte, 11<<20), 0o600); err != nil && !strings.Contains(err.Error(), "no space") {
		t.Fatal(err)
	}
	path := filepath.Join(mnt, "root.img")
	full := false
	for range 40 {
		if err := r.CreateRoot(t.Context(), path, 8<<30); problem.HasCode(err, "disk.full") {
			full = true
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, path+strings.Repeat("x", 1)+string(rune('a'))+filepath.Base(t.TempDir())); err != nil {
			t.Fatal(err)
		}
	}
	if !full {
		t.Fatal("the disk never was full")
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("half a disk is left: %v", err)
	}
}

func TestAttachRefusesOlderEpochs(t *testing.T) {
	dir := t.TempDir()
	r := NewRoots(dir)
	for _, tc := range []struct {
		epoch uint64
		ok    bool
	}{{3, true}, {3, true}, {2, false}, {7, true}, {6, false}, {1<<64 - 1, true}, {7, false}} {
		err := r.Attach(dir, tc.epoch)
		if tc.ok != (err == nil) || !tc.ok && !problem.Is(err, problem.Fenced) {
			t.Errorf("epoch %d: %v", tc.epoch, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, epochFile), []byte("odd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Attach(dir, 1<<64-1); !problem.HasCode(err, "disk.epoch_damaged") {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzReadEpoch(f *testing.F) {
	f.Add([]byte("12\n"))
	f.Add([]byte(""))
	dir, err := OpenDir(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(dir.Path(epochFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := Epoch(dir); err != nil && (n != 0 || !problem.Is(err, problem.Fenced)) {
			t.Fatalf("%d, %v", n, err)
		}
	})
}

func BenchmarkCreateRoot(b *testing.B) {
	dir := b.TempDir()
	r := NewRoots(filepath.Join(dir, "templates"))
	path := filepath.Join(dir, "root")
	for b.Loop() {
		if err := r.CreateRoot(context.Background(), path, 1<<30); err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(path)
	}
}

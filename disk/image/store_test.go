package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// imported brings an image with one file into a store.
func imported(t testing.TB, s *Store, text string) *blixardv1.Image {
	t.Helper()
	img, err := s.ImportDisk(t.Context(), bytes.NewReader(erofsOf(t, text)), "disk-"+text, FormatRaw)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestListRemovePrune(t *testing.T) {
	s := newStore(t, nil)
	a, b, c := imported(t, s, "a"), imported(t, s, "b"), imported(t, s, "c")
	names := func() string {
		var all []string
		for _, i := range s.List() {
			all = append(all, i.GetName())
		}
		return strings.Join(all, " ")
	}
	if got := names(); got != "disk-a disk-b disk-c" {
		t.Error(got)
	}
	if err := s.Use(a.GetDigest(), "alloc-1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Use(a.GetDigest(), "alloc-2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(a.GetDigest()); !problem.HasCode(err, "image.in_use") || !strings.Contains(err.Error(), "alloc-1, alloc-2") {
		t.Error(err)
	}
	s.Release("alloc-1")
	s.Release("alloc-1")
	if err := s.Remove(a.GetDigest()); !problem.HasCode(err, "image.in_use") {
		t.Error(err)
	}
	gone, err := s.Prune(func(digest string) bool { return digest == b.GetDigest() })
	if err != nil || len(gone) != 1 || gone[0].GetDigest() != c.GetDigest() || names() != "disk-a disk-b" {
		t.Errorf("%v, %v, %s", gone, err, names())
	}
	s.Release("alloc-2")
	if err := s.Remove(a.GetDigest()); err != nil {
		t.Error(err)
	}
	for _, err := range []error{s.Remove(a.GetDigest()), s.Use(a.GetDigest(), "x"), s.Use("sha256:no", "x"), s.Export(t.Context(), a.GetDigest(), 0, io.Discard)} {
		if !problem.HasCode(err, "image.not_found") {
			t.Error(err)
		}
	}
	if _, err := os.Stat(s.hexPath(a.GetDigest())); !os.IsNotExist(err) {
		t.Error(err)
	}
	if _, err := s.Prune(func(string) bool { return false }); err != nil || names() != "" || s.budget.used != 0 {
		t.Errorf("%v, %s, %d", err, names(), s.budget.used)
	}
}

// What happened to a disk is found when it is asked for; and pulling again mends it.
func TestDamagedDisk(t *testing.T) {
	h := newHub(t)
	ref, digest := h.push(t, "a/b:c", sample(t, 50_000))
	for what, do := range map[string]func(path string) error{
		"a flipped bit": func(path string) error {
			raw, err := os.ReadFile(path)
			raw[len(raw)/2] ^= 4
			return errors.Join(err, os.Chmod(path, 0o600), os.WriteFile(path, raw, 0o600))
		},
		"shorter": func(path string) error { return os.Truncate(path, 4096) },
		"missing": os.Remove,
		"a link":  func(path string) error { return errors.Join(os.Rename(path, path+"2"), os.Symlink(path+"2", path)) },
		"a FIFO": func(path string) error {
			return errors.Join(os.Remove(path), exec.Command("mkfifo", path).Run())
		},
		"a directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"the meta file": func(path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), metaFile), []byte("{}"), 0o600)
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := newStore(t, nil)
			if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := do(filepath.Join(s.hexPath(digest), diskFile)); err != nil {
				t.Fatal(err)
			}
			inMemory := what == "the meta file"
			if _, _, err := s.Get(digest); !inMemory && !problem.HasCode(err, "image.damaged") {
				t.Errorf("in this process: %v", err)
			}
			s = reopen(t, s.c)
			if _, _, err := s.Get(digest); !problem.HasCode(err, "image.damaged") && !problem.HasCode(err, "image.not_found") {
				t.Errorf("in the next: %v", err)
			}
			if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.Get(digest); err != nil {
				t.Error(err)
			}
			if _, _, err := reopen(t, s.c).Get(digest); err != nil {
				t.Error(err)
			}
		})
	}
}

// The bytes of a disk are read once as long as it is the same file.
func TestDiskIsReadOnce(t *testing.T) {
	s := newStore(t, nil)
	img := imported(t, s, "a")
	s = reopen(t, s.c)
	i := s.images[img.GetDigest()]
	if i.checked != (stamp{}) {
		t.Error("it counts as right before it was read")
	}
	_, path, err := s.Get(img.GetDigest())
	if err != nil {
		t.Fatal(err)
	}
	first := i.checked
	if _, _, err := s.Get(img.GetDigest()); err != nil || i.checked != first {
		t.Error(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(img.GetDigest()); err != nil || i.checked == first {
		t.Errorf("%v", err)
	}
}

func TestOpenSweeps(t *testing.T) {
	s := newStore(t, nil)
	img := imported(t, s, "a")
	old := time.Now().Add(-2 * blobsKept)
	for _, f := range []string{tmpDir + "/x", blobsDir + "/odd", blobsDir + "/" + strings.Repeat("a", 64) + partSuffix, blobsDir + "/" + strings.Repeat("b", 64)} {
		if err := os.WriteFile(s.path(f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(s.path(blobsDir, strings.Repeat("b", 64)), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.path(strings.Repeat("c", 64)), 0o700); err != nil { // an image without files
		t.Fatal(err)
	}
	s = reopen(t, s.c)
	if l := left(t, s); len(l) != 1 || !strings.HasPrefix(l[0], blobsDir+"/aaaa") {
		t.Errorf("left %v", l)
	}
	if l := s.List(); len(l) != 1 || !proto.Equal(l[0], img) {
		t.Errorf("%v", l)
	}
	if _, err := Open(Config{Dir: filepath.Join(s.path(blobsDir), strings.Repeat("a", 64)+partSuffix, "x")}); err == nil {
		t.Error("a store below a file")
	}
}

// Many callers of one image make it once; and one who gives up does not take it
// from the others.
func TestPullTogether(t *testing.T) {
	img := imageOf(t, nil, layerTar(t, file("a", random(200_000))), layerTar(t, file("b", random(300_000))), layerTar(t, file("c", random(100_000))))
	layerDigest, raw := blobOf(t, img, 1)
	h := newHub(t)
	ref, _ := h.push(t, "a/b:c", img)
	go1 := make(chan struct{})
	h.setFault(onBlob(layerDigest, func(w http.ResponseWriter, r *http.Request) {
		<-go1
		ranged(w, r, raw, 0)
	}))
	s := newStore(t, nil)
	var wg sync.WaitGroup
	var done atomic.Int32
	impatient, cancel := context.WithCancel(t.Context())
	for n := range 16 {
		ctx := t.Context()
		if n%4 == 0 {
			ctx = impatient
		}
		wg.Go(func() {
			got, err := s.Pull(ctx, ref, PullOptions{Progress: func(r *blixardv1.PullImageResponse) {
				if r.GetPhase() == phaseDone {
					done.Add(1)
				}
			}})
			if n%4 == 0 {
				if err == nil || !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "canceled") {
					t.Errorf("impatient: %v, %v", got, err)
				}
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, w := range s.flights.running {
			return w.waiting == 16
		}
		return false
	})
	cancel()
	close(go1)
	wg.Wait()
	if n := h.count("GET /v2/a/b/blobs/" + layerDigest); n != 1 || done.Load() != 12 {
		t.Errorf("%d downloads, %d done", n, done.Load())
	}
	if l := left(t, s); len(l) != 0 {
		t.Errorf("left %v", l)
	}
}

// Two images with a layer in common, at the same time.
func TestPullCommonLayer(t *testing.T) {
	base := layerTar(t, file("base", random(500_000)))
	one, two := imageOf(t, nil, base, layerTar(t, file("x", "1"))), imageOf(t, nil, base, layerTar(t, file("x", "2")))
	h := newHub(t)
	refs := make([]string, 2)
	refs[0], _ = h.push(t, "a/one:1", one)
	refs[1], _ = h.push(t, "a/two:1", two)
	s := newStore(t, nil)
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l := left(t, s); len(l) != 0 || len(s.List()) != 2 {
		t.Errorf("left %v", l)
	}
}

func TestBudget(t *testing.T) {
	h := newHub(t)
	ref, _ := h.push(t, "a/b:c", sample(t, 1<<20))
	for _, budget := range []uint64{1, 500_000, 1_500_000, 2_000_000} {
		s := newStore(t, func(c *Config) { c.BudgetBytes = budget })
		_, err := s.Pull(t.Context(), ref, PullOptions{})
		if !problem.HasCode(err, "image.budget") || !problem.Is(err, problem.NoCapacity) {
			t.Errorf("%d: %v", budget, err)
		}
		out, err := exec.Command("du", "-sb", s.c.Dir).Output()
		if err != nil {
			t.Fatal(err)
		}
		var bytes uint64
		if _, err := fmt.Sscan(string(out), &bytes); err != nil || bytes > budget+64<<10 {
			t.Errorf("%d: it took %d, %v", budget, bytes, err)
		}
		if uint64(s.budget.used) > budget {
			t.Errorf("%d: %d counted", budget, s.budget.used)
		}
		if _, err := s.Prune(func(string) bool { return true }); err != nil || s.budget.used != 0 {
			t.Errorf("%d: %v, %d counted after all was removed", budget, err, s.budget.used)
		}
	}
	s := newStore(t, func(c *Config) { c.BudgetBytes = 4 << 20 })
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	counted := s.budget.used
	s = reopen(t, s.c)
	if s.budget.used != counted || counted < 1<<20 || counted > int64(img.GetDiskBytes())+64<<10 {
		t.Errorf("%d counted, %d after opening it again", counted, s.budget.used)
	}
}

// A disk without space refuses, says so, and is left as it was.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	small := filepath.Join(t.TempDir(), "small")
	if out, err := exec.Command("/usr/sbin/mkfs.ext4", "-q", "-F", small, "8M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", small, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer func() { _ = exec.Command("umount", dir).Run() }()
	h := newHub(t)
	s := reopen(t, Config{Dir: filepath.Join(dir, "images"), Logger: newStore(t, nil).log})
	for _, size := range []int{4 << 20, 20 << 20} { // the disk does not fit; the layer does not either
		ref, digest := h.push(t, fmt.Sprintf("a/b:%d", size), imageOf(t, nil, layerTar(t, file("f", random(size)))))
		_, err := s.Pull(t.Context(), ref, PullOptions{})
		if !problem.HasCode(err, "disk.full") || !strings.Contains(err.Error(), ref) {
			t.Fatalf("%d: %v", size, err)
		}
		if _, _, err := s.Get(digest); err == nil {
			t.Error("it is there")
		}
		for _, l := range left(t, s) {
			if strings.HasPrefix(l, tmpDir) {
				t.Errorf("left %s", l)
			}
		}
		if _, err := s.Prune(func(string) bool { return true }); err != nil || len(left(t, s)) != 0 {
			t.Errorf("%v, %v", err, left(t, s))
		}
	}
	if _, err := s.ImportDisk(t.Context(), bytes.NewReader([]byte(random(20<<20))), "d", FormatRaw); !problem.HasCode(err, "disk.full") {
		t.Error(err)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(layerTar(t, file("x", random(20<<20)))), "d"); !problem.HasCode(err, "disk.full") {
		t.Error(err)
	}
	if l := left(t, s); len(l) != 0 {
		t.Errorf("left %v", l)
	}
	ref, _ := h.push(t, "a/b:ok", sample(t, 100_000))
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
}

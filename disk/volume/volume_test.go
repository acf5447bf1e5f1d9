package volume

import (
	"bufio"
	"bytes"
	"context"
	"errors"
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

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

const mib = 1 << 20

func TestMain(m *testing.M) {
	if victim() {
		return
	}
	goleak.VerifyTestMain(m)
}

func openStore(t testing.TB, dir string, quota uint64) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, QuotaBytes: quota})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "volumes"), 0)
}

// must of a step that cannot fail.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ensure(t testing.TB, s *Store, id string, size uint64) string {
	t.Helper()
	path, created, err := s.Ensure(t.Context(), id, size, false)
	if err != nil || !created {
		t.Fatalf("ensure %s: %v, created %v", id, err, created)
	}
	return path
}

// fsck fails when the file system of an image is not whole.
func fsck(t testing.TB, path string) {
	t.Helper()
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck %s: %v\n%s", path, err, out)
	}
}

// put writes a file into the file system of an image, without mounting it.
func put(t testing.TB, image, name string, content []byte) {
	t.Helper()
	from := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(from, content, 0o600))
	out, err := exec.Command("/usr/sbin/debugfs", "-w", "-R", "write "+from+" "+name, image).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("rror")) || bytes.Contains(out, []byte("Could not")) {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
}

// get reads a file of an image's file system.
func get(t testing.TB, image, name string) []byte {
	t.Helper()
	out, err := exec.Command("/usr/sbin/debugfs", "-R", "cat "+name, image).Output()
	must(t, err)
	return out
}

func uuid(t testing.TB, image string) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/dumpe2fs", "-h", image).Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(line, "Filesystem UUID:"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("no UUID: %s", out)
	return ""
}

// entries of a directory tree, with slashes.
func entries(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			out = append(out, rel)
		}
		return err
	}))
	slices.Sort(out)
	return out
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if !problem.HasCode(err, code) {
		t.Fatalf("want %s: %v", code, err)
	}
	if p := problem.From(err); p.Hint == "" && p.Code != "volume.resize" {
		t.Errorf("%s has no hint", code)
	}
}

func TestEnsure(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	for _, size := range []uint64{MinBytes, 64 * mib, 200*mib + 123, 1 << 30, 1 << 40} {
		path := ensure(t, s, "a", size)
		st, err := os.Stat(path)
		must(t, err)
		if uint64(st.Size()) != size&^4095 {
			t.Errorf("%d bytes: the file has %d", size, st.Size())
		}
		if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 150*mib {
			t.Errorf("%d bytes: %d are used", size, used)
		}
		fsck(t, path)
		put(t, path, "f", []byte("kept"))
		again, created, err := s.Ensure(ctx, "a", 2*size, true)
		if again != path || created || err != nil {
			t.Fatalf("again: %s, %v, %v", again, created, err)
		}
		if string(get(t, path, "f")) != "kept" {
			t.Fatal("the file is gone")
		}
		info, err := s.Stat(ctx, "a")
		if err != nil || info.SizeBytes != size&^4095 || info.ModTime.IsZero() || info.Inode == 0 {
			t.Fatalf("info %+v, %v", info, err)
		}
		must(t, s.Delete(ctx, "a"))
		must(t, s.Delete(ctx, "a"))
		if left := entries(t, s.dir.File().Name()); len(left) > 0 {
			t.Fatalf("left behind: %v", left)
		}
	}
	for _, bad := range []uint64{0, MinBytes - 1, MaxBytes + 1} {
		_, _, err := s.Ensure(ctx, "a", bad, false)
		wantCode(t, err, "volume.size")
	}
	_, _, err := s.Ensure(ctx, "a", MinBytes, true)
	wantCode(t, err, "volume.lost")
	_, err = s.Stat(ctx, "a")
	wantCode(t, err, "volume.not_found")
}

func TestADiskThatWasThereIsNotMadeAnew(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	path := ensure(t, s, "a", MinBytes)
	must(t, s.Attach(ctx, "a", 1))
	must(t, os.Remove(path))
	_, _, err := s.Ensure(ctx, "a", MinBytes, false)
	wantCode(t, err, "volume.lost")
	wantCode(t, s.Attach(ctx, "a", 2), "volume.not_found")
}

func TestBadIDs(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	for _, id := range []string{"", ".", "..", "../x", "a/b", "A", "-a", "a-", "a.b", "a\x00", strings.Repeat("a", 64), ".deleted-a"} {
		_, _, err := s.Ensure(ctx, id, MinBytes, false)
		wantCode(t, err, "volume.bad_id")
		wantCode(t, s.Delete(ctx, id), "volume.bad_id")
		wantCode(t, s.Snapshot(ctx, "a", id, nil), "volume.bad_id")
		wantCode(t, s.DeleteSnapshot(ctx, "a", id), "volume.bad_id")
		wantCode(t, s.Restore(ctx, "a", id), "volume.bad_id")
		_, err = s.Clone(ctx, "b", "", id, nil)
		wantCode(t, err, "volume.bad_id")
	}
}

func TestAttachIsFenced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	for _, tc := range []struct {
		epoch uint64
		ok    bool
	}{{3, true}, {3, true}, {2, false}, {7, true}, {6, false}, {1<<64 - 1, true}, {7, false}} {
		s, err := Open(Config{Dir: dir}) // each time anew: the epoch is durable
		must(t, err)
		_, _, err = s.Ensure(t.Context(), "a", MinBytes, false)
		must(t, err)
		err = s.Attach(t.Context(), "a", tc.epoch)
		if tc.ok != (err == nil) || !tc.ok && !problem.Is(err, problem.Fenced) {
			t.Errorf("epoch %d: %v", tc.epoch, err)
		}
		must(t, s.Close())
	}
}

func TestResize(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	path := ensure(t, s, "a", 64*mib)
	content := bytes.Repeat([]byte("0123456789abcdef"), 8*mib/16)
	put(t, path, "f", content)
	must(t, s.Attach(ctx, "a", 4))
	for _, size := range []uint64{64, 200, 1 << 10, 1 << 14, 120, 50, 36, 1 << 17, 200} {
		size *= mib
		must(t, s.Resize(ctx, "a", size))
		fsck(t, path)
		if !bytes.Equal(get(t, path, "f"), content) {
			t.Fatalf("%d bytes: the content differs", size)
		}
		f, err := os.Open(path)
		must(t, err)
		super, ok, err := readSuper(f)
		_ = f.Close()
		info, _ := s.Stat(ctx, "a")
		if !ok || err != nil || super.bytes() != size || info.SizeBytes != size || info.Epoch != 4 {
			t.Fatalf("%d bytes: fs of %d, %+v, %v", size, super.bytes(), info, err)
		}
	}
	info, err := s.Stat(ctx, "a")
	must(t, err)
	err = s.Resize(ctx, "a", MinBytes)
	wantCode(t, err, "volume.too_small")
	if !strings.Contains(problem.From(err).Hint, "MiB") {
		t.Errorf("no least size: %+v", problem.From(err))
	}
	if after, err := s.Stat(ctx, "a"); err != nil || after.Inode != info.Inode || after.SizeBytes != info.SizeBytes {
		t.Fatalf("changed: %+v, %v", after, err)
	}
	wantCode(t, s.Resize(ctx, "a", 1), "volume.size")
	wantCode(t, s.Resize(ctx, "b", MinBytes), "volume.not_found")
	if got := entries(t, s.dir.Path("a")); !slices.Equal(got, []string{"disk.img", "epoch"}) {
		t.Fatalf("files: %v", got)
	}
}

func TestGrowFile(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	path := ensure(t, s, "a", 64*mib)
	info, _ := s.Stat(ctx, "a")
	must(t, s.GrowFile(ctx, "a", 128*mib))
	must(t, s.GrowFile(ctx, "a", 128*mib))
	after, _ := s.Stat(ctx, "a")
	if after.SizeBytes != 128*mib || after.Inode != info.Inode {
		t.Fatalf("%+v", after)
	}
	wantCode(t, s.GrowFile(ctx, "a", 64*mib), "volume.grow_only")
	wantCode(t, s.GrowFile(ctx, "b", 64*mib), "volume.not_found")
	// What the guest did not do, a resize to the size that it has does.
	must(t, s.Resize(ctx, "a", 128*mib))
	fsck(t, path)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	if super, _, _ := readSuper(f); super.bytes() != 128*mib {
		t.Fatalf("the file system has %d bytes", super.bytes())
	}
}

// What the guest made of its disk is the guest's.
func TestDisksWithoutAnExtFileSystem(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	path := ensure(t, s, "a", MinBytes)
	content := bytes.Repeat([]byte("raw"), MinBytes/3+1)[:MinBytes]
	must(t, os.WriteFile(path, content, 0o600))
	must(t, s.Snapshot(ctx, "a", "s", nil))
	must(t, s.Resize(ctx, "a", 2*MinBytes))
	wantCode(t, s.Resize(ctx, "a", MinBytes), "volume.no_file_system")
	_, err := s.Clone(ctx, "a", "s", "b", nil)
	must(t, err)
	got, err := os.ReadFile(s.dir.Path("b/disk.img"))
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the clone differs, %v", err)
	}
	// One that only looks like ext4 is refused and stays as it is; its clone is plain.
	must(t, os.Truncate(path, MinBytes))
	content[superOffset+superMagic], content[superOffset+superMagic+1] = 0x53, 0xef
	content[superOffset+superLogBlock], content[superOffset+superLogBlock+1], content[superOffset+superLogBlock+2], content[superOffset+superLogBlock+3] = 2, 0, 0, 0
	must(t, os.WriteFile(path, content, 0o600))
	wantCode(t, s.Resize(ctx, "a", 2*MinBytes), "volume.damaged")
	if got, _ := os.ReadFile(path); !bytes.Equal(got, content) {
		t.Fatal("changed by a refused step")
	}
	_, err = s.Clone(ctx, "a", "", "c", nil)
	must(t, err)
}

func TestSnapshots(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	path := ensure(t, s, "a", 64*mib)
	put(t, path, "one", []byte("1"))
	must(t, s.Snapshot(ctx, "a", "first", nil))
	put(t, path, "two", []byte("2"))
	must(t, s.Snapshot(ctx, "a", "first", nil)) // as it is
	must(t, s.Resize(ctx, "a", 128*mib))
	must(t, s.Snapshot(ctx, "a", "second", nil))
	info, err := s.Stat(ctx, "a")
	if err != nil || len(info.Snapshots) != 2 {
		t.Fatalf("%+v, %v", info, err)
	}
	must(t, s.Restore(ctx, "a", "first"))
	fsck(t, path)
	if info, _ = s.Stat(ctx, "a"); info.SizeBytes != 64*mib || string(get(t, path, "one")) != "1" || string(get(t, path, "two")) != "" {
		t.Fatalf("restored: %+v", info)
	}
	must(t, s.Restore(ctx, "a", "second"))
	if info, _ = s.Stat(ctx, "a"); info.SizeBytes != 128*mib || string(get(t, path, "two")) != "2" {
		t.Fatalf("restored: %+v", info)
	}
	must(t, s.DeleteSnapshot(ctx, "a", "first"))
	must(t, s.DeleteSnapshot(ctx, "a", "first"))
	must(t, s.DeleteSnapshot(ctx, "none", "first"))
	wantCode(t, s.Restore(ctx, "a", "first"), "volume.snapshot_not_found")
	wantCode(t, s.Restore(ctx, "b", "first"), "volume.not_found")
	wantCode(t, s.Snapshot(ctx, "b", "first", nil), "volume.not_found")
}

func TestClone(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	path := ensure(t, s, "a", 64*mib)
	put(t, path, "one", []byte("1"))
	must(t, s.Snapshot(ctx, "a", "first", nil))
	put(t, path, "two", []byte("2"))
	seen := map[string]bool{uuid(t, path): true}
	for _, tc := range []struct{ snapshot, to, two string }{{"first", "b", ""}, {"", "c", "2"}} {
		created, err := s.Clone(ctx, "a", tc.snapshot, tc.to, nil)
		if !created || err != nil {
			t.Fatalf("%+v: %v, %v", tc, created, err)
		}
		clone := s.dir.Path(tc.to + "/disk.img")
		fsck(t, clone)
		if string(get(t, clone, "one")) != "1" || string(get(t, clone, "two")) != tc.two {
			t.Fatalf("%+v: other content", tc)
		}
		if u := uuid(t, clone); seen[u] {
			t.Errorf("%+v: the UUID %s is another one's", tc, u)
		} else {
			seen[u] = true
		}
		if created, err := s.Clone(ctx, "a", tc.snapshot, tc.to, nil); created || err != nil {
			t.Errorf("again: %v, %v", created, err)
		}
	}
	fsck(t, path)
	_, err := s.Clone(ctx, "a", "none", "d", nil)
	wantCode(t, err, "volume.snapshot_not_found")
	_, err = s.Clone(ctx, "a", "", "a", nil)
	wantCode(t, err, "volume.same")
	_, err = s.Clone(ctx, "none", "", "d", nil)
	wantCode(t, err, "volume.not_found")
	if got, err := s.List(ctx); err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
}

// A file system whose checksums hang on its UUID, made by a guest, gets a new one, too.
func TestCloneOfAGuestsOwnFileSystem(t *testing.T) {
	s := newStore(t)
	path := ensure(t, s, "a", 32*mib)
	if out, err := exec.Command("/usr/sbin/mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed,metadata_csum", path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	put(t, path, "one", []byte("1"))
	_, err := s.Clone(t.Context(), "a", "", "b", nil)
	must(t, err)
	clone := s.dir.Path("b/disk.img")
	fsck(t, clone)
	if uuid(t, clone) == uuid(t, path) || string(get(t, clone, "one")) != "1" {
		t.Fatal("the same UUID, or other content")
	}
}

// A step that needs the disk at rest is refused while a hypervisor has it.
func TestDisksInUse(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	path := ensure(t, s, "a", MinBytes)
	must(t, s.Snapshot(ctx, "a", "s", nil))
	vm := lockAsQEMU(t, path)
	for name, step := range map[string]func() error{
		"resize":  func() error { return s.Resize(ctx, "a", 2*MinBytes) },
		"restore": func() error { return s.Restore(ctx, "a", "s") },
		"clone":   func() error { _, err := s.Clone(ctx, "a", "", "b", nil); return err },
		"delete":  func() error { return s.Delete(ctx, "a") },
	} {
		if err := step(); !problem.HasCode(err, "volume.in_use") {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, s.Snapshot(ctx, "a", "live", nil))
	must(t, s.GrowFile(ctx, "a", 2*MinBytes))
	if removed, err := s.Sweep(func(string) bool { return false }, nil); err != nil || len(removed) > 0 {
		t.Fatalf("swept %v, %v", removed, err)
	}
	must(t, vm.Close())
	must(t, s.Delete(ctx, "a"))
	_, err := s.File(ctx, "a", os.O_RDWR)
	wantCode(t, err, "volume.not_found")
}

func TestSweep(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	for _, id := range []string{"a", "b", "c"} {
		ensure(t, s, id, MinBytes)
		for _, snapshot := range []string{"s", "u"} {
			must(t, s.Snapshot(ctx, id, snapshot, nil))
		}
	}
	release, err := s.acquire(ctx, "c", shared) // another step
	must(t, err)
	removed, err := s.Sweep(func(id string) bool { return id == "a" }, func(_, snapshot string) bool { return snapshot == "u" })
	release()
	slices.Sort(removed)
	if err != nil || !slices.Equal(removed, []string{"a/s", "b"}) {
		t.Fatalf("removed %v, %v", removed, err)
	}
	want := []string{"a", "a/disk.img", "a/snap-u.img", "c", "c/disk.img", "c/snap-s.img", "c/snap-u.img"}
	if got := entries(t, s.dir.File().Name()); !slices.Equal(got, want) {
		t.Fatalf("left: %v", got)
	}
}

func TestQuota(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "volumes"), 100*mib)
	ctx := t.Context()
	path := ensure(t, s, "a", 64*mib)
	_, _, err := s.Ensure(ctx, "b", 64*mib, false)
	wantCode(t, err, "volume.quota")
	wantCode(t, s.Resize(ctx, "a", 101*mib), "volume.quota")
	wantCode(t, s.GrowFile(ctx, "a", 101*mib), "volume.quota")
	_, err = s.Clone(ctx, "a", "", "b", nil)
	wantCode(t, err, "volume.quota")
	must(t, s.Resize(ctx, "a", 90*mib))
	put(t, path, "f", bytes.Repeat([]byte("x"), 12*mib))
	wantCode(t, s.Snapshot(ctx, "a", "s", nil), "volume.quota")
	must(t, s.Resize(ctx, "a", 32*mib))
	must(t, s.Snapshot(ctx, "a", "s", nil))
	taken, err := s.Taken()
	if err != nil || taken < 44*mib || taken > 64*mib {
		t.Fatalf("taken %d, %v", taken, err)
	}
	if got := entries(t, s.dir.File().Name()); !slices.Equal(got, []string{"a", "a/disk.img", "a/snap-s.img"}) {
		t.Fatalf("left: %v", got)
	}
	s.mu.Lock()
	reserved := s.reserved
	s.mu.Unlock()
	if reserved != 0 {
		t.Fatalf("%d bytes stay reserved", reserved)
	}
}

// However many ask at once, the quota is never given twice.
func TestQuotaUnderConcurrency(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "volumes"), 5*MinBytes)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for k := range 16 {
		wg.Go(func() {
			_, _, err := s.Ensure(context.Background(), "v"+string(rune('a'+k)), MinBytes, false)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !problem.HasCode(err, "volume.quota") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 5 {
		t.Fatalf("%d volumes were made, not 5", made)
	}
}

func TestOneStoreADirectory(t *testing.T) {
	s := newStore(t)
	_, err := Open(Config{Dir: s.dir.File().Name()})
	wantCode(t, err, "volume.store_busy")
}

// A step waits for another one as long as its context allows.
func TestStepsOfAVolumeWait(t *testing.T) {
	s := newStore(t)
	ensure(t, s, "a", MinBytes)
	release, err := s.acquire(t.Context(), "a", exclusive)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	wantCode(t, s.Attach(ctx, "a", 1), "volume.busy")
	wantCode(t, s.Delete(ctx, "a"), "volume.busy")
	done := make(chan error)
	go func() { done <- s.Attach(t.Context(), "a", 1) }()
	release()
	must(t, <-done)
	if len(s.gates) != 0 {
		t.Fatalf("%d gates are left", len(s.gates))
	}
}

// remove deletes a file of an image's file system, if it is there.
func remove(t testing.TB, image, name string) {
	t.Helper()
	if out, err := exec.Command("/usr/sbin/debugfs", "-w", "-R", "rm "+name, image).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
}

// The lock that the driver's QEMU takes is the one that is asked for.
func TestQEMUHoldsTheDisk(t *testing.T) {
	s := newStore(t)
	path := ensure(t, s, "a", MinBytes)
	for _, readOnly := range []string{"off", "on"} {
		cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-M", "microvm,accel=tcg",
			"-blockdev", "driver=raw,node-name=d,read-only="+readOnly+",file.driver=file,file.locking=on,file.filename="+path,
			"-device", "virtio-blk-device,drive=d", "-qmp", "stdio")
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		_, err = io.WriteString(in, `{"execute":"qmp_capabilities"}`)
		must(t, err)
		for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "return"); {
			// It answers when all is set up.
		}
		wantCode(t, s.Restore(t.Context(), "a", "s"), "volume.in_use")
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		wantCode(t, s.Restore(t.Context(), "a", "s"), "volume.snapshot_not_found")
	}
}

// A disk that takes another's place belongs to whom that belonged.
func TestTheOwnerStays(t *testing.T) {
	s := newStore(t)
	path := ensure(t, s, "a", 64*mib)
	must(t, s.Snapshot(t.Context(), "a", "s", nil))
	must(t, errors.Join(os.Chown(path, 1234, 2345), os.Chmod(path, 0o640)))
	for _, step := range []func() error{
		func() error { return s.Resize(t.Context(), "a", 128*mib) },
		func() error { return s.Restore(t.Context(), "a", "s") },
	} {
		must(t, step())
		st, err := os.Stat(path)
		must(t, err)
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 1234 || sys.Gid != 2345 || st.Mode() != 0o640 {
			t.Errorf("%d:%d %v", sys.Uid, sys.Gid, st.Mode())
		}
	}
}

// lockAsQEMU holds a disk open as QEMU does, until the test ends.
func lockAsQEMU(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	l := unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1}
	must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l))
	return f
}

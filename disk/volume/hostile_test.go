package volume

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// mount makes a file system in a file and mounts it until the test ends. ok is false
// when this host cannot.
func mount(t testing.TB, megabytes int64, mkfs string, args ...string) (dir string, ok bool) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(megabytes*mib))
	must(t, f.Close())
	if out, err := exec.Command(mkfs, append(args, image)...).CombinedOutput(); err != nil {
		t.Logf("%s: %v\n%s", mkfs, err, out)
		return "", false
	}
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Logf("mount: %v\n%s", err, out)
		return "", false
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir, true
}

// A full disk refuses each step with disk.full, and leaves what was there, and room.
func TestFullDisk(t *testing.T) {
	dir, ok := mount(t, 48, "/usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0")
	if !ok {
		t.Fatal("this test needs loop devices")
	}
	s, err := Open(Config{Dir: filepath.Join(dir, "volumes")})
	must(t, err)
	defer func() { must(t, s.Close()) }() // or it cannot be unmounted
	ctx := t.Context()
	path := ensure(t, s, "a", 32*mib)
	put(t, path, "f", bytes.Repeat([]byte("x"), 10*mib))
	must(t, s.Snapshot(ctx, "a", "s", nil))
	in, _, err := s.Receive(ctx, "r", "disk", 32*mib)
	must(t, err)
	defer func() { _ = in.Abort() }()
	before := entries(t, dir)
	// fill the file system but for that much.
	fill := func(leave int64) {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		f, err := os.Create(filepath.Join(dir, "fill"))
		must(t, err)
		defer f.Close()
		for n := int64(st.Bavail)*st.Bsize - leave; n > 0 && unix.Fallocate(int(f.Fd()), 0, 0, n) != nil; n -= 4096 {
			// The file's own extents take room, too.
		}
	}
	for _, leave := range []int64{0, 16 << 10, 1 * mib, 4 * mib} {
		_ = os.Remove(filepath.Join(dir, "fill"))
		fill(leave)
		for name, step := range map[string]func() error{
			"ensure":   func() error { _, _, err := s.Ensure(ctx, "b", 1<<30, false); return err },
			"snapshot": func() error { return s.Snapshot(ctx, "a", "t", nil) },
			"clone":    func() error { _, err := s.Clone(ctx, "a", "s", "c", nil); return err },
			"restore":  func() error { return s.Restore(ctx, "a", "s") },
			"resize":   func() error { return s.Resize(ctx, "a", 64*mib) },
			"attach":   func() error { return s.Attach(ctx, "a", 5) },
		} {
			err := step()
			if err == nil && (name == "ensure" || name == "attach") && leave > 0 {
				// These need little.
				if name == "ensure" {
					must(t, s.Delete(ctx, "b"))
				}
				continue
			}
			if !problem.HasCode(err, "disk.full") {
				t.Errorf("%s with %d bytes: %v", name, leave, err)
			}
		}
		must(t, os.Remove(filepath.Join(dir, "fill")))
		_ = os.Remove(s.dir.Path("a/epoch"))
		if after := entries(t, dir); strings.Join(after, " ") != strings.Join(before, " ") {
			t.Fatalf("with %d bytes: left\n%v, not\n%v", leave, after, before)
		}
	}
	fill(0)
	var full error
	data := bytes.Repeat([]byte("x"), PieceBytes)
	for at := uint64(0); at < 32*mib && full == nil; at += PieceBytes {
		full = in.Write(at, data)
	}
	wantCode(t, full, "disk.full")
	must(t, in.Abort())
	must(t, os.Remove(filepath.Join(dir, "fill")))
	fsck(t, path)
	must(t, s.Resize(ctx, "a", 64*mib))
	must(t, s.Restore(ctx, "a", "s"))
	fsck(t, path)
}

// Where the file system shares extents a snapshot costs no room, and the same holds
// elsewhere but for that.
func TestFileSystems(t *testing.T) {
	t.Parallel()
	for _, fs := range []struct {
		mkfs    string
		args    []string
		reflink bool
	}{
		{"/usr/sbin/mkfs.ext4", []string{"-q", "-F"}, false},
		{"/usr/sbin/mkfs.xfs", []string{"-q", "-m", "reflink=1"}, true},
		{"/usr/sbin/mkfs.btrfs", []string{"-q"}, true},
	} {
		t.Run(filepath.Base(fs.mkfs), func(t *testing.T) {
			dir, ok := mount(t, 512, fs.mkfs, fs.args...)
			if !ok {
				t.Logf("this host has no such file system: install xfsprogs and btrfs-progs to look at it")
				return
			}
			s, err := Open(Config{Dir: filepath.Join(dir, "volumes")})
			must(t, err)
			defer func() { must(t, s.Close()) }()
			ctx := t.Context()
			free := func() uint64 {
				must(t, exec.Command("sync", "-f", dir).Run())
				var st unix.Statfs_t
				must(t, unix.Statfs(dir, &st))
				return st.Bfree * uint64(st.Bsize)
			}
			path := ensure(t, s, "a", 256*mib)
			content := make([]byte, 32*mib)
			for i := range content {
				content[i] = byte(rand.Uint32())
			}
			put(t, path, "f", content)
			before := free()
			told := false
			must(t, s.Snapshot(ctx, "a", "s", func(uint64, uint64) { told = true }))
			took := int64(before) - int64(free())
			if shared := took < 20*mib; shared != fs.reflink || told == fs.reflink {
				t.Errorf("a snapshot took %d bytes, progress was told: %v", took, told)
			}
			put(t, path, "late", []byte("late"))
			must(t, s.Resize(ctx, "a", 300*mib))
			fsck(t, path)
			_, err = s.Clone(ctx, "a", "s", "b", nil)
			must(t, err)
			fsck(t, s.dir.Path("b/disk.img"))
			must(t, s.Restore(ctx, "a", "s"))
			fsck(t, path)
			must(t, s.Resize(ctx, "a", 128*mib))
			fsck(t, path)
			if !bytes.Equal(get(t, path, "f"), content) || len(get(t, path, "late")) > 0 {
				t.Error("other content")
			}
			must(t, move(ctx, s, newStore(t), "b", "disk", never))
		})
	}
}

// Who swaps a volume's directory or files for links to something else while steps go on
// reaches nothing with it.
func TestSymlinkRacer(t *testing.T) {
	t.Parallel()
	const swapsLeast, roundsLeast = 10_000, 300
	base := t.TempDir()
	canaries := filepath.Join(base, "canaries")
	must(t, os.Mkdir(canaries, 0o700))
	names := []string{"disk.img", "disk.img.new", "snap-s.img", "snap-s.img.new", "epoch", "epoch.new", "in-disk.img", "in-disk.mark"}
	canary := bytes.Repeat([]byte("canary! "), MinBytes/8)
	for _, name := range names {
		must(t, os.WriteFile(filepath.Join(canaries, name), canary, 0o600))
	}
	s := openStore(t, filepath.Join(base, "volumes"), 0)
	dir := s.dir.File().Name()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var swaps atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		away := filepath.Join(base, "away")
		for k := 0; ctx.Err() == nil; k++ {
			swaps.Add(1)
			at, to := filepath.Join(dir, "a"), canaries
			if k%2 == 1 {
				name := names[k/2%len(names)]
				at, to = filepath.Join(dir, "a", name), filepath.Join(canaries, name)
			}
			moved := os.Rename(at, away) == nil
			linked := os.Symlink(to, at) == nil
			if k%8 == 0 {
				_, _ = os.Stat(at) // time for the other side
			}
			if linked {
				_ = os.Remove(at)
			}
			if moved {
				_ = os.Rename(away, at)
			}
			_ = os.RemoveAll(away)
		}
	})
	rounds, refused := 0, 0
	for rounds < roundsLeast || swaps.Load() < swapsLeast {
		rounds++
		for _, err := range []error{
			func() error { _, _, err := s.Ensure(ctx, "a", MinBytes, false); return err }(),
			s.Attach(ctx, "a", uint64(rounds)),
			s.Snapshot(ctx, "a", "s", nil),
			s.GrowFile(ctx, "a", 2*MinBytes),
			func() error {
				in, _, err := s.Receive(ctx, "a", "disk", MinBytes)
				if err != nil {
					return err
				}
				_ = in.Write(0, []byte("x"))
				return in.Suspend()
			}(),
			s.Restore(ctx, "a", "s"),
			s.DeleteSnapshot(ctx, "a", "s"),
			s.Delete(ctx, "a"),
			func() error {
				_, err := s.Sweep(func(string) bool { return true }, func(_, _ string) bool { return false })
				return err
			}(),
		} {
			if err != nil {
				refused++
			}
		}
	}
	cancel()
	wg.Wait()
	t.Logf("%d swaps, %d rounds, %d steps were refused", swaps.Load(), rounds, refused)
	for _, name := range names {
		st, err := os.Lstat(filepath.Join(canaries, name))
		must(t, err)
		got, err := os.ReadFile(filepath.Join(canaries, name))
		if err != nil || !bytes.Equal(got, canary) || !st.Mode().IsRegular() {
			t.Errorf("the canary %s was touched: %v, %v", name, st.Mode(), err)
		}
	}
	if left, _ := os.ReadDir(canaries); len(left) != len(names) {
		t.Errorf("files were made outside: %v", left)
	}
}

// What is no regular file of its own is no disk.
func TestOddFilesAreRefused(t *testing.T) {
	ctx := t.Context()
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, bytes.Repeat([]byte("o"), MinBytes), 0o600))
	for name, put := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink(outside, path) },
		"hard link": func(path string) error { return os.Link(outside, path) },
		"dangling":  func(path string) error { return os.Symlink("/nonexistent", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"device":    func(path string) error { return unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			path := ensure(t, s, "a", MinBytes)
			must(t, s.Snapshot(ctx, "a", "s", nil))
			for _, path := range []string{path, s.dir.Path("a/snap-u.img")} {
				_ = os.Remove(path)
				must(t, put(path))
			}
			_, _, ensureErr := s.Ensure(ctx, "a", MinBytes, false)
			_, fileErr := s.File(ctx, "a", os.O_RDWR)
			_, cloneErr := s.Clone(ctx, "a", "", "b", nil)
			_, snapshotCloneErr := s.Clone(ctx, "a", "u", "b", nil)
			_, _, sendErr := s.Send(ctx, "a", "disk", 0, func(uint64, []byte) error { return nil })
			_, _, receiveErr := s.Receive(ctx, "a", "disk", MinBytes)
			for step, err := range map[string]error{
				"ensure": ensureErr, "file": fileErr, "clone": cloneErr, "clone of a snapshot": snapshotCloneErr, "send": sendErr, "receive": receiveErr,
				"resize": s.Resize(ctx, "a", 2*MinBytes), "grow": s.GrowFile(ctx, "a", 2*MinBytes),
				"snapshot": s.Snapshot(ctx, "a", "t", nil), "again": s.Snapshot(ctx, "a", "u", nil), "restore": s.Restore(ctx, "a", "u"),
			} {
				if !problem.HasCode(err, "disk.not_regular") {
					t.Errorf("%s: %v", step, err)
				}
			}
			if name != "hard link" {
				if _, err := s.Stat(ctx, "a"); !problem.HasCode(err, "disk.not_regular") {
					t.Errorf("stat: %v", err)
				}
			}
			must(t, s.Delete(ctx, "a"))
			if left := entries(t, s.dir.File().Name()); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if b, err := os.ReadFile(outside); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("o"), MinBytes)) {
				t.Fatal("the other file was touched")
			}
		})
	}
}

// What is not its own the store leaves alone.
func TestOpenLeavesStrangersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	s, err := Open(Config{Dir: dir})
	must(t, err)
	ensure(t, s, "a", MinBytes)
	must(t, s.Close())
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "x.new"), []byte("x"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(dir, "b")))
	must(t, os.Symlink(outside, filepath.Join(dir, ".deleted-c")))
	must(t, os.WriteFile(filepath.Join(dir, "README"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	must(t, os.Mkdir(filepath.Join(dir, ".deleted-d"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, ".deleted-d/disk.img"), nil, 0o600))
	for _, name := range []string{"disk.img.new", "in-disk.img", "in-snap-s.mark", "other"} {
		must(t, os.WriteFile(filepath.Join(dir, "a", name), nil, 0o600))
	}
	s = openStore(t, dir, 1<<40)
	want := "README a a/disk.img a/other b file"
	if got := strings.Join(entries(t, dir), " "); got != want {
		t.Fatalf("left: %s\nwant: %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(outside, "x.new")); err != nil {
		t.Fatal(err)
	}
	if taken, err := s.Taken(); err != nil || taken != MinBytes {
		t.Fatalf("%d, %v", taken, err)
	}
	must(t, os.RemoveAll(filepath.Join(dir, "b")))
	must(t, os.Remove(filepath.Join(dir, "file")))
	if got, err := s.List(t.Context()); err != nil || len(got) != 1 || got[0].ID != "a" {
		t.Fatalf("%+v, %v", got, err)
	}
	_, err = Open(Config{Dir: filepath.Join(dir, "README")})
	if err == nil {
		t.Fatal("opened a file")
	}
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	if _, err = Open(Config{Dir: filepath.Join(dir, "link")}); err == nil {
		t.Fatal("opened a link")
	}
}

// 1,000 random rounds, some at once, leave nothing behind.
func TestRandomRoundsLeaveNothing(t *testing.T) {
	t.Parallel()
	const rounds, lanes = 1000, 4
	s := openStore(t, filepath.Join(t.TempDir(), "volumes"), 64*MinBytes)
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			ctx := context.Background()
			rnd := rand.New(rand.NewPCG(uint64(lane), 7))
			id := func() string { return fmt.Sprintf("v%d", rnd.IntN(6)) }
			snapshot := func() string { return fmt.Sprintf("s%d", rnd.IntN(3)) }
			for range rounds / lanes {
				var err error
				switch rnd.IntN(7) {
				case 0, 1:
					_, _, err = s.Ensure(ctx, id(), MinBytes, false)
				case 2:
					err = s.Snapshot(ctx, id(), snapshot(), nil)
				case 3:
					_, err = s.Clone(ctx, id(), snapshot(), id(), nil)
				case 4:
					err = s.DeleteSnapshot(ctx, id(), snapshot())
				case 5:
					err = s.Restore(ctx, id(), snapshot())
				case 6:
					err = s.Delete(ctx, id())
				}
				if p := problem.From(err); p != nil && p.Kind == problem.Internal {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	infos, err := s.List(t.Context())
	must(t, err)
	for _, info := range infos {
		fsck(t, s.dir.Path(info.ID+"/disk.img"))
	}
	_, err = s.Sweep(func(string) bool { return false }, nil)
	must(t, err)
	taken, err := s.Taken()
	if left := entries(t, s.dir.File().Name()); len(left) > 0 || taken != 0 || err != nil || len(s.gates) > 0 {
		t.Fatalf("left: %v, %d bytes, %d gates, %v", left, taken, len(s.gates), err)
	}
}

// A file system that a guest damaged is resized whole or stays as it is, and its clone
// can be made.
func TestDamagedFileSystems(t *testing.T) {
	t.Parallel()
	const rounds = 30
	s := newStore(t)
	ctx := t.Context()
	good := ensure(t, s, "good", 64*mib)
	put(t, good, "f", bytes.Repeat([]byte("x"), 2*mib))
	resized := 0
	for round := range rounds {
		rnd := rand.New(rand.NewPCG(uint64(round), 11))
		_, err := s.Clone(ctx, "good", "", "bad", nil)
		must(t, err)
		path := s.dir.Path("bad/disk.img")
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		for range 1 + rnd.IntN(8) {
			// The superblock, the descriptors, or any metadata near the beginning.
			at := []int64{superOffset + rnd.Int64N(superBytes), 4096 + rnd.Int64N(64), rnd.Int64N(2 * mib)}[rnd.IntN(3)]
			_, err := f.WriteAt([]byte{byte(rnd.Uint32())}, at)
			must(t, err)
		}
		before, err := digest(ctx, f, 64*mib)
		must(t, err)
		for _, size := range []uint64{128 * mib, 32 * mib} {
			err = s.Resize(ctx, "bad", size)
			if err == nil {
				if _, isExt, err := readSuper(f); err != nil || !isExt {
					break // only the disk was made larger
				}
				resized++
				fsck(t, path)
				break
			}
			after, digestErr := digest(ctx, f, 64*mib)
			if digestErr != nil || !bytes.Equal(before, after) {
				t.Fatalf("round %d: changed by a step that was refused: %v", round, err)
			}
			if p := problem.From(err); p.Kind == problem.Internal && p.Code != "volume.resize" {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		must(t, f.Close())
		if _, err := s.Clone(ctx, "bad", "", "copy", nil); err != nil && !problem.HasCode(err, "volume.damaged") {
			t.Fatalf("round %d: %v", round, err)
		}
		must(t, s.Delete(ctx, "bad"))
		must(t, s.Delete(ctx, "copy"))
	}
	t.Logf("%d of %d could be resized", resized, rounds)
}

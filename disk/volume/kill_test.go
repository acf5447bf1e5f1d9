package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blixard/blixard/internal/failpoint"
)

// victimEnv has the directory, the step and the point of a process that dies there.
const victimEnv = "TEST_VOLUME_VICTIM"

// step is done by a victim, on what prepare made, and again by its heir.
type step struct {
	do func(ctx context.Context, s *Store) error
	// done tells whether the step is visible; all or nothing of it is.
	done func(t *testing.T, s *Store) bool
}

const incomingBytes = 128 * mib

// incomingPieces of a file that moves: every second MiB.
func incomingPieces(visit func(offset uint64, data []byte) error) error {
	for at := uint64(0); at < incomingBytes; at += 2 * PieceBytes {
		if err := visit(at, bytes.Repeat([]byte{byte(at>>20) + 1}, PieceBytes)); err != nil {
			return err
		}
	}
	return nil
}

func incomingDigest() []byte {
	d := newDigester(incomingBytes)
	_ = incomingPieces(func(offset uint64, data []byte) error {
		for at := 0; at < len(data); at += chunkBytes {
			d.chunk(int64(offset)+int64(at), data[at:at+chunkBytes])
		}
		return nil
	})
	return d.sum()
}

func isThere(id string) func(t *testing.T, s *Store) bool {
	return func(t *testing.T, s *Store) bool {
		_, err := os.Lstat(s.dir.Path(id + "/disk.img"))
		if err == nil {
			fsck(t, s.dir.Path(id+"/disk.img"))
		}
		return err == nil
	}
}

func sizeIs(size uint64) func(t *testing.T, s *Store) bool {
	return func(t *testing.T, s *Store) bool {
		info, err := s.Stat(t.Context(), "a")
		must(t, err)
		return info.SizeBytes == size
	}
}

var steps = map[string]step{
	"ensure": {
		func(ctx context.Context, s *Store) error {
			_, _, err := s.Ensure(ctx, "e", MinBytes, false)
			return err
		},
		isThere("e"),
	},
	"attach": {
		func(ctx context.Context, s *Store) error { return s.Attach(ctx, "a", 9) },
		func(t *testing.T, s *Store) bool {
			info, err := s.Stat(t.Context(), "a")
			must(t, err)
			return info.Epoch == 9
		},
	},
	"grow": {
		func(ctx context.Context, s *Store) error { return s.GrowFile(ctx, "a", 80*mib) },
		sizeIs(80 * mib),
	},
	"resize": {
		func(ctx context.Context, s *Store) error { return s.Resize(ctx, "a", 36*mib) },
		sizeIs(36 * mib),
	},
	"enlarge": {
		func(ctx context.Context, s *Store) error { return s.Resize(ctx, "a", 20<<30) },
		sizeIs(20 << 30),
	},
	"snapshot": {
		func(ctx context.Context, s *Store) error { return s.Snapshot(ctx, "a", "t", nil) },
		func(_ *testing.T, s *Store) bool {
			_, err := os.Lstat(s.dir.Path("a/snap-t.img"))
			return err == nil
		},
	},
	"restore": {
		func(ctx context.Context, s *Store) error { return s.Restore(ctx, "a", "s") },
		func(t *testing.T, s *Store) bool { return len(get(t, s.dir.Path("a/disk.img"), "late")) == 0 },
	},
	"clone": {
		func(ctx context.Context, s *Store) error { _, err := s.Clone(ctx, "a", "s", "c", nil); return err },
		isThere("c"),
	},
	"receive": {
		func(ctx context.Context, s *Store) error {
			in, have, err := s.Receive(ctx, "r", "disk", incomingBytes)
			if err != nil {
				return err
			}
			err = incomingPieces(func(offset uint64, data []byte) error {
				if offset < have {
					return nil
				}
				return in.Write(offset, data)
			})
			if err != nil {
				return errors.Join(err, in.Suspend())
			}
			return in.Finish(ctx, incomingDigest())
		},
		func(t *testing.T, s *Store) bool {
			f, err := os.Open(s.dir.Path("r/disk.img"))
			if err != nil {
				return false
			}
			defer f.Close()
			got, err := digest(t.Context(), f, incomingBytes)
			if err != nil || !bytes.Equal(got, incomingDigest()) {
				t.Fatalf("half a file is visible: %v", err)
			}
			return true
		},
	},
	"delete_snapshot": {
		func(ctx context.Context, s *Store) error { return s.DeleteSnapshot(ctx, "a", "s") },
		func(_ *testing.T, s *Store) bool {
			_, err := os.Lstat(s.dir.Path("a/snap-s.img"))
			return err != nil
		},
	},
	"delete": {
		func(ctx context.Context, s *Store) error { return s.Delete(ctx, "b") },
		func(_ *testing.T, s *Store) bool {
			_, err := os.Lstat(s.dir.Path("b"))
			return err != nil
		},
	},
}

// victim does one step and dies at its point; it reports whether this process is one.
func victim() bool {
	dir, rest, is := strings.Cut(os.Getenv(victimEnv), "|")
	if !is {
		return false
	}
	name, point, _ := strings.Cut(rest, "|")
	s, err := Open(Config{Dir: dir})
	if err == nil {
		s.hook = func(at string) {
			if at == point {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
		err = steps[name].do(context.Background(), s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// prepare makes the volumes that the steps work on.
func prepare(t *testing.T, dir string) {
	t.Helper()
	s, err := Open(Config{Dir: dir})
	must(t, err)
	path := ensure(t, s, "a", 64*mib)
	ensure(t, s, "b", MinBytes)
	put(t, path, "early", bytes.Repeat([]byte("e"), 3*mib))
	must(t, s.Attach(t.Context(), "a", 3))
	must(t, s.Snapshot(t.Context(), "a", "s", nil))
	must(t, s.Snapshot(t.Context(), "b", "s", nil))
	put(t, path, "late", []byte("late"))
	must(t, s.Close())
}

func run(t *testing.T, dir, name, point string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), victimEnv+"="+dir+"|"+name+"|"+point)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	return cmd
}

// heir looks at what is left, does the step again, and checks that all else is whole.
func heir(t *testing.T, dir, name string) (wasDone bool) {
	t.Helper()
	s, err := Open(Config{Dir: dir})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	for _, e := range entries(t, dir) {
		if strings.HasSuffix(e, newSuffix) || strings.Contains(e, deletedPrefix) {
			t.Errorf("%s is left", e)
		}
	}
	st := steps[name]
	path := s.dir.Path("a/disk.img")
	fsck(t, path)
	if wasDone = st.done(t, s); !wasDone {
		must(t, st.do(t.Context(), s))
	}
	if !st.done(t, s) {
		t.Fatal("the step is not done")
	}
	fsck(t, path)
	if !bytes.Equal(get(t, path, "early"), bytes.Repeat([]byte("e"), 3*mib)) {
		t.Fatal("the content is lost")
	}
	if late := string(get(t, path, "late")); name != "restore" && late != "late" {
		t.Fatalf("the content is lost: %q", late)
	}
	if err := s.Attach(t.Context(), "a", 2); err == nil {
		t.Fatal("the epoch is lost")
	}
	return wasDone
}

// A process that dies at any point leaves what was before or what shall be.
func TestKillAtEveryPoint(t *testing.T) {
	for _, point := range failpoint.VolumePoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			name := strings.Split(point, ".")[1]
			dir := filepath.Join(t.TempDir(), "volumes")
			prepare(t, dir)
			err := run(t, dir, name, point).Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it did not die there: %v", err)
			}
			wasDone := heir(t, dir, name)
			if strings.HasSuffix(point, ".done") && !wasDone {
				t.Error("a step that was done is not")
			}
		})
	}
}

// The same at any time, also in the middle of e2fsprogs.
func TestKillAtAnyTime(t *testing.T) {
	t.Parallel()
	const rounds = 24
	names := []string{"resize", "enlarge", "clone", "ensure", "restore", "receive"}
	done := 0
	for k := range rounds {
		name := names[k%len(names)]
		dir := filepath.Join(t.TempDir(), "volumes")
		prepare(t, dir)
		cmd := run(t, dir, name, "")
		select {
		case <-t.Context().Done():
		case <-time.After(time.Duration(rand.IntN(120)) * time.Millisecond):
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if heir(t, dir, name) {
			done++
		}
		must(t, os.RemoveAll(dir))
	}
	t.Logf("%d of %d were done before the end", done, rounds)
}

// snapshotTree copies what a kill would leave at this moment.
func snapshotTree(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// Each point is visited by its step, in the order of the list, and no other.
func TestPointsAreThoseOfTheList(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	prepare(t, dir)
	s := openStore(t, dir, 0)
	var seen []string
	s.hook = func(point string) {
		if !slices.Contains(seen, point) {
			seen = append(seen, point)
		}
	}
	for _, name := range []string{"ensure", "attach", "grow", "resize", "snapshot", "restore", "clone", "receive", "delete_snapshot", "delete"} {
		must(t, steps[name].do(t.Context(), s))
	}
	if !slices.Equal(seen, failpoint.VolumePoints) {
		t.Fatalf("visited %v\nlisted %v", seen, failpoint.VolumePoints)
	}
}

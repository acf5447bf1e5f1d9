package volume

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/blixard/blixard/disk"
)

// BenchmarkSnapshot of a volume of 1 GiB with 100 MiB of data, durable, beside
// cp --sparse=always with a sync, in the same run: the ratio is time of ours to time of
// cp's.
func BenchmarkSnapshot(b *testing.B) {
	b.Run("copied", func(b *testing.B) { benchmarkSnapshot(b, b.TempDir()) })
	b.Run("shared", func(b *testing.B) {
		dir, ok := mount(b, 4<<10, "/usr/sbin/mkfs.xfs", "-q", "-m", "reflink=1")
		if !ok {
			b.Fatal("install xfsprogs")
		}
		benchmarkSnapshot(b, dir)
	})
}

func benchmarkSnapshot(b *testing.B, dir string) {
	s := openStore(b, filepath.Join(dir, "volumes"), 0)
	path := ensure(b, s, "a", 1<<30)
	scatter(b, path, 100)
	must(b, exec.Command("sync", path).Run())
	to := s.dir.Path("a/copy")
	var ours, theirs time.Duration
	for b.Loop() {
		begin := time.Now()
		must(b, s.Snapshot(b.Context(), "a", "s", nil))
		ours += time.Since(begin)
		b.StopTimer()
		must(b, s.DeleteSnapshot(b.Context(), "a", "s"))
		begin = time.Now()
		must(b, exec.Command("cp", "--sparse=always", path, to).Run())
		must(b, exec.Command("sync", to).Run())
		theirs += time.Since(begin)
		must(b, exec.Command("rm", to).Run())
		b.StartTimer()
	}
	b.ReportMetric(theirs.Seconds()*1e9/float64(b.N), "ns/cp")
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
}

// BenchmarkCopy is the same without the waiting for the disk.
func BenchmarkCopy(b *testing.B) {
	s := newStore(b)
	path := ensure(b, s, "a", 1<<30)
	scatter(b, path, 100)
	to := s.dir.Path("a/copy")
	var ours, theirs time.Duration
	for b.Loop() {
		begin := time.Now()
		from, err := s.dir.Sub("a")
		must(b, err)
		src, err := from.Open(diskImage, 0)
		must(b, err)
		dst, err := from.Create("mine")
		must(b, err)
		must(b, disk.Copy(b.Context(), dst, src, nil))
		must(b, dst.Close())
		ours += time.Since(begin)
		b.StopTimer()
		must(b, src.Close())
		must(b, from.Remove("mine"))
		must(b, from.Close())
		begin = time.Now()
		must(b, exec.Command("cp", "--sparse=always", path, to).Run())
		theirs += time.Since(begin)
		must(b, exec.Command("rm", to).Run())
		b.StartTimer()
	}
	b.ReportMetric(theirs.Seconds()*1e9/float64(b.N), "ns/cp")
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
}

// BenchmarkEnsure of a volume of 1 GiB.
func BenchmarkEnsure(b *testing.B) {
	s := newStore(b)
	for b.Loop() {
		ensure(b, s, "a", 1<<30)
		b.StopTimer()
		must(b, s.Delete(b.Context(), "a"))
		b.StartTimer()
	}
}

// BenchmarkDigest of 1 GiB with 100 MiB of data.
func BenchmarkDigest(b *testing.B) {
	s := newStore(b)
	path := ensure(b, s, "a", 1<<30)
	scatter(b, path, 100)
	b.SetBytes(1 << 30)
	for b.Loop() {
		_, _, err := s.Send(b.Context(), "a", "disk", 0, drop)
		must(b, err)
	}
}

func drop(uint64, []byte) error { return nil }

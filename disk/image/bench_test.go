package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

// A hundred thousand files, as in an image with many dependencies.
func TestManyFiles(t *testing.T) {
	const dirs, each = 500, 200
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for d := range dirs {
		for f := range each {
			body := fmt.Sprintf("content %d %d", d, f)
			h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("node_modules/package-%d/file-%d.js", d, f), Mode: 0o644, Size: int64(len(body)), ModTime: noon}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(w, body)
		}
	}
	// And as many in one directory.
	for f := range dirs * each {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("flat/%d", f), Mode: 0o600, ModTime: noon}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	disk, err := buildTars(t, b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files: %v, %d MiB", 2*dirs*each, time.Since(begin), st.Size()>>20)
	if st.Size() > 40<<20 {
		t.Errorf("%d bytes", st.Size())
	}
	root := mounted(t, disk)
	for _, n := range []int{0, 1, 99_999, 50_000} {
		if st, err := os.Lstat(fmt.Sprintf("%s/flat/%d", root, n)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%d: %v", n, err)
		}
		d, f := n/each, n%each
		if b, err := os.ReadFile(fmt.Sprintf("%s/node_modules/package-%d/file-%d.js", root, d, f)); err != nil || string(b) != fmt.Sprintf("content %d %d", d, f) {
			t.Errorf("%d: %q, %v", n, b, err)
		}
	}
	names, err := os.ReadDir(root + "/flat")
	if err != nil || len(names) != dirs*each {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// benchLayers are three layers as a small distribution with a program has them:
// 6,500 files of 150 MiB, of text and of what does not shrink, and a few changes. Files
// named by BLIXARD_BENCH_LAYERS, as NAME:NAME, are taken instead.
func benchLayers(b *testing.B) (files []string, unpacked int64) {
	b.Helper()
	if list := os.Getenv("BLIXARD_BENCH_LAYERS"); list != "" {
		files = strings.Split(list, ":")
	} else {
		dir := b.TempDir()
		for n, layer := range [][2]int{{4000, 20_000}, {2000, 30_000}, {500, 10_000}} {
			files = append(files, filepath.Join(dir, fmt.Sprintf("%d.tar.gz", n)))
			writeBenchLayer(b, files[n], n, layer[0], layer[1])
		}
	}
	for _, f := range files {
		r, err := os.Open(f)
		if err != nil {
			b.Fatal(err)
		}
		z, err := decompress(r)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, z)
		if err != nil {
			b.Fatal(err)
		}
		unpacked += n
		_ = r.Close()
	}
	return files, unpacked
}

func writeBenchLayer(b *testing.B, path string, layer, count, mean int) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		b.Fatal(err)
	}
	w := tar.NewWriter(z)
	r := rand.New(rand.NewPCG(uint64(layer), 7))
	words := make([]string, 4096)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", r.Uint64()>>r.IntN(50))
	}
	var body bytes.Buffer
	for n := range count {
		body.Reset()
		// Most files are small, a few are large.
		size := int(float64(mean) * r.ExpFloat64() * r.ExpFloat64())
		for body.Len() < size {
			if n%4 == 0 {
				_ = body.WriteByte(byte(r.Uint32()))
			} else {
				body.WriteString(words[r.IntN(len(words))])
			}
		}
		name := fmt.Sprintf("usr/lib/d%d/e%d/file-%d-%d", n%40, n%13, layer*(n%3), n)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(body.Len()), ModTime: noon}); err != nil {
			b.Fatal(err)
		}
		_, _ = w.Write(body.Bytes())
	}
	for _, c := range []io.Closer{w, z, f} {
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuild makes a disk of layers, durably and with its digest, and unpacks the
// same layers with tar, without either: tar/build tells how many times longer tar
// takes.
func BenchmarkBuild(b *testing.B) {
	files, unpacked := benchLayers(b)
	var layers []layer
	for _, f := range files {
		l := spooled{path: f}.layer("")
		layers = append(layers, l)
	}
	b.SetBytes(unpacked)
	var build1, tar1 time.Duration
	var size int64
	for b.Loop() {
		dir := b.TempDir()
		begin := time.Now()
		d, err := build(b.Context(), dir, "x", layers, noCharge, func(int) {})
		if err != nil {
			b.Fatal(err)
		}
		build1 += time.Since(begin)
		size = d.bytes
		b.StopTimer()
		root := filepath.Join(dir, "root")
		if err := os.Mkdir(root, 0o700); err != nil {
			b.Fatal(err)
		}
		begin = time.Now()
		for _, f := range files {
			if out, err := exec.Command("tar", "-x", "-p", "-f", f, "-C", root).CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
		tar1 += time.Since(begin)
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(tar1.Seconds()/build1.Seconds(), "tar/build")
	b.ReportMetric(float64(size)/(1<<20), "disk-MiB")
	b.ReportMetric(float64(unpacked)/(1<<20), "layers-MiB")
}

// BenchmarkExt4 makes ext4 of the same layers, for the choice between the two.
func BenchmarkExt4(b *testing.B) {
	files, unpacked := benchLayers(b)
	b.SetBytes(unpacked)
	var size int64
	for b.Loop() {
		dir := b.TempDir()
		merged := mergedTar(b, files)
		f, err := createFile(filepath.Join(dir, diskFile))
		if err != nil {
			b.Fatal(err)
		}
		if err := tar2ext4.ConvertTarToExt4(merged, f, tar2ext4.InlineData, tar2ext4.MaximumDiskSize(16<<30)); err != nil {
			b.Fatal(err)
		}
		if _, err := finishDisk(b.Context(), f); err != nil {
			b.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		size = st.Size()
		_ = f.Close()
		_ = os.RemoveAll(dir)
		_ = merged.Close()
	}
	b.ReportMetric(float64(size)/(1<<20), "disk-MiB")
}

// mergedTar gives the files of all layers as one archive, decompressed on the way.
func mergedTar(b *testing.B, files []string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		out := tar.NewWriter(w)
		seen := map[string]bool{}
		for _, f := range files {
			src, err := os.Open(f)
			if err != nil {
				_ = w.CloseWithError(err)
				return
			}
			z, err := decompress(src)
			if err != nil {
				_ = w.CloseWithError(err)
				return
			}
			in := tar.NewReader(z)
			// tar2ext4 cannot replace a file, so what comes twice comes once.
			for h, err := in.Next(); err == nil; h, err = in.Next() {
				if seen[h.Name] {
					continue
				}
				seen[h.Name] = true
				if err := out.WriteHeader(h); err != nil {
					_ = w.CloseWithError(err)
					return
				}
				if _, err := io.Copy(out, in); err != nil {
					_ = w.CloseWithError(err)
					return
				}
			}
			_ = src.Close()
		}
		_ = w.CloseWithError(out.Close())
	}()
	return r
}

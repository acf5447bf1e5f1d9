package image

import (
	"bytes"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/blixard/blixard/internal/problem"
)

// isProblem holds that whatever is refused says what is wrong and what to do.
func isProblem(t *testing.T, err error) {
	t.Helper()
	p := problem.From(err)
	if p == nil {
		return
	}
	if !problem.Is(err, problem.Invalid) && !problem.Is(err, problem.NoCapacity) || !strings.HasPrefix(p.Code, "image.") || p.Hint == "" || len(p.Message) > 2000 {
		t.Fatalf("%+v", p)
	}
}

// FuzzLayer applies any bytes as a layer over a small one. Whatever is taken must be
// a file system that its checker finds in order.
func FuzzLayer(f *testing.F) {
	base := layerTar(f, dir("d"), file("d/f", "1"), symlink("l", "d"), hardlink("h", "d/f"))
	f.Add(sundry(f)[:20_000])
	f.Add(layerTar(f, file(".wh.d", ""), file("l/x", random(5000)), hardlink("d", "h"), file("d/.wh..wh..opq", "")))
	f.Add(gzipped(f, layerTar(f, symlink("a", "../.."), file("a/b", "x"))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		work := t.TempDir()
		spent := int64(0)
		charge := func(n int64) error {
			if spent += n; spent > 64<<20 {
				return problem.New(problem.NoCapacity, "image.budget", "x").WithHint("x")
			}
			return nil
		}
		_, err := build(t.Context(), work, "x", []layer{{open: open(base)}, {open: open(raw)}}, charge, func(int) {})
		isProblem(t, err)
		if err == nil {
			if out, err := exec.Command("fsck.erofs", filepath.Join(work, diskFile)).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	img := sample(f, 100)
	raw, err := img.RawManifest()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, typeOCIManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+typeOCIManifest+`","digest":"`+sha256Of(raw)+`","size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`), "")
	f.Fuzz(func(t *testing.T, raw []byte, contentType string) {
		m, err := parseManifest(raw, contentType)
		isProblem(t, err)
		if err != nil {
			return
		}
		if m.isIndex() {
			_, err := m.choose()
			isProblem(t, err)
		} else if len(m.Layers) > layersMax || m.compressedBytes() < 0 || m.compressedBytes() > downloadBytesMax {
			t.Fatalf("%d layers of %d bytes", len(m.Layers), m.compressedBytes())
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Env":["A=b"],"Cmd":["x"],"StopSignal":"SIGINT","Labels":{"a":"b"},"ExposedPorts":{"80/tcp":{}}},"rootfs":{"diff_ids":["` + sha256Of(nil) + `"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, ids, err := parseConfig(raw, 1)
		isProblem(t, err)
		if err != nil {
			return
		}
		if len(ids) != 1 || checkConfig(c) != nil || proto.Size(c) > 2*configTextMax {
			t.Fatalf("%d, %d bytes", len(ids), proto.Size(c))
		}
		if _, err := proto.Marshal(c); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzSignal(f *testing.F) {
	for _, s := range []string{"", "15", "SIGTERM", "term", "SIGRTMIN+3", "RTMAX-1", "0", "65", "SIGRTMIN-1", "SIGRTMIN+99999999999999999999", "RTMIN+", "+15", "1e1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSignal(s)
		isProblem(t, err)
		if n > stopSignalsMax || (n == 0) != (err != nil || s == "") {
			t.Fatalf("%q is %d, %v", s, n, err)
		}
	})
}

func FuzzArchive(f *testing.F) {
	f.Add(layerTar(f, file("manifest.json", `[{"Config":"c","Layers":["l"]}]`), file("c", "{}"), symlink("l", "c")))
	f.Add(layerTar(f, file("index.json", `{"schemaVersion":2,"manifests":[]}`)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := newStore(t, func(c *Config) { c.BudgetBytes = 16 << 20 })
		_, err := s.Import(t.Context(), bytes.NewReader(raw), "x")
		isProblem(t, err)
		if l := left(t, s); len(l) != 0 {
			t.Fatal(l)
		}
	})
}

// sparseReader is a disk of any bytes with zeros behind them.
type sparseReader struct {
	b    []byte
	size int64
}

func (r sparseReader) ReadAt(p []byte, at int64) (int, error) {
	n := int(max(0, min(int64(len(p)), r.size-at)))
	clear(p[:n])
	if at < int64(len(r.b)) {
		copy(p[:n], r.b[at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func FuzzPartitions(f *testing.F) {
	f.Add(gptDisk(512, piece{0, rootGUID, make([]byte, 4096)})[:8192], int64(4<<20))
	f.Add(gptDisk(4096, piece{0, nil, make([]byte, 4096)})[:32<<10], int64(4<<20))
	f.Add(mbrDisk(piece{0x83, nil, make([]byte, 4096)})[:512], int64(4<<20))
	f.Add(ext4Of(f, 8, "x")[:4096], int64(8<<20))
	f.Fuzz(func(t *testing.T, head []byte, size int64) {
		if size < 0 || size > 1<<40 {
			return
		}
		p, fs, err := findRoot(sparseReader{head, size}, size)
		isProblem(t, err)
		if err == nil && (p.offset < 0 || fs.bytes <= 0 || fs.bytes > p.bytes || p.offset+p.bytes > size) {
			t.Fatalf("%+v %+v of %d", p, fs, size)
		}
	})
}

func FuzzQcow2(f *testing.F) {
	for _, args := range [][]string{nil, {"-c"}, {"-c", "-o", "compression_type=zstd"}, {"-o", "compat=0.10,cluster_size=512"}} {
		f.Add(qcow2File(f, mixed()[299_000:310_000], args...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := openQcow2(bytes.NewReader(raw), int64(len(raw)))
		isProblem(t, err)
		if err != nil {
			return
		}
		b := make([]byte, 3000)
		for at := int64(0); at < q.size; at += 1 + q.size/50 {
			n, err := q.ReadAt(b, at)
			if err != nil && err != io.EOF {
				isProblem(t, err)
				return
			}
			if err == nil && n != len(b) {
				t.Fatalf("%d bytes without an error", n)
			}
		}
	})
}

func FuzzStored(f *testing.F) {
	s := newStore(f, nil)
	raw, err := formatStored(imported(f, s, "a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := parseStored(b)
		if err != nil {
			return
		}
		if err := checkImage(img); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzReference(f *testing.F) {
	f.Add("quay.io/a/b:1")
	f.Add("a@sha256:" + strings.Repeat("a", 64))
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := parseReference(text)
		isProblem(t, err)
		if err != nil {
			return
		}
		again, err := parseReference(fullName(ref))
		if err != nil || fullName(again) != fullName(ref) {
			t.Fatalf("%q is %q, which is %v, %v", text, fullName(ref), again, err)
		}
		if strings.Contains(ref.Context().RepositoryStr(), "..") {
			t.Fatalf("%q leads to %q", text, ref.Context().RepositoryStr())
		}
	})
}

func FuzzCredentials(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}`), "docker.io")
	f.Fuzz(func(t *testing.T, raw []byte, host string) {
		a, err := parseCredentials(raw, host)
		if err == nil {
			_, err = a.Authorization()
		}
		_ = err // whatever it is: it must only end
	})
}

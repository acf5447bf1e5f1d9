package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is when all files of the tests were changed.
var noon = time.Date(2026, 5, 4, 12, 0, 0, 123_000_000, time.UTC)

// ent is an entry of a layer.
type ent struct {
	tar.Header
	body string
}

func file(name, body string) ent {
	return ent{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func dir(name string) ent { return ent{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""} }

func symlink(name, to string) ent {
	return ent{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, ""}
}

func hardlink(name, to string) ent {
	return ent{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
}

func device(name string, kind byte, major, minor int64) ent {
	return ent{tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}, ""}
}
func (e ent) with(f func(h *tar.Header)) ent { f(&e.Header); return e }

func layerTar(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		e.Format = tar.FormatPAX
		if e.ModTime.IsZero() {
			e.ModTime = noon
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func open(b []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func noCharge(int64) error { return nil }

// buildTars makes a disk of layers and gives its path.
func buildTars(t testing.TB, tars ...[]byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	var layers []layer
	for _, b := range tars {
		layers = append(layers, layer{open: open(b)})
	}
	_, err := build(t.Context(), dir, "test", layers, noCharge, func(int) {})
	return filepath.Join(dir, diskFile), err
}

// mounted shows a disk at a directory for as long as the test lasts.
func mounted(t testing.TB, disk string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", disk, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}

// listing describes all files below a directory as the kernel shows them, a line
// each, without the mount points that every image gets.
func listing(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	names := map[uint64]string{} // of files with several names: the first one
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st, err := d.Info()
		if err != nil {
			return err
		}
		lines = append(lines, describe(t, p, rel, st, names))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func describe(t testing.TB, p, rel string, st fs.FileInfo, names map[uint64]string) string {
	t.Helper()
	sys := st.Sys().(*syscall.Stat_t)
	line := fmt.Sprintf("%s mode=%o owner=%d:%d mtime=%d.%09d", rel, sys.Mode, sys.Uid, sys.Gid, sys.Mtim.Sec, sys.Mtim.Nsec)
	switch sys.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		body, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		line += fmt.Sprintf(" links=%d size=%d sum=%.20s", sys.Nlink, sys.Size, sha256Of(body)[7:])
		if first := names[sys.Ino]; first != "" {
			line += " same=" + first
		} else {
			names[sys.Ino] = rel
		}
	case unix.S_IFLNK:
		to, err := os.Readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		line += " to=" + to
	case unix.S_IFCHR, unix.S_IFBLK:
		line += fmt.Sprintf(" device=%d:%d", unix.Major(sys.Rdev), unix.Minor(sys.Rdev))
	}
	return line + xattrsOf(t, p)
}

func xattrsOf(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	line := ""
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatalf("%s: %s: %v", p, name, err)
		}
		line += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return line
}

// hub is a registry with faults.
type hub struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	requests []string
	// fault, if not nil, may answer a request itself.
	fault func(w http.ResponseWriter, r *http.Request) bool
}

func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{}
	inner := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)))
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.requests = append(h.requests, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
		fault := h.fault
		h.mu.Unlock()
		if fault == nil || !fault(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	h.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	h.Start()
	h.host = strings.TrimPrefix(h.URL, "http://")
	t.Cleanup(h.Close)
	return h
}

func (h *hub) setFault(f func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = f
}

// count tells how many requests had the text in their line.
func (h *hub) count(text string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.requests {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

// imageOf makes an image of layers, gzipped.
func imageOf(t testing.TB, change func(*v1.ConfigFile), tars ...[]byte) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, typeOCIManifest)
	for _, b := range tars {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	if change != nil {
		change(c)
	}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// push brings an image into the registry and gives its name and digest.
func (h *hub) push(t testing.TB, repo string, img v1.Image) (ref, digest string) {
	t.Helper()
	r, err := name.ParseReference(h.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	if err := remote.Write(r, img, remote.WithTransport(transport)); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.host + "/" + repo, d.String()
}

func newStore(t testing.TB, change func(*Config)) *Store {
	t.Helper()
	c := Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	return reopen(t, c)
}

func reopen(t testing.TB, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	s.wait, s.stall = time.Millisecond, 5*time.Second
	return s
}

// left gives what is in the store's directories beside whole images.
func left(t testing.TB, s *Store) []string {
	t.Helper()
	var all []string
	for _, d := range []string{tmpDir, blobsDir} {
		entries, err := os.ReadDir(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, d+"/"+e.Name())
		}
	}
	return all
}

// tlsHub is a registry by HTTPS whose certificate nobody knows.
type tlsHub struct {
	host string
	pem  []byte
}

func newTLSHub(t testing.TB, h *hub) *tlsHub {
	t.Helper()
	srv := httptest.NewUnstartedServer(h.Config.Handler)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	block := &pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}
	return &tlsHub{strings.TrimPrefix(srv.URL, "https://"), pem.EncodeToMemory(block)}
}

// eventually waits until something holds.
func eventually(t testing.TB, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it did not come to hold")
		}
	}
}

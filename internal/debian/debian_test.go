package debian_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/blixard/blixard/internal/debian"
	"github.com/blixard/blixard/internal/debian/debiantest"
	"github.com/blixard/blixard/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fetcher(t testing.TB) (*debian.Fetcher, *[]string) {
	var mu sync.Mutex
	told := new([]string)
	return &debian.Fetcher{CacheDir: t.TempDir(), Progress: func(s string) {
		mu.Lock()
		defer mu.Unlock()
		*told = append(*told, s)
	}}, told
}

func tool(version string) debiantest.Package {
	return debiantest.Package{Name: "tool", Version: version, Files: map[string][]byte{"usr/bin/tool": []byte("tool " + version)}}
}

// Of several versions the newest in Debian's order is taken, found through lists of our own where the host
// has none, fetched once, and unpacked as it is.
func TestFetchAndUnpack(t *testing.T) {
	repo := debiantest.New(t)
	var newest []byte
	for _, v := range []string{"1.9-1", "1:0.2~rc1-1", "1:0.2-1+deb12u1", "1:0.10~beta-1", "2.0-1"} {
		deb := repo.Add(t, tool(v))
		if v == "1:0.10~beta-1" {
			newest = deb
		}
	}
	f, told := fetcher(t)
	p, err := f.Resolve(t.Context(), "tool")
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "tool" || p.Version != "1:0.10~beta-1" || p.Bytes != int64(len(newest)) {
		t.Errorf("%+v", p)
	}
	var paths [3]string
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() {
			var err error
			if paths[i], err = f.Fetch(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if paths[0] != paths[1] || paths[1] != paths[2] || repo.Downloads("tool") != 1 {
		t.Errorf("%q after %d downloads", paths, repo.Downloads("tool"))
	}
	if got, err := os.ReadFile(paths[0]); err != nil || !bytes.Equal(got, newest) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	dir := t.TempDir()
	if err := f.Unpack(t.Context(), paths[0], dir); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "usr/bin/tool")); err != nil || string(got) != "tool 1:0.10~beta-1" {
		t.Errorf("%q, %v", got, err)
	}
	if !slices.ContainsFunc(*told, func(s string) bool { return strings.HasPrefix(s, "downloading tool 1:0.10~beta-1") }) {
		t.Errorf("told %q", *told)
	}
}

func TestDepends(t *testing.T) {
	repo := debiantest.New(t)
	repo.Add(t, debiantest.Package{Name: "meta", Version: "1", Depends: "one-1.2 (= 3), two | three, four:any, Bad"})
	repo.Add(t, tool("1"))
	f, _ := fetcher(t)
	got, err := f.Depends(t.Context(), "meta")
	if want := []string{"one-1.2", "two"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := f.Depends(t.Context(), "tool"); err != nil || got != nil {
		t.Errorf("of one without: %q, %v", got, err)
	}
	if _, err := f.Depends(t.Context(), "none-such"); !problem.HasCode(err, "debian.no_package") {
		t.Errorf("%v", err)
	}
}

func TestRefusals(t *testing.T) {
	repo := debiantest.New(t)
	f, _ := fetcher(t)
	for _, name := range []string{"", "x", "-o", "Up", "a b", "a/b", "a;b", strings.Repeat("a", 200)} {
		if _, err := f.Resolve(t.Context(), name); !problem.HasCode(err, "debian.package_name") {
			t.Errorf("%q: %v", name, err)
		}
	}
	repo.Add(t, tool("1"))
	if _, err := f.Resolve(t.Context(), "none-such"); !problem.HasCode(err, "debian.no_package") {
		t.Errorf("no such package: %v", err)
	}
	repo.Stop()
	f.CacheDir = t.TempDir()
	if _, err := f.Resolve(t.Context(), "tool"); !problem.HasCode(err, "debian.lists") {
		t.Errorf("without a network: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := f.Resolve(t.Context(), "tool"); !problem.HasCode(err, "tools.missing") {
		t.Errorf("without apt: %v", err)
	}
}

// What was known before serves while there is no network.
func TestNoNetwork(t *testing.T) {
	repo := debiantest.New(t)
	repo.Add(t, tool("1"))
	f, told := fetcher(t)
	p, err := f.Resolve(t.Context(), "tool")
	if err != nil {
		t.Fatal(err)
	}
	path, err := f.Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	repo.Stop()
	// Lists of before still answer; when they are gone too, the note of the last answer does.
	for _, want := range []string{"fetching Debian's package lists", "as known from before"} {
		again, err := f.Resolve(t.Context(), "tool")
		if err != nil || again != p || !strings.Contains((*told)[len(*told)-1], want) {
			t.Errorf("%+v, %v, told %q", again, err, *told)
		}
		if err := os.RemoveAll(filepath.Join(f.CacheDir, "apt")); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := f.Fetch(t.Context(), p); got != path || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Fetch(t.Context(), p); !problem.HasCode(err, "debian.download") {
		t.Errorf("%v", err)
	}
	// A damaged note of before is no note.
	if err := os.WriteFile(filepath.Join(f.CacheDir, "resolved", "tool.json"), []byte(`{"name":"other"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Resolve(t.Context(), "tool"); !problem.HasCode(err, "debian.lists") {
		t.Errorf("%v", err)
	}
}

// A file with another digest than the lists give is never taken: neither from the cache nor from the network.
func TestDigests(t *testing.T) {
	repo := debiantest.New(t)
	deb := repo.Add(t, tool("1"))
	f, told := fetcher(t)
	p, err := f.Resolve(t.Context(), "tool")
	if err != nil {
		t.Fatal(err)
	}
	path, err := f.Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for name, damaged := range map[string][]byte{
		"flipped": append([]byte{deb[0] ^ 1}, deb[1:]...), "cut off": deb[:len(deb)/2], "longer": append(slices.Clone(deb), 0), "empty": {},
	} {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Fetch(t.Context(), p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, deb) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if !strings.Contains(strings.Join(*told, "\n"), "is damaged, fetching it again") {
		t.Errorf("told %q", *told)
	}
	for name, served := range map[string][]byte{"flipped": append([]byte{deb[0] ^ 1}, deb[1:]...), "cut off": deb[:len(deb)/2]} {
		repo.Replace(tool("1"), served)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if _, err := f.Fetch(t.Context(), p); !problem.HasCode(err, "debian.download") {
			t.Errorf("%s from the network: %v", name, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s from the network was kept: %v", name, err)
		}
	}
	// The digest asked for counts, not the one of today's lists.
	repo.Replace(tool("1"), deb)
	p.SHA256 = strings.Repeat("0", 64)
	if _, err := f.Fetch(t.Context(), p); !problem.HasCode(err, "debian.download") {
		t.Errorf("another digest: %v", err)
	}
}

// Whatever a package holds, nothing lands outside of the directory.
func TestUnpackHostile(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Mode: 0o777, Typeflag: tar.TypeSymlink}
	}
	outside := t.TempDir()
	whole := debiantest.Deb(t, tool("1"), []tar.Header{file("./a")}, [][]byte{bytes.Repeat([]byte("content"), 1000)})
	f, _ := fetcher(t)
	for name, deb := range map[string][]byte{
		"parent":            debiantest.Deb(t, tool("1"), []tar.Header{file("../escaped")}, [][]byte{{1}}),
		"absolute":          debiantest.Deb(t, tool("1"), []tar.Header{file(outside + "/escaped")}, [][]byte{{1}}),
		"through a link":    debiantest.Deb(t, tool("1"), []tar.Header{link("./d", outside), file("./d/escaped")}, [][]byte{nil, {1}}),
		"hard link outside": debiantest.Deb(t, tool("1"), []tar.Header{{Name: "./h", Linkname: "/etc/passwd", Typeflag: tar.TypeLink}}, [][]byte{nil}),
		"cut off":           whole[:len(whole)-40],
		"no data":           debiantest.Archive([]debiantest.Member{{Name: "debian-binary", Content: []byte("2.0\n")}}),
		"other version":     debiantest.Archive([]debiantest.Member{{Name: "debian-binary", Content: []byte("9.0\n")}}),
		"no archive":        []byte("no archive"),
		"empty":             {},
	} {
		base := t.TempDir()
		dir := filepath.Join(base, "d")
		path := filepath.Join(base, "p.deb")
		if err := os.WriteFile(path, deb, 0o600); err != nil {
			t.Fatal(err)
		}
		err := f.Unpack(t.Context(), path, dir)
		if name != "absolute" && name != "through a link" && err == nil {
			t.Errorf("%s: no error", name)
		}
		for _, p := range []string{filepath.Join(base, "escaped"), filepath.Join(outside, "escaped")} {
			if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s is there", name, p)
			}
		}
	}
}

func TestCancelled(t *testing.T) {
	repo := debiantest.New(t)
	repo.Add(t, tool("1"))
	f, _ := fetcher(t)
	p, err := f.Resolve(t.Context(), "tool")
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("the caller is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := f.Fetch(ctx, p); !errors.Is(err, gone) && !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := f.Unpack(ctx, "none.deb", t.TempDir()); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

func TestTools(t *testing.T) {
	if err := debian.RequireTools("sh"); err != nil {
		t.Error(err)
	}
	err := debian.RequireTools("sh", "none-such-tool", "none-other")
	if !problem.HasCode(err, "tools.missing") || !strings.Contains(err.Error(), "none-such-tool, none-other") {
		t.Errorf("%v", err)
	}
	t.Setenv("PATH", t.TempDir())
	err = debian.RequireTools("apt-get", "apt-cache", "xz")
	if p := problem.From(err); p == nil || p.Hint != "apt-get install -y --no-install-recommends apt xz-utils" {
		t.Errorf("%+v", p)
	}
}

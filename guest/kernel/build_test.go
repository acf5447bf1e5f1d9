package kernel

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/kernel/kerneltest"
	"github.com/blixard/blixard/internal/debian/debiantest"
	"github.com/blixard/blixard/internal/problem"
)

// told collects what a build says of its progress.
type told struct {
	mu    sync.Mutex
	lines []string
}

func (l *told) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, s)
}

func (l *told) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// A kernel is built once for the same inputs, however many ask, and is found again; a damaged one is not taken.
func TestBuild(t *testing.T) {
	repo := debiantest.New(t)
	kerneltest.AddSource(t, repo, nil)
	var l told
	c := Config{CacheDir: t.TempDir(), Progress: l.add, Jobs: 1}
	if _, err := Cached(c); !problem.HasCode(err, "kernel.not_built") {
		t.Errorf("before: %v", err)
	}
	var owns [2]Own
	var wg sync.WaitGroup
	for i := range owns {
		wg.Go(func() {
			var err error
			if owns[i], err = Build(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.Fatal(l.String())
	}
	own := owns[0]
	if own != owns[1] || own.Version != kerneltest.OwnVersion || own.Source == "" || strings.Count(l.String(), "kernel built in") != 1 {
		t.Errorf("%+v, %+v, told\n%s", own, owns[1], &l)
	}
	cached, err := Cached(c)
	if err != nil || cached != own {
		t.Errorf("%+v, %v", cached, err)
	}
	f, err := os.Open(own.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := Inspect(f); err != nil || !info.PVH || info.Version != own.Version {
		t.Errorf("%+v, %v", info, err)
	}
	if config, err := os.ReadFile(filepath.Join(filepath.Dir(own.Path), "config")); err != nil || !bytes.Contains(config, []byte("CONFIG_TINY=y\n")) || !bytes.Contains(config, []byte("CONFIG_SMP=y\n")) {
		t.Errorf("%v, config:\n%.200s", err, config)
	}
	if left, err := filepath.Glob(filepath.Join(c.CacheDir, "kernels", ".build-*")); err != nil || len(left) != 0 {
		t.Errorf("left %q, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(c.CacheDir, "sources", own.Digest)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the source is still there: %v", err)
	}
	damage(t, own.Path)
	if _, err := Cached(c); !problem.HasCode(err, "kernel.not_built") {
		t.Errorf("damaged: %v", err)
	}
	if again, err := Build(t.Context(), c); err != nil || again != own {
		t.Errorf("built again: %+v, %v", again, err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(own.Path), "record.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Cached(c); !problem.HasCode(err, "kernel.not_built") {
		t.Errorf("damaged record: %v", err)
	}
}

func damage(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err == nil {
		raw[len(raw)/2] ^= 1
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestBuildFails(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		code  string
		says  string
	}{
		"compiler":   {map[string]string{"fake.c": "no C\n"}, "kernel.build_failed", "make vmlinux failed"},
		"make":       {map[string]string{"Makefile": "tinyconfig:\n\t@echo the cause; exit 1\n"}, "kernel.build_failed", "the cause"},
		"dropped":    {map[string]string{"Makefile": strings.Replace(kerneltest.Makefile, "@test -s $(O)/.config", "@echo CONFIG_SMP=n >$(O)/.config", 1)}, "kernel.options_dropped", "CONFIG_SMP=y (is n)"},
		"no note":    {map[string]string{"fake.c": "const char b[] __attribute__((used)) = \"Linux version 6.1 \";\nvoid _start(void) {}\n"}, "kernel.not_a_kernel", "no PVH note"},
		"no version": {map[string]string{"fake.c": "void _start(void) {}\n"}, "kernel.not_a_kernel", "nowhere says"},
		"patch":      {map[string]string{"arch/x86/kernel/tsc.c": "other\n"}, "kernel.patch", "0 times"},
	} {
		t.Run(name, func(t *testing.T) {
			repo := debiantest.New(t)
			kerneltest.AddSource(t, repo, c.files)
			config := Config{CacheDir: t.TempDir()}
			_, err := Build(t.Context(), config)
			if !problem.HasCode(err, c.code) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if _, err := Cached(config); !problem.HasCode(err, "kernel.not_built") {
				t.Errorf("in the cache: %v", err)
			}
		})
	}
}

func TestBuildEnds(t *testing.T) {
	repo := debiantest.New(t)
	kerneltest.AddSource(t, repo, map[string]string{
		"Makefile": strings.Replace(kerneltest.Makefile, "@echo \"", "@echo $$$$ >$(O)/../pid; for i in $$(seq 100); do echo \"  CC  $$i\"; done; sleep 1000 #", 1),
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the caller is gone")
	c := Config{CacheDir: t.TempDir(), Jobs: 1}
	compiler := -1
	c.Progress = func(s string) {
		if !strings.HasPrefix(s, "compiling the kernel: 100 ") {
			return
		}
		paths, err := filepath.Glob(filepath.Join(c.CacheDir, "kernels", ".build-*", "pid"))
		if err != nil || len(paths) != 1 {
			t.Errorf("%q, %v", paths, err)
			return
		}
		raw, err := os.ReadFile(paths[0])
		if err != nil {
			t.Error(err)
		}
		if compiler, err = unix.PidfdOpen(atoi(t, string(raw)), 0); err != nil {
			t.Error(err)
		}
		cancel(gone)
	}
	if _, err := Build(ctx, c); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
	// What make started ends with it.
	defer unix.Close(compiler)
	const patience = 30_000 // milliseconds
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(compiler), Events: unix.POLLIN}}, patience); n != 1 {
		t.Errorf("the compiler goes on: %v", err)
	}
	repo.Stop()
	if _, err := Build(t.Context(), Config{CacheDir: t.TempDir()}); !problem.Is(err, problem.Unavailable) {
		t.Errorf("without a network: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := requireBuildTools(); !problem.HasCode(err, "tools.missing") || !strings.Contains(err.Error(), "bison") {
		t.Errorf("%v", err)
	}
}

func atoi(t *testing.T, s string) int {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Error(err)
	}
	return n
}

// Progress is told for each so many files, and the end of a long output is what is kept.
func TestFollow(t *testing.T) {
	var l told
	c := Config{Progress: l.add}
	text := strings.Repeat("  CC      a.o\n  LD      b.o\n  AS      c.o\n", 10_000) + strings.Repeat("x", 3*logBytesMax) + "\nthe end"
	log := c.follow(strings.NewReader(text), "vmlinux")
	if len(log) > 2*logBytesMax || !bytes.HasSuffix(log, []byte("the end")) {
		t.Errorf("%d bytes", len(log))
	}
	if want := "compiling the kernel: 100 of about 1950 files"; len(l.lines) != 200 || l.lines[0] != want {
		t.Errorf("%d lines, the first %q", len(l.lines), l.lines[0])
	}
	if got := tail([]byte(strings.Repeat("a\n", 100) + "b\n")); strings.Count(got, "\n") != 11 || !strings.HasSuffix(got, "a\nb") {
		t.Errorf("%q", got)
	}
}

func TestFetchStock(t *testing.T) {
	repo := debiantest.New(t)
	kerneltest.AddStock(t, repo, kerneltest.Stock{})
	c := Config{CacheDir: t.TempDir()}
	for range 2 {
		s, err := FetchStock(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, m := range s.Modules {
			names = append(names, m.Name)
			raw, err := os.ReadFile(m.Path)
			if err != nil || !bytes.HasPrefix(raw, []byte("\x7fELF")) || !bytes.Contains(raw, []byte("name="+m.Name+"\x00")) {
				t.Errorf("%s: %d bytes, %v", m.Name, len(raw), err)
			}
		}
		want := []string{"virtio", "virtio_mmio", "virtio_console", "overlay", "lz4_decompress", "erofs", "failover", "net_failover", "virtio_net"}
		if s.Version != kerneltest.StockVersion || s.Package == "" || !slices.Equal(names, want) {
			t.Errorf("%+v", s)
		}
		if raw, err := os.ReadFile(s.Path); err != nil || !bytes.Equal(raw, kerneltest.Vmlinux(kerneltest.StockVersion, true)) {
			t.Errorf("%d bytes, %v", len(raw), err)
		}
	}
	if n := repo.Downloads("linux-image-" + kerneltest.StockVersion); n != 1 {
		t.Errorf("%d downloads", n)
	}
}

func TestFetchStockFails(t *testing.T) {
	elf := kerneltest.Vmlinux(kerneltest.StockVersion, false)
	for name, c := range map[string]struct {
		stock kerneltest.Stock
		code  string
	}{
		"other dependency": {kerneltest.Stock{Depends: "linux-image-6.1.0-99-amd64"}, "kernel.no_stock"},
		"missing package":  {kerneltest.Stock{Depends: "linux-image-6.1.0-98-cloud-amd64"}, "debian.no_package"},
		"no kernel":        {kerneltest.Stock{Kernel: bytes.Repeat([]byte("text"), 1000)}, "kernel.not_a_kernel"},
		"no note":          {kerneltest.Stock{Kernel: kerneltest.BzImage(t, "gzip", kerneltest.StockVersion, elf)}, "kernel.not_a_kernel"},
		"no module":        {kerneltest.Stock{Without: "overlay"}, "kernel.no_module"},
	} {
		t.Run(name, func(t *testing.T) {
			repo := debiantest.New(t)
			kerneltest.AddStock(t, repo, c.stock)
			dir := t.TempDir()
			if _, err := FetchStock(t.Context(), Config{CacheDir: dir}); !problem.HasCode(err, c.code) {
				t.Errorf("%v", err)
			}
			if left, err := filepath.Glob(filepath.Join(dir, "stock", ".unpack-*")); err != nil || len(left) != 0 {
				t.Errorf("left %q, %v", left, err)
			}
		})
	}
}

func TestModuleDependencies(t *testing.T) {
	write := func(dir, name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		files map[string][]byte
		says  string
	}{
		"a ring":         {map[string][]byte{"a.ko": kerneltest.Module("a", "b"), "b.ko": kerneltest.Module("b", "a")}, "depends on itself"},
		"no ELF":         {map[string][]byte{"a.ko": []byte("text")}, "module a"},
		"bad gzip":       {map[string][]byte{"a.ko.gz": []byte("text")}, "module a"},
		"bad zstd":       {map[string][]byte{"a.ko.zst": []byte("text")}, "module a"},
		"bad xz":         {map[string][]byte{"a.ko.xz": []byte("text")}, "module a"},
		"no such":        {nil, "no module a"},
		"no such needed": {map[string][]byte{"a.ko": kerneltest.Module("a", "zz")}, "no module zz"},
		"no modinfo":     {map[string][]byte{"a.ko": kerneltest.Vmlinux(version, true)}, "no .modinfo"},
	} {
		dir := t.TempDir()
		write(dir, "modules.builtin", nil)
		for file, content := range c.files {
			write(dir, file, content)
		}
		if got, err := resolveModules(dir, []string{"a"}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := resolveModules(t.TempDir(), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without modules.builtin: %v", err)
	}
	if _, err := resolveModules(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a tree: %v", err)
	}
	files := map[string][]byte{}
	last := ""
	for i := range modulesMax + 2 {
		name := "m" + strings.Repeat("x", i)
		files[name] = kerneltest.Module(name, last)
		last = name
	}
	dir := t.TempDir()
	write(dir, "modules.builtin", nil)
	for name, content := range files {
		write(dir, name+".ko", content)
	}
	if _, err := resolveModules(dir, []string{last}); err == nil {
		t.Error("more modules than allowed: no error")
	}
}

func FuzzModuleDepends(f *testing.F) {
	f.Add(kerneltest.Module("a", "b", "c-d"))
	f.Add(kerneltest.Vmlinux(version, true))
	f.Fuzz(func(t *testing.T, raw []byte) {
		names, err := moduleDepends(raw)
		if err != nil {
			return
		}
		for _, n := range names {
			if strings.ContainsAny(n, "-,\x00") {
				t.Errorf("%q", n)
			}
		}
	})
}

func TestHostTSC(t *testing.T) {
	khz := HostTSCKHz()
	if khz != 0 && (khz < 500_000 || khz > 10_000_000) {
		t.Errorf("%d kHz", khz)
	}
	if again := HostTSCKHz(); again != khz {
		t.Errorf("%d, then %d", khz, again)
	}
	if other := measureTSCKHz(); khz != 0 && (max(other, khz)-min(other, khz)) > khz/100 {
		t.Errorf("measured %d, then %d kHz", khz, other)
	}
}

package bundle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
	"go.uber.org/goleak"

	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/guest/kernel"
	"github.com/blixard/blixard/guest/kernel/kerneltest"
	"github.com/blixard/blixard/internal/debian/debiantest"
	"github.com/blixard/blixard/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// busybox is a program that lists applets as the real one does.
const busybox = "#!/bin/sh\n[ \"$1\" = --list-full ] && printf 'bin/busybox\\nbin/sh\\nusr/bin/awk\\nopt/new/tool\\n'\n"

// inputs are a repository and a configuration for a whole build.
func inputs(t testing.TB, busybox string) (*debiantest.Repository, bundle.Config) {
	t.Helper()
	repo := debiantest.New(t)
	kerneltest.AddStock(t, repo, kerneltest.Stock{})
	repo.Add(t, debiantest.Package{Name: "busybox-static", Version: "1:1.35-4", Files: map[string][]byte{"bin/busybox": []byte(busybox)}})
	dir := t.TempDir()
	return repo, bundle.Config{
		Dir: filepath.Join(dir, "out", "bundle"), CacheDir: filepath.Join(dir, "cache"), GuestVersion: "v0.1",
		Guest: write(t, filepath.Join(dir, "blixard-guest"), []byte("the guest's program")),
	}
}

func write(t testing.TB, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func build(t testing.TB, c bundle.Config) *bundle.Bundle {
	t.Helper()
	if _, err := bundle.Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Open(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBuild(t *testing.T) {
	repo, c := inputs(t, busybox)
	var told []string
	c.Progress = func(s string) { told = append(told, s) }
	b := build(t, c)
	if err := b.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(told, "our own kernel is not in the cache: boots are slower; `make kernel` builds it") {
		t.Errorf("told %q", told)
	}
	k, err := b.Kernel("")
	if err != nil || k.Name != bundle.KernelDebian || k.Version != kerneltest.StockVersion || !k.ACPI || k.Console != bundle.ConsoleSerial {
		t.Errorf("%+v, %v", k, err)
	}
	if raw, err := os.ReadFile(k.Path); err != nil || !bytes.Equal(raw, kerneltest.Vmlinux(kerneltest.StockVersion, true)) {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
	if line := k.CommandLine(); line != "console=ttyS0 quiet reboot=t panic=-1" {
		t.Errorf("%q", line)
	}
	if line := k.CommandLineTCG(2_000_000); !strings.HasSuffix(line, " tsc_early_khz=2000000 lpj=8000000") {
		t.Errorf("%q", line)
	}
	if line := k.CommandLineTCG(0); strings.Contains(line, "khz=") {
		t.Errorf("%q", line)
	}
	if _, err := b.Kernel("none"); !problem.HasCode(err, "bundle.unknown_kernel") {
		t.Errorf("%v", err)
	}
	i, err := b.Image(bundle.ImageBusybox)
	if err != nil || !slices.Equal(i.Command, []string{"/bin/sh"}) || !strings.HasPrefix(i.Digest, "sha256:") {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := b.Image("none"); !problem.HasCode(err, "bundle.unknown_image") {
		t.Errorf("%v", err)
	}
	checkInitramfs(t, k.InitramfsPath)

	// Built again of the same inputs all is the same; our own kernel, once compiled, is preferred.
	kerneltest.AddSource(t, repo, nil)
	c.OwnKernel = bundle.OwnBuild
	c.Custom = []bundle.CustomKernel{{Name: "mine", Path: k.Path, ACPI: true}, {Name: "bz", Path: write(t, filepath.Join(t.TempDir(), "bz"),
		kerneltest.BzImage(t, "zstd", "6.2", kerneltest.Vmlinux("6.2", true)))}}
	again := build(t, c)
	if got := again.KernelNames(); !slices.Equal(got, []string{"own", "debian", "mine", "bz"}) {
		t.Errorf("%q", got)
	}
	if j, err := again.Image(bundle.ImageBusybox); err != nil || j.Digest != i.Digest || !slices.Equal(again.ImageNames(), []string{"busybox"}) {
		t.Errorf("%+v, %v; want the digest %s", j, err, i.Digest)
	}
	own, err := again.Kernel("")
	if err != nil || own.Name != bundle.KernelOwn || own.Version != kerneltest.OwnVersion || own.ACPI || own.Console != bundle.ConsoleVirtio {
		t.Errorf("%+v, %v", own, err)
	}
	for _, e := range again.Manifest().Kernels {
		if want := map[string]kernel.Format{"bz": kernel.FormatBzImage}[e.Name]; want != "" && e.Format != want {
			t.Errorf("%s is a %s", e.Name, e.Format)
		}
	}
	c.OwnKernel, c.Custom = bundle.OwnCached, nil
	if got := build(t, c).KernelNames(); !slices.Equal(got, []string{"own", "debian"}) {
		t.Errorf("%q", got)
	}
	c.OwnKernel = bundle.OwnNone
	if got := build(t, c).KernelNames(); !slices.Equal(got, []string{"debian"}) {
		t.Errorf("%q", got)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(c.Dir), ".*")); err != nil || len(left) != 0 {
		t.Errorf("left %q, %v", left, err)
	}
}

// checkInitramfs looks for what the kernel and init need.
func checkInitramfs(t *testing.T, file string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(raw)))
	if err != nil {
		t.Fatal(err)
	}
	content := map[string]string{}
	for _, r := range records {
		text := make([]byte, r.FileSize)
		if r.FileSize > 0 {
			if _, err := r.ReadAt(text, 0); err != nil {
				t.Fatal(err)
			}
		}
		content[r.Name] = string(text)
	}
	if content["init"] != "the guest's program" {
		t.Errorf("/init is %q", content["init"])
	}
	for _, name := range []string{"dev/console", "proc", "sys"} {
		if _, ok := content[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	list := strings.Fields(content["blixard/modules"])
	var names []string
	for _, m := range list {
		names = append(names, path.Base(m))
	}
	want := []string{"virtio.ko", "virtio_mmio.ko", "virtio_console.ko", "overlay.ko", "lz4_decompress.ko", "erofs.ko", "failover.ko", "net_failover.ko", "virtio_net.ko"}
	if !slices.Equal(names, want) {
		t.Errorf("modules %q", list)
	}
	for _, m := range list {
		if !strings.HasPrefix(content[strings.TrimPrefix(m, "/")], "\x7fELF") {
			t.Errorf("%s is no module", m)
		}
	}
}

// A build that fails says why and leaves the bundle of before as it was.
func TestBuildFails(t *testing.T) {
	_, c := inputs(t, busybox)
	before := build(t, c)
	dir := t.TempDir()
	good := write(t, filepath.Join(dir, "good"), kerneltest.Vmlinux("6.1", true))
	text := write(t, filepath.Join(dir, "text"), bytes.Repeat([]byte("text "), 1000))
	custom := func(k ...bundle.CustomKernel) func(*bundle.Config) {
		return func(c *bundle.Config) { c.Custom = k }
	}
	for name, f := range map[string]struct {
		change func(*bundle.Config)
		code   string
	}{
		"no guest":       {func(c *bundle.Config) { c.Guest = dir + "/none" }, "bundle.no_guest"},
		"guest is a dir": {func(c *bundle.Config) { c.Guest = dir }, "bundle.no_guest"},
		"own kernel":     {func(c *bundle.Config) { c.OwnKernel = "maybe" }, "bundle.own_kernel"},
		"kernel missing": {custom(bundle.CustomKernel{Name: "k", Path: dir + "/none"}), "bundle.no_kernel_file"},
		"no kernel":      {custom(bundle.CustomKernel{Name: "k", Path: text}), "kernel.not_a_kernel"},
		"odd name":       {custom(bundle.CustomKernel{Name: "K/..", Path: good}), "bundle.kernel_name"},
		"name taken":     {custom(bundle.CustomKernel{Name: "own", Path: good}), "bundle.kernel_name"},
		"name twice":     {custom(bundle.CustomKernel{Name: "k", Path: good}, bundle.CustomKernel{Name: "k", Path: good}), "bundle.kernel_name"},
		"nowhere":        {func(c *bundle.Config) { c.Dir = good + "/x/bundle" }, "bundle.unwritable"},
		"version":        {func(c *bundle.Config) { c.GuestVersion = "v\n1" }, "bundle.manifest"},
	} {
		config := c
		f.change(&config)
		if _, err := bundle.Build(t.Context(), config); !problem.HasCode(err, f.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bundle.Build(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := before.Verify(t.Context()); err != nil {
		t.Errorf("the bundle of before: %v", err)
	}
}

func TestBuildBadBusybox(t *testing.T) {
	for name, c := range map[string]struct{ program, says string }{
		"fails":    {"#!/bin/sh\nexit 1\n", "does not list its applets"},
		"no":       {"text\n", "does not list its applets"},
		"silent":   {"#!/bin/sh\n", "lists 0 applets"},
		"absolute": {"#!/bin/sh\necho /etc/passwd\n", "lists the applet"},
		"outside":  {"#!/bin/sh\necho ../x\n", "lists the applet"},
		"endless":  {"#!/bin/sh\ni=0; while [ $i -le 2000 ]; do echo a$i; i=$((i+1)); done\n", "lists 2001 applets"},
	} {
		t.Run(name, func(t *testing.T) {
			_, config := inputs(t, c.program)
			if _, err := bundle.Build(t.Context(), config); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if _, err := bundle.Open(config.Dir); !problem.HasCode(err, "bundle.missing") {
				t.Errorf("something was built: %v", err)
			}
		})
	}
}

// files are those that a manifest names.
func files(m *bundle.Manifest) []string {
	names := []string{m.Guest.File}
	for _, k := range m.Kernels {
		names = append(names, k.File, k.Initramfs.File)
	}
	for _, i := range m.Images {
		names = append(names, i.File)
	}
	return names
}

// Whatever happened to a file is found by Verify, and when the file is used.
func TestDamage(t *testing.T) {
	_, c := inputs(t, busybox)
	b := build(t, c)
	for _, name := range files(b.Manifest()) {
		path := filepath.Join(c.Dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flip := func(at int) func() error {
			return func() error {
				bad := slices.Clone(good)
				bad[at] ^= 1
				return os.WriteFile(path, bad, 0o644)
			}
		}
		outside := write(t, filepath.Join(t.TempDir(), "same"), good)
		for what, do := range map[string]func() error{
			"first byte": flip(0), "middle byte": flip(len(good) / 2), "last byte": flip(len(good) - 1),
			"shorter":         func() error { return os.Truncate(path, int64(len(good)-1)) },
			"longer":          func() error { return os.WriteFile(path, append(slices.Clone(good), 0), 0o644) },
			"missing":         func() error { return os.Remove(path) },
			"a directory":     func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
			"a link outside":  func() error { return errors.Join(os.Remove(path), os.Symlink(outside, path)) },
			"a link up there": func() error { return errors.Join(os.Remove(path), os.Symlink("../../same", path)) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			err := b.Verify(t.Context())
			if !problem.HasCode(err, "bundle.damaged") || !strings.Contains(err.Error(), name) {
				t.Errorf("%s of %s: Verify says %v", what, name, err)
			}
			_, kernelErr := b.Kernel("debian")
			_, imageErr := b.Image("busybox")
			used := errors.Join(kernelErr, imageErr)
			if name != b.Manifest().Guest.File && !problem.HasCode(used, "bundle.damaged") {
				t.Errorf("%s of %s: used: %v", what, name, used)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			write(t, path, good)
		}
		if err := b.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		t.Fatal(err)
	}
	if err := b.Verify(t.Context()); !problem.HasCode(err, "bundle.unreadable") {
		t.Errorf("of nothing: %v", err)
	}
	if _, err := b.Kernel(""); !problem.HasCode(err, "bundle.damaged") {
		t.Errorf("of nothing: %v", err)
	}
}

func TestManifest(t *testing.T) {
	_, c := inputs(t, busybox)
	build(t, c)
	path := filepath.Join(c.Dir, "manifest.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	kernelOf := func(m object) object { return m["kernels"].([]any)[0].(object) }
	imageOf := func(m object) object { return m["images"].([]any)[0].(object) }
	long := strings.Repeat("x", 5000)
	for name, change := range map[string]func(object){
		"version zero":      func(m object) { m["format_version"] = 0 },
		"unknown field":     func(m object) { m["more"] = 1 },
		"no kernels":        func(m object) { m["kernels"] = []any{} },
		"many kernels":      func(m object) { m["kernels"] = slices.Repeat([]any{kernelOf(m)}, 33) },
		"many images":       func(m object) { m["images"] = slices.Repeat([]any{imageOf(m)}, 65) },
		"kernel twice":      func(m object) { m["kernels"] = slices.Repeat([]any{kernelOf(m)}, 2) },
		"image twice":       func(m object) { m["images"] = slices.Repeat([]any{imageOf(m)}, 2) },
		"kernel's name":     func(m object) { kernelOf(m)["name"] = "../x" },
		"image's name":      func(m object) { imageOf(m)["name"] = "" },
		"file outside":      func(m object) { kernelOf(m)["file"] = "../kernel" },
		"absolute file":     func(m object) { kernelOf(m)["file"] = "/etc/passwd" },
		"odd file":          func(m object) { kernelOf(m)["file"] = "a,b" },
		"unclean file":      func(m object) { kernelOf(m)["file"] = "a//b" },
		"file twice":        func(m object) { imageOf(m)["file"] = kernelOf(m)["file"] },
		"file of manifest":  func(m object) { imageOf(m)["file"] = "manifest.json" },
		"no digest":         func(m object) { imageOf(m)["sha256"] = "abc" },
		"size zero":         func(m object) { imageOf(m)["bytes"] = 0 },
		"huge":              func(m object) { kernelOf(m)["bytes"] = 1 << 40 },
		"guest's file":      func(m object) { m["guest"].(object)["file"] = "" },
		"guest's version":   func(m object) { m["guest"].(object)["version"] = long },
		"initramfs":         func(m object) { kernelOf(m)["initramfs"].(object)["bytes"] = -1 },
		"format":            func(m object) { kernelOf(m)["format"] = "zImage" },
		"console":           func(m object) { kernelOf(m)["console"] = "tty0" },
		"ticks":             func(m object) { kernelOf(m)["tick_hz"] = -1 },
		"modules":           func(m object) { kernelOf(m)["modules"] = slices.Repeat([]string{"m"}, 129) },
		"module":            func(m object) { kernelOf(m)["modules"] = []string{"m\n"} },
		"kernel's version":  func(m object) { kernelOf(m)["version"] = "é" },
		"command line":      func(m object) { kernelOf(m)["cmdline"] = long },
		"its second part":   func(m object) { kernelOf(m)["cmdline_tcg"] = "a\x00b" },
		"working directory": func(m object) { imageOf(m)["working_dir"] = "tmp" },
		"many arguments":    func(m object) { imageOf(m)["command"] = slices.Repeat([]string{"a"}, 257) },
		"long argument":     func(m object) { imageOf(m)["command"] = []string{long} },
		"zero in argument":  func(m object) { imageOf(m)["entrypoint"] = []string{"a\x00"} },
		"environment":       func(m object) { imageOf(m)["env"] = []string{"=x"} },
	} {
		var m object
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, raw)
		if _, err := bundle.Open(c.Dir); !problem.HasCode(err, "bundle.manifest") || len(err.Error()) > 1000 {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]struct{ raw, code string }{
		"newer":        {`{"format_version": 2, "what": "nobody knows"}`, "bundle.newer"},
		"empty":        {"", "bundle.manifest"},
		"no JSON":      {"{", "bundle.manifest"},
		"a list":       {"[]", "bundle.manifest"},
		"two of them":  {string(good) + string(good), "bundle.manifest"},
		"something on": {string(good) + "x", "bundle.manifest"},
		"too large":    {string(good) + strings.Repeat(" ", 1<<20), "bundle.manifest"},
	} {
		write(t, path, []byte(f.raw))
		if _, err := bundle.Open(c.Dir); !problem.HasCode(err, f.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(os.Remove(path), os.Symlink(write(t, filepath.Join(t.TempDir(), "m"), good), path)); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Open(c.Dir); err == nil {
		t.Error("a manifest outside of the bundle: no error")
	}
	if _, err := bundle.Open(filepath.Join(c.Dir, "none")); !problem.HasCode(err, "bundle.missing") {
		t.Errorf("%v", err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"format_version":1,"guest":{"file":"g","sha256":"` + strings.Repeat("0a", 32) + `","bytes":1,"version":"v"},"kernels":[{"name":"own","file":"k","sha256":"` +
		strings.Repeat("0a", 32) + `","bytes":1,"format":"vmlinux","version":"6","initramfs":{"file":"i","sha256":"` + strings.Repeat("0a", 32) +
		`","bytes":1},"cmdline":"quiet","acpi":false,"console":"hvc0"}],"images":[]}`))
	f.Add([]byte(`{"format_version":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "manifest.json"), raw)
		b, err := bundle.Open(dir)
		if err != nil {
			if p := problem.From(err); p == nil || p.Kind != problem.Invalid {
				t.Errorf("%v", err)
			}
			return
		}
		for _, name := range files(b.Manifest()) {
			if !filepath.IsLocal(name) {
				t.Errorf("the file %q", name)
			}
		}
		if _, err := b.Kernel(""); !problem.HasCode(err, "bundle.damaged") {
			t.Errorf("a kernel that is not there: %v", err)
		}
	})
}

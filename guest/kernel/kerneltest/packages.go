package kerneltest

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/debian/debiantest"
)

// Versions of the packages made here.
const (
	StockVersion  = "6.1.0-99-cloud-amd64"
	OwnVersion    = "6.1.99"
	debianVersion = "6.1.99-1"
)

// Stock is what to vary in the package of a stock kernel.
type Stock struct {
	// Kernel replaces the kernel file.
	Kernel []byte
	// Without leaves out one module.
	Without string
	// Depends replaces the field of the package that names the newest kernel.
	Depends string
}

// AddStock adds Debian's cloud kernel as two packages: the empty one and the one it depends on. Its modules
// are packed in all ways that Debian used, and virtio_blk is built in.
func AddStock(t testing.TB, r *debiantest.Repository, s Stock) {
	t.Helper()
	if s.Kernel == nil {
		s.Kernel = BzImage(t, "lz4", StockVersion, Vmlinux(StockVersion, true))
	}
	if s.Depends == "" {
		s.Depends = "linux-image-" + StockVersion + " (= " + debianVersion + ")"
	}
	modules := "lib/modules/" + StockVersion + "/"
	files := map[string][]byte{
		"boot/vmlinuz-" + StockVersion:                 s.Kernel,
		modules + "modules.builtin":                    []byte("kernel/drivers/block/virtio_blk.ko\nkernel/drivers/virtio/virtio-ring.ko\n"),
		modules + "kernel/virtio/virtio.ko":            Module("virtio", "virtio_ring"),
		modules + "kernel/virtio/virtio_mmio.ko.xz":    Pack(t, "xz", Module("virtio_mmio", "virtio")),
		modules + "kernel/char/virtio_console.ko.zst":  Pack(t, "zstd", Module("virtio_console", "virtio")),
		modules + "kernel/fs/overlay.ko.gz":            Pack(t, "gzip", Module("overlay")),
		modules + "kernel/fs/erofs.ko":                 Module("erofs", "lz4_decompress"),
		modules + "kernel/lib/lz4_decompress.ko":       Module("lz4_decompress"),
		modules + "kernel/net/failover.ko":             Module("failover"),
		modules + "kernel/net/net-failover.ko":         Module("net_failover", "failover"),
		modules + "kernel/net/virtio_net.ko":           Module("virtio_net", "net-failover", "virtio"),
		modules + "kernel/net/not_wanted_by_anyone.ko": Module("not_wanted_by_anyone"),
	}
	for name := range files {
		if s.Without != "" && strings.Contains(name, "/"+s.Without+".ko") {
			delete(files, name)
		}
	}
	r.Add(t, debiantest.Package{Name: "linux-image-cloud-amd64", Version: debianVersion, Depends: s.Depends})
	r.Add(t, debiantest.Package{Name: "linux-image-" + StockVersion, Version: debianVersion, Files: files})
}

// Makefile is a kernel's as far as blixard's build goes: it configures by merging nothing, and links one file
// with the note and the text of a kernel.
const Makefile = `tinyconfig:
	@printf '# CONFIG_SMP is not set\nCONFIG_TINY=y\n' >$(O)/.config
olddefconfig:
	@test -s $(O)/.config
vmlinux:
	@echo "  CC      fake.o"
	@gcc -nostdlib -static -no-pie -o $(O)/vmlinux fake.c
`

const source = `const char banner[] __attribute__((used)) = "Linux version ` + OwnVersion + ` (test@test)";
__asm__(".section .note.Xen,\"a\",@note\n.long 4, 4, 18\n.asciz \"Xen\"\n.long 0\n.previous");
void _start(void) {}
`

// AddSource adds Debian's kernel source, as far as blixard's patches and build touch it. More files go over
// those made here, by their paths in the source.
func AddSource(t testing.TB, r *debiantest.Repository, more map[string]string) {
	t.Helper()
	files := patched(t)
	files["Makefile"], files["fake.c"] = Makefile, source
	for name, text := range more {
		files[name] = text
	}
	const name = "linux-source-6.1"
	var headers []tar.Header
	var contents [][]byte
	for path, text := range files {
		headers = append(headers, tar.Header{Name: name + "/" + path, Mode: 0o644, Typeflag: tar.TypeReg})
		contents = append(contents, []byte(text))
	}
	r.Add(t, debiantest.Package{Name: name, Version: debianVersion, Files: map[string][]byte{
		"usr/src/" + name + ".tar.xz": Pack(t, "xz", debiantest.Tar(t, headers, contents)),
	}})
}

// patched makes files to which blixard's patches apply: the lines that they expect, and some others.
func patched(t testing.TB) map[string]string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "guest", "kernel", "patches", "*.patch"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d patches, %v", len(paths), err)
	}
	files := map[string]string{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var file string
		var text bytes.Buffer
		inside := false
		for line := range strings.Lines(string(raw)) {
			if f, ok := strings.CutPrefix(line, "+++ b/"); ok {
				file = strings.TrimSpace(f)
				continue
			}
			switch {
			case strings.HasPrefix(line, "@@"):
				inside = true
				text.WriteString("/* other lines */\n")
			case inside && (line[0] == ' ' || line[0] == '-'):
				text.WriteString(line[1:])
			case inside && line[0] == '\n':
				text.WriteString(line)
			}
		}
		files[file] = text.String()
	}
	return files
}

package kernel

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/blixard/blixard/internal/debian"
	"github.com/blixard/blixard/internal/filelock"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// stockPackage is the empty package that depends on Debian's newest cloud kernel.
	stockPackage = "linux-image-cloud-amd64"
	// moduleBytesMax bounds one module; the largest of the cloud kernel has 6 MiB.
	moduleBytesMax = 64 << 20
	// modulesMax bounds the modules loaded, dependencies included.
	modulesMax = 64
)

var stockKernelPackage = regexp.MustCompile(`^linux-image-\d[\w.+-]*-cloud-amd64$`)

// stockModules are the modules that a microVM needs from the stock kernel, in the order the guest
// needs them: first what finds the devices, then the channel to the agent, disks, the overlay of its
// root, the file system of images beside the ext4 that is built in, and the network. Their dependencies
// come before them.
var stockModules = []string{"virtio_mmio", "virtio_console", "virtio_blk", "overlay", "erofs", "virtio_net"}

// Stock is Debian's cloud kernel in the cache.
type Stock struct {
	// Path of the vmlinux that was taken out of the package's bzImage.
	Path string
	// Version as uname -r shows it.
	Version string
	// Package is the version of the Debian package.
	Package string
	// Modules are the files to load, in this order, uncompressed.
	Modules []Module
}

// Module is one kernel module in the cache.
type Module struct {
	// Name as the kernel knows it, with underscores.
	Name string
	Path string
}

// FetchStock gives Debian's stock cloud kernel and the modules a microVM needs, from the cache or
// downloaded (35 MiB) and unpacked; nothing is installed. It is safe for concurrent use.
func FetchStock(ctx context.Context, c Config) (Stock, error) {
	f := c.fetcher()
	names, err := f.Depends(ctx, stockPackage)
	if err != nil {
		return Stock{}, err
	}
	i := slices.IndexFunc(names, stockKernelPackage.MatchString)
	if i < 0 {
		return Stock{}, problem.New(problem.NotFound, "kernel.no_stock", "%s depends on no kernel but on %v", stockPackage, names).
			WithHint("run apt-get update; /etc/apt/sources.list must name Debian 12 (bookworm)")
	}
	pkg, err := f.Resolve(ctx, names[i])
	if err != nil {
		return Stock{}, err
	}
	wanted := sha256.Sum256([]byte(strings.Join(stockModules, " ")))
	dir := filepath.Join(c.CacheDir, "stock", fmt.Sprintf("%s_%s_%.16s_%x", pkg.Name, pkg.Version, pkg.SHA256, wanted[:4]))
	release, err := filelock.Acquire(ctx, dir+".lock")
	if err != nil {
		return Stock{}, err
	}
	defer release()
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := c.unpackStock(ctx, f, pkg, dir); err != nil {
			return Stock{}, err
		}
	}
	return readStock(dir, pkg.Version)
}

// unpackStock puts vmlinux and the modules of the package at dir.
func (c Config) unpackStock(ctx context.Context, f *debian.Fetcher, pkg debian.Package, dir string) error {
	deb, err := f.Fetch(ctx, pkg)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".unpack-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	files, done := filepath.Join(tmp, "files"), filepath.Join(tmp, "done")
	for _, d := range []string{files, filepath.Join(done, "modules")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	c.progress("unpacking %s %s", pkg.Name, pkg.Version)
	if err := f.Unpack(ctx, deb, files); err != nil {
		return err
	}
	release := strings.TrimPrefix(pkg.Name, "linux-image-")
	if err := extractFile(filepath.Join(files, "boot", "vmlinuz-"+release), filepath.Join(done, "vmlinux")); err != nil {
		return err
	}
	modules, err := resolveModules(filepath.Join(files, "lib", "modules", release), stockModules)
	if err != nil {
		return err
	}
	for i, m := range modules {
		to := filepath.Join(done, "modules", fmt.Sprintf("%02d-%s.ko", i, m.Name))
		if err := os.WriteFile(to, m.raw, 0o644); err != nil {
			return err
		}
	}
	return os.Rename(done, dir)
}

func readStock(dir, version string) (Stock, error) {
	s := Stock{Path: filepath.Join(dir, "vmlinux"), Package: version}
	f, err := os.Open(s.Path)
	if err != nil {
		return Stock{}, err
	}
	defer f.Close()
	info, err := Inspect(f)
	if err != nil {
		return Stock{}, err
	}
	s.Version = info.Version
	paths, err := filepath.Glob(filepath.Join(dir, "modules", "*.ko"))
	if err != nil {
		return Stock{}, err
	}
	slices.Sort(paths)
	for _, p := range paths {
		_, name, _ := strings.Cut(strings.TrimSuffix(filepath.Base(p), ".ko"), "-")
		s.Modules = append(s.Modules, Module{Name: name, Path: p})
	}
	return s, nil
}

// extractFile takes the vmlinux out of a kernel file.
func extractFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	info, err := ExtractVmlinux(in, st.Size(), out)
	if err == nil && !info.PVH {
		err = errNotKernel("the vmlinux in %s has no PVH note", filepath.Base(from))
	}
	return errors.Join(err, out.Close())
}

// loadable is a module with its content.
type loadable struct {
	Name string
	raw  []byte
}

// resolveModules gives the wanted modules of a tree as dpkg unpacks it, each after the modules it
// depends on. depmod has not run on that tree, so the dependencies are read from the modules. A
// module that is built into the kernel needs no loading and is left out.
func resolveModules(dir string, wanted []string) ([]loadable, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if base, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
				files[moduleName(base)] = path
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	builtin, err := readBuiltin(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	r := moduleResolver{files: files, builtin: builtin, state: map[string]bool{}}
	for _, name := range wanted {
		if err := r.add(name); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// moduleName is a module's name as the kernel writes it.
func moduleName(file string) string { return strings.ReplaceAll(file, "-", "_") }

func readBuiltin(path string) (map[string]bool, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(raw)) {
		names[moduleName(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))] = true
	}
	return names, nil
}

type moduleResolver struct {
	files   map[string]string
	builtin map[string]bool
	state   map[string]bool // present: begun; true: done
	order   []loadable
}

func (r *moduleResolver) add(name string) error {
	if done, begun := r.state[name]; done {
		return nil
	} else if begun {
		return fmt.Errorf("module %s depends on itself", name)
	}
	r.state[name] = false
	path, ok := r.files[name]
	switch {
	case r.builtin[name]:
		r.state[name] = true
		return nil
	case !ok:
		return problem.New(problem.NotFound, "kernel.no_module", "the kernel has no module %s", name).
			WithHint("this Debian kernel is too different: build blixard's own with make kernel")
	}
	raw, err := readModule(path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	depends, err := moduleDepends(raw)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, d := range depends {
		if err := r.add(d); err != nil {
			return err
		}
	}
	if len(r.order) >= modulesMax {
		return fmt.Errorf("module %s: more than %d modules", name, modulesMax)
	}
	r.order = append(r.order, loadable{Name: name, raw: raw})
	r.state[name] = true
	return nil
}

// readModule reads a module, unpacking it by what its file name ends with: the guest loads it as it
// is, without a decompressor.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".gz":
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(moduleBytesMax))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	case ".xz":
		return unpackXZ(f, moduleBytesMax)
	}
	return readLimited(r, moduleBytesMax)
}

// moduleDepends reads the depends= field of a module's .modinfo section.
func moduleDepends(raw []byte) ([]string, error) {
	f, err := elf.NewFile(strings.NewReader(string(raw)))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		list, ok := strings.CutPrefix(field, "depends=")
		if !ok || list == "" {
			continue
		}
		names := strings.Split(list, ",")
		for i := range names {
			names[i] = moduleName(names[i])
		}
		return names, nil
	}
	return nil, nil
}

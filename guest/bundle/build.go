package bundle

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/kernel"
	"github.com/blixard/blixard/internal/debian"
	"github.com/blixard/blixard/internal/filelock"
	"github.com/blixard/blixard/internal/problem"
)

// OwnKernel says what Build does about blixard's own kernel.
type OwnKernel string

// The choices.
const (
	// OwnCached takes it where the cache has it: Build is quick either way.
	OwnCached OwnKernel = "cached"
	// OwnBuild compiles it when the cache has none.
	OwnBuild OwnKernel = "build"
	// OwnNone leaves it out.
	OwnNone OwnKernel = "none"
)

// CustomKernel is a file of the user's own that becomes a kernel of the bundle. It must find its
// devices without modules, as our own kernel does.
type CustomKernel struct {
	Name string
	Path string
	// ACPI is whether it finds its devices by ACPI tables; otherwise they are on its command line.
	ACPI bool
}

// Config of Build.
type Config struct {
	// Dir of the bundle; an older one there is replaced in one step.
	Dir string
	// CacheDir keeps what was fetched and compiled.
	CacheDir string
	// Guest is the program blixard-guest.
	Guest string
	// GuestVersion is written into the manifest.
	GuestVersion string
	OwnKernel    OwnKernel
	Custom       []CustomKernel
	// Progress, if not nil, is told in short sentences what goes on.
	Progress func(string)
}

// Arguments of the kernels. Each was measured; see docs/PERFORMANCE.md.
const (
	cmdlineCommon = "quiet reboot=t panic=-1"
	// An emulated machine has exact timers: what checks or replaces them is left out.
	cmdlineTCG = "no_timer_check noreplace-smp tsc=reliable"
	// The local timer of QEMU's machines counts at 1 GHz; told, our kernel does not measure it.
	cmdlineTCGOwn    = cmdlineTCG + " lapic_timer_khz=1000000"
	cmdlineTCGDebian = cmdlineTCG + " cryptomgr.notests nokaslr"
)

// Build makes a bundle at c.Dir: Debian's stock kernel, our own as c.OwnKernel says, the custom ones,
// and the built-in image. What is not in the cache is downloaded, 40 MiB at first. It is safe for
// concurrent use by several processes. On an error the older bundle stays as it was.
func Build(ctx context.Context, c Config) (*Manifest, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, problem.New(problem.Invalid, "bundle.unwritable", "the bundle cannot be made").WithCause(err).
			WithHint("choose another directory")
	}
	release, err := filelock.Acquire(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer release()
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".bundle-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	b := &builder{c: c, dir: tmp}
	m, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.writeManifest(m); err != nil {
		return nil, err
	}
	if err := swap(tmp, dir); err != nil {
		return nil, fmt.Errorf("bundle: put in place: %w", err)
	}
	b.progress("the bundle is in %s", dir)
	return m, nil
}

// builder fills one directory.
type builder struct {
	c   Config
	dir string
}

func (b *builder) progress(format string, args ...any) {
	if b.c.Progress != nil {
		b.c.Progress(fmt.Sprintf(format, args...))
	}
}

func (b *builder) build(ctx context.Context) (*Manifest, error) {
	m := &Manifest{FormatVersion: FormatVersion}
	guest, err := readLimited(b.c.Guest, guestBytesMax)
	if err != nil {
		return nil, problem.New(problem.NotFound, "bundle.no_guest", "the program blixard-guest cannot be read").WithCause(err).
			WithHint("it lies beside blixard after `make build`; or name it with --guest")
	}
	if m.Guest.FileEntry, err = b.put("blixard-guest", guest); err != nil {
		return nil, err
	}
	m.Guest.Version = b.c.GuestVersion
	// What a person named is looked at first: a mistake must not cost a download.
	versions, err := inspectCustom(b.c.Custom)
	if err != nil {
		return nil, err
	}
	kc := kernel.Config{CacheDir: b.c.CacheDir, Progress: b.c.Progress}
	if err := b.addOwn(ctx, kc, guest, m); err != nil {
		return nil, err
	}
	if err := b.addStock(ctx, kc, guest, m); err != nil {
		return nil, err
	}
	for i, k := range b.c.Custom {
		if err := b.addCustom(k, versions[i], guest, m); err != nil {
			return nil, err
		}
	}
	f := &debian.Fetcher{CacheDir: b.c.CacheDir, Progress: b.c.Progress}
	const imageFile = ImageBusybox + ".ext4"
	image, err := buildBusybox(ctx, f, b.progress, filepath.Join(b.dir, imageFile))
	if err != nil {
		return nil, err
	}
	if image.FileEntry, err = b.entry(imageFile); err != nil {
		return nil, err
	}
	m.Images = append(m.Images, image)
	return m, nil
}

func (b *builder) addOwn(ctx context.Context, kc kernel.Config, guest []byte, m *Manifest) error {
	var own kernel.Own
	var err error
	switch b.c.OwnKernel {
	case OwnNone:
		return nil
	case OwnBuild:
		own, err = kernel.Build(ctx, kc)
	case OwnCached, "":
		own, err = kernel.Cached(kc)
		if problem.Is(err, problem.NotFound) {
			b.progress("our own kernel is not in the cache: boots are slower; `make kernel` builds it")
			return nil
		}
	default:
		return problem.New(problem.Invalid, "bundle.own_kernel", "own kernel: %q is none of cached, build, none", b.c.OwnKernel).
			WithHint("choose one of them")
	}
	if err != nil {
		return err
	}
	return b.addKernel(KernelEntry{
		Name: KernelOwn, Version: own.Version, Cmdline: "console=" + ConsoleVirtio + " " + cmdlineCommon,
		CmdlineTCG: cmdlineTCGOwn, Console: ConsoleVirtio, TickHz: kernel.OwnTickHz,
	}, own.Path, guest, nil, m)
}

func (b *builder) addStock(ctx context.Context, kc kernel.Config, guest []byte, m *Manifest) error {
	stock, err := kernel.FetchStock(ctx, kc)
	if err != nil {
		return err
	}
	return b.addKernel(KernelEntry{
		Name: KernelDebian, Version: stock.Version, Cmdline: "console=" + ConsoleSerial + " " + cmdlineCommon,
		CmdlineTCG: cmdlineTCGDebian, ACPI: true, Console: ConsoleSerial, TickHz: kernel.StockTickHz,
	}, stock.Path, guest, stock.Modules, m)
}

// inspectCustom gives the versions of custom kernels, or what is wrong with one.
func inspectCustom(kernels []CustomKernel) ([]string, error) {
	taken := map[string]bool{KernelOwn: true, KernelDebian: true}
	var versions []string
	for _, k := range kernels {
		if !namePattern.MatchString(k.Name) || taken[k.Name] {
			return nil, problem.New(problem.Invalid, "bundle.kernel_name", "%q cannot be the name of a custom kernel", clip(k.Name)).
				WithHint("choose up to 63 lower-case letters, digits and dashes, and no name that is taken")
		}
		taken[k.Name] = true
		f, err := os.Open(k.Path)
		if err != nil {
			return nil, problem.New(problem.NotFound, "bundle.no_kernel_file", "the kernel %q cannot be read", k.Name).WithCause(err).
				WithHint("name an existing file")
		}
		info, err := kernel.Inspect(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("kernel %s: %s: %w", k.Name, k.Path, err)
		}
		versions = append(versions, info.Version)
	}
	return versions, nil
}

func (b *builder) addCustom(k CustomKernel, version string, guest []byte, m *Manifest) error {
	console := ConsoleVirtio
	if k.ACPI {
		console = ConsoleSerial
	}
	return b.addKernel(KernelEntry{
		Name: k.Name, Version: version, Cmdline: "console=" + console + " " + cmdlineCommon,
		CmdlineTCG: cmdlineTCG, ACPI: k.ACPI, Console: console,
	}, k.Path, guest, nil, m)
}

// addKernel copies the kernel in and makes the initramfs that goes with it.
func (b *builder) addKernel(e KernelEntry, path string, guest []byte, modules []kernel.Module, m *Manifest) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := kernel.Inspect(src)
	_ = src.Close()
	if err != nil {
		return fmt.Errorf("kernel %s: %w", e.Name, err)
	}
	e.Format = info.Format
	if e.FileEntry, err = b.copyIn(e.Name+"-kernel", path); err != nil {
		return err
	}
	archive, err := initramfs(guest, modules)
	if err != nil {
		return err
	}
	if e.Initramfs, err = b.put(e.Name+"-initramfs.cpio", archive); err != nil {
		return err
	}
	for _, mod := range modules {
		e.Modules = append(e.Modules, mod.Name)
	}
	m.Kernels = append(m.Kernels, e)
	b.progress("kernel %s: %s", e.Name, e.Version)
	return nil
}

// put writes a file of the bundle.
func (b *builder) put(name string, data []byte) (FileEntry, error) {
	if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o644); err != nil {
		return FileEntry{}, err
	}
	return b.entry(name)
}

func (b *builder) copyIn(name, path string) (FileEntry, error) {
	src, err := os.Open(path)
	if err != nil {
		return FileEntry{}, err
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(b.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return FileEntry{}, err
	}
	n, err := io.Copy(dst, io.LimitReader(src, kernelBytesMax+1))
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return FileEntry{}, err
	}
	if n > kernelBytesMax {
		return FileEntry{}, problem.New(problem.Invalid, "bundle.kernel_size", "%s has more than %d bytes", path, int64(kernelBytesMax)).
			WithHint("strip it")
	}
	return b.entry(name)
}

// kernelBytesMax bounds a kernel file; a stock vmlinux has 50 MiB.
const kernelBytesMax = 512 << 20

// entry measures a file that is in the directory.
func (b *builder) entry(name string) (FileEntry, error) {
	sum, size, err := kernel.DigestFile(filepath.Join(b.dir, name))
	return FileEntry{File: name, SHA256: sum, Bytes: size}, err
}

// writeManifest writes it last, and checks that it would be read back.
func (b *builder) writeManifest(m *Manifest) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if _, err := parseManifest(strings.NewReader(string(raw))); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, manifestName), append(raw, '\n'), 0o644)
}

// swap puts dir tmp in the place of dir to in one step; what was there is then at tmp.
func swap(tmp, to string) error {
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat(to); os.IsNotExist(err) {
		return os.Rename(tmp, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if err == nil {
		return nil
	}
	// A file system without the exchange: two steps, and a crash between them leaves no bundle.
	old := tmp + ".old"
	if err := os.Rename(to, old); err != nil {
		return err
	}
	if err := os.Rename(tmp, to); err != nil {
		return err
	}
	if err := os.RemoveAll(old); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("%w: %w", fs.ErrInvalid, err)
	}
	return nil
}

package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

// Bundle is an open bundle. It holds no file open and is safe for concurrent use.
type Bundle struct {
	dir      string
	manifest *Manifest

	mu sync.Mutex
	// checked are the files whose digest was right, as they were then.
	checked map[string]stamp
}

// stamp tells whether a file is still the one that was checked.
type stamp struct {
	dev, inode uint64
	bytes      int64
	modified   time.Time
	changed    syscall.Timespec
}

func stampOf(info os.FileInfo) stamp {
	s := stamp{bytes: info.Size(), modified: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.inode, s.changed = st.Dev, st.Ino, st.Ctim
	}
	return s
}

// Open reads the bundle in dir. Only the manifest is looked at: a file's digest is checked when its
// path is first asked for. It fails with a problem of kind NotFound (bundle.missing) when there is no
// bundle, or Invalid (bundle.manifest, bundle.newer).
func Open(dir string) (*Bundle, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(abs)
	if err == nil {
		defer root.Close()
		var f *os.File
		if f, err = root.Open(manifestName); err == nil {
			defer f.Close()
			m, err := parseManifest(f)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Join(abs, manifestName), err)
			}
			return &Bundle{dir: abs, manifest: m, checked: map[string]stamp{}}, nil
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "bundle.missing", "there is no guest bundle in %s", abs).
			WithHint("build one: blixard bundle build")
	}
	return nil, problem.New(problem.Internal, "bundle.unreadable", "the guest bundle cannot be read").WithCause(err)
}

// Dir is the directory of the bundle, as an absolute path.
func (b *Bundle) Dir() string { return b.dir }

// Manifest gives what the bundle says of itself. The caller must not change it.
func (b *Bundle) Manifest() *Manifest { return b.manifest }

// Kernel gives the kernel of that name with its files checked; "" is the preferred one: our own
// where it is there, else Debian's, else the first. It fails with a problem of kind NotFound and code
// bundle.unknown_kernel that names the known ones, or with bundle.damaged.
func (b *Bundle) Kernel(name string) (Kernel, error) {
	e := b.manifest.kernel(name)
	if e == nil {
		return Kernel{}, problem.New(problem.NotFound, "bundle.unknown_kernel", "the bundle has no kernel %q", clip(name)).
			WithHint("it has: %s", strings.Join(b.KernelNames(), ", "))
	}
	for _, f := range []FileEntry{e.FileEntry, e.Initramfs} {
		if err := b.ensure(f); err != nil {
			return Kernel{}, err
		}
	}
	return Kernel{
		Name: e.Name, Path: b.path(e.FileEntry), InitramfsPath: b.path(e.Initramfs),
		Cmdline: e.Cmdline, CmdlineTCG: e.CmdlineTCG, TickHz: e.TickHz,
		ACPI: e.ACPI, Console: e.Console, Version: e.Version,
	}, nil
}

func (m *Manifest) kernel(name string) *KernelEntry {
	names := []string{name}
	if name == "" {
		names = []string{KernelOwn, KernelDebian, m.Kernels[0].Name}
	}
	for _, n := range names {
		if i := slices.IndexFunc(m.Kernels, func(k KernelEntry) bool { return k.Name == n }); i >= 0 {
			return &m.Kernels[i]
		}
	}
	return nil
}

// KernelNames gives the names of the kernels, the preferred one first.
func (b *Bundle) KernelNames() []string {
	preferred := b.manifest.kernel("").Name
	names := []string{preferred}
	for _, k := range b.manifest.Kernels {
		if k.Name != preferred {
			names = append(names, k.Name)
		}
	}
	return names
}

// Image gives the image of that name with its file checked. It fails with a problem of kind NotFound
// and code bundle.unknown_image that names the known ones, or with bundle.damaged.
func (b *Bundle) Image(name string) (Image, error) {
	i := slices.IndexFunc(b.manifest.Images, func(e ImageEntry) bool { return e.Name == name })
	if i < 0 {
		return Image{}, problem.New(problem.NotFound, "bundle.unknown_image", "the bundle has no image %q", clip(name)).
			WithHint("it has: %s", strings.Join(b.ImageNames(), ", "))
	}
	e := b.manifest.Images[i]
	if err := b.ensure(e.FileEntry); err != nil {
		return Image{}, err
	}
	return Image{
		Name: e.Name, Path: b.path(e.FileEntry), Digest: "sha256:" + e.SHA256,
		Entrypoint: slices.Clone(e.Entrypoint), Command: slices.Clone(e.Command),
		Env: slices.Clone(e.Env), WorkingDir: e.WorkingDir,
	}, nil
}

// ImageNames gives the names of the images in the order of the manifest.
func (b *Bundle) ImageNames() []string {
	var names []string
	for _, e := range b.manifest.Images {
		names = append(names, e.Name)
	}
	return names
}

func (b *Bundle) path(f FileEntry) string { return filepath.Join(b.dir, filepath.FromSlash(f.File)) }

// ensure checks a file's digest unless this very file was found right before.
func (b *Bundle) ensure(f FileEntry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	root, err := os.OpenRoot(b.dir)
	if err != nil {
		return damaged(f, err)
	}
	defer root.Close()
	info, err := root.Stat(f.File)
	if err != nil {
		return damaged(f, err)
	}
	if now := stampOf(info); b.checked[f.File] == now {
		return nil
	}
	delete(b.checked, f.File)
	now, err := verify(context.Background(), root, f)
	if err != nil {
		return err
	}
	b.checked[f.File] = now
	return nil
}

// verify reads a file to its end and compares its digest.
func verify(ctx context.Context, root *os.Root, f FileEntry) (stamp, error) {
	file, err := root.OpenFile(f.File, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return stamp{}, damaged(f, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return stamp{}, damaged(f, err)
	}
	if !info.Mode().IsRegular() {
		return stamp{}, damaged(f, errors.New("it is not a regular file"))
	}
	if info.Size() != f.Bytes {
		return stamp{}, damaged(f, fmt.Errorf("it has %d bytes, not %d", info.Size(), f.Bytes))
	}
	h := sha256.New()
	if _, err := io.Copy(h, &contextReader{ctx, io.LimitReader(file, f.Bytes)}); err != nil {
		if ctx.Err() != nil {
			return stamp{}, context.Cause(ctx)
		}
		return stamp{}, damaged(f, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		return stamp{}, damaged(f, fmt.Errorf("its digest begins with %.16s, not %.16s", got, f.SHA256))
	}
	return stampOf(info), nil
}

// contextReader ends reading with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func damaged(f FileEntry, err error) error {
	return problem.New(problem.Internal, "bundle.damaged", "%s of the guest bundle is damaged", f.File).
		WithCause(err).WithHint("build the bundle anew: blixard bundle build")
}

// Verify checks the digest of every file. It gives all that is wrong, joined.
func (b *Bundle) Verify(ctx context.Context) error {
	root, err := os.OpenRoot(b.dir)
	if err != nil {
		return problem.New(problem.Internal, "bundle.unreadable", "the guest bundle cannot be read").WithCause(err)
	}
	defer root.Close()
	files := []FileEntry{b.manifest.Guest.FileEntry}
	for _, k := range b.manifest.Kernels {
		files = append(files, k.FileEntry, k.Initramfs)
	}
	for _, e := range b.manifest.Images {
		files = append(files, e.FileEntry)
	}
	var errs []error
	for _, f := range files {
		now, err := verify(ctx, root, f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b.mu.Lock()
		if err != nil {
			delete(b.checked, f.File)
			errs = append(errs, err)
		} else {
			b.checked[f.File] = now
		}
		b.mu.Unlock()
	}
	return errors.Join(errs...)
}

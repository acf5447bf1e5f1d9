package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/blixard/blixard/internal/debian"
	"github.com/blixard/blixard/internal/problem"
)

const (
	busyboxPackage = "busybox-static"
	// busyboxBytesMax bounds the program; it has 2 MiB.
	busyboxBytesMax = 16 << 20
	// appletsMax bounds its list of applets; it has about 270.
	appletsMax = 2000
	// listTimeout bounds asking it for the list.
	listTimeout = 10 * time.Second
)

// busyboxDirs are the directories of the image and their modes.
var busyboxDirs = map[string]int64{
	"bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "mnt": 0o755, "proc": 0o555, "root": 0o700,
	"run": 0o755, "sbin": 0o755, "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755,
	"usr/sbin": 0o755, "usr/share": 0o755, "var": 0o755, "var/log": 0o755, "var/tmp": 0o1777,
}

// busyboxFiles are the small files that programs expect. resolv.conf and hosts are the VM's own
// affair: they are there to be written.
var busyboxFiles = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
	"etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
	"etc/shadow":        "root:*:::::::\nnobody:*:::::::\n",
	"etc/hosts":         "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
	"etc/resolv.conf":   "",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"etc/shells":        "/bin/sh\n/bin/ash\n",
	"etc/profile":       "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\h:\\w\\$ '\n",
	"etc/os-release":    "ID=busybox\nNAME=\"BusyBox on blixard\"\nPRETTY_NAME=\"BusyBox on blixard\"\n",
}

// buildBusybox makes the image of Debian's static busybox at path and tells its defaults.
func buildBusybox(ctx context.Context, f *debian.Fetcher, progress func(string, ...any), to string) (ImageEntry, error) {
	pkg, err := f.Resolve(ctx, busyboxPackage)
	if err != nil {
		return ImageEntry{}, err
	}
	deb, err := f.Fetch(ctx, pkg)
	if err != nil {
		return ImageEntry{}, err
	}
	progress("making the image busybox of %s %s", pkg.Name, pkg.Version)
	tmp, err := os.MkdirTemp(filepath.Dir(to), ".busybox-")
	if err != nil {
		return ImageEntry{}, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := f.Unpack(ctx, deb, tmp); err != nil {
		return ImageEntry{}, err
	}
	program := filepath.Join(tmp, "bin", "busybox")
	raw, err := readLimited(program, busyboxBytesMax)
	if err != nil {
		return ImageEntry{}, err
	}
	applets, err := listApplets(ctx, program)
	if err != nil {
		return ImageEntry{}, err
	}
	archive, err := busyboxTar(raw, applets)
	if err != nil {
		return ImageEntry{}, err
	}
	if err := writeExt4(archive, to); err != nil {
		return ImageEntry{}, err
	}
	return ImageEntry{
		Name: ImageBusybox, Source: pkg.Name + " " + pkg.Version,
		Command: []string{"/bin/sh"}, WorkingDir: "/",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}, nil
}

// listApplets asks busybox for the paths of its applets, such as usr/bin/awk.
func listApplets(ctx context.Context, program string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--list-full")
	cmd.Env, cmd.WaitDelay = []string{}, time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, problem.New(problem.Internal, "bundle.busybox", "busybox does not list its applets").WithCause(err).
			WithHint("the bundle is built on x86-64 hosts only")
	}
	applets := strings.Fields(string(out))
	if len(applets) == 0 || len(applets) > appletsMax {
		return nil, fmt.Errorf("busybox lists %d applets", len(applets))
	}
	for _, a := range applets {
		if !filepath.IsLocal(a) || path.Clean(a) != a {
			return nil, fmt.Errorf("busybox lists the applet %q", a)
		}
	}
	return applets, nil
}

// busyboxTar packs the image. The same input gives the same bytes.
func busyboxTar(program []byte, applets []string) (*bytes.Buffer, error) {
	buf := new(bytes.Buffer)
	w := tar.NewWriter(buf)
	add := func(h tar.Header, content []byte) error {
		h.Size, h.ModTime, h.Format = int64(len(content)), time.Unix(0, 0), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	var errs []error
	dirs := map[string]bool{}
	for _, d := range sortedKeys(busyboxDirs) {
		dirs[d] = true
		errs = append(errs, add(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: busyboxDirs[d]}, nil))
	}
	for _, name := range sortedKeys(busyboxFiles) {
		mode := int64(0o644)
		if name == "etc/shadow" {
			mode = 0o600
		}
		errs = append(errs, add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, []byte(busyboxFiles[name])))
	}
	errs = append(errs, add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program))
	for _, a := range applets {
		if a == "bin/busybox" {
			continue
		}
		if d := path.Dir(a); !dirs[d] {
			dirs[d] = true
			errs = append(errs, add(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil))
		}
		errs = append(errs, add(tar.Header{Typeflag: tar.TypeSymlink, Name: a, Linkname: "/bin/busybox", Mode: 0o777}, nil))
	}
	return buf, errors.Join(append(errs, w.Close())...)
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// writeExt4 turns a tar archive into a file with a read-only ext4 file system.
func writeExt4(archive *bytes.Buffer, to string) error {
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = tar2ext4.ConvertTarToExt4(archive, out, tar2ext4.InlineData, tar2ext4.MaximumDiskSize(imageBytesMax))
	return errors.Join(err, out.Sync(), out.Close())
}

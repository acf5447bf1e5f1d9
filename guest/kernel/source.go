package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/blixard/blixard/internal/debian"
	"github.com/blixard/blixard/internal/filelock"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// sourcePackage is Debian's kernel source that the own kernel is made of.
	sourcePackage = "linux-source-6.1"
	// buildSteps is raised whenever the way from source and options to the kernel changes.
	buildSteps = 1
)

// inputs is all that decides what the own kernel is. Its digest names it in the cache.
type inputs struct {
	Source  debian.Package `json:"source"`
	Config  string         `json:"config"`
	Patches []string       `json:"patches"`
	Steps   int            `json:"steps"`
}

func ownInputs(source debian.Package) (inputs, error) {
	in := inputs{Source: source, Config: ownConfig, Steps: buildSteps}
	entries, err := ownPatches.ReadDir("patches")
	if err != nil {
		return inputs{}, err
	}
	for _, e := range entries {
		raw, err := ownPatches.ReadFile("patches/" + e.Name())
		if err != nil {
			return inputs{}, err
		}
		in.Patches = append(in.Patches, string(raw))
	}
	return in, nil
}

// digest names the inputs: 32 hex digits.
func (in inputs) digest() (string, error) {
	raw, err := json.Marshal(in)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16]), nil
}

// unpackSource gives the directory of the patched source, unpacking the package's file when it is
// not in the cache. Debian packs the source as a tar archive inside the package.
func (c Config) unpackSource(ctx context.Context, in inputs, name string) (string, error) {
	dir := filepath.Join(c.CacheDir, "sources", name)
	release, err := filelock.Acquire(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer release()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := debian.RequireTools("tar", "xz", "dpkg-deb"); err != nil {
		return "", err
	}
	f := c.fetcher()
	deb, err := f.Fetch(ctx, in.Source)
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".unpack-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	c.progress("unpacking %s %s", in.Source.Name, in.Source.Version)
	if err := f.Unpack(ctx, deb, tmp); err != nil {
		return "", err
	}
	tarball := filepath.Join(tmp, "usr", "src", sourcePackage+".tar.xz")
	if out, err := exec.CommandContext(ctx, "tar", "-C", tmp, "-xf", tarball).CombinedOutput(); err != nil {
		return "", problem.New(problem.Internal, "kernel.source", "the kernel's source cannot be unpacked").
			WithCause(fmt.Errorf("tar: %w: %s", err, tail(out))).WithHint("1.5 GiB of free disk space are needed in %s", c.CacheDir)
	}
	unpacked := filepath.Join(tmp, sourcePackage)
	if err := applyPatches(unpacked); err != nil {
		return "", err
	}
	return dir, os.Rename(unpacked, dir)
}

func applyPatches(dir string) error {
	patches, err := readPatches(ownPatches, "patches")
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range patches {
		if err := p.apply(root); err != nil {
			return problem.New(problem.Internal, "kernel.patch", "blixard's change to the kernel does not fit this source").
				WithCause(err).WithHint("this version of blixard was not made for it: upgrade blixard")
		}
	}
	return nil
}

// tail gives the last lines of a tool's output.
func tail(out []byte) string {
	const linesMax, bytesMax = 12, 4 << 10
	lines := strings.Split(strings.TrimSpace(string(out[max(0, len(out)-bytesMax):])), "\n")
	return strings.Join(lines[max(0, len(lines)-linesMax):], "\n")
}

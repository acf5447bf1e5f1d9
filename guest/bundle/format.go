package bundle

import (
	"encoding/json"
	"errors"
	"io"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/blixard/blixard/guest/kernel"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of a manifest. A bundle of this version has two kernels and one image.
const (
	manifestBytesMax = 1 << 20
	kernelsMax       = 32
	imagesMax        = 64
	modulesMax       = 128
	cmdlineBytesMax  = 1024 // the kernel takes 2,048, the VM's own arguments included
	textBytesMax     = 256  // versions, module names
	argumentsMax     = 256
	argumentBytesMax = 4 << 10
	initramfsMax     = 128 << 20
	imageBytesMax    = 8 << 30
	guestBytesMax    = 64 << 20
	tickHzMax        = 10_000
)

const manifestName = "manifest.json"

// Manifest is what manifest.json holds.
type Manifest struct {
	FormatVersion int           `json:"format_version"`
	Guest         GuestEntry    `json:"guest"`
	Kernels       []KernelEntry `json:"kernels"`
	Images        []ImageEntry  `json:"images"`
}

// FileEntry is a file of a bundle. File is relative to the bundle, with slashes.
type FileEntry struct {
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

// GuestEntry is the blixard-guest that every initramfs of the bundle holds.
type GuestEntry struct {
	FileEntry
	Version string `json:"version"`
}

// KernelEntry is a kernel of a bundle.
type KernelEntry struct {
	Name string `json:"name"`
	FileEntry
	Format    kernel.Format `json:"format"`
	Version   string        `json:"version"`
	Initramfs FileEntry     `json:"initramfs"`
	// Modules are those in the initramfs, in the order they are loaded; empty for a kernel that has
	// all built in.
	Modules    []string `json:"modules,omitempty"`
	Cmdline    string   `json:"cmdline"`
	CmdlineTCG string   `json:"cmdline_tcg,omitempty"`
	ACPI       bool     `json:"acpi"`
	Console    string   `json:"console"`
	// TickHz is the kernel's CONFIG_HZ; zero if unknown.
	TickHz int `json:"tick_hz,omitempty"`
}

// ImageEntry is an image of a bundle.
type ImageEntry struct {
	Name string `json:"name"`
	FileEntry
	// Source says what it was made of.
	Source     string   `json:"source"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Command    []string `json:"command,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
}

var (
	namePattern   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// badManifest makes the problem of a manifest that breaks a rule.
func badManifest(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "bundle.manifest", "the bundle's manifest is not valid: "+format, args...).
		WithHint("build the bundle anew: blixard bundle build")
}

// parseManifest reads a manifest, which may be hostile.
func parseManifest(r io.Reader) (*Manifest, error) {
	raw, err := io.ReadAll(io.LimitReader(r, manifestBytesMax+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > manifestBytesMax {
		return nil, badManifest("it has more than %d bytes", manifestBytesMax)
	}
	// The version comes first: the fields of a newer format are not known here.
	var version struct {
		FormatVersion int `json:"format_version"`
	}
	if err := json.Unmarshal(raw, &version); err != nil {
		return nil, badManifest("it is not JSON").WithCause(err)
	}
	if version.FormatVersion > FormatVersion {
		return nil, problem.New(problem.Invalid, "bundle.newer", "the bundle has format %d, this blixard knows %d", version.FormatVersion, FormatVersion).
			WithHint("upgrade blixard, or build the bundle anew: blixard bundle build")
	}
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.DisallowUnknownFields()
	var m Manifest
	if err := decoder.Decode(&m); err != nil {
		return nil, badManifest("it does not have the expected fields").WithCause(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, badManifest("something follows it")
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return &m, nil
}

// check holds a manifest against the limits. It is done after reading one and before writing one.
func (m *Manifest) check() error {
	switch {
	case m.FormatVersion != FormatVersion:
		return badManifest("its format is %d", m.FormatVersion)
	case len(m.Kernels) == 0 || len(m.Kernels) > kernelsMax:
		return badManifest("it has %d kernels, 1 to %d are possible", len(m.Kernels), kernelsMax)
	case len(m.Images) > imagesMax:
		return badManifest("it has %d images, at most %d are possible", len(m.Images), imagesMax)
	}
	files := map[string]bool{manifestName: true}
	if err := m.Guest.check("the guest binary", guestBytesMax, files); err != nil {
		return err
	}
	if err := checkText("the guest's version", m.Guest.Version, textBytesMax); err != nil {
		return err
	}
	names := map[string]bool{}
	for i := range m.Kernels {
		k := &m.Kernels[i]
		if !namePattern.MatchString(k.Name) || names[k.Name] {
			return badManifest("kernel %d has the name %q", i, clip(k.Name))
		}
		names[k.Name] = true
		if err := k.check(files); err != nil {
			return err
		}
	}
	names = map[string]bool{}
	for i := range m.Images {
		e := &m.Images[i]
		if !namePattern.MatchString(e.Name) || names[e.Name] {
			return badManifest("image %d has the name %q", i, clip(e.Name))
		}
		names[e.Name] = true
		if err := e.check(files); err != nil {
			return err
		}
	}
	return nil
}

// check holds one file against the limits: its name stays within the bundle and is used once.
func (f FileEntry) check(what string, bytesMax int64, files map[string]bool) error {
	switch {
	case len(f.File) > textBytesMax || !filepath.IsLocal(f.File) || path.Clean(f.File) != f.File || strings.ContainsAny(f.File, "\\\x00\n,"):
		return badManifest("%s has the file name %q", what, clip(f.File))
	case files[f.File]:
		return badManifest("%s has the file %q of something else", what, f.File)
	case !digestPattern.MatchString(f.SHA256):
		return badManifest("%s has the digest %q", what, clip(f.SHA256))
	case f.Bytes <= 0 || f.Bytes > bytesMax:
		return badManifest("%s has %d bytes, 1 to %d are possible", what, f.Bytes, bytesMax)
	}
	files[f.File] = true
	return nil
}

func (k *KernelEntry) check(files map[string]bool) error {
	what := "kernel " + k.Name
	if err := k.FileEntry.check(what, kernel.FileBytesMax, files); err != nil {
		return err
	}
	if err := k.Initramfs.check("the initramfs of "+what, initramfsMax, files); err != nil {
		return err
	}
	switch {
	case k.Format != kernel.FormatBzImage && k.Format != kernel.FormatVmlinux:
		return badManifest("%s has the format %q", what, clip(string(k.Format)))
	case k.Console != ConsoleVirtio && k.Console != ConsoleSerial:
		return badManifest("%s has the console %q", what, clip(k.Console))
	case len(k.Modules) > modulesMax:
		return badManifest("%s has %d modules", what, len(k.Modules))
	case k.TickHz < 0 || k.TickHz > tickHzMax:
		return badManifest("%s has %d ticks a second", what, k.TickHz)
	}
	for _, m := range k.Modules {
		if err := checkText("a module of "+what, m, textBytesMax); err != nil {
			return err
		}
	}
	if err := checkText("the version of "+what, k.Version, textBytesMax); err != nil {
		return err
	}
	if err := checkText("the command line of "+what, k.Cmdline, cmdlineBytesMax); err != nil {
		return err
	}
	return checkText("the command line of "+what, k.CmdlineTCG, cmdlineBytesMax)
}

func (e *ImageEntry) check(files map[string]bool) error {
	what := "image " + e.Name
	if err := e.FileEntry.check(what, imageBytesMax, files); err != nil {
		return err
	}
	if e.WorkingDir != "" && !strings.HasPrefix(e.WorkingDir, "/") {
		return badManifest("%s has the working directory %q", what, clip(e.WorkingDir))
	}
	for _, list := range [][]string{e.Entrypoint, e.Command, e.Env, {e.WorkingDir, e.Source}} {
		if len(list) > argumentsMax {
			return badManifest("%s has a list of %d words", what, len(list))
		}
		for _, s := range list {
			if len(s) > argumentBytesMax || strings.ContainsRune(s, 0) {
				return badManifest("%s has the word %q", what, clip(s))
			}
		}
	}
	for _, kv := range e.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return badManifest("%s has the variable %q", what, clip(kv))
		}
	}
	return nil
}

// checkText holds a line of printable ASCII against a length.
func checkText(what, s string, bytesMax int) error {
	if len(s) > bytesMax {
		return badManifest("%s has %d bytes", what, len(s))
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return badManifest("%s has a character that is not printable: %q", what, clip(s))
		}
	}
	return nil
}

// clip shortens what an error shows of a hostile text.
func clip(s string) string {
	const shown = 80
	if len(s) > shown {
		return s[:shown] + "..."
	}
	return s
}

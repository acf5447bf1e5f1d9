package image

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// ociConfig is an image's configuration as OCI and docker write it.
type ociConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	Config       struct {
		User         string              `json:"User"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts"`
		Env          []string            `json:"Env"`
		Entrypoint   []string            `json:"Entrypoint"`
		Cmd          []string            `json:"Cmd"`
		Volumes      map[string]struct{} `json:"Volumes"`
		WorkingDir   string              `json:"WorkingDir"`
		Labels       map[string]string   `json:"Labels"`
		StopSignal   string              `json:"StopSignal"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

func badConfig(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "image.config", "its configuration is not valid: "+format, args...).
		WithHint("build the image anew")
}

// parseConfig reads a configuration, which may be hostile. It gives the digests of
// the unpacked layers as well.
func parseConfig(raw []byte, layers int) (*blixardv1.ImageConfig, []string, error) {
	if len(raw) > configBytesMax {
		return nil, nil, badConfig("it has more than %d bytes", configBytesMax)
	}
	var c ociConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, nil, badConfig("it is not JSON of that form").WithCause(err)
	}
	if c.OS == "" && c.Architecture == "" {
		// One that names no platform is taken for this one, as other runtimes do.
		c.OS, c.Architecture = platformOS, platformArch
	}
	if c.OS != platformOS || c.Architecture != platformArch {
		return nil, nil, wrongArchitecture([]string{clip((&platform{c.OS, c.Architecture, c.Variant}).String())})
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, nil, badConfig("it tells of %d layers, the manifest of %d", len(c.RootFS.DiffIDs), layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if !digestPattern.MatchString(d) {
			return nil, nil, badConfig("a layer has the digest %q", clip(d))
		}
	}
	signal, err := parseSignal(c.Config.StopSignal)
	if err != nil {
		return nil, nil, err
	}
	ic := &blixardv1.ImageConfig{
		Entrypoint: c.Config.Entrypoint, Command: c.Config.Cmd, Env: c.Config.Env, User: c.Config.User,
		WorkingDir: c.Config.WorkingDir, StopSignal: signal, Architecture: c.Architecture, Labels: c.Config.Labels,
		ExposedPorts: slices.Sorted(maps.Keys(c.Config.ExposedPorts)), Volumes: slices.Sorted(maps.Keys(c.Config.Volumes)),
	}
	return ic, c.RootFS.DiffIDs, checkConfig(ic)
}

// checkConfig holds a configuration to the limits: one that was read, and one that
// another node sends.
func checkConfig(c *blixardv1.ImageConfig) error {
	total := 0
	check := func(what string, words []string) error {
		if len(words) > wordsMax {
			return badConfig("%s has %d words, %d are possible", what, len(words), wordsMax)
		}
		for _, w := range words {
			if total += len(w); len(w) > wordBytesMax || total > configTextMax {
				return badConfig("%s is too long: %d bytes a word and %d altogether are possible", what, wordBytesMax, configTextMax)
			}
			if strings.IndexByte(w, 0) >= 0 || !utf8.ValidString(w) {
				return badConfig("%s has the word %q", what, clip(w))
			}
		}
		return nil
	}
	labels := slices.Collect(maps.Keys(c.GetLabels()))
	for _, v := range c.GetLabels() {
		labels = append(labels, v)
	}
	for _, l := range []struct {
		what  string
		words []string
	}{
		{"the entrypoint", c.GetEntrypoint()},
		{"the command", c.GetCommand()},
		{"the environment", c.GetEnv()},
		{"the user", []string{c.GetUser()}},
		{"the working directory", []string{c.GetWorkingDir()}},
		{"the list of ports", c.GetExposedPorts()},
		{"the list of volumes", c.GetVolumes()},
		{"the list of labels", labels},
		{"the architecture", []string{c.GetArchitecture()}},
	} {
		if err := check(l.what, l.words); err != nil {
			return err
		}
	}
	for _, kv := range c.GetEnv() {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return badConfig("the environment has %q", clip(kv))
		}
	}
	if d := c.GetWorkingDir(); d != "" && !strings.HasPrefix(d, "/") {
		return badConfig("the working directory is %q", clip(d))
	}
	if s := c.GetStopSignal(); s > stopSignalsMax {
		return badConfig("the stop signal is %d", s)
	}
	return nil
}

// signals of Linux on amd64 by their names without SIG.
var signals = map[string]uint32{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10,
	"SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19,
	"TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29,
	"POLL": 29, "PWR": 30, "SYS": 31, "UNUSED": 31,
}

// The real-time signals that programs may use begin and end here.
const (
	rtMin = 34
	rtMax = 64
)

// parseSignal gives the number of a signal: 15, SIGTERM, TERM, SIGRTMIN+3. Empty is
// 0, for none.
func parseSignal(text string) (uint32, error) {
	if text == "" {
		return 0, nil
	}
	bad := badConfig("the stop signal is %q", clip(text))
	if n, err := strconv.ParseUint(text, 10, 8); err == nil {
		if n == 0 || n > stopSignalsMax {
			return 0, bad
		}
		return uint32(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n, ok := signals[name]; ok {
		return n, nil
	}
	for prefix, base := range map[string]int{"RTMIN": rtMin, "RTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			n, err := strconv.Atoi(rest) // takes its sign
			if err != nil || rest[0] != '+' && rest[0] != '-' {
				return 0, bad
			}
			offset = n
		}
		if n := base + offset; n >= rtMin && n <= rtMax {
			return uint32(n), nil
		}
	}
	return 0, bad
}

// checkImage holds an image to the limits: before it is written and after it was
// read, here or from another node.
func checkImage(img *blixardv1.Image) error {
	bad := func(what string) error {
		return problem.New(problem.Invalid, "image.invalid", "the image %q: %s", clip(img.GetName()), what).
			WithHint("another version of blixard may have written it: pull it again")
	}
	switch {
	case len(img.GetName()) > referenceMax || !utf8.ValidString(img.GetName()):
		return bad("its name is not valid")
	case !digestPattern.MatchString(img.GetDigest()) || !digestPattern.MatchString(img.GetDiskDigest()):
		return bad("its digest is not valid")
	case img.GetDiskBytes() == 0 || img.GetDiskBytes() > diskBytesMax:
		return bad("its disk has " + strconv.FormatUint(img.GetDiskBytes(), 10) + " bytes")
	case !slices.Contains(fsTypes, img.GetFsType()):
		return bad("its file system is " + strconv.Quote(clip(img.GetFsType())))
	case !slices.Contains([]string{sourceRegistry, sourceArchive, sourceDisk, sourceBundle}, img.GetSource()):
		return bad("its source is " + strconv.Quote(clip(img.GetSource())))
	case img.GetConfig() == nil || img.GetConfig().GetArchitecture() != platformArch:
		return bad("it is for the architecture " + strconv.Quote(clip(img.GetConfig().GetArchitecture())))
	}
	return checkConfig(img.GetConfig())
}

// Where images come from.
const (
	sourceRegistry = "registry"
	sourceArchive  = "archive"
	sourceDisk     = "disk"
	sourceBundle   = "bundle"
)

// fsTypes are the file systems of a root disk.
var fsTypes = []string{"ext4", fsErofs}

func timestampOf(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }

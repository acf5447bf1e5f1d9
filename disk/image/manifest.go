package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// The types of what a registry holds.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	acceptManifests    = typeOCIManifest + ", " + typeOCIIndex + ", " + typeDockerManifest + ", " + typeDockerList
)

// layerTypes are the layers that can be applied.
var layerTypes = []string{
	"application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+zstd",
	"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar.zstd",
}

// The one platform that guests have.
const (
	platformOS   = "linux"
	platformArch = "amd64"
)

// descriptor points to a file by its digest.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

func (p *platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// manifest is an image's, or an index of several.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

func badManifest(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "image.manifest", "its manifest is not valid: "+format, args...).
		WithHint("push the image anew with a current tool")
}

// parseManifest reads a manifest or an index, which may be hostile. contentType is
// what the sender calls it, or empty.
func parseManifest(raw []byte, contentType string) (*manifest, error) {
	if len(raw) > manifestBytesMax {
		return nil, badManifest("it has more than %d bytes", manifestBytesMax)
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, badManifest("it is not JSON of that form").WithCause(err)
	}
	contentType, _, _ = strings.Cut(contentType, ";")
	isIndex := len(m.Manifests) > 0 || m.MediaType == typeOCIIndex || m.MediaType == typeDockerList
	// What can be read in two ways means one thing here and another elsewhere.
	switch {
	case m.SchemaVersion != 2:
		return nil, badManifest("it has the schema version %d, only 2 is known", m.SchemaVersion)
	case isIndex && (m.Config != nil || len(m.Layers) > 0):
		return nil, badManifest("it is an image and an index at once")
	case m.MediaType != "" && contentType != "" && strings.HasPrefix(contentType, "application/vnd.") && m.MediaType != contentType:
		return nil, badManifest("it says that it is %q, and was sent as %q", clip(m.MediaType), clip(contentType))
	case isIndex:
		return &m, m.checkIndex()
	}
	return &m, m.checkImage()
}

func (m *manifest) isIndex() bool { return m.Config == nil }

func (m *manifest) checkIndex() error {
	if len(m.Manifests) > indexEntriesMax {
		return badManifest("it lists %d images, %d are possible", len(m.Manifests), indexEntriesMax)
	}
	for _, d := range m.Manifests {
		if err := d.check(manifestBytesMax); err != nil {
			return err
		}
	}
	return nil
}

func (m *manifest) checkImage() error {
	switch {
	case m.MediaType != "" && m.MediaType != typeOCIManifest && m.MediaType != typeDockerManifest:
		return badManifest("it is of the type %q", clip(m.MediaType))
	case m.Config == nil:
		return badManifest("it names no configuration")
	case len(m.Layers) > layersMax:
		return badManifest("it has %d layers, %d are possible", len(m.Layers), layersMax)
	}
	if err := m.Config.check(configBytesMax); err != nil {
		return err
	}
	total := int64(0)
	for n, d := range m.Layers {
		if !slices.Contains(layerTypes, d.MediaType) {
			return badManifest("layer %d is of the type %q", n+1, clip(d.MediaType))
		}
		if err := d.check(downloadBytesMax); err != nil {
			return err
		}
		total += d.Size
	}
	if total > downloadBytesMax {
		return tooLarge("its layers have %d bytes, %d are possible", total, int64(downloadBytesMax))
	}
	return nil
}

func (d *descriptor) check(bytesMax int64) error {
	switch {
	case !digestPattern.MatchString(d.Digest):
		return badManifest("it names the digest %q", clip(d.Digest))
	case d.Size < 0:
		return badManifest("it names %d bytes", d.Size)
	case d.Size > bytesMax:
		return tooLarge("it names a file of %d bytes, %d are possible", d.Size, bytesMax)
	}
	return nil
}

// compressedBytes is what all layers have.
func (m *manifest) compressedBytes() (n int64) {
	for _, d := range m.Layers {
		n += d.Size
	}
	return n
}

// choose gives the image of an index that guests can run. An entry without a
// platform counts when there is no better one.
func (m *manifest) choose() (descriptor, error) {
	var there []string
	best, rank := descriptor{}, 0
	for _, d := range m.Manifests {
		if d.MediaType != typeOCIManifest && d.MediaType != typeDockerManifest && d.MediaType != "" {
			continue
		}
		r := 1
		if p := d.Platform; p != nil {
			switch {
			case p.OS == platformOS && p.Architecture == platformArch && (p.Variant == "" || p.Variant == "v1"):
				r = 3
			case p.OS == platformOS && p.Architecture == platformArch && p.Variant == "v2":
				r = 2 // x86-64-v2, which every host with KVM has
			default:
				r = 0
			}
			if p.OS != "unknown" && len(there) < 32 {
				there = append(there, p.String())
			}
		}
		if r > rank {
			best, rank = d, r
		}
	}
	if rank == 0 {
		return descriptor{}, wrongArchitecture(there)
	}
	return best, nil
}

func wrongArchitecture(there []string) *problem.Error {
	what := "nothing that runs"
	if len(there) > 0 {
		what = clip(strings.Join(there, ", "))
	}
	return problem.New(problem.Invalid, "image.architecture", "it is not there for %s/%s: it has %s", platformOS, platformArch, what).
		WithHint("build it for %s/%s as well", platformOS, platformArch)
}

// dockerManifest makes the manifest that an image of docker save would have with
// its layers as they are, so that it has a digest.
func dockerManifest(config descriptor, layers []descriptor) ([]byte, error) {
	raw, err := json.Marshal(manifest{SchemaVersion: 2, MediaType: typeDockerManifest, Config: &config, Layers: layers})
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return raw, nil
}

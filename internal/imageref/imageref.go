// Package imageref gives the one form in which the names of images are kept: "nginx"
// is "docker.io/library/nginx:latest". It resolves nothing.
package imageref

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/blixard/blixard/internal/problem"
)

// dockerHub is what go-containerregistry calls the registry of names without one, and
// dockerShort what people do.
const (
	dockerHub   = "index.docker.io"
	dockerShort = "docker.io"
)

// nameBytesMax as in the API.
const nameBytesMax = 512

// Normalize gives the canonical form of a name as people write it: with registry, and
// tag or digest. It fails with a problem of kind Invalid and code image.name.
func Normalize(s string) (string, error) {
	if len(s) > nameBytesMax {
		return "", problem.New(problem.Invalid, "image.name", "the name of the image has %d bytes, at most %d are possible", len(s), nameBytesMax)
	}
	ref, err := name.ParseReference(s, name.WithDefaultRegistry(dockerHub), name.WithDefaultTag("latest"))
	if err != nil {
		return "", problem.New(problem.Invalid, "image.name", "%q is no name of an image", s).WithCause(err).
			WithHint("write it as REGISTRY/REPOSITORY:TAG, such as docker.io/library/nginx:1.27")
	}
	full := ref.Name()
	if rest, ok := strings.CutPrefix(full, dockerHub+"/"); ok {
		return dockerShort + "/" + rest, nil
	}
	return full, nil
}

package imageref

import (
	"regexp"
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

// What go-containerregistry takes is wider than what registries have (OCI
// distribution spec 1.1, "Pulling manifests"), and these become paths of URLs.
var (
	registryPattern   = regexp.MustCompile(`^(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?)(:[0-9]{1,5})?$`)
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
)

// nameBytesMax as in the API.
const nameBytesMax = 512

// Normalize gives the canonical form of a name as people write it: with registry, and
// tag or digest. It fails with a problem of kind Invalid and code image.name.
func Normalize(s string) (string, error) {
	if len(s) > nameBytesMax {
		return "", problem.New(problem.Invalid, "image.name", "the name of the image has %d bytes, at most %d are possible", len(s), nameBytesMax)
	}
	if strings.Contains(s, "://") {
		return "", problem.New(problem.Invalid, "image.name", "%q is an address, and no name of an image", s).
			WithHint("leave out what is before the registry: REGISTRY/REPOSITORY:TAG")
	}
	ref, err := name.ParseReference(s, name.WithDefaultRegistry(dockerHub), name.WithDefaultTag("latest"))
	if err != nil {
		return "", problem.New(problem.Invalid, "image.name", "%q is no name of an image", s).WithCause(err).
			WithHint("write it as REGISTRY/REPOSITORY:TAG, such as docker.io/library/nginx:1.27")
	}
	if !registryPattern.MatchString(ref.Context().RegistryStr()) || !repositoryPattern.MatchString(ref.Context().RepositoryStr()) {
		return "", problem.New(problem.Invalid, "image.name", "%q is no name of an image", s).
			WithHint("write it as REGISTRY/REPOSITORY:TAG, such as docker.io/library/nginx:1.27")
	}
	full := ref.Name()
	if rest, ok := strings.CutPrefix(full, dockerHub+"/"); ok {
		return dockerShort + "/" + rest, nil
	}
	return full, nil
}

// AtDigest gives the name of the same repository with a digest for its tag.
func AtDigest(canonical, digest string) string {
	repository, _, _ := strings.Cut(canonical, "@")
	if at := strings.LastIndexByte(repository, ':'); at > strings.LastIndexByte(repository, '/') {
		repository = repository[:at]
	}
	return repository + "@" + digest
}

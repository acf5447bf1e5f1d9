package image

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/blixard/blixard/internal/problem"
)

// dockerHub is what people write for the registry that is asked when none is named;
// libraryHub is what programs call it.
const (
	dockerHub  = "docker.io"
	libraryHub = name.DefaultRegistry
)

// parseReference reads the name of an image in a registry.
func parseReference(text string) (name.Reference, error) {
	if len(text) > referenceMax {
		return nil, badName(text, "it is too long")
	}
	ref, err := name.ParseReference(text)
	if err != nil {
		return nil, badName(text, "it is no reference").WithCause(err)
	}
	if !hostPattern.MatchString(ref.Context().RegistryStr()) || !repositoryPattern.MatchString(ref.Context().RepositoryStr()) {
		return nil, badName(text, "it is no reference")
	}
	return ref, nil
}

// What the library leaves open: dots that lead to another repository, for one.
var (
	hostPattern       = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
)

func badName(text, why string) *problem.Error {
	return problem.New(problem.Invalid, "image.name", "the name of an image %q: %s", clip(text), why).
		WithHint("write it as [HOST[:PORT]/]REPOSITORY[:TAG], or with @sha256:... instead of the tag")
}

// fullName gives the whole name: docker.io/library/nginx:latest for nginx.
func fullName(ref name.Reference) string {
	separator := ":"
	if _, ok := ref.(name.Digest); ok {
		separator = "@"
	}
	return hubName(ref.Context().RegistryStr()) + "/" + ref.Context().RepositoryStr() + separator + ref.Identifier()
}

func hubName(registry string) string {
	if registry == libraryHub {
		return dockerHub
	}
	return registry
}

// checkName holds the name of an imported image to what a reference or a plain name
// may be.
func checkName(text string) error {
	if text == "" {
		return badName(text, "it is empty")
	}
	_, err := parseReference(text)
	return err
}

// credentials finds those of a registry in a file of docker's.
func credentials(file, registry string) (authn.Authenticator, error) {
	if file == "" {
		return authn.Anonymous, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, badCredentials(file, err)
	}
	defer f.Close()
	const fileBytesMax = 1 << 20
	raw, err := io.ReadAll(io.LimitReader(f, fileBytesMax))
	if err != nil {
		return nil, badCredentials(file, err)
	}
	a, err := parseCredentials(raw, registry)
	if err != nil {
		return nil, badCredentials(file, err)
	}
	return a, nil
}

func badCredentials(file string, err error) *problem.Error {
	return problem.New(problem.Invalid, "image.credentials", "the credentials in %s cannot be read", file).WithCause(err).
		WithHint("write them with docker login, or mend that file")
}

// parseCredentials reads what docker login writes: "auths" by registries, of which
// the hub has names of its own.
func parseCredentials(raw []byte, registry string) (authn.Authenticator, error) {
	var file struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			Username      string `json:"username"`
			Password      string `json:"password"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	for key, a := range file.Auths {
		host := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
		host, _, _ = strings.Cut(host, "/")
		if hubName(host) != hubName(registry) {
			continue
		}
		c := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if a.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(a.Auth)
			if err != nil {
				return nil, err
			}
			c.Username, c.Password, _ = strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
		}
		return authn.FromConfig(c), nil
	}
	return authn.Anonymous, nil
}

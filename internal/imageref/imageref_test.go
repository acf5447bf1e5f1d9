package imageref

import (
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"nginx":                            "docker.io/library/nginx:latest",
		"nginx:1.27":                       "docker.io/library/nginx:1.27",
		"docker.io/library/nginx:1.27":     "docker.io/library/nginx:1.27",
		"team/app":                         "docker.io/team/app:latest",
		"127.0.0.1:5000/app":               "127.0.0.1:5000/app:latest",
		"registry.example.com/a/b/c:v1":    "registry.example.com/a/b/c:v1",
		"nginx@" + digest:                  "docker.io/library/nginx@" + digest,
		"localhost:5000/team/app:tag-1.0_": "localhost:5000/team/app:tag-1.0_",
	} {
		got, err := Normalize(in)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
			continue
		}
		if again, err := Normalize(got); err != nil || again != got {
			t.Errorf("%s is not kept: %q, %v", got, again, err)
		}
	}
	for _, in := range []string{"", "NO", "a//b", "../x", "a b", "nginx:", "x@sha256:zz", "a\nb", strings.Repeat("a", 600)} {
		if got, err := Normalize(in); !problem.HasCode(err, "image.name") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestAtDigest(t *testing.T) {
	for in, want := range map[string]string{
		"docker.io/library/nginx:1.27":       "docker.io/library/nginx@" + digest,
		"127.0.0.1:5000/app:latest":          "127.0.0.1:5000/app@" + digest,
		"127.0.0.1:5000/app":                 "127.0.0.1:5000/app@" + digest,
		"docker.io/library/nginx@sha256:abc": "docker.io/library/nginx@" + digest,
	} {
		if got := AtDigest(in, digest); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add("nginx:1.27")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Normalize(s)
		if err != nil {
			return
		}
		if again, err := Normalize(got); err != nil || again != got {
			t.Fatalf("%q becomes %q, and that %q, %v", s, got, again, err)
		}
	})
}

package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/blixard/blixard/internal/problem"
)

// tarOfDir packs a directory.
func tarOfDir(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ociArchive is an OCI layout of an index, as tar.
func ociArchive(t testing.TB, adds ...mutate.IndexAddendum) []byte {
	t.Helper()
	dir := t.TempDir()
	if _, err := layout.Write(dir, mutate.AppendManifests(empty.Index, adds...)); err != nil {
		t.Fatal(err)
	}
	return tarOfDir(t, dir)
}

func named(img mutate.Appendable, key, value string) mutate.IndexAddendum {
	return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Annotations: map[string]string{key: value}}}
}

// dockerArchive is what docker save wrote.
func dockerArchive(t testing.TB, images map[string]v1.Image) []byte {
	t.Helper()
	refs := map[name.Reference]v1.Image{}
	for n, img := range images {
		ref, err := name.NewTag(n)
		if err != nil {
			t.Fatal(err)
		}
		refs[ref] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiRefWrite(refs, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImport(t *testing.T) {
	one, two := imageOf(t, nil, layerTar(t, file("f", "one")), layerTar(t)), imageOf(t, nil, layerTar(t, file("f", "two")))
	arm := imageOf(t, func(c *v1.ConfigFile) { c.Architecture = "arm64" }, layerTar(t, file("f", "arm")))
	platform := func(img mutate.Appendable, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	oneDigest, err := one.Digest()
	if err != nil {
		t.Fatal(err)
	}
	both := mutate.AppendManifests(empty.Index, platform(arm, "arm64"), platform(one, "amd64"))
	legacy := dockerArchive(t, map[string]v1.Image{"old/one:1": one})
	for name, c := range map[string]struct {
		raw, as string
		want    string // NAME=what f says
	}{
		"layout":                 {string(ociArchive(t, mutate.IndexAddendum{Add: one})), "mine", "mine=one"},
		"layout, gzip":           {string(gzipped(t, ociArchive(t, mutate.IndexAddendum{Add: one}))), "mine", "mine=one"},
		"layout with a name":     {string(ociArchive(t, named(one, annotationRef, "quay.io/a/b:1"))), "", "quay.io/a/b:1=one"},
		"layout of containerd":   {string(ociArchive(t, named(one, annotationImage, "docker.io/library/x:2"))), "", "docker.io/library/x:2=one"},
		"layout, renamed":        {string(ociArchive(t, named(one, annotationImage, "docker.io/library/x:2"))), "registry.example.com/y:3", "registry.example.com/y:3=one"},
		"layout, two names":      {string(ociArchive(t, named(one, annotationRef, "a/b:1"), named(one, annotationRef, "a/b:2"))), "", "docker.io/a/b:1=one docker.io/a/b:2=one"},
		"layout of two":          {string(ociArchive(t, named(one, annotationRef, "a/b:1"), named(two, annotationRef, "a/b:2"))), "", "docker.io/a/b:1=one docker.io/a/b:2=two"},
		"index within the index": {string(ociArchive(t, named(both, annotationRef, "a/b:1"))), "", "docker.io/a/b:1=one"},
		"platforms in the index": {string(ociArchive(t, platform(arm, "arm64"), platform(one, "amd64"))), "mine", "mine=one"},
		"docker":                 {string(legacy), "", "docker.io/old/one:1=one"},
		"docker, zipped, named":  {string(gzipped(t, legacy)), "mine", "mine=one"},
		"docker of two":          {string(dockerArchive(t, map[string]v1.Image{"x:1": one, "x:2": two})), "", "docker.io/library/x:1=one docker.io/library/x:2=two"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, nil)
			got, err := s.Import(t.Context(), strings.NewReader(c.raw), c.as)
			if err != nil {
				t.Fatal(err)
			}
			var words []string
			for _, img := range got {
				if img.GetSource() != "archive" {
					t.Errorf("%v", img)
				}
				_, path, err := s.Get(img.GetDigest())
				if err != nil {
					t.Fatal(err)
				}
				words = append(words, img.GetName()+strings.TrimPrefix(tell(t, path), "f"))
			}
			slices.Sort(words)
			if strings.Join(words, " ") != c.want {
				t.Errorf("%v", words)
			}
			if strings.HasPrefix(name, "layout") && c.want == "mine=one" && got[0].GetDigest() != oneDigest.String() {
				t.Errorf("digest %s", got[0].GetDigest())
			}
			if l := left(t, s); len(l) != 0 {
				t.Errorf("left %v", l)
			}
		})
	}
	// By whatever way it came, the digest says what an image is: a second import of
	// the same makes nothing new.
	s := newStore(t, nil)
	for range 2 {
		if _, err := s.Import(t.Context(), bytes.NewReader(legacy), ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.List()); n != 1 {
		t.Errorf("%d images", n)
	}
}

// Old docker wrote a layer that occurs twice once, and a link to it.
func TestImportLinkedLayers(t *testing.T) {
	raw := layerTar(t, file("f", "x"))
	config, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{sha256Of(raw), sha256Of(raw)}}})
	if err != nil {
		t.Fatal(err)
	}
	archive := func(link, list string) []byte {
		return layerTar(t, file("c.json", string(config)), file("a/layer.tar", string(raw)), symlink("b/layer.tar", link), hardlink("h", "a/layer.tar"),
			file("manifest.json", `[{"Config":"c.json","RepoTags":["x:1"],"Layers":`+list+`}]`))
	}
	for _, list := range []string{`["a/layer.tar","b/layer.tar"]`, `["a/layer.tar","h"]`} {
		if _, err := newStore(t, nil).Import(t.Context(), bytes.NewReader(archive("../a/layer.tar", list)), ""); err != nil {
			t.Error(err)
		}
	}
	for _, link := range []string{"../../../etc/passwd", "/etc/passwd", "layer.tar", "../none"} {
		if _, err := newStore(t, nil).Import(t.Context(), bytes.NewReader(archive(link, `["a/layer.tar","b/layer.tar"]`)), ""); !problem.HasCode(err, "image.archive") {
			t.Errorf("%s: %v", link, err)
		}
	}
}

func TestImportRefused(t *testing.T) {
	one, two := imageOf(t, nil, layerTar(t, file("f", "one"))), imageOf(t, nil, layerTar(t, file("f", "two")))
	arm := imageOf(t, func(c *v1.ConfigFile) { c.Architecture = "arm64" }, layerTar(t, file("f", "arm")))
	good := ociArchive(t, mutate.IndexAddendum{Add: one})
	// entry changes or drops the files of an archive.
	entry := func(raw []byte, f func(h *tar.Header, body string) string) []byte {
		var out []ent
		r := tar.NewReader(bytes.NewReader(raw))
		for h, err := r.Next(); err == nil; h, err = r.Next() {
			var b bytes.Buffer
			if _, err := b.ReadFrom(r); err != nil {
				t.Fatal(err)
			}
			if body := f(h, b.String()); body != "drop" {
				out = append(out, ent{*h, body})
			}
		}
		return layerTar(t, out...)
	}
	layerDigest, _ := blobOf(t, one, 0)
	hexDigest := strings.TrimPrefix(layerDigest, "sha256:")
	many := make([]ent, archiveEntriesMax+1)
	for n := range many {
		many[n] = dir("d")
	}
	docker := dockerArchive(t, map[string]v1.Image{"x:1": one})
	for name, c := range map[string]struct {
		raw  []byte
		as   string
		code string
	}{
		"nothing":          {nil, "x", "image.archive"},
		"text":             {[]byte(strings.Repeat("text", 1000)), "x", "image.archive"},
		"no image":         {layerTar(t, file("f", "x")), "x", "image.archive"},
		"dots":             {layerTar(t, file("../index.json", "{}")), "x", "image.archive"},
		"absolute":         {layerTar(t, file("/index.json", "{}")), "x", "image.archive"},
		"a name twice":     {layerTar(t, file("index.json", "{}"), file("./index.json", "{}")), "x", "image.archive"},
		"many files":       {layerTar(t, many...), "x", "image.archive"},
		"cut off":          {good[:len(good)/2], "x", "image.archive"},
		"bad gzip":         {append([]byte{0x1f, 0x8b, 8}, random(1000)...), "x", "image.archive"},
		"index is no JSON": {layerTar(t, file("index.json", "x")), "x", "image.manifest"},
		"index is an image": {entry(good, func(h *tar.Header, b string) string {
			return map[bool]string{true: `{"schemaVersion":2,"config":{"digest":"` + layerDigest + `"}}`, false: b}[h.Name == "index.json"]
		}), "x", "image.archive"},
		"large index": {layerTar(t, file("index.json", strings.Repeat(" ", manifestBytesMax+1))), "x", "image.archive"},
		"empty index": {layerTar(t, file("index.json", `{"schemaVersion":2,"mediaType":"`+typeOCIIndex+`"}`)), "x", "image.archive"},
		"layer is missing": {entry(good, func(h *tar.Header, b string) string {
			return map[bool]string{true: "drop", false: b}[strings.Contains(h.Name, hexDigest)]
		}), "x", "image.archive"},
		"layer is another": {entry(good, func(h *tar.Header, b string) string {
			return map[bool]string{true: "other", false: b}[strings.Contains(h.Name, hexDigest)]
		}), "x", "image.digest_mismatch"},
		"no name":           {good, "", "image.name"},
		"odd name":          {good, "a b", "image.name"},
		"tag for a name":    {ociArchive(t, named(one, annotationRef, "latest")), "", "image.name"},
		"two, one name":     {ociArchive(t, mutate.IndexAddendum{Add: one}, mutate.IndexAddendum{Add: two}), "x", "image.archive"},
		"for others":        {ociArchive(t, mutate.IndexAddendum{Add: arm}), "x", "image.architecture"},
		"for others, index": {ociArchive(t, mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}}), "x", "image.architecture"},
		"docker, no JSON":   {layerTar(t, file("manifest.json", "x")), "x", "image.archive"},
		"docker, none":      {layerTar(t, file("manifest.json", "[]")), "x", "image.archive"},
		"docker, no config": {layerTar(t, file("manifest.json", `[{"Config":"c"}]`)), "x", "image.archive"},
		"docker, no layers": {layerTar(t, file("c", `{"os":"linux","architecture":"amd64"}`), file("manifest.json", `[{"Config":"c","Layers":["x"]}]`)), "x", "image.config"},
		"docker, bad tag":   {entry(docker, func(h *tar.Header, b string) string { return strings.Replace(b, `"x:1"`, `"X Y"`, 1) }), "", "image.name"},
		"docker, other bytes": {entry(docker, func(h *tar.Header, b string) string {
			return map[bool]string{true: string(gzipped(t, layerTar(t, file("f", "evil")))), false: b}[strings.HasSuffix(h.Name, ".tar.gz")]
		}), "", "image.digest_mismatch"},
	} {
		s := newStore(t, nil)
		_, err := s.Import(t.Context(), bytes.NewReader(c.raw), c.as)
		if !problem.HasCode(err, c.code) || problem.From(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
		if l := left(t, s); len(l) != 0 || len(s.List()) != 0 || s.budget.used != 0 {
			t.Errorf("%s: left %v %v %d", name, l, s.List(), s.budget.used)
		}
	}
	s := newStore(t, func(c *Config) { c.BudgetBytes = 100 })
	if _, err := s.Import(t.Context(), bytes.NewReader(good), "x"); !problem.HasCode(err, "image.budget") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join("/", "index.json")); !os.IsNotExist(err) {
		t.Error(err)
	}
}

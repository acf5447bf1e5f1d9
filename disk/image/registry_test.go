package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/google/go-containerregistry/pkg/name"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// blobOf gives the compressed bytes of a layer of an image.
func blobOf(t testing.TB, img v1.Image, n int) (digest string, raw []byte) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[n].Digest()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[n].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return d.String(), b.Bytes()
}

// sample is an image of one layer that does not shrink.
func sample(t testing.TB, size int) v1.Image {
	return imageOf(t, nil, layerTar(t, file("f", random(size))))
}

// ranged answers a request for a blob with the bytes from where it asks on.
func ranged(w http.ResponseWriter, r *http.Request, raw []byte, short int) {
	at := 0
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		from, _, _ = strings.Cut(from, "-")
		at, _ = strconv.Atoi(from)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(raw)-1, len(raw)))
		w.Header().Set("Content-Length", strconv.Itoa(len(raw)-at))
		w.WriteHeader(http.StatusPartialContent)
	} else {
		w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	}
	end := len(raw)
	if short > 0 {
		end = min(end, at+short)
	}
	_, _ = w.Write(raw[at:end]) // a short answer breaks the connection
}

// onBlob makes a fault of the requests for one blob.
func onBlob(digest string, f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+digest) {
			return false
		}
		f(w, r)
		return true
	}
}

// What a registry may do, and what becomes of a pull.
func TestRegistryFaults(t *testing.T) {
	img := sample(t, 300_000)
	layerDigest, raw := blobOf(t, img, 0)
	other := bytes.Clone(raw)
	for i := len(other) / 2; i < len(other); i++ {
		other[i] ^= 0x55
	}
	secondHub := newHub(t)
	times := func(n int, bad, good http.HandlerFunc) http.HandlerFunc {
		var mu sync.Mutex
		return func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			n--
			left := n
			mu.Unlock()
			if left >= 0 {
				bad(w, r)
			} else {
				good(w, r)
			}
		}
	}
	good := func(w http.ResponseWriter, r *http.Request) { ranged(w, r, raw, 0) }
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	to := func(url string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.ReplaceAll(url, "SELF", r.URL.Path), http.StatusTemporaryRedirect)
		}
	}
	for name, c := range map[string]struct {
		blob http.HandlerFunc
		code string
	}{
		"as it should be":   {good, ""},
		"500 twice":         {times(2, status(500), good), ""},
		"500 always":        {status(500), "image.registry_unreachable"},
		"404":               {status(404), "image.not_found"},
		"403":               {status(403), "image.unauthorized"},
		"429":               {status(429), "image.registry_unreachable"},
		"418":               {status(418), "image.registry_unreachable"},
		"breaks off thrice": {times(3, func(w http.ResponseWriter, r *http.Request) { ranged(w, r, raw, 70_000) }, good), ""},
		"breaks off always": {func(w http.ResponseWriter, r *http.Request) { ranged(w, r, raw, 1) }, "image.registry_unreachable"},
		"sends nothing":     {func(http.ResponseWriter, *http.Request) {}, "image.registry_unreachable"},
		"other bytes":       {func(w http.ResponseWriter, r *http.Request) { ranged(w, r, other, 0) }, "image.digest_mismatch"},
		"more bytes":        {func(w http.ResponseWriter, r *http.Request) { ranged(w, r, append(bytes.Clone(raw), "more"...), 0) }, ""},
		"cannot do ranges":  {times(1, func(w http.ResponseWriter, r *http.Request) { ranged(w, r, raw, 70_000) }, times(1, status(416), good)), ""},
		"ignores the range": {times(1, func(w http.ResponseWriter, r *http.Request) { ranged(w, r, raw, 70_000) }, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(raw) }), ""},
		"another range": {times(1, func(w http.ResponseWriter, r *http.Request) { ranged(w, r, raw, 70_000) }, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/10")
			w.WriteHeader(206)
		}), "image.registry_unreachable"},
		"redirect in a circle":     {to("SELF"), "image.registry_unreachable"},
		"redirect to metadata":     {to("http://169.254.169.254/latest/meta-data"), "image.address"},
		"redirect to metadata tls": {to("https://169.254.169.254/latest/meta-data"), "image.address"},
		"redirect to private":      {to("https://10.1.2.3/x"), "image.address"},
		"redirect to another port": {to(secondHub.URL + "/x"), "image.address"},
		"redirect to plain http":   {to("http://example.com/x"), "image.address"},
		"redirect to a file":       {to("file:///etc/passwd"), "image.address"},
		"redirect to itself once":  {times(1, to("SELF"), good), ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t)
			ref, digest := h.push(t, "a/b:c", img)
			h.setFault(onBlob(layerDigest, c.blob))
			s := newStore(t, nil)
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			if c.code == "" != (err == nil) || c.code != "" && !problem.HasCode(err, c.code) {
				t.Fatalf("%v", err)
			}
			if err == nil {
				return
			}
			if !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), "layer 1 of 1 ("+layerDigest[:19]) || problem.From(err).Hint == "" {
				t.Errorf("%v", problem.From(err))
			}
			if _, _, err := s.Get(digest); !problem.HasCode(err, "image.not_found") {
				t.Errorf("it is there: %v", err)
			}
			h.setFault(nil)
			if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	if secondHub.count("/x") != 0 {
		t.Error("another port of this host was asked")
	}
}

// What a registry says instead of a manifest.
func TestManifestFaults(t *testing.T) {
	img := sample(t, 1000)
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	change := func(raw []byte, from, to string) []byte {
		out := bytes.Replace(raw, []byte(from), []byte(to), 1)
		if bytes.Equal(out, raw) {
			t.Fatalf("%s is not in %s", from, raw)
		}
		return out
	}
	manifestIs := func(raw []byte, header ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", typeOCIManifest)
			for n := 0; n < len(header); n += 2 {
				w.Header().Set(header[n], header[n+1])
			}
			_, _ = w.Write(raw)
			return true
		}
	}
	configDigest := sha256Of(config)
	for name, c := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		code  string
	}{
		"unreachable":       {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(502); return true }, "image.registry_unreachable"},
		"not there":         {func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(404); return true }, "image.not_found"},
		"not allowed":       {func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(401); return true }, "image.unauthorized"},
		"not JSON":          {manifestIs([]byte("<html>")), "image.manifest"},
		"schema 1":          {manifestIs([]byte(`{"schemaVersion":1}`)), "image.manifest"},
		"nothing":           {manifestIs([]byte(`{"schemaVersion":2}`)), "image.manifest"},
		"two things":        {manifestIs(change(m, `"layers"`, `"manifests":[{"digest":"`+configDigest+`"}],"layers"`)), "image.manifest"},
		"two types":         {manifestIs(m, "Content-Type", typeDockerManifest), "image.manifest"},
		"odd type":          {manifestIs(change(m, typeOCIManifest, "application/vnd.odd"), "Content-Type", "text/plain"), "image.manifest"},
		"encrypted layer":   {manifestIs(change(m, "tar.gzip", "tar.gzip+encrypted")), "image.manifest"},
		"odd digest":        {manifestIs(change(m, configDigest, "md5:00")), "image.manifest"},
		"negative size":     {manifestIs(change(m, `"size":`, `"size":-`)), "image.manifest"},
		"huge config":       {manifestIs(change(m, `"size":`, `"size":9`+strings.Repeat("0", 9))), "image.too_large"},
		"large":             {manifestIs(append(m[:len(m):len(m)], bytes.Repeat([]byte(" "), manifestBytesMax)...)), "image.too_large"},
		"lies of digest":    {manifestIs(m, "Docker-Content-Digest", configDigest), "image.digest_mismatch"},
		"config is another": {onBlob(configDigest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }), "image.digest_mismatch"},
		"endless": {func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = w.Write(make([]byte, 1<<20))
			return r.URL.Path != "/v2/"
		}, "image.manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t)
			ref, _ := h.push(t, "a/b:c", img)
			h.setFault(c.fault)
			s := newStore(t, nil)
			if _, err := s.Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, c.code) {
				t.Errorf("%v", err)
			}
			if c.code == "image.registry_unreachable" || c.code == "image.not_found" || c.code == "image.unauthorized" {
				return
			}
			// Asked by its digest, other bytes are none of it.
			h.setFault(manifestIs([]byte(`{"schemaVersion":2}`)))
			if _, err := s.Pull(t.Context(), h.host+"/a/b@"+sha256Of(m), PullOptions{}); !problem.HasCode(err, "image.digest_mismatch") {
				t.Errorf("by digest: %v", err)
			}
		})
	}
}

// A byte that flips anywhere in a layer is found, and nothing of it is used.
func TestFlippedByte(t *testing.T) {
	img := sample(t, 20_000)
	layerDigest, raw := blobOf(t, img, 0)
	h := newHub(t)
	ref, digest := h.push(t, "a/b:c", img)
	s := newStore(t, nil)
	for at := 0; at < len(raw); at += 1 + len(raw)/40 {
		bad := bytes.Clone(raw)
		bad[at] ^= 1
		h.setFault(onBlob(layerDigest, func(w http.ResponseWriter, r *http.Request) { ranged(w, r, bad, 0) }))
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.digest_mismatch") {
			t.Fatalf("byte %d: %v", at, err)
		}
		if _, _, err := s.Get(digest); err == nil {
			t.Fatalf("byte %d: it is used", at)
		}
	}
}

// The digests of the layers before compression are held as well.
func TestWrongDiffID(t *testing.T) {
	h := newHub(t)
	img := imageOf(t, func(c *v1.ConfigFile) { c.RootFS.DiffIDs[1].Hex = strings.Repeat("0", 64) },
		layerTar(t, file("a", "1")), layerTar(t, file("b", "1")))
	ref, digest := h.push(t, "a/b:c", img)
	s := newStore(t, nil)
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	if !problem.HasCode(err, "image.digest_mismatch") || !strings.Contains(err.Error(), "layer 2 of 2") {
		t.Fatal(err)
	}
	if _, _, err := s.Get(digest); err == nil {
		t.Fatal("it is used")
	}
}

// A download that was broken off goes on where it ended, in another process as well;
// and when what was there is not right, it begins anew.
func TestPullGoesOn(t *testing.T) {
	img := sample(t, 3<<20)
	layerDigest, raw := blobOf(t, img, 0)
	h := newHub(t)
	ref, _ := h.push(t, "a/b:c", img)
	ctx, cancel := context.WithCancel(t.Context())
	h.setFault(onBlob(layerDigest, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(raw[:2<<20])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	s := newStore(t, nil)
	_, err := s.Pull(ctx, ref, PullOptions{Progress: func(r *blixardv1.PullImageResponse) {
		if r.GetPhase() == phaseDownloading && r.GetDoneBytes() >= 1<<20 {
			cancel()
		}
	}})
	if err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Fatal(err)
	}
	part := s.path(blobsDir, strings.TrimPrefix(layerDigest, "sha256:")+partSuffix)
	st, err := os.Stat(part)
	if err != nil || st.Size() < 1<<20 {
		t.Fatalf("%v, %v", st, err)
	}
	h.setFault(onBlob(layerDigest, func(w http.ResponseWriter, r *http.Request) { ranged(w, r, raw, 0) }))
	s = reopen(t, s.c)
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if h.count(fmt.Sprintf("bytes=%d-", st.Size())) != 1 {
		t.Error("it did not go on where it ended")
	}

	// The kept part is damaged: one more whole download mends it.
	s = newStore(t, nil)
	part = s.path(blobsDir, filepath.Base(part))
	if err := os.WriteFile(part, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.count(layerDigest)
	if _, err := reopen(t, s.c).Pull(t.Context(), ref, PullOptions{}); err != nil || h.count(layerDigest) != before+2 {
		t.Errorf("%v after %d downloads", err, h.count(layerDigest)-before)
	}
	// Longer than the whole, or whole but wrong.
	for _, name := range []string{filepath.Base(part), strings.TrimSuffix(filepath.Base(part), partSuffix)} {
		s = newStore(t, nil)
		if err := os.WriteFile(s.path(blobsDir, name), bytes.Repeat([]byte("x"), len(raw)+1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := reopen(t, s.c).Pull(t.Context(), ref, PullOptions{}); err != nil {
			t.Error(err)
		}
	}
}

// A registry that sends nothing any more is left after a while.
func TestStalledRegistry(t *testing.T) {
	img := sample(t, 300_000)
	layerDigest, raw := blobOf(t, img, 0)
	h := newHub(t)
	ref, _ := h.push(t, "a/b:c", img)
	n := 0
	h.setFault(onBlob(layerDigest, func(w http.ResponseWriter, r *http.Request) {
		if n++; n > 2 {
			ranged(w, r, raw, 0)
			return
		}
		_, _ = w.Write(raw[:1000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	s := newStore(t, nil)
	s.stall = 50 * time.Millisecond
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
}

// An index leads to the image for this architecture, and says what there is if none.
func TestIndex(t *testing.T) {
	h := newHub(t)
	mine, arm := sample(t, 100), imageOf(t, func(c *v1.ConfigFile) { c.Architecture = "arm64" }, layerTar(t, file("f", "arm")))
	add := func(img v1.Image, os, arch, variant string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch, Variant: variant}}}
	}
	push := func(tag string, adds ...mutate.IndexAddendum) string {
		t.Helper()
		r, err := name.NewTag(h.host + "/multi:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		defer transport.CloseIdleConnections()
		if err := remote.WriteIndex(r, mutate.AppendManifests(empty.Index, adds...), remote.WithTransport(transport)); err != nil {
			t.Fatal(err)
		}
		return r.String()
	}
	s := newStore(t, nil)
	want, err := mine.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for tag, adds := range map[string][]mutate.IndexAddendum{
		"both":    {add(arm, "linux", "arm64", "v8"), add(mine, "linux", "amd64", ""), add(arm, "unknown", "unknown", "")},
		"variant": {add(arm, "linux", "amd64", "v4"), add(mine, "linux", "amd64", "v2")},
		"plain":   {{Add: mine}},
	} {
		img, err := s.Pull(t.Context(), push(tag, adds...), PullOptions{})
		if err != nil || img.GetDigest() != want.String() {
			t.Errorf("%s: %v, %v", tag, img, err)
		}
	}
	_, err = s.Pull(t.Context(), push("none", add(arm, "linux", "arm64", "v8"), add(arm, "windows", "amd64", "")), PullOptions{})
	if !problem.HasCode(err, "image.architecture") || !strings.Contains(err.Error(), "it has linux/arm64/v8, windows/amd64") {
		t.Error(err)
	}
	ref, _ := h.push(t, "arm:1", arm)
	if _, err = s.Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.architecture") || !strings.Contains(err.Error(), "it has linux/arm64") {
		t.Error(err)
	}
	nested := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: mutate.AppendManifests(empty.Index, add(mine, "linux", "amd64", ""))})
	raw, err := nested.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parseManifest(raw, ""); err != nil || !m.isIndex() {
		t.Fatal(err)
	} else if _, err := m.choose(); !problem.HasCode(err, "image.architecture") {
		t.Error(err)
	}
}

// Credentials: those of the call, or of docker's file; a token where the registry
// wants one.
func TestCredentials(t *testing.T) {
	h := newHub(t)
	ref, _ := h.push(t, "private/a:1", sample(t, 100))
	basic := func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user == "ann" && pass == "secret:1" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	tokens := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if user, pass, _ := r.BasicAuth(); user == "ann" && pass == "secret:1" && r.URL.Query().Get("scope") == "repository:private/a:pull" {
				_, _ = fmt.Fprint(w, `{"token":"let-me-in"}`)
			} else {
				w.WriteHeader(http.StatusUnauthorized)
			}
			return true
		}
		if r.Header.Get("Authorization") == "Bearer let-me-in" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+h.URL+`/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	config := filepath.Join(t.TempDir(), "config.json")
	auths := map[string]any{"auths": map[string]any{"https://" + h.host + "/v1/": map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("ann:secret:1"))}}}
	raw, err := json.Marshal(auths)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{"basic": basic, "bearer": tokens} {
		h.setFault(fault)
		if _, err := newStore(t, nil).Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.unauthorized") {
			t.Errorf("%s, nobody: %v", what, err)
		}
		if _, err := newStore(t, nil).Pull(t.Context(), ref, PullOptions{Username: "ann", Password: "wrong"}); !problem.HasCode(err, "image.unauthorized") {
			t.Errorf("%s, wrong: %v", what, err)
		} else if strings.Contains(err.Error(), "wrong") {
			t.Errorf("the error tells the password: %v", err)
		}
		if _, err := newStore(t, nil).Pull(t.Context(), ref, PullOptions{Username: "ann", Password: "secret:1"}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := newStore(t, func(c *Config) { c.DockerConfig = config }).Pull(t.Context(), ref, PullOptions{}); err != nil {
			t.Errorf("%s, by file: %v", what, err)
		}
	}
	for _, text := range []string{"no JSON", `{"auths":{"` + h.host + `":{"auth":"%"}}}`} {
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := newStore(t, func(c *Config) { c.DockerConfig = config }).Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.credentials") {
			t.Error(err)
		}
	}
	if _, err := newStore(t, func(c *Config) { c.DockerConfig = config + "x" }).Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.credentials") {
		t.Error(err)
	}
}

// Mirrors come first, and what they lack or spoil comes from the registry. They
// never see the credentials of the call.
func TestMirrors(t *testing.T) {
	img := sample(t, 100_000)
	layerDigest, _ := blobOf(t, img, 0)
	origin, mirror, down := newHub(t), newHub(t), newHub(t)
	ref, _ := origin.push(t, "a/b:c", img)
	mirror.push(t, "a/b:c", img)
	down.Close()
	saw := ""
	mirror.setFault(func(_ http.ResponseWriter, r *http.Request) bool { saw += r.Header.Get("Authorization"); return false })
	mirrored := func(c *Config) { c.Mirrors = map[string][]string{origin.host: {down.host, mirror.host}} }
	before := origin.count("")
	if _, err := newStore(t, mirrored).Pull(t.Context(), ref, PullOptions{Username: "ann", Password: "secret"}); err != nil || origin.count("") != before {
		t.Errorf("%v, %d requests", err, origin.count("")-before)
	}
	if saw != "" {
		t.Errorf("the mirror saw %q", saw)
	}
	mirror.setFault(onBlob(layerDigest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 200_000)) }))
	if _, err := newStore(t, mirrored).Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
	mirror.Close()
	if _, err := newStore(t, mirrored).Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
	origin.Close()
	if _, err := newStore(t, mirrored).Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.registry_unreachable") || !strings.Contains(err.Error(), origin.host) {
		t.Error(err)
	}
	if _, err := newStore(t, func(c *Config) { c.Mirrors = map[string][]string{"docker.io": {"not a host/"}} }).Pull(t.Context(), "busybox", PullOptions{}); !problem.HasCode(err, "image.name") {
		t.Error(err)
	}
}

package image

import (
	"os"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

func TestPull(t *testing.T) {
	h := newHub(t)
	img := imageOf(t, func(c *v1.ConfigFile) {
		c.Config.Entrypoint, c.Config.Cmd = []string{"/bin/app"}, []string{"--serve"}
		c.Config.Env, c.Config.User, c.Config.WorkingDir = []string{"PATH=/bin", "EMPTY="}, "1000:1000", "/srv"
		c.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}}
		c.Config.Volumes = map[string]struct{}{"/data": {}}
		c.Config.Labels = map[string]string{"a": "b"}
		c.Config.StopSignal = "SIGRTMIN+3"
	}, layerTar(t, dir("bin"), file("bin/app", "one"), file("gone", "x")), layerTar(t, file("bin/app", "two"), file(".wh.gone", "")))
	ref, digest := h.push(t, "team/app:1", img)
	s := newStore(t, nil)
	var phases []string
	got, err := s.Pull(t.Context(), ref, PullOptions{Progress: func(r *blixardv1.PullImageResponse) {
		if n := len(phases); n == 0 || phases[n-1] != r.GetPhase() {
			phases = append(phases, r.GetPhase())
		}
		if (r.GetPhase() == phaseDone) != (r.GetImage() != nil) {
			t.Errorf("%v", r)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := &blixardv1.ImageConfig{
		Entrypoint: []string{"/bin/app"}, Command: []string{"--serve"}, Env: []string{"PATH=/bin", "EMPTY="}, User: "1000:1000",
		WorkingDir: "/srv", ExposedPorts: []string{"53/udp", "80/tcp"}, StopSignal: 37, Architecture: "amd64",
		Labels: map[string]string{"a": "b"}, Volumes: []string{"/data"},
	}
	if !proto.Equal(got.GetConfig(), want) {
		t.Errorf("config %v", got.GetConfig())
	}
	if got.GetName() != ref || got.GetDigest() != digest || got.GetSource() != "registry" || got.GetFsType() != "erofs" || got.GetCompressedBytes() == 0 {
		t.Errorf("%v", got)
	}
	if phases[0] != phaseResolving || !slices.Contains(phases, phaseDownloading) || !slices.Contains(phases, phaseBuilding) || phases[len(phases)-1] != phaseDone {
		t.Errorf("phases %v", phases)
	}
	if l := left(t, s); len(l) != 0 {
		t.Errorf("left %v", l)
	}
	again, path, err := s.Get(digest)
	if err != nil || !proto.Equal(again, got) {
		t.Fatalf("%v, %v", again, err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || sha256Of(raw) != got.GetDiskDigest() || uint64(len(raw)) != got.GetDiskBytes() {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	root := mounted(t, path)
	if b, err := os.ReadFile(root + "/bin/app"); err != nil || string(b) != "two" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Lstat(root + "/gone"); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
	for _, m := range []string{"dev", "proc", "sys", "run", "tmp"} {
		if st, err := os.Lstat(root + "/" + m); err != nil || !st.IsDir() {
			t.Errorf("%s: %v", m, err)
		}
	}

	// Another node makes the same bytes; the same node asks for no layer again, and
	// for nothing at all when it knows the digest.
	other, err := newStore(t, nil).Pull(t.Context(), ref, PullOptions{})
	if err != nil || other.GetDiskDigest() != got.GetDiskDigest() {
		t.Errorf("%v, %v", other, err)
	}
	layers := h.count("/blobs/")
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil || h.count("/blobs/") != layers+1 {
		t.Errorf("%v, %d requests for blobs", err, h.count("/blobs/")-layers)
	}
	h.Close()
	byDigest := h.host + "/team/app@" + digest
	if i, err := s.Pull(t.Context(), byDigest, PullOptions{}); err != nil || i.GetName() != byDigest {
		t.Errorf("%v, %v", i, err)
	}
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.registry_unreachable") {
		t.Errorf("%v", err)
	}
	if _, _, err := reopen(t, s.c).Get(digest); err != nil {
		t.Error(err)
	}
}

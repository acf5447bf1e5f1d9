package cli_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"
)

const (
	// busyboxPath is Debian's static busybox, which made images consist of.
	busyboxPath = "/bin/busybox"
	// refNameKey is the annotation of an image's name in an OCI layout.
	refNameKey = "org.opencontainers.image.ref.name"
)

// accounts of made images: root and app.
var accounts = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n",
	"etc/group":  "root:x:0:\napp:x:1000:\n",
	"etc/shells": "/bin/sh\n",
}

// rootTar is the root of a made image.
type rootTar struct {
	w *tar.Writer
	// has are the directories and files that are in it.
	has map[string]bool
}

func (r *rootTar) add(h *tar.Header, body []byte) error {
	if dir := path.Dir(h.Name); dir != "." && !r.has[dir] {
		if err := r.add(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil); err != nil {
			return err
		}
	}
	if r.has[h.Name] {
		return nil
	}
	r.has[h.Name] = true
	h.Size = int64(len(body))
	if err := r.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := r.w.Write(body)
	return err
}

// copyHost adds a file of this host under its own path.
func (r *rootTar) copyHost(from, to string) error {
	body, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	return r.add(&tar.Header{Name: strings.TrimPrefix(to, "/"), Mode: int64(st.Mode().Perm())}, body)
}

// program adds a program of this host with the libraries it needs.
func (r *rootTar) program(name string) error {
	if err := r.copyHost(name, name); err != nil {
		return err
	}
	out, err := exec.Command("ldd", name).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", name, err)
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			if err := r.copyHost(word, word); err != nil {
				return err
			}
		}
	}
	return nil
}

// busybox adds busybox under all its names.
func (r *rootTar) busybox() error {
	if err := r.copyHost(busyboxPath, busyboxPath); err != nil {
		return err
	}
	names, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(names)) {
		if err := r.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: busyboxPath, Mode: 0o777}, nil); err != nil {
			return err
		}
	}
	return nil
}

// imagePlan is what an image shall be made of.
type imagePlan struct {
	name, architecture string
	config             v1.Config
	files, programs    []string
	// bare has no shell, empty a further layer without a byte, flipped a bit in its
	// layer that its digest does not know.
	bare, empty, flipped bool
}

// parse reads the arguments KEY=VALUE of makeimage.
func (p *imagePlan) parse(args []string) error {
	c := &p.config
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "name":
			p.name = value
		case "arch":
			p.architecture = value
		case "entrypoint":
			c.Entrypoint = append(c.Entrypoint, value)
		case "cmd":
			c.Cmd = append(c.Cmd, value)
		case "env":
			c.Env = append(c.Env, value)
		case "user":
			c.User = value
		case "workdir":
			c.WorkingDir = value
		case "stopsignal":
			c.StopSignal = value
		case "file":
			p.files = append(p.files, value)
		case "program":
			p.programs = append(p.programs, value)
		case "bare":
			p.bare = true
		case "empty":
			p.empty = true
		case "flipped":
			p.flipped = true
		default:
			return fmt.Errorf("an image has no %s", key)
		}
	}
	return nil
}

// layer packs the root; from gives the path of a file of the script.
func (p *imagePlan) layer(from func(string) string) ([]byte, error) {
	var b bytes.Buffer
	r := &rootTar{w: tar.NewWriter(&b), has: map[string]bool{}}
	for _, file := range p.files {
		to, body, _ := strings.Cut(file, ":")
		if err := r.copyHost(from(body), to); err != nil {
			return nil, err
		}
	}
	for _, name := range p.programs {
		if err := r.program(name); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		if err := r.add(&tar.Header{Name: name, Mode: 0o644}, []byte(accounts[name])); err != nil {
			return nil, err
		}
	}
	if err := r.add(&tar.Header{Typeflag: tar.TypeDir, Name: "home/app", Mode: 0o755, Uid: 1000, Gid: 1000}, nil); err != nil {
		return nil, err
	}
	if !p.bare {
		if err := r.busybox(); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), r.w.Close()
}

// image makes the image.
func (p *imagePlan) image(from func(string) string) (v1.Image, error) {
	root, err := p.layer(from)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(root)), nil })
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{layer}
	if p.empty {
		layers = append(layers, static.NewLayer(nil, types.DockerUncompressedLayer))
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", "amd64", p.config
	if p.architecture != "" {
		c.Architecture = p.architecture
	}
	return mutate.ConfigFile(img, c)
}

// writeLayout makes an OCI layout of an image.
func (p *imagePlan) writeLayout(dir string, img v1.Image) error {
	d := v1.Descriptor{Annotations: map[string]string{refNameKey: p.name}}
	if _, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: d})); err != nil {
		return err
	}
	if !p.flipped {
		return nil
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	digest, err := layers[0].Digest()
	if err != nil {
		return err
	}
	blob := filepath.Join(dir, "blobs", digest.Algorithm, digest.Hex)
	data, err := os.ReadFile(blob)
	if err != nil {
		return err
	}
	data[len(data)/2] ^= 1
	return os.WriteFile(blob, data, 0o600)
}

// write writes the image as the path's ending says: an OCI archive .oci.tar, what
// "docker save" writes .tar, or a directory with an OCI layout.
func (p *imagePlan) write(to string, img v1.Image) error {
	switch {
	case strings.HasSuffix(to, ".oci.tar"):
		dir := strings.TrimSuffix(to, ".oci.tar") + ".layout"
		if err := p.writeLayout(dir, img); err != nil {
			return err
		}
		f, err := os.Create(to)
		if err != nil {
			return err
		}
		w := tar.NewWriter(f)
		return errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close())
	case strings.HasSuffix(to, ".tar"):
		tag, err := name.NewTag(p.name)
		if err != nil {
			return err
		}
		return tarball.WriteToFile(to, tag, img)
	}
	return p.writeLayout(to, img)
}

// makeimageCommand is "makeimage FILE KEY[=VALUE]...": writes an image of busybox with
// the users root and app. FILE.oci.tar is an OCI archive, FILE.tar one of "docker
// save", another FILE a directory. name, user, workdir, stopsignal and arch are given
// once; entrypoint, cmd and env a word at a time; file=PATH:FROM adds a file of the
// script, program=PATH one of this host with its libraries. bare leaves the shell out,
// empty adds a layer without a byte, flipped damages the layer.
func makeimageCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: makeimage FILE [KEY=VALUE]...")
	}
	p := &imagePlan{name: "made:latest"}
	ts.Check(p.parse(args[1:]))
	img, err := p.image(ts.MkAbs)
	ts.Check(err)
	ts.Check(p.write(ts.MkAbs(args[0]), img))
}

// pushimage is the program "pushimage FILE REF [USER PASSWORD]": brings an archive of
// "docker save" into a registry, and prints the digest it has there.
func pushimage() {
	if err := pushImage(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pushimage:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func pushImage(args []string) error {
	if len(args) != 2 && len(args) != 4 {
		return fmt.Errorf("usage: pushimage FILE REF [USER PASSWORD]")
	}
	img, err := tarball.ImageFromPath(args[0], nil)
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(args[1], name.Insecure)
	if err != nil {
		return err
	}
	as := authn.Anonymous
	if len(args) == 4 {
		as = authn.FromConfig(authn.AuthConfig{Username: args[2], Password: args[3]})
	}
	if err := remote.Write(ref, img, remote.WithAuth(as)); err != nil {
		return err
	}
	digest, err := img.Digest()
	if err == nil {
		_, err = fmt.Println(digest)
	}
	return err
}

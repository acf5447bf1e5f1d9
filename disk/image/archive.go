package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

func badArchive(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "image.archive", "the archive is not valid: "+format, args...).
		WithHint("make one with docker save, podman save, skopeo copy ... oci-archive:FILE, or nix2container")
}

// archive is an archive of images whose files lie in a directory by numbers: their
// names are the archive's, and never become paths of the host.
type archive struct {
	dir   string
	hold  *hold
	files map[string]spooled
	// links are names that stand for others.
	links map[string]string
}

// spooled is a file of an archive.
type spooled struct {
	path   string
	size   int64
	digest string
}

// Import takes the images of an archive: a tar, also of gzip or zstd, that holds an
// OCI layout or what docker save writes. With a name the archive must hold one image,
// which gets it; otherwise the images get their names in the archive, and one of
// several names is given as often.
//
// Problems: those of Pull that tell of an image's content, and Invalid image.archive.
func (s *Store) Import(ctx context.Context, r io.Reader, name string) ([]*blixardv1.Image, error) {
	if name != "" {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	dir, err := s.newTmp()
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	a := &archive{dir: dir, hold: s.budget.hold(), files: map[string]spooled{}, links: map[string]string{}}
	defer a.hold.settle(0)
	if err := a.spool(ctx, r); err != nil {
		return nil, err
	}
	found, err := a.images()
	if err != nil {
		return nil, err
	}
	if name != "" {
		if len(found) > 1 {
			return nil, badArchive("it holds %d images, and one name was given", len(found))
		}
		found[0].names = []string{name}
	}
	var all []*blixardv1.Image
	for _, f := range found {
		if len(f.names) == 0 {
			return nil, badName("", "the archive does not name the image").WithHint("give it a name")
		}
		img, err := s.importOne(ctx, f)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", clip(f.names[0]), err)
		}
		for _, n := range f.names {
			img := proto.CloneOf(img)
			img.Name = n
			all = append(all, img)
		}
	}
	return all, nil
}

func (s *Store) importOne(ctx context.Context, f *archived) (*blixardv1.Image, error) {
	return s.flights.do(ctx, f.digest, nil, func(ctx context.Context, _ Progress) (*blixardv1.Image, error) {
		if img, _, err := s.Get(f.digest); err == nil {
			return img, nil
		}
		img := &blixardv1.Image{
			Name: f.names[0], Digest: f.digest, Source: sourceArchive, Config: f.config, CompressedBytes: uint64(f.manifest.compressedBytes()),
		}
		return s.make(ctx, img, f.layers, func(int) {}, func() {})
	})
}

// spool writes the files of the archive into the directory.
func (a *archive) spool(ctx context.Context, r io.Reader) error {
	plain, err := decompress(&contextReader{ctx, r})
	if err != nil {
		return a.readError(ctx, err)
	}
	defer plain.Close()
	t := tar.NewReader(plain)
	total := int64(0)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return a.readError(ctx, err)
		}
		name := path.Clean(h.Name)
		switch {
		case n >= archiveEntriesMax:
			return badArchive("it has more than %d files", archiveEntriesMax)
		case len(h.Name) > pathBytesMax || len(h.Linkname) > pathBytesMax:
			return badArchive("it has a name of more than %d bytes", pathBytesMax)
		case !filepath.IsLocal(name):
			return badArchive("it has the name %q", clip(h.Name))
		}
		if total += h.Size; total > unpackedBytesMax {
			return tooLarge("the archive has more than %d GiB", int64(unpackedBytesMax)>>30)
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			if err := a.spoolFile(ctx, n, name, h.Size, t); err != nil {
				return err
			}
		case tar.TypeSymlink:
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			a.links[name] = path.Clean(h.Linkname)
		}
	}
}

func (a *archive) readError(ctx context.Context, err error) error {
	var p *problem.Error
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.As(err, &p) {
		return err
	}
	return badArchive("it cannot be read").WithCause(err)
}

func (a *archive) spoolFile(ctx context.Context, n int, name string, size int64, r io.Reader) error {
	if _, twice := a.files[name]; twice {
		return badArchive("it has %q twice", clip(name))
	}
	if err := a.hold.charge(size); err != nil {
		return err
	}
	f, err := createFile(filepath.Join(a.dir, strconv.Itoa(n)))
	if err != nil {
		return hostError(err)
	}
	h := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, h), &tarContent{ctx, r}, size)
	if err != nil && !problem.HasCode(err, "image.layer") {
		err = hostError(err)
	} else if err != nil {
		err = badArchive("it cannot be read").WithCause(err)
	}
	if err := errors.Join(err, hostError(f.Close())); err != nil {
		return err
	}
	a.files[name] = spooled{f.Name(), size, "sha256:" + hex.EncodeToString(h.Sum(nil))}
	return nil
}

// file finds a file, following the links among the archive's names.
func (a *archive) file(name string) (spooled, bool) {
	name = path.Clean(name)
	for range linksMax {
		if f, ok := a.files[name]; ok {
			return f, true
		}
		to, ok := a.links[name]
		if !ok {
			return spooled{}, false
		}
		name = to
	}
	return spooled{}, false
}

// read gives a small file.
func (a *archive) read(name string, bytesMax int64) ([]byte, spooled, error) {
	f, ok := a.file(name)
	if !ok {
		return nil, f, badArchive("it has no file %q", clip(name))
	}
	if f.size > bytesMax {
		return nil, f, badArchive("%q has %d bytes, %d are possible", clip(name), f.size, bytesMax)
	}
	raw, err := os.ReadFile(f.path)
	return raw, f, hostError(err)
}

// archived is an image found in an archive.
type archived struct {
	names    []string
	digest   string
	manifest *manifest
	config   *blixardv1.ImageConfig
	layers   []layer
}

func (a *archive) images() ([]*archived, error) {
	var found []*archived
	var err error
	if _, ok := a.file("index.json"); ok {
		found, err = a.ociImages()
	} else if _, ok := a.file("manifest.json"); ok {
		found, err = a.dockerImages()
	} else {
		names := slices.Sorted(maps.Keys(a.files))
		return nil, badArchive("it has neither index.json nor manifest.json; it begins with %q", clip(strings.Join(names, ", ")))
	}
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, badArchive("it holds no image")
	case len(found) > archiveImagesMax:
		return nil, badArchive("it holds %d images, %d are possible", len(found), archiveImagesMax)
	}
	return found, nil
}

// The annotations that name an image in an index.
const (
	annotationImage = "io.containerd.image.name"
	annotationRef   = "org.opencontainers.image.ref.name"
)

func (a *archive) ociImages() ([]*archived, error) {
	raw, _, err := a.read("index.json", manifestBytesMax)
	if err != nil {
		return nil, err
	}
	index, err := parseManifest(raw, "")
	if err != nil {
		return nil, err
	}
	if !index.isIndex() {
		return nil, badArchive("its index.json is no index")
	}
	byDigest := map[string]*archived{}
	var found []*archived
	var there []string
	for _, d := range index.Manifests {
		if d.Platform != nil && (d.Platform.OS != platformOS || d.Platform.Architecture != platformArch) {
			there = append(there, d.Platform.String())
			continue
		}
		f := byDigest[d.Digest]
		if f == nil {
			if f, err = a.ociImage(d); err != nil {
				return nil, err
			}
			byDigest[d.Digest] = f
			found = append(found, f)
		}
		if n := annotatedName(d.Annotations); n != "" && !slices.Contains(f.names, n) {
			f.names = append(f.names, n)
		}
		if len(found) > archiveImagesMax {
			break
		}
	}
	if len(found) == 0 && len(there) > 0 {
		return nil, wrongArchitecture(there)
	}
	return found, nil
}

// annotatedName gives the whole name that an index tells. A tag alone is none.
func annotatedName(annotations map[string]string) string {
	for _, key := range []string{annotationImage, annotationRef} {
		if v := annotations[key]; strings.ContainsAny(v, "/:") {
			if ref, err := parseReference(v); err == nil {
				return fullName(ref)
			}
		}
	}
	return ""
}

// blobFile gives a file of the layout by its digest, which was found right.
func (a *archive) blobFile(d descriptor) (spooled, error) {
	f, ok := a.file("blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:"))
	switch {
	case !ok:
		return f, badArchive("it lacks the file %.19s", d.Digest)
	case f.digest != d.Digest:
		return f, digestMismatch("a file of the archive", f.digest, d.Digest)
	case f.size != d.Size:
		return f, badArchive("the file %.19s has %d bytes, not %d", d.Digest, f.size, d.Size)
	}
	return f, nil
}

func (a *archive) blob(d descriptor, bytesMax int64) ([]byte, error) {
	if _, err := a.blobFile(d); err != nil {
		return nil, err
	}
	raw, _, err := a.read("blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:"), bytesMax)
	return raw, err
}

func (a *archive) ociImage(d descriptor) (*archived, error) {
	f := &archived{}
	for depth := 0; ; depth++ {
		raw, err := a.blob(d, manifestBytesMax)
		if err != nil {
			return nil, err
		}
		if f.manifest, err = parseManifest(raw, d.MediaType); err != nil {
			return nil, err
		}
		if f.digest = d.Digest; !f.manifest.isIndex() {
			break
		}
		if depth > 0 {
			return nil, badManifest("it is an index within an index")
		}
		if d, err = f.manifest.choose(); err != nil {
			return nil, err
		}
	}
	raw, err := a.blob(*f.manifest.Config, configBytesMax)
	if err != nil {
		return nil, err
	}
	var diffIDs []string
	if f.config, diffIDs, err = parseConfig(raw, len(f.manifest.Layers)); err != nil {
		return nil, err
	}
	for n, l := range f.manifest.Layers {
		file, err := a.blobFile(l)
		if err != nil {
			return nil, err
		}
		f.layers = append(f.layers, file.layer(diffIDs[n]))
	}
	return f, nil
}

// layer is the file as a layer.
func (f spooled) layer(diffID string) layer {
	return layer{digest: f.digest, diffID: diffID, open: func(context.Context) (io.ReadCloser, error) {
		file, err := os.Open(f.path)
		return file, hostError(err)
	}}
}

// dockerImages reads what docker save wrote before it wrote an OCI layout too.
func (a *archive) dockerImages() ([]*archived, error) {
	raw, _, err := a.read("manifest.json", manifestBytesMax)
	if err != nil {
		return nil, err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, badArchive("its manifest.json is not of that form").WithCause(err)
	}
	if len(list) > archiveImagesMax {
		return nil, badArchive("it holds %d images, %d are possible", len(list), archiveImagesMax)
	}
	var found []*archived
	for _, e := range list {
		f, err := a.dockerImage(e.Config, e.Layers)
		if err != nil {
			return nil, err
		}
		for _, tag := range e.RepoTags {
			ref, err := parseReference(tag)
			if err != nil {
				return nil, err
			}
			if n := fullName(ref); !slices.Contains(f.names, n) && len(f.names) < archiveImagesMax {
				f.names = append(f.names, n)
			}
		}
		found = append(found, f)
	}
	return found, nil
}

func (a *archive) dockerImage(configName string, layerNames []string) (*archived, error) {
	if len(layerNames) > layersMax {
		return nil, badManifest("it has %d layers, %d are possible", len(layerNames), layersMax)
	}
	raw, file, err := a.read(configName, configBytesMax)
	if err != nil {
		return nil, err
	}
	config, diffIDs, err := parseConfig(raw, len(layerNames))
	if err != nil {
		return nil, err
	}
	f := &archived{config: config}
	var layers []descriptor
	for n, name := range layerNames {
		l, ok := a.file(name)
		if !ok {
			return nil, badArchive("it lacks layer %d, %q", n+1, clip(name))
		}
		layers = append(layers, descriptor{MediaType: "application/vnd.docker.image.rootfs.diff.tar", Digest: l.digest, Size: l.size})
		f.layers = append(f.layers, l.layer(diffIDs[n]))
	}
	made, err := dockerManifest(descriptor{MediaType: "application/vnd.docker.container.image.v1+json", Digest: file.digest, Size: file.size}, layers)
	if err != nil {
		return nil, err
	}
	f.digest = sha256Of(made)
	f.manifest, err = parseManifest(made, "")
	return f, err
}

package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// PullOptions of Pull; the zero value is fine.
type PullOptions struct {
	// Username and Password for the registry that the name names; empty takes those
	// of the node.
	Username, Password string
	// Progress may be nil.
	Progress Progress
}

// The phases of a pull.
const (
	phaseResolving   = "resolving"
	phaseDownloading = "downloading"
	phaseBuilding    = "building"
	phaseStoring     = "storing"
	phaseDone        = "done"
)

// Pull brings an image from its registry, unless it is there already, and gives it
// with its whole name. A name with the digest of an image that is there asks no
// registry. Several calls for one image share the work. What was downloaded is kept
// when it fails, for the next call.
//
// Problems: Invalid image.name, image.manifest, image.config, image.architecture,
// image.layer, image.too_many_files, image.too_large, image.digest_mismatch,
// image.credentials; NotFound image.not_found; Denied image.unauthorized,
// image.address; NoCapacity image.budget; Unavailable image.registry_unreachable,
// disk.full; Internal image.store.
func (s *Store) Pull(ctx context.Context, text string, o PullOptions) (*blixardv1.Image, error) {
	ref, err := parseReference(text)
	if err != nil {
		return nil, err
	}
	progress := o.Progress
	if progress == nil {
		progress = func(*blixardv1.PullImageResponse) {}
	}
	img, err := s.pull(ctx, ref, o, progress)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", clip(fullName(ref)), err)
	}
	img = proto.CloneOf(img)
	img.Name = fullName(ref)
	progress(&blixardv1.PullImageResponse{Phase: phaseDone, Image: img})
	return img, nil
}

func (s *Store) pull(ctx context.Context, ref name.Reference, o PullOptions, progress Progress) (*blixardv1.Image, error) {
	if d, ok := ref.(name.Digest); ok {
		if img, _, err := s.Get(d.DigestStr()); err == nil {
			return img, nil
		}
	}
	progress(&blixardv1.PullImageResponse{Phase: phaseResolving})
	p, err := s.newPull(ref, o)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.resolve(ctx, ref); err != nil {
		return nil, err
	}
	if img, _, err := s.Get(p.digest); err == nil {
		return img, nil
	}
	return s.flights.do(ctx, p.digest, progress, func(ctx context.Context, progress Progress) (*blixardv1.Image, error) {
		if img, _, err := s.Get(p.digest); err == nil { // the flight before brought it
			return img, nil
		}
		return p.bring(ctx, progress)
	})
}

// pull is one image on its way from a registry.
type pull struct {
	s     *Store
	name  string
	close func()
	// registries to ask, the one that answered first in front.
	registries []*repository

	digest   string
	manifest *manifest
	config   *blixardv1.ImageConfig
	diffIDs  []string
}

func (s *Store) newPull(ref name.Reference, o PullOptions) (*pull, error) {
	policy := &addressPolicy{named: map[string]bool{}, allowPrivate: s.c.AllowPrivate}
	t := s.transport(policy)
	p := &pull{s: s, name: fullName(ref), close: t.CloseIdleConnections}
	origin := ref.Context().RegistryStr()
	hosts := append(append([]string{}, s.c.Mirrors[hubName(origin)]...), origin)
	for _, host := range hosts {
		reg, err := name.NewRegistry(host)
		if err != nil {
			return nil, badName(host, "it is no registry").WithCause(err)
		}
		var auth authn.Authenticator = &authn.Basic{Username: o.Username, Password: o.Password}
		if host != origin || o.Username == "" && o.Password == "" {
			if auth, err = credentials(s.c.DockerConfig, host); err != nil {
				return nil, err
			}
		}
		policy.name(host)
		p.registries = append(p.registries, &repository{host: reg, repo: ref.Context().RepositoryStr(), auth: auth, base: bounded{t}, wait: s.wait})
	}
	return p, nil
}

// resolve finds the manifest and the configuration at the first registry that has
// them.
func (p *pull) resolve(ctx context.Context, ref name.Reference) error {
	var first error
	for n, r := range p.registries {
		err := p.resolveAt(ctx, r, ref)
		if err == nil {
			p.registries = append([]*repository{r}, append(p.registries[:n:n], p.registries[n+1:]...)...)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if n < len(p.registries)-1 {
			p.s.log.Warn("mirror does not have the image", "mirror", r.host.RegistryStr(), "image", p.name, "err", err)
		}
		first = err // of the registry itself, which comes last
	}
	return first
}

func (p *pull) resolveAt(ctx context.Context, r *repository, ref name.Reference) error {
	want := ""
	if d, ok := ref.(name.Digest); ok {
		want = d.DigestStr()
	}
	m, digest, err := fetchManifest(ctx, r, ref.Identifier(), want)
	if err != nil {
		return err
	}
	if m.isIndex() {
		d, err := m.choose()
		if err != nil {
			return err
		}
		if m, digest, err = fetchManifest(ctx, r, d.Digest, d.Digest); err != nil {
			return err
		}
		if m.isIndex() {
			return badManifest("it is an index within an index")
		}
	}
	raw, _, err := r.document(ctx, "blobs/"+m.Config.Digest, "*/*", configBytesMax)
	if err != nil {
		return err
	}
	if got := sha256Of(raw); got != m.Config.Digest {
		return digestMismatch("the configuration", got, m.Config.Digest)
	}
	p.config, p.diffIDs, err = parseConfig(raw, len(m.Layers))
	p.manifest, p.digest = m, digest
	return err
}

func fetchManifest(ctx context.Context, r *repository, identifier, want string) (*manifest, string, error) {
	raw, contentType, err := r.document(ctx, "manifests/"+identifier, acceptManifests, manifestBytesMax)
	if err != nil {
		return nil, "", err
	}
	digest := sha256Of(raw)
	if want != "" && digest != want {
		return nil, "", digestMismatch("the manifest", digest, want)
	}
	m, err := parseManifest(raw, contentType)
	return m, digest, err
}

// bring downloads the layers and builds the disk, each layer as soon as it and those
// below it are there.
func (p *pull) bring(ctx context.Context, progress Progress) (*blixardv1.Image, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b := &bringing{pull: p, report: progress, total: p.manifest.compressedBytes()}
	for range p.manifest.Layers {
		b.layers = append(b.layers, &arriving{ready: make(chan struct{})})
	}
	defer b.release()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	slots := make(chan struct{}, downloadsMax)
	for n := range b.layers {
		b.layers[n].release = p.s.blobs.use(p.manifest.Layers[n].Digest)
	}
	wg.Go(func() { b.downloadAll(ctx, cancel, slots, &wg) })
	img := &blixardv1.Image{
		Name: p.name, Digest: p.digest, Source: sourceRegistry, Config: p.config, CompressedBytes: uint64(b.total),
	}
	img, err := p.s.make(ctx, img, b.sources(), b.building, func() { b.say(phaseStoring, 0, 0) })
	if err != nil {
		return nil, err
	}
	wg.Wait()
	b.release()
	for _, d := range p.manifest.Layers {
		if err := p.s.blobs.remove(d.Digest); err != nil {
			p.s.log.Warn("download not removed", "digest", d.Digest, "err", err)
		}
	}
	return img, nil
}

// make builds the disk of an image and keeps it.
func (s *Store) make(ctx context.Context, img *blixardv1.Image, layers []layer, progress func(int), storing func()) (*blixardv1.Image, error) {
	dir, err := s.newTmp()
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	h := s.budget.hold()
	defer h.settle(0)
	d, err := build(ctx, dir, img.GetDigest(), layers, h.charge, progress)
	if err != nil {
		return nil, err
	}
	storing()
	img.DiskDigest, img.DiskBytes, img.FsType = d.digest, uint64(d.bytes), d.fsType
	return s.commit(dir, img, h)
}

// bringing is a pull whose layers are coming.
type bringing struct {
	*pull
	layers []*arriving
	total  int64

	mu       sync.Mutex
	report   Progress
	done     []int64 // of each layer
	reported int64
}

type arriving struct {
	ready   chan struct{} // closed when path or err is set
	path    string
	err     error
	release func()
}

func (b *bringing) release() {
	for _, l := range b.layers {
		if l.release != nil {
			l.release()
		}
	}
}

func (b *bringing) say(phase string, done, total int64) {
	b.report(&blixardv1.PullImageResponse{Phase: phase, DoneBytes: uint64(done), TotalBytes: uint64(total)})
}

// downloadAll starts the downloads in the order of the layers.
func (b *bringing) downloadAll(ctx context.Context, cancel context.CancelCauseFunc, slots chan struct{}, wg *sync.WaitGroup) {
	b.done = make([]int64, len(b.layers))
	for n, l := range b.layers {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer close(l.ready)
			l.path, l.err = b.download(ctx, n)
			if l.err != nil {
				d := b.manifest.Layers[n]
				l.err = fmt.Errorf("%s: %w", layer{digest: d.Digest}.describe(n+1, len(b.layers)), l.err)
				cancel(l.err)
			}
		})
	}
}

// download asks one registry after the other for a layer.
func (b *bringing) download(ctx context.Context, n int) (string, error) {
	d := b.manifest.Layers[n]
	var last error
	for _, r := range b.registries {
		path, err := b.s.blobs.get(ctx, download{
			digest: d.Digest, size: d.Size, wait: b.s.wait, stall: b.s.stall,
			fetch: func(ctx context.Context, offset int64) (io.ReadCloser, int64, error) {
				return r.blob(ctx, d.Digest, d.Size, offset)
			},
			progress: func(done int64) { b.downloaded(n, done) },
		})
		if err == nil || ctx.Err() != nil || problem.HasCode(err, "image.budget") || problem.HasCode(err, "disk.full") {
			return path, err
		}
		last = err
	}
	return "", last
}

// downloaded tells of the bytes of all layers.
func (b *bringing) downloaded(n int, done int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done[n] = done
	sum := int64(0)
	for _, d := range b.done {
		sum += d
	}
	if sum-b.reported >= progressBytes || sum == b.total {
		b.reported = sum
		b.say(phaseDownloading, sum, b.total)
	}
}

func (b *bringing) building(layers int) {
	done := int64(0)
	for _, d := range b.manifest.Layers[:layers] {
		done += d.Size
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.say(phaseBuilding, done, b.total)
}

// sources are the layers as the build opens them: it waits until each is there.
func (b *bringing) sources() []layer {
	var all []layer
	for n, a := range b.layers {
		all = append(all, layer{
			digest: b.manifest.Layers[n].Digest, diffID: b.diffIDs[n],
			open: func(ctx context.Context) (io.ReadCloser, error) {
				select {
				case <-a.ready:
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
				if a.err != nil {
					return nil, a.err
				}
				f, err := os.Open(filepath.Clean(a.path))
				return f, hostError(err)
			},
		})
	}
	return all
}

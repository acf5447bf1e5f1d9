package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/disk/image"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/internal/imageref"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
	"github.com/blixard/blixard/state"
)

// Limits of keeping images.
const (
	// sweepEvery is how often what no name and no VM needs is looked for, beside when
	// an image was removed.
	sweepEvery = 10 * time.Minute
	// registerTimeout bounds telling the cluster of an image.
	registerTimeout = 30 * time.Second
	// ensureTries bounds how often an image is resolved anew because another node was
	// faster to say what its name stands for.
	ensureTries = 3
)

// sourceBundle of images that come with the guest bundle.
const sourceBundle = "bundle"

// imageKeeper brings images to this node and tells the cluster of them. It is safe
// for concurrent use.
type imageKeeper struct {
	nodeID string
	store  *image.Store
	bundle *bundle.Bundle
	view   func() *state.View
	client *client.Client
	nodes  *nodes
	log    *slog.Logger
	// applied waits until the node's own state has that index.
	applied func(ctx context.Context, index uint64) error

	// arriving is held for reading from before an image is in the store until the
	// cluster knows it: what is swept meanwhile might be that.
	arriving sync.RWMutex
}

// bundled gives an image of the guest bundle; nil when it has none of that name.
func (k *imageKeeper) bundled(name string) (*blixardv1.Image, error) {
	if !slices.Contains(k.bundle.ImageNames(), name) {
		return nil, nil
	}
	i, err := k.bundle.Image(name)
	if err != nil {
		return nil, err
	}
	return &blixardv1.Image{
		Name: name, Digest: i.Digest, DiskDigest: i.Digest, FsType: "ext4", Source: sourceBundle, Config: &blixardv1.ImageConfig{
			Entrypoint: i.Entrypoint, Command: i.Command, Env: i.Env, WorkingDir: i.WorkingDir,
		},
	}, nil
}

// Ensure implements agent.Images.
func (k *imageKeeper) Ensure(ctx context.Context, name string, known *blixardv1.Image, owner string, progress func(string)) (*blixardv1.Image, error) {
	if name == "" {
		name = known.GetName()
	}
	if i, err := k.bundled(name); i != nil || err != nil {
		return i, err
	}
	if known != nil && k.store.Use(known.GetDigest(), owner) == nil {
		return known, nil
	}
	if progress == nil {
		return nil, problem.New(problem.NotFound, "image.not_here", "image %q is not on this node", name)
	}
	k.arriving.RLock()
	defer k.arriving.RUnlock()
	for try := 1; ; try++ {
		i, err := k.bring(ctx, name, known, progress)
		if err != nil {
			return nil, err
		}
		if err := k.store.Use(i.GetDigest(), owner); err != nil {
			return nil, err
		}
		is, err := k.register(ctx, i, true)
		if err != nil {
			k.store.Release(owner)
			return nil, err
		}
		if known != nil || is.GetDigest() == i.GetDigest() || try == ensureTries {
			return i, nil
		}
		k.store.Release(owner) // another node was first, and its image counts
	}
}

// bring gets what a name stands for: known, or what the cluster says, or what the
// registry says.
func (k *imageKeeper) bring(ctx context.Context, name string, known *blixardv1.Image, progress func(string)) (*blixardv1.Image, error) {
	want := known
	if want == nil {
		want = k.view().Image(name)
	}
	if want == nil {
		return k.store.Pull(ctx, name, image.PullOptions{Progress: words(name, progress)})
	}
	if i, _, err := k.store.Get(want.GetDigest()); err == nil {
		i.Name = name
		return i, nil
	}
	err := k.fetch(ctx, want, progress)
	if err == nil {
		return want, nil
	}
	if want.GetSource() != "registry" {
		return nil, err
	}
	k.log.Info("no node gave the image; asking its registry", "image", name, "err", err)
	i, err := k.store.Pull(ctx, imageref.AtDigest(name, want.GetDigest()), image.PullOptions{Progress: words(name, progress)})
	if err != nil {
		return nil, err
	}
	i.Name = name
	return i, nil
}

// words makes a sentence of what a pull tells.
func words(name string, progress func(string)) image.Progress {
	return func(p *blixardv1.PullImageResponse) {
		text := fmt.Sprintf("image %s: %s", name, p.GetPhase())
		if p.GetTotalBytes() > 0 {
			text += fmt.Sprintf(" %s of %s", units.Size(p.GetDoneBytes()).Human(), units.Size(p.GetTotalBytes()).Human())
		}
		progress(text)
	}
}

// fetch copies the root disk from a node that has it.
func (k *imageKeeper) fetch(ctx context.Context, want *blixardv1.Image, progress func(string)) error {
	err := error(problem.New(problem.NotFound, "image.nowhere", "no node has image %q any more", want.GetName()).
		WithHint("bring it in again with `blixard image pull` or `blixard image import`"))
	for _, node := range k.having(want.GetDigest()) {
		conn, dialErr := k.nodes.Conn(node)
		if dialErr != nil {
			err = dialErr
			continue
		}
		c := blixardv1.NewImageServiceClient(conn)
		from := func(ctx context.Context, offset uint64) (io.ReadCloser, error) {
			return openFetch(ctx, c, want.GetDigest(), offset)
		}
		if err = k.store.Receive(ctx, want, from, words(want.GetName(), progress)); err == nil {
			return nil
		}
	}
	return err
}

// having are the other nodes that have an image.
func (k *imageKeeper) having(digest string) []string {
	var ids []string
	for _, i := range k.view().Images() {
		if i.GetDigest() != digest {
			continue
		}
		for _, id := range i.GetNodeIds() {
			if id != k.nodeID && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// fetchReader gives the bytes of a disk that another node sends.
type fetchReader struct {
	stream blixardv1.ImageService_FetchImageClient
	cancel context.CancelFunc
	rest   []byte
}

func openFetch(ctx context.Context, c blixardv1.ImageServiceClient, digest string, offset uint64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.FetchImage(ctx, &blixardv1.FetchImageRequest{Digest: digest, Offset: offset})
	if err == nil {
		_, err = stream.Recv() // which image it is, and that the node has it
	}
	if err != nil {
		cancel()
		return nil, problem.From(err)
	}
	return &fetchReader{stream: stream, cancel: cancel}, nil
}

func (r *fetchReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return 0, io.EOF
			}
			return 0, problem.From(err)
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *fetchReader) Close() error {
	r.cancel()
	return nil
}

// register tells the cluster that this node has an image, and gives what the name
// stands for.
func (k *imageKeeper) register(ctx context.Context, i *blixardv1.Image, keepName bool) (*blixardv1.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	resp, err := k.client.Images().RegisterImage(ctx, &blixardv1.RegisterImageRequest{NodeId: k.nodeID, Image: i, KeepName: keepName, IdempotencyKey: client.NewKey()})
	if err != nil {
		return nil, problem.From(err)
	}
	// A sweep goes by this node's own state, which may be behind what was answered.
	return resp.GetImage(), k.applied(ctx, resp.GetImage().GetModifyIndex())
}

// Disk implements agent.Images.
func (k *imageKeeper) Disk(i *blixardv1.Image) (string, error) {
	if i.GetSource() == sourceBundle {
		b, err := k.bundle.Image(i.GetName())
		return b.Path, err
	}
	_, path, err := k.store.Get(i.GetDigest())
	return path, err
}

// Release implements agent.Images.
func (k *imageKeeper) Release(owner string) { k.store.Release(owner) }

// Pull implements server.Images.
func (k *imageKeeper) Pull(ctx context.Context, name, username, password string, progress func(*blixardv1.PullImageResponse)) (*blixardv1.Image, error) {
	k.arriving.RLock()
	defer k.arriving.RUnlock()
	i, err := k.store.Pull(ctx, name, image.PullOptions{Username: username, Password: password, Progress: func(p *blixardv1.PullImageResponse) {
		if p.GetImage() == nil { // it is done when the cluster knows it
			progress(p)
		}
	}})
	if err != nil {
		return nil, err
	}
	return k.register(ctx, i, false)
}

// Import implements server.Images.
func (k *imageKeeper) Import(ctx context.Context, start *blixardv1.ImportStart, r io.Reader) ([]*blixardv1.Image, error) {
	k.arriving.RLock()
	defer k.arriving.RUnlock()
	var images []*blixardv1.Image
	var err error
	if start.GetFormat() == "archive" {
		images, err = k.store.Import(ctx, r, start.GetName())
	} else {
		var i *blixardv1.Image
		if i, err = k.store.ImportDisk(ctx, r, start.GetName(), start.GetFormat()); err == nil {
			images = []*blixardv1.Image{i}
		}
	}
	if err != nil {
		return nil, err
	}
	for n, i := range images {
		if images[n], err = k.register(ctx, i, false); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// Export implements server.Images.
func (k *imageKeeper) Export(ctx context.Context, digest string, offset uint64, begin func(*blixardv1.Image) error, w io.Writer) error {
	i, _, err := k.store.Get(digest)
	if err != nil {
		return err
	}
	if err := begin(i); err != nil {
		return err
	}
	return k.store.Export(ctx, digest, offset, w)
}

// run sweeps until ctx ends.
func (k *imageKeeper) run(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		k.sweep()
	}
}

// sweep removes the root disks that neither a name of the cluster nor a VM of this
// node stands for.
func (k *imageKeeper) sweep() {
	if !k.arriving.TryLock() {
		return // the next change or tick comes
	}
	defer k.arriving.Unlock()
	named := map[string]bool{}
	for _, i := range k.view().Images() {
		named[i.GetDigest()] = true
	}
	removed, err := k.store.Prune(func(digest string) bool { return named[digest] })
	for _, i := range removed {
		k.log.Info("an image was removed", "image", i.GetName(), "digest", i.GetDigest())
	}
	if err != nil {
		k.log.Warn("images can't be swept", "err", err)
	}
}

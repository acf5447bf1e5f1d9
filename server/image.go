package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/imageref"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// Images is the node's own store of images. Implementations are safe for concurrent
// use, and tell the cluster what the node has.
type Images interface {
	// Pull brings an image in, by its canonical name.
	Pull(ctx context.Context, name, username, password string, progress func(*blixardv1.PullImageResponse)) (*blixardv1.Image, error)
	// Import reads what start says until the end of r.
	Import(ctx context.Context, start *blixardv1.ImportStart, r io.Reader) ([]*blixardv1.Image, error)
	// Export writes the root disk of an image of this node from an offset on, after
	// begin was told which it is.
	Export(ctx context.Context, digest string, offset uint64, begin func(*blixardv1.Image) error, w io.Writer) error
}

// imageService is ImageService; see the .proto for its contract.
type imageService struct {
	blixardv1.UnimplementedImageServiceServer
	*Server
}

// exportChunkBytes is one message of a root disk on its way to another node.
const exportChunkBytes = 256 << 10

func (s imageService) PullImage(req *blixardv1.PullImageRequest, stream blixardv1.ImageService_PullImageServer) error {
	ctx := stream.Context()
	kept, err := s.kept()
	if err != nil {
		return err
	}
	name, err := imageref.Normalize(req.GetName())
	if err != nil {
		return err
	}
	username, password := req.GetUsername(), req.GetPassword()
	if req.GetSecret() != "" {
		value, err := s.openSecret(ctx, req.GetSecret())
		if err != nil {
			return err
		}
		var ok bool
		if username, password, ok = strings.Cut(strings.TrimRight(string(value), "\r\n"), ":"); !ok {
			return problem.New(problem.Invalid, "image.credentials", "secret %q is not USER:PASSWORD", req.GetSecret()).
				WithHint("set it so: printf 'USER:PASSWORD' | blixard secret set %s", req.GetSecret())
		}
	}
	i, err := kept.Images.Pull(ctx, name, username, password, func(p *blixardv1.PullImageResponse) { _ = stream.Send(p) })
	if err != nil {
		return err
	}
	return stream.Send(&blixardv1.PullImageResponse{Phase: "done", Image: i})
}

// importReader gives the data of an import's messages.
type importReader struct {
	stream blixardv1.ImageService_ImportImageServer
	rest   []byte
}

func (r *importReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (s imageService) ImportImage(stream blixardv1.ImageService_ImportImageServer) error {
	kept, err := s.kept()
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return endOfStream(err)
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage("import")
	}
	if start.GetName() != "" {
		if start.Name, err = imageref.Normalize(start.GetName()); err != nil {
			return err
		}
	}
	images, err := kept.Images.Import(stream.Context(), start, &importReader{stream: stream})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&blixardv1.ImportImageResponse{Images: images})
}

func (s imageService) ListImages(ctx context.Context, req *blixardv1.ListImagesRequest) (*blixardv1.ListImagesResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	return &blixardv1.ListImagesResponse{Images: append(bundled(view), view.Images()...), Index: view.Index()}, nil
}

// bundled are the images that come with the nodes' bundles.
func bundled(view *state.View) []*blixardv1.Image {
	byName := map[string]*blixardv1.Image{}
	var names []string
	for _, n := range view.Nodes() {
		for _, name := range n.GetFingerprint().GetImages() {
			if byName[name] == nil {
				byName[name] = &blixardv1.Image{Name: name, Source: "bundle", FsType: "ext4"}
				names = append(names, name)
			}
			byName[name].NodeIds = append(byName[name].NodeIds, n.GetId())
		}
	}
	slices.Sort(names)
	images := make([]*blixardv1.Image, 0, len(names))
	for _, name := range names {
		images = append(images, byName[name])
	}
	return images
}

// findImage finds an image by the name a person wrote, or by its digest.
func findImage(view *state.View, name string) (*blixardv1.Image, error) {
	for _, i := range bundled(view) {
		if i.GetName() == name {
			return i, nil
		}
	}
	canonical, err := imageref.Normalize(name)
	if err == nil {
		if i := view.Image(canonical); i != nil {
			return i, nil
		}
	}
	for _, i := range view.Images() {
		if i.GetDigest() == name {
			return i, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, problem.New(problem.NotFound, "image.not_found", "the cluster has no image %q", name).
		WithHint("`blixard image list` shows what there is; bring it in with `blixard image pull %s`", name)
}

func (s imageService) GetImage(ctx context.Context, req *blixardv1.GetImageRequest) (*blixardv1.GetImageResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	i, err := findImage(view, req.GetName())
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.GetImageResponse{Image: i}
	for _, vm := range view.VMs("", 0) {
		if vm.GetSpec().GetImage() == i.GetName() {
			resp.Vms = append(resp.Vms, vm.GetName())
		}
	}
	return resp, nil
}

func (s imageService) RemoveImage(ctx context.Context, req *blixardv1.RemoveImageRequest) (*blixardv1.RemoveImageResponse, error) {
	i, err := findImage(s.cfg.Replica.View(), req.GetName())
	if err != nil {
		return nil, err
	}
	if i.GetSource() == "bundle" {
		return nil, problem.New(problem.Invalid, "image.bundled", "image %q comes with the nodes' guest bundle", i.GetName()).
			WithHint("it can't be removed")
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DropImage{
		DropImage: &blixardv1.DropImageCommand{Names: []string{i.GetName()}},
	}})
	if err != nil {
		return nil, err
	}
	if len(r.Images) > 0 {
		i = r.Images[0]
	}
	return &blixardv1.RemoveImageResponse{Image: i}, nil
}

func (s imageService) PruneImages(ctx context.Context, req *blixardv1.PruneImagesRequest) (*blixardv1.PruneImagesResponse, error) {
	view := s.cfg.Replica.View()
	used := map[string]bool{}
	for _, vm := range view.VMs("", 0) {
		used[vm.GetSpec().GetImage()] = true
	}
	resp := &blixardv1.PruneImagesResponse{}
	var names []string
	for _, i := range view.Images() {
		if !used[i.GetName()] {
			names = append(names, i.GetName())
			resp.Images = append(resp.Images, i)
		}
	}
	if req.GetDryRun() || len(names) == 0 {
		return resp, nil
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DropImage{
		DropImage: &blixardv1.DropImageCommand{Names: names, UnusedOnly: true},
	}})
	if err != nil {
		return nil, err
	}
	if !r.Repeated {
		resp.Images = r.Images
	}
	return resp, nil
}

func (s imageService) RegisterImage(ctx context.Context, req *blixardv1.RegisterImageRequest) (*blixardv1.RegisterImageResponse, error) {
	if err := s.speaksFor(ctx, req.GetNodeId()); err != nil {
		return nil, err
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_PutImage{PutImage: &blixardv1.PutImageCommand{
		Image: req.GetImage(), NodeId: req.GetNodeId(), KeepName: req.GetKeepName(), Gone: req.GetGone(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RegisterImageResponse{Image: r.Image}, nil
}

// imageSender sends a disk in messages.
type imageSender struct {
	stream blixardv1.ImageService_FetchImageServer
}

func (w imageSender) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		n := min(exportChunkBytes, len(p)-sent)
		if err := w.stream.Send(&blixardv1.FetchImageResponse{Data: p[sent : sent+n]}); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

func (s imageService) FetchImage(req *blixardv1.FetchImageRequest, stream blixardv1.ImageService_FetchImageServer) error {
	kept, err := s.kept()
	if err != nil {
		return err
	}
	begin := func(i *blixardv1.Image) error { return stream.Send(&blixardv1.FetchImageResponse{Image: i}) }
	err = kept.Images.Export(stream.Context(), req.GetDigest(), req.GetOffset(), begin, imageSender{stream})
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

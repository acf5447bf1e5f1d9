package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Export writes an image's disk from an offset to its end, for another node. The
// disk was held against its digest, as Get says. Problems: those of Get, and Invalid
// image.offset.
func (s *Store) Export(ctx context.Context, digest string, offset uint64, w io.Writer) error {
	img, path, err := s.Get(digest)
	if err != nil {
		return err
	}
	if offset > img.GetDiskBytes() {
		return problem.New(problem.Invalid, "image.offset", "the disk of image %s has %d bytes, asked was from %d on", img.GetName(), img.GetDiskBytes(), offset).
			WithHint("begin anew")
	}
	f, err := os.Open(path)
	if err != nil {
		return hostError(err)
	}
	defer f.Close()
	part := io.NewSectionReader(f, int64(offset), int64(img.GetDiskBytes()-offset))
	_, err = io.CopyBuffer(onlyWriter{w}, &contextReader{ctx, part}, make([]byte, 256<<10))
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// onlyWriter hides what would make one call of a long copy, which no context ends.
type onlyWriter struct{ io.Writer }

// Receive copies the disk of an image from another node, unless it is there. fetch
// gives the disk's bytes from an offset on; it is called again when they break off,
// and after a failure or a crash Receive goes on where it ended. What comes is held
// against the size and the digest in img before it is ever used.
//
// Problems: Invalid image.invalid, image.digest_mismatch; NoCapacity image.budget;
// Unavailable image.registry_unreachable, disk.full; Internal image.store; and what
// fetch gives of the kinds NotFound, Denied and Invalid.
func (s *Store) Receive(ctx context.Context, img *blixardv1.Image, fetch func(ctx context.Context, offset uint64) (io.ReadCloser, error), progress Progress) error {
	if err := checkImage(img); err != nil {
		return err
	}
	if _, _, err := s.Get(img.GetDigest()); err == nil {
		return nil
	}
	if progress == nil {
		progress = func(*blixardv1.PullImageResponse) {}
	}
	_, err := s.flights.do(ctx, img.GetDigest(), progress, func(ctx context.Context, progress Progress) (*blixardv1.Image, error) {
		if there, _, err := s.Get(img.GetDigest()); err == nil {
			return there, nil
		}
		return s.receive(ctx, proto.CloneOf(img), fetch, progress)
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", clip(img.GetName()), err)
	}
	return nil
}

func (s *Store) receive(ctx context.Context, img *blixardv1.Image, fetch func(context.Context, uint64) (io.ReadCloser, error), progress Progress) (*blixardv1.Image, error) {
	img.NodeIds, img.CreateIndex, img.ModifyIndex = nil, 0, 0 // the cluster's, not this node's
	release := s.blobs.use(img.GetDiskDigest())
	defer release()
	reported := int64(0)
	path, err := s.blobs.get(ctx, download{
		digest: img.GetDiskDigest(), size: int64(img.GetDiskBytes()), sparse: true, wait: s.wait, stall: s.stall,
		fetch: func(ctx context.Context, offset int64) (io.ReadCloser, int64, error) {
			body, err := fetch(ctx, uint64(offset))
			if problem.Is(err, problem.NotFound) || problem.Is(err, problem.Denied) || problem.Is(err, problem.Invalid) {
				err = permanent{err}
			}
			return body, offset, err
		},
		progress: func(done int64) {
			if done-reported >= progressBytes || done == int64(img.GetDiskBytes()) {
				reported = done
				progress(&blixardv1.PullImageResponse{Phase: phaseDownloading, DoneBytes: uint64(done), TotalBytes: img.GetDiskBytes()})
			}
		},
	})
	if err != nil {
		return nil, err
	}
	progress(&blixardv1.PullImageResponse{Phase: phaseStoring})
	dir, err := s.newTmp()
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := s.blobs.take(img.GetDiskDigest(), path, filepath.Join(dir, diskFile)); err != nil {
		return nil, hostError(err)
	}
	got, err := s.commit(dir, img, s.budget.hold())
	release()
	if err == nil {
		err = hostError(s.blobs.remove(img.GetDiskDigest()))
	}
	return got, err
}

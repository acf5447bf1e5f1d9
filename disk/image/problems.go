package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

func tooLarge(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "image.too_large", format, args...).
		WithHint("make the image smaller, or keep its data on a volume")
}

// hostError makes a full disk a problem with a way out, and leaves other problems
// and the end of a context as they are.
func hostError(err error) error {
	var p *problem.Error
	switch {
	case err == nil, errors.As(err, &p), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return problem.New(problem.Unavailable, "disk.full", "no space for the image").WithCause(err).
			WithHint("make room on the node's disk, or remove images that no VM uses: blixard image prune")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO):
		return problem.New(problem.Internal, "image.store", "the node cannot write its images").WithCause(err).
			WithHint("see whether the node's disk is writable and sound")
	}
	return fmt.Errorf("store of images: %w", err)
}

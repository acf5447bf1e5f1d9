package disk

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// Limits of copying.
const (
	// copyStepBytes are copied between two looks at the context: a slow disk of
	// 50 MB/s is heard within a third of a second.
	copyStepBytes = 16 << 20
	// blockBytes of st_blocks, whatever the file system's own are (stat(2)).
	blockBytes = 512
)

// Progress is told how many bytes of how many are done, now and then, by the
// goroutine that works. It may be nil.
type Progress func(done, total uint64)

// Copy makes the empty file dst equal to src: by reference where the file system
// can, else only the parts that hold data, and those only when there is room for
// them. It does not wait for the disk: Sync dst. On an error dst holds rubbish.
// Problem: Unavailable disk.full.
func Copy(ctx context.Context, dst, src *os.File, progress Progress) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	st, err := StatFile(src)
	if err != nil {
		return err
	}
	total := uint64(st.Blocks) * blockBytes
	if err := room(dst, total); err != nil {
		return err
	}
	if err := dst.Truncate(st.Size); err != nil {
		return Problem(dst.Name(), err)
	}
	done := uint64(0)
	err = EachExtent(src, 0, st.Size, func(begin, end int64) error {
		for begin < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := copyRange(dst, src, begin, min(end-begin, copyStepBytes))
			if err != nil {
				return err
			}
			begin += n
			if done += uint64(n); progress != nil {
				progress(min(done, total), total)
			}
		}
		return nil
	})
	if err != nil {
		return Problem(dst.Name(), err)
	}
	return nil
}

// room refuses what would fill the file system to the brim, and so hurt the VMs that
// write there.
func room(f *os.File, want uint64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return Problem(f.Name(), err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < want {
		return full(f.Name()).WithCause(errors.New("it needs more than is free"))
	}
	return nil
}

// EachExtent visits the parts of [from, size) that may hold data (lseek(2),
// SEEK_DATA), in order. What lies between them reads as zeros.
func EachExtent(f *os.File, from, size int64, visit func(begin, end int64) error) error {
	for at := from; at < size; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return &os.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return &os.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		if begin >= size {
			return nil
		}
		if err := visit(begin, min(end, size)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// copyRange copies up to n bytes at an offset, in the kernel where it can.
func copyRange(dst, src *os.File, at, n int64) (int64, error) {
	in, out := at, at
	k, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(n), 0)
	switch {
	case err == nil && k > 0:
		return int64(k), nil
	case errors.Is(err, unix.EINTR):
		return 0, nil
	case err == nil, errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		// Some file systems can't, or say 0: bytes go through here.
		m, err := io.Copy(io.NewOffsetWriter(dst, at), io.NewSectionReader(src, at, n))
		if err == nil && m == 0 {
			err = io.ErrUnexpectedEOF // it was cut meanwhile
		}
		return m, err
	}
	return 0, &os.PathError{Op: "copy", Path: dst.Name(), Err: err}
}

func full(path string) *problem.Error {
	return problem.New(problem.Unavailable, "disk.full", "no space for %s", path).
		WithHint("make room on that disk, or delete VMs, volumes or snapshots that are not needed")
}

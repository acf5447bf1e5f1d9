package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// The formats of a disk. What a disk is, is never guessed: a guest could write the
// header of another format into its first sector.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// ImportDisk takes the root file system of a disk: of the disk as a whole, or of one
// of its partitions. It must be ext4 or erofs, and the image then starts /sbin/init.
// The kernel and the boot loader on the disk are not used.
//
// Problems: Invalid image.name, image.disk_format, image.disk, image.disk_fs,
// image.disk_dirty, image.qcow2, image.qcow2_feature, image.too_large; NoCapacity
// image.budget; Unavailable disk.full; Internal image.store.
func (s *Store) ImportDisk(ctx context.Context, r io.Reader, name, format string) (*blixardv1.Image, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if format != FormatRaw && format != FormatQcow2 {
		return nil, problem.New(problem.Invalid, "image.disk_format", "the format of a disk is %s or %s, not %q", FormatRaw, FormatQcow2, clip(format)).
			WithHint("convert it: qemu-img convert -O qcow2")
	}
	img, err := s.importDisk(ctx, r, name, format)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", clip(name), err)
	}
	img = proto.CloneOf(img)
	img.Name = name // the same disk may be there under another
	return img, nil
}

func (s *Store) importDisk(ctx context.Context, r io.Reader, name, format string) (*blixardv1.Image, error) {
	dir, err := s.newTmp()
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	h, spoolHold := s.budget.hold(), s.budget.hold()
	defer h.settle(0)
	defer spoolHold.settle(0)
	spool, err := createFile(filepath.Join(dir, "spool"))
	if err != nil {
		return nil, hostError(err)
	}
	defer spool.Close()
	size, err := copySparse(ctx, spool, r, diskBytesMax, spoolHold.charge)
	if err != nil {
		return nil, err
	}
	var disk io.ReaderAt = spool
	if format == FormatQcow2 {
		q, err := openQcow2(spool, size)
		if err != nil {
			return nil, err
		}
		disk, size = q, q.size
	}
	root, fs, err := findRoot(disk, size)
	if err != nil {
		return nil, err
	}
	out, err := createFile(filepath.Join(dir, diskFile))
	if err != nil {
		return nil, hostError(err)
	}
	defer out.Close()
	if _, err := copySparse(ctx, out, io.NewSectionReader(disk, root.offset, fs.bytes), fs.bytes, h.charge); err != nil {
		return nil, err
	}
	digest, err := finishDisk(ctx, out)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(spool.Name()); err != nil {
		return nil, hostError(err)
	}
	return s.commit(dir, &blixardv1.Image{
		Name: name, Digest: digest, DiskDigest: digest, DiskBytes: uint64(fs.bytes), FsType: fs.kind, Source: sourceDisk,
		Config: &blixardv1.ImageConfig{Command: []string{"/sbin/init"}, Architecture: platformArch},
	}, h)
}

// copySparse writes what r gives, with holes for zeros, and counts the bytes that
// are no hole.
func copySparse(ctx context.Context, f *os.File, r io.Reader, bytesMax int64, charge func(int64) error) (int64, error) {
	buffer, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	size := int64(0)
	for {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		n, err := io.ReadFull(r, buffer)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, readDiskError(err)
		}
		if size+int64(n) > bytesMax {
			return 0, tooLarge("the disk has more than %d bytes", bytesMax)
		}
		if b := buffer[:n]; !bytes.Equal(b, zero[:n]) {
			if err := charge(int64(n)); err != nil {
				return 0, err
			}
			if _, err := f.WriteAt(b, size); err != nil {
				return 0, hostError(err)
			}
		}
		size += int64(n)
		if err != nil {
			return size, hostError(f.Truncate(size))
		}
	}
}

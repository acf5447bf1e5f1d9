package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/blixard/blixard/internal/problem"
)

// ExtractVmlinux writes the vmlinux inside the kernel r to w and tells what that vmlinux is. A file
// that is a vmlinux already is written as it is; size is that of r in bytes. r may be hostile: at
// most VmlinuxBytesMax are written, and memory stays below what is written plus 64 MiB. It fails
// with a problem of kind Invalid: kernel.not_a_kernel, kernel.payload_damaged or
// kernel.payload_too_large; what w got until then is worthless.
func ExtractVmlinux(r io.ReaderAt, size int64, w io.Writer) (Info, error) {
	info, err := Inspect(r)
	if err != nil {
		return Info{}, err
	}
	if size > FileBytesMax {
		return Info{}, errTooLarge(FileBytesMax)
	}
	var vmlinux []byte
	if info.Format == FormatVmlinux {
		vmlinux, err = readLimited(io.NewSectionReader(r, 0, size), FileBytesMax)
	} else {
		vmlinux, err = unpack(info.Compression, io.NewSectionReader(r, info.payload.off, info.payload.len))
	}
	if err != nil {
		return Info{}, err
	}
	inner, err := Inspect(bytes.NewReader(vmlinux))
	if err != nil {
		return Info{}, problem.From(err).WithHint("the payload of the kernel file unpacks to something else than a kernel: get the file anew")
	}
	if inner.Format != FormatVmlinux {
		return Info{}, errNotKernel("its payload is a %s again", inner.Format)
	}
	if _, err := w.Write(vmlinux); err != nil {
		return Info{}, err
	}
	return inner, nil
}

func errTooLarge(limit int64) error {
	return problem.New(problem.Invalid, "kernel.payload_too_large", "the kernel unpacks to more than %d MiB", limit>>20).
		WithHint("build it without debug information, or strip it")
}

// errDamaged makes the problem of a payload that does not unpack. Problems pass unchanged.
func errDamaged(c Compression, err error) error {
	var p *problem.Error
	if errors.As(err, &p) {
		return err
	}
	return problem.New(problem.Invalid, "kernel.payload_damaged", "the kernel's %s payload is damaged", c).
		WithCause(err).WithHint("get the file anew: it was cut off or changed")
}

// readLimited reads all of r, at most limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	n, err := buf.ReadFrom(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, errTooLarge(limit)
	}
	return buf.Bytes(), nil
}

// sizeSuffixBytes is the length of the unpacked size that the kernel's build appends to every
// payload but gzip's (whose own trailer has it).
const sizeSuffixBytes = 4

func unpack(c Compression, payload *io.SectionReader) ([]byte, error) {
	body := io.NewSectionReader(payload, 0, payload.Size()-sizeSuffixBytes)
	var out []byte
	var err error
	switch c {
	case CompressionGzip:
		out, err = unpackGzip(payload)
	case CompressionXZ:
		out, err = unpackXZ(body, VmlinuxBytesMax)
	case CompressionLZ4:
		out, err = unpackLZ4(body, VmlinuxBytesMax)
	case CompressionZstd:
		out, err = unpackZstd(body)
	default:
		err = errors.New("unknown compression")
	}
	if err != nil {
		return nil, errDamaged(c, err)
	}
	return out, nil
}

func unpackGzip(r io.Reader) ([]byte, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false) // the build may pad behind the only member
	return readLimited(z, VmlinuxBytesMax)
}

// zstdWindowMax is the window of zstd --ultra -22, as kernels are built: 128 MiB.
const zstdWindowMax = 128 << 20

func unpackZstd(r io.Reader) ([]byte, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindowMax),
		zstd.WithDecoderMaxMemory(VmlinuxBytesMax))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return readLimited(z, VmlinuxBytesMax)
}

// lz4BlockBytes is what each block of the legacy format unpacks to, but the last.
const lz4BlockBytes = 8 << 20

// unpackLZ4 reads LZ4's legacy frame: a magic number, then blocks of a 32-bit length and data.
func unpackLZ4(r io.Reader, limit int) ([]byte, error) {
	var magic [4]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return nil, err
	}
	if !bytes.Equal(magic[:], magicLZ4) {
		return nil, errors.New("no magic number")
	}
	var out, packed []byte
	block := make([]byte, lz4BlockBytes)
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		size := int(binary.LittleEndian.Uint32(head[:]))
		if size == 0 || size > lz4.CompressBlockBound(lz4BlockBytes) {
			return nil, errors.New("a block's length makes no sense")
		}
		if cap(packed) < size {
			packed = make([]byte, size)
		}
		packed = packed[:size]
		if _, err := io.ReadFull(r, packed); err != nil {
			return nil, io.ErrUnexpectedEOF
		}
		n, err := lz4.UncompressBlock(packed, block)
		if err != nil {
			return nil, err
		}
		if len(out)+n > limit {
			return nil, errTooLarge(int64(limit))
		}
		out = append(out, block[:n]...)
	}
}

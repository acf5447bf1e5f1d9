package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"

	"github.com/blixard/blixard/internal/problem"
)

// Format is the kind of a kernel file. The words are stored in bundles: never change one.
type Format string

// The two formats that VMMs boot on x86-64.
const (
	FormatBzImage Format = "bzImage" // with a boot stub that unpacks the kernel in the guest
	FormatVmlinux Format = "vmlinux" // the ELF file itself
)

// Compression of a bzImage's payload. The words are stored in bundles: never change one.
type Compression string

// The compressions of kernels in use; CompressionNone is a vmlinux's.
const (
	CompressionNone Compression = ""
	CompressionGzip Compression = "gzip"
	CompressionXZ   Compression = "xz"
	CompressionLZ4  Compression = "lz4"
	CompressionZstd Compression = "zstd"
)

const (
	// FileBytesMax is the largest kernel file taken. Debian's vmlinux without debug information has
	// 50 MiB; with it some 700 MiB, which nobody should boot.
	FileBytesMax = 256 << 20
	// VmlinuxBytesMax is the most a payload may unpack to.
	VmlinuxBytesMax = 256 << 20
	// versionBytesMax is the longest version taken: uname's field has 65 bytes.
	versionBytesMax = 64
	// bannerBytesMax is how much of a vmlinux is searched for its version.
	bannerBytesMax = 64 << 20
)

// Info is what a kernel file says of itself.
type Info struct {
	Format Format
	// PVH is whether a vmlinux has the Xen note with its 32-bit entry point, by which QEMU and
	// others start it directly. Always false for a bzImage.
	PVH         bool
	Compression Compression
	// Version as uname -r shows it; empty where the file does not say.
	Version string
	// payload is where the compressed vmlinux lies in a bzImage.
	payload span
}

// span is a range of bytes in a file; it was checked to lie within the file.
type span struct{ off, len int64 }

// errNotKernel makes the problem of a file that is no kernel; the format says what is wrong with it.
func errNotKernel(format string, args ...any) error {
	return problem.New(problem.Invalid, "kernel.not_a_kernel", "not a kernel: "+format, args...).
		WithHint("give an x86-64 Linux kernel: a bzImage (/boot/vmlinuz-...) or an uncompressed vmlinux with a PVH note")
}

// Inspect tells what kernel r holds. r may be hostile. It fails with a problem of kind Invalid and
// code kernel.not_a_kernel when it is none, and with r's error when r cannot be read. It reads at
// most bannerBytesMax of r and is safe for concurrent use if r is.
func Inspect(r io.ReaderAt) (Info, error) {
	var head [headBytes]byte
	n, err := r.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Info{}, err
	}
	switch {
	case n == 0:
		return Info{}, errNotKernel("the file is empty")
	case n < headBytes:
		return Info{}, errNotKernel("the file has only %d bytes", n)
	case bytes.HasPrefix(head[:], []byte("\x7fELF")):
		return inspectELF(r, head[:])
	case string(head[setupMagicOff:setupMagicOff+4]) == "HdrS":
		return inspectBzImage(r, head[:])
	case bytes.HasPrefix(head[:], []byte("\x1f\x8b")), bytes.HasPrefix(head[:], magicXZ), bytes.HasPrefix(head[:], magicZstd):
		return Info{}, errNotKernel("the file is compressed as a whole: unpack it first")
	case bytes.HasPrefix(head[:], []byte("#!")):
		return Info{}, errNotKernel("the file is a script")
	}
	return Info{}, errNotKernel("it starts neither as a bzImage nor as an ELF file")
}

// Offsets in the first sectors of a bzImage (the kernel's Documentation/arch/x86/boot.rst).
const (
	headBytes          = 1024
	setupSectsOff      = 0x1f1
	bootFlagOff        = 0x1fe
	setupMagicOff      = 0x202
	protocolOff        = 0x206
	versionPtrOff      = 0x20e
	loadFlagsOff       = 0x211
	payloadOff         = 0x248
	payloadLenOff      = 0x24c
	setupSectsDefault  = 4
	bytesPerSector     = 512
	protocolPayloadMin = 0x0208 // the first boot protocol that tells where the payload is
	loadedHigh         = 1
)

func inspectBzImage(r io.ReaderAt, head []byte) (Info, error) {
	le := binary.LittleEndian
	info := Info{Format: FormatBzImage}
	if le.Uint16(head[bootFlagOff:]) != 0xaa55 {
		return Info{}, errNotKernel("the boot sector has no signature")
	}
	if p := le.Uint16(head[protocolOff:]); p < protocolPayloadMin {
		return Info{}, errNotKernel("its boot protocol %d.%02d is older than 2.08 (Linux 2.6.26)", p>>8, p&0xff)
	}
	if head[loadFlagsOff]&loadedHigh == 0 {
		return Info{}, errNotKernel("it is a zImage, which loads below 1 MiB")
	}
	sects := int64(head[setupSectsOff])
	if sects == 0 {
		sects = setupSectsDefault
	}
	setup := (sects + 1) * bytesPerSector
	info.payload = span{off: setup + int64(le.Uint32(head[payloadOff:])), len: int64(le.Uint32(head[payloadLenOff:]))}
	if info.payload.len < 16 || info.payload.off+info.payload.len > FileBytesMax {
		return Info{}, errNotKernel("its payload of %d bytes at %d makes no sense", info.payload.len, info.payload.off)
	}
	var magic [8]byte
	if _, err := r.ReadAt(magic[:], info.payload.off); err != nil {
		return Info{}, truncated(err)
	}
	var last [1]byte
	if _, err := r.ReadAt(last[:], info.payload.off+info.payload.len-1); err != nil {
		return Info{}, truncated(err)
	}
	info.Compression = compressionOf(magic[:])
	if info.Compression == CompressionNone {
		return Info{}, errNotKernel("its payload starts with %x, which is neither gzip, xz, lz4 nor zstd", magic[:4])
	}
	if ptr := int64(le.Uint16(head[versionPtrOff:])); ptr != 0 && ptr+bytesPerSector < setup {
		var text [versionBytesMax]byte
		n, err := r.ReadAt(text[:], ptr+bytesPerSector)
		if err != nil && !errors.Is(err, io.EOF) {
			return Info{}, err
		}
		info.Version = firstWord(text[:n])
	}
	return info, nil
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return errNotKernel("the file is cut off")
	}
	return err
}

var (
	magicXZ   = []byte("\xfd7zXZ\x00")
	magicZstd = []byte("\x28\xb5\x2f\xfd")
	magicLZ4  = []byte("\x02\x21\x4c\x18")
)

func compressionOf(magic []byte) Compression {
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b\x08")):
		return CompressionGzip
	case bytes.HasPrefix(magic, magicXZ):
		return CompressionXZ
	case bytes.HasPrefix(magic, magicLZ4):
		return CompressionLZ4
	case bytes.HasPrefix(magic, magicZstd):
		return CompressionZstd
	}
	return CompressionNone
}

// firstWord gives the printable bytes of b up to the first blank or zero: a version that is safe to
// show. It is empty when anything else is among them.
func firstWord(b []byte) string {
	for i, c := range b {
		switch {
		case c == ' ' || c == 0 || c == '\n':
			return string(b[:i])
		case c < '!' || c > '~':
			return ""
		}
	}
	return ""
}

// DigestFile gives the SHA-256 of a file in hex, and its length.
func DigestFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

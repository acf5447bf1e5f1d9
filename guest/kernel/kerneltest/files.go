package kerneltest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Sizes and offsets of the formats, in bytes.
const (
	elfHeader     = 64
	programHeader = 56
	sectionHeader = 64
	lz4Block      = 8 << 20
	// BzImagePayload is where a bzImage made here has its payload.
	BzImagePayload = 1024
)

var le = binary.LittleEndian

// Vmlinux makes an ELF file that says it is the kernel of a version, with or without a PVH note. It has some
// machine code in which the x86 filter of xz finds jumps.
func Vmlinux(version string, pvh bool) []byte {
	var text bytes.Buffer
	for i := range uint32(500) {
		text.Write([]byte{0xe8, byte(i), byte(i >> 3), 0, 0, 0x90, 0xe9, byte(i), 0xfe, 0xff, 0xff})
	}
	text.WriteString("Linux version %s\x00Linux version " + version + " (test@test) #1\n\x00")
	var note bytes.Buffer
	kind := uint32(1)
	if pvh {
		kind = 18
	}
	for _, v := range []uint32{4, 4, kind} {
		_ = binary.Write(&note, le, v)
	}
	note.WriteString("Xen\x00\x00\x00\x00\x01")
	const headers = elfHeader + 2*programHeader
	b := header(2)
	le.PutUint64(b[32:], elfHeader)
	le.PutUint16(b[54:], programHeader)
	le.PutUint16(b[56:], 2)
	b = append(b, program(1, headers, uint64(text.Len()))...)
	b = append(b, program(4, headers+uint64(text.Len()), uint64(note.Len()))...)
	b = append(b, text.Bytes()...)
	return append(b, note.Bytes()...)
}

// header is an ELF header for x86-64 without any tables.
func header(kind uint16) []byte {
	b := make([]byte, elfHeader, 4<<10)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], kind)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint16(b[52:], elfHeader)
	return b
}

func program(kind uint32, off, size uint64) []byte {
	b := make([]byte, programHeader)
	le.PutUint32(b, kind)
	le.PutUint64(b[8:], off)
	le.PutUint64(b[32:], size)
	le.PutUint64(b[40:], size)
	return b
}

// Module makes a kernel module that depends on others.
func Module(name string, depends ...string) []byte {
	info := "license=GPL\x00depends=" + strings.Join(depends, ",") + "\x00name=" + name + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	b := header(1)
	infoAt := uint64(len(b))
	b = append(b, info...)
	namesAt := uint64(len(b))
	b = append(b, names...)
	le.PutUint64(b[40:], uint64(len(b)))
	le.PutUint16(b[58:], sectionHeader)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	section := func(name, kind uint32, off, size uint64) {
		s := make([]byte, sectionHeader)
		le.PutUint32(s, name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], off)
		le.PutUint64(s[32:], size)
		le.PutUint64(s[48:], 1)
		b = append(b, s...)
	}
	section(0, 0, 0, 0)
	section(1, 1, infoAt, uint64(len(info)))
	section(10, 3, namesAt, uint64(len(names)))
	return b
}

// BzImage packs a kernel as its build does. The compression is gzip, xz, lz4 or zstd.
func BzImage(t testing.TB, compression, version string, vmlinux []byte) []byte {
	t.Helper()
	payload := Pack(t, compression, vmlinux)
	if compression != "gzip" {
		payload = le.AppendUint32(payload, uint32(len(vmlinux)))
	}
	b := make([]byte, BzImagePayload, BzImagePayload+len(payload))
	const versionAt = 0x300
	b[0x1f1] = 1 // sectors of setup code
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x020f)
	le.PutUint16(b[0x20e:], versionAt-0x200)
	b[0x211] = 1
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	copy(b[versionAt:], version+" (test@test) #1\x00")
	return append(b, payload...)
}

// Pack compresses b as a kernel's build does.
func Pack(t testing.TB, compression string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var err error
	switch compression {
	case "gzip":
		w := gzip.NewWriter(&out)
		_, err = w.Write(b)
		if err == nil {
			err = w.Close()
		}
	case "zstd":
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(nil); err == nil {
			out.Write(w.EncodeAll(b, nil))
			err = w.Close()
		}
	case "lz4":
		err = packLZ4(&out, b)
	case "xz":
		cmd := exec.Command("xz", "--format=xz", "--check=crc32", "--x86", "--lzma2=preset=6,dict=32MiB", "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(b), &out
		err = cmd.Run()
	default:
		err = fmt.Errorf("unknown compression %q", compression)
	}
	if err != nil {
		t.Fatalf("pack by %s: %v", compression, err)
	}
	return out.Bytes()
}

// packLZ4 writes the legacy frame.
func packLZ4(out *bytes.Buffer, b []byte) error {
	out.WriteString("\x02\x21\x4c\x18")
	var c lz4.Compressor
	for len(b) > 0 {
		n := min(len(b), lz4Block)
		packed := make([]byte, lz4.CompressBlockBound(n))
		size, err := c.CompressBlock(b[:n], packed)
		if err != nil {
			return err
		}
		if size == 0 {
			return fmt.Errorf("a block of %d bytes does not get smaller", n)
		}
		_ = binary.Write(out, le, uint32(size))
		out.Write(packed[:size])
		b = b[n:]
	}
	return nil
}

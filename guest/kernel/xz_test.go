package kernel

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/guest/kernel/kerneltest"
)

// The filter is the inverse of xz's own, whatever opcodes follow each other.
func TestFilterX86Property(t *testing.T) {
	piece := rapid.SampledFrom([][]byte{
		{0xe8}, {0xe9}, {0x00}, {0xff}, {0xe8, 0, 0, 0, 0}, {0xe9, 0xff, 0xff, 0xff, 0xff}, {0xe8, 1, 2, 3, 0}, {0x0f, 0x84}, {0x90}, {0x01, 0xfe},
	})
	rapid.Check(t, func(rt *rapid.T) {
		var b []byte
		for _, p := range rapid.SliceOfN(piece, 0, 400).Draw(rt, "pieces") {
			b = append(b, p...)
		}
		b = append(b, rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(rt, "end")...)
		got, err := unpackXZ(bytes.NewReader(kerneltest.Pack(t, "xz", b)), 1<<20)
		if err != nil || !bytes.Equal(got, b) {
			rt.Fatalf("%x came back as %x, %v", b, got, err)
		}
	})
}

// xzParts takes an xz file apart that has the header of one block at a known place.
func xzParts(b []byte) (head, block, rest []byte) {
	size := (int(b[xzHeaderBytes]) + 1) * 4
	return b[:xzHeaderBytes], b[xzHeaderBytes : xzHeaderBytes+size], b[xzHeaderBytes+size:]
}

// blockHeader makes a block's header with a right checksum.
func blockHeader(flags byte, filters ...byte) []byte {
	b := append([]byte{0, flags}, filters...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b[0] = byte(len(b) / 4)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func TestXZRefuses(t *testing.T) {
	content := bytes.Repeat([]byte("content "), 1000)
	good := kerneltest.Pack(t, "xz", content)
	head, block, rest := xzParts(good)
	with := func(block []byte) []byte { return slices.Concat(head, block, rest) }
	lzma := []byte{xzFilterLZMA2, 1, 22}
	for name, b := range map[string][]byte{
		"empty":               nil,
		"short":               good[:8],
		"magic":               put(good, 0, uint8(0)),
		"header's checksum":   put(good, 8, uint8(good[8]^1)),
		"no block header":     good[:xzHeaderBytes],
		"index":               put(good, xzHeaderBytes, uint8(0)),
		"block cut off":       good[:xzHeaderBytes+4],
		"block's checksum":    put(good, xzHeaderBytes+2, uint8(block[2]^1)),
		"reserved flag":       with(blockHeader(0x04, lzma...)),
		"no filter":           with(blockHeader(0)),
		"unknown filter":      with(blockHeader(0, 0x09, 1, 22)),
		"x86 last":            with(blockHeader(0, xzFilterX86, 0)),
		"x86 twice":           with(blockHeader(2, append([]byte{xzFilterX86, 0, xzFilterX86, 0}, lzma...)...)),
		"huge dictionary":     with(blockHeader(0, xzFilterLZMA2, 1, 40)),
		"impossible one":      with(blockHeader(0, xzFilterLZMA2, 1, 41)),
		"properties cut off":  with(blockHeader(0, xzFilterLZMA2, 200)),
		"properties too long": with(blockHeader(0, xzFilterLZMA2, 2, 22, 0)),
		"sizes cut off":       with(blockHeader(xzFlagPacked|xzFlagUnpacked, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80)),
		"data cut off":        good[:len(good)/2],
		"no checksum":         slices.Concat(head, block, rest[:len(rest)-40]),
	} {
		if got, err := unpackXZ(bytes.NewReader(b), 1<<20); err == nil {
			t.Errorf("%s: %d bytes", name, len(got))
		}
	}
	if got, err := unpackXZ(bytes.NewReader(with(blockHeader(0, lzma...))), 1<<20); err != nil || !bytes.Equal(got, content) {
		t.Errorf("without the filter, which has nothing to do here: %d bytes, %v", len(got), err)
	}
	// Without a checksum of the content nothing is held against it.
	flags := []byte{0, 0}
	unchecked := slices.Concat(head[:6], flags, binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(flags)), block, rest)
	if got, err := unpackXZ(bytes.NewReader(unchecked), 1<<20); err != nil || !bytes.Equal(got, content) {
		t.Errorf("unchecked: %d bytes, %v", len(got), err)
	}
	small := kerneltest.Pack(t, "xz", []byte("abc"))
	if got, err := unpackXZ(bytes.NewReader(small), 1<<20); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzUnpackXZ(f *testing.F) {
	f.Add(kerneltest.Pack(f, "xz", []byte("abc")))
	f.Add(kerneltest.Pack(f, "xz", kerneltest.Vmlinux(version, true)))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		if got, err := unpackXZ(bytes.NewReader(b), limit); err == nil && len(got) > limit {
			t.Errorf("%d bytes", len(got))
		}
	})
}

func FuzzUnpackLZ4(f *testing.F) {
	f.Add(kerneltest.Pack(f, "lz4", bytes.Repeat([]byte("abc"), 100)))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		if got, err := unpackLZ4(bytes.NewReader(b), limit); err == nil && len(got) > limit {
			t.Errorf("%d bytes", len(got))
		}
	})
}

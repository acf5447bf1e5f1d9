package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/blixard/blixard/guest/kernel/kerneltest"
	"github.com/blixard/blixard/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var compressions = []Compression{CompressionGzip, CompressionXZ, CompressionLZ4, CompressionZstd}

const version = "6.1.0-test"

func TestInspectAndExtract(t *testing.T) {
	vmlinux := kerneltest.Vmlinux(version, true)
	want := Info{Format: FormatVmlinux, PVH: true, Version: version}
	if got, err := Inspect(bytes.NewReader(vmlinux)); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Inspect(bytes.NewReader(kerneltest.Vmlinux(version, false))); err != nil || got.PVH {
		t.Errorf("without a note: %+v, %v", got, err)
	}
	var out bytes.Buffer
	if got, err := ExtractVmlinux(bytes.NewReader(vmlinux), int64(len(vmlinux)), &out); err != nil || got != want || !bytes.Equal(out.Bytes(), vmlinux) {
		t.Errorf("of a vmlinux: %+v, %v, %d bytes", got, err, out.Len())
	}
	for _, c := range compressions {
		file := kerneltest.BzImage(t, string(c), version, vmlinux)
		got, err := Inspect(bytes.NewReader(file))
		if err != nil || got.Format != FormatBzImage || got.Compression != c || got.Version != version || got.PVH {
			t.Errorf("%s: %+v, %v", c, got, err)
		}
		out.Reset()
		inner, err := ExtractVmlinux(bytes.NewReader(file), int64(len(file)), &out)
		if err != nil || inner != want || !bytes.Equal(out.Bytes(), vmlinux) {
			t.Errorf("%s: %+v, %v, %d bytes of %d", c, inner, err, out.Len(), len(vmlinux))
		}
	}
}

// put gives a copy of b with a value at an offset.
func put(b []byte, off int, v any) []byte {
	c := slices.Clone(b)
	var w bytes.Buffer
	if err := binary.Write(&w, binary.LittleEndian, v); err != nil {
		panic(err) // only numbers are given
	}
	copy(c[off:], w.Bytes())
	return c
}

func TestInspectRefuses(t *testing.T) {
	elf := kerneltest.Vmlinux(version, true)
	bz := kerneltest.BzImage(t, "gzip", version, elf)
	const load, note = 64, 64 + 56
	for name, c := range map[string]struct {
		file []byte
		says string
	}{
		"empty":                  {nil, "empty"},
		"short":                  {[]byte("\x7fELF"), "only 4 bytes"},
		"text":                   {bytes.Repeat([]byte("text "), 1000), "neither"},
		"script":                 {append([]byte("#!/bin/sh\n"), make([]byte, 2000)...), "a script"},
		"packed as a whole":      {append(kerneltest.Pack(t, "gzip", elf), make([]byte, 2000)...), "compressed as a whole"},
		"32 bits":                {put(elf, 4, uint8(1)), "64-bit"},
		"big-endian":             {put(elf, 5, uint8(2)), "little-endian"},
		"another machine":        {put(elf, 18, uint16(183)), "machine 183"},
		"an object file":         {put(elf, 16, uint16(1)), "type 1"},
		"no program headers":     {put(elf, 56, uint16(0)), "0 program headers"},
		"too many":               {put(elf, 56, uint16(65)), "65 program headers"},
		"odd program headers":    {put(elf, 54, uint16(55)), "of 55 bytes"},
		"far program headers":    {put(elf, 32, uint64(1)<<40), "program headers"},
		"headers behind the end": {put(elf, 32, uint64(len(elf))), "cut off"},
		"huge segment":           {put(elf, load+32, uint64(1)<<62), "makes no sense"},
		"far segment":            {put(elf, load+8, uint64(1)<<62), "makes no sense"},
		"segment behind the end": {put(elf, load+32, uint64(len(elf))), "cut off"},
		"huge notes":             {put(elf, note+32, uint64(1)<<20), "its notes have 1048576 bytes"},
		"notes behind the end":   {put(elf, note+8, uint64(len(elf))), "cut off"},
		"nothing to load":        {put(elf, load, uint32(6)), "nothing to load"},
		"no version":             {bytes.ReplaceAll(elf, []byte("Linux version 6"), []byte("Linux version x")), "nowhere says"},
		"no signature":           {put(bz, bootFlagOff, uint16(0)), "no signature"},
		"old protocol":           {put(bz, protocolOff, uint16(0x0207)), "2.07"},
		"zImage":                 {put(bz, loadFlagsOff, uint8(0)), "zImage"},
		"no payload":             {put(bz, payloadLenOff, uint32(15)), "15 bytes"},
		"huge payload":           {put(bz, payloadLenOff, ^uint32(0)), "makes no sense"},
		"far payload":            {put(bz, payloadOff, ^uint32(0)), "makes no sense"},
		"payload behind the end": {put(bz, payloadOff, uint32(len(bz))), "cut off"},
		"payload cut off":        {bz[:len(bz)-1], "cut off"},
		"unknown payload":        {put(bz, kerneltest.BzImagePayload, uint32(0x51894c5a)), "neither gzip"},
	} {
		_, err := Inspect(bytes.NewReader(c.file))
		if !problem.HasCode(err, "kernel.not_a_kernel") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("broken disk")
	if _, err := Inspect(failingReader{broken}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if got, err := Inspect(bytes.NewReader(put(bz, versionPtrOff, uint16(0)))); err != nil || got.Version != "" {
		t.Errorf("without a version: %+v, %v", got, err)
	}
	if got, err := Inspect(bytes.NewReader(put(bz, 0x300, uint8(7)))); err != nil || got.Version != "" {
		t.Errorf("with a version that can't be shown: %+v, %v", got, err)
	}
	if got, err := Inspect(bytes.NewReader(put(bz, setupSectsOff, uint8(0)))); err == nil {
		t.Errorf("payload looked for at the default place: %+v", got)
	}
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

func TestExtractRefuses(t *testing.T) {
	elf := kerneltest.Vmlinux(version, true)
	for _, c := range compressions {
		good := kerneltest.BzImage(t, string(c), version, elf)
		size := len(good) - kerneltest.BzImagePayload
		for name, file := range map[string][]byte{
			"flipped":      put(good, kerneltest.BzImagePayload+size/2, ^good[kerneltest.BzImagePayload+size/2]),
			"claims less":  put(good, payloadLenOff, uint32(size/2)),
			"header alone": put(good, payloadLenOff, uint32(16)),
		} {
			var out bytes.Buffer
			_, err := ExtractVmlinux(bytes.NewReader(file), int64(len(file)), &out)
			// LZ4's old frame has no checksum: what is wrong shows in what is unpacked, or nowhere.
			if p := problem.From(err); (c != CompressionLZ4 || name != "flipped") && (p == nil || p.Kind != problem.Invalid) {
				t.Errorf("%s, %s: %v", c, name, err)
			}
		}
		twice := kerneltest.BzImage(t, string(c), version, good)
		if _, err := ExtractVmlinux(bytes.NewReader(twice), int64(len(twice)), io.Discard); !problem.HasCode(err, "kernel.not_a_kernel") {
			t.Errorf("%s of a bzImage: %v", c, err)
		}
		other := kerneltest.BzImage(t, string(c), version, bytes.Repeat([]byte("text "), 1000))
		if _, err := ExtractVmlinux(bytes.NewReader(other), int64(len(other)), io.Discard); !problem.HasCode(err, "kernel.not_a_kernel") {
			t.Errorf("%s of text: %v", c, err)
		}
	}
	if _, err := ExtractVmlinux(bytes.NewReader(elf), FileBytesMax+1, io.Discard); !problem.HasCode(err, "kernel.payload_too_large") {
		t.Errorf("too large: %v", err)
	}
	full := errors.New("disk full")
	if _, err := ExtractVmlinux(bytes.NewReader(elf), int64(len(elf)), failingWriter{full}); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if _, err := ExtractVmlinux(bytes.NewReader(nil), 0, io.Discard); !problem.HasCode(err, "kernel.not_a_kernel") {
		t.Errorf("of nothing: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// What unpacks to more than is allowed is refused, however small it comes.
func TestUnpackLimits(t *testing.T) {
	const limit = 1 << 20
	zeros := make([]byte, limit+1)
	if _, err := unpackXZ(bytes.NewReader(kerneltest.Pack(t, "xz", zeros)), limit); !problem.HasCode(err, "kernel.payload_too_large") {
		t.Errorf("xz: %v", err)
	}
	if _, err := unpackLZ4(bytes.NewReader(kerneltest.Pack(t, "lz4", zeros)), limit); !problem.HasCode(err, "kernel.payload_too_large") {
		t.Errorf("lz4: %v", err)
	}
	if got, err := unpackXZ(bytes.NewReader(kerneltest.Pack(t, "xz", zeros[1:])), limit); err != nil || len(got) != limit {
		t.Errorf("xz at the limit: %d bytes, %v", len(got), err)
	}
	if got, err := unpackLZ4(bytes.NewReader(kerneltest.Pack(t, "lz4", zeros[1:])), limit); err != nil || len(got) != limit {
		t.Errorf("lz4 at the limit: %d bytes, %v", len(got), err)
	}
	if _, err := readLimited(bytes.NewReader(zeros), limit); !problem.HasCode(err, "kernel.payload_too_large") {
		t.Errorf("%v", err)
	}
	for name, b := range map[string]string{
		"no magic": "abcd", "short": "\x02\x21", "no length": "\x02\x21\x4c\x18\x01", "length zero": "\x02\x21\x4c\x18\x00\x00\x00\x00",
		"huge": "\x02\x21\x4c\x18\xff\xff\xff\x7f", "cut off": "\x02\x21\x4c\x18\x10\x00\x00\x00x", "no block": "\x02\x21\x4c\x18\x02\x00\x00\x00\xff\xff",
	} {
		if got, err := unpackLZ4(strings.NewReader(b), limit); err == nil {
			t.Errorf("lz4, %s: %d bytes", name, len(got))
		}
	}
	if _, err := unpack("rar", io.NewSectionReader(bytes.NewReader(zeros), 0, 100)); !problem.HasCode(err, "kernel.payload_damaged") {
		t.Errorf("%v", err)
	}
}

func FuzzExtract(f *testing.F) {
	elf := kerneltest.Vmlinux(version, true)
	f.Add(elf)
	for _, c := range compressions {
		f.Add(kerneltest.BzImage(f, string(c), version, elf))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		info, err := Inspect(bytes.NewReader(file))
		if err != nil {
			if !problem.HasCode(err, "kernel.not_a_kernel") {
				t.Errorf("%v", err)
			}
			return
		}
		if len(info.Version) > versionBytesMax || strings.ContainsFunc(info.Version, func(r rune) bool { return r < '!' || r > '~' }) {
			t.Errorf("the version %q", info.Version)
		}
		var out bytes.Buffer
		if inner, err := ExtractVmlinux(bytes.NewReader(file), int64(len(file)), &out); err == nil && inner.Format != FormatVmlinux {
			t.Errorf("%+v", inner)
		} else if p := problem.From(err); p != nil && p.Kind != problem.Invalid {
			t.Errorf("%v", err)
		}
	})
}

func TestDigestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	sum, size, err := DigestFile(path)
	if err != nil || size != 3 || sum != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("%s, %d, %v", sum, size, err)
	}
	if _, _, err := DigestFile(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

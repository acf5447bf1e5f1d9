package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// partition is a piece of a disk.
type partition struct {
	offset, bytes int64
	// root is whether the table says that it holds the root of this architecture.
	root bool
}

func badDisk(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "image.disk", "the disk cannot be used: "+format, args...).
		WithHint("import a disk of Linux for x86-64 with an ext4 or erofs root, as raw or qcow2")
}

// rootGUID is the type of a root partition for x86-64, 4f68bce3-e8cd-4db1-96e7-fbcaf984b709,
// as it is on disk.
var rootGUID = []byte{0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09}

// findRoot finds the root file system on a disk of that many bytes: the disk as a
// whole, or the partition that the table calls the root of this architecture, or the
// largest with a file system that guests can mount.
func findRoot(disk io.ReaderAt, size int64) (partition, fileSystem, error) {
	whole := partition{0, size, false}
	fs, bare := probe(disk, whole)
	if bare == nil {
		return whole, fs, nil
	}
	parts, err := readPartitions(disk, size)
	if err != nil {
		return partition{}, fileSystem{}, err
	}
	if len(parts) == 0 {
		return partition{}, fileSystem{}, bare
	}
	best, bestFS := partition{}, fileSystem{}
	var wrong []error
	for _, p := range parts {
		fs, err := probe(disk, p)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		if best.bytes == 0 || p.root && !best.root || p.root == best.root && fs.bytes > bestFS.bytes {
			best, bestFS = p, fs
		}
	}
	if best.bytes == 0 {
		// What another file system is says more than that one has none.
		for _, err := range wrong {
			if problem.HasCode(err, "image.disk_fs") {
				return best, bestFS, err
			}
		}
		return best, bestFS, badDisk("none of its %d partitions has a file system that guests can mount", len(parts))
	}
	return best, bestFS, nil
}

// readPartitions reads a GPT, or else an MBR.
func readPartitions(disk io.ReaderAt, size int64) ([]partition, error) {
	for _, sector := range []int64{512, 4096} {
		header := make([]byte, 92)
		if _, err := disk.ReadAt(header, sector); err == nil && bytes.HasPrefix(header, []byte("EFI PART")) {
			return readGPT(disk, size, sector, header)
		}
	}
	return readMBR(disk, size)
}

func readGPT(disk io.ReaderAt, size, sector int64, header []byte) ([]partition, error) {
	le := binary.LittleEndian
	entriesAt, entries, entryBytes := le.Uint64(header[72:]), le.Uint32(header[80:]), le.Uint32(header[84:])
	if entries > partitionsMax || entryBytes < 128 || entryBytes > 4096 || entriesAt > uint64(size/sector) {
		return nil, badDisk("its partition table has %d entries of %d bytes at sector %d", entries, entryBytes, entriesAt)
	}
	if le.Uint32(header[12:]) != uint32(len(header)) || checksumGPT(header) != le.Uint32(header[16:]) {
		return nil, badDisk("the header of its partition table is damaged")
	}
	table := make([]byte, int(entries)*int(entryBytes))
	if _, err := disk.ReadAt(table, int64(entriesAt)*sector); err != nil {
		return nil, badDisk("its partition table cannot be read").WithCause(err)
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(header[88:]) {
		return nil, badDisk("its partition table is damaged")
	}
	var parts []partition
	for n := range int(entries) {
		e := table[n*int(entryBytes):]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first > last || last >= uint64(size/sector) {
			return nil, badDisk("partition %d lies outside, from sector %d to %d of %d", n+1, first, last, size/sector)
		}
		parts = append(parts, partition{int64(first) * sector, int64(last-first+1) * sector, bytes.Equal(e[:16], rootGUID)})
	}
	return parts, nil
}

// checksumGPT is of the header with its own sum as zeros.
func checksumGPT(header []byte) uint32 {
	h := bytes.Clone(header)
	clear(h[16:20])
	return crc32.ChecksumIEEE(h)
}

// readMBR reads the four entries of a master boot record and the chain of logical
// partitions behind an extended one.
func readMBR(disk io.ReaderAt, size int64) ([]partition, error) {
	var parts []partition
	var extended uint32
	err := eachMBR(disk, 0, func(kind byte, first, count uint32) error {
		if isExtended(kind) {
			extended = first
			return nil
		}
		p := partition{int64(first) * 512, int64(count) * 512, false}
		if p.offset+p.bytes > size {
			return badDisk("a partition lies outside, from byte %d to %d of %d", p.offset, p.offset+p.bytes, size)
		}
		parts = append(parts, p)
		return nil
	})
	if err != nil || extended == 0 {
		return parts, err
	}
	for next := extended; next != 0; {
		at := next
		next = 0
		err := eachMBR(disk, int64(at)*512, func(kind byte, first, count uint32) error {
			if isExtended(kind) {
				if uint64(extended)+uint64(first) > 1<<32-1 {
					return badDisk("its chain of partitions leads outside")
				}
				next = extended + first
				return nil
			}
			p := partition{(int64(at) + int64(first)) * 512, int64(count) * 512, false}
			if p.offset+p.bytes > size {
				return badDisk("a partition lies outside, from byte %d to %d of %d", p.offset, p.offset+p.bytes, size)
			}
			parts = append(parts, p)
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(parts) > partitionsMax || next != 0 && next <= at { // a chain only grows
			return nil, badDisk("its chain of partitions is endless")
		}
	}
	return parts, nil
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

// eachMBR visits the entries of a boot record; one without the mark has none.
func eachMBR(disk io.ReaderAt, at int64, visit func(kind byte, first, count uint32) error) error {
	var sector [512]byte
	if _, err := disk.ReadAt(sector[:], at); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return readDiskError(err)
	}
	if sector[510] != 0x55 || sector[511] != 0xaa {
		return nil
	}
	for n := range 4 {
		e := sector[446+16*n:]
		kind, first, count := e[4], binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		if kind == 0 || count == 0 {
			continue
		}
		if err := visit(kind, first, count); err != nil {
			return err
		}
	}
	return nil
}

// readDiskError keeps what a decoder says, and else tells of the file.
func readDiskError(err error) error {
	var p *problem.Error
	if errors.As(err, &p) {
		return err
	}
	return badDisk("it cannot be read").WithCause(err)
}

// fileSystem is what a superblock says.
type fileSystem struct {
	kind  string
	bytes int64
}

// foreign are file systems and containers that guests cannot mount as their root.
var foreign = []struct {
	offset int64
	magic  string
	name   string
}{
	{0, "XFSB", "xfs"},
	{0x10040, "_BHRfS_M", "btrfs"},
	{0, "hsqs", "squashfs"},
	{0x8001, "CD001", "an ISO 9660 disc"},
	{0x218, "LVM2 001", "a volume of LVM"},
	{0, "LUKS\xba\xbe", "encrypted (LUKS)"},
	{0x400, "\x10\x20\xf5\xf2", "f2fs"},
	{3, "NTFS    ", "NTFS"},
	{0x52, "FAT32   ", "FAT"},
	{0x36, "FAT1", "FAT"},
	{0, "QFI\xfb", "a disk in qcow2, which was called raw"},
}

// Offsets in ext4's superblock, and bits of its features.
const (
	ext4SuperOffset = 1024
	ext4Magic       = 0xef53
	ext4Recover     = 0x4
	ext4Journal     = 0x8 // a journal of another file system
	ext4Is64Bit     = 0x80
	ext4Encrypted   = 0x10000
)

// probe looks for a file system that guests can mount.
func probe(disk io.ReaderAt, p partition) (fileSystem, error) {
	none := badDisk("it has no file system that is known")
	b := make([]byte, 4096)
	if p.bytes < int64(len(b)) {
		return fileSystem{}, none
	}
	if _, err := disk.ReadAt(b, p.offset); err != nil {
		return fileSystem{}, readDiskError(err)
	}
	sb := b[ext4SuperOffset:]
	le := binary.LittleEndian
	fs := fileSystem{}
	switch {
	case le.Uint16(sb[56:]) == ext4Magic:
		var err error
		if fs, err = probeExt4(sb); err != nil {
			return fs, err
		}
	case le.Uint32(sb) == erofsMagic:
		if sb[12] != erofsBlockBits {
			return fs, problem.New(problem.Invalid, "image.disk_fs", "the disk has erofs with blocks of 2^%d bytes, guests have 4096", sb[12]).
				WithHint("make it with -b 4096")
		}
		fs = fileSystem{fsErofs, int64(le.Uint32(sb[36:])) * blockBytes}
	default:
		return fs, probeForeign(disk, p, none)
	}
	if fs.bytes <= 0 || fs.bytes > p.bytes {
		return fs, badDisk("its file system of %d bytes does not fit into %d", fs.bytes, p.bytes)
	}
	return fs, nil
}

func probeExt4(sb []byte) (fileSystem, error) {
	le := binary.LittleEndian
	incompat := le.Uint32(sb[96:])
	blocks := uint64(le.Uint32(sb[4:]))
	if incompat&ext4Is64Bit != 0 {
		blocks |= uint64(le.Uint32(sb[336:])) << 32
	}
	shift := le.Uint32(sb[24:])
	switch {
	case shift > 2 || blocks > diskBytesMax>>(10+shift):
		return fileSystem{}, badDisk("its ext4 has %d blocks of 2^%d bytes", blocks, 10+uint64(shift))
	case incompat&ext4Recover != 0:
		return fileSystem{}, problem.New(problem.Invalid, "image.disk_dirty", "the disk's ext4 was not unmounted: its journal must be replayed").
			WithHint("shut the machine down before copying its disk, or run e2fsck on it")
	case incompat&(ext4Journal|ext4Encrypted) != 0:
		return fileSystem{}, badDisk("its ext4 has features %#x that guests do not mount", incompat)
	}
	return fileSystem{"ext4", int64(blocks) << (10 + shift)}, nil
}

// probeForeign names what is there instead.
func probeForeign(disk io.ReaderAt, p partition, none error) error {
	for _, f := range foreign {
		b := make([]byte, len(f.magic))
		if f.offset+int64(len(b)) > p.bytes {
			continue
		}
		if _, err := disk.ReadAt(b, p.offset+f.offset); err != nil {
			return readDiskError(err)
		}
		if string(b) == f.magic {
			return problem.New(problem.Invalid, "image.disk_fs", "the disk has %s, guests can mount %s", f.name, strings.Join(fsTypes, " and ")).
				WithHint("copy its files into a file system of ext4, or make an image of OCI of them")
		}
	}
	return none
}

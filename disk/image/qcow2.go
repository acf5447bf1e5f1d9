package image

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/blixard/blixard/internal/problem"
)

// The form of qcow2 on disk; all numbers are big endian.
const (
	qcow2Magic      = "QFI\xfb"
	qcow2Header2    = 72
	qcow2Header3    = 104
	qcow2L1BytesMax = 32 << 20 // QEMU's own limit

	qcow2Corrupt      = 1 << 1
	qcow2DataFile     = 1 << 2
	qcow2Compression  = 1 << 3
	qcow2KnownFeature = 1<<0 | qcow2Corrupt | qcow2DataFile | qcow2Compression // bit 0: reference counts are not right, which a reader does not need

	qcow2OffsetMask = 0x00fffffffffffe00
	qcow2Compressed = 1 << 62
	qcow2Zero       = 1 << 0
)

// qcow2 reads the disk in a file of that format. It is not safe for concurrent use.
type qcow2 struct {
	f           io.ReaderAt
	fileBytes   int64
	size        int64
	clusterBits uint
	zstd        bool
	l1          []uint64

	// The tables and the cluster that were used last.
	l2     []uint64
	l2At   uint64
	plain  []byte
	plainE uint64 // its entry; 0 is none
}

func badQcow2(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "image.qcow2", "the file is no valid qcow2: "+format, args...).
		WithHint("check it with qemu-img check, or convert it: qemu-img convert -O raw")
}

func foreignQcow2(what string) *problem.Error {
	return problem.New(problem.Invalid, "image.qcow2_feature", "the qcow2 %s", what).
		WithHint("make a plain one of it: qemu-img convert -O qcow2")
}

// openQcow2 reads the header and the first table.
func openQcow2(f io.ReaderAt, fileBytes int64) (*qcow2, error) {
	h := make([]byte, qcow2Header3)
	n, err := f.ReadAt(h, 0)
	if err != nil && !errors.Is(err, io.EOF) || n < qcow2Header2 {
		return nil, badQcow2("it has %d bytes", n)
	}
	be := binary.BigEndian
	version := be.Uint32(h[4:])
	switch {
	case string(h[:4]) != qcow2Magic:
		return nil, badQcow2("it does not begin as one")
	case version != 2 && version != 3, version == 3 && n < qcow2Header3:
		return nil, badQcow2("it has the version %d", version)
	case be.Uint64(h[8:]) != 0 || be.Uint32(h[16:]) != 0:
		return nil, foreignQcow2("has a backing file: it is only a part of a disk")
	case be.Uint32(h[32:]) != 0:
		return nil, foreignQcow2("is encrypted")
	}
	q := &qcow2{f: f, fileBytes: fileBytes, clusterBits: uint(be.Uint32(h[20:]))}
	if version == 3 {
		if err := q.readFeatures(h); err != nil {
			return nil, err
		}
	}
	size, l1Entries, l1At := be.Uint64(h[24:]), uint64(be.Uint32(h[36:])), be.Uint64(h[40:])
	if q.clusterBits < 9 || q.clusterBits > 21 {
		return nil, badQcow2("its clusters have 2^%d bytes", q.clusterBits)
	}
	if size == 0 || size > diskBytesMax {
		return nil, tooLarge("the disk has %d bytes, 1 to %d are possible", size, int64(diskBytesMax))
	}
	q.size = int64(size)
	perL1 := uint64(1) << (2*q.clusterBits - 3) // bytes that an entry stands for
	need := (size + perL1 - 1) / perL1
	if l1Entries < need || need*8 > qcow2L1BytesMax || l1At%512 != 0 {
		return nil, badQcow2("its first table has %d entries at byte %d, %d are needed", l1Entries, l1At, need)
	}
	q.l1, err = q.table(l1At, int(need))
	return q, err
}

func (q *qcow2) readFeatures(h []byte) error {
	features := binary.BigEndian.Uint64(h[72:])
	switch {
	case features&qcow2Corrupt != 0:
		return badQcow2("it is marked as corrupt")
	case features&qcow2DataFile != 0:
		return foreignQcow2("has its data in another file")
	case features&^qcow2KnownFeature != 0:
		return foreignQcow2("has features that are not known, such as extended tables")
	case features&qcow2Compression != 0:
		var kind [1]byte // follows the header proper
		if _, err := q.f.ReadAt(kind[:], qcow2Header3); err != nil || kind[0] > 1 {
			return foreignQcow2("has a compression that is not known")
		}
		q.zstd = kind[0] == 1
	}
	return nil
}

// table reads entries of 64 bits.
func (q *qcow2) table(at uint64, entries int) ([]uint64, error) {
	if at > uint64(q.fileBytes) || uint64(q.fileBytes)-at < uint64(entries)*8 {
		return nil, badQcow2("a table of %d entries at byte %d lies outside of it", entries, at)
	}
	raw := make([]byte, entries*8)
	if _, err := q.f.ReadAt(raw, int64(at)); err != nil {
		return nil, badQcow2("a table cannot be read").WithCause(err)
	}
	t := make([]uint64, entries)
	for n := range t {
		t[n] = binary.BigEndian.Uint64(raw[n*8:])
	}
	return t, nil
}

// ReadAt gives bytes of the disk.
func (q *qcow2) ReadAt(p []byte, at int64) (int, error) {
	done := 0
	for done < len(p) {
		if at >= q.size {
			return done, io.EOF
		}
		within := at & (1<<q.clusterBits - 1)
		n := min(int64(len(p)-done), 1<<q.clusterBits-within, q.size-at)
		if err := q.readCluster(p[done:done+int(n)], at>>q.clusterBits, within); err != nil {
			return done, err
		}
		done, at = done+int(n), at+n
	}
	return done, nil
}

// readCluster gives bytes of one cluster.
func (q *qcow2) readCluster(p []byte, cluster, within int64) error {
	entry, err := q.entry(cluster)
	if err != nil {
		return err
	}
	if entry&qcow2Compressed != 0 {
		if err := q.decompress(entry); err != nil {
			return err
		}
		copy(p, q.plain[within:])
		return nil
	}
	at := entry & qcow2OffsetMask
	if at == 0 || entry&qcow2Zero != 0 {
		clear(p)
		return nil
	}
	if at&(1<<q.clusterBits-1) != 0 || at > uint64(q.fileBytes) {
		return badQcow2("cluster %d lies at byte %d", cluster, at)
	}
	// The last cluster of the file may be cut short; the rest of it is zeros.
	n, err := q.f.ReadAt(p, int64(at)+within)
	if err != nil && !errors.Is(err, io.EOF) {
		return badQcow2("cluster %d cannot be read", cluster).WithCause(err)
	}
	clear(p[n:])
	return nil
}

// entry gives what the tables say of a cluster.
func (q *qcow2) entry(cluster int64) (uint64, error) {
	bits := q.clusterBits - 3
	table := q.l1[cluster>>bits] & qcow2OffsetMask
	if table == 0 {
		return 0, nil
	}
	if table&(1<<q.clusterBits-1) != 0 {
		return 0, badQcow2("a table lies at byte %d", table)
	}
	if q.l2At != table {
		t, err := q.table(table, 1<<bits)
		if err != nil {
			return 0, err
		}
		q.l2, q.l2At = t, table
	}
	return q.l2[cluster&(1<<bits-1)], nil
}

// decompress makes q.plain the cluster of an entry.
func (q *qcow2) decompress(entry uint64) error {
	if q.plainE == entry {
		return nil
	}
	q.plainE = 0
	offsetBits := 62 - (q.clusterBits - 8)
	at := entry & (1<<offsetBits - 1)
	sectors := entry&(qcow2Compressed-1)>>offsetBits + 1
	length := min(int64(sectors*512-at&511), q.fileBytes-int64(at))
	if at >= uint64(q.fileBytes) || length <= 0 {
		return badQcow2("a compressed cluster lies at byte %d", at)
	}
	raw := make([]byte, length)
	if _, err := q.f.ReadAt(raw, int64(at)); err != nil && !errors.Is(err, io.EOF) {
		return badQcow2("a compressed cluster cannot be read").WithCause(err)
	}
	if q.plain == nil {
		q.plain = make([]byte, 1<<q.clusterBits)
	}
	var r io.ReadCloser
	if q.zstd {
		z, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowBytesMax))
		if err != nil {
			return err
		}
		r = z.IOReadCloser()
	} else {
		r = flate.NewReader(bytes.NewReader(raw))
	}
	defer r.Close()
	if _, err := io.ReadFull(r, q.plain); err != nil {
		return badQcow2("a compressed cluster is damaged").WithCause(err)
	}
	q.plainE = entry
	return nil
}

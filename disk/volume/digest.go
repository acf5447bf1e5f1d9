package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"os"

	"github.com/blixard/blixard/disk"
)

// chunkBytes is the unit of digests and of what is sent: a chunk of zeros is neither
// read where it is a hole, nor hashed, nor sent.
const chunkBytes = 64 << 10

// digestDomain begins what is hashed. A change of what is hashed changes it.
const digestDomain = "blixard volume content 1\n"

// digester hashes the content of a file: SHA-256 of digestDomain, the size, and of each
// chunk that is not all zeros, in order, its offset and its bytes (the last one up to
// the size). Numbers are 8 bytes, big endian. Which zeros are holes does not matter, so
// that it tells what a reader of the disk sees, in the time that its data take.
type digester struct{ h hash.Hash }

func newDigester(size int64) digester {
	d := digester{sha256.New()}
	_, _ = io.WriteString(d.h, digestDomain)
	d.number(size)
	return d
}

func (d digester) number(n int64) {
	_, _ = d.h.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

func (d digester) chunk(at int64, data []byte) {
	d.number(at)
	_, _ = d.h.Write(data)
}

func (d digester) sum() []byte { return d.h.Sum(nil) }

var zeros [chunkBytes]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// eachChunk visits the chunks of f that are not all zeros, in order. data is valid
// until visit returns.
func eachChunk(ctx context.Context, f *os.File, size int64, visit func(at int64, data []byte) error) error {
	buf := make([]byte, chunkBytes)
	next := int64(0) // of extents that share a chunk the second one begins here
	return disk.EachExtent(f, 0, size, func(begin, end int64) error {
		for at := max(begin&^(chunkBytes-1), next); at < end; at += chunkBytes {
			if err := ctx.Err(); err != nil {
				return err
			}
			data := buf[:min(chunkBytes, size-at)]
			if _, err := io.ReadFull(io.NewSectionReader(f, at, int64(len(data))), data); err != nil {
				return &os.PathError{Op: "read", Path: f.Name(), Err: err}
			}
			next = at + chunkBytes
			if isZero(data) {
				continue
			}
			if err := visit(at, data); err != nil {
				return err
			}
		}
		return nil
	})
}

// digest of a whole file.
func digest(ctx context.Context, f *os.File, size int64) ([]byte, error) {
	d := newDigester(size)
	err := eachChunk(ctx, f, size, func(at int64, data []byte) error {
		d.chunk(at, data)
		return nil
	})
	return d.sum(), err
}

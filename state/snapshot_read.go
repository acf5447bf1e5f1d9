package state

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

const (
	// chunkBytes of records are decoded at once: some hundred of them.
	chunkBytes = 128 << 10
	// bufferBytes hold a chunk with the record that ends it, if that is not large.
	bufferBytes = chunkBytes + chunkBytes/8
	// chunksMax are read ahead of the one that is taken.
	chunksMax = 8
	// chunkRecords is about how many there are in a chunk.
	chunkRecords = 512
)

// endNumber is the field of the record that ends a stream.
var endNumber = (&blixardv1.StateSnapshot{}).ProtoReflect().Descriptor().Fields().ByName("end").Number()

// snapshotReader gives the records of a stream in their order, while others read
// and decode those behind. What it gives depends on the stream alone.
type snapshotReader struct {
	chunks  chan *chunk
	quit    chan struct{} // closed when nothing more is wanted
	current *chunk
	at      int
	records uint64
}

// chunk is a run of records.
type chunk struct {
	buffer  *[]byte // that data begins in
	data    []byte
	ends    []int // of the records in data
	decoded chan struct{}
	// Once decoded is closed:
	records []*blixardv1.StateSnapshot
	failed  error // of the record behind records
	// sum is the digest of everything before the last record, if that ends the
	// stream; err is what came instead of the next record.
	sum []byte
	err error
}

func newSnapshotReader(in io.Reader) *snapshotReader {
	r := &snapshotReader{chunks: make(chan *chunk, chunksMax), quit: make(chan struct{})}
	go r.read(in)
	return r
}

// readers and buffers are reused: most states are far smaller than either.
var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, chunkBytes) }}
	buffers = sync.Pool{New: func() any { b := make([]byte, 0, bufferBytes); return &b }}
)

// close waits until nothing is read any more.
func (r *snapshotReader) close() {
	close(r.quit)
	for c := range r.chunks {
		<-c.decoded
	}
}

func (r *snapshotReader) read(in io.Reader) {
	defer close(r.chunks)
	b := readers.Get().(*bufio.Reader)
	b.Reset(in)
	defer func() { b.Reset(nil); readers.Put(b) }()
	from := &recordSource{in: b, digest: sha256.New()}
	for {
		c := from.chunk()
		go c.decode()
		select {
		case r.chunks <- c:
		case <-r.quit:
			return
		}
		if c.sum != nil || c.err != nil {
			return
		}
	}
}

// next gives one record; sum is the digest of everything before it if it is the
// end.
func (r *snapshotReader) next() (record *blixardv1.StateSnapshot, sum []byte, err error) {
	for r.current == nil || r.at == len(r.current.records) {
		if c := r.current; c != nil {
			switch {
			case c.failed != nil:
				return nil, nil, damaged("record %d: %v", r.records+1, c.failed)
			case c.err != nil:
				return nil, nil, c.err
			}
		}
		c, ok := <-r.chunks
		if !ok {
			return nil, nil, damaged("it has no end")
		}
		<-c.decoded
		r.current, r.at = c, 0
	}
	record = r.current.records[r.at]
	r.at++
	r.records++
	if record.GetEnd() != nil {
		sum = r.current.sum
	}
	return record, sum, nil
}

// recordSource takes a stream apart.
type recordSource struct {
	in      *bufio.Reader
	digest  hash.Hash
	records uint64
}

// chunk reads the next records, up to the end of the stream.
func (s *recordSource) chunk() *chunk {
	buffer := buffers.Get().(*[]byte)
	c := &chunk{buffer: buffer, data: *buffer, ends: make([]int, 0, chunkRecords), decoded: make(chan struct{})}
	for len(c.data) < chunkBytes {
		begin := len(c.data)
		if c.err = s.record(c); c.err != nil {
			c.data = c.data[:begin]
			return c
		}
		if number, _, n := protowire.ConsumeTag(c.data[begin:]); n > 0 && number == endNumber {
			return c
		}
	}
	return c
}

// record reads one record, and its digest unless it is the end.
func (s *recordSource) record(c *chunk) error {
	size, err := binary.ReadUvarint(s.in)
	if err != nil {
		return damaged("it ends after record %d: %v", s.records, err)
	}
	if size > recordBytesMax {
		return damaged("record %d of %d bytes", s.records+1, size)
	}
	begin := len(c.data)
	c.data = append(c.data, make([]byte, size)...)
	body := c.data[begin:]
	if _, err := io.ReadFull(s.in, body); err != nil {
		return damaged("it ends within record %d: %v", s.records+1, err)
	}
	if number, _, n := protowire.ConsumeTag(body); n > 0 && number == endNumber {
		c.sum = s.digest.Sum(nil)
	}
	var head [binary.MaxVarintLen64]byte
	s.digest.Write(head[:binary.PutUvarint(head[:], size)])
	s.digest.Write(body)
	s.records++
	c.ends = append(c.ends, len(c.data))
	return nil
}

// decode makes messages of the records.
func (c *chunk) decode() {
	defer close(c.decoded)
	c.records = make([]*blixardv1.StateSnapshot, 0, len(c.ends))
	begin := 0
	for _, end := range c.ends {
		record := &blixardv1.StateSnapshot{}
		if c.failed = proto.Unmarshal(c.data[begin:end], record); c.failed != nil {
			break
		}
		c.records = append(c.records, record)
		begin = end
	}
	// What was decoded has copies.
	buffers.Put(c.buffer)
	c.buffer, c.data = nil, nil
}

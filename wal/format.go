package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"go.etcd.io/raft/v3/raftpb"
)

// The format of a segment. All integers of fixed size are little-endian.
const (
	// segmentFormat is the newest format that this version writes and reads.
	segmentFormat = 1

	segmentMagic       = "BLXWAL1\n"
	segmentHeaderBytes = 48
	// framesOffset is where frames begin: a page of its own for the header, so
	// that no append ever writes to the header's sector.
	framesOffset = 4096

	// sectorBytes is what a disk writes wholly or not at all.
	sectorBytes = 512
	// frameAlign divides sectorBytes, so that no frame header lies in two sectors.
	frameAlign       = 32
	frameHeaderBytes = 32
	frameMagic       = 0x46a5584c
	// frameMarkByte fills a frame's end, at least markBytesMin of it, so that the
	// end of a written frame is never a run of zeros.
	frameMarkByte = 0xA5
	markBytesMin  = 8
	// framePayloadMax bounds the payload of a frame: twice what a replica lets be
	// under way.
	framePayloadMax = 64 << 20

	frameBatch = 1
	frameSeal  = 2

	itemEntry     = 1
	itemHardState = 2
	itemRestart   = 3
	// maxHardStateBytes: a kind and three numbers of at most ten bytes.
	maxHardStateBytes = 31
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segmentHeader opens a segment.
type segmentHeader struct {
	sequence uint64
	// first is the index of the entry that was next when the segment was made.
	first uint64
	nonce uint64
}

func (h segmentHeader) encode() []byte {
	b := make([]byte, 0, segmentHeaderBytes)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, segmentFormat)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, h.sequence)
	b = binary.LittleEndian.AppendUint64(b, h.first)
	b = binary.LittleEndian.AppendUint64(b, h.nonce)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

var (
	errHeader = errors.New("the segment's header is damaged")
	errNewer  = errors.New("the segment was written by a newer version")
)

func decodeSegmentHeader(b []byte) (segmentHeader, error) {
	if len(b) < segmentHeaderBytes || string(b[:len(segmentMagic)]) != segmentMagic ||
		crc32.Checksum(b[:segmentHeaderBytes-4], castagnoli) != binary.LittleEndian.Uint32(b[segmentHeaderBytes-4:]) {
		return segmentHeader{}, errHeader
	}
	if binary.LittleEndian.Uint32(b[8:]) > segmentFormat {
		return segmentHeader{}, errNewer
	}
	return segmentHeader{
		sequence: binary.LittleEndian.Uint64(b[16:]),
		first:    binary.LittleEndian.Uint64(b[24:]),
		nonce:    binary.LittleEndian.Uint64(b[32:]),
	}, nil
}

// frameHeader opens a frame:
//
//	0 magic  4 kind  8 payload length  12 zero  16 number  24 payload CRC  28 header CRC
type frameHeader struct {
	kind    uint32
	payload uint32 // length in bytes
	// number counts the frames of the whole log, from 1.
	number     uint64
	payloadCRC uint32
}

// frameBytes is the length of a whole frame with a payload of that length.
func frameBytes(payload int) int {
	n := frameHeaderBytes + payload + markBytesMin
	return (n + frameAlign - 1) / frameAlign * frameAlign
}

// seed is what the checksums of a segment begin from.
func seed(nonce uint64) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], nonce)
	return crc32.Checksum(b[:], castagnoli)
}

// completeFrame completes a frame in b, which holds the space of the header and the
// payload, and gives it with its mark.
func completeFrame(b []byte, kind uint32, number uint64, seed uint32) []byte {
	payload := b[frameHeaderBytes:]
	h := b[:frameHeaderBytes]
	binary.LittleEndian.PutUint32(h[0:], frameMagic)
	binary.LittleEndian.PutUint32(h[4:], kind)
	binary.LittleEndian.PutUint32(h[8:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(h[12:], 0)
	binary.LittleEndian.PutUint64(h[16:], number)
	binary.LittleEndian.PutUint32(h[24:], crc32.Update(seed, castagnoli, payload))
	binary.LittleEndian.PutUint32(h[28:], crc32.Update(seed, castagnoli, h[:28]))
	for n := frameBytes(len(payload)) - len(b); n > 0; n-- {
		b = append(b, frameMarkByte)
	}
	return b
}

// decodeFrameHeader gives the header at the beginning of b, which must hold
// frameHeaderBytes; ok tells whether it is whole.
func decodeFrameHeader(b []byte, seed uint32) (h frameHeader, ok bool) {
	if binary.LittleEndian.Uint32(b[0:]) != frameMagic ||
		crc32.Update(seed, castagnoli, b[:28]) != binary.LittleEndian.Uint32(b[28:]) {
		return frameHeader{}, false
	}
	return frameHeader{
		kind:       binary.LittleEndian.Uint32(b[4:]),
		payload:    binary.LittleEndian.Uint32(b[8:]),
		number:     binary.LittleEndian.Uint64(b[16:]),
		payloadCRC: binary.LittleEndian.Uint32(b[24:]),
	}, true
}

func appendEntry(b []byte, e *raftpb.Entry) []byte {
	b = append(b, itemEntry, byte(e.GetType()))
	b = binary.AppendUvarint(b, e.GetTerm())
	b = binary.AppendUvarint(b, e.GetIndex())
	b = binary.AppendUvarint(b, uint64(len(e.GetData())))
	return append(b, e.GetData()...)
}

func appendHardState(b []byte, hs *raftpb.HardState) []byte {
	b = append(b, itemHardState)
	b = binary.AppendUvarint(b, hs.GetTerm())
	b = binary.AppendUvarint(b, hs.GetVote())
	return binary.AppendUvarint(b, hs.GetCommit())
}

// appendRestart says that the log goes on behind the snapshot of that index and
// term, whatever came before.
func appendRestart(b []byte, index, term uint64) []byte {
	b = append(b, itemRestart)
	b = binary.AppendUvarint(b, index)
	return binary.AppendUvarint(b, term)
}

// restart is a point where the log went on behind a snapshot.
type restart struct{ index, term uint64 }

// payload is what a batch frame holds, in the order restart, entries: a frame
// with entries before its restart is cut to what follows it.
type payload struct {
	restart *restart // nil when the frame holds none
	entries []*raftpb.Entry
	hard    *raftpb.HardState // nil when the frame holds none
}

// decodePayload decodes a payload whose checksum held. The data of entries
// points into b.
func decodePayload(b []byte) (payload, error) {
	var p payload
	for len(b) > 0 {
		item := b[0]
		b = b[1:]
		switch item {
		case itemEntry:
			e, rest, err := decodeEntry(b)
			if err != nil {
				return payload{}, err
			}
			p.entries, b = append(p.entries, e), rest
		case itemHardState:
			var n [3]uint64
			var err error
			for i := range n {
				if n[i], b, err = uvarint(b); err != nil {
					return payload{}, err
				}
			}
			p.hard = &raftpb.HardState{Term: &n[0], Vote: &n[1], Commit: &n[2]}
		case itemRestart:
			var n [2]uint64
			var err error
			for i := range n {
				if n[i], b, err = uvarint(b); err != nil {
					return payload{}, err
				}
			}
			p.restart, p.entries = &restart{n[0], n[1]}, nil
		default:
			return payload{}, fmt.Errorf("an item of unknown kind %d", item)
		}
	}
	return p, nil
}

func decodeEntry(b []byte) (*raftpb.Entry, []byte, error) {
	if len(b) == 0 {
		return nil, nil, errShort
	}
	kind := raftpb.EntryType(b[0])
	if kind > raftpb.EntryConfChangeV2 {
		return nil, nil, fmt.Errorf("an entry of unknown kind %d", kind)
	}
	b = b[1:]
	var n [3]uint64
	var err error
	for i := range n {
		if n[i], b, err = uvarint(b); err != nil {
			return nil, nil, err
		}
	}
	if n[2] > uint64(len(b)) {
		return nil, nil, errShort
	}
	e := &raftpb.Entry{Type: &kind, Term: &n[0], Index: &n[1]}
	if n[2] > 0 {
		e.Data = b[:n[2]:n[2]]
	}
	return e, b[n[2]:], nil
}

var errShort = errors.New("a payload that ends too early")

func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errShort
	}
	return v, b[n:], nil
}

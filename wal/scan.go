package wal

import "hash/crc32"

// scan is what reading a segment found.
type scan struct {
	payloads []payload
	// end is the offset behind the last whole frame; next is the number of the
	// frame that belongs there.
	end    int64
	next   uint64
	sealed bool
	// torn is set when something of an unfinished write lies behind end.
	torn bool
	// damage is empty, or says what is wrong at offset end.
	damage string
}

// scanSegment reads the frames of a segment, of which number is the first. last
// tells whether it is the newest segment, the only one whose end may be torn.
func scanSegment(b []byte, h segmentHeader, number uint64, last bool) scan {
	s := scan{end: framesOffset, next: number}
	sd := seed(h.nonce)
	for s.frame(b, sd) {
	}
	switch {
	case s.damage != "" || s.sealed:
	case !last:
		s.damage = "frames are missing: the segment does not end in a seal"
	case laterFrame(b, s.end, sd, s.next):
		s.damage = "a frame is damaged and whole ones follow it"
		s.torn = false
	}
	return s
}

// frame reads the frame at s.end and tells whether to go on.
func (s *scan) frame(b []byte, sd uint32) bool {
	rest := b[min(s.end, int64(len(b))):]
	if len(rest) < frameHeaderBytes {
		s.torn = !zero(rest)
		return false
	}
	if zero(rest[:4]) { // nothing was written here, or its first sector never was
		s.torn = !zero(rest)
		return false
	}
	h, ok := decodeFrameHeader(rest, sd)
	if !ok {
		s.damage = "a frame's header is damaged"
		return false
	}
	if h.number != s.next || h.kind != frameBatch && h.kind != frameSeal || h.payload > framePayloadMax {
		s.damage = "a frame that does not belong here"
		return false
	}
	whole := frameBytes(int(h.payload))
	if whole > len(rest) {
		s.torn = true
		return false
	}
	body := rest[frameHeaderBytes : frameHeaderBytes+int(h.payload)]
	mark := rest[frameHeaderBytes+int(h.payload) : whole]
	if crc32.Update(sd, castagnoli, body) != h.payloadCRC || !marked(mark) {
		if !lacksSector(rest[:whole], s.end) {
			s.damage = "a frame was changed after it was written"
			return false
		}
		s.torn = true
		return false
	}
	s.end += int64(whole)
	s.next++
	if h.kind == frameSeal {
		s.sealed = true
		return false
	}
	p, err := decodePayload(body)
	if err != nil {
		s.end -= int64(whole)
		s.damage = "a frame holds " + err.Error()
		return false
	}
	s.payloads = append(s.payloads, p)
	return true
}

// laterFrame tells whether a frame numbered from number on lies behind offset.
func laterFrame(b []byte, offset int64, sd uint32, number uint64) bool {
	for off := offset + frameAlign; off+frameHeaderBytes <= int64(len(b)); off += frameAlign {
		if h, ok := decodeFrameHeader(b[off:], sd); ok && h.number > number {
			return true
		}
	}
	return false
}

// lacksSector tells whether some sector of the frame at that offset of the file
// holds nothing of it.
func lacksSector(frame []byte, offset int64) bool {
	for len(frame) > 0 {
		n := min(int64(len(frame)), sectorBytes-offset%sectorBytes)
		if zero(frame[:n]) {
			return true
		}
		frame, offset = frame[n:], offset+n
	}
	return false
}

func marked(b []byte) bool {
	for _, c := range b {
		if c != frameMarkByte {
			return false
		}
	}
	return true
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

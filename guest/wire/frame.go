package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// FrameType says what a frame's payload is. The values travel and never change.
type FrameType byte

// Types of frames. Control frames carry messages of at most MaxControl bytes (FrameConfigure:
// MaxConfigure); data frames raw bytes of at most MaxData; the rest a few bytes.
const (
	FrameRequest  FrameType = 1 // Request, the host's first frame on a stream
	FrameResponse FrameType = 2 // Response, the guest's first frame on a stream
	FrameEvent    FrameType = 3 // Event
	// FrameConfigure is a configure Request above MaxControl, in the place of a FrameRequest.
	FrameConfigure FrameType = 4

	FrameStdin    FrameType = 16 // data for standard input
	FrameStdinEnd FrameType = 17 // empty: end of standard input
	FrameResize   FrameType = 18 // columns, rows: 2 bytes each
	FrameSignal   FrameType = 19 // one byte: the signal's number

	FrameStdout FrameType = 32 // data
	FrameStderr FrameType = 33 // data
	FrameGap    FrameType = 34 // 8 bytes: how many bytes of output this reader lost here
	FrameExit   FrameType = 35 // Exit; the last frame of a stream

	// Since minor version 1, for copies and dialled connections, whose data are FrameStdin and FrameStdout.
	FrameDone      FrameType = 36 // Response: how a copy ended; the last frame of its stream
	FrameStdoutEnd FrameType = 37 // empty: the dialled server sends no more
)

// frameHeader is the type and 3 bytes of length, big endian.
const frameHeader = 4

// Errors of the frame decoder: each one ends the stream.
var (
	ErrFrameType = errors.New("wire: unknown frame type")
	ErrFrameSize = errors.New("wire: frame longer than its type allows")
)

// maxPayload is the limit of each type; zero for unknown types, which -1 would not tell apart from
// the empty FrameStdinEnd.
func maxPayload(t FrameType) (limit int, known bool) {
	switch t {
	case FrameRequest, FrameResponse, FrameEvent, FrameExit, FrameDone:
		return MaxControl, true
	case FrameConfigure:
		return MaxConfigure, true
	case FrameStdin, FrameStdout, FrameStderr:
		return MaxData, true
	case FrameStdinEnd, FrameStdoutEnd:
		return 0, true
	case FrameResize:
		return 4, true
	case FrameSignal:
		return 1, true
	case FrameGap:
		return 8, true
	}
	return 0, false
}

// FrameReader reads frames. Not safe for concurrent use.
type FrameReader struct {
	r   io.Reader
	hdr [frameHeader]byte
	buf []byte
}

// NewFrameReader reads from r.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Next reads a frame. The payload is valid until the next call. It returns io.EOF at the end of the
// stream between frames and io.ErrUnexpectedEOF within one.
func (f *FrameReader) Next() (FrameType, []byte, error) {
	if _, err := io.ReadFull(f.r, f.hdr[:]); err != nil {
		return 0, nil, err
	}
	t := FrameType(f.hdr[0])
	n := int(f.hdr[1])<<16 | int(f.hdr[2])<<8 | int(f.hdr[3])
	limit, known := maxPayload(t)
	if !known {
		return 0, nil, fmt.Errorf("%w: %d", ErrFrameType, t)
	}
	if n > limit {
		return 0, nil, fmt.Errorf("%w: type %d with %d bytes, at most %d", ErrFrameSize, t, n, limit)
	}
	if cap(f.buf) < n {
		f.buf = make([]byte, n)
	}
	p := f.buf[:n]
	if _, err := io.ReadFull(f.r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, p, nil
}

// AppendFrame adds a frame to dst. It fails with ErrFrameSize or ErrFrameType and leaves dst alone.
func AppendFrame(dst []byte, t FrameType, payload []byte) ([]byte, error) {
	limit, known := maxPayload(t)
	if !known {
		return dst, ErrFrameType
	}
	n := len(payload)
	if n > limit {
		return dst, fmt.Errorf("%w: type %d with %d bytes, at most %d", ErrFrameSize, t, n, limit)
	}
	dst = append(dst, byte(t), byte(n>>16), byte(n>>8), byte(n))
	return append(dst, payload...), nil
}

// WriteFrame writes one frame with a single Write.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	b, err := AppendFrame(make([]byte, 0, frameHeader+len(payload)), t, payload)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// Fill reads until buf is full or r gives an error, which it returns as it is: unlike that of io.ReadFull, an
// io.ErrUnexpectedEOF is always r's own.
func Fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}

// ResizePayload and ParseResize are the payload of FrameResize.
func ResizePayload(s WindowSize) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, s.Columns), s.Rows)
}

// ParseResize reads the payload of FrameResize.
func ParseResize(p []byte) (WindowSize, error) {
	if len(p) != 4 {
		return WindowSize{}, ErrFrameSize
	}
	return WindowSize{Columns: binary.BigEndian.Uint16(p), Rows: binary.BigEndian.Uint16(p[2:])}, nil
}

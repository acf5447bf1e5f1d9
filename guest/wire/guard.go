package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// The frame header of yamux: version, type, flags (2), stream (4), length (4).
const (
	muxHeader       = 12
	muxTypeData     = 0
	muxTypePing     = 2
	muxTypeLast     = 3
	muxFlagSYN      = 1
	muxMaxData      = 256 << 10
	muxFlagOffset   = 2
	muxStreamOffset = 4
	muxLengthOffset = 8
)

// Rates of frames without data a guest may send. An honest one sends a window update per 128 KiB
// that the host sent and some per call: a busy session stays below 5,000 a second.
const (
	guardFramesPerSecond = 10_000
	guardFramesBurst     = 20_000
)

// Errors by which a Guard ends a session.
var (
	ErrGuestBye      = errors.New("wire: the guest ended the session")
	ErrGuestProtocol = errors.New("wire: the guest broke the protocol")
	ErrGuestFlood    = errors.New("wire: the guest floods the channel with empty frames")
)

// Guard reads a guest's multiplexer frames and lets only those through that an honest guest sends, so
// that the multiplexer never meets what would cost it memory or goroutines: streams opened by the
// guest, ping requests, frames longer than a window, floods of empty frames. Not safe for
// concurrent use.
type Guard struct {
	r      *bufio.Reader
	now    func() time.Time
	hdr    [muxHeader]byte
	out    []byte // of hdr, still to be handed on
	body   int    // bytes of the frame's data still to come
	tokens float64
	last   time.Time
}

// NewGuard guards r; now is the clock for rates.
func NewGuard(r *bufio.Reader, now func() time.Time) *Guard {
	return &Guard{r: r, now: now, tokens: guardFramesBurst, last: now()}
}

// Read implements io.Reader. Its errors are those of the reader below and the three above.
func (g *Guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if g.body > 0 && len(g.out) == 0 {
		n, err := g.r.Read(p[:min(len(p), g.body)])
		g.body -= n
		return n, err
	}
	if len(g.out) == 0 {
		if err := g.nextHeader(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.out)
	g.out = g.out[n:]
	return n, nil
}

func (g *Guard) nextHeader() error {
	if _, err := io.ReadFull(g.r, g.hdr[:2]); err != nil {
		return err
	}
	if IsBye(g.hdr[:2]) {
		return ErrGuestBye
	}
	if _, err := io.ReadFull(g.r, g.hdr[2:]); err != nil {
		return err
	}
	typ := g.hdr[1]
	flags := binary.BigEndian.Uint16(g.hdr[muxFlagOffset:])
	stream := binary.BigEndian.Uint32(g.hdr[muxStreamOffset:])
	length := binary.BigEndian.Uint32(g.hdr[muxLengthOffset:])
	switch {
	case g.hdr[0] != 0 || typ > muxTypeLast:
		return fmt.Errorf("%w: frame of version %d, type %d", ErrGuestProtocol, g.hdr[0], typ)
	case flags&muxFlagSYN != 0:
		return fmt.Errorf("%w: it opened a stream or pinged", ErrGuestProtocol)
	case typ == muxTypeData && length > muxMaxData:
		return fmt.Errorf("%w: frame of %d bytes", ErrGuestProtocol, length)
	case typ < muxTypePing && stream%2 == 0:
		return fmt.Errorf("%w: frame of stream %d, which no host opened", ErrGuestProtocol, stream)
	}
	if typ == muxTypeData && length > 0 {
		g.body = int(length)
	} else if !g.allow() {
		return ErrGuestFlood
	}
	g.out = g.hdr[:]
	return nil
}

func (g *Guard) allow() bool {
	now := g.now()
	g.tokens = min(guardFramesBurst, g.tokens+now.Sub(g.last).Seconds()*guardFramesPerSecond)
	g.last = now
	if g.tokens < 1 {
		return false
	}
	g.tokens--
	return true
}

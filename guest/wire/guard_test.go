package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"
)

func muxFrame(typ byte, flags uint16, stream, length uint32, body ...byte) []byte {
	b := []byte{0, typ}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, body...)
}

func TestGuardLetsHonestFramesThrough(t *testing.T) {
	stream := append(muxFrame(0, 2, 1, 3, 'a', 'b', 'c'), muxFrame(1, 0, 3, 1000)...)
	stream = append(stream, muxFrame(2, 2, 0, 7)...)
	stream = append(stream, muxFrame(3, 0, 0, 0)...)
	for size := 1; size < 40; size++ {
		g := NewGuard(bufio.NewReader(bytes.NewReader(stream)), time.Now)
		var got []byte
		buf := make([]byte, size)
		var err error
		for err == nil {
			var n int
			n, err = g.Read(buf)
			got = append(got, buf[:n]...)
		}
		if err != io.EOF || !bytes.Equal(got, stream) {
			t.Fatalf("reads of %d: %x, %v", size, got, err)
		}
	}
}

func TestGuardRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		frame []byte
		want  error
	}{
		"version":            {append([]byte{1}, muxFrame(0, 0, 1, 0)[1:]...), ErrGuestProtocol},
		"type":               {muxFrame(4, 0, 1, 0), ErrGuestProtocol},
		"opens a stream":     {muxFrame(1, 1, 2, 0), ErrGuestProtocol},
		"pings":              {muxFrame(2, 1, 0, 0), ErrGuestProtocol},
		"4 GiB frame":        {muxFrame(0, 0, 1, 1<<32-1), ErrGuestProtocol},
		"its own stream":     {muxFrame(0, 0, 2, 1, 'x'), ErrGuestProtocol},
		"stream zero":        {muxFrame(1, 0, 0, 1), ErrGuestProtocol},
		"bye":                {Bye(), ErrGuestBye},
		"cut in the header":  {muxFrame(0, 0, 1, 1)[:7], io.ErrUnexpectedEOF},
		"nothing":            {nil, io.EOF},
		"an escape, no bye":  {append([]byte{Escape}, muxFrame(0, 0, 1, 0)[1:]...), ErrGuestProtocol},
		"one byte and ended": {[]byte{0}, io.ErrUnexpectedEOF},
	} {
		g := NewGuard(bufio.NewReader(bytes.NewReader(c.frame)), time.Now)
		if n, err := g.Read(make([]byte, 64)); !errors.Is(err, c.want) || n != 0 {
			t.Errorf("%s: %d bytes, %v, want %v", name, n, err, c.want)
		}
	}
	g := NewGuard(bufio.NewReader(bytes.NewReader(nil)), time.Now)
	if n, err := g.Read(nil); n != 0 || err != nil {
		t.Errorf("an empty read: %d, %v", n, err)
	}
}

func TestGuardBoundsEmptyFrames(t *testing.T) {
	now := time.Unix(0, 0)
	empty := muxFrame(1, 0, 1, 1)
	g := NewGuard(bufio.NewReader(repeat{b: empty, at: new(int)}), func() time.Time { return now })
	read := func(limit int) (frames int, err error) {
		buf := make([]byte, muxHeader)
		for range limit {
			if _, err = io.ReadFull(g, buf); err != nil {
				return frames, err
			}
			frames++
		}
		return frames, nil
	}
	if n, err := read(guardFramesBurst + 1); n != guardFramesBurst || !errors.Is(err, ErrGuestFlood) {
		t.Fatalf("%d frames at once, %v", n, err)
	}
	now = now.Add(time.Second)
	if n, err := read(guardFramesBurst); n != guardFramesPerSecond || !errors.Is(err, ErrGuestFlood) {
		t.Fatalf("%d frames a second later, %v", n, err)
	}
}

type repeat struct {
	b  []byte
	at *int
}

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.b[*r.at%len(r.b)]
		*r.at++
	}
	return len(p), nil
}

func FuzzGuard(f *testing.F) {
	f.Add(muxFrame(0, 0, 1, 3, 'a', 'b', 'c'), 5)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		g := NewGuard(bufio.NewReader(bytes.NewReader(b)), time.Now)
		buf := make([]byte, 1+(size&0xffff)%64)
		var got []byte
		for {
			n, err := g.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.HasPrefix(b, got) {
			t.Fatalf("gave %x of %x", got, b)
		}
	})
}

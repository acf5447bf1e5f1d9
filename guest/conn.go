package guest

import (
	"context"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/blixard/blixard/guest/wire"
)

// Conn is a connection to a server within the guest. It is a net.Conn, safe for concurrent use as those are;
// only a write that its deadline cut short leaves it unusable.
type Conn struct {
	c    *calls
	port uint16

	writeMu sync.Mutex
	ended   bool // CloseWrite was called

	readMu sync.Mutex
	in     answers
}

var _ net.Conn = (*Conn)(nil)

// Dial connects to a TCP port of the guest, at 127.0.0.1 or else ::1. ctx bounds the whole life of the
// connection, which the caller must Close. A port that nobody listens on is Unavailable/guest.refused.
func (s *Session) Dial(ctx context.Context, port uint16) (*Conn, error) {
	c, err := s.begin(ctx, wire.Request{Method: wire.MethodDial, Port: port})
	if err != nil {
		return nil, err
	}
	return &Conn{c: c, port: port, in: answers{r: c.stream}}, nil
}

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	return c.in.Read(p)
}

// answers reads the data of a server's frames. A read may end, by its deadline, at any byte of a frame: the
// next goes on there.
type answers struct {
	r      io.Reader
	header [4]byte
	have   int   // bytes of header
	body   int   // bytes of the frame's data still to come
	over   error // what every further read gives
}

// Read implements io.Reader. It gives io.EOF only if the guest said that the server sends no more.
func (a *answers) Read(p []byte) (int, error) {
	for a.body == 0 && a.over == nil {
		if err := a.next(); err != nil {
			return 0, err
		}
	}
	if a.over != nil {
		return 0, a.over
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := a.r.Read(p[:min(len(p), a.body)])
	a.body -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next reads what is missing of a frame's header.
func (a *answers) next() error {
	for a.have < len(a.header) {
		n, err := a.r.Read(a.header[a.have:])
		if a.have += n; err == io.EOF {
			a.over = io.ErrUnexpectedEOF
			return a.over
		}
		if err != nil {
			return err
		}
	}
	a.have = 0
	size := int(a.header[1])<<16 | int(a.header[2])<<8 | int(a.header[3])
	switch t := wire.FrameType(a.header[0]); {
	case t == wire.FrameStdout && size <= wire.MaxData:
		a.body = size
	case t == wire.FrameStdoutEnd && size == 0:
		a.over = io.EOF
	default:
		a.over = badFrame(t)
	}
	return nil
}

// Write implements io.Writer. It blocks while the server does not read.
func (c *Conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.ended {
		return 0, io.ErrClosedPipe
	}
	sent := 0
	for sent < len(p) {
		n := min(len(p)-sent, wire.MaxData)
		if err := wire.WriteFrame(c.c.stream, wire.FrameStdin, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// CloseWrite tells the server that no more is sent. Reads go on.
func (c *Conn) CloseWrite() error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.ended {
		return nil
	}
	c.ended = true
	return wire.WriteFrame(c.c.stream, wire.FrameStdinEnd, nil)
}

// Close ends both directions.
func (c *Conn) Close() error {
	c.c.close()
	return nil
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.stream.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.stream.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.c.stream.SetWriteDeadline(t) }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return guestAddr{c.c.s.BootID(), 0} }

// RemoteAddr implements net.Conn: the guest's boot and the port.
func (c *Conn) RemoteAddr() net.Addr { return guestAddr{c.c.s.BootID(), c.port} }

// guestAddr names a port of a guest.
type guestAddr struct {
	boot string
	port uint16
}

// Network implements net.Addr.
func (guestAddr) Network() string { return "guest" }

// String implements net.Addr.
func (a guestAddr) String() string { return net.JoinHostPort(a.boot, strconv.Itoa(int(a.port))) }

//go:build linux

package pid1

import (
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// pumpBuffer is one read of the port: the kernel's own transfers are of 4 KiB, QEMU merges some.
	pumpBuffer = 32 << 10
	// linkBuffer bounds the bytes between the pump and the multiplexer, which takes them at once
	// except when its own sender is stuck.
	linkBuffer = 256 << 10
)

// channel finds hosts in the byte stream of a port and gives each a session. One pump goroutine reads
// the port for ever and looks for hellos, whatever state the session of the moment is in.
type channel struct {
	port  duplex
	scan  *wire.Scanner
	reply wire.Reply // but for the nonce
	// serve handles one session and returns when it is over.
	serve func(*yamux.Session)

	writeMu sync.Mutex // one frame or reply at a time
	cur     *link      // of the pump alone
	wg      sync.WaitGroup
}

func newChannel(p duplex, token wire.Token, bootID string, serve func(*yamux.Session)) *channel {
	return &channel{
		port: p, scan: wire.NewScanner(token), serve: serve,
		reply: wire.Reply{Major: wire.VersionMajor, Minor: wire.VersionMinor, BootID: bootID},
	}
}

// run pumps until the port fails, ends the session and waits for what it started.
func (c *channel) run() error {
	buf := make([]byte, pumpBuffer)
	for {
		n, err := c.port.Read(buf)
		if err != nil {
			c.endSession()
			c.wg.Wait()
			return err
		}
		c.take(buf[:n])
	}
}

func (c *channel) take(p []byte) {
	for {
		found, data, rest := c.scan.Next(p)
		switch found {
		case wire.FoundNothing:
			return
		case wire.FoundData:
			if c.cur != nil {
				c.cur.feed(data)
			}
		case wire.FoundBreak:
			c.endSession()
		case wire.FoundHello:
			c.endSession()
			c.startSession(c.scan.Hello())
		}
		p = rest
	}
}

// hangup is called by the pump's own read when the host is gone.
func (c *channel) hangup() {
	if c.cur != nil {
		c.cur.kill()
	}
}

// endSession makes the present session's reads end and its writes fail, without waiting for it.
func (c *channel) endSession() {
	if c.cur == nil {
		return
	}
	c.cur.kill()
	c.cur = nil
}

// startSession answers a hello and, if the versions fit, starts a session.
func (c *channel) startSession(h wire.Hello) {
	r := c.reply
	r.Nonce = h.Nonce
	c.writeMu.Lock()
	_ = c.port.SetWriteDeadline(time.Time{})
	_, err := c.port.Write(r.Append(nil))
	c.writeMu.Unlock()
	if err != nil || h.Major != wire.VersionMajor {
		c.scan.Refuse()
		return
	}
	l := &link{c: c}
	l.cond.L = &l.mu
	mux, err := wire.GuestMux(l)
	if err != nil {
		c.scan.Refuse()
		return
	}
	c.cur = l
	c.wg.Go(func() {
		c.serve(mux)
		_ = mux.Close()
		c.bye(l)
	})
}

// bye tells the host that a session ended which the host itself did not end.
func (c *channel) bye(l *link) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if l.replaced.Load() {
		return
	}
	l.replaced.Store(true)
	_, _ = c.port.Write(wire.Bye())
}

// link is the multiplexer's connection for one session.
type link struct {
	c        *channel
	replaced atomic.Bool // the host began anew: nothing of this session may be written
	header   []byte      // of a frame whose data comes with the next Write; sender only

	mu   sync.Mutex
	cond sync.Cond
	in   []byte
	dead bool
}

// feed hands bytes to the multiplexer; it waits while linkBuffer is full.
func (l *link) feed(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.in) >= linkBuffer && !l.dead {
		l.cond.Wait()
	}
	if l.dead {
		return
	}
	l.in = append(l.in, p...)
	l.cond.Broadcast()
}

// kill ends the link because its host is gone.
func (l *link) kill() {
	l.replaced.Store(true)
	_ = l.Close()
	_ = l.c.port.SetWriteDeadline(time.Unix(1, 0)) // a write that waits for the dead host gives up
}

// Read implements io.Reader for the multiplexer.
func (l *link) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.in) == 0 && !l.dead {
		l.cond.Wait()
	}
	if l.dead {
		return 0, io.EOF
	}
	n := copy(p, l.in)
	if l.in = l.in[n:]; len(l.in) == 0 {
		l.in = nil
	}
	l.cond.Broadcast()
	return n, nil
}

// Write implements io.Writer for the multiplexer, which writes a frame's header and data apart: they
// go out together, since each write of a port is a trip to the hypervisor.
func (l *link) Write(p []byte) (int, error) {
	if l.header == nil && isDataHeader(p) {
		l.header = append([]byte(nil), p...)
		return len(p), nil
	}
	out := p
	if l.header != nil {
		out = append(l.header, p...)
		l.header = nil
	}
	l.c.writeMu.Lock()
	defer l.c.writeMu.Unlock()
	if l.replaced.Load() {
		return 0, io.ErrClosedPipe
	}
	if _, err := l.c.port.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements io.Closer for the multiplexer.
func (l *link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	l.cond.Broadcast()
	return nil
}

// isDataHeader reports whether p is the header of a data frame that is not empty.
func isDataHeader(p []byte) bool {
	const size, typ, length = 12, 1, 8
	return len(p) == size && p[typ] == 0 && binary.BigEndian.Uint32(p[length:]) > 0
}

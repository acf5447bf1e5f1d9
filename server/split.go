package server

import (
	"io"
	"net"
	"sync"
	"time"
)

// http2Preface is how every HTTP/2 connection begins with prior knowledge
// (RFC 9113, 3.4), and so every gRPC client; no other request begins so.
const http2Preface = "PRI * HTTP/2.0"

// pendingMax connections may wait for their first byte at once, so that idle
// ones can't use up the daemon's descriptors.
const pendingMax = 256

// split gives the connections of one listener to gRPC or to HTTP by what they
// begin with.
type split struct {
	l          net.Listener
	grpc, http *feed
	slots      chan struct{}
	wg         sync.WaitGroup
	once       sync.Once
}

func newSplit(l net.Listener) *split {
	return &split{l: l, grpc: newFeed(l.Addr()), http: newFeed(l.Addr()), slots: make(chan struct{}, pendingMax)}
}

// run accepts until the listener is closed.
func (s *split) run() error {
	for {
		s.slots <- struct{}{}
		c, err := s.l.Accept()
		if err != nil {
			<-s.slots
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				continue
			}
			s.close()
			return err
		}
		s.wg.Go(func() {
			defer func() { <-s.slots }()
			s.sort(c)
		})
	}
}

func (s *split) sort(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(connectionTimeout))
	head := make([]byte, len(http2Preface))
	n, err := 0, error(nil)
	for n < len(head) && string(head[:n]) == http2Preface[:n] {
		var k int
		if k, err = c.Read(head[n:]); err != nil {
			break
		}
		n += k
	}
	if err != nil && err != io.EOF || n == 0 {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	to := s.http
	if string(head[:n]) == http2Preface {
		to = s.grpc
	}
	to.give(&peeked{Conn: c, head: head[:n]})
}

func (s *split) close() {
	s.once.Do(func() {
		_ = s.l.Close()
		_ = s.grpc.Close()
		_ = s.http.Close()
	})
}

func (s *split) wait() { s.wg.Wait() }

// peeked is a connection whose first bytes were read already. NetConn gives the
// connection below, for those who ask the kernel about the peer.
type peeked struct {
	net.Conn
	head []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		n := copy(b, p.head)
		p.head = p.head[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// NetConn gives the connection that p wraps.
func (p *peeked) NetConn() net.Conn { return p.Conn }

// feed is a listener that is given its connections.
type feed struct {
	addr net.Addr
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newFeed(addr net.Addr) *feed {
	return &feed{addr: addr, ch: make(chan net.Conn), done: make(chan struct{})}
}

func (f *feed) give(c net.Conn) {
	select {
	case f.ch <- c:
	case <-f.done:
		_ = c.Close()
	}
}

// Accept waits for a connection.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.ch:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr is the address of the listener below.
func (f *feed) Addr() net.Addr { return f.addr }

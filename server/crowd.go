package server

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	// connsMax connections of one network port, each with some 50 KiB of buffers.
	connsMax = 16384
	// connsPerAddressMax of them from one address, so that a stranger can't take the
	// places of the other nodes. A node or a client needs a few.
	connsPerAddressMax = 1024
)

// crowd is a listener that bounds the connections of all and of each address. Those
// beyond it are closed at once: who has none yet proved nothing yet.
type crowd struct {
	net.Listener
	refused atomic.Uint64

	mu sync.Mutex
	// Invariant: total is the sum of from.
	from  map[netip.Addr]int
	total int
}

func newCrowd(l net.Listener) *crowd { return &crowd{Listener: l, from: map[netip.Addr]int{}} }

// Accept is that of [net.Listener].
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := addressOf(conn.RemoteAddr())
		if c.enter(address) {
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { c.leave(address) })}, nil
		}
		c.refused.Add(1)
		_ = conn.Close()
	}
}

func addressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (c *crowd) enter(a netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total >= connsMax || c.from[a] >= connsPerAddressMax {
		return false
	}
	c.total++
	c.from[a]++
	return true
}

func (c *crowd) leave(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.from[a]--; c.from[a] == 0 {
		delete(c.from, a)
	}
}

// counted is a connection of a crowd.
type counted struct {
	net.Conn
	leave func()
}

// Close is that of [net.Conn].
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}

package server

import (
	"io"
	"net"
	"testing"
	"time"
)

// A stranger takes no more places than one address may have, and those that it
// leaves are free again.
func TestCrowd(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := newCrowd(inner)
	taken := make(chan net.Conn, connsPerAddressMax+1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := c.Accept()
			if err != nil {
				return
			}
			taken <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	var in []net.Conn
	for range connsPerAddressMax {
		dial()
		in = append(in, <-taken)
	}
	over := dial()
	_ = over.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := over.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one too many was not closed: %v", err)
	}
	if c.refused.Load() != 1 {
		t.Errorf("%d were refused", c.refused.Load())
	}
	for range 2 { // closing twice frees one place
		_ = in[0].Close()
	}
	dial()
	in = append(in[1:], <-taken)
	for _, conn := range in {
		_ = conn.Close()
	}
	_ = inner.Close()
	<-done
	if c.total != 0 || len(c.from) != 0 {
		t.Errorf("%d connections of %d addresses are left", c.total, len(c.from))
	}
}

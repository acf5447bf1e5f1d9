//go:build linux

package pid1

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A port's reads wait through the absence of a host. A FIFO shows that as a port does: by end of file while
// nobody has its other side.
func TestPortOutlivesItsHosts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPort(f)
	if err != nil {
		t.Fatal(err)
	}
	hangups := make(chan struct{}, 16)
	p.onHangup = func() { hangups <- struct{}{} }
	type piece struct {
		s   string
		err error
	}
	got := make(chan piece)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 16)
		for {
			n, err := p.Read(buf)
			got <- piece{string(buf[:n]), err}
			if err != nil {
				return
			}
		}
	}()
	for _, say := range []string{"one", "two"} {
		<-hangups // nobody is there
		host, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := host.WriteString(say); err != nil {
			t.Fatal(err)
		}
		if g := <-got; g.s != say || g.err != nil {
			t.Errorf("%+v, want %q", g, say)
		}
		_ = host.Close()
	}
	_ = f.Close()
	if g := <-got; g.err == nil || errors.Is(g.err, io.EOF) {
		t.Errorf("after the close: %+v", g)
	}
	<-done
}

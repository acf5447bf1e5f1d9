package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

// listen serves each connection of a loopback address by handle, and gives the port.
func listen(t *testing.T, network, address string, handle func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// echo sends back what comes, and its count once the other side sends no more.
func echo(c *net.TCPConn) {
	n, err := io.Copy(c, c)
	_, _ = fmt.Fprintf(c, "\n%d %v", n, err)
}

func unusedPort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestDial(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		port := listen(t, network, address, echo)
		c, err := s.Dial(testContext(t), port)
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		sent := bytes.Repeat([]byte("0123456789\xfb"), 100_000)
		go func() {
			_, _ = c.Write(sent)
			_ = c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("%s\n%d <nil>", sent, len(sent)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes of %d, %v", network, len(got), len(want), err)
		}
		check(t, c.CloseWrite())
		if _, err := c.Write([]byte("x")); err == nil {
			t.Errorf("%s: a write after CloseWrite", network)
		}
		if got := c.RemoteAddr().String(); got != "boot-1:"+strconv.Itoa(int(port)) || c.LocalAddr().Network() != "guest" {
			t.Errorf("%s: %s", network, got)
		}
		check(t, c.Close())
		check(t, c.Close())
	}
	if _, err := s.Dial(testContext(t), unusedPort(t)); !problem.HasCode(err, guest.CodeRefused) || !problem.Is(err, problem.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := s.Dial(testContext(t), 0); !problem.HasCode(err, "guest.request") {
		t.Errorf("port 0: %v", err)
	}
}

// A read that its deadline ended goes on where it was, at whatever byte of a frame.
func TestConnDeadlines(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	c, err := s.Dial(testContext(t), listen(t, "tcp", "127.0.0.1:0", echo))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	check(t, c.SetReadDeadline(time.Now()))
	if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("a read past its deadline: %v", err)
	}
	check(t, c.SetReadDeadline(time.Time{}))
	_, err = io.WriteString(c, "hello")
	check(t, err)
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Errorf("%q, %v", buf, err)
	}
	check(t, c.SetWriteDeadline(time.Now()))
	if _, err := c.Write(make([]byte, 1<<20)); !isTimeout(err) {
		t.Errorf("a write past its deadline: %v", err)
	}
	check(t, c.SetDeadline(time.Now()))
	if n, err := c.Read(nil); n != 0 || err != nil && !isTimeout(err) { // an echo may have come by now
		t.Errorf("%d, %v", n, err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

// A server that breaks the connection, or never reads, is no end of the session; its caller's end is its own.
func TestDialEnds(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	c, err := s.Dial(testContext(t), listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(c, "x")
	check(t, err)
	if _, err := io.ReadAll(c); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a reset reads as %v", err)
	}
	check(t, c.Close())
	gone := make(chan struct{})
	full := make(chan struct{})
	stuck := listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		<-full
		_, _ = io.Copy(io.Discard, c)
		close(gone)
	})
	ctx, cancel := context.WithCancel(testContext(t))
	c, err = s.Dial(ctx, stuck)
	if err != nil {
		t.Fatal(err)
	}
	check(t, c.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	if _, err = c.Write(make([]byte, 64<<20)); !isTimeout(err) {
		t.Errorf("64 MiB for a server that reads nothing: %v", err)
	}
	cancel()
	close(full)
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the server still has its caller")
	}
	if _, err := s.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
	_ = c.Close()
}

func TestProbe(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	answer := func(text string) uint16 {
		return listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
			buf := make([]byte, 4096)
			n, _ := c.Read(buf)
			if !strings.HasPrefix(string(buf[:n]), "GET /health?x=1 HTTP/1.1\r\nHost: localhost:") {
				text = fmt.Sprintf("HTTP/1.1 400 %q\r\n\r\n", buf[:n])
			}
			_, _ = io.WriteString(c, text)
		})
	}
	release := make(chan struct{})
	silent := listen(t, "tcp", "127.0.0.1:0", func(*net.TCPConn) { <-release })
	defer close(release)
	for name, c := range map[string]struct {
		probe guest.Probe
		says  string // empty for a server that is well
	}{
		"ok":            {guest.Probe{Port: answer("HTTP/1.1 200 OK\r\n\r\n"), Path: "/health?x=1"}, ""},
		"redirect":      {guest.Probe{Port: answer("HTTP/1.0 302 Found\r\nLocation: /elsewhere\r\n\r\n"), Path: "/health?x=1"}, ""},
		"interim":       {guest.Probe{Port: answer("HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 204\r\n\r\n"), Path: "/health?x=1"}, ""},
		"bad":           {guest.Probe{Port: answer("HTTP/1.1 503 Busy\r\n\r\n"), Path: "/health?x=1"}, "the status is 503"},
		"upgrade":       {guest.Probe{Port: answer("HTTP/1.1 101 Switching\r\n\r\n"), Path: "/health?x=1"}, "the status is 101"},
		"no http":       {guest.Probe{Port: answer("220 mail.example ESMTP\r\n"), Path: "/health?x=1"}, "no HTTP/1"},
		"odd status":    {guest.Probe{Port: answer("HTTP/1.1 2x0 OK\r\n"), Path: "/health?x=1"}, "no HTTP/1"},
		"no status":     {guest.Probe{Port: answer("HTTP/1.1 099 OK\r\n"), Path: "/health?x=1"}, "no HTTP/1"},
		"interim only":  {guest.Probe{Port: answer("HTTP/1.1 100 Go on\r\n"), Path: "/health?x=1"}, "no HTTP/1"},
		"endless":       {guest.Probe{Port: answer(strings.Repeat("x", 20<<10)), Path: "/health?x=1"}, "no HTTP/1"},
		"hangs up":      {guest.Probe{Port: answer(""), Path: "/health?x=1"}, "no HTTP/1"},
		"tcp":           {guest.Probe{Port: silent}, ""},
		"silent":        {guest.Probe{Port: silent, Path: "/", TimeoutMS: 50}, "no answer within 50ms"},
		"nobody":        {guest.Probe{Port: unusedPort(t)}, "refused"},
		"nobody of web": {guest.Probe{Port: unusedPort(t), Path: "/"}, "refused"},
	} {
		got, err := s.Probe(testContext(t), c.probe)
		if err != nil || got.OK != (c.says == "") || !strings.Contains(got.Message, c.says) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, p := range []guest.Probe{{}, {Port: 1, Path: "x"}, {Port: 1, Path: "/a b"}, {Port: 1, Path: "/\r\nX: y"}} {
		if _, err := s.Probe(testContext(t), p); !problem.HasCode(err, "guest.request") {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

func TestProcessesAndTime(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	list, err := s.Processes(testContext(t))
	if err != nil || len(list) == 0 || len(list) > wire.TopProcesses {
		t.Fatalf("%d processes, %v", len(list), err)
	}
	for i, p := range list {
		if p.PID <= 0 || p.User == "" || p.Command == "" || i > 0 && p.CPUMS > list[i-1].CPUMS {
			t.Errorf("%d: %+v", i, p)
		}
	}
	if ahead, err := s.SetTime(testContext(t)); err != nil || ahead.Abs() > patience {
		t.Errorf("the clock is ahead by %s, %v", ahead, err)
	}
}

// A guest that is no machine says so when it is asked for what only one can do.
func TestVolumesOfNoMachine(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	_, grow := s.Grow(testContext(t), "/data")
	for name, err := range map[string]error{
		"mount":   s.Mount(testContext(t), guest.Mount{Path: "/data", Disk: guest.Disk{Device: "d", FSType: "ext4"}}),
		"unmount": s.Unmount(testContext(t), "/data"),
		"grow":    grow,
		"no disk": s.Mount(testContext(t), guest.Mount{Path: "/data"}),
		"no path": s.Unmount(testContext(t), "data"),
	} {
		if !problem.HasCode(err, "guest.volume") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/unixsocket"
)

func TestSplitSortsByTheFirstBytes(t *testing.T) {
	l, err := unixsocket.Listen(filepath.Join(t.TempDir(), "s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := newSplit(l)
	ran := make(chan error, 1)
	go func() { ran <- s.run() }()
	for _, tc := range []struct {
		send string
		to   *feed
	}{
		{http2Preface + "\r\n\r\nSM\r\n\r\n", s.grpc},
		{"POST /x HTTP/1.1\r\n", s.http},
		{"PRI * HTTP/1.0\r\n", s.http},
		{"PRIVATE", s.http},
	} {
		c, err := unixsocket.Dial(context.Background(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, tc.send); err != nil {
			t.Fatal(err)
		}
		got, err := tc.to.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		b, err := io.ReadAll(got)
		if err != nil || string(b) != tc.send {
			t.Errorf("sent %q, the server reads %q, %v", tc.send, b, err)
		}
		if got.(*peeked).NetConn() == nil {
			t.Error("the connection below is lost")
		}
		_ = got.Close()
		_ = c.Close()
	}
	// One that says nothing and leaves is dropped.
	c, err := unixsocket.Dial(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	s.close()
	if err := <-ran; err == nil {
		t.Error("run ended without an error")
	}
	s.wait()
	if _, err := s.http.Accept(); err != net.ErrClosed {
		t.Errorf("accept after close: %v", err)
	}
	a, b := net.Pipe()
	s.http.give(a) // a late one is closed
	if _, err := bufio.NewReader(b).ReadByte(); err != io.EOF {
		t.Errorf("a late connection: %v", err)
	}
	if s.http.Addr() == nil {
		t.Error("no address")
	}
}

func TestPlainJSON(t *testing.T) {
	for _, tc := range []struct{ method, kind, wantKind, wantVersion string }{
		{"POST", "", "application/json", "1"},
		{"POST", "application/x-www-form-urlencoded", "application/json", "1"},
		{"POST", "application/json; charset=utf-8", "application/json; charset=utf-8", "1"},
		{"POST", "application/grpc-web", "application/grpc-web", ""},
		{"GET", "", "", ""},
	} {
		r := httptest.NewRequest(tc.method, "/x", strings.NewReader("{}"))
		if tc.kind != "" {
			r.Header.Set("Content-Type", tc.kind)
		}
		plainJSON(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if k, v := r.Header.Get("Content-Type"), r.Header.Get("Connect-Protocol-Version"); k != tc.wantKind || v != tc.wantVersion {
				t.Errorf("%s %q became %q, version %q", tc.method, tc.kind, k, v)
			}
		})).ServeHTTP(httptest.NewRecorder(), r)
	}
}

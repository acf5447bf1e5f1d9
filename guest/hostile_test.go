package guest_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

// unescaped is a guest's end of a connection with a host.
type unescaped struct {
	net.Conn
	scan *wire.Scanner
	rest []byte
	data []byte
	buf  [4096]byte
}

// Read implements io.Reader for the multiplexer.
func (c *unescaped) Read(p []byte) (int, error) {
	for len(c.data) == 0 {
		if len(c.rest) == 0 {
			n, err := c.Conn.Read(c.buf[:])
			if err != nil {
				return 0, err
			}
			c.rest = c.buf[:n]
		}
		var found wire.Found
		if found, c.data, c.rest = c.scan.Next(c.rest); found != wire.FoundData {
			c.data = nil
		}
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// liar connects to a guest that answers each call but events by the frames it is given, whatever was asked.
func liar(t *testing.T, minor int, frames ...[]byte) *guest.Session {
	t.Helper()
	host, conn := socketPair(t)
	token := guest.NewToken()
	c := &unescaped{Conn: conn, scan: wire.NewScanner(token)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			n, err := conn.Read(c.buf[:])
			if err != nil {
				return
			}
			c.rest = append([]byte(nil), c.buf[:n]...)
			var found wire.Found
			for len(c.rest) > 0 && found != wire.FoundHello {
				found, _, c.rest = c.scan.Next(c.rest)
			}
			if found == wire.FoundHello {
				break
			}
		}
		_, _ = conn.Write(wire.Reply{Major: wire.VersionMajor, Minor: minor, Nonce: c.scan.Hello().Nonce, BootID: "liar"}.Append(nil))
		mux, err := wire.GuestMux(c)
		if err != nil {
			return
		}
		defer mux.Close()
		for {
			stream, err := mux.AcceptStream()
			if err != nil {
				return
			}
			_, p, err := wire.NewFrameReader(stream).Next()
			if err != nil {
				continue
			}
			if req, err := wire.DecodeRequest(p); err != nil || req.Method == wire.MethodEvents {
				continue
			}
			for _, f := range frames {
				_, _ = stream.Write(f)
			}
			_ = stream.Close()
		}
	}()
	s, err := guest.Connect(testContext(t), host, token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		_ = conn.Close()
		<-done
	})
	return s
}

func frame(t *testing.T, ft wire.FrameType, payload string) []byte {
	t.Helper()
	b, err := wire.AppendFrame(nil, ft, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whatever a guest answers, a call ends with a problem that says whose fault it is.
func TestLyingGuest(t *testing.T) {
	ok := frame(t, wire.FrameResponse, "")
	bad := string((&wire.Response{Problem: &wire.Problem{Kind: "denied", Code: "guest.copy", Message: "disk full"}}).Encode())
	copyTo := func(s *guest.Session, t *testing.T) error {
		return s.CopyTo(testContext(t), "/x", strings.NewReader(strings.Repeat("x", 1<<20)))
	}
	copyFrom := func(s *guest.Session, t *testing.T) error {
		r, err := s.CopyFrom(testContext(t), "/x")
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadAll(r)
		return err
	}
	dial := func(s *guest.Session, t *testing.T) error {
		c, err := s.Dial(testContext(t), 80)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.ReadAll(c)
		return err
	}
	for name, c := range map[string]struct {
		frames [][]byte
		call   func(*guest.Session, *testing.T) error
		code   string
	}{
		"copy in, no outcome":        {[][]byte{ok}, copyTo, guest.CodeSessionOver},
		"copy in, other frame":       {[][]byte{ok, frame(t, wire.FrameStdout, "x")}, copyTo, guest.CodeProtocol},
		"copy in, no message":        {[][]byte{ok, frame(t, wire.FrameDone, "\xff")}, copyTo, guest.CodeProtocol},
		"copy in, problem":           {[][]byte{ok, frame(t, wire.FrameDone, bad)}, copyTo, "guest.copy"},
		"copy in, unknown frame":     {[][]byte{ok, {99, 0, 0, 0}}, copyTo, guest.CodeProtocol},
		"copy out, no outcome":       {[][]byte{ok, frame(t, wire.FrameStdout, "x")}, copyFrom, guest.CodeSessionOver},
		"copy out, other frame":      {[][]byte{ok, frame(t, wire.FrameStderr, "x")}, copyFrom, guest.CodeProtocol},
		"copy out, no message":       {[][]byte{ok, frame(t, wire.FrameDone, "\xff")}, copyFrom, guest.CodeProtocol},
		"copy out, problem":          {[][]byte{ok, frame(t, wire.FrameDone, bad)}, copyFrom, "guest.copy"},
		"copy out, no answer":        {[][]byte{frame(t, wire.FrameStdout, "x")}, copyFrom, guest.CodeProtocol},
		"connection, other frame":    {[][]byte{ok, frame(t, wire.FrameStderr, "x")}, dial, guest.CodeProtocol},
		"connection, huge frame":     {[][]byte{ok, {byte(wire.FrameStdout), 0xff, 0xff, 0xff}}, dial, guest.CodeProtocol},
		"connection, long end":       {[][]byte{ok, {byte(wire.FrameStdoutEnd), 0, 0, 1, 'x'}}, dial, guest.CodeProtocol},
		"connection, cut in a frame": {[][]byte{ok, {byte(wire.FrameStdout), 0, 0, 9, 'x'}}, dial, ""},
		"connection, cut in a head":  {[][]byte{ok, {byte(wire.FrameStdout), 0}}, dial, ""},
		"no result": {[][]byte{ok}, func(s *guest.Session, t *testing.T) error {
			_, err := s.Probe(testContext(t), guest.Probe{Port: 1})
			return err
		}, guest.CodeProtocol},
		"no file": {[][]byte{ok}, func(s *guest.Session, t *testing.T) error {
			_, err := s.Stat(testContext(t), "/x")
			return err
		}, guest.CodeProtocol},
		"no figures": {[][]byte{ok}, func(s *guest.Session, t *testing.T) error {
			_, err := s.Stats(testContext(t))
			return err
		}, guest.CodeProtocol},
		"no status": {[][]byte{ok}, func(s *guest.Session, t *testing.T) error {
			_, err := s.Status(testContext(t))
			return err
		}, guest.CodeProtocol},
		"output of another kind": {[][]byte{ok, frame(t, wire.FrameDone, "")}, func(s *guest.Session, t *testing.T) error {
			st, err := s.Exec(testContext(t), guest.ExecRequest{Argv: sleep})
			if err != nil {
				return err
			}
			defer st.Close()
			_, err = st.Recv()
			return err
		}, guest.CodeProtocol},
		"size of a petabyte": {[][]byte{frame(t, wire.FrameResponse, string((&wire.Response{Size: 1 << 63}).Encode()))}, func(s *guest.Session, t *testing.T) error {
			n, err := s.Grow(testContext(t), "/x")
			if n < 0 {
				return errors.New("a negative size")
			}
			if err == nil {
				err = problem.New(problem.Internal, "fine", "")
			}
			return err
		}, "fine"},
	} {
		err := c.call(liar(t, wire.VersionMinor, c.frames...), t)
		if c.code == "" && !errors.Is(err, io.ErrUnexpectedEOF) || c.code != "" && !problem.HasCode(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An older guest is not given what it would silently leave out.
func TestOlderGuest(t *testing.T) {
	status := frame(t, wire.FrameResponse, string((&wire.Response{Status: &wire.Status{Phase: wire.PhaseStarting}}).Encode()))
	s := liar(t, wire.MinorConfigured-1, status)
	image := guest.Disk{Device: "d", FSType: "f"}
	if _, err := s.Configure(testContext(t), guest.BootConfig{Argv: sleep, Image: image}); err != nil {
		t.Errorf("what it knows: %v", err)
	}
	for name, cfg := range map[string]guest.BootConfig{
		"secrets":   {Secrets: []guest.File{{Path: "/run/secrets/x"}}},
		"user data": {UserData: "#cloud-config"},
	} {
		if _, err := s.Configure(testContext(t), cfg); !problem.HasCode(err, guest.CodeVersion) || !problem.Is(err, problem.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

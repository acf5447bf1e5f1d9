package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

// Codes of the problems this package makes, beside those a guest reports (prefix "guest.").
const (
	CodeConnect     = "guest.connect"      // no answer, or the connection broke during the handshake
	CodeVersion     = "guest.version"      // the guest speaks another major version
	CodeSessionOver = "guest.session_over" // the session ended, see Session.Err
	CodeProtocol    = "guest.protocol"     // the guest broke the protocol
	CodeBusy        = "guest.busy"         // MaxStreams calls are in flight
	CodeTooLarge    = "guest.too_large"    // a request above its limit
	CodeDeadline    = "guest.deadline"     // the guest did not answer in time
)

// readBuffer is the buffer for bytes from the guest, per session: one virtio-serial transfer.
const readBuffer = 4 << 10

// Options tune a session. The zero value is good.
type Options struct {
	// Now is the clock for rates; nil means time.Now.
	Now func() time.Time
}

// Session is a live connection to one guest. Its methods are safe for concurrent use. It ends by
// Close, when the connection breaks, or when the guest breaks the protocol; Done tells.
type Session struct {
	mux    *yamux.Session
	conn   *channelConn
	reply  wire.Reply
	events chan Event
	wg     sync.WaitGroup

	ctx    context.Context // ends with the session
	cancel context.CancelFunc

	mu  sync.Mutex
	err error // why the session ended; the first reason counts
}

// Connect greets the guest and returns a session. It waits as long as ctx allows for the guest to
// boot far enough to answer. conn belongs to the session from here on and is closed when Connect
// fails.
//
// Problems: Unavailable/guest.connect (nobody answered in time or the connection broke: try again),
// Conflict/guest.version (the guest's protocol is of another major version),
// Internal/guest.protocol.
func Connect(ctx context.Context, conn net.Conn, token Token, opts Options) (*Session, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	r := bufio.NewReaderSize(conn, readBuffer)
	reply, err := greet(ctx, conn, r, token)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	s := &Session{reply: reply, events: make(chan Event, eventsBuffered)}
	s.conn = &channelConn{conn: conn, guard: wire.NewGuard(r, opts.Now), ended: s.fail}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if s.mux, err = wire.HostMux(s.conn); err != nil {
		_ = conn.Close()
		s.cancel()
		return nil, problem.New(problem.Internal, CodeConnect, "guest: start the multiplexer").WithCause(err)
	}
	s.wg.Add(2)
	go s.watchEnd()
	go s.followEvents()
	return s, nil
}

// greet sends a hello and reads up to its reply.
func greet(ctx context.Context, conn net.Conn, r *bufio.Reader, token Token) (wire.Reply, error) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	hello := wire.Hello{Major: wire.VersionMajor, Minor: wire.VersionMinor, Token: token}
	rand.Read(hello.Nonce[:])
	_, err := conn.Write(hello.Append(nil))
	var reply wire.Reply
	if err == nil {
		reply, err = wire.ReadReply(r, hello.Nonce)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("no answer to the hello: %w", context.DeadlineExceeded)
		}
		return wire.Reply{}, problem.New(problem.Unavailable, CodeConnect, "guest: connect").WithCause(err).
			WithHint("the guest may still be booting, or runs no blixard-guest: look at its console")
	}
	_ = conn.SetDeadline(time.Time{})
	if reply.Major != wire.VersionMajor {
		return wire.Reply{}, problem.New(problem.Conflict, CodeVersion,
			"guest: the agent in the guest speaks protocol %d.%d, this node %d.%d",
			reply.Major, reply.Minor, wire.VersionMajor, wire.VersionMinor).
			WithHint("restart the VM, so that it boots with this node's guest bundle")
	}
	return reply, nil
}

// BootID is the kernel's id of the boot this session talks to.
func (s *Session) BootID() string { return s.reply.BootID }

// Done is closed when the session is over.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Err says why the session is over, nil while it lives. After Close it is a problem as well.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() == nil {
		return nil
	}
	return s.err
}

// Close ends the session and leaves the guest running. It waits for the session's goroutines and
// is harmless when repeated.
func (s *Session) Close() error {
	s.fail(errors.New("closed by this node"))
	err := s.mux.Close()
	s.wg.Wait()
	return err
}

// fail notes why the session ends. Only the first reason is kept.
func (s *Session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	switch {
	case errors.Is(err, wire.ErrGuestProtocol), errors.Is(err, wire.ErrGuestFlood):
		s.err = problem.New(problem.Internal, CodeProtocol, "guest: session ended").WithCause(err).
			WithHint("the guest's agent misbehaves: restart the VM if it goes on")
	default:
		s.err = problem.New(problem.Unavailable, CodeSessionOver, "guest: session ended").WithCause(err)
	}
}

// watchEnd turns the end of the multiplexer into the end of the session.
func (s *Session) watchEnd() {
	defer s.wg.Done()
	<-s.mux.CloseChan()
	s.fail(io.EOF)
	_ = s.mux.Close() // waits for the multiplexer's goroutines
	s.cancel()
}

// channelConn is the connection as the multiplexer sees it: it reads through the guard, writes with
// escapes, and remembers the first error.
type channelConn struct {
	conn  net.Conn
	guard *wire.Guard
	ended func(error)
	buf   []byte // only the multiplexer's sender uses it
}

func (c *channelConn) Read(p []byte) (int, error) {
	n, err := c.guard.Read(p)
	if err != nil {
		c.ended(err)
	}
	return n, err
}

func (c *channelConn) Write(p []byte) (int, error) {
	c.buf = wire.AppendEscaped(c.buf[:0], p)
	if _, err := c.conn.Write(c.buf); err != nil {
		c.ended(err)
		return 0, err
	}
	return len(p), nil
}

func (c *channelConn) Close() error { return c.conn.Close() }

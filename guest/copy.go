package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/blixard/blixard/guest/wire"
)

// CopyTo unpacks a tar archive below the directory path of the guest, which is absolute and made when it is
// missing. Modes, owners by number, times, links and devices are kept, long runs of zeros become holes, and a
// file replaces what is in its place unless that is a directory. No name and no symbolic link of the archive
// leads out of path. It returns when all of r is unpacked.
//
// What was unpacked before an error stays. Problems: NotFound, Conflict or Unavailable/guest.copy, whose message
// names the file; an error of r itself is returned as it is. A Read of r that blocks delays the return.
func (s *Session) CopyTo(ctx context.Context, path string, r io.Reader) error {
	c, err := s.begin(ctx, wire.Request{Method: wire.MethodCopyTo, Path: path})
	if err != nil {
		return err
	}
	defer c.close()
	var outcome error
	told := make(chan struct{})
	go func() {
		outcome = c.awaitDone()
		close(told)
		_ = c.stream.SetWriteDeadline(time.Unix(1, 0)) // whoever still sends gives up
	}()
	readErr, sendErr := c.sendAll(r)
	if readErr != nil {
		c.close()
		<-told // the outcome is that of a cut archive
		return fmt.Errorf("guest: copy to %s: %w", path, readErr)
	}
	<-told
	if outcome != nil {
		return outcome
	}
	return sendErr
}

// sendAll sends all of r as data and then its end.
func (c *calls) sendAll(r io.Reader) (readErr, sendErr error) {
	buf := make([]byte, wire.MaxData)
	for {
		n, err := wire.Fill(r, buf)
		if n > 0 {
			if err := wire.WriteFrame(c.stream, wire.FrameStdin, buf[:n]); err != nil {
				return nil, c.s.explain(c.ctx, err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err, nil
		}
	}
	if err := wire.WriteFrame(c.stream, wire.FrameStdinEnd, nil); err != nil {
		return nil, c.s.explain(c.ctx, err)
	}
	return nil, nil
}

// awaitDone reads up to the frame that ends a copy.
func (c *calls) awaitDone() error {
	t, p, err := c.frames.Next()
	if err != nil {
		return c.broken(err)
	}
	if t != wire.FrameDone {
		return badFrame(t)
	}
	return outcomeOf(p)
}

// broken explains the end of a stream that an honest guest would have ended otherwise.
func (c *calls) broken(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return c.s.explain(c.ctx, err)
}

func outcomeOf(p []byte) error {
	r, err := wire.DecodeResponse(p)
	if err != nil {
		return protocolError(err)
	}
	if r.Problem != nil {
		return fromWire(r.Problem)
	}
	return nil
}

// begin opens a stream whose request the guest has accepted.
func (s *Session) begin(ctx context.Context, req wire.Request) (*calls, error) {
	c, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if err = c.send(req); err == nil {
		_, err = c.response()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// CopyFrom gives a tar archive of a file or directory of the guest; its first entry is path's base name. Symbolic
// links are packed as such, sockets left out. The guest packs no faster than the archive is read; Close, or the end
// of ctx, ends it. The archive is whole only if Read gave io.EOF: a guest's problem is an error of Read,
// NotFound, Conflict or Unavailable/guest.copy. The caller must Close.
func (s *Session) CopyFrom(ctx context.Context, path string) (io.ReadCloser, error) {
	c, err := s.begin(ctx, wire.Request{Method: wire.MethodCopyFrom, Path: path})
	if err != nil {
		return nil, err
	}
	return &archive{c: c}, nil
}

// archive is the reader of CopyFrom. Close may be called while another goroutine reads.
type archive struct {
	c *calls

	mu   sync.Mutex
	rest []byte
	err  error
}

// Read implements io.Reader.
func (a *archive) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		a.next()
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// next takes a frame.
func (a *archive) next() {
	t, b, err := a.c.frames.Next()
	switch {
	case err != nil:
		a.err = a.c.broken(err)
	case t == wire.FrameStdout:
		a.rest = b
	case t == wire.FrameDone:
		if a.err = outcomeOf(b); a.err == nil {
			a.err = io.EOF
		}
	default:
		a.err = badFrame(t)
	}
}

// Close ends the copy.
func (a *archive) Close() error {
	a.c.close()
	return nil
}

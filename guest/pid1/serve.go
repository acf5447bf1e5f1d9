//go:build linux

package pid1

import (
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// requestLimit bounds the wait for a stream's request.
	requestLimit = 30 * time.Second
)

// server answers the calls of sessions.
type server struct {
	m *machine
}

// serve handles the streams of one session until its end, and waits for their handlers.
func (s *server) serve(mux *yamux.Session) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			return
		}
		wg.Go(func() { s.handle(stream) })
	}
}

// call is one stream with its reader and a writer for one frame at a time.
type call struct {
	*wire.FrameReader
	stream *yamux.Stream
	mu     sync.Mutex
}

func (c *call) frame(t wire.FrameType, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.WriteFrame(c.stream, t, p)
}

func (c *call) respond(r wire.Response) error {
	return c.frame(wire.FrameResponse, r.Encode())
}

// refuse answers with a problem; errors that are none become internal ones.
func (c *call) refuse(err error) {
	var p *wire.Problem
	if !errors.As(err, &p) {
		p = &wire.Problem{Kind: wire.KindInternal, Code: "guest.internal", Message: wire.CleanText(err.Error(), wire.MaxMessage)}
	}
	_ = c.respond(wire.Response{Problem: p})
}

func (s *server) handle(stream *yamux.Stream) {
	defer stream.Close()
	c := &call{FrameReader: wire.NewFrameReader(stream), stream: stream}
	_ = stream.SetReadDeadline(time.Now().Add(requestLimit))
	t, p, err := c.Next()
	if err != nil || t != wire.FrameRequest && t != wire.FrameConfigure {
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	req, err := wire.DecodeRequest(p)
	if err == nil && t == wire.FrameConfigure {
		err = largeConfigure(req)
	}
	if err != nil {
		c.refuse(&wire.Problem{Kind: wire.KindInvalid, Code: "guest.request", Message: wire.CleanText(err.Error(), wire.MaxMessage)})
		return
	}
	if err := s.dispatch(c, req); err != nil {
		c.refuse(err)
	}
}

// largeMemory bounds the memory of this program while it holds a large configuration, though it collects no
// garbage before the command runs: some copies of MaxConfigure.
const largeMemory = 32 << 20

// largeConfigure admits a request above MaxControl if it is one to configure.
func largeConfigure(req *wire.Request) error {
	if req.Method != wire.MethodConfigure {
		return wire.ErrFrameSize
	}
	debug.SetMemoryLimit(largeMemory)
	return nil
}

// dispatch carries out a request. An error it returns was not yet answered.
func (s *server) dispatch(c *call, req *wire.Request) error {
	grace := time.Duration(req.GraceMS) * time.Millisecond
	switch {
	case req.Method == wire.MethodPing:
		return c.respond(wire.Response{})
	case req.Method == wire.MethodStatus:
		st, _ := s.m.state()
		return c.respond(wire.Response{Status: &st})
	case req.Method == wire.MethodConfigure && req.Config != nil:
		s.m.plat.setClock(req.TimeUS)
		st, err := s.m.configure(req.Config)
		if err != nil {
			return err
		}
		return c.respond(wire.Response{Status: &st})
	case req.Method == wire.MethodStats:
		st := readStats("/proc")
		return c.respond(wire.Response{Stats: &st})
	case req.Method == wire.MethodStop:
		s.m.askEnd(wire.ExitCommand, true, grace)
		return c.respond(wire.Response{})
	case req.Method == wire.MethodReboot:
		s.m.askEnd(wire.ExitReboot, true, grace)
		return c.respond(wire.Response{})
	case req.Method == wire.MethodAckExit:
		return s.ackExit(c)
	case req.Method == wire.MethodEvents:
		s.events(c)
		return nil
	case req.Method == wire.MethodExec && req.Exec != nil:
		return s.exec(c, req.Exec)
	case req.Method == wire.MethodAttach && req.Attach != nil:
		return s.attach(c, req.Attach)
	}
	return s.more(c, req)
}

// ackExit answers before the machine may end, since the answer ends with it.
func (s *server) ackExit(c *call) error {
	if st, _ := s.m.state(); st.Phase != wire.PhaseExited {
		return &wire.Problem{Kind: wire.KindConflict, Code: "guest.not_exited", Message: "this boot has not ended"}
	}
	err := c.respond(wire.Response{})
	s.m.ack()
	return err
}

// events sends the state, then each change of it. Changes that come while a frame is being sent are merged.
func (s *server) events(c *call) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			if _, _, err := c.Next(); err != nil {
				return
			}
		}
	}()
	defer func() {
		_ = c.stream.SetReadDeadline(time.Unix(1, 0))
		<-gone
	}()
	kind, sentReady, sentExited := wire.EventStatus, false, false
	for {
		st, changed := s.m.state()
		switch {
		case kind == wire.EventStatus:
			sentReady, sentExited = st.ReadyUS > 0, st.Exit != nil
		case st.ReadyUS > 0 && !sentReady:
			kind, sentReady = wire.EventReady, true
			if st.Exit != nil { // the exit has an event of its own, the next one
				st.Phase, st.Exit = wire.PhaseRunning, nil
				changed = closedChannel
			}
		case st.Exit != nil && !sentExited:
			kind, sentExited = wire.EventExited, true
		default:
			kind = wire.EventStatus
		}
		v := wire.Event{Kind: kind, Status: st}
		if c.frame(wire.FrameEvent, v.Encode()) != nil {
			return
		}
		kind = ""
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}

var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// setClock finds by how many microseconds this machine's clock is ahead of the host's, and takes the host's
// time if that is too much, as it is without a clock chip and after a pause. A time of zero is none.
func setClock(us int64, may bool) int64 {
	if us <= 0 {
		return 0
	}
	off := time.Since(time.UnixMicro(us))
	if may && off.Abs() >= wire.ClockSkew {
		ts := unix.NsecToTimespec(us * 1000)
		_ = unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	}
	return off.Microseconds()
}

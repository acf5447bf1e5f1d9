package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

// eventsBuffered events wait for a slow reader; the guest merges what does not fit.
const eventsBuffered = 16

// Events gives the guest's events, the state at the begin of the session first. The channel is bounded
// (a guest waits and merges events for a slow reader) and closed at the end of the session.
// There is one channel: several readers share its events.
func (s *Session) Events() <-chan Event { return s.events }

// Configure tells a guest in PhaseWaitingConfig what to become, and returns its state at once: the
// ready event says when the command runs. Repeating it with an equal config, in any phase, changes
// nothing and returns the state; a different config is refused as Conflict/guest.configured, one that is
// above MaxConfigure as Invalid/guest.too_large, and one of which an older guest would leave out interfaces,
// volumes, files, secrets, keys or user data as Conflict/guest.version.
func (s *Session) Configure(ctx context.Context, cfg BootConfig) (Status, error) {
	if s.reply.Minor < wire.MinorConfigured && needsMinor(&cfg) {
		return Status{}, problem.New(problem.Conflict, CodeVersion,
			"guest: the agent in the guest speaks protocol %d.%d and can't set up what this VM has", s.reply.Major, s.reply.Minor).
			WithHint("restart the VM, so that it boots with this node's guest bundle")
	}
	return s.callStatus(ctx, wire.Request{Method: wire.MethodConfigure, Config: &cfg, TimeUS: time.Now().UnixMicro()})
}

// needsMinor reports whether a configuration has what only guests since MinorConfigured know.
func needsMinor(c *BootConfig) bool {
	return len(c.Interfaces)+len(c.DNS)+len(c.Search)+len(c.Mounts)+len(c.Files)+len(c.Secrets)+len(c.SSHKeys) > 0 ||
		c.UserData != "" || c.MetaData != ""
}

// Status asks for the state of the boot.
func (s *Session) Status(ctx context.Context) (Status, error) {
	return s.callStatus(ctx, wire.Request{Method: wire.MethodStatus})
}

// Stop asks the main command to end (StopSignal, and SIGKILL after grace, 0 to MaxGrace) and returns
// when that began. The end itself is the exited event. Repeated calls only shorten the grace. In a guest
// that runs its own init, init is asked to power off.
func (s *Session) Stop(ctx context.Context, grace time.Duration) error {
	_, err := s.call(ctx, wire.Request{Method: wire.MethodStop, GraceMS: grace.Milliseconds()})
	return err
}

// Reboot is Stop with the reason ExitReboot: the host is to boot the guest again.
func (s *Session) Reboot(ctx context.Context, grace time.Duration) error {
	_, err := s.call(ctx, wire.Request{Method: wire.MethodReboot, GraceMS: grace.Milliseconds()})
	return err
}

// AckExit tells an exited guest that its exit was recorded. The guest ends the machine at once, so a
// session that breaks while the request is on its way is success as well: the VMM's own exit is the proof.
// Before the exit it is refused as Conflict/guest.not_exited.
func (s *Session) AckExit(ctx context.Context) error {
	st, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer st.close()
	// The end of the session may overtake even the news that the request was sent.
	if err = st.send(wire.Request{Method: wire.MethodAckExit}); err == nil {
		_, err = st.response()
	}
	if err != nil && s.overSoon(ctx) {
		return nil
	}
	return err
}

// overSoon reports whether the session is over or ends while an error of it was being handled.
func (s *Session) overSoon(ctx context.Context) bool {
	select {
	case <-s.mux.CloseChan():
		return ctx.Err() == nil
	default:
		return false
	}
}

// Stats asks for memory, load and other figures.
func (s *Session) Stats(ctx context.Context) (Stats, error) {
	r, err := s.call(ctx, wire.Request{Method: wire.MethodStats})
	if err != nil {
		return Stats{}, err
	}
	if r.Stats == nil {
		return Stats{}, protocolError(errors.New("an answer without figures"))
	}
	return *r.Stats, nil
}

// Ping makes a round trip to the agent's process in the guest and says how long it took.
func (s *Session) Ping(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := s.call(ctx, wire.Request{Method: wire.MethodPing})
	return time.Since(start), err
}

func (s *Session) callStatus(ctx context.Context, req wire.Request) (Status, error) {
	r, err := s.call(ctx, req)
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, protocolError(errors.New("an answer without a status"))
	}
	return *r.Status, nil
}

// call opens a stream for one request and its response.
func (s *Session) call(ctx context.Context, req wire.Request) (wire.Response, error) {
	st, err := s.open(ctx)
	if err != nil {
		return wire.Response{}, err
	}
	defer st.close()
	if err := st.send(req); err != nil {
		return wire.Response{}, err
	}
	return st.response()
}

// calls is one stream of the multiplexer under a context.
type calls struct {
	s      *Session
	ctx    context.Context
	stream *yamux.Stream
	frames *wire.FrameReader
	stop   func() bool
}

// open opens a stream whose reads and writes end with ctx.
func (s *Session) open(ctx context.Context) (*calls, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.explain(ctx, err)
	}
	if s.mux.NumStreams() >= wire.MaxStreams {
		return nil, problem.New(problem.Unavailable, CodeBusy, "guest: %d calls are in flight", wire.MaxStreams).
			WithHint("wait for one of them to end")
	}
	stream, err := s.mux.OpenStream()
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	c := &calls{s: s, ctx: ctx, stream: stream, frames: wire.NewFrameReader(stream)}
	c.stop = context.AfterFunc(ctx, func() {
		_ = stream.SetDeadline(time.Unix(1, 0))
		_ = stream.Close() // tells the guest, which ends what runs for this caller
	})
	return c, nil
}

func (c *calls) close() {
	c.stop()
	_ = c.stream.Close()
	_ = c.stream.SetReadDeadline(time.Unix(1, 0)) // a reader that still waits gives up
}

// send writes the request. It fails as Invalid/guest.too_large before anything was sent when the
// request is above MaxControl, or MaxConfigure if it is to configure.
func (c *calls) send(req wire.Request) error {
	b, t, limit := req.Encode(), wire.FrameRequest, wire.MaxControl
	if req.Method == wire.MethodConfigure {
		limit = wire.MaxConfigure
	}
	if len(b) > limit {
		return problem.New(problem.Invalid, CodeTooLarge, "guest: %s takes %d bytes, at most %d",
			req.Method, len(b), limit).WithHint("shorten the arguments, the environment or the files")
	}
	if len(b) > wire.MaxControl {
		t = wire.FrameConfigure
	}
	if err := wire.WriteFrame(c.stream, t, b); err != nil {
		return c.s.explain(c.ctx, err)
	}
	return nil
}

// response reads the guest's answer or the problem in it.
func (c *calls) response() (wire.Response, error) {
	t, p, err := c.frames.Next()
	if err != nil {
		return wire.Response{}, c.s.explain(c.ctx, err)
	}
	if t != wire.FrameResponse {
		return wire.Response{}, protocolError(fmt.Errorf("frame of type %d instead of an answer", t))
	}
	r, err := wire.DecodeResponse(p)
	if err != nil {
		return wire.Response{}, protocolError(err)
	}
	if r.Problem != nil {
		return wire.Response{}, fromWire(r.Problem)
	}
	return *r, nil
}

// explain makes a problem of an error of a stream.
func (s *Session) explain(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return problem.New(problem.Unavailable, CodeDeadline, "guest: no answer in time").WithCause(cause).
			WithHint("the guest may be overloaded or hung: look at its console")
	}
	if errors.Is(err, wire.ErrFrameSize) || errors.Is(err, wire.ErrFrameType) {
		return protocolError(err)
	}
	select {
	case <-s.mux.CloseChan():
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			return s.err
		}
	default:
	}
	return problem.New(problem.Unavailable, CodeSessionOver, "guest: call").WithCause(err)
}

func protocolError(err error) error {
	return problem.New(problem.Internal, CodeProtocol, "guest: bad answer").WithCause(err).
		WithHint("the guest's agent misbehaves: restart the VM if it goes on")
}

// fromWire makes a problem of a guest's, which may claim any kind: unknown ones become internal.
func fromWire(p *wire.Problem) error {
	kind := problem.Kind(p.Kind)
	switch kind {
	case problem.Invalid, problem.Conflict, problem.NotFound, problem.Unavailable:
	default:
		kind = problem.Internal
	}
	e := problem.New(kind, p.Code, "guest: %s", p.Message)
	if p.Hint != "" {
		e = e.WithHint("%s", p.Hint)
	}
	if p.ExitCode != 0 {
		return &StartError{Problem: e, ExitCode: p.ExitCode}
	}
	return e
}

// StartError is returned by Exec when the command itself could not be started. It wraps the problem.
type StartError struct {
	Problem *problem.Error
	// ExitCode is what a shell would give: 126 or 127.
	ExitCode int
}

// Error gives the problem's message.
func (e *StartError) Error() string { return e.Problem.Error() }

// Unwrap gives the problem.
func (e *StartError) Unwrap() error { return e.Problem }

// followEvents keeps the events stream and hands its events on.
func (s *Session) followEvents() {
	defer s.wg.Done()
	defer close(s.events)
	err := s.readEvents()
	if err != nil && s.mux.IsClosed() {
		return
	}
	// Without events the session is useless: end it, so that the caller connects again.
	if err == nil {
		err = io.EOF
	}
	s.fail(err)
	_ = s.mux.Close()
}

func (s *Session) readEvents() error {
	st, err := s.open(s.ctx)
	if err != nil {
		return err
	}
	defer st.close()
	if err := st.send(wire.Request{Method: wire.MethodEvents}); err != nil {
		return err
	}
	for {
		t, p, err := st.frames.Next()
		if err != nil {
			return err
		}
		if t != wire.FrameEvent {
			return fmt.Errorf("%w: frame of type %d among the events", wire.ErrGuestProtocol, t)
		}
		e, err := wire.DecodeEvent(p)
		if err != nil {
			return fmt.Errorf("%w: %w", wire.ErrGuestProtocol, err)
		}
		select {
		case s.events <- *e:
		case <-s.mux.CloseChan():
			return io.EOF
		}
	}
}

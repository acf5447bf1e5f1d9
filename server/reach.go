package server

import (
	"context"
	"errors"
	"io"
	"path"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// reachChunkBytes is one message of a copy or a connection.
const reachChunkBytes = 32 << 10

// guestSession gives the session with the guest of a VM of this node.
func (s *Server) guestSession(ctx context.Context, name string) (*guest.Session, error) {
	a, local, err := s.here(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := reachable(a); err != nil {
		return nil, err
	}
	return local.Session(ctx, a.GetId(), false)
}

// reachable refuses a VM whose guest can't answer, with the reason.
func reachable(a *blixardv1.Allocation) error {
	st := a.GetStatus()
	if st.GetPaused() {
		return problem.New(problem.Conflict, "vm.paused", "VM %q is paused", a.GetVmName()).
			WithHint("let it go on first: blixard vm resume %s", a.GetVmName())
	}
	if state.Ended(st.GetState()) {
		return problem.New(problem.Unavailable, "vm.not_running", "VM %q does not run: %s", a.GetVmName(), st.GetMessage()).
			WithHint("start it with `blixard vm start %s`", a.GetVmName())
	}
	return nil
}

// guestAnswerWait bounds how long a guest may take to begin what it is asked for: a
// busy one under emulation takes some hundred milliseconds.
const guestAnswerWait = 30 * time.Second

// begin starts something in a guest whose life is that of ctx, and gives up when the
// guest does not begin it in time.
func begin[T any](ctx context.Context, start func(context.Context) (T, error)) (T, context.CancelFunc, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(guestAnswerWait, cancel)
	v, err := start(ctx)
	if !late.Stop() && err != nil {
		err = problem.New(problem.Unavailable, "guest.no_answer", "the guest did not answer within %v", guestAnswerWait).WithCause(err).
			WithHint("it may be overloaded or hung: look at its console")
	}
	if err != nil {
		cancel()
	}
	return v, cancel, err
}

// Top lists the processes of a guest.
func (s vmService) Top(ctx context.Context, req *blixardv1.TopRequest) (*blixardv1.TopResponse, error) {
	session, err := s.guestSession(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	list, err := session.Processes(ctx)
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.TopResponse{}
	for _, p := range list {
		resp.Processes = append(resp.Processes, &blixardv1.GuestProcess{
			Pid: uint32(p.PID), User: p.User, Cpu: durationpb.New(time.Duration(p.CPUMS) * time.Millisecond), MemoryBytes: p.RSS, Command: p.Command,
		})
	}
	return resp, nil
}

// Copy brings files into a guest or out of it.
func (s vmService) Copy(stream blixardv1.VMService_CopyServer) error {
	first, err := stream.Recv()
	if err != nil {
		return endOfStream(err)
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage("copy")
	}
	session, err := s.guestSession(stream.Context(), start.GetName())
	if err != nil {
		return err
	}
	if start.GetToGuest() {
		if err := session.CopyTo(stream.Context(), start.GetPath(), &copyInReader{stream: stream}); err != nil {
			return err
		}
		return stream.Send(&blixardv1.CopyResponse{Message: &blixardv1.CopyResponse_Done{Done: true}})
	}
	err = copyOut(stream, session, start.GetPath())
	if problem.HasCode(err, "guest.copy") && problem.Is(err, problem.NotFound) {
		return problem.From(err).WithHint("see what is there: blixard vm exec %s -- ls %s", start.GetName(), path.Dir(start.GetPath()))
	}
	return err
}

// copyInReader gives the archive of a client. A client that goes away before its end
// leaves it broken.
type copyInReader struct {
	stream blixardv1.VMService_CopyServer
	rest   []byte
	ended  bool
}

func (r *copyInReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		m, err := r.stream.Recv()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		r.rest, r.ended = m.GetData(), m.GetEnd()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func copyOut(stream blixardv1.VMService_CopyServer, session *guest.Session, path string) error {
	r, cancel, err := begin(stream.Context(), func(ctx context.Context) (io.ReadCloser, error) { return session.CopyFrom(ctx, path) })
	if err != nil {
		return err
	}
	defer cancel()
	defer func() { _ = r.Close() }()
	buf := make([]byte, reachChunkBytes)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := stream.Send(&blixardv1.CopyResponse{Message: &blixardv1.CopyResponse_Data{Data: buf[:n]}}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return stream.Send(&blixardv1.CopyResponse{Message: &blixardv1.CopyResponse_Done{Done: true}})
		}
		if err != nil {
			return err
		}
	}
}

// Forward carries one connection to a port of a guest.
func (s vmService) Forward(stream blixardv1.VMService_ForwardServer) error {
	first, err := stream.Recv()
	if err != nil {
		return endOfStream(err)
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage("forward")
	}
	ctx := stream.Context()
	session, err := s.guestSession(ctx, start.GetName())
	if err != nil {
		return err
	}
	conn, cancel, err := begin(ctx, func(ctx context.Context) (*guest.Conn, error) { return session.Dial(ctx, uint16(start.GetPort())) })
	if err != nil {
		if problem.HasCode(err, "guest.refused") {
			return problem.From(err).WithHint("does its server run, and listen on the loopback address? See `blixard vm top %s`", start.GetName())
		}
		return err
	}
	defer cancel()
	defer func() { _ = conn.Close() }()
	if err := stream.Send(&blixardv1.ForwardResponse{Message: &blixardv1.ForwardResponse_Started{Started: true}}); err != nil {
		return err
	}
	// The input side ends with the stream: Recv fails once the handler returns.
	go func() { _ = forwardIn(stream, conn) }()
	buf := make([]byte, reachChunkBytes)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := stream.Send(&blixardv1.ForwardResponse{Message: &blixardv1.ForwardResponse_Data{Data: buf[:n]}}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return stream.Send(&blixardv1.ForwardResponse{Message: &blixardv1.ForwardResponse_End{End: true}})
		}
		if err != nil {
			return err
		}
	}
}

func forwardIn(stream blixardv1.VMService_ForwardServer, conn *guest.Conn) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return conn.Close()
		}
		if len(m.GetData()) > 0 {
			if _, err := conn.Write(m.GetData()); err != nil {
				return err
			}
		}
		if m.GetEnd() {
			if err := conn.CloseWrite(); err != nil {
				return err
			}
		}
	}
}

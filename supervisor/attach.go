package supervisor

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// attachBytes are sent to a watcher at once. One buffer a session.
const attachBytes = 8 << 10

// inputBytesMax of one message of a session.
const inputBytesMax = 64 << 10

// AttachConsole implements the service.
func (s *server) AttachConsole(stream grpc.BidiStreamingServer[blixardv1.AttachConsoleRequest, blixardv1.AttachConsoleResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	p, err := s.get(first.GetProcessId())
	if err != nil {
		return err
	}
	w, err := p.console.attach(first.GetWrite(), first.GetSteal())
	if err != nil {
		return problem.New(problem.NoCapacity, "supervisor.console_full", "console of process %s", first.GetProcessId()).WithCause(err)
	}
	defer w.close()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	// It ends when the stream does, which is soon after this call returns.
	s.following.Go(func() { receive(w, first, stream, cancel) })
	buf := make([]byte, attachBytes)
	for {
		out, err := w.next(ctx, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return problem.From(context.Cause(ctx))
		}
		if err := stream.Send(&blixardv1.AttachConsoleResponse{Data: out.data, Writer: out.writer}); err != nil {
			return err
		}
	}
}

// receive takes the session's input until its end. That a client sends no more
// does not end what it watches.
func receive(w *watcher, req *blixardv1.AttachConsoleRequest,
	stream grpc.BidiStreamingServer[blixardv1.AttachConsoleRequest, blixardv1.AttachConsoleResponse], fail func(error),
) {
	for {
		if err := takeInput(w, req); err != nil {
			fail(err)
			return
		}
		var err error
		if req, err = stream.Recv(); err != nil {
			if !errors.Is(err, io.EOF) {
				fail(err)
			}
			return
		}
	}
}

func takeInput(w *watcher, req *blixardv1.AttachConsoleRequest) error {
	if n := len(req.GetData()); n > inputBytesMax {
		return problem.New(problem.Invalid, "supervisor.input", "%d bytes of input in one message, at most %d are allowed", n, inputBytesMax)
	}
	if sz := req.GetSize(); sz != nil {
		if sz.GetColumns() > sizeMax || sz.GetRows() > sizeMax {
			return problem.New(problem.Invalid, "supervisor.size", "window of %d columns and %d rows, at most %d are allowed",
				sz.GetColumns(), sz.GetRows(), sizeMax)
		}
		if err := w.resize(uint16(sz.GetColumns()), uint16(sz.GetRows())); err != nil {
			return err
		}
	}
	if len(req.GetData()) == 0 {
		return nil
	}
	return w.input(req.GetData())
}

// sizeMax of a window in columns or rows.
const sizeMax = 4096

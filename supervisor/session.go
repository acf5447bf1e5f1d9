package supervisor

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// Console is a session of a process's console. Recv may be called beside Write
// and Resize, each by one goroutine at a time; Close by any.
type Console struct {
	stream grpc.BidiStreamingClient[blixardv1.AttachConsoleRequest, blixardv1.AttachConsoleResponse]
	cancel context.CancelFunc
	// first was received when the session began and is given by the first Recv.
	first *blixardv1.AttachConsoleResponse

	// mu keeps messages of Write and Resize apart.
	mu sync.Mutex
}

// Output of a console.
type Output struct {
	Data []byte
	// Writer is set when the session has won or lost the right to write; the first
	// output of a session always has it.
	Writer *bool
}

// Console joins the console of a process: first what its ring holds, at most 64
// KiB, then what comes. write asks for the right to write, which one session has
// at a time; steal takes it from the one that has it. The caller closes the
// session. The session lasts no longer than ctx.
func (c *Client) Console(ctx context.Context, lane driver.Lane, processID string, write, steal bool) (*Console, error) {
	l, err := c.lane(lane)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	// A hung supervisor must not hold the caller: the answer comes at once.
	hung := time.AfterFunc(callTimeout, cancel)
	defer hung.Stop()
	s, err := attempt(ctx, l, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*Console, error) {
		stream, err := s.AttachConsole(ctx)
		if err != nil {
			return nil, err
		}
		err = stream.Send(&blixardv1.AttachConsoleRequest{ProcessId: processID, Write: write, Steal: steal})
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		first, err := stream.Recv() // also tells why the stream has ended
		return &Console{stream: stream, cancel: cancel, first: first}, err
	})
	if err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

// Recv waits for output. It returns io.EOF when the process has ended and all its
// output was received.
func (s *Console) Recv() (Output, error) {
	if r := s.first; r != nil {
		s.first = nil
		return Output{Data: r.GetData(), Writer: r.Writer}, nil
	}
	r, err := s.stream.Recv()
	if errors.Is(err, io.EOF) {
		return Output{}, io.EOF
	}
	if err != nil {
		return Output{}, problem.From(err)
	}
	return Output{Data: r.GetData(), Writer: r.Writer}, nil
}

// Write sends input. It is dropped when the session has not the right to write,
// and when the guest does not read it for half a second.
func (s *Console) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		n := min(len(p)-sent, inputBytesMax)
		if err := s.send(&blixardv1.AttachConsoleRequest{Data: p[sent : sent+n]}); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

// Resize sets the window size, if the session has the right to write.
func (s *Console) Resize(columns, rows uint32) error {
	return s.send(&blixardv1.AttachConsoleRequest{Size: &blixardv1.TerminalSize{Columns: columns, Rows: rows}})
}

func (s *Console) send(m *blixardv1.AttachConsoleRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stream.Send(m); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF // Recv tells why
		}
		return problem.From(err)
	}
	return nil
}

// Close ends the session; a Recv in progress fails, and input that was written
// just before may be lost.
func (s *Console) Close() error {
	s.cancel()
	return nil
}

var _ io.WriteCloser = (*Console)(nil)

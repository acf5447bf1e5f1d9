package server

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/supervisor"
)

// attachWait bounds how long an attach waits for a VM that is not up yet.
const attachWait = 5 * time.Minute

func windowSize(s *blixardv1.TerminalSize) guest.WindowSize {
	return guest.WindowSize{Columns: uint16(s.GetColumns()), Rows: uint16(s.GetRows())}
}

// here gives the allocation of a VM, which the call's route found on this node,
// and the node's agent.
func (s *Server) here(ctx context.Context, name string) (*blixardv1.Allocation, Local, error) {
	local, err := s.agent()
	if err != nil {
		return nil, nil, err
	}
	view, err := s.read(ctx)
	if err != nil {
		return nil, nil, err
	}
	_, a, err := placed(view, name)
	if err == nil && a.GetNodeId() != s.cfg.NodeID {
		return nil, nil, elsewhere(s.nodeName(a.GetNodeId()))
	}
	return a, local, err
}

// Exec runs a further command in a running VM.
func (s vmService) Exec(stream blixardv1.VMService_ExecServer) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return endOfStream(err)
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage("exec")
	}
	session, err := s.guestSession(ctx, start.GetName())
	if err != nil {
		return err
	}
	req := guest.ExecRequest{
		Argv: start.GetCommand(), WorkDir: start.GetWorkingDir(), TTY: start.GetTty(), Stdin: start.GetStdin(), Size: windowSize(start.GetSize()),
		User: start.GetUser(),
	}
	for _, e := range start.GetEnv() {
		req.Env = append(req.Env, e.GetName()+"="+e.GetValue())
	}
	st, cancel, err := begin(ctx, func(ctx context.Context) (*guest.Stream, error) { return session.Exec(ctx, req) })
	var failed *guest.StartError
	if errors.As(err, &failed) {
		return s.execNotStarted(stream, failed)
	}
	if err != nil {
		return err
	}
	defer cancel()
	defer st.Close()
	if err := stream.Send(&blixardv1.ExecResponse{Message: &blixardv1.ExecResponse_Started{Started: true}}); err != nil {
		return err
	}
	// The input side ends with the stream: Recv fails once the handler returns.
	go func() { _ = copyInput(st, stream.Recv) }()
	return copyOutput(st, output{
		stdout: func(p []byte) error {
			return stream.Send(&blixardv1.ExecResponse{Message: &blixardv1.ExecResponse_Stdout{Stdout: p}})
		},
		stderr: func(p []byte) error {
			return stream.Send(&blixardv1.ExecResponse{Message: &blixardv1.ExecResponse_Stderr{Stderr: p}})
		},
		exit: func(code int32) error {
			return stream.Send(&blixardv1.ExecResponse{Message: &blixardv1.ExecResponse_ExitCode{ExitCode: code}})
		},
	})
}

func firstMessage(what string) error {
	return problem.New(problem.Invalid, "stream.no_start", "the first message of %s must be start", what).WithHint("send start with the VM's name first")
}

// execNotStarted answers as a shell would: a line on standard error and 126 or
// 127.
func (s vmService) execNotStarted(stream blixardv1.VMService_ExecServer, failed *guest.StartError) error {
	line := []byte("blixard: " + failed.Error() + "\n")
	if err := stream.Send(&blixardv1.ExecResponse{Message: &blixardv1.ExecResponse_Stderr{Stderr: line}}); err != nil {
		return err
	}
	return stream.Send(&blixardv1.ExecResponse{Message: &blixardv1.ExecResponse_ExitCode{ExitCode: int32(failed.ExitCode)}})
}

// inputMessage is what ExecRequest and AttachRequest share.
type inputMessage interface {
	GetStdin() []byte
	GetStdinEnd() bool
	GetSize() *blixardv1.TerminalSize
	GetSignal() uint32
}

// copyInput passes a client's messages on until it has no more.
func copyInput[M inputMessage](st *guest.Stream, recv func() (M, error)) error {
	for {
		m, err := recv()
		if err != nil {
			return endOfStream(err)
		}
		switch {
		case len(m.GetStdin()) > 0:
			_, err = st.Write(m.GetStdin())
		case m.GetStdinEnd():
			err = st.CloseStdin()
		case m.GetSize() != nil:
			err = st.Resize(windowSize(m.GetSize()))
		case m.GetSignal() != 0:
			err = st.Signal(int(m.GetSignal()))
		}
		if err != nil {
			return err
		}
	}
}

// output is where the frames of a guest's process go. The bytes are only valid
// during the call; Send has encoded them when it returns.
type output struct {
	stdout, stderr func([]byte) error
	exit           func(int32) error
}

func copyOutput(st *guest.Stream, out output) error {
	for {
		f, err := st.Recv()
		if err != nil {
			return err
		}
		switch f.Kind {
		case guest.Stdout:
			err = out.stdout(f.Data)
		case guest.Stderr:
			err = out.stderr(f.Data)
		case guest.Ended:
			return out.exit(int32(f.Exit.Code))
		}
		if err != nil {
			return err
		}
	}
}

// Attach joins the VM's own command; it waits for a VM that is still coming up.
func (s vmService) Attach(stream blixardv1.VMService_AttachServer) error {
	first, err := stream.Recv()
	if err != nil {
		return endOfStream(err)
	}
	start := first.GetStart()
	if start == nil {
		return firstMessage("attach")
	}
	ctx := stream.Context()
	a, err := s.waitPlaced(ctx, start.GetName())
	if err != nil {
		return err
	}
	st, err := s.attachGuest(ctx, a, start)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := stream.Send(&blixardv1.AttachResponse{Message: &blixardv1.AttachResponse_Started{Started: true}}); err != nil {
		return err
	}
	go func() { _ = copyInput(st, stream.Recv) }()
	err = copyOutput(st, output{
		stdout: func(p []byte) error {
			return stream.Send(&blixardv1.AttachResponse{Message: &blixardv1.AttachResponse_Stdout{Stdout: p}})
		},
		stderr: func(p []byte) error {
			return stream.Send(&blixardv1.AttachResponse{Message: &blixardv1.AttachResponse_Stderr{Stderr: p}})
		},
		exit: func(code int32) error {
			return stream.Send(&blixardv1.AttachResponse{Message: &blixardv1.AttachResponse_ExitCode{ExitCode: code}})
		},
	})
	if local, lerr := s.agent(); lerr == nil && err == nil {
		local.Drained(a.GetId())
	}
	return err
}

// waitPlaced waits until the VM has an allocation, or a reason why it
// can have none.
func (s *Server) waitPlaced(ctx context.Context, name string) (*blixardv1.Allocation, error) {
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	for {
		vm, a, err := placed(view, name)
		if err == nil || vm == nil || !problem.HasCode(err, "vm.not_placed") {
			return a, err
		}
		if vm.GetDeleting() || vm.GetSpec().GetDesired() != blixardv1.DesiredState_run {
			return nil, err
		}
		if err := s.cfg.Replica.WaitApplied(ctx, view.Index()+1); err != nil {
			return nil, err
		}
		view = s.cfg.Replica.View()
	}
}

// attachGuest joins as soon as there is a guest; it gives up when the allocation
// ends first, with what the state says of it.
func (s *Server) attachGuest(ctx context.Context, a *blixardv1.Allocation, start *blixardv1.AttachStart) (*guest.Stream, error) {
	local, err := s.agent()
	if err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeoutCause(ctx, attachWait, context.DeadlineExceeded)
	defer cancel()
	over := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.untilEnded(waiting, a.GetId()); err != nil {
			over <- err
			cancel()
		}
	}()
	defer func() { cancel(); <-done }()
	for {
		session, err := local.Session(waiting, a.GetId(), true)
		if err == nil {
			req := guest.AttachRequest{Stdin: start.GetStdin(), Replay: guest.ReplayBytes, Lossless: a.GetSpec().GetHoldOutput(), Size: windowSize(start.GetSize())}
			var st *guest.Stream
			if st, err = session.Attach(ctx, req); err == nil {
				return st, nil
			}
		}
		select {
		case e := <-over:
			return nil, e
		default:
		}
		if waiting.Err() != nil || !problem.Is(err, problem.Unavailable) {
			return nil, err
		}
		select {
		case <-time.After(attachRetry):
		case <-waiting.Done():
		}
	}
}

// attachRetry while the guest is between its configuration and its command.
const attachRetry = 5 * time.Millisecond

// untilEnded returns why the allocation can't be attached to any more; nil when
// ctx ended first.
func (s *Server) untilEnded(ctx context.Context, allocID string) error {
	view := s.cfg.Replica.View()
	var seen *blixardv1.Allocation
	for {
		a := view.Allocation(allocID)
		if a == nil {
			return removed(seen)
		}
		seen = a
		st := a.GetStatus()
		if state.Ended(st.GetState()) && st.GetNextStartAt() == nil && st.GetStartCount() >= a.GetStartCount() {
			p := problem.New(problem.Unavailable, "vm.ended", "VM %q does not run: %s", a.GetVmName(), st.GetMessage())
			return p.WithHint("see `blixard vm logs %s`; start it with `blixard vm start %s`", a.GetVmName(), a.GetVmName())
		}
		err := s.cfg.Replica.WaitApplied(ctx, view.Index()+1)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the caller has found a guest and waits no longer
		}
		if err != nil {
			return err
		}
		view = s.cfg.Replica.View()
	}
}

// removed is the problem of a VM that is gone, with what was last known of it.
func removed(seen *blixardv1.Allocation) error {
	if message := seen.GetStatus().GetMessage(); message != "" {
		return problem.New(problem.NotFound, "vm.gone", "VM %q was removed: %s", seen.GetVmName(), message).
			WithHint("without --rm it stays, for `blixard vm logs` and `blixard events`")
	}
	return problem.New(problem.NotFound, "vm.gone", "the VM was removed").WithHint("`blixard events` shows what happened")
}

// Stats asks the guest for its figures.
func (s vmService) Stats(ctx context.Context, req *blixardv1.StatsRequest) (*blixardv1.StatsResponse, error) {
	session, err := s.guestSession(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	st, err := session.Stats(ctx)
	if err != nil {
		return nil, err
	}
	return &blixardv1.StatsResponse{
		MemoryTotalBytes: st.MemTotal, MemoryAvailableBytes: st.MemAvailable,
		Load1: st.Load[0], Load5: st.Load[1], Load15: st.Load[2], Processes: st.Processes,
		Uptime: durationpb.New(time.Duration(st.UptimeMS) * time.Millisecond),
	}, nil
}

// Console joins the console that the supervisor holds.
func (s vmService) Console(stream blixardv1.VMService_ConsoleServer) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return endOfStream(err)
	}
	a, local, err := s.here(ctx, first.GetName())
	if err != nil {
		return err
	}
	place, err := local.Locate(a.GetId())
	if err != nil {
		return err
	}
	c, err := s.cfg.Consoles.Console(ctx, place.Lane, place.ProcessID, first.GetWrite(), first.GetSteal())
	if problem.Is(err, problem.NotFound) {
		return consoleGone(a)
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if first.GetSize() != nil {
		if err := c.Resize(first.GetSize().GetColumns(), first.GetSize().GetRows()); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	go func() { _ = consoleInput(c, stream) }()
	for {
		out, err := c.Recv()
		if err != nil {
			return endOfStream(err)
		}
		if err := stream.Send(&blixardv1.ConsoleResponse{Data: out.Data, Writer: out.Writer}); err != nil {
			return err
		}
	}
}

func consoleGone(a *blixardv1.Allocation) error {
	return problem.New(problem.Unavailable, "vm.not_running", "VM %q does not run: %s", a.GetVmName(), a.GetStatus().GetMessage()).
		WithHint("start it with `blixard vm start %s`; its recorded output is in `blixard vm logs %s`", a.GetVmName(), a.GetVmName())
}

func consoleInput(c *supervisor.Console, stream blixardv1.VMService_ConsoleServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return endOfStream(err)
		}
		if len(m.GetData()) > 0 {
			if _, err := c.Write(m.GetData()); err != nil {
				return err
			}
		}
		if m.GetSize() != nil {
			if err := c.Resize(m.GetSize().GetColumns(), m.GetSize().GetRows()); err != nil {
				return err
			}
		}
	}
}

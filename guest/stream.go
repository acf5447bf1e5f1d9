package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

// FrameKind says what a Frame brings.
type FrameKind byte

// Kinds of frames a Stream gives.
const (
	Stdout FrameKind = FrameKind(wire.FrameStdout)
	Stderr FrameKind = FrameKind(wire.FrameStderr)
	// Gap: Lost bytes of output are missing here, of an attach that is not Lossless.
	Gap FrameKind = FrameKind(wire.FrameGap)
	// Ended is the last frame and carries Exit.
	Ended FrameKind = FrameKind(wire.FrameExit)
)

// Frame is a piece of what a process writes, or its end.
type Frame struct {
	Kind FrameKind
	// Data is valid until the next Recv.
	Data []byte
	Lost int64
	Exit Exit
}

// Stream is a process of the guest with its input and output: one started by Exec, or the main
// command joined by Attach. Output is flow-controlled: a process whose output nobody Recvs waits.
// One goroutine may Recv while others write; Close may be called at any time.
type Stream struct {
	c   *calls
	pid int

	writeMu sync.Mutex // one frame at a time
	readMu  sync.Mutex
	end     *Frame // set by the frame that ended the stream
}

// Exec starts a process and returns when it runs. ctx bounds the whole life of the stream: when it
// ends, or the stream is closed, or the session breaks, the process group gets SIGHUP and soon
// SIGKILL. The caller must Close the stream.
//
// A command that could not be started is a *StartError; a guest that is not in PhaseRunning refuses
// with Unavailable/guest.not_running.
func (s *Session) Exec(ctx context.Context, req ExecRequest) (*Stream, error) {
	return s.stream(ctx, wire.Request{Method: wire.MethodExec, Exec: &req})
}

// Attach joins the main command's output, and input if req.Stdin is set and nobody else has it
// (Conflict/guest.stdin_taken). Closing the stream leaves the command running and its input open;
// only CloseStdin ends that. The caller must Close the stream.
func (s *Session) Attach(ctx context.Context, req AttachRequest) (*Stream, error) {
	return s.stream(ctx, wire.Request{Method: wire.MethodAttach, Attach: &req})
}

func (s *Session) stream(ctx context.Context, req wire.Request) (*Stream, error) {
	c, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.send(req); err != nil {
		c.close()
		return nil, err
	}
	r, err := c.response()
	if err != nil {
		c.close()
		return nil, err
	}
	return &Stream{c: c, pid: r.PID}, nil
}

// PID is the process's id within the guest.
func (s *Stream) PID() int { return s.pid }

// Write sends p to the process's standard input and blocks while the process does not read it.
// It implements io.Writer.
func (s *Stream) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n := min(len(p)-sent, wire.MaxData)
		if err := s.frame(wire.FrameStdin, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// CloseStdin ends the process's standard input once all written bytes were read. On a terminal it
// types the end-of-file character.
func (s *Stream) CloseStdin() error { return s.frame(wire.FrameStdinEnd, nil) }

// Resize sets the terminal's size; it does nothing to a process without one.
func (s *Stream) Resize(size WindowSize) error {
	return s.frame(wire.FrameResize, wire.ResizePayload(size))
}

// Signal sends a signal (1 to 64) to the process, not to its group.
func (s *Stream) Signal(signal int) error {
	if signal < 1 || signal > maxSignal {
		return problem.New(problem.Invalid, "guest.signal", "guest: no signal %d", signal).
			WithHint("signals are 1 to %d", maxSignal)
	}
	return s.frame(wire.FrameSignal, []byte{byte(signal)})
}

const maxSignal = 64

func (s *Stream) frame(t wire.FrameType, payload []byte) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := wire.WriteFrame(s.c.stream, t, payload); err != nil {
		return s.c.s.explain(s.c.ctx, err)
	}
	return nil
}

// Recv returns the next frame. The last one is of kind Ended; after it Recv returns io.EOF.
func (s *Stream) Recv() (Frame, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if s.end != nil {
		return Frame{}, io.EOF
	}
	t, p, err := s.c.frames.Next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // an honest guest says Ended first
		}
		return Frame{}, s.c.s.explain(s.c.ctx, err)
	}
	switch t {
	case wire.FrameStdout, wire.FrameStderr:
		return Frame{Kind: FrameKind(t), Data: p}, nil
	case wire.FrameGap:
		if len(p) != 8 {
			return Frame{}, protocolError(wire.ErrFrameSize)
		}
		return Frame{Kind: Gap, Lost: int64(binary.BigEndian.Uint64(p) & math.MaxInt64)}, nil
	case wire.FrameExit:
		x, err := wire.DecodeExit(p)
		if err != nil {
			return Frame{}, protocolError(err)
		}
		s.end = &Frame{Kind: Ended, Exit: *x}
		return *s.end, nil
	}
	return Frame{}, protocolError(fmt.Errorf("frame of type %d among the output", t))
}

// Copy receives until the end, writes output to stdout and stderr (nil discards) and returns how
// the process ended. An error of a writer ends it.
func (s *Stream) Copy(stdout, stderr io.Writer) (Exit, error) {
	for {
		f, err := s.Recv()
		if errors.Is(err, io.EOF) && s.end != nil {
			return s.end.Exit, nil
		}
		if err != nil {
			return Exit{}, err
		}
		w := stdout
		switch f.Kind {
		case Ended:
			return f.Exit, nil
		case Gap:
			continue
		case Stderr:
			w = stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(f.Data); err != nil {
			return Exit{}, err
		}
	}
}

// Wait discards output until the process ended and says how. ctx bounds only the waiting: when it
// ends, the stream is closed.
func (s *Stream) Wait(ctx context.Context) (Exit, error) {
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	exit, err := s.Copy(nil, nil)
	if err != nil && ctx.Err() != nil {
		err = s.c.s.explain(ctx, err)
	}
	return exit, err
}

// Close ends the stream. It is harmless when repeated.
func (s *Stream) Close() { s.c.close() }

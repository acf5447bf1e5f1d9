package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

const (
	// qmpLineBytesMax of one message. The answers used here have less than 1 KiB.
	qmpLineBytesMax = 1 << 20
	// qmpDepthMax of nested objects and arrays; QEMU's own messages have less than 8.
	qmpDepthMax = 32
	// qmpReadBytes at a time.
	qmpReadBytes = 4 << 10
	// qmpErrorTextMax of a QEMU's error description is passed on.
	qmpErrorTextMax = 512
)

// errQMPProtocol says that what came is not QMP.
var errQMPProtocol = errors.New("the control socket sent what is not QMP")

// qmpMessage is anything that QEMU sends.
type qmpMessage struct {
	Greeting  json.RawMessage `json:"QMP"`
	ID        json.RawMessage `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *qmpError       `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error implements error.
func (e *qmpError) Error() string {
	return fmt.Sprintf("%.64s: %.*s", e.Class, qmpErrorTextMax, e.Desc)
}

// qmpEvent is an event as it came.
type qmpEvent struct {
	name string
	data json.RawMessage
	time time.Time
}

// qmpConn is one connection to a monitor. Calls are safe for concurrent use.
type qmpConn struct {
	conn   net.Conn
	r      *bufio.Reader
	line   []byte
	events func(qmpEvent)
	// dead is closed when the connection is of no more use.
	dead chan struct{}

	// writing is held while a command is written.
	writing sync.Mutex

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan qmpMessage
}

// newQMP takes over a connection. The caller calls handshake, then read in a
// goroutine of its own, and close at the end.
func newQMP(conn net.Conn, events func(qmpEvent)) *qmpConn {
	return &qmpConn{
		conn: conn, r: bufio.NewReaderSize(conn, qmpReadBytes), events: events,
		dead: make(chan struct{}), pending: make(map[uint64]chan qmpMessage),
	}
}

// handshake awaits the greeting and leaves the negotiation mode. It is bounded by
// the context alone.
func (q *qmpConn) handshake(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = q.conn.SetDeadline(time.Unix(1, 0)) })
	err := q.greet()
	if !stop() && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (q *qmpConn) greet() error {
	m, err := q.receive()
	if err != nil {
		return err
	}
	if m.Greeting == nil {
		return fmt.Errorf("%w: no greeting", errQMPProtocol)
	}
	if _, err := q.conn.Write([]byte(`{"execute":"qmp_capabilities","id":0}` + "\n")); err != nil {
		return err
	}
	for {
		m, err := q.receive()
		switch {
		case err != nil:
			return err
		case m.Event != "":
			q.pass(m)
		case m.Error != nil:
			return m.Error
		case m.Return != nil:
			return nil
		default:
			return fmt.Errorf("%w: no answer to qmp_capabilities", errQMPProtocol)
		}
	}
}

// receive reads one message.
func (q *qmpConn) receive() (qmpMessage, error) {
	line, err := q.readLine()
	if err != nil {
		return qmpMessage{}, err
	}
	return parseQMP(line)
}

// readLine gives the next line that is not empty; it is valid until the next call.
func (q *qmpConn) readLine() ([]byte, error) {
	// A long line is rare: its buffer is not kept.
	q.line = nil
	for {
		part, err := q.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(q.line)+len(part) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if len(q.line)+len(part) > qmpLineBytesMax {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", errQMPProtocol, qmpLineBytesMax)
		}
		if err != nil {
			q.line = append(q.line, part...)
			continue
		}
		if q.line != nil {
			part = append(q.line, part...)
		}
		if part = bytes.TrimSpace(part); len(part) > 0 {
			return part, nil
		}
		q.line = nil
	}
}

// parseQMP reads one message.
func parseQMP(line []byte) (qmpMessage, error) {
	if d := jsonDepth(line); d > qmpDepthMax {
		return qmpMessage{}, fmt.Errorf("%w: nested %d deep", errQMPProtocol, d)
	}
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return qmpMessage{}, fmt.Errorf("%w: %w", errQMPProtocol, err)
	}
	return m, nil
}

// jsonDepth gives the deepest nesting of a text, which need not be JSON.
func jsonDepth(b []byte) int {
	depth, deepest, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

// read takes messages until the connection breaks, and says why. Calls that wait
// then fail.
func (q *qmpConn) read() error {
	defer close(q.dead)
	for {
		m, err := q.receive()
		if err != nil {
			return err
		}
		if m.Event != "" {
			q.pass(m)
			continue
		}
		id, err := strconv.ParseUint(string(m.ID), 10, 64)
		if err != nil {
			// An error without an id answers a command that QEMU could not parse, which
			// this program does not send.
			return fmt.Errorf("%w: an answer without an id", errQMPProtocol)
		}
		q.mu.Lock()
		to := q.pending[id]
		delete(q.pending, id)
		q.mu.Unlock()
		if to != nil { // nobody waits for it any more
			to <- m
		}
	}
}

func (q *qmpConn) pass(m qmpMessage) {
	q.events(qmpEvent{
		name: m.Event, data: m.Data,
		time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*int64(time.Microsecond)),
	})
}

// close ends the connection; read returns soon after.
func (q *qmpConn) close() error { return q.conn.Close() }

// call executes a command with its arguments, if not nil; out, if not nil, takes
// its result. It is bounded by the context.
func (q *qmpConn) call(ctx context.Context, name string, args, out any) error {
	q.mu.Lock()
	q.next++
	id, answer := q.next, make(chan qmpMessage, 1)
	q.pending[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.pending, id)
	}()
	if err := q.write(ctx, name, args, id); err != nil {
		return q.broken(name, err)
	}
	select {
	case m := <-answer:
		return result(name, m, out)
	case <-q.dead:
		return q.broken(name, io.EOF)
	case <-ctx.Done():
		return problem.New(problem.Unavailable, "driver.vmm_hung", "QEMU did not answer %s in time", name).WithCause(ctx.Err()).
			WithHint("it is hung or stopped; killing it always works")
	}
}

func result(name string, m qmpMessage, out any) error {
	if m.Error != nil {
		return problem.New(problem.Internal, "driver.qmp", "QEMU refused %s", name).WithCause(m.Error)
	}
	if m.Return == nil {
		return problem.New(problem.Internal, "driver.qmp", "QEMU answered %s", name).WithCause(errQMPProtocol)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return problem.New(problem.Internal, "driver.qmp", "QEMU answered %s", name).WithCause(fmt.Errorf("%w: %w", errQMPProtocol, err))
	}
	return nil
}

func (q *qmpConn) broken(name string, err error) error {
	return problem.New(problem.Unavailable, "driver.qmp_lost", "the connection to QEMU broke during %s", name).WithCause(err)
}

// write sends a command within the context's deadline; a socket that takes
// nothing has a hung QEMU behind it.
func (q *qmpConn) write(ctx context.Context, name string, args any, id uint64) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{name, args, id})
	if err != nil {
		return err
	}
	q.writing.Lock()
	defer q.writing.Unlock()
	deadline, _ := ctx.Deadline() // zero means none
	if err := q.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = q.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = q.conn.Write(append(b, '\n'))
	return err
}

package server

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of the stream that carries calls from this node to another.
const (
	// relayedMax calls of a stream are under way, as many as gRPC takes of one
	// connection; what is more goes as calls of their own.
	relayedMax = streamsMax
	// relayedBytesMax of one request, so that small ones never wait behind large ones:
	// those go as calls of their own. All that wait are 64 MiB at most.
	relayedBytesMax = 64 << 10
	// relayBatchBytes of requests or answers go in one message, a quarter of what the
	// other end takes; a single larger answer goes alone.
	relayBatchBytes = 1 << 20
	// relayLookInterval is how often at most either end looks whether the other may still
	// be spoken to, so that the stream of a removed node ends within a second.
	relayLookInterval = 500 * time.Millisecond
	// relayExpiryInterval is how often the end that is called looks even when the state says
	// nothing new: certificates end.
	relayExpiryInterval = 30 * time.Second
	// relayAbsentTime is how long a node that does not know the stream is asked by
	// calls of their own, before it is tried again: it may have been upgraded.
	relayAbsentTime = 10 * time.Second
)

// errOwnCall: the call was not sent, and is to go as a gRPC call of its own.
var errOwnCall = errors.New("server: a call of its own")

// relays are the streams to other nodes, by their ids: one at most for each
// connection.
type relays struct {
	// ctx ends all streams.
	ctx    context.Context
	cancel context.CancelFunc
	// running ends with the last goroutine of the last stream.
	running sync.WaitGroup

	mu     sync.Mutex
	byNode map[string]*relay
}

// relay is one long-lived stream to another node. It costs a call far less than a
// gRPC call of its own, since what comes together goes together.
type relay struct {
	server *Server
	node   string
	conn   *grpc.ClientConn
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one token while something waits to be sent

	mu     sync.Mutex
	lastID uint64
	// waiting for their answers; those given up, too, until the other end is done with
	// them, so that it never has more than relayedMax.
	waiting  map[uint64]*relayedCall
	queue    []*relayedCall
	canceled []uint64
	// over takes no calls any more.
	over bool
	// absentUntil is set when the other node did not know the stream.
	absentUntil time.Time
}

// relayedCall is one call on its way; what changes is guarded by the relay's mu.
type relayedCall struct {
	call *blixardv1.ForwardedCall
	// sent tells that it may have reached the other node, dropped that it is not to.
	sent, dropped bool
	answer        chan relayedAnswer // has room for the one answer
}

type relayedAnswer struct {
	response []byte
	err      error
}

// relayed passes a unary call on over the stream to a node. Problems are those of
// atNode; errOwnCall when the stream does not take it.
func (s *Server) relayed(ctx context.Context, node string, c call) (proto.Message, error) {
	types, err := typesOf(c.method)
	if err != nil {
		return nil, err
	}
	body, err := proto.Marshal(c.req)
	if err != nil {
		return nil, problem.New(problem.Internal, "internal", "the request can't be encoded").WithCause(err)
	}
	if len(body) > relayedBytesMax {
		return nil, errOwnCall
	}
	r, err := s.relayTo(ctx, node)
	if err != nil {
		return nil, err
	}
	fc := &blixardv1.ForwardedCall{Method: c.method, Request: body}
	if who := callerOf(ctx); !who.asNode {
		fc.Caller = &blixardv1.ForwardedCaller{Actor: who.actor, Role: string(who.role), Name: who.name}
	}
	answer, err := r.do(ctx, fc)
	if err != nil {
		return nil, err
	}
	resp := types.out.New().Interface()
	if err := proto.Unmarshal(answer, resp); err != nil {
		return nil, problem.New(problem.Internal, "internal", "the answer of node %s can't be read", s.nodeName(node)).WithCause(err)
	}
	return resp, nil
}

// relayTo gives the stream to a node, over the connection that calls of their own
// would take, too: another one when certificate or address are others.
func (s *Server) relayTo(ctx context.Context, node string) (*relay, error) {
	conn, err := s.cfg.Nodes.Conn(node)
	if err != nil {
		return nil, err
	}
	if r := s.relays.over(node, conn); r != nil {
		return r, nil
	}
	if conn, err = s.ready(ctx, node); err != nil {
		return nil, err
	}
	return s.openRelay(node, conn)
}

// over gives the stream to a node over a connection, nil when there is none.
func (rs *relays) over(node string, conn *grpc.ClientConn) *relay {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r := rs.byNode[node]; r != nil && r.conn == conn && r.absentUntil.IsZero() {
		return r
	}
	return nil
}

func (s *Server) openRelay(node string, conn *grpc.ClientConn) (*relay, error) {
	rs := s.relays
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.ctx.Err() != nil {
		return nil, problem.New(problem.Unavailable, "node.stopping", "the node is stopping")
	}
	if r := rs.byNode[node]; r != nil && r.conn == conn {
		switch {
		case r.absentUntil.IsZero():
			return r, nil
		case time.Now().Before(r.absentUntil):
			return nil, errOwnCall
		}
	}
	ctx, cancel := context.WithCancel(rs.ctx)
	r := &relay{
		server: s, node: node, conn: conn, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), waiting: map[uint64]*relayedCall{},
	}
	rs.byNode[node] = r
	rs.running.Go(r.run)
	return r, nil
}

func newRelays() *relays {
	rs := &relays{byNode: map[string]*relay{}}
	rs.ctx, rs.cancel = context.WithCancel(context.Background())
	return rs
}

// close ends all streams, and the calls that are under way with them.
func (rs *relays) close() {
	rs.mu.Lock()
	rs.cancel() // with the lock held nobody is about to begin one
	rs.mu.Unlock()
	rs.running.Wait()
}

// ended forgets a stream, but for one that the other node does not know.
func (rs *relays) ended(r *relay, absent bool) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if absent {
		r.absentUntil = time.Now().Add(relayAbsentTime)
	} else if rs.byNode[r.node] == r {
		delete(rs.byNode, r.node)
	}
}

// do sends a call and waits for its answer.
func (r *relay) do(ctx context.Context, fc *blixardv1.ForwardedCall) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, problem.From(err)
	}
	left := callTimeout
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	fc.TimeoutNs = int64(left)
	c := &relayedCall{call: fc, answer: make(chan relayedAnswer, 1)}
	if err := r.put(c); err != nil {
		return nil, err
	}
	select {
	case a := <-c.answer:
		return a.response, a.err
	case <-ctx.Done():
		r.giveUp(c)
		return nil, problem.From(ctx.Err())
	}
}

func (r *relay) put(c *relayedCall) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
		return r.unreachable(nil)
	case len(r.waiting) >= relayedMax:
		return errOwnCall
	}
	r.lastID++
	c.call.Id = r.lastID
	r.waiting[r.lastID] = c
	r.queue = append(r.queue, c)
	r.wakeUp()
	return nil
}

func (r *relay) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// giveUp lets the other node end a call that nobody waits for, or does not send it.
func (r *relay) giveUp(c *relayedCall) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := c.call.GetId()
	if r.waiting[id] == nil {
		return // answered by now
	}
	if !c.sent {
		c.dropped = true
		return
	}
	r.canceled = append(r.canceled, id)
	r.wakeUp()
}

// take gives the next message, nil when nothing waits.
func (r *relay) take() *blixardv1.CallsRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &blixardv1.CallsRequest{Canceled: r.canceled}
	r.canceled = nil
	size, taken := 0, 0
	for _, c := range r.queue {
		if size += len(c.call.GetRequest()); size > relayBatchBytes {
			break
		}
		taken++
		if c.dropped {
			delete(r.waiting, c.call.GetId())
			continue
		}
		c.sent = true
		m.Calls = append(m.Calls, c.call)
	}
	clear(r.queue[:taken])
	if r.queue = r.queue[taken:]; len(r.queue) == 0 {
		r.queue = nil
	}
	if len(m.Calls) == 0 && len(m.Canceled) == 0 {
		return nil
	}
	return m
}

// run keeps the stream until it breaks or is not to be used any more.
func (r *relay) run() {
	defer r.cancel()
	err := r.carry()
	st, isStatus := status.FromError(err)
	absent := isStatus && st.Code() == codes.Unimplemented && len(st.Details()) == 0
	r.server.relays.ended(r, absent)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	for id, c := range r.waiting {
		why := errOwnCall
		if !absent {
			why = r.verdict(c.sent, err)
		}
		c.answer <- relayedAnswer{err: why}
		delete(r.waiting, id)
	}
}

// verdict tells what became of a call without an answer, when the stream ended by
// err. A node that ends the stream by itself has answered all that it began.
func (r *relay) verdict(sent bool, err error) error {
	st, ok := status.FromError(err)
	told := ok && len(st.Details()) > 0
	p := problem.From(err)
	switch {
	case told && p.Kind == problem.Denied:
		return p
	case !sent, told && (p.Code == "node.stopping" || p.Code == streamEnded):
		return r.unreachable(err)
	}
	return r.server.brokeOff(r.node, err)
}

func (r *relay) unreachable(cause error) error {
	p := problem.New(problem.Unavailable, "node.unreachable", "the stream to node %s has ended", r.server.nodeName(r.node))
	if cause != nil {
		return p.WithCause(cause)
	}
	return p
}

func (r *relay) carry() error {
	stream, err := blixardv1.NewForwardServiceClient(r.conn).Calls(r.ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	r.server.relays.running.Go(func() { ended <- r.receive(stream) })
	r.server.relays.running.Go(r.watch)
	for {
		select {
		case err := <-ended:
			return err
		case <-r.wake:
		}
		// Whoever else is about to send something is let go first: it then goes in the
		// same message.
		runtime.Gosched()
		for m := r.take(); m != nil; m = r.take() {
			err := stream.Send(m)
			if errors.Is(err, io.EOF) {
				return <-ended // which says why
			}
			if err != nil {
				r.cancel()
				return errors.Join(err, <-ended)
			}
		}
	}
}

func (r *relay) receive(stream blixardv1.ForwardService_CallsClient) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		r.mu.Lock()
		for _, a := range m.GetAnswers() {
			c := r.waiting[a.GetId()]
			if c == nil {
				continue
			}
			delete(r.waiting, a.GetId())
			got := relayedAnswer{response: a.GetResponse()}
			if p := problem.FromProto(a.GetProblem()); p != nil {
				got.err = p
			}
			c.answer <- got
		}
		r.mu.Unlock()
	}
}

// watch ends the stream once new calls take another connection, or none since the
// other node is no member; what is under way in the first case is finished.
func (r *relay) watch() {
	look := time.NewTicker(relayLookInterval)
	defer look.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-look.C:
		}
		conn, err := r.server.cfg.Nodes.Conn(r.node)
		if err == nil && conn == r.conn {
			continue
		}
		r.mu.Lock()
		r.over = true
		idle := len(r.waiting) == 0
		r.mu.Unlock()
		if err != nil || idle {
			r.cancel()
			return
		}
	}
}

package server

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// streamEnded is the problem with which a node ends a stream of calls by itself.
const streamEnded = "forward.ended"

// forwardable is a method that other nodes may pass on by the stream: the service
// that has it, and gRPC's way into it.
type forwardable struct {
	service any
	handler grpc.MethodHandler
}

// register adds a service, and notes which of its methods other nodes pass on.
func (s *Server) register(desc *grpc.ServiceDesc, service any) {
	s.grpc.RegisterService(desc, service)
	for _, m := range desc.Methods {
		name := "/" + desc.ServiceName + "/" + m.MethodName
		if rules[name].route == toLeader {
			s.forwardables[name] = forwardable{service, m.Handler}
		}
	}
}

// forwardService is ForwardService; see the .proto for its contract.
type forwardService struct {
	blixardv1.UnimplementedForwardServiceServer
	*Server
}

// forwarded is what one node passes on by its stream.
type forwarded struct {
	server *Server
	stream blixardv1.ForwardService_CallsServer
	// ctx of the calls outlives the server's wish to stop, but not the stream.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	wake    chan struct{} // holds one token while answers wait

	mu sync.Mutex
	// calls under way, relayedMax at most, and what ends each early.
	calls map[uint64]context.CancelFunc
	// answers wait, about relayedMax at most: a node that takes none loses its stream.
	answers []*blixardv1.ForwardedAnswer
}

// Calls takes the calls of one node until either end has enough.
func (s forwardService) Calls(stream blixardv1.ForwardService_CallsServer) error {
	f := &forwarded{server: s.Server, stream: stream, wake: make(chan struct{}, 1), calls: map[uint64]context.CancelFunc{}}
	f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(stream.Context()))
	defer f.cancel()
	finished, sent := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sent)
		f.send(finished)
	}()
	err := f.take()
	f.running.Wait()
	close(finished)
	<-sent
	return err
}

// take begins calls until the stream or the node ends, or its caller may not call
// any more.
func (f *forwarded) take() error {
	requests := f.receive()
	expiry := time.NewTicker(relayExpiryInterval)
	defer expiry.Stop()
	for {
		// Taken before the look, so that no change comes between both unseen.
		changed := f.server.recheck.next()
		if _, err := f.server.identify(f.stream.Context()); err != nil {
			f.cancel()
			return err
		}
		if ended, err := f.until(changed, expiry.C, requests); ended {
			return err
		}
	}
}

// until begins what comes until it is time to look again, or the stream has ended.
func (f *forwarded) until(changed <-chan struct{}, expiry <-chan time.Time, requests <-chan *blixardv1.CallsRequest) (ended bool, err error) {
	for {
		select {
		case <-f.stream.Context().Done():
			return true, problem.New(problem.Unavailable, streamEnded, "the stream of calls ends")
		case <-changed:
			return false, nil
		case <-expiry:
			return false, nil
		case m := <-requests:
			if m == nil {
				return true, nil
			}
			if err := f.begin(m); err != nil {
				return true, err
			}
		}
	}
}

// receive gives what comes until nothing does, which it tells by nil. A stream that
// broke takes its calls with it, as the connection of any call does.
func (f *forwarded) receive() <-chan *blixardv1.CallsRequest {
	requests := make(chan *blixardv1.CallsRequest)
	go func() {
		defer close(requests)
		for {
			m, err := f.stream.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					f.cancel()
				}
				return
			}
			select {
			case requests <- m:
			case <-f.stream.Context().Done():
				// Not begun, and the stream ends. What is under way ends with it only when it
				// breaks, and that the next turn tells.
			}
		}
	}()
	return requests
}

// begin starts the calls of a message, each beside the others.
func (f *forwarded) begin(m *blixardv1.CallsRequest) error {
	for _, c := range m.GetCalls() {
		ctx, cancel := context.WithTimeout(f.ctx, time.Duration(c.GetTimeoutNs()))
		f.mu.Lock()
		known, full, unread := f.calls[c.GetId()] != nil, len(f.calls) >= relayedMax, len(f.answers) >= relayedMax
		if !known && !full && !unread {
			f.calls[c.GetId()] = cancel
		}
		f.mu.Unlock()
		switch {
		case unread:
			cancel()
			return problem.New(problem.Unavailable, streamEnded, "%d answers wait, and the node does not take them", relayedMax)
		case known || c.GetId() == 0:
			cancel()
			return problem.New(problem.Invalid, "forward.id", "a call has the id %d, which is none or under way", c.GetId())
		case full:
			cancel()
			f.answered(c.GetId(), nil, problem.New(problem.Unavailable, "node.busy", "%d calls of that node are under way", relayedMax).WithHint("try again"))
			continue
		}
		f.running.Go(func() {
			defer cancel()
			resp, err := f.call(ctx, c)
			f.answered(c.GetId(), resp, err)
		})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range m.GetCanceled() {
		if cancel := f.calls[id]; cancel != nil {
			cancel()
		}
	}
	return nil
}

// call answers one call on the way that it would take as a call of its own: its
// caller is who the other node says, and that node is asked for its certificate.
func (f *forwarded) call(ctx context.Context, c *blixardv1.ForwardedCall) (body []byte, err error) {
	s := f.server
	defer s.guard(c.GetMethod(), &err)
	to, ok := s.forwardables[c.GetMethod()]
	if !ok {
		return nil, problem.New(problem.Unavailable, "unimplemented", "calls of %q are not passed on", c.GetMethod()).
			WithHint("the node runs another version of blixard")
	}
	md := metadata.MD{metaHop: {callerOf(f.stream.Context()).name}}
	if who := c.GetCaller(); who != nil {
		md[metaActor], md[metaRole], md[metaName] = []string{who.GetActor()}, []string{who.GetRole()}, []string{who.GetName()}
	}
	resp, err := to.handler(to.service, metadata.NewIncomingContext(ctx, md), func(into any) error {
		if err := proto.Unmarshal(c.GetRequest(), into.(proto.Message)); err != nil {
			return problem.New(problem.Invalid, "request.invalid", "the request of %s can't be read", c.GetMethod()).WithCause(err)
		}
		return nil
	}, s.unary)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(resp.(proto.Message))
}

func (f *forwarded) answered(id uint64, body []byte, err error) {
	a := &blixardv1.ForwardedAnswer{Id: id, Response: body}
	if err != nil {
		a.Problem = problem.From(err).Proto()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.calls, id)
	f.answers = append(f.answers, a)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// send gives the answers until all calls are finished. When they can't be given any
// more the stream has broken, and they are dropped.
func (f *forwarded) send(finished <-chan struct{}) {
	for last := false; !last; {
		select {
		case <-f.wake:
			// Changes that one write made durable are answered together: the calls that are
			// about to end are let go first.
			runtime.Gosched()
		case <-finished:
			last = true
		}
		for m := f.next(); m != nil; m = f.next() {
			if f.stream.Send(m) != nil {
				f.cancel()
			}
		}
	}
}

// next gives the next message of answers, nil when there are none.
func (f *forwarded) next() *blixardv1.CallsResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	size, n := 0, 0
	for n < len(f.answers) {
		if size += len(f.answers[n].GetResponse()); n > 0 && size > relayBatchBytes {
			break
		}
		n++
	}
	if n == 0 {
		return nil
	}
	m := &blixardv1.CallsResponse{Answers: f.answers[:n:n]}
	if f.answers = f.answers[n:]; len(f.answers) == 0 {
		f.answers = nil
	}
	return m
}

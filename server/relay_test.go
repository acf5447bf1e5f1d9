package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
)

const (
	labelVM = "/blixard.v1.VMService/LabelVM"
	// answerLimit bounds the wait for what takes a moment only.
	answerLimit = 10 * time.Second
)

// pair is a node that is asked, node-a, and one that passes calls on to it, node-b.
type pair struct {
	t         *testing.T
	asked     *Server
	asking    *Server
	conns     *oneConn
	replica   *replica.Replica
	authority *auth.Authority
	// removed makes node-a refuse node-b.
	removed atomic.Bool
	address string
}

// oneConn is Nodes with one other member.
type oneConn struct {
	mu   sync.Mutex
	conn *grpc.ClientConn
	err  error
}

func (o *oneConn) Conn(string) (*grpc.ClientConn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conn, o.err
}

func (o *oneConn) Reachable(string) bool { return true }

func (o *oneConn) set(conn *grpc.ClientConn, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conn, o.err = conn, err
}

func (p *pair) trust(name string) *auth.Trust {
	p.t.Helper()
	k, err := auth.NewKeypair()
	if err != nil {
		p.t.Fatal(err)
	}
	csr, err := k.SigningRequest()
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := p.authority.Sign(csr, auth.Identity{ClusterID: "c1", Role: auth.RoleNode, Name: name}, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	if k, err = k.Certify(cert); err != nil {
		p.t.Fatal(err)
	}
	return &auth.Trust{
		ClusterID: "c1", Keypair: func() *auth.Keypair { return k }, Now: time.Now,
		Authorities: func() [][]byte { return [][]byte{p.authority.Certificate()} },
		Refused: func(id auth.Identity) error {
			if id.Name == "node-b" && p.removed.Load() {
				return problem.New(problem.Denied, "auth.removed", "node b was removed")
			}
			return nil
		},
	}
}

func (p *pair) dial() *grpc.ClientConn {
	return dialTest(p.t, p.address, credentials.NewTLS(p.trust("node-b").ClientTLS("node-a")))
}

func dialTest(t *testing.T, address string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// newAsking gives a node-b that reaches one other node.
func newAsking(t *testing.T, r *replica.Replica, conn *grpc.ClientConn) (*Server, *oneConn) {
	t.Helper()
	conns := &oneConn{conn: conn}
	s, err := New(Config{NodeID: "node-b", Replica: r, Nodes: conns, Policy: auth.NewPolicy("x"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.relays.close)
	return s, conns
}

func openReplica(t *testing.T) *replica.Replica {
	t.Helper()
	r, err := replica.Open(t.Context(), replica.Config{Dir: filepath.Join(t.TempDir(), "raft"), NodeID: "node-a", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// newPair starts both; label, unless it is nil, takes the place of LabelVM's handler.
func newPair(t *testing.T, label grpc.UnaryHandler) *pair {
	t.Helper()
	authority, err := auth.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, authority: authority, replica: openReplica(t)}
	p.asked, err = New(Config{
		NodeID: "node-a", Replica: p.replica, Policy: auth.NewPolicy("x"), Trust: p.trust("node-a"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if label != nil {
		p.asked.forwardables[labelVM] = forwardable{nil, func(srv any, ctx context.Context, decode func(any) error, between grpc.UnaryServerInterceptor) (any, error) {
			req := &blixardv1.LabelVMRequest{}
			if err := decode(req); err != nil {
				return nil, err
			}
			return between(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: labelVM}, label)
		}}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- p.asked.grpc.Serve(l) }()
	t.Cleanup(func() {
		p.asked.Stop(t.Context()) // which has ended: nothing is waited for
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	p.asking, p.conns = newAsking(t, p.replica, p.dial())
	return p
}

func asOperator(ctx context.Context) context.Context {
	return context.WithValue(ctx, callerKey{}, caller{role: auth.RoleOperator, name: "o", actor: "operator:o"})
}

func label(s *Server, ctx context.Context, req *blixardv1.LabelVMRequest) (*blixardv1.LabelVMResponse, error) {
	resp, err := s.relayed(ctx, "node-a", call{method: labelVM, req: req})
	if err != nil {
		return nil, err
	}
	return resp.(*blixardv1.LabelVMResponse), nil
}

var someLabel = &blixardv1.LabelVMRequest{Name: "a", Labels: map[string]string{"k": "v"}}

// Many calls at once each get their own answer, from the handlers of the node.
func TestManyCallsByOneStream(t *testing.T) {
	p := newPair(t, func(ctx context.Context, req any) (any, error) {
		name := req.(*blixardv1.LabelVMRequest).GetName()
		if c := callerOf(ctx); c.actor != "operator:o" || c.via != "node-b" || !hopped(ctx) {
			return nil, fmt.Errorf("the caller is %+v", c)
		}
		if strings.HasSuffix(name, "7") {
			return nil, notFound(name)
		}
		return &blixardv1.LabelVMResponse{ModifyIndex: uint64(len(req.(*blixardv1.LabelVMRequest).GetLabels()["k"]))}, nil
	})
	var wg sync.WaitGroup
	for k := range relayedMax / 2 {
		wg.Go(func() {
			req := &blixardv1.LabelVMRequest{Name: fmt.Sprint("vm-", k), Labels: map[string]string{"k": strings.Repeat("x", k%60)}}
			resp, err := label(p.asking, asOperator(t.Context()), req)
			if want := k%10 == 7; want != problem.HasCode(err, "vm.not_found") || !want && (err != nil || resp.GetModifyIndex() != uint64(k%60)) {
				t.Errorf("call %d: %v, %v", k, resp, err)
			}
		})
	}
	wg.Wait()
	if n := len(p.asking.relays.byNode); n != 1 {
		t.Errorf("%d streams", n)
	}
}

// The path is that of any call: rights, rules, routes and handlers; faults stay with
// their call.
func TestRelayedCallsAreChecked(t *testing.T) {
	p := newPair(t, nil)
	ctx := asOperator(t.Context())
	as := func(c caller) context.Context { return context.WithValue(t.Context(), callerKey{}, c) }
	report := &blixardv1.ReportRequest{NodeId: "node-c"}
	for _, tc := range []struct {
		what   string
		ctx    context.Context
		method string
		req    proto.Message
		code   string
	}{
		{"handler", ctx, labelVM, someLabel, "vm.not_found"},
		{"rule of the API", ctx, labelVM, &blixardv1.LabelVMRequest{}, "request.invalid"},
		{"viewer", as(caller{role: auth.RoleViewer, name: "v", actor: "viewer:v"}), labelVM, someLabel, "auth.role"},
		{"nobody", as(caller{actor: "nobody"}), labelVM, someLabel, "auth.no_certificate"},
		{"for another node", as(caller{role: auth.RoleNode, name: "node-c", actor: "node:node-c"}), "/blixard.v1.AgentService/Report", report, "auth.other_node"},
		{"of the node", as(caller{asNode: true}), "/blixard.v1.AgentService/Report", report, "auth.other_node"},
		{"answered where it is asked", ctx, "/blixard.v1.VMService/GetVM", &blixardv1.GetVMRequest{Name: "a"}, "unimplemented"},
	} {
		_, err := p.asking.relayed(tc.ctx, "node-a", call{method: tc.method, req: tc.req})
		if !problem.HasCode(err, tc.code) {
			t.Errorf("%s: %v, want %s", tc.what, err, tc.code)
		}
	}
	big := &blixardv1.LabelVMRequest{Name: "a", Labels: map[string]string{"k": strings.Repeat("x", relayedBytesMax)}}
	if _, err := label(p.asking, ctx, big); !errors.Is(err, errOwnCall) {
		t.Errorf("a large request: %v", err)
	}
}

// A call ends with its caller's time or wish at both ends, and leaves its place.
func TestRelayedCallsEnd(t *testing.T) {
	begun, ended := make(chan struct{}, 1), make(chan error, 1)
	p := newPair(t, func(ctx context.Context, _ any) (any, error) {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(asOperator(t.Context()))
	go func() {
		<-begun
		cancel()
	}()
	if _, err := label(p.asking, ctx, someLabel); !problem.HasCode(err, "canceled") {
		t.Errorf("canceled: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the other end: %v", err)
	}
	if _, err := label(p.asking, ctx, someLabel); !problem.HasCode(err, "canceled") {
		t.Errorf("canceled before: %v", err)
	}
	ctx, cancel = context.WithTimeout(asOperator(t.Context()), 50*time.Millisecond)
	defer cancel()
	if _, err := label(p.asking, ctx, someLabel); !problem.HasCode(err, "deadline") {
		t.Errorf("deadline: %v", err)
	}
	if err := <-ended; err == nil { // by its own deadline or the caller's end, whichever was first
		t.Error("the other end goes on")
	}
	r := p.asking.relays.byNode["node-a"]
	within(t, "no call is left", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.waiting) == 0
	})
}

// within waits for what is about to become true.
func within(t *testing.T, what string, so func() bool) {
	t.Helper()
	limit := time.After(answerLimit)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("it is never so that %s", what)
		}
	}
}

// A fault of a handler is the answer to its call; the stream goes on.
func TestRelayedFault(t *testing.T) {
	p := newPair(t, func(_ context.Context, req any) (any, error) {
		if req.(*blixardv1.LabelVMRequest).GetName() == "b" {
			panic("a fault")
		}
		return &blixardv1.LabelVMResponse{ModifyIndex: 1}, nil
	})
	ctx := asOperator(t.Context())
	if _, err := label(p.asking, ctx, &blixardv1.LabelVMRequest{Name: "b", Labels: someLabel.GetLabels()}); !problem.HasCode(err, "internal") {
		t.Errorf("the fault: %v", err)
	}
	if _, err := label(p.asking, ctx, someLabel); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// otherEnd is a node that does as a test wants.
type otherEnd struct {
	blixardv1.UnimplementedForwardServiceServer
	do func(blixardv1.ForwardService_CallsServer) error
}

func (o otherEnd) Calls(stream blixardv1.ForwardService_CallsServer) error { return o.do(stream) }

// ownCalls answers what comes as a call of its own, from an operator.
type ownCalls struct {
	blixardv1.UnimplementedVMServiceServer
}

func (ownCalls) LabelVM(ctx context.Context, _ *blixardv1.LabelVMRequest) (*blixardv1.LabelVMResponse, error) {
	if actors := metadata.ValueFromIncomingContext(ctx, metaActor); len(actors) != 1 || actors[0] != "operator:o" || !hopped(ctx) {
		return nil, fmt.Errorf("the caller is %v", actors)
	}
	return &blixardv1.LabelVMResponse{ModifyIndex: 3}, nil
}

// newOtherEnd starts one; without do it does not know the stream.
func newOtherEnd(t *testing.T, do func(blixardv1.ForwardService_CallsServer) error) (*grpc.Server, *Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	far := grpc.NewServer()
	blixardv1.RegisterVMServiceServer(far, ownCalls{})
	if do != nil {
		blixardv1.RegisterForwardServiceServer(far, otherEnd{do: do})
	}
	served := make(chan error, 1)
	go func() { served <- far.Serve(l) }()
	t.Cleanup(func() {
		far.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	asking, _ := newAsking(t, openReplica(t), dialTest(t, l.Addr().String(), insecure.NewCredentials()))
	return far, asking
}

// How a stream ends tells what became of the calls it carried.
func TestBrokenStream(t *testing.T) {
	for _, tc := range []struct {
		what string
		end  error
		code string
	}{
		{"broken", status.Error(codes.Unavailable, "transport is closing"), "node.lost"},
		{"a fault", problem.New(problem.Internal, "internal", "a fault"), "node.lost"},
		{"stopping", problem.New(problem.Unavailable, "node.stopping", "the node is stopping"), "node.unreachable"},
		{"ended", problem.New(problem.Unavailable, streamEnded, "it ends"), "node.unreachable"},
		{"refused", problem.New(problem.Denied, "auth.removed", "removed"), "auth.removed"},
		{"ended well", nil, "node.lost"},
	} {
		_, asking := newOtherEnd(t, func(stream blixardv1.ForwardService_CallsServer) error {
			if _, err := stream.Recv(); err != nil {
				return err
			}
			return tc.end
		})
		if _, err := label(asking, asOperator(t.Context()), someLabel); !problem.HasCode(err, tc.code) {
			t.Errorf("%s: %v, want %s", tc.what, err, tc.code)
		}
	}
}

func TestLostNode(t *testing.T) {
	var far *grpc.Server
	var asking *Server
	got := make(chan struct{})
	far, asking = newOtherEnd(t, func(stream blixardv1.ForwardService_CallsServer) error {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		close(got)
		<-stream.Context().Done()
		return stream.Context().Err()
	})
	go func() {
		<-got
		far.Stop()
	}()
	if _, err := label(asking, asOperator(t.Context()), someLabel); !problem.HasCode(err, "node.lost") {
		t.Errorf("while it was under way: %v", err)
	}
	within(t, "the stream is forgotten", func() bool {
		asking.relays.mu.Lock()
		defer asking.relays.mu.Unlock()
		return len(asking.relays.byNode) == 0
	})
	if _, err := label(asking, asOperator(t.Context()), someLabel); !problem.HasCode(err, "node.unreachable") {
		t.Errorf("afterwards: %v", err)
	}
}

// What was not sent has certainly not been done.
func TestVerdictOfWhatWasNotSent(t *testing.T) {
	r := &relay{server: &Server{cfg: Config{Replica: openReplica(t)}}, node: "node-a"}
	if err := r.verdict(false, status.Error(codes.Unavailable, "broken")); !problem.HasCode(err, "node.unreachable") {
		t.Error(err)
	}
}

// A member of an older build gets calls of their own.
func TestNodeWithoutTheStream(t *testing.T) {
	_, asking := newOtherEnd(t, nil)
	for range 3 {
		if _, err := label(asking, asOperator(t.Context()), someLabel); !errors.Is(err, errOwnCall) {
			t.Fatal(err)
		}
	}
	resp, err := asking.atNodeByStream(asOperator(t.Context()), "node-a", call{method: labelVM, req: someLabel})
	if err != nil || resp.(*blixardv1.LabelVMResponse).GetModifyIndex() != 3 {
		t.Errorf("a call of its own: %v, %v", resp, err)
	}
	r := asking.relays.byNode["node-a"]
	asking.relays.mu.Lock()
	r.absentUntil = time.Unix(1, 0)
	asking.relays.mu.Unlock()
	if _, err := label(asking, asOperator(t.Context()), someLabel); !errors.Is(err, errOwnCall) || asking.relays.byNode["node-a"] == r {
		t.Errorf("it was not tried again: %v", err)
	}
}

// An answer that can't be read is a fault, and one that nobody waits for is nothing.
func TestAnswersThatAreOff(t *testing.T) {
	_, asking := newOtherEnd(t, func(stream blixardv1.ForwardService_CallsServer) error {
		for {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			for _, c := range m.GetCalls() {
				answers := []*blixardv1.ForwardedAnswer{{Id: c.GetId() + 100}, {Id: c.GetId(), Response: []byte{0xff}}}
				if err := stream.Send(&blixardv1.CallsResponse{Answers: answers}); err != nil {
					return err
				}
			}
		}
	})
	for range 2 {
		if _, err := label(asking, asOperator(t.Context()), someLabel); !problem.HasCode(err, "internal") {
			t.Fatal(err)
		}
	}
}

// A stream that is full lets the next call go by itself, and one whose calls were
// given up is full until the other end is done with them.
func TestFullStream(t *testing.T) {
	canceled := make(chan uint64, relayedMax)
	_, asking := newOtherEnd(t, func(stream blixardv1.ForwardService_CallsServer) error {
		for {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			for _, id := range m.GetCanceled() {
				canceled <- id
			}
		}
	})
	ctx, cancel := context.WithCancel(asOperator(t.Context()))
	var wg sync.WaitGroup
	for range relayedMax {
		wg.Go(func() { _, _ = label(asking, ctx, someLabel) })
	}
	full := func() bool {
		asking.relays.mu.Lock()
		r := asking.relays.byNode["node-a"]
		asking.relays.mu.Unlock()
		if r == nil {
			return false
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.waiting) == relayedMax && len(r.queue) == 0
	}
	within(t, "it is full", full)
	if _, err := label(asking, asOperator(t.Context()), someLabel); !errors.Is(err, errOwnCall) {
		t.Errorf("one more: %v", err)
	}
	cancel()
	wg.Wait()
	for range relayedMax {
		<-canceled
	}
	if !full() {
		t.Error("calls that nobody answered left their places")
	}
}

// After a renewal of the certificate new calls take the new connection, and what is
// under way over the old one is finished.
func TestStreamFollowsTheConnection(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, 2)
	p := newPair(t, func(context.Context, any) (any, error) {
		begun <- struct{}{}
		<-release
		return &blixardv1.LabelVMResponse{ModifyIndex: 1}, nil
	})
	results := make(chan error, 2)
	go func() {
		_, err := label(p.asking, asOperator(t.Context()), someLabel)
		results <- err
	}()
	<-begun
	old := p.asking.relays.byNode["node-a"]
	p.conns.set(p.dial(), nil)
	go func() {
		_, err := label(p.asking, asOperator(t.Context()), someLabel)
		results <- err
	}()
	<-begun
	if p.asking.relays.over("node-a", old.conn) != nil {
		t.Error("the old connection is still taken")
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	within(t, "the old stream has ended", func() bool { return old.ctx.Err() != nil })
	// A node that is a member no more is spoken to no more.
	young := p.asking.relays.byNode["node-a"]
	p.conns.set(nil, problem.New(problem.Unavailable, "node.unreachable", "no member"))
	within(t, "the stream has ended", func() bool { return young.ctx.Err() != nil })
	if _, err := label(p.asking, asOperator(t.Context()), someLabel); !problem.HasCode(err, "node.unreachable") {
		t.Error(err)
	}
}

package server

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of calls that go from node to node.
const (
	// leaderWait bounds the wait for a leader: an election takes 2 s at most when a
	// majority is there.
	leaderWait = 5 * time.Second
	// leaderRetry is the pause before the next try to find one.
	leaderRetry = 20 * time.Millisecond
	// connectWait bounds one try to connect to another node.
	connectWait = time.Second
	// callTimeout bounds a call whose caller gave no deadline.
	callTimeout = 60 * time.Second
)

// metaHop marks a call that a node has passed on: it is passed on once only.
const metaHop = "blixard-hop"

// Nodes reaches the other members. It must be safe for concurrent use.
type Nodes interface {
	// Conn gives the connection to a member; it belongs to Nodes. A member that is
	// not known is a problem of kind Unavailable.
	Conn(nodeID string) (*grpc.ClientConn, error)
	// Reachable tells whether there is a working connection to a member.
	Reachable(nodeID string) bool
}

// call is a unary call on its way.
type call struct {
	method string
	req    proto.Message
	here   grpc.UnaryHandler
}

// messageTypes of a method.
type messageTypes struct{ in, out protoreflect.MessageType }

// knownTypes holds what typesOf found: a method's name to its messageTypes.
var knownTypes sync.Map

func typesOf(method string) (messageTypes, error) {
	if known, ok := knownTypes.Load(method); ok {
		return known.(messageTypes), nil
	}
	fault := problem.New(problem.Internal, "internal", "the types of %s are not known", method)
	// "/package.Service/Method" is "package.Service.Method" in the registry.
	name := []byte(method[1:])
	for i, b := range name {
		if b == '/' {
			name[i] = '.'
		}
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	m, ok := d.(protoreflect.MethodDescriptor)
	if err != nil || !ok {
		return messageTypes{}, fault
	}
	in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		return messageTypes{}, fault.WithCause(err)
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return messageTypes{}, fault.WithCause(err)
	}
	types := messageTypes{in, out}
	knownTypes.Store(method, types)
	return types, nil
}

// hopped tells that another node passed the call on.
func hopped(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, metaHop)) > 0
}

// outgoing is the context for passing a call on.
func (s *Server) outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(s.passedOn(ctx), metaHop, s.cfg.NodeID)
}

// routed answers a unary call where it is to be answered.
func (s *Server) routed(ctx context.Context, to route, c call) (any, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	switch to {
	case toLeader:
		return s.atLeader(ctx, c)
	case toVM, toVolume, toTask:
		node, err := s.nodeOf(ctx, to, c.req)
		if err != nil {
			return nil, err
		}
		if node == s.cfg.NodeID {
			return c.here(ctx, c.req)
		}
		return s.atNode(ctx, node, c)
	default:
		return c.here(ctx, c.req)
	}
}

// atLeader answers at the leader. While there is none it waits, for as long as an
// election may take.
func (s *Server) atLeader(ctx context.Context, c call) (any, error) {
	begun := time.Now()
	resp, err := s.onceAtLeader(ctx, c)
	if !again(err) || hopped(ctx) {
		return resp, err
	}
	waiting, cancel := context.WithDeadline(ctx, begun.Add(leaderWait))
	defer cancel()
	for ; again(err); resp, err = s.onceAtLeader(ctx, c) {
		select {
		case <-time.After(leaderRetry):
		case <-waiting.Done():
			return nil, s.noLeader(err)
		}
	}
	return resp, err
}

// again tells of errors after which nothing was changed and another try may find
// the leader.
func again(err error) bool {
	return problem.HasCode(err, "replica.not_leader") || problem.HasCode(err, "replica.no_leader") || problem.HasCode(err, "node.unreachable")
}

func (s *Server) onceAtLeader(ctx context.Context, c call) (any, error) {
	st := s.cfg.Replica.Status()
	if st.Leader || s.cfg.Nodes == nil {
		return c.here(ctx, c.req)
	}
	if hopped(ctx) {
		return nil, problem.New(problem.NotLeader, "replica.not_leader", "this node does not lead")
	}
	m := s.cfg.Replica.View().MemberOfReplica(st.LeaderID)
	if st.LeaderID == 0 || m == nil {
		return nil, problem.New(problem.Unavailable, "replica.no_leader", "there is no leader")
	}
	resp, err := s.atNodeByStream(ctx, m.GetNodeId(), c)
	if problem.HasCode(err, "node.lost") && repeatable(c.req) {
		// What was done once is answered once more by its key.
		return nil, problem.New(problem.Unavailable, "node.unreachable", "the leader was lost").WithCause(err)
	}
	return resp, err
}

// repeatable tells that a request has its effect once however often it is sent.
func repeatable(req proto.Message) bool {
	k, ok := req.(interface{ GetIdempotencyKey() string })
	return ok && k.GetIdempotencyKey() != ""
}

// ready connects to a node, so that a call that fails before it was sent can be
// told from one that may have been taken.
func (s *Server) ready(ctx context.Context, node string) (*grpc.ClientConn, error) {
	conn, err := s.cfg.Nodes.Conn(node)
	if err != nil {
		return nil, err
	}
	if conn.GetState() == connectivity.Ready {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	// The node may be back by now. Before a first try there is nothing to forget, and gRPC
	// 1.85 makes what ResetConnectBackoff looks at meanwhile, without a lock for both.
	if conn.GetState() == connectivity.TransientFailure {
		conn.ResetConnectBackoff()
	}
	for first := true; ; first = false {
		st := conn.GetState()
		if st == connectivity.Ready {
			return conn, nil
		}
		conn.Connect()
		if !first && st == connectivity.TransientFailure || !conn.WaitForStateChange(ctx, st) {
			return nil, problem.New(problem.Unavailable, "node.unreachable", "node %s can't be reached", s.nodeName(node)).
				WithHint("see `blixard cluster status`")
		}
	}
}

func (s *Server) nodeName(id string) string {
	if m := s.cfg.Replica.View().Member(id); m != nil {
		return m.GetName()
	}
	return id
}

// atNode passes a unary call on. "node.unreachable" means that it was not sent,
// "node.lost" that it may have been.
func (s *Server) atNode(ctx context.Context, node string, c call) (proto.Message, error) {
	if hopped(ctx) {
		return nil, elsewhere(s.nodeName(node))
	}
	types, err := typesOf(c.method)
	if err != nil {
		return nil, err
	}
	conn, err := s.ready(ctx, node)
	if err != nil {
		return nil, err
	}
	resp := types.out.New().Interface()
	if err := conn.Invoke(s.outgoing(ctx), c.method, c.req, resp); err != nil {
		return nil, s.lost(node, err)
	}
	return resp, nil
}

// atNodeByStream does as atNode, over the stream to that node if it takes the call.
func (s *Server) atNodeByStream(ctx context.Context, node string, c call) (proto.Message, error) {
	resp, err := s.relayed(ctx, node, c)
	if errors.Is(err, errOwnCall) {
		return s.atNode(ctx, node, c)
	}
	return resp, err
}

func elsewhere(name string) error {
	return problem.New(problem.Unavailable, "node.moved", "node %s is to be asked by now", name).WithHint("try again")
}

// lost makes a problem of an error on the way to a node; what the node itself
// said passes through.
func (s *Server) lost(node string, err error) error {
	if st, ok := status.FromError(err); ok && st.Code() == codes.Unavailable && len(st.Details()) == 0 {
		return s.brokeOff(node, err)
	}
	return problem.From(err)
}

// brokeOff is the problem of a call that may have reached a node.
func (s *Server) brokeOff(node string, err error) error {
	return problem.New(problem.Unavailable, "node.lost", "the connection to node %s broke: the call may or may not have had its effect", s.nodeName(node)).
		WithHint("repeat it with the same idempotency key, which makes it once").WithCause(err)
}

const removedHint = "stop it and start it with an empty --data-dir, as a new node that may join again"

func (s *Server) removed() bool { return s.cfg.Membership != nil && s.cfg.Membership.Removed() }

// noLeader tells what is known of the voters.
func (s *Server) noLeader(cause error) error {
	if s.removed() {
		return problem.New(problem.Denied, "member.removed", "this node was removed from the cluster").WithHint(removedHint)
	}
	p := problem.New(problem.Unavailable, "replica.no_leader", "there is no leader: %s", s.votersText()).
		WithHint("a majority of the voters must run and reach each other; see `blixard cluster status`")
	if problem.HasCode(cause, "node.unreachable") {
		return p.WithCause(cause)
	}
	return p
}

// routedStream answers a stream where it is to be answered.
func (s *Server) routedStream(srv any, ss *checkedStream, to route, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	node := s.cfg.NodeID
	switch to {
	case toLeader:
		leader, err := s.leaderNode(ss.ctx)
		if err != nil {
			return err
		}
		node = leader
	case toVM, toVolume, toTask:
		types, err := typesOf(info.FullMethod)
		if err != nil {
			return err
		}
		first := types.in.New().Interface()
		if err := ss.RecvMsg(first); err != nil {
			return endOfStream(err)
		}
		if node, err = s.nodeOf(ss.ctx, to, first); err != nil {
			return err
		}
		ss.first = first
	}
	if node == s.cfg.NodeID {
		return next(srv, ss)
	}
	if hopped(ss.ctx) {
		return elsewhere(s.nodeName(node))
	}
	return s.proxy(ss, node, info)
}

// leaderNode waits for a leader and gives its node.
func (s *Server) leaderNode(ctx context.Context) (string, error) {
	if s.cfg.Nodes == nil {
		return s.cfg.NodeID, nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	for {
		st := s.cfg.Replica.Status()
		if st.Leader {
			return s.cfg.NodeID, nil
		}
		if m := s.cfg.Replica.View().MemberOfReplica(st.LeaderID); st.LeaderID != 0 && m != nil {
			return m.GetNodeId(), nil
		}
		select {
		case <-time.After(leaderRetry):
		case <-ctx.Done():
			return "", s.noLeader(nil)
		}
	}
}

// nodeOf gives the node that answers for the VM or volume of a request.
func (s *Server) nodeOf(ctx context.Context, to route, req proto.Message) (string, error) {
	switch to {
	case toVolume:
		return s.nodeOfVolume(ctx, req)
	case toTask:
		return s.nodeOfTask(ctx, req)
	}
	return s.nodeOfVM(ctx, req)
}

// nodeOfVolume gives the node that has the volume of a request; this one, when no
// node has it yet.
func (s *Server) nodeOfVolume(ctx context.Context, req proto.Message) (string, error) {
	r, ok := req.(interface{ GetName() string })
	if !ok {
		return s.cfg.NodeID, nil
	}
	view, err := s.read(ctx)
	if err != nil {
		return "", err
	}
	v := view.Volume(r.GetName())
	if v == nil {
		return "", problem.New(problem.NotFound, "volume.not_found", "there is no volume %q", r.GetName()).WithHint("see `blixard volume list`")
	}
	if v.GetNodeId() == "" {
		return s.cfg.NodeID, nil
	}
	return v.GetNodeId(), nil
}

// nodeOfVM gives the node that answers for the VM of a request. An attach waits
// until its VM is placed.
func (s *Server) nodeOfVM(ctx context.Context, req proto.Message) (string, error) {
	name, wait := "", false
	switch r := req.(type) {
	case *blixardv1.ExecRequest:
		name = r.GetStart().GetName()
	case *blixardv1.CopyRequest:
		name = r.GetStart().GetName()
	case *blixardv1.ForwardRequest:
		name = r.GetStart().GetName()
	case *blixardv1.AttachRequest:
		name, wait = r.GetStart().GetName(), true
	case interface{ GetName() string }:
		name = r.GetName()
	}
	if name == "" {
		return s.cfg.NodeID, nil // the handler says what is missing
	}
	if wait {
		a, err := s.waitPlaced(ctx, name)
		return a.GetNodeId(), err
	}
	view, err := s.read(ctx)
	if err != nil {
		return "", err
	}
	_, a, err := placed(view, name)
	return a.GetNodeId(), err
}

// proxy passes a stream on, in both directions, until the other node has ended
// it.
func (s *Server) proxy(ss *checkedStream, node string, info *grpc.StreamServerInfo) error {
	types, err := typesOf(info.FullMethod)
	if err != nil {
		return err
	}
	conn, err := s.ready(ss.ctx, node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(s.outgoing(ss.ctx))
	defer cancel()
	desc := &grpc.StreamDesc{ClientStreams: info.IsClientStream, ServerStreams: info.IsServerStream}
	to, err := conn.NewStream(ctx, desc, info.FullMethod)
	if err != nil {
		return s.lost(node, err)
	}
	// The input side ends with the stream: RecvMsg fails once the handler returns.
	go func() {
		for {
			m := types.in.New().Interface()
			if err := ss.RecvMsg(m); err != nil {
				if errors.Is(err, io.EOF) {
					_ = to.CloseSend()
				} else {
					cancel()
				}
				return
			}
			if to.SendMsg(m) != nil {
				return // RecvMsg below says why
			}
		}
	}()
	for {
		m := types.out.New().Interface()
		err := to.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return s.lost(node, err)
		}
		if err := ss.SendMsg(m); err != nil {
			return err
		}
	}
}

package server

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/blixard/blixard/internal/problem"
)

type actorKey struct{}

// actor names the caller for events.
func actor(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok {
		return a
	}
	return callerOf(ctx).actor
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	begun := time.Now()
	defer func() { s.metrics.ended(info.FullMethod, begun, err) }()
	defer s.guard(info.FullMethod, &err)
	c, r, err := s.authorize(ctx, info.FullMethod)
	if err != nil {
		return nil, problem.From(s.audited(c, info.FullMethod, err))
	}
	if err := s.validate(req); err != nil {
		return nil, err
	}
	resp, err = s.routed(context.WithValue(ctx, callerKey{}, c), r.route, call{info.FullMethod, req.(proto.Message), next})
	if err != nil {
		return nil, problem.From(err)
	}
	return resp, nil
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() { s.metrics.streams.WithLabelValues(methodOf(info.FullMethod), codeOf(err)).Inc() }()
	defer s.guard(info.FullMethod, &err)
	c, r, err := s.authorize(ss.Context(), info.FullMethod)
	if err != nil {
		return problem.From(s.audited(c, info.FullMethod, err))
	}
	ctx, cancel := s.streamContext(context.WithValue(ss.Context(), callerKey{}, c))
	defer cancel()
	checked := &checkedStream{ServerStream: ss, ctx: ctx, server: s, plain: r.internal}
	if err := s.routedStream(srv, checked, r.route, info, next); err != nil {
		select {
		case <-s.quit:
			return problem.New(problem.Unavailable, "node.stopping", "the node is stopping").WithHint("connect again when it is back")
		default:
		}
		return problem.From(err)
	}
	return nil
}

// guard turns a fault of ours into an answer and a log line with its stack; the
// daemon and its other calls go on.
func (s *Server) guard(method string, err *error) {
	if r := recover(); r != nil {
		s.log.Error("a call failed by a fault of blixard", "method", method, "fault", r, "stack", string(debug.Stack()))
		*err = problem.New(problem.Internal, "internal", "%s failed by a fault of blixard", method).
			WithHint("see the daemon's log, and report it")
	}
}

// audited notes who was refused what; err passes through.
func (s *Server) audited(c caller, method string, err error) error {
	code := problem.From(err).Code
	s.metrics.refused.WithLabelValues(methodOf(method), code).Inc()
	s.log.Warn("a call was refused", "method", method, "actor", c.actor, "via", c.via, "code", code)
	return err
}

// checkedStream validates every message it receives.
type checkedStream struct {
	grpc.ServerStream
	ctx    context.Context
	server *Server
	// plain streams check their messages themselves, since there are very many.
	plain bool
	// first, when set, was received already and is given once more.
	first proto.Message
}

// Context ends with the stream or the server.
func (c *checkedStream) Context() context.Context { return c.ctx }

// RecvMsg receives and validates.
func (c *checkedStream) RecvMsg(m any) error {
	if c.first != nil {
		proto.Merge(m.(proto.Message), c.first)
		c.first = nil
		return nil
	}
	if err := c.ServerStream.RecvMsg(m); err != nil || c.plain {
		return err
	}
	return c.server.validate(m)
}

// validate checks a message against the rules of the API.
func (s *Server) validate(req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return problem.New(problem.Internal, "internal", "the request is no message")
	}
	err := s.check.Validate(m)
	if err == nil {
		return nil
	}
	var v *protovalidate.ValidationError
	if !errors.As(err, &v) || len(v.Violations) == 0 {
		return problem.New(problem.Internal, "server.rules", "a rule of the API failed").WithCause(err)
	}
	// The first violation names the code; the others are told too, up to a limit.
	first := v.Violations[0].Proto
	code := "request.invalid"
	if id := first.GetRuleId(); ruleIsOurs(id) {
		code = id
	}
	var parts []string
	var fields []problem.Violation
	for k, one := range v.Violations[:min(len(v.Violations), problem.ViolationsMax)] {
		field, message := protovalidate.FieldPathString(one.Proto.GetField()), one.Proto.GetMessage()
		if k < violationsMax {
			parts = append(parts, field+": "+message)
		}
		fields = append(fields, problem.Violation{Field: field, Message: message})
	}
	return problem.New(problem.Invalid, code, "%s", strings.Join(parts, "; ")).
		WithHint("correct the request; nothing was changed").WithViolations(fields)
}

// violationsMax of one request are told in its message.
const violationsMax = 5

// ourNouns begin the ids of our own rules in the .proto files.
var ourNouns = []string{"vm", "name", "volume", "network", "secret", "file"}

// ruleIsOurs tells the codes that the API's own rules have from the names of
// protovalidate's built-in ones.
func ruleIsOurs(id string) bool {
	noun, _, found := strings.Cut(id, ".")
	return found && slices.Contains(ourNouns, noun)
}

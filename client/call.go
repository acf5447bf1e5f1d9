package client

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/blixard/blixard/internal/problem"
)

// keyField is the name of the idempotency key in every request that changes
// something.
const keyField = "idempotency_key"

// neverRetried are codes of kind Unavailable that another try can't mend.
// A node that knows no leader has waited for one already, and who joins names
// addresses that may be wrong.
var neverRetried = []string{"deadline", "canceled", "unimplemented", "replica.no_leader", "peer.unreachable", "member.unreachable"}

// unary gives a call its key, its deadline and its retries.
func (c *Client) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	req = withKey(req)
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := c.decode(invoke(ctx, method, req, reply, conn, opts...))
		if last != nil && ctx.Err() != nil {
			return struct{}{}, backoff.Permanent(last) // what a node said, not that the time is over
		}
		last = err
		if last != nil && !retriable(last) {
			return struct{}{}, backoff.Permanent(last)
		}
		return struct{}{}, last
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxTries(retryTriesMax), backoff.WithMaxElapsedTime(0))
	if err == nil {
		return nil
	}
	// What the node said last tells more than that the time is over.
	return last
}

func newBackOff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: retryWaitFirst, MaxInterval: retryWaitMax,
		RandomizationFactor: backoff.DefaultRandomizationFactor, Multiplier: backoff.DefaultMultiplier,
	}
}

// retriable reports whether the same call may succeed a moment later.
func retriable(err error) bool {
	p := problem.From(err)
	return (p.Kind == problem.Unavailable || p.Kind == problem.NotLeader) && !slices.Contains(neverRetried, p.Code)
}

// withKey returns req with an idempotency key, as a copy when it had none.
func withKey(req any) any {
	m, ok := req.(proto.Message)
	if !ok {
		return req
	}
	field := m.ProtoReflect().Descriptor().Fields().ByName(keyField)
	if field == nil || m.ProtoReflect().Get(field).String() != "" {
		return req
	}
	m = proto.Clone(m)
	m.ProtoReflect().Set(field, protoreflect.ValueOfString(NewKey()))
	return m
}

// decode makes a problem of what gRPC returned, and puts the true reason of a
// failed connection in the place of gRPC's text.
func (c *Client) decode(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	p := problem.From(err)
	if st, ok := status.FromError(err); ok && st.Code() == codes.Unavailable && len(st.Details()) == 0 {
		if d := c.dialed.Load(); d != nil && d.problem != nil {
			return d.problem
		}
		return problem.New(problem.Unavailable, "node.connection_lost", "the connection to the node was lost").
			WithCause(errors.New(st.Message())).WithHint("see `blixard node status`, and try again")
	}
	return p
}

// stream decodes the errors of streams. Streams are not retried here: only their
// callers know what was already sent and received.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, c.decode(err)
	}
	return &decodedStream{ClientStream: s, client: c}, nil
}

type decodedStream struct {
	grpc.ClientStream
	client *Client
}

func (s *decodedStream) RecvMsg(m any) error { return s.client.decode(s.ClientStream.RecvMsg(m)) }

func (s *decodedStream) SendMsg(m any) error { return s.client.decode(s.ClientStream.SendMsg(m)) }

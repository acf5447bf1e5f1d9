package client

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// labelsUnderWayMax bounds the changes of one [Labels] that wait for their
// answer: as many as a node takes of one stream.
const labelsUnderWayMax = 1024

// Labels changes labels of many VMs over one stream, which costs a node about
// half of what a call for each does. Its methods are safe for concurrent use, and
// it is made for it: each caller waits for its own answer only.
type Labels struct {
	stream   grpc.BidiStreamingClient[blixardv1.LabelVMsRequest, blixardv1.LabelVMsResponse]
	cancel   context.CancelFunc
	slots    chan struct{}
	received chan struct{} // closed when nothing comes any more
	// sending is held while a message is sent, and guards what is not mu's.
	sending sync.Mutex

	mu       sync.Mutex
	sequence uint64
	waiting  map[uint64]chan *blixardv1.LabelVMsResponse
	err      error
}

// Labels opens the stream. The caller closes it; it ends with ctx, too.
func (c *Client) Labels(ctx context.Context) (*Labels, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.VMs().LabelVMs(ctx)
	if err != nil {
		cancel()
		return nil, problem.From(err)
	}
	l := &Labels{
		stream: stream, cancel: cancel, slots: make(chan struct{}, labelsUnderWayMax),
		received: make(chan struct{}), waiting: map[uint64]chan *blixardv1.LabelVMsResponse{},
	}
	go l.receive()
	return l, nil
}

func (l *Labels) receive() {
	defer close(l.received)
	for {
		a, err := l.stream.Recv()
		if err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			if errors.Is(err, io.EOF) {
				err = problem.New(problem.Unavailable, "labels.closed", "the stream of changes is closed").WithHint("open another")
			}
			l.err = problem.From(err)
			return
		}
		l.mu.Lock()
		ch := l.waiting[a.GetSequence()]
		delete(l.waiting, a.GetSequence())
		l.mu.Unlock()
		if ch != nil {
			ch <- a
		}
	}
}

// labelAnswers are reused by callers that got theirs.
var labelAnswers = sync.Pool{New: func() any { return make(chan *blixardv1.LabelVMsResponse, 1) }}

// Label makes one change and waits until it is durable. The request's idempotency
// key is made here when it has none. When the stream breaks the problem is
// "change.unknown", unless nothing was sent; a repeat with the same key, over
// another stream or VMService.LabelVM, makes the change once.
func (l *Labels) Label(ctx context.Context, req *blixardv1.LabelVMRequest) (*blixardv1.LabelVMResponse, error) {
	if req.GetIdempotencyKey() == "" {
		req.IdempotencyKey = NewKey()
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return nil, problem.From(ctx.Err())
	case <-l.received:
		return nil, l.problem()
	}
	ch := labelAnswers.Get().(chan *blixardv1.LabelVMsResponse)
	seq, err := l.send(req, ch)
	if err != nil {
		return nil, err
	}
	var a *blixardv1.LabelVMsResponse
	select {
	case a = <-ch:
	case <-ctx.Done():
		return nil, l.giveUp(seq, ctx.Err())
	case <-l.received:
		select {
		case a = <-ch: // it came just before the end
		default:
			return nil, l.giveUp(seq, l.problem())
		}
	}
	labelAnswers.Put(ch)
	if a.GetProblem() != nil {
		return nil, problem.FromProto(a.GetProblem())
	}
	return &blixardv1.LabelVMResponse{ModifyIndex: a.GetModifyIndex()}, nil
}

// send puts one change on its way.
func (l *Labels) send(req *blixardv1.LabelVMRequest, ch chan *blixardv1.LabelVMsResponse) (uint64, error) {
	l.mu.Lock()
	l.sequence++
	seq := l.sequence
	l.waiting[seq] = ch
	l.mu.Unlock()
	l.sending.Lock()
	err := l.stream.Send(&blixardv1.LabelVMsRequest{Sequence: seq, Change: req})
	l.sending.Unlock()
	if err == nil {
		return seq, nil
	}
	<-l.received // Send says no more than that the stream has ended
	return 0, l.giveUp(seq, l.problem())
}

// giveUp forgets a change whose answer will not be waited for.
func (l *Labels) giveUp(seq uint64, cause error) error {
	l.mu.Lock()
	delete(l.waiting, seq)
	l.mu.Unlock()
	return problem.New(problem.Unavailable, "change.unknown", "the change may or may not have been made").
		WithHint("repeat it with the same idempotency key, which makes it once").WithCause(cause)
}

func (l *Labels) problem() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close waits for the answers that are under way, and ends the stream.
func (l *Labels) Close() error {
	l.sending.Lock()
	err := l.stream.CloseSend()
	l.sending.Unlock()
	<-l.received
	l.cancel()
	if p := l.problem(); !problem.HasCode(p, "labels.closed") {
		return p
	}
	return err
}

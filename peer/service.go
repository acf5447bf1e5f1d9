package peer

import (
	"context"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

var errStarting = problem.New(problem.Unavailable, "node.starting", "the replica is not up yet").WithHint("try again in a moment")

// service takes what peers send.
type service struct {
	blixardv1.UnimplementedPeerServiceServer
	t *Transport
}

// Service serves the other side of Send.
func (t *Transport) Service() blixardv1.PeerServiceServer { return service{t: t} }

// Messages takes the messages of one peer.
func (s service) Messages(stream blixardv1.PeerService_MessagesServer) error {
	t := s.t
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	r := t.target()
	if r == nil {
		return errStarting
	}
	if err := t.greet(stream.Context(), first.GetHello()); err != nil {
		t.refused.Add(1)
		return err
	}
	from, incarnation := first.GetHello().GetFrom(), first.GetHello().GetIncarnation()
	receipts := newReceipts(stream)
	defer receipts.end()
	bad := 0
	for requests := receive(stream); ; {
		var req *blixardv1.MessagesRequest
		select {
		case req = <-requests:
		case <-stream.Context().Done(): // the node is stopping, or the peer is gone
		}
		if req == nil {
			return nil
		}
		if !t.known(from) {
			return problem.New(problem.Denied, "peer.unknown", "replica %d is a member no more", from)
		}
		if err := t.newest(from, incarnation); err != nil {
			return err
		}
		for _, b := range req.GetMessages() {
			m, err := Decode(b, from, t.cfg.RaftID)
			if err != nil {
				t.refused.Add(1)
				t.cfg.Logger.Warn("dropped a message of a peer", "peer", from, "err", err)
				if bad++; bad >= badMessagesMax {
					return problem.New(problem.Invalid, "peer.message", "too many bad messages").WithCause(err)
				}
				continue
			}
			r.Step(m)
		}
		t.received(from, len(req.GetMessages()))
		receipts.add(len(req.GetMessages()))
	}
}

// receive gives what a stream brings, until it ends, which closes the channel. The
// stream ends at the latest with its handler.
func receive(stream blixardv1.PeerService_MessagesServer) <-chan *blixardv1.MessagesRequest {
	requests := make(chan *blixardv1.MessagesRequest)
	go func() {
		defer close(requests)
		for {
			req, err := stream.Recv()
			if err != nil {
				return // the peer ends the stream in any way it likes
			}
			select {
			case requests <- req:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	return requests
}

func (t *Transport) received(from uint64, n int) {
	t.mu.Lock()
	p := t.peers[from]
	t.mu.Unlock()
	if p != nil {
		p.mu.Lock()
		p.stats.Received += uint64(n)
		p.mu.Unlock()
	}
}

// receipts tell the peer now and then how much was taken.
type receipts struct {
	stream blixardv1.PeerService_MessagesServer
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	n    uint64
	sent uint64
}

func newReceipts(stream blixardv1.PeerService_MessagesServer) *receipts {
	ctx, cancel := context.WithCancel(stream.Context())
	r := &receipts{stream: stream, cancel: cancel}
	r.done.Go(func() {
		ticker := time.NewTicker(receiptInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				r.mu.Lock()
				n, due := r.n, r.n != r.sent
				r.sent = n
				r.mu.Unlock()
				if due && stream.Send(&blixardv1.MessagesResponse{Received: n}) != nil {
					return
				}
			}
		}
	})
	return r
}

func (r *receipts) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n += uint64(n)
}

func (r *receipts) end() {
	r.cancel()
	r.done.Wait()
}

package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// peer is one other replica.
type peer struct {
	t       *Transport
	id      uint64
	address string
	ctx     context.Context
	cancel  context.CancelFunc
	log     *slog.Logger
	wake    chan struct{} // holds one token while messages wait
	// sendingSnapshot: at most one at a time.
	sendingSnapshot atomic.Bool

	mu    sync.Mutex
	queue queue
	stats Stats
}

func newPeer(t *Transport, id uint64, address string) *peer {
	ctx, cancel := context.WithCancel(t.ctx)
	return &peer{
		t: t, id: id, address: address, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1),
		log: t.cfg.Logger.With("peer", id, "address", address),
	}
}

// put adds a message and tells whether it was taken.
func (p *peer) put(m *raftpb.Message) bool {
	p.mu.Lock()
	ok, err := p.queue.put(m)
	if !ok {
		p.stats.Dropped++
	}
	p.mu.Unlock()
	if err != nil {
		p.log.Error("a message of Raft can't be encoded", "err", err)
	}
	if ok {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return ok
}

func (p *peer) take() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	batch := p.queue.take()
	p.stats.Sent += uint64(len(batch))
	return batch
}

// forget drops what waits.
func (p *peer) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Dropped += uint64(len(p.queue.urgent) + len(p.queue.appends))
	p.queue = queue{}
}

func (p *peer) snapshotStats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Address, s.Waiting = p.address, len(p.queue.urgent)+len(p.queue.appends)
	return s
}

// run keeps a stream to the peer until it is let go of.
func (p *peer) run() {
	wait := &backoff.ExponentialBackOff{
		InitialInterval: reconnectFirst, MaxInterval: reconnectMost,
		RandomizationFactor: backoff.DefaultRandomizationFactor, Multiplier: backoff.DefaultMultiplier,
	}
	wait.Reset()
	for p.ctx.Err() == nil {
		receipts, err := p.once()
		if p.ctx.Err() != nil {
			return
		}
		if receipts {
			wait.Reset()
		}
		if told := problem.From(err); p.t.cfg.Refused != nil && (told.Code == "auth.removed" || told.Code == codeOlderStart) {
			p.t.cfg.Refused(told)
		}
		p.log.Debug("lost a peer", "err", err)
		p.forget()
		if r := p.t.target(); r != nil {
			r.ReportUnreachable(p.id)
		}
		timer := time.NewTimer(wait.NextBackOff())
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
		}
	}
}

// dial connects and makes its own context end the connection.
func (p *peer) dial() (*grpc.ClientConn, error) {
	p.mu.Lock()
	p.stats.Dials++
	p.mu.Unlock()
	return p.t.cfg.Dial(p.id, p.address)
}

// once keeps one stream until it breaks, and tells whether the peer gave
// receipts.
func (p *peer) once() (receipts bool, err error) {
	conn, err := p.dial()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	stream, err := blixardv1.NewPeerServiceClient(conn).Messages(ctx)
	if err != nil {
		return false, err
	}
	var sent, received atomic.Uint64
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel(nil)
	reading.Go(func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				cancel(fmt.Errorf("the peer ended the stream: %w", err))
				return
			}
			received.Store(r.GetReceived())
			p.mu.Lock()
			p.stats.LastReceipt = time.Now()
			p.mu.Unlock()
		}
	})
	if err := stream.Send(&blixardv1.MessagesRequest{Hello: p.t.hello(p.id)}); err != nil {
		return false, err
	}
	alive := time.NewTicker(p.t.cfg.ReceiptTimeout)
	defer alive.Stop()
	seen := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return received.Load() > 0, context.Cause(ctx)
		case <-alive.C:
			now := received.Load()
			if now == seen && sent.Load() > now {
				return now > 0, errors.New("the peer takes nothing: no receipt in time")
			}
			seen = now
		case <-p.wake:
			for batch := p.take(); batch != nil; batch = p.take() {
				if err := p.send(ctx, cancel, stream, batch); err != nil {
					return received.Load() > 0, err
				}
				sent.Add(uint64(len(batch)))
			}
		}
	}
}

// send writes one batch, and gives up when flow control holds it for too long.
func (p *peer) send(ctx context.Context, cancel context.CancelCauseFunc, stream blixardv1.PeerService_MessagesClient, batch [][]byte) error {
	timer := time.AfterFunc(p.t.cfg.ReceiptTimeout, func() { cancel(errors.New("the peer takes nothing: its stream is full")) })
	defer timer.Stop()
	err := stream.Send(&blixardv1.MessagesRequest{Messages: batch})
	if errors.Is(err, io.EOF) { // the reason comes by the receiving half
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return err
}

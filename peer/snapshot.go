package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// sendSnapshot begins to send a snapshot unless one is on its way; Raft is told
// how it ended.
func (p *peer) sendSnapshot(m *raftpb.Message) {
	r := p.t.target()
	p.t.mu.Lock()
	start := !p.t.closed && p.sendingSnapshot.CompareAndSwap(false, true)
	if start {
		p.t.running.Add(1)
	}
	p.t.mu.Unlock()
	if !start {
		r.ReportSnapshot(p.id, false)
		return
	}
	go func() {
		defer p.t.running.Done()
		defer p.sendingSnapshot.Store(false)
		n, err := p.snapshot(r, m)
		if err != nil && p.ctx.Err() == nil {
			p.log.Warn("a snapshot was not taken", "index", m.GetSnapshot().GetMetadata().GetIndex(), "bytes", n, "err", err)
		}
		r.ReportSnapshot(p.id, err == nil)
	}()
}

// snapshot sends one snapshot and waits until the peer has it.
func (p *peer) snapshot(r Replica, m *raftpb.Message) (n int64, err error) {
	select {
	case p.t.snapshots <- struct{}{}:
		defer func() { <-p.t.snapshots }()
	case <-p.ctx.Done():
		return 0, p.ctx.Err()
	}
	body, err := r.OpenSnapshot(m.GetSnapshot().GetMetadata().GetIndex())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	head, err := proto.Marshal(m)
	if err != nil {
		return 0, err
	}
	conn, err := p.dial()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	// Every chunk that is taken puts the end off.
	timer := time.AfterFunc(p.t.cfg.SnapshotTimeout, func() { cancel(errors.New("no chunk was taken in time")) })
	defer timer.Stop()
	stream, err := blixardv1.NewPeerServiceClient(conn).Snapshot(ctx)
	if err != nil {
		return 0, err
	}
	limit := rate.NewLimiter(rate.Limit(p.t.cfg.SnapshotRate), max(snapshotChunkSize, p.t.cfg.SnapshotRate/4))
	err = stream.Send(&blixardv1.SnapshotRequest{Hello: p.t.hello(p.id), Message: head})
	chunk := make([]byte, snapshotChunkSize)
	for err == nil {
		k, readErr := io.ReadFull(body, chunk)
		if k > 0 {
			if err = limit.WaitN(ctx, k); err == nil {
				err = stream.Send(&blixardv1.SnapshotRequest{Data: chunk[:k]})
				n += int64(k)
				timer.Reset(p.t.cfg.SnapshotTimeout)
			}
		}
		if readErr == io.EOF || readErr == io.ErrUnexpectedEOF {
			break
		}
		err = errors.Join(err, readErr)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	receipt, err := stream.CloseAndRecv() // says why when the stream was ended by the peer
	if err != nil {
		return n, errors.Join(err, context.Cause(ctx))
	}
	if receipt.GetBytes() != uint64(n) {
		return n, fmt.Errorf("sent %d bytes, the peer took %d", n, receipt.GetBytes())
	}
	return n, nil
}

// Snapshot takes one snapshot of a peer.
func (s service) Snapshot(stream blixardv1.PeerService_SnapshotServer) error {
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
	m, err := Decode(first.GetMessage(), first.GetHello().GetFrom(), t.cfg.RaftID)
	if err == nil && m.GetType() != raftpb.MsgSnap {
		err = fmt.Errorf("a message of type %v announces no snapshot", m.GetType())
	}
	if err != nil {
		t.refused.Add(1)
		return problem.New(problem.Invalid, "peer.message", "the snapshot is refused").WithCause(err)
	}
	body := &chunks{stream: stream}
	if err := r.ReceiveSnapshot(stream.Context(), m, body); err != nil {
		return err
	}
	return stream.SendAndClose(&blixardv1.SnapshotResponse{Bytes: body.n})
}

// chunks reads the body of a snapshot from its stream.
type chunks struct {
	stream blixardv1.PeerService_SnapshotServer
	rest   []byte
	n      uint64
}

func (c *chunks) Read(b []byte) (int, error) {
	for len(c.rest) == 0 {
		m, err := c.stream.Recv()
		if err != nil {
			return 0, err
		}
		if m.GetHello() != nil || m.GetMessage() != nil {
			return 0, errors.New("a second beginning within a snapshot")
		}
		c.rest = m.GetData()
	}
	n := copy(b, c.rest)
	c.rest, c.n = c.rest[n:], c.n+uint64(n)
	return n, nil
}

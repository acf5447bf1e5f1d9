package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline of everything that a test waits for.
const deadline = 30 * time.Second

func message(kind raftpb.MessageType, from, to, index uint64, entries int, size int) *raftpb.Message {
	m := &raftpb.Message{Type: kind.Enum(), From: &from, To: &to, Index: &index}
	for i := range entries {
		at := index + 1 + uint64(i)
		m.Entries = append(m.Entries, &raftpb.Entry{Index: &at, Data: bytes.Repeat([]byte{1}, size)})
	}
	return m
}

// replica keeps what reaches it.
type replica struct {
	steps     chan *raftpb.Message
	reports   chan string
	snapshots map[uint64][]byte
	take      func(m *raftpb.Message, body io.Reader) error
}

func newReplica() *replica {
	return &replica{steps: make(chan *raftpb.Message, 100_000), reports: make(chan string, 100_000), snapshots: map[uint64][]byte{}}
}

func (r *replica) Step(m *raftpb.Message)      { r.steps <- m }
func (r *replica) ReportUnreachable(id uint64) { r.reports <- fmt.Sprintf("unreachable %d", id) }
func (r *replica) ReportSnapshot(id uint64, ok bool) {
	r.reports <- fmt.Sprintf("snapshot %d %v", id, ok)
}

func (r *replica) OpenSnapshot(index uint64) (io.ReadCloser, error) {
	b, ok := r.snapshots[index]
	if !ok {
		return nil, errors.New("no such snapshot")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (r *replica) ReceiveSnapshot(_ context.Context, m *raftpb.Message, body io.Reader) error {
	return r.take(m, body)
}

// next gives the next step.
func (r *replica) next(t *testing.T) *raftpb.Message {
	t.Helper()
	select {
	case m := <-r.steps:
		return m
	case <-time.After(deadline):
		t.Fatal("no message came")
		return nil
	}
}

func (r *replica) reported(t *testing.T, want string) {
	t.Helper()
	after := time.After(deadline)
	for {
		select {
		case got := <-r.reports:
			if got == want {
				return
			}
		case <-after:
			t.Fatalf("Raft was never told: %s", want)
		}
	}
}

// serve serves a PeerService on an address of its own, or again on a given one.
func serve(t *testing.T, address string, s blixardv1.PeerServiceServer) (string, func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(4 << 20))
	blixardv1.RegisterPeerServiceServer(g, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			g.Stop()
			if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func transport(t *testing.T, id uint64, r Replica, change func(*Config)) *Transport {
	t.Helper()
	c := Config{
		ClusterID: "c", RaftID: id, Logger: slog.New(slog.DiscardHandler),
		Dial: func(_ uint64, address string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
	}
	if change != nil {
		change(&c)
	}
	tr := New(c)
	tr.SetReplica(r)
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// pair gives transport 1, which sends to 2, whose replica takes.
func pair(t *testing.T, change func(*Config)) (one *Transport, r1, r2 *replica, address string, stop func()) {
	t.Helper()
	r1, r2 = newReplica(), newReplica()
	two := transport(t, 2, r2, nil)
	two.SetPeers(map[uint64]string{1: "127.0.0.1:1"})
	address, stop = serve(t, "127.0.0.1:0", two.Service())
	one = transport(t, 1, r1, change)
	one.SetPeers(map[uint64]string{1: "ignored", 2: address})
	return one, r1, r2, address, stop
}

// Of two processes that take themselves for the same replica, only the one that
// started last is listened to, and the other is told.
func TestOlderStartIsRefused(t *testing.T) {
	told := make(chan *problem.Error, 10)
	tell := func(c *Config) {
		c.Incarnation = 4
		c.Refused = func(err *problem.Error) {
			select {
			case told <- err:
			default:
			}
		}
	}
	one, _, r2, address, _ := pair(t, tell)
	one.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1, 1, 100)})
	r2.next(t)
	copied := transport(t, 1, newReplica(), func(c *Config) { c.Incarnation = 5 })
	copied.SetPeers(map[uint64]string{2: address})
	copied.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 2, 1, 100)})
	if m := r2.next(t); m.GetIndex() != 2 {
		t.Fatalf("message %d came", m.GetIndex())
	}
	one.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 3, 1, 100)})
	select {
	case err := <-told:
		if !problem.HasCode(err, "peer.older_start") || err.Hint == "" {
			t.Errorf("told %v", err)
		}
	case <-time.After(deadline):
		t.Fatal("the older start was never told")
	}
	copied.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 4, 1, 100)})
	if m := r2.next(t); m.GetIndex() != 4 {
		t.Errorf("message %d of the older start was taken", m.GetIndex())
	}
}

func TestMessagesComeInOrder(t *testing.T) {
	one, _, r2, _, _ := pair(t, nil)
	const n = 2000
	for i := range uint64(n) {
		one.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, i, 1, 100)})
	}
	for i := range uint64(n) {
		if m := r2.next(t); m.GetIndex() != i {
			t.Fatalf("message %d came in the place of %d", m.GetIndex(), i)
		}
	}
	if s := one.Stats()[2]; s.Sent != n || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

func TestPeerComesBack(t *testing.T) {
	one, r1, r2, address, stop := pair(t, nil)
	one.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0, 0, 0)})
	r2.next(t)
	stop()
	r1.reported(t, "unreachable 2")
	again := newReplica()
	two := transport(t, 2, again, nil)
	two.SetPeers(map[uint64]string{1: "127.0.0.1:1"})
	serve(t, address, two.Service())
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	after := time.After(deadline)
	for {
		one.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0, 0, 0)})
		select {
		case <-again.steps:
			return
		case <-ticker.C:
		case <-after:
			t.Fatal("the peer was not found again")
		}
	}
}

// stuckService takes the hello and then nothing.
type stuckService struct {
	blixardv1.UnimplementedPeerServiceServer
	hellos chan struct{}
}

func (s stuckService) Messages(stream blixardv1.PeerService_MessagesServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	s.hellos <- struct{}{}
	<-stream.Context().Done()
	return nil
}

func (s stuckService) Snapshot(stream blixardv1.PeerService_SnapshotServer) error {
	<-stream.Context().Done()
	return nil
}

// TestStuckPeer: it is dialled anew, what waits for it is bounded, and others do
// not notice.
func TestStuckPeer(t *testing.T) {
	one, r1, r2, address, _ := pair(t, func(c *Config) { c.ReceiptTimeout = 3 * receiptInterval })
	stuck := stuckService{hellos: make(chan struct{}, 1000)}
	stuckAddress, _ := serve(t, "127.0.0.1:0", stuck)
	one.SetPeers(map[uint64]string{2: address, 3: stuckAddress})
	<-stuck.hellos
	const big = 1 << 20
	for i := range uint64(100) {
		one.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 3, i, 1, big), message(raftpb.MsgHeartbeat, 1, 2, i, 0, 0)})
	}
	for i := range uint64(100) {
		if m := r2.next(t); m.GetIndex() != i {
			t.Fatalf("message %d came in the place of %d", m.GetIndex(), i)
		}
	}
	if s := one.Stats()[3]; s.Dropped == 0 || s.Waiting > queueBytesMax/big+1 {
		t.Errorf("the queue of a stuck peer: %+v", s)
	}
	r1.reported(t, "unreachable 3")
	select {
	case <-stuck.hellos:
	case <-time.After(deadline):
		t.Fatal("a peer that takes nothing was not dialled anew")
	}
}

func TestSnapshots(t *testing.T) {
	one, r1, r2, _, _ := pair(t, nil)
	body := bytes.Repeat([]byte("0123456789"), 100_000)
	r1.snapshots[7] = body
	index, term := uint64(7), uint64(2)
	m := message(raftpb.MsgSnap, 1, 2, 0, 0, 0)
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: &index, Term: &term}}
	got := make(chan []byte, 1)
	r2.take = func(m *raftpb.Message, in io.Reader) error {
		if m.GetSnapshot().GetMetadata().GetIndex() != 7 {
			return errors.New("another snapshot")
		}
		b, err := io.ReadAll(in)
		got <- b
		return err
	}
	one.Send([]*raftpb.Message{m})
	r1.reported(t, "snapshot 2 true")
	if b := <-got; !bytes.Equal(b, body) {
		t.Errorf("%d bytes came, %d were sent", len(b), len(body))
	}
	// Refused by the replica, missing here, unknown peer.
	r2.take = func(*raftpb.Message, io.Reader) error { return problem.New(problem.Invalid, "snapshot.damaged", "no") }
	one.Send([]*raftpb.Message{m})
	r1.reported(t, "snapshot 2 false")
	delete(r1.snapshots, 7)
	one.Send([]*raftpb.Message{m})
	r1.reported(t, "snapshot 2 false")
	stranger := proto.Clone(m).(*raftpb.Message)
	stranger.To = proto.Uint64(9)
	one.Send([]*raftpb.Message{stranger})
	r1.reported(t, "snapshot 9 false")
}

func TestStuckSnapshot(t *testing.T) {
	one, r1, _, _, _ := pair(t, func(c *Config) { c.SnapshotTimeout = 200 * time.Millisecond })
	address, _ := serve(t, "127.0.0.1:0", stuckService{hellos: make(chan struct{}, 1000)})
	one.SetPeers(map[uint64]string{3: address})
	r1.snapshots[7] = make([]byte, 10<<20)
	index := uint64(7)
	m := message(raftpb.MsgSnap, 1, 3, 0, 0, 0)
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: &index}}
	one.Send([]*raftpb.Message{m})
	r1.reported(t, "snapshot 3 false")
}

// TestHostilePeers: what strangers and liars say never reaches Raft.
func TestHostilePeers(t *testing.T) {
	r := newReplica()
	r.take = func(*raftpb.Message, io.Reader) error { return errors.New("it was asked") }
	two := transport(t, 2, r, nil)
	two.SetPeers(map[uint64]string{1: "127.0.0.1:1"})
	address, _ := serve(t, "127.0.0.1:0", two.Service())
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	service := blixardv1.NewPeerServiceClient(conn)
	for name, tc := range map[string]struct {
		hello *blixardv1.PeerHello
		code  string
	}{
		"no hello":        {nil, "peer.hello"},
		"other cluster":   {&blixardv1.PeerHello{ClusterId: "d", From: 1, To: 2}, "peer.other_cluster"},
		"other replica":   {&blixardv1.PeerHello{ClusterId: "c", From: 1, To: 3}, "peer.other_replica"},
		"no member":       {&blixardv1.PeerHello{ClusterId: "c", From: 4, To: 2}, "peer.unknown"},
		"itself":          {&blixardv1.PeerHello{ClusterId: "c", From: 2, To: 2}, "peer.unknown"},
		"its own members": {&blixardv1.PeerHello{ClusterId: "c", From: 0, To: 2}, "peer.unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := checkHello(tc.hello, "c", 2, func(id uint64) bool { return id == 1 }); !problem.HasCode(err, tc.code) {
				t.Errorf("%v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			stream, err := service.Messages(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_ = stream.Send(&blixardv1.MessagesRequest{Hello: tc.hello})
			if _, err := stream.Recv(); err == nil || ctx.Err() != nil {
				t.Errorf("the stream was taken: %v", err)
			}
			snap, err := service.Snapshot(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_ = snap.Send(&blixardv1.SnapshotRequest{Hello: tc.hello})
			if _, err := snap.CloseAndRecv(); err == nil || ctx.Err() != nil {
				t.Errorf("the snapshot was taken: %v", err)
			}
		})
	}
	t.Run("messages", func(t *testing.T) { hostileMessages(t, service, r) })
	if two.Refused() < 12+badMessagesMax {
		t.Errorf("%d were counted", two.Refused())
	}
}

func hostileMessages(t *testing.T, service blixardv1.PeerServiceClient, r *replica) {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	stream, err := service.Messages(ctx)
	if err != nil {
		t.Fatal(err)
	}
	good := message(raftpb.MsgHeartbeat, 1, 2, 42, 0, 0)
	gap := message(raftpb.MsgApp, 1, 2, 5, 2, 1)
	gap.Entries[1].Index = proto.Uint64(9)
	var batch [][]byte
	for _, m := range []*raftpb.Message{
		message(raftpb.MsgHup, 1, 2, 0, 0, 0), message(raftpb.MsgProp, 1, 2, 0, 1, 1),
		message(raftpb.MsgHeartbeat, 3, 2, 0, 0, 0), message(raftpb.MsgHeartbeat, 1, 3, 0, 0, 0), gap,
		{Type: raftpb.MsgApp.Enum(), From: proto.Uint64(1), To: proto.Uint64(2), Responses: []*raftpb.Message{good}},
		message(raftpb.MsgApp, 1, 2, 0, 1, messageBytesMax), good,
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		batch = append(batch, b)
	}
	if err := stream.Send(&blixardv1.MessagesRequest{Hello: &blixardv1.PeerHello{ClusterId: "c", From: 1, To: 2}}); err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&blixardv1.MessagesRequest{Messages: batch}); err != nil {
		t.Fatal(err)
	}
	if m := r.next(t); m.GetIndex() != 42 {
		t.Errorf("%v reached Raft", m)
	}
	garbage := make([][]byte, badMessagesMax)
	for i := range garbage {
		garbage[i] = []byte("garbage")
	}
	if err := stream.Send(&blixardv1.MessagesRequest{Messages: garbage}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv() // receipts, then the end
	}
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		t.Errorf("garbage was taken for ever: %v", err)
	}
	if len(r.steps) > 0 {
		t.Errorf("%v reached Raft", <-r.steps)
	}
}

// TestBeforeTheReplica: a peer may connect before the replica is open.
func TestBeforeTheReplica(t *testing.T) {
	two := New(Config{ClusterID: "c", RaftID: 2, Logger: slog.New(slog.DiscardHandler)})
	defer func() { _ = two.Close() }()
	address, _ := serve(t, "127.0.0.1:0", two.Service())
	r := newReplica()
	one := transport(t, 1, r, nil)
	one.SetPeers(map[uint64]string{2: address})
	one.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0, 0, 0)})
	r.reported(t, "unreachable 2")
	two.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 2, 1, 0, 0, 0)}) // nobody to send for
}

// TestQueue: whatever is put, batches are bounded, urgent messages come first,
// each lane keeps its order, and what was taken in comes out once.
func TestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue
		var want [2][]uint64
		n := uint64(0)
		drain := func() {
			for batch := q.take(); batch != nil; batch = q.take() {
				size, urgent := 0, true
				for _, b := range batch {
					m := &raftpb.Message{}
					if err := proto.Unmarshal(b, m); err != nil {
						t.Fatal(err)
					}
					lane := 0
					if len(m.GetEntries()) > 0 {
						lane, urgent = 1, false
					} else if !urgent {
						t.Fatal("an urgent message came after an append")
					}
					if len(want[lane]) == 0 || want[lane][0] != m.GetIndex() {
						t.Fatalf("message %d came out, %v were expected", m.GetIndex(), want[lane])
					}
					want[lane] = want[lane][1:]
					size += len(b)
				}
				if len(batch) > 1 && size > batchBytesMax || len(batch) > batchMessagesMax {
					t.Fatalf("a batch of %d messages and %d bytes", len(batch), size)
				}
			}
			if !q.empty() || q.bytes != 0 || len(want[0])+len(want[1]) != 0 {
				t.Fatalf("%d bytes stayed, %v never came", q.bytes, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				n++
				entries := rapid.IntRange(0, 2).Draw(t, "entries")
				size := rapid.SampledFrom([]int{1, 1000, batchBytesMax / 3, batchBytesMax}).Draw(t, "size")
				ok, err := q.put(message(raftpb.MsgApp, 1, 2, n, entries, size))
				if err != nil {
					t.Fatal(err)
				}
				if ok {
					lane := min(entries, 1)
					want[lane] = append(want[lane], n)
				} else if q.bytes+2*batchBytesMax+1000 < queueBytesMax {
					t.Fatal("a message was dropped with room left")
				}
				if q.bytes > queueBytesMax+2*batchBytesMax+1000 {
					t.Fatalf("%d bytes wait", q.bytes)
				}
			},
			"take": func(*rapid.T) { drain() },
		})
		drain()
	})
}

func FuzzDecode(f *testing.F) {
	for _, m := range []*raftpb.Message{message(raftpb.MsgApp, 1, 2, 3, 2, 5), message(raftpb.MsgHeartbeat, 1, 2, 0, 0, 0)} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b, 1, 2)
		if err == nil && (m.GetFrom() != 1 || m.GetTo() != 2 || m.GetType() == raftpb.MsgProp) {
			t.Errorf("%v was taken", m)
		}
	})
}

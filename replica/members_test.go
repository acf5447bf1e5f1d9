package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// network carries messages between the replicas of a test. A cut replica hears
// and says nothing.
type network struct {
	t testing.TB

	mu       sync.Mutex
	replicas map[uint64]*Replica
	cut      map[uint64]bool
	carrying sync.WaitGroup
}

func newNetwork(t testing.TB) *network {
	n := &network{t: t, replicas: map[uint64]*Replica{}, cut: map[uint64]bool{}}
	t.Cleanup(n.carrying.Wait)
	return n
}

type sender struct {
	n    *network
	from uint64
}

func (s sender) Send(messages []*raftpb.Message) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	for _, m := range messages {
		to, from := s.n.replicas[m.GetTo()], s.n.replicas[s.from]
		if to == nil || from == nil || s.n.cut[m.GetTo()] || s.n.cut[s.from] {
			continue
		}
		if m.GetType() != raftpb.MsgSnap {
			to.Step(m)
			continue
		}
		s.n.carrying.Go(func() {
			body, err := from.OpenSnapshot(m.GetSnapshot().GetMetadata().GetIndex())
			if err == nil {
				err = to.ReceiveSnapshot(context.Background(), m, body)
				_ = body.Close()
			}
			from.ReportSnapshot(m.GetTo(), err == nil)
		})
	}
}

func (n *network) open(id uint64, dir string, join bool) *Replica {
	n.t.Helper()
	c := testConfig(filepath.Join(dir, fmt.Sprint(id)))
	c.NodeID, c.ClusterID, c.RaftID, c.Join = fmt.Sprintf("node-%d", id), "cluster-1", id, join
	c.Sender, c.Tick = sender{n, id}, 10*time.Millisecond
	r := mustOpen(n.t, c)
	n.mu.Lock()
	n.replicas[id] = r
	n.mu.Unlock()
	n.t.Cleanup(func() { n.drop(id) })
	return r
}

func (n *network) drop(id uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.replicas, id)
}

func (n *network) setCut(id uint64, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[id] = cut
}

// leader waits until one of the replicas leads.
func (n *network) leader(except uint64) *Replica {
	n.t.Helper()
	deadline := time.Now().Add(deadline)
	for time.Now().Before(deadline) {
		n.mu.Lock()
		for id, r := range n.replicas {
			if id != except && r.Status().Leader {
				n.mu.Unlock()
				if _, err := r.Read(testContext(n.t)); err == nil {
					return r
				}
				n.mu.Lock()
			}
		}
		n.mu.Unlock()
		<-time.After(10 * time.Millisecond)
	}
	n.t.Fatal("nobody leads")
	return nil
}

func change(kind raftpb.ConfChangeType, ids ...uint64) *raftpb.ConfChangeV2 {
	c := &raftpb.ConfChangeV2{}
	for _, id := range ids {
		c.Changes = append(c.Changes, &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: &id})
	}
	return c
}

// until repeats a change of the members until the membership is as wanted.
func until(t testing.TB, r *Replica, c *raftpb.ConfChangeV2, ok func(Membership) bool) {
	t.Helper()
	ctx := testContext(t)
	for {
		m, err := r.Membership(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if ok(m) {
			return
		}
		if c != nil {
			if err := r.ChangeMembers(ctx, c); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the membership stays %+v", m)
		}
	}
}

// three forms a cluster of three voters around replica 1.
func three(t testing.TB, n *network, dir string) {
	t.Helper()
	first := n.open(1, dir, false)
	mustPropose(t, first, create("a"))
	n.open(2, dir, true)
	n.open(3, dir, true)
	until(t, first, change(raftpb.ConfChangeAddLearnerNode, 2, 3), func(m Membership) bool {
		return len(m.Learners) == 2 && len(m.Outgoing) == 0
	})
	until(t, first, nil, func(m Membership) bool {
		return m.Progress[2].Match > 2 && m.Progress[3].Match > 2 && m.Progress[2].Active
	})
	until(t, first, change(raftpb.ConfChangeAddNode, 2, 3), func(m Membership) bool {
		return len(m.Voters) == 3 && len(m.Outgoing) == 0
	})
}

// propose repeats a change with its key at whoever leads until it is made.
func (n *network) propose(except uint64, name, value string) {
	n.t.Helper()
	key := fmt.Sprintf("%s-%s-%d", name, value, rand.Uint64())
	for range 100 {
		cmd := label(name, value)
		cmd.Key = key
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		res, err := n.leader(except).Propose(ctx, cmd)
		cancel()
		if err == nil && res.Problem == nil {
			return
		}
	}
	n.t.Fatalf("change %s was never made", key)
}

func (n *network) sameState(ids ...uint64) {
	n.t.Helper()
	index := n.leader(0).View().Index()
	var hash [32]byte
	for i, id := range ids {
		r := n.replicas[id]
		if err := r.WaitApplied(testContext(n.t), index); err != nil {
			n.t.Fatal(err)
		}
		h, at := r.View().Hash(), r.View().Index()
		if at != index {
			n.t.Fatalf("replica %d is at %d, not %d", id, at, index)
		}
		if i > 0 && h != hash {
			n.t.Errorf("replica %d has another state at %d", id, index)
		}
		hash = h
	}
}

func TestThreeReplicas(t *testing.T) {
	n, dir := newNetwork(t), t.TempDir()
	three(t, n, dir)
	for i := range 50 {
		n.propose(0, "a", fmt.Sprint(i))
	}
	n.sameState(1, 2, 3)
	// Followers read what was acknowledged, and refuse changes.
	view, err := n.replicas[2].Read(testContext(t))
	if err != nil || view.VM("a").GetLabels()["l"] != "49" {
		t.Errorf("a follower read %v, %v", view.VM("a").GetLabels(), err)
	}
	if _, err := n.replicas[2].Propose(testContext(t), label("a", "x")); !problem.HasCode(err, "replica.not_leader") {
		t.Errorf("a follower took a change: %v", err)
	}
	if err := n.replicas[2].ChangeMembers(testContext(t), change(raftpb.ConfChangeRemoveNode, 3)); !problem.HasCode(err, "replica.not_leader") {
		t.Errorf("a follower changed the members: %v", err)
	}
}

func TestLeaderIsLost(t *testing.T) {
	n, dir := newNetwork(t), t.TempDir()
	three(t, n, dir)
	n.propose(0, "a", "before")
	n.setCut(1, true)
	n.propose(1, "a", "without 1")
	n.setCut(1, false)
	n.propose(0, "a", "with 1")
	n.sameState(1, 2, 3)
	if got := n.replicas[1].View().VM("a").GetLabels()["l"]; got != "with 1" {
		t.Errorf("label %q", got)
	}
}

func TestTransferAndRemove(t *testing.T) {
	n, dir := newNetwork(t), t.TempDir()
	three(t, n, dir)
	first := n.leader(0)
	to := uint64(2)
	if first.RaftID() == 2 {
		to = 3
	}
	if err := first.TransferLeader(testContext(t), to); err != nil {
		t.Fatal(err)
	}
	second := n.leader(first.RaftID())
	until(t, second, change(raftpb.ConfChangeRemoveNode, first.RaftID()), func(m Membership) bool {
		return len(m.Voters) == 2 && len(m.Outgoing) == 0
	})
	n.propose(first.RaftID(), "a", "two are left")
	if err := first.TransferLeader(testContext(t), to); !problem.HasCode(err, "replica.not_leader") && !problem.HasCode(err, "replica.no_leader") {
		t.Errorf("%v", err)
	}
}

// TestLateReplicaTakesASnapshot: what it missed is no longer in the log.
func TestLateReplicaTakesASnapshot(t *testing.T) {
	n, dir := newNetwork(t), t.TempDir()
	three(t, n, dir)
	first := n.leader(0)
	late := uint64(3)
	if first.RaftID() == 3 {
		late = 2
	}
	var replaced atomic.Int64
	end := n.replicas[late].Observe(func(changes []state.Change) {
		if changes == nil {
			replaced.Add(1)
		}
	})
	defer end()
	n.setCut(late, true)
	for i := range trailingEntries + 200 {
		mustPropose(t, first, label("a", fmt.Sprint(i)))
	}
	if err := first.Compact(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := first.Status().SnapshotIndex; got < trailingEntries {
		t.Fatalf("the snapshot is of index %d", got)
	}
	n.setCut(late, false)
	n.propose(0, "a", "after")
	n.sameState(1, 2, 3)
	if n.replicas[late].Status().SnapshotIndex < trailingEntries {
		t.Error("it came by without a snapshot")
	}
	if replaced.Load() != 1 {
		t.Errorf("an observer heard %d times that all is another", replaced.Load())
	}
	// And it holds after a restart.
	hash := n.replicas[late].View().VM("a").GetLabels()["l"]
	if err := n.replicas[late].Close(); err != nil {
		t.Fatal(err)
	}
	n.drop(late)
	n.open(late, dir, false)
	n.sameState(1, 2, 3)
	if got := n.replicas[late].View().VM("a").GetLabels()["l"]; got != hash || got != "after" {
		t.Errorf("label %q, before %q", got, hash)
	}
}

// TestAllRestart: members that the log knows are there again, whoever opens first.
func TestAllRestart(t *testing.T) {
	n, dir := newNetwork(t), t.TempDir()
	three(t, n, dir)
	n.propose(0, "a", "kept")
	for id := uint64(1); id <= 3; id++ {
		if err := n.replicas[id].Close(); err != nil {
			t.Fatal(err)
		}
		n.drop(id)
	}
	for id := uint64(1); id <= 3; id++ {
		n.open(id, dir, false)
	}
	n.propose(0, "a", "after")
	n.sameState(1, 2, 3)
}

func TestForeignSnapshots(t *testing.T) {
	n, dir := newNetwork(t), t.TempDir()
	r := n.open(1, dir, false)
	mustPropose(t, r, create("a"))
	index, term := uint64(50), uint64(1)
	m := &raftpb.Message{Type: raftpb.MsgSnap.Enum(), Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: &index, Term: &term, ConfState: &raftpb.ConfState{Voters: []uint64{1}},
	}}}
	if err := r.ReceiveSnapshot(testContext(t), &raftpb.Message{Type: raftpb.MsgApp.Enum()}, nil); !problem.HasCode(err, "snapshot.message") {
		t.Errorf("%v", err)
	}
	for name, body := range map[string]string{"nothing": "", "garbage": "garbage"} {
		if err := r.ReceiveSnapshot(testContext(t), m, stringReader(body)); !problem.HasCode(err, "snapshot.damaged") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A whole state of another index than announced.
	body, err := r.OpenSnapshot(r.Status().SnapshotIndex)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = body.Close() }()
	if err := r.ReceiveSnapshot(testContext(t), m, body); !problem.HasCode(err, "snapshot.damaged") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.ReceiveSnapshot(ctx, m, stringReader("x")); err == nil {
		t.Error("a cancelled transfer succeeded")
	}
	mustPropose(t, r, label("a", "still well"))
}

func stringReader(s string) *strings.Reader { return strings.NewReader(s) }

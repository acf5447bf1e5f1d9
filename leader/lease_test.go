package leader

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// rounds is a quorum of one that counts its rounds, over a state.
type rounds struct {
	state *state.State

	mu    sync.Mutex
	index uint64
	// rounds, and looks at the state behind one.
	n, waits int
	err      error
	// behind is closed once the state has applied what it has to.
	behind chan struct{}
}

func newRounds() *rounds { return &rounds{state: state.New(state.DefaultLimits())} }

func (r *rounds) LeadTerm() uint64 { return 1 }

func (r *rounds) View() *state.View { return r.state.View() }

func (r *rounds) Read(ctx context.Context) (*state.View, error) {
	index, err := r.ReadIndex(ctx)
	if err != nil {
		return nil, err
	}
	return r.View(), r.WaitApplied(ctx, index)
}

func (r *rounds) ReadIndex(context.Context) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	return r.index, r.err
}

func (r *rounds) WaitApplied(ctx context.Context, _ uint64) error {
	r.mu.Lock()
	r.waits++
	behind := r.behind
	r.mu.Unlock()
	if behind == nil {
		return nil
	}
	select {
	case <-behind:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *rounds) ProposeInTerm(_ context.Context, _ uint64, cmd *blixardv1.Command) (state.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	return r.state.Apply([]state.Entry{{Index: r.index, Command: cmd}})[0], nil
}

func (r *rounds) register(t *testing.T, incarnation uint64) {
	t.Helper()
	res, err := r.ProposeInTerm(t.Context(), 1, &blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: "node-a", Name: "a", Incarnation: incarnation,
	}}})
	if err != nil || res.Problem != nil {
		t.Fatal(err, res.Problem)
	}
}

func TestLeaseNeedsAQuorumRound(t *testing.T) {
	r := newRounds()
	l := NewLeases(r, 10*time.Second, time.Second)
	for _, tc := range []struct {
		asked, want time.Duration
	}{{0, 10 * time.Second}, {2 * time.Second, 2 * time.Second}, {5 * time.Minute, 5 * time.Minute}} {
		before := r.n
		got, err := l.Grant(t.Context(), "node-a", 1, tc.asked, "")
		if err != nil || got != tc.want || r.n != before+1 {
			t.Errorf("Grant(%v) = %v, %v after %d rounds", tc.asked, got, err, r.n-before)
		}
	}
	for _, bad := range []time.Duration{time.Second, time.Hour, -1} {
		if _, err := l.Grant(t.Context(), "node-a", 1, bad, ""); !problem.HasCode(err, "lease.ttl") {
			t.Errorf("Grant(%v): %v", bad, err)
		}
	}
	r.err = errors.New("no quorum")
	if _, err := l.Grant(t.Context(), "node-a", 1, 0, ""); !errors.Is(err, r.err) {
		t.Errorf("without a quorum: %v", err)
	}
}

// A renewal takes its quorum round and does not wait for what the state has to apply,
// however much that is. What needs a look at the state waits: the first lease that this
// leader grants in its term, one that is longer than the cluster's, one of another start.
func TestRenewalDoesNotWaitForTheState(t *testing.T) {
	r := newRounds()
	r.register(t, 1)
	l := NewLeases(r, 10*time.Second, time.Second)
	l.begin(1, time.Now())
	late, cancel := context.WithCancel(t.Context())
	cancel()
	grant := func(incarnation uint64, ttl time.Duration, waits bool) {
		t.Helper()
		n, w, ctx := r.n, r.waits, t.Context()
		if waits {
			ctx = late
		}
		_, err := l.Grant(ctx, "node-a", incarnation, ttl, "")
		if waits != (err != nil) || r.n != n+1 || waits != (r.waits > w) {
			t.Errorf("start %d, %v: %v after %d rounds and %d looks at the state", incarnation, ttl, err, r.n-n, r.waits-w)
		}
	}
	r.behind = make(chan struct{})
	grant(1, 0, true)
	r.behind = nil
	if _, err := l.Grant(t.Context(), "node-a", 1, 0, ""); err != nil {
		t.Fatal(err)
	}
	r.behind = make(chan struct{})
	grant(1, 0, false)
	grant(1, 2*time.Second, false)
	grant(1, time.Minute, true)
	grant(2, 0, true)
	r.err = errors.New("no quorum")
	if _, err := l.Grant(t.Context(), "node-a", 1, 0, ""); !errors.Is(err, r.err) {
		t.Errorf("a renewal without a quorum: %v", err)
	}
}

// What was said of a node ends its renewals: the next one looks at the state again.
func TestRenewalEnds(t *testing.T) {
	begin := time.Now()
	at := func(d time.Duration) time.Time { return begin.Add(d) }
	ready := &blixardv1.Node{Id: "node-a", Incarnation: 3, State: blixardv1.NodeState_ready}
	for _, tc := range []struct {
		name    string
		between func(*testing.T, *Table)
		ask     Request
		at      time.Duration
		want    bool
	}{
		{"a plain renewal", nil, Request{}, 9 * time.Second, true},
		{"its lease is over by the leader's clock, and may not be by the node's", nil, Request{}, 10500 * time.Millisecond, true},
		{"it is over for certain", nil, Request{}, 12 * time.Second, false},
		{"a longer one", nil, Request{TTL: time.Minute}, time.Second, false},
		{"another start", nil, Request{Incarnation: 4}, time.Second, false},
		{"another term", nil, Request{Term: 2}, time.Second, false},
		{"a new leader", func(_ *testing.T, t *Table) { t.Begin(2, at(time.Second)) }, Request{}, 2 * time.Second, false},
		{"said to be down", func(t *testing.T, table *Table) {
			if due := table.Due([]*blixardv1.Node{ready}, at(12*time.Second)); len(due) != 1 {
				t.Fatal(due)
			}
		}, Request{}, 9 * time.Second, false},
		{"said to be suspect", func(t *testing.T, table *Table) {
			if due := table.Due([]*blixardv1.Node{ready}, at(10*time.Second)); len(due) != 1 {
				t.Fatal(due)
			}
		}, Request{}, 10500 * time.Millisecond, true},
		{"removed", func(_ *testing.T, t *Table) {
			t.Due([]*blixardv1.Node{{Id: "node-a", Incarnation: 3, State: blixardv1.NodeState_left}}, at(time.Second))
		}, Request{}, 2 * time.Second, false},
		{"started anew", func(_ *testing.T, t *Table) {
			t.Due([]*blixardv1.Node{{Id: "node-a", Incarnation: 4, State: blixardv1.NodeState_ready}}, at(time.Second))
		}, Request{}, 2 * time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := &Table{TTL: 10 * time.Second, Margin: time.Second}
			table.Begin(1, begin)
			r, err := table.Ask(1, "node-a", 3, 0)
			if err != nil {
				t.Fatal(err)
			}
			if table.Renew(r, 1, begin) {
				t.Fatal("the first lease of a term is no renewal")
			}
			if cmd, err := table.Confirm(&r, 1, ready, begin); cmd != nil || err != nil {
				t.Fatal(cmd, err)
			}
			if tc.between != nil {
				tc.between(t, table)
			}
			asked := Request{NodeID: "node-a", Incarnation: 3, TTL: 10 * time.Second, Term: 1}
			if tc.ask.TTL != 0 {
				asked.TTL = tc.ask.TTL
			}
			if tc.ask.Incarnation != 0 {
				asked.Incarnation = tc.ask.Incarnation
			}
			if tc.ask.Term != 0 {
				asked.Term = tc.ask.Term
			}
			before := table.of("node-a").held()
			if got := table.Renew(asked, 1, at(tc.at)); got != tc.want {
				t.Errorf("Renew = %t", got)
			}
			if after := table.of("node-a").held(); (after != before) != tc.want {
				t.Errorf("the lease went from %+v to %+v", before, after)
			}
		})
	}
}

// held is what of a lease a renewal changes.
func (g *grant) held() [3]time.Time { return [3]time.Time{g.ends, g.certain, g.long} }

// While the change that says a node is ready again is under way no other request of the
// node is renewed by a round alone, and one whose change came before the node was said to
// be down once more does not make it so.
func TestRenewalWaitsForReady(t *testing.T) {
	table := &Table{TTL: 10 * time.Second, Margin: time.Second}
	begin := time.Now()
	table.Begin(1, begin)
	n := &blixardv1.Node{Id: "node-a", Incarnation: 3, State: blixardv1.NodeState_down}
	confirm := func(at time.Duration) Request {
		t.Helper()
		r, err := table.Ask(1, "node-a", 3, 0)
		if err != nil {
			t.Fatal(err)
		}
		if table.Renew(r, 1, begin.Add(at)) {
			t.Fatal("renewed while it is down")
		}
		cmd, err := table.Confirm(&r, 1, n, begin.Add(at))
		if err != nil || cmd.GetSetNodeState().GetState() != blixardv1.NodeState_ready {
			t.Fatalf("%v, %v", cmd, err)
		}
		return r
	}
	first := confirm(time.Second)
	n.State = blixardv1.NodeState_ready // the change is applied, but its answer comes late
	if due := table.Due([]*blixardv1.Node{n}, begin.Add(20*time.Second)); due[0].GetSetNodeState().GetState() != blixardv1.NodeState_down {
		t.Fatal(due)
	}
	n.State = blixardv1.NodeState_down
	table.Due([]*blixardv1.Node{n}, begin.Add(21*time.Second))
	second := confirm(22 * time.Second)
	table.Done(first)
	if table.Renew(second, 1, begin.Add(23*time.Second)) {
		t.Fatal("renewed while it is down for the second time")
	}
	table.Done(second)
	if !table.Renew(second, 1, begin.Add(23*time.Second)) {
		t.Fatal("not renewed after it was ready again")
	}
}

// A node counts as suspect after its lease and as down only after the longest time
// that its own clock may take; a new leader first waits a whole period.
func TestNodesGoDown(t *testing.T) {
	table := &Table{TTL: 10 * time.Second, Margin: time.Second}
	begin := time.Now()
	table.Begin(1, begin)
	n := &blixardv1.Node{Id: "node-a", Incarnation: 3, State: blixardv1.NodeState_ready}
	state := func(after time.Duration) blixardv1.NodeState_Enum {
		for _, c := range table.Due([]*blixardv1.Node{n}, begin.Add(after)) {
			if s := c.GetSetNodeState(); s.GetNodeId() == "node-a" && s.GetIncarnation() == 3 {
				return s.GetState()
			}
		}
		return blixardv1.NodeState_unspecified
	}
	if got := state(9 * time.Second); got != blixardv1.NodeState_unspecified {
		t.Fatalf("a new leader said %v after 9 s", got)
	}
	table.granted("node-a", 3, 10*time.Second, begin.Add(5*time.Second))
	if got := state(14 * time.Second); got != blixardv1.NodeState_unspecified {
		t.Fatalf("with a lease it is %v", got)
	}
	if got := state(15500 * time.Millisecond); got == blixardv1.NodeState_down {
		t.Fatalf("at the end of its lease it is %v", got)
	}
	if got := state(16300 * time.Millisecond); got != blixardv1.NodeState_down {
		t.Fatalf("after lease, drift and margin it is %v", got)
	}
}

// A long lease lasts on when the agent's next start renews for a short time: its
// fence is not moved back. Once it is over everywhere, the state forgets it.
func TestLongLeaseOutlivesARestart(t *testing.T) {
	table := &Table{TTL: 10 * time.Second, Margin: time.Second}
	begin := time.Now()
	table.Begin(1, begin)
	n := &blixardv1.Node{Id: "node-a", Incarnation: 3, State: blixardv1.NodeState_ready}
	r, err := table.Ask(1, "node-a", 3, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := table.Confirm(&r, 1, n, begin)
	if err != nil || cmd.GetSetNodeState().GetLongLease().AsDuration() != time.Minute {
		t.Fatalf("%v, %v", cmd, err)
	}
	n.LongLease, n.Incarnation = cmd.GetSetNodeState().GetLongLease(), 4
	if r, err = table.Ask(1, "node-a", 4, 0); err != nil {
		t.Fatal(err)
	}
	if cmd, err = table.Confirm(&r, 1, n, begin.Add(time.Second)); err != nil || cmd != nil {
		t.Fatalf("%v, %v", cmd, err)
	}
	for _, c := range table.Due([]*blixardv1.Node{n}, begin.Add(62*time.Second)) {
		if got := c.GetSetNodeState().GetState(); got == blixardv1.NodeState_down {
			t.Fatal("it is down while the long lease may last")
		}
	}
	n.State = blixardv1.NodeState_down
	due := table.Due([]*blixardv1.Node{n}, begin.Add(63*time.Second))
	if len(due) != 1 || due[0].GetSetNodeState().GetLongLease() == nil || due[0].GetSetNodeState().GetLongLease().AsDuration() != 0 {
		t.Fatalf("after the long lease: %v", due)
	}
}

// Who is said to be down gets a lease only after the log says that it is ready
// again, even while the state does not show yet that it is down. A request that was
// begun in another term is refused.
func TestLeaseWaitsForReady(t *testing.T) {
	table := &Table{TTL: 10 * time.Second, Margin: time.Second}
	begin := time.Now()
	table.Begin(1, begin)
	n := &blixardv1.Node{Id: "node-a", Incarnation: 3, State: blixardv1.NodeState_suspect}
	due := table.Due([]*blixardv1.Node{n}, begin.Add(time.Minute))
	if len(due) != 1 || due[0].GetSetNodeState().GetState() != blixardv1.NodeState_down {
		t.Fatalf("%v", due)
	}
	for range 2 {
		r, err := table.Ask(1, "node-a", 3, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := table.Confirm(&r, 2, n, begin.Add(time.Minute)); err == nil {
			t.Fatal("a round of another term was taken")
		}
		cmd, err := table.Confirm(&r, 1, n, begin.Add(time.Minute))
		if err != nil || cmd.GetSetNodeState().GetState() != blixardv1.NodeState_ready {
			t.Fatalf("%v, %v", cmd, err)
		}
		if n.State == blixardv1.NodeState_down {
			table.Done(r)
			n.State = blixardv1.NodeState_ready
		} else {
			n.State = blixardv1.NodeState_down
		}
	}
	r, err := table.Ask(1, "node-a", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	if cmd, err := table.Confirm(&r, 1, n, begin.Add(time.Minute)); err != nil || cmd != nil {
		t.Fatalf("once it is ready: %v, %v", cmd, err)
	}
}

package leader

import (
	"cmp"
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/state"
)

// Bounds of a lease.
const (
	// MinTTL leaves time for three renewals on a slow disk.
	MinTTL = 2 * time.Second
	// MaxTTL of the one long lease before a planned restart.
	MaxTTL = 5 * time.Minute
)

// driftPercent is how far a clock may be off in its rate.
const driftPercent = 1

// longest is what a clock that is too fast shows at most while one that is too slow
// shows d.
func longest(d time.Duration) time.Duration { return d * (100 + driftPercent) / (100 - driftPercent) }

// Table knows until when each node's lease lasts, as far as this leader can know.
// It is plain: time goes in, commands come out. It is not safe for concurrent use.
//
// A lease is granted in steps: Ask, then a quorum round that begins after it. Renew may
// say that this is enough. Else Confirm follows, with the node of a view that holds what
// the round led to, then, when that gave one, a command that must be applied, and Done.
// Only after that the node is told.
type Table struct {
	// TTL is the cluster's lease and Margin what is waited beyond its end.
	TTL, Margin time.Duration
	// Steady is how long a load must last to count.
	Steady time.Duration
	// term that this table is of, and when it began: a lease that an earlier leader
	// granted was granted before.
	term   uint64
	began  time.Time
	grants map[string]*grant
	// asked counts the requests, over all terms: one may have been asked before Begin.
	asked uint64
	// condemned nodes were said to be down at that time, and the state may not show
	// it yet.
	condemned map[string]time.Time
	// nodes that were looked at last, and their grants: mostly they are the same next time,
	// and looking ten thousand up takes longer than looking at them.
	nodes []*blixardv1.Node
	found []*grant
}

// grant is what this leader granted to a node.
type grant struct {
	// ends is the end of the newest lease, certain when all are over on any clock,
	// and long when those are that are longer than the cluster's.
	ends, certain, long time.Time
	incarnation         uint64
	// renewable until it is certainly over, since nothing said since then that the node
	// is down, has left or started anew. It becomes so when request number pending is Done.
	renewable bool
	pending   uint64
	// load that the node told.
	load load
}

// none is the grant of a node without one. It is never written.
var none = &grant{}

// of gives the grant of a node, to be written.
func (t *Table) of(nodeID string) *grant {
	g := t.grants[nodeID]
	if g == nil {
		g = &grant{}
		t.grants[nodeID] = g
	}
	return g
}

// each gives all nodes with their grants to f, none for those without one.
func (t *Table) each(nodes []*blixardv1.Node, f func(*blixardv1.Node, *grant)) {
	if len(nodes) != len(t.nodes) || len(nodes) > 0 && &nodes[0] != &t.nodes[0] {
		t.nodes, t.found = nodes, make([]*grant, len(nodes))
	}
	for i, n := range nodes {
		g := t.found[i]
		if g == nil {
			g = t.grants[n.GetId()]
			t.found[i] = g
		}
		f(n, cmp.Or(g, none))
	}
}

// Begin forgets everything: a new leader knows of no grant, and waits for every
// node as if it had granted each a lease just now. The same term does not begin twice.
func (t *Table) Begin(term uint64, now time.Time) {
	if term != 0 && t.term == term {
		return
	}
	t.term, t.began = term, now
	t.grants, t.condemned, t.nodes, t.found = map[string]*grant{}, map[string]time.Time{}, nil, nil
	if planted.Is(planted.NewLeaderDoesNotWait) {
		t.began = now.Add(-time.Hour)
	}
}

// Request of a node for a lease, on its way to the grant.
type Request struct {
	NodeID      string
	Incarnation uint64
	TTL         time.Duration
	// Term in which this replica led when it was asked.
	Term uint64
	// number among all requests.
	number uint64
	// condemned is when the node was said to be down.
	condemned time.Time
}

var errTTL = problem.New(problem.Invalid, "lease.ttl", "a lease lasts from %v to %v", MinTTL, MaxTTL)

// Ask begins a request. asked 0 means the cluster's ttl; term is that in which this
// replica leads, 0 when it does not.
func (t *Table) Ask(term uint64, nodeID string, incarnation uint64, asked time.Duration) (Request, error) {
	r := Request{NodeID: nodeID, Incarnation: incarnation, TTL: t.TTL, Term: term}
	if asked != 0 {
		r.TTL = asked
	}
	if r.TTL < MinTTL || r.TTL > MaxTTL {
		return r, errTTL.WithHint("ask for a time within these bounds")
	}
	if term == 0 {
		return r, errNotLeader
	}
	t.asked++
	r.number = t.asked
	return r, nil
}

var errNotLeader = problem.New(problem.NotLeader, "replica.not_leader", "another replica leads, and knows which leases there are")

// Renew notes the lease of a request whose quorum round is over, and reports whether the
// node may be told of it. It may without a look at the state when a lease that this leader
// granted in this term to the same start of the agent is not yet over for certain: then
// neither this leader nor, as the view showed at that grant, one before it has said that
// the node is down. So a node is not lost because the state has much to apply. Where Renew
// reports false nothing is changed, and Confirm follows.
func (t *Table) Renew(r Request, term uint64, now time.Time) bool {
	if r.Term != t.term || r.Term != term && !planted.Is(planted.LeaseOfDeposed) {
		return false
	}
	g := cmp.Or(t.grants[r.NodeID], none)
	if r.Incarnation == 0 || g.incarnation != r.Incarnation || r.TTL > t.TTL {
		return false
	}
	if !(g.renewable && now.Before(g.certain)) && !planted.Is(planted.RenewedWhileDown) {
		return false
	}
	t.granted(r.NodeID, r.Incarnation, r.TTL, now)
	return true
}

// Confirm notes the lease of a request whose quorum round is over; n is of a view that was
// taken after that, and not before the last call of Due. term is that in
// which this replica leads now. The lease is noted from now on, since the node counts
// from before it asked, even if it is told later. When Confirm gives a command, that
// must be applied in the request's term first: a later leader must wait as long, and
// what says that the node is down must not come after its lease.
func (t *Table) Confirm(r *Request, term uint64, n *blixardv1.Node, now time.Time) (*blixardv1.Command, error) {
	if r.Term != term && !planted.Is(planted.LeaseOfDeposed) {
		// A round that the next leader answered says nothing of this one's table.
		return nil, errNotLeader
	}
	if n != nil && r.Incarnation != 0 && n.GetIncarnation() != r.Incarnation || n.GetState() == blixardv1.NodeState_left {
		return nil, problem.New(problem.Fenced, "lease.incarnation", "start %d of node %q is not the one the cluster knows", r.Incarnation, r.NodeID).
			WithHint("was its data directory copied, or the node removed?")
	}
	t.granted(r.NodeID, n.GetIncarnation(), r.TTL, now)
	if n == nil {
		return nil, nil
	}
	g := t.of(r.NodeID)
	g.renewable, g.pending = false, r.number
	set := &blixardv1.SetNodeStateCommand{NodeId: r.NodeID, Incarnation: n.GetIncarnation(), State: n.GetState()}
	var condemned bool
	if r.condemned, condemned = t.condemned[r.NodeID]; condemned || n.GetState() == blixardv1.NodeState_down {
		set.State, set.Reason = blixardv1.NodeState_ready, reasonRenewed
	}
	if r.TTL > max(t.TTL, n.GetLongLease().AsDuration()) {
		set.LongLease = durationpb.New(r.TTL)
	}
	if !condemned && set.State == n.GetState() && set.LongLease == nil || planted.Is(planted.LeaseWhileDown) && set.LongLease == nil {
		g.renewable, g.pending = true, 0
		return nil, nil
	}
	return &blixardv1.Command{Change: &blixardv1.Command_SetNodeState{SetNodeState: set}}, nil
}

// reasonRenewed of a node that is ready again.
const reasonRenewed = "it renewed its lease"

// Done tells that the command of Confirm was applied.
func (t *Table) Done(r Request) {
	if at, ok := t.condemned[r.NodeID]; ok && at.Equal(r.condemned) {
		delete(t.condemned, r.NodeID)
	}
	// Who was said to be down since Confirm has none pending, or that of a later request.
	if g := t.of(r.NodeID); t.term == r.Term && g.pending == r.number {
		g.renewable, g.pending = true, 0
	}
}

// lapse notes that what was granted can't be renewed without a look at the state.
func (g *grant) lapse() {
	if g != none {
		g.renewable, g.pending = false, 0
	}
}

// granted notes a lease that begins at the latest now.
func (t *Table) granted(nodeID string, incarnation uint64, ttl time.Duration, now time.Time) {
	g := t.of(nodeID)
	end := now.Add(longest(ttl) + t.Margin)
	if planted.Is(planted.LongLeaseForgotten) && incarnation != g.incarnation {
		*g = grant{load: g.load}
	}
	g.incarnation, g.ends = incarnation, now.Add(ttl)
	// A longer one of an earlier start of the node's agent lasts on: its fence is not
	// moved back.
	if g.certain.Before(end) {
		g.certain = end
	}
	if ttl > t.TTL && g.long.Before(end) {
		g.long = end
	}
}

// End gives when the newest lease of n ends, and when every one that it may hold is
// certainly over: the node counts from before the grant, and its clock may be slow.
func (t *Table) End(n *blixardv1.Node) (lease, certain time.Time) {
	return t.end(n, cmp.Or(t.grants[n.GetId()], none))
}

// end is End of a node whose grant was looked up.
func (t *Table) end(n *blixardv1.Node, g *grant) (lease, certain time.Time) {
	lease = g.ends
	if lease.IsZero() {
		lease = t.began.Add(t.TTL)
	}
	// What earlier leaders granted.
	certain = t.began.Add(longest(max(t.TTL, n.GetLongLease().AsDuration())) + t.Margin)
	if certain.Before(g.certain) {
		certain = g.certain
	}
	if planted.Is(planted.DownAtOnce) {
		certain = lease
	}
	return lease, certain
}

// Due gives the commands for nodes whose state is another than their lease tells.
func (t *Table) Due(nodes []*blixardv1.Node, now time.Time) []*blixardv1.Command {
	var out []*blixardv1.Command
	t.each(nodes, func(n *blixardv1.Node, g *grant) {
		if set := t.due(n, g, now); set != nil {
			set.NodeId, set.Incarnation = n.GetId(), n.GetIncarnation()
			out = append(out, &blixardv1.Command{Change: &blixardv1.Command_SetNodeState{SetNodeState: set}})
		}
	})
	return out
}

// due is Due of one node. Nearly always it gives nothing, and then it allocates nothing.
func (t *Table) due(n *blixardv1.Node, g *grant, now time.Time) *blixardv1.SetNodeStateCommand {
	lease, certain := t.end(n, g)
	if n.GetState() == blixardv1.NodeState_left || g.incarnation != n.GetIncarnation() {
		g.lapse()
	}
	next, reason := n.GetState(), ""
	switch {
	case n.GetState() == blixardv1.NodeState_left:
	case !now.Before(certain):
		next, reason = blixardv1.NodeState_down, "its lease ended and nothing was heard of it"
	case !now.Before(lease):
		if n.GetState() == blixardv1.NodeState_ready {
			next, reason = blixardv1.NodeState_suspect, "its lease was not renewed"
		}
	case !g.ends.IsZero() && g.incarnation == n.GetIncarnation():
		next, reason = blixardv1.NodeState_ready, reasonRenewed
	}
	if next != n.GetState() {
		if next == blixardv1.NodeState_down {
			t.condemned[n.GetId()] = now
			g.lapse()
		}
		return &blixardv1.SetNodeStateCommand{State: next, Reason: reason}
	}
	if next == blixardv1.NodeState_down {
		delete(t.condemned, n.GetId()) // the state says so itself now
	}
	// A long lease that is over in every case is taken out, so that the next leader
	// waits no longer than it must.
	long := n.GetLongLease().AsDuration()
	if long > 0 && n.GetState() != blixardv1.NodeState_left && !now.Before(g.long) && !now.Before(t.began.Add(longest(long)+t.Margin)) {
		return &blixardv1.SetNodeStateCommand{State: next, LongLease: durationpb.New(0)}
	}
	return nil
}

// Quorum gives quorum rounds, and takes what a later leader must know.
// *[replica.Replica] says what each method promises.
type Quorum interface {
	LeadTerm() uint64
	Read(ctx context.Context) (*state.View, error)
	ReadIndex(ctx context.Context) (uint64, error)
	WaitApplied(ctx context.Context, index uint64) error
	View() *state.View
	ProposeInTerm(ctx context.Context, term uint64, cmd *blixardv1.Command) (state.Result, error)
}

// Leases grants the leases of nodes. It is safe for concurrent use.
type Leases struct {
	quorum Quorum

	mu    sync.Mutex
	table Table
}

// NewLeases makes the leases of a cluster with that ttl and margin.
func NewLeases(q Quorum, ttl, margin time.Duration) *Leases {
	l := &Leases{quorum: q, table: Table{TTL: ttl, Margin: margin, Steady: loadSteady}}
	l.table.Begin(0, time.Now())
	return l
}

// Grant gives a node its lease after a quorum round that began after the call, so
// that no deposed leader can extend one. asked 0 means the cluster's ttl. A
// problem of kind Invalid says that asked is out of bounds, one of kind Fenced
// that the cluster does not know this start of the node's agent, or gave up the
// allocation that is about to start (empty: none), and one of kind NotLeader that
// another replica must be asked.
func (l *Leases) Grant(ctx context.Context, nodeID string, incarnation uint64, asked time.Duration, allocationID string) (time.Duration, error) {
	ttl, err := l.grant(ctx, nodeID, incarnation, asked)
	if err != nil || allocationID == "" {
		return ttl, err
	}
	// A view of after the grant: from then on nothing of this node is given up before
	// the lease is over.
	view, err := l.quorum.Read(ctx)
	if err != nil {
		return 0, err
	}
	return ttl, MayStart(view.Allocation(allocationID), nodeID)
}

func (l *Leases) grant(ctx context.Context, nodeID string, incarnation uint64, asked time.Duration) (time.Duration, error) {
	l.mu.Lock()
	r, err := l.table.Ask(l.quorum.LeadTerm(), nodeID, incarnation, asked)
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	index, err := l.quorum.ReadIndex(ctx)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	renewed := l.table.Renew(r, l.quorum.LeadTerm(), time.Now())
	l.mu.Unlock()
	if renewed {
		return r.TTL, nil
	}
	if err := l.quorum.WaitApplied(ctx, index); err != nil {
		return 0, err
	}
	l.mu.Lock()
	// The view is taken within the lock: Due may forget that it said a node is down as
	// soon as a view shows it.
	cmd, err := l.table.Confirm(&r, l.quorum.LeadTerm(), l.quorum.View().Node(nodeID), time.Now())
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if cmd == nil {
		return r.TTL, nil
	}
	cmd.Actor, cmd.Time = "node:"+nodeID, timestamppb.New(wallclock.Now())
	if res, err := l.quorum.ProposeInTerm(ctx, r.Term, cmd); err != nil || res.Problem != nil {
		return 0, orProblem(err, res.Problem)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.Done(r)
	return r.TTL, nil
}

func orProblem(err error, p *problem.Error) error {
	if err != nil {
		return err
	}
	return p
}

// begin is for a new leader.
func (l *Leases) begin(term uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.Begin(term, now)
}

func (l *Leases) due(nodes []*blixardv1.Node, now time.Time) []*blixardv1.Command {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Due(nodes, now)
}

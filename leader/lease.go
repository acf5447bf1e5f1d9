package leader

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// Bounds of a lease.
const (
	// MinTTL leaves time for three renewals on a slow disk.
	MinTTL = 2 * time.Second
	// MaxTTL of the one long lease before a planned restart.
	MaxTTL = 5 * time.Minute
)

// driftPercent: two clocks part by at most that.
const driftPercent = 1

// Table knows until when each node's lease lasts, as far as this leader can know.
// It is plain: time goes in, commands come out. It is not safe for concurrent use.
type Table struct {
	// TTL is the cluster's lease and Margin what is waited beyond its end.
	TTL, Margin time.Duration
	// began is when this leader's term did: a lease that an earlier leader granted
	// was granted before.
	began  time.Time
	grants map[string]grant
}

type grant struct {
	at          time.Time
	ttl         time.Duration
	incarnation uint64
}

// Begin forgets everything: a new leader knows of no grant, and waits for every
// node as if it had granted each a lease just now.
func (t *Table) Begin(now time.Time) {
	t.began, t.grants = now, map[string]grant{}
}

// Granted notes a lease that begins at the latest now.
func (t *Table) Granted(nodeID string, incarnation uint64, ttl time.Duration, now time.Time) {
	if g := t.grants[nodeID]; g.at.Add(g.ttl).After(now.Add(ttl)) && g.incarnation == incarnation {
		return // a longer one lasts on
	}
	t.grants[nodeID] = grant{now, ttl, incarnation}
}

// End gives when the lease that n may hold is certainly over: the node counts from
// before the grant, and its clock may be slow.
func (t *Table) End(n *blixardv1.Node) (lease, certain time.Time) {
	g, ok := t.grants[n.GetId()]
	if !ok {
		g = grant{at: t.began, ttl: max(t.TTL, n.GetLongLease().AsDuration())}
	}
	return g.at.Add(g.ttl), g.at.Add(g.ttl + g.ttl*driftPercent/100 + t.Margin)
}

// Due gives the commands for nodes whose state is another than their lease tells.
func (t *Table) Due(nodes []*blixardv1.Node, now time.Time) []*blixardv1.Command {
	var out []*blixardv1.Command
	for _, n := range nodes {
		lease, certain := t.End(n)
		g, granted := t.grants[n.GetId()]
		want, reason := n.GetState(), ""
		switch {
		case n.GetState() == blixardv1.NodeState_left:
		case !now.Before(certain):
			want, reason = blixardv1.NodeState_down, "its lease ended and nothing was heard of it"
		case !now.Before(lease):
			if want == blixardv1.NodeState_ready {
				want, reason = blixardv1.NodeState_suspect, "its lease was not renewed"
			}
		case granted && g.incarnation == n.GetIncarnation():
			want, reason = blixardv1.NodeState_ready, "it renewed its lease"
		}
		if want != n.GetState() {
			out = append(out, &blixardv1.Command{Change: &blixardv1.Command_SetNodeState{SetNodeState: &blixardv1.SetNodeStateCommand{
				NodeId: n.GetId(), Incarnation: n.GetIncarnation(), State: want, Reason: reason,
			}}})
		}
	}
	return out
}

// Quorum gives quorum rounds, and takes what a later leader must know.
type Quorum interface {
	ReadIndex(ctx context.Context) (uint64, error)
	View() *state.View
	Propose(ctx context.Context, cmd *blixardv1.Command) (state.Result, error)
}

// Leases grants the leases of nodes. It is safe for concurrent use.
type Leases struct {
	quorum Quorum
	ttl    time.Duration

	mu    sync.Mutex
	table Table
}

// NewLeases makes the leases of a cluster with that ttl and margin.
func NewLeases(q Quorum, ttl, margin time.Duration) *Leases {
	l := &Leases{quorum: q, ttl: ttl, table: Table{TTL: ttl, Margin: margin}}
	l.table.Begin(time.Now())
	return l
}

var errTTL = problem.New(problem.Invalid, "lease.ttl", "a lease lasts from %v to %v", MinTTL, MaxTTL)

// Grant gives a node its lease after a quorum round that began after the call, so
// that no deposed leader can extend one. asked 0 means the cluster's ttl. A
// problem of kind Invalid says that asked is out of bounds, and one of kind Fenced
// that the cluster does not know this start of the node's agent.
func (l *Leases) Grant(ctx context.Context, nodeID string, incarnation uint64, asked time.Duration) (time.Duration, error) {
	ttl := l.ttl
	if asked != 0 {
		ttl = asked
	}
	if ttl < MinTTL || ttl > MaxTTL {
		return 0, errTTL.WithHint("ask for a time within these bounds")
	}
	if _, err := l.quorum.ReadIndex(ctx); err != nil {
		return 0, err
	}
	n := l.quorum.View().Node(nodeID)
	if n != nil && incarnation != 0 && n.GetIncarnation() != incarnation || n.GetState() == blixardv1.NodeState_left {
		return 0, problem.New(problem.Fenced, "lease.incarnation", "start %d of node %q is not the one the cluster knows", incarnation, nodeID).
			WithHint("was its data directory copied, or the node removed?")
	}
	if n != nil && ttl > l.ttl {
		// A later leader must wait as long, so it is in the log before it is granted.
		cmd := &blixardv1.Command{Actor: "node:" + nodeID, Change: &blixardv1.Command_SetNodeState{SetNodeState: &blixardv1.SetNodeStateCommand{
			NodeId: nodeID, Incarnation: n.GetIncarnation(), State: n.GetState(), LongLease: durationpb.New(ttl),
		}}}
		if res, err := l.quorum.Propose(ctx, cmd); err != nil || res.Problem != nil {
			return 0, orProblem(err, res.Problem)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.Granted(nodeID, n.GetIncarnation(), ttl, time.Now())
	return ttl, nil
}

func orProblem(err error, p *problem.Error) error {
	if err != nil {
		return err
	}
	return p
}

// begin is for a new leader.
func (l *Leases) begin(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.Begin(now)
}

func (l *Leases) due(nodes []*blixardv1.Node, now time.Time) []*blixardv1.Command {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Due(nodes, now)
}

package leader

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// Limits of the run loop.
const (
	// proposeTimeout of one command: the disk may be full or slow, and then the
	// same decision is made again.
	proposeTimeout = 30 * time.Second
	// leadPause between looks whether this node leads, and after a failure.
	leadPause = 50 * time.Millisecond
	// roundInterval of looks at leases and members.
	roundInterval = 250 * time.Millisecond
)

// Config of the leader's part. All fields are needed.
type Config struct {
	// Name of the node, for the actor of events.
	Name    string
	Replica *replica.Replica
	// Leases that this node grants while it leads.
	Leases *Leases
	// StormPercent as in [NewCore].
	StormPercent int
	// Strategy of VMs that name none.
	Strategy blixardv1.Strategy_Enum
	// Preemption as in [Core].
	Preemption bool
	// Load says whether the load of nodes is looked at.
	Load bool
	// Voters the cluster wants, 3 or 5, and how long one may be silent before a
	// stand-by takes its place.
	Voters       int
	ReplaceAfter time.Duration
	Logger       *slog.Logger
}

// Run decides and proposes while this node leads, until ctx ends, which is no
// error.
func Run(ctx context.Context, cfg Config) error {
	r := &runner{cfg: cfg, core: NewCore(NewAllocationID, cfg.StormPercent, cfg.Strategy), members: Members{Voters: cfg.Voters, ReplaceAfter: cfg.ReplaceAfter}}
	r.core.Preemption = cfg.Preemption
	for ctx.Err() == nil {
		if term := cfg.Replica.LeadTerm(); term != 0 {
			if err := r.lead(ctx, term); err != nil && ctx.Err() == nil {
				cfg.Logger.Warn("the leader's loop begins anew", "err", err)
			}
		}
		select {
		case <-cfg.Replica.Done():
			return cfg.Replica.Err()
		default:
		}
		select {
		case <-time.After(leadPause):
		case <-ctx.Done():
		}
	}
	return nil
}

// NewAllocationID makes an id: 80 bits of randomness never meet twice.
func NewAllocationID() string { return "alloc-" + strings.ToLower(rand.Text()[:16]) }

type runner struct {
	cfg     Config
	core    *Core
	members Members
	// term in which this node leads: what is decided in it is proposed in it alone,
	// since another leader may have granted leases in between.
	term uint64
	sub  *replica.Subscription
}

// lead follows the state from a fresh view until something fails or the term ends.
func (r *runner) lead(ctx context.Context, term uint64) error {
	r.term = term
	r.cfg.Leases.begin(term, time.Now())
	view, err := r.cfg.Replica.Read(ctx)
	if err != nil {
		return err
	}
	r.members.Begin()
	r.list(view)
	defer func() { r.sub.Close() }()
	next := time.Now()
	for r.cfg.Replica.LeadTerm() == term {
		cmds := r.core.Decide(r.cfg.Replica.View())
		if err := r.proposeAll(ctx, cmds); err != nil {
			return err
		}
		if now := time.Now(); !now.Before(next) {
			next = now.Add(roundInterval)
			if err := r.round(ctx, now); err != nil {
				return err
			}
		}
		until := next
		if len(cmds) > 0 {
			until = time.Now() // there may be more to decide
		}
		if err := r.follow(ctx, until); err != nil {
			return err
		}
	}
	return nil
}

// list begins anew from a view.
func (r *runner) list(view *state.View) {
	r.core.Reset(view)
	r.sub = r.cfg.Replica.Subscribe(view.Index())
}

// follow tells the core what changed, and waits for it until then. One who decided for
// longer than the state keeps changes looks at everything again.
func (r *runner) follow(ctx context.Context, until time.Time) error {
	wait, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	changes, _, err := r.sub.Next(wait)
	switch {
	case err == nil:
		for _, c := range changes {
			r.core.Changed(c)
		}
		return nil
	case problem.HasCode(err, "watch.compacted"):
		r.sub.Close()
		r.list(r.cfg.Replica.View())
		return nil
	case ctx.Err() == nil && wait.Err() != nil:
		return nil
	default:
		return err
	}
}

// round looks at what moves with time: leases and members.
func (r *runner) round(ctx context.Context, now time.Time) error {
	view := r.cfg.Replica.View()
	cmds := append(r.cfg.Leases.due(view.Nodes(), now), r.core.Reschedule(view, now)...)
	cmds = append(cmds, Dampen(view, wallclock.Now())...)
	cmds = append(cmds, r.cfg.Leases.busy(view, r.cfg.Load)...)
	cmds = append(cmds, r.core.TasksDue(view, wallclock.Now())...)
	cmds = append(cmds, r.core.Drains(view, now)...)
	cmds = append(cmds, PruneEvents(view, wallclock.Now())...)
	cmds = append(cmds, r.core.SchedulesDue(view, wallclock.Now())...)
	cmds = append(cmds, r.core.GroupsDue(view, now, wallclock.Now())...)
	if view.Cluster() == nil {
		return r.proposeAll(ctx, cmds)
	}
	m, err := r.cfg.Replica.Membership(ctx)
	if err != nil {
		return err
	}
	members := view.Members()
	cmds = append(cmds, r.members.Roles(m, members, Domains(view), now)...)
	if err := r.proposeAll(ctx, cmds); err != nil {
		return err
	}
	change, transferTo := r.members.Change(m, members)
	if transferTo != 0 {
		r.cfg.Logger.Info("the lead goes to another, since this node shall have no vote", "to", transferTo)
		return r.cfg.Replica.TransferLeader(ctx, transferTo)
	}
	if change == nil {
		return nil
	}
	r.cfg.Logger.Info("the replicas change", "change", changeText(change))
	return r.cfg.Replica.ChangeMembers(ctx, change)
}

// Domains gives, for [Members.Roles], the failure domain of a node by its id: the
// one it was told, else itself.
func Domains(view View) func(nodeID string) string {
	of := map[string]string{}
	for _, n := range view.Nodes() {
		of[n.GetId()] = n.GetFingerprint().GetFailureDomain()
	}
	return func(nodeID string) string {
		if d := of[nodeID]; d != "" {
			return "domain " + d
		}
		return "node " + nodeID
	}
}

// changeText says in words what a change does.
func changeText(change *raftpb.ConfChangeV2) string {
	var words []string
	for _, c := range change.GetChanges() {
		words = append(words, fmt.Sprintf("%s %d", c.GetType(), c.GetNodeId()))
	}
	return strings.Join(words, ", ")
}

func (r *runner) proposeAll(ctx context.Context, cmds []*blixardv1.Command) error {
	for _, cmd := range cmds {
		if err := r.propose(ctx, cmd); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) propose(ctx context.Context, cmd *blixardv1.Command) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	cmd.Actor = "leader:" + r.cfg.Name
	cmd.Time = timestamppb.New(wallclock.Now())
	res, err := r.cfg.Replica.ProposeInTerm(ctx, r.term, cmd)
	if err != nil {
		return err
	}
	r.refused(cmd, res)
	return nil
}

// refused tells the core and the log what the state did not take.
func (r *runner) refused(cmd *blixardv1.Command, res state.Result) {
	for _, f := range res.Refused {
		r.cfg.Logger.Debug("a part of a plan was refused", "vm", f.VMID, "task", f.TaskID, "schedule", f.ScheduleID, "code", f.Problem.Code)
	}
	r.core.Refused(res.Refused)
	if res.Problem != nil && cmd.GetPlace() == nil {
		r.cfg.Logger.Debug("a command was refused", "code", res.Problem.Code, "err", res.Problem)
	}
}

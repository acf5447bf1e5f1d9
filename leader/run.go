package leader

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// Limits of the run loop.
const (
	// proposeTimeout of one command: the disk may be full or slow, and then the
	// same decision is made again.
	proposeTimeout = 30 * time.Second
	// retryPause after a failed proposal.
	retryPause = 500 * time.Millisecond
)

// Config of the leader's part. All fields are needed.
type Config struct {
	// Name of the node, for the actor of events.
	Name    string
	Replica *replica.Replica
	Logger  *slog.Logger
}

// Run decides and proposes until ctx ends, which is no error.
func Run(ctx context.Context, cfg Config) error {
	r := &runner{cfg: cfg, core: NewCore(NewAllocationID)}
	for ctx.Err() == nil {
		err := r.term(ctx)
		if ctx.Err() != nil {
			break
		}
		select {
		case <-cfg.Replica.Done():
			return cfg.Replica.Err()
		default:
		}
		cfg.Logger.Warn("the leader's loop begins anew", "err", err)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
	return nil //nolint:nilerr // the end of ctx is how the loop is told to stop
}

// NewAllocationID makes an id: 80 bits of randomness never meet twice.
func NewAllocationID() string { return "alloc-" + strings.ToLower(rand.Text()[:16]) }

type runner struct {
	cfg  Config
	core *Core
}

// term follows the state from a fresh view until something fails.
func (r *runner) term(ctx context.Context) error {
	view, err := r.cfg.Replica.Read(ctx)
	if err != nil {
		return err
	}
	r.core.Reset(view)
	sub := r.cfg.Replica.Subscribe(view.Index())
	defer sub.Close()
	for {
		if err := r.drain(ctx); err != nil {
			return err
		}
		changes, _, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes {
			r.core.Changed(c)
		}
	}
}

// drain proposes until there is nothing to decide.
func (r *runner) drain(ctx context.Context) error {
	for {
		cmds := r.core.Decide(r.cfg.Replica.View())
		if len(cmds) == 0 {
			return nil
		}
		for _, cmd := range cmds {
			if err := r.propose(ctx, cmd); err != nil {
				return err
			}
		}
	}
}

func (r *runner) propose(ctx context.Context, cmd *blixardv1.Command) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	cmd.Actor = "leader:" + r.cfg.Name
	cmd.Time = timestamppb.Now()
	res, err := r.cfg.Replica.Propose(ctx, cmd)
	if err != nil {
		return err
	}
	r.refused(cmd, res)
	return nil
}

// refused opens again what the state did not take because it had moved; what
// moved is told as a change as well, so nothing is lost when a refusal is final.
func (r *runner) refused(cmd *blixardv1.Command, res state.Result) {
	for _, f := range res.Refused {
		r.cfg.Logger.Debug("a placement was refused", "vm", f.VMID, "code", f.Problem.Code)
		if f.Problem.Kind == problem.Conflict || f.Problem.Kind == problem.NoCapacity {
			r.core.Refused(f.VMID)
		}
	}
	if res.Problem != nil && cmd.GetPlace() == nil {
		r.cfg.Logger.Debug("a command was refused", "code", res.Problem.Code, "err", res.Problem)
	}
}

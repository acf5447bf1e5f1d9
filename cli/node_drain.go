package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) nodeDrainCommand() *cobra.Command {
	var dryRun bool
	var o drainOptions
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Move the VMs of a node to the others", Args: exactly("NODE"), ValidArgsFunction: a.completeNodes,
		Long: `Show where each VM of a node goes, then stop them there and start them elsewhere, and wait until that is done. A few go at a
time, those of the lowest priority first, and each only while another node can have it. No more VMs are placed on the node until
"blixard node uncordon". VMs with volumes and those of "--on-node-loss keep" stay, and run on.

With --deadline, VMs that no other node can have by then are stopped, and wait for a place. Without it, a drain that would leave
VMs without a place is refused and changes nothing, as one that VMs with volumes hold up. The drain goes on when this command is
ended; "blixard node list" and "node status" tell of it.`,
		Example: `  blixard node drain n1 --dry-run
  blixard node drain n1
  blixard node drain n1 --deadline 10m --ignore-volumes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd.Flags().Changed("deadline")); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				plan, err := c.Nodes().PlanDrain(ctx, &blixardv1.PlanDrainRequest{Node: args[0]})
				if err != nil {
					return err
				}
				if dryRun {
					return a.print(plan, func() error { return a.plannedTable(plan.GetSteps()) })
				}
				if err := drainable(plan, o); err != nil {
					return err
				}
				return a.drain(ctx, c, plan, o)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing, and show where each VM would go, in the order in which they leave")
	cmd.Flags().BoolVar(&o.ignoreVolumes, "ignore-volumes", false, "go on although VMs with volumes stay")
	cmd.Flags().BoolVar(&o.force, "force", false, "stop all VMs at once; those that find no other place wait until there is one")
	cmd.Flags().Var(&o.deadline, "deadline", "stop VMs that are left after this time although they find no other place, such as 10m (1s to 30d)")
	return cmd
}

// drainOptions say how a node is drained.
type drainOptions struct {
	ignoreVolumes, force bool
	// deadline is 0 without one.
	deadline durationFlag
}

// Bounds of a deadline, and between looks at how far a drain is.
const (
	drainDeadlineMin = time.Second
	drainDeadlineMax = 30 * 24 * time.Hour
	drainPoll        = 300 * time.Millisecond
	// justRemoved is the reason of a VM for which no place was looked for yet.
	justRemoved = "allocation-removed"
)

func (o *drainOptions) check(given bool) error {
	if !given {
		return nil
	}
	if d := time.Duration(o.deadline); d < drainDeadlineMin || d > drainDeadlineMax {
		return usageError("--deadline is from 1s to 30d").WithHint("write --deadline 10m; --force stops the VMs at once")
	}
	if o.force {
		return usageError("--force waits for nothing, so it has no deadline").WithHint("leave --force or --deadline out")
	}
	return nil
}

// drainable refuses what would do harm.
func drainable(plan *blixardv1.PlanDrainResponse, o drainOptions) error {
	var held, homeless []string
	for _, s := range plan.GetSteps() {
		switch {
		case s.GetStays() && len(s.GetVm().GetSpec().GetVolumes()) > 0:
			held = append(held, s.GetVm().GetName())
		case !s.GetStays() && s.GetReason() != "":
			homeless = append(homeless, s.GetVm().GetName()+" ("+s.GetMessage()+")")
		}
	}
	node := plan.GetNode().GetName()
	if len(held) > 0 && !o.ignoreVolumes {
		return problem.New(problem.Conflict, "drain.volumes", "VMs with volumes stay on node %q: %s", node, strings.Join(held, ", ")).
			WithHint("move them first: blixard vm move %s; or add --ignore-volumes", held[0])
	}
	if len(homeless) > 0 && !o.force && o.deadline == 0 {
		return problem.New(problem.NoCapacity, "drain.no_place", "VMs of node %q find no other place: %s", node, strings.Join(homeless, ", ")).
			WithHint("make room or add a node; with --deadline 10m they run on until then, and with --force they are stopped now, and wait until there is a place")
	}
	return nil
}

func (a *app) drain(ctx context.Context, c *client.Client, plan *blixardv1.PlanDrainResponse, o drainOptions) error {
	node := plan.GetNode()
	if a.output == "" {
		if err := a.plannedTable(plan.GetSteps()); err != nil {
			return err
		}
	}
	req := &blixardv1.DrainNodeRequest{Node: node.GetId(), Drain: true, Gradual: !o.force, IdempotencyKey: client.NewKey()}
	if o.deadline > 0 {
		req.Deadline = durationpb.New(time.Duration(o.deadline))
	}
	if _, err := c.Cluster().DrainNode(ctx, req); err != nil {
		return err
	}
	waiting, cancel := a.waitingBeyond(ctx, time.Duration(o.deadline))
	defer cancel()
	p := a.progress("node " + node.GetName() + " is being emptied")
	defer p.stop()
	last, err := awaitDrain(waiting, c, node, p)
	if err != nil {
		return err
	}
	going := slices.DeleteFunc(slices.Clone(plan.GetSteps()), func(s *blixardv1.PlannedVM) bool { return s.GetStays() })
	expired := last.GetDrain().GetExpired()
	wait := 0
	for i, s := range going {
		p.set("node %s is empty: %d of %d VMs do not run elsewhere yet", node.GetName(), len(going)-i, len(going))
		vm, err := c.WaitVM(waiting, s.GetVm().GetId(), func(vm *blixardv1.VM, deleted bool) (bool, error) {
			at := vm.GetStatus()
			homeless := s.GetTo() == "" || expired && at.GetNode() == "" && at.GetReason() != justRemoved
			return deleted || at.GetNode() != node.GetName() && (at.GetState() == blixardv1.AllocationState_running || homeless || ended(vm)), nil
		})
		if err != nil && !problem.Is(err, problem.NotFound) {
			return late(err, vm, "elsewhere")
		}
		if err == nil && vm.GetStatus().GetNode() == "" && vm.GetSpec().GetDesired() == blixardv1.DesiredState_run {
			wait++
		}
	}
	p.stop()
	facts := fields{{"node", node.GetName()}, {"moved", fmt.Sprint(len(going) - wait)}, {"waiting", fmt.Sprint(wait)}, {"expired", fmt.Sprint(expired)}}
	return a.print(facts, func() error {
		rest := ""
		if wait > 0 {
			rest += fmt.Sprintf(", %d stopped and waiting for a place", wait)
		}
		if n := len(plan.GetSteps()) - len(going); n > 0 {
			rest += fmt.Sprintf(", %d stay", n)
		}
		if expired {
			rest += "; the deadline came before all had left"
		}
		_, err := fmt.Fprintf(a.stdout, "%s is drained: %d VMs moved%s; `blixard node uncordon %s` lets it have VMs again\n",
			clean(node.GetName()), len(going)-wait, rest, clean(node.GetName()))
		return err
	})
}

// awaitDrain waits until a drain in steps is done, and tells of it meanwhile. One that takes
// all off at once, or that somebody ended, is not waited for.
func awaitDrain(ctx context.Context, c *client.Client, node *blixardv1.Node, p *progress) (*blixardv1.Node, error) {
	var d *blixardv1.NodeDrain
	for {
		resp, err := c.Nodes().ListNodes(ctx, &blixardv1.ListNodesRequest{})
		if err != nil && (d == nil || ctx.Err() == nil) {
			return nil, err
		}
		at := slices.IndexFunc(resp.GetNodes(), func(n *blixardv1.Node) bool { return n.GetId() == node.GetId() })
		if err == nil {
			if at < 0 {
				return nil, problem.New(problem.NotFound, "node.not_found", "node %q is gone", node.GetName())
			}
			next := resp.GetNodes()[at]
			if !next.GetDraining() {
				return nil, problem.New(problem.Conflict, "drain.ended", "somebody ended the drain of node %q", node.GetName()).
					WithHint("see `blixard events %s`", node.GetName())
			}
			if d = next.GetDrain(); d == nil || d.GetState() == blixardv1.DrainState_done {
				return next, nil
			}
			p.set("node %s is being emptied: %s", node.GetName(), drainText(d))
		}
		select {
		case <-time.After(drainPoll):
		case <-ctx.Done():
			return nil, problem.New(problem.Unavailable, "deadline", "node %q is not drained yet: %s", node.GetName(), drainText(d)).
				WithHint("the drain goes on by itself: see `blixard node list`, wait longer with --timeout, or end it by `blixard node uncordon %s`", node.GetName())
		}
	}
}

// drainText says how far a drain in steps is.
func drainText(d *blixardv1.NodeDrain) string {
	text := d.GetState().String() + ": " + d.GetMessage()
	switch {
	case d.GetExpired():
		text += "; the deadline is over"
	case d.GetDeadline() != nil && d.GetState() != blixardv1.DrainState_done:
		text += fmt.Sprintf("; about %s of %s left", units.HumanDuration(d.GetLeft().AsDuration()), units.HumanDuration(d.GetDeadline().AsDuration()))
	}
	return text
}

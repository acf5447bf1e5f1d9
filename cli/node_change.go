package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/problem"
)

// completeNodes completes the names of nodes for the first argument.
func (a *app) completeNodes(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.ask(func(ctx context.Context, c *client.Client) (names []cobra.Completion) {
		resp, _ := c.Nodes().ListNodes(ctx, &blixardv1.ListNodesRequest{Stale: true})
		for _, n := range resp.GetNodes() {
			if strings.HasPrefix(n.GetName(), prefix) {
				names = append(names, cobra.CompletionWithDesc(n.GetName(), n.GetState().String()))
			}
		}
		return names
	})
}

// updateNode makes a change of a node and says it in words.
func (a *app) updateNode(ctx context.Context, req *blixardv1.UpdateNodeRequest, words string) error {
	req.IdempotencyKey = client.NewKey()
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		resp, err := c.Nodes().UpdateNode(ctx, req)
		if err != nil {
			return err
		}
		return a.print(resp.GetNode(), func() error {
			_, err := fmt.Fprintf(a.stdout, "%s %s\n", clean(resp.GetNode().GetName()), words)
			return err
		})
	})
}

func (a *app) nodeLabelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "label NODE KEY=VALUE... [KEY-...]", Short: "Set and remove labels of a node, by which VMs choose it", Args: atLeastOne("NODE"),
		ValidArgsFunction: a.completeNodes,
		Long: `Set labels, and remove those written with a dash behind the key; others stay. VMs that have their place keep it. Labels
of the node's own configuration (node.labels) can be given another value, and stay there.`,
		Example: "  blixard node label n1 disk=ssd zone=a\n  blixard node label n1 zone-",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return usageError("the labels are missing").WithHint("write `blixard node label %s KEY=VALUE`", args[0])
			}
			set, drop, err := parseLabelEdits(args[1:])
			if err != nil {
				return err
			}
			return a.updateNode(cmd.Context(), &blixardv1.UpdateNodeRequest{Node: args[0], SetLabels: set, DropLabels: drop}, "labeled")
		},
	}
}

func (a *app) nodeTaintCommand() *cobra.Command {
	return &cobra.Command{
		Use: "taint NODE KEY[=VALUE]:EFFECT... [KEY-...]", Short: "Keep VMs off a node that do not tolerate it", Args: atLeastOne("NODE"),
		ValidArgsFunction: a.completeNodes,
		Long: `Set taints of a node, and remove those written with a dash behind the key; others stay. A node has one taint of each key. VMs that
do not tolerate a taint (--tolerate) are not placed on the node. With the effect no-schedule those that it has stay; with evict they go, as in
a drain: VMs with volumes and those of "--on-node-loss keep" stay.`,
		Example: "  blixard node taint n1 gpu=yes:no-schedule\n  blixard node taint n1 broken:evict\n  blixard node taint n1 gpu-",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return usageError("the taints are missing").WithHint("write `blixard node taint %s KEY=VALUE:no-schedule`", args[0])
			}
			req := &blixardv1.UpdateNodeRequest{Node: args[0]}
			for _, text := range args[1:] {
				if key, dash := strings.CutSuffix(text, "-"); dash && !strings.ContainsAny(text, "=:") {
					req.DropTaints = append(req.DropTaints, key)
					continue
				}
				t, err := constraint.ParseTaint(text)
				if err != nil {
					return err
				}
				req.SetTaints = append(req.SetTaints, t)
			}
			return a.updateNode(cmd.Context(), req, "has new taints")
		},
	}
}

// nodeCordonCommand makes "cordon" and "uncordon".
func (a *app) nodeCordonCommand(cordon bool) *cobra.Command {
	use, short, words := "uncordon", "Let VMs be placed on a node again, also after a drain", "takes VMs again"
	if cordon {
		use, short, words = "cordon", "Place no more VMs on a node; those that it has stay", "takes no more VMs"
	}
	return &cobra.Command{
		Use: use + " NODE", Short: short, Args: exactly("NODE"), ValidArgsFunction: a.completeNodes, Example: "  blixard node " + use + " n1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cordon {
				if err := a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					_, err := c.Cluster().DrainNode(ctx, &blixardv1.DrainNodeRequest{Node: args[0], IdempotencyKey: client.NewKey()})
					return err
				}); err != nil {
					return err
				}
			}
			return a.updateNode(cmd.Context(), &blixardv1.UpdateNodeRequest{Node: args[0], Cordoned: proto.Bool(cordon)}, words)
		},
	}
}

func (a *app) nodeDrainCommand() *cobra.Command {
	var dryRun, ignoreVolumes, force bool
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Move the VMs of a node to the others", Args: exactly("NODE"), ValidArgsFunction: a.completeNodes,
		Long: `Show where each VM of a node goes, then stop them there and start them elsewhere, and wait until that is done. No more VMs
are placed on the node until "blixard node uncordon". VMs with volumes and those of "--on-node-loss keep" stay.

A drain that would leave VMs without a place, or that VMs with volumes hold up, is refused and changes nothing.`,
		Example: "  blixard node drain n1 --dry-run\n  blixard node drain n1\n  blixard node drain n1 --ignore-volumes",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				plan, err := c.Nodes().PlanDrain(ctx, &blixardv1.PlanDrainRequest{Node: args[0]})
				if err != nil {
					return err
				}
				if dryRun {
					return a.print(plan, func() error { return a.plannedTable(plan.GetSteps()) })
				}
				if err := drainable(plan, ignoreVolumes, force); err != nil {
					return err
				}
				return a.drain(ctx, c, plan)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing, and show where each VM would go")
	cmd.Flags().BoolVar(&ignoreVolumes, "ignore-volumes", false, "go on although VMs with volumes stay")
	cmd.Flags().BoolVar(&force, "force", false, "go on although VMs find no other place, and wait until there is one")
	return cmd
}

// plannedTable shows where VMs would go.
func (a *app) plannedTable(vms []*blixardv1.PlannedVM) error {
	t := &table{header: []string{"VM", "STATE", "GOES TO", "WHY"}, shrink: []int{3, 0}}
	for _, one := range vms {
		to, word := one.GetTo(), "new"
		switch {
		case one.GetStays():
			to = "stays"
		case to == "":
			to = "waits"
		}
		if one.GetVm().GetStatus() != nil {
			word = stateWord(one.GetVm())
		}
		t.add(one.GetVm().GetName(), word, to, one.GetMessage())
	}
	return a.writeTable(t)
}

// drainable refuses what would do harm.
func drainable(plan *blixardv1.PlanDrainResponse, ignoreVolumes, force bool) error {
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
	if len(held) > 0 && !ignoreVolumes {
		return problem.New(problem.Conflict, "drain.volumes", "VMs with volumes stay on node %q: %s", node, strings.Join(held, ", ")).
			WithHint("move them first: blixard vm move %s; or add --ignore-volumes", held[0])
	}
	if len(homeless) > 0 && !force {
		return problem.New(problem.NoCapacity, "drain.no_place", "VMs of node %q find no other place: %s", node, strings.Join(homeless, ", ")).
			WithHint("make room or add a node; with --force they wait until there is a place")
	}
	return nil
}

func (a *app) drain(ctx context.Context, c *client.Client, plan *blixardv1.PlanDrainResponse) error {
	node := plan.GetNode()
	if a.output == "" {
		if err := a.plannedTable(plan.GetSteps()); err != nil {
			return err
		}
	}
	if _, err := c.Cluster().DrainNode(ctx, &blixardv1.DrainNodeRequest{Node: node.GetId(), Drain: true, IdempotencyKey: client.NewKey()}); err != nil {
		return err
	}
	waiting, cancel := a.waiting(ctx)
	defer cancel()
	p := a.progress("node " + node.GetName() + " is being emptied")
	defer p.stop()
	going := slices.DeleteFunc(plan.GetSteps(), func(s *blixardv1.PlannedVM) bool { return s.GetStays() })
	for i, s := range going {
		p.set("node %s is being emptied: %d of %d VMs left", node.GetName(), len(going)-i, len(going))
		vm, err := c.WaitVM(waiting, s.GetVm().GetId(), func(vm *blixardv1.VM, deleted bool) (bool, error) {
			at := vm.GetStatus()
			return deleted || at.GetNode() != node.GetName() && (at.GetState() == blixardv1.AllocationState_running || s.GetTo() == "" || ended(vm)), nil
		})
		if err != nil && !problem.Is(err, problem.NotFound) {
			return late(err, vm, "elsewhere")
		}
	}
	return a.print(fields{{"node", node.GetName()}, {"moved", fmt.Sprint(len(going))}}, func() error {
		stay := ""
		if n := len(plan.GetSteps()) - len(going); n > 0 {
			stay = fmt.Sprintf(", %d stay", n)
		}
		_, err := fmt.Fprintf(a.stdout, "%s is drained: %d VMs moved%s; `blixard node uncordon %s` lets it have VMs again\n",
			clean(node.GetName()), len(going), stay, clean(node.GetName()))
		return err
	})
}

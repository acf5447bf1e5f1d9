package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/constraint"
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
		why := one.GetMessage()
		if p := one.GetPreempts(); p != nil {
			why = "once " + p.GetNode() + " is rid of what leaves it"
			if names := victims(p); len(names) > 0 {
				why = "once room is made by " + strings.Join(names, ", ")
			}
		}
		t.add(one.GetVm().GetName(), word, to, why)
	}
	return a.writeTable(t)
}

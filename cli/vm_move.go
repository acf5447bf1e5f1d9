package cli

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

func (a *app) vmMoveCommand() *cobra.Command {
	var to string
	var cancel, force bool
	var grace durationFlag
	cmd := &cobra.Command{
		Use: "move NAME [--to NODE]", Short: "Stop a VM, bring it with its volumes to another node, and start it there", Args: exactly("NAME"), ValidArgsFunction: a.completeVMs(1),
		Long: `Stop a VM, bring its volumes to another node, and start it there. Name, addresses and published ports stay; the root disk begins anew,
since only volumes move. A stopped VM moves as well, and starts there next.

Each volume is copied and checked before the cluster says that it is on the other node; until then the first node keeps it. What was
interrupted goes on when the command is run again, and --cancel ends it: the VM then starts where its volumes are.`,
		Example: "  blixard vm move web\n  blixard vm move web --to n2\n  blixard vm move web --cancel",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cancel && to != "" {
				return usageError("--cancel and --to do not go together").WithHint("leave one of both out")
			}
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				req := &blixardv1.MoveVMRequest{Name: a.full(args[0]), Node: to, Cancel: cancel, Force: force, IdempotencyKey: client.NewKey()}
				if grace > 0 {
					req.Timeout = durationpb.New(time.Duration(grace))
				}
				return a.move(ctx, c, req)
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "node to move to (default: the best other one)")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "end a move that has not come to its end")
	cmd.Flags().Var(&grace, "grace", "time for the guest to stop (default: 10s)")
	cmd.Flags().BoolVar(&force, "force", false, "stop the guest at once")
	_ = cmd.RegisterFlagCompletionFunc("to", func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeNodes(cmd, nil, prefix)
	})
	return cmd
}

func (a *app) move(ctx context.Context, c *client.Client, req *blixardv1.MoveVMRequest) error {
	resp, err := c.VMs().MoveVM(ctx, req)
	if err != nil {
		return err
	}
	vm, node := resp.GetVm(), resp.GetNode()
	if req.GetCancel() {
		return a.say(vm, "%s does not move", vm.GetName())
	}
	if vm.GetMoveTo() == "" {
		return a.say(vm, "%s is on %s already", vm.GetName(), node)
	}
	vm, err = a.waitFor(ctx, c, vm, "off its node", func(vm *blixardv1.VM) bool {
		return vm.GetStatus().GetAllocationId() == "" || vm.GetMoveTo() == ""
	})
	if err != nil {
		return err
	}
	for _, at := range vm.GetSpec().GetVolumes() {
		v, err := c.Volumes().GetVolume(ctx, &blixardv1.GetVolumeRequest{Name: at.GetVolume()})
		if err != nil {
			return err
		}
		if has := v.GetVolume().GetNode(); has == "" || has == node {
			continue
		}
		if _, err := a.moveVolume(ctx, c, at.GetVolume(), node); err != nil {
			return err
		}
	}
	if vm.GetSpec().GetDesired() != blixardv1.DesiredState_run {
		return a.say(vm, "%s starts on %s next", vm.GetName(), node)
	}
	vm, err = a.waitRunning(ctx, c, vm, 0)
	if err != nil {
		return err
	}
	return a.print(vm, func() error { return a.sayStarted(vm) })
}

// moveVolume brings a volume to a node and shows how far it is.
func (a *app) moveVolume(ctx context.Context, c *client.Client, name, node string) (*blixardv1.Volume, error) {
	stream, err := c.Volumes().MoveVolume(ctx, &blixardv1.MoveVolumeRequest{Name: name, Node: node})
	if err != nil {
		return nil, err
	}
	bar := a.bar(name)
	defer bar.stop()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, problem.New(problem.Unavailable, "volume.move_lost", "the end of the move was not seen").WithHint("run it again: it goes on where it was")
		}
		if err != nil {
			return nil, err
		}
		if m.GetVolume() != nil {
			return m.GetVolume(), nil
		}
		bar.set("copying", m.GetDoneBytes(), m.GetTotalBytes())
	}
}

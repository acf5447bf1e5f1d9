package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// editVM changes a VM's spec, again when another change was faster.
func (a *app) editVM(ctx context.Context, name string, edit func(*blixardv1.VMSpec) error, word string) error {
	return a.withVM(ctx, name, func(ctx context.Context, c *client.Client) error {
		vm, err := updateVM(ctx, c, name, edit)
		if err != nil {
			return err
		}
		return a.say(vm, "%s %s", vm.GetName(), word)
	})
}

func updateVM(ctx context.Context, c *client.Client, name string, edit func(*blixardv1.VMSpec) error) (*blixardv1.VM, error) {
	for try := 1; ; try++ {
		got, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: name})
		if err != nil {
			return nil, err
		}
		spec := proto.CloneOf(got.GetVm().GetSpec())
		if err := edit(spec); err != nil {
			return nil, err
		}
		resp, err := c.VMs().UpdateVM(ctx, &blixardv1.UpdateVMRequest{
			Name: got.GetVm().GetId(), ExpectedIndex: got.GetVm().GetModifyIndex(), Spec: spec, IdempotencyKey: client.NewKey(),
		})
		if problem.HasCode(err, "vm.index_mismatch") && try < labelTries {
			continue
		}
		return resp.GetVm(), err
	}
}

func (a *app) vmUpdateCommand() *cobra.Command {
	var spec specFlags
	cmd := &cobra.Command{
		Use: "update NAME [flags] [-- COMMAND [ARG]...]", Short: "Change what a VM is declared to be",
		Long: `Change what a VM is declared to be. Only what is named changes; a list, such as -p, replaces the former one, and -p none,
-v none and so on empty it. Ports, checks and policies change at once; the rest takes effect with the next start, and "vm
status" tells what waits for that. Volumes and networks change while the VM is stopped.`,
		Example: `  blixard vm update web --memory 1GiB && blixard vm restart web
  blixard vm update web -p 8080:80 -p 8443:443
  blixard vm update web --image nginx:1.28`,
		Args: atLeastOne("NAME"), ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command, err := commandLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			if cmd.Flags().Changed("name") || cmd.Flags().Changed("label") {
				return usageError("name and labels have commands of their own").WithHint("see `blixard vm rename --help` and `blixard vm label --help`")
			}
			spec.project = a.project
			if err := spec.zeros(); err != nil {
				return err
			}
			spec.emptyLists()
			name = a.full(name)
			return a.withVM(cmd.Context(), name, func(ctx context.Context, c *client.Client) error {
				vm, err := updateVM(ctx, c, name, func(s *blixardv1.VMSpec) error {
					if spec.image != "" {
						s.Image = spec.image
					}
					if len(command) > 0 {
						s.Command = command
					}
					return spec.apply(s, cmd.Flags().Changed)
				})
				if err != nil {
					return err
				}
				return a.print(vm, func() error { return a.sayUpdated(vm) })
			})
		},
	}
	spec.register(cmd)
	cmd.Flags().StringVar(&spec.image, "image", "", "image to run")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// emptyLists takes "none" for an empty list.
func (s *specFlags) emptyLists() {
	for _, l := range []*[]string{
		&s.publish, &s.volumes, &s.files, &s.secrets, &s.sshKeys, &s.env,
		&s.scheduling.constraints, &s.scheduling.prefer, &s.scheduling.near, &s.scheduling.apart, &s.scheduling.tolerate,
	} {
		if len(*l) == 1 && (*l)[0] == "none" {
			*l = nil
		}
	}
}

func (a *app) sayUpdated(vm *blixardv1.VM) error {
	extra := ""
	if vm.GetStatus().GetState() == blixardv1.AllocationState_running {
		extra = ": what can't change while it runs takes effect with the next start (`blixard vm restart " + vm.GetName() + "`)"
	}
	_, err := fmt.Fprintf(a.stdout, "%s updated%s\n", clean(vm.GetName()), clean(extra))
	return err
}

func (a *app) vmRenameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename NAME NEW", Short: "Give a VM another name", Args: exactly("NAME", "NEW"), ValidArgsFunction: a.completeVMs(1),
		Long:    "Give a VM another name. Other VMs find it by that at once; its own host name follows with the next start. It stays in its project.",
		Example: "  blixard vm rename web web-old",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.VMs().RenameVM(ctx, &blixardv1.RenameVMRequest{Name: a.full(args[0]), NewName: args[1], IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(resp.GetVm(), "%s is now %s", a.full(args[0]), resp.GetVm().GetName())
			})
		},
	}
}

// vmPauseCommand makes "pause" and "resume".
func (a *app) vmPauseCommand(pause bool) *cobra.Command {
	use, word, short := "resume", "resumed", "Let paused VMs go on"
	if pause {
		use, word, short = "pause", "paused", "Keep the processors of VMs still; memory and connections stay"
	}
	ch := &change{asked: "is told to " + use, done: word}
	ch.do = func(ctx context.Context, c *client.Client, name string) (*blixardv1.VM, error) {
		return updateVM(ctx, c, name, func(s *blixardv1.VMSpec) error {
			s.Paused = pause
			return nil
		})
	}
	ch.wait = func(ctx context.Context, c *client.Client, vm *blixardv1.VM) (*blixardv1.VM, error) {
		return a.waitFor(ctx, c, vm, word, func(vm *blixardv1.VM) bool {
			return vm.GetStatus().GetPaused() == pause || ended(vm)
		})
	}
	cmd := &cobra.Command{
		Use: use + " NAME...", Short: short, ValidArgsFunction: a.completeVMs(anyNumber), Example: "  blixard vm " + use + " web",
		RunE: func(cmd *cobra.Command, args []string) error { return a.change(cmd, args, ch) },
	}
	ch.register(cmd, false)
	return cmd
}

func (a *app) vmInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Short: "Show everything of a VM as YAML, or as JSON with -o json", Args: exactly("NAME"), ValidArgsFunction: a.completeVMs(1),
		Example: "  blixard vm inspect web\n  blixard vm inspect web -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				vm := resp.GetVm()
				vm.Project = projectOf(vm)
				return a.print(vm, func() error { return writeYAML(a.stdout, vm) })
			})
		},
	}
}

func (a *app) vmTopCommand() *cobra.Command {
	return &cobra.Command{
		Use: "top NAME", Short: "List the processes of a running VM, the busiest first", Args: exactly("NAME"), ValidArgsFunction: a.completeVMs(1),
		Example: "  blixard vm top web",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.VMs().Top(ctx, &blixardv1.TopRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					t := &table{header: []string{"PID", "USER", "CPU", "MEMORY", "COMMAND"}, shrink: []int{4}}
					for _, p := range resp.GetProcesses() {
						t.add(fmt.Sprint(p.GetPid()), p.GetUser(), units.HumanDuration(p.GetCpu().AsDuration()), units.Size(p.GetMemoryBytes()).Human(), p.GetCommand())
					}
					return a.writeTable(t)
				})
			})
		},
	}
}

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) vmCreateCommand() *cobra.Command {
	var spec specFlags
	var noWait, dryRun bool
	cmd := &cobra.Command{
		Use: "create [NAME] --image IMAGE [flags] [-- COMMAND [ARG]...]", Short: "Declare a VM and wait until it runs",
		Long: `Declare a VM and wait until its guest says that it is ready.

Without --image the first word is the image: "vm create busybox --name web". A command replaces the image's own.`,
		Example: `  blixard vm create web --image busybox -- httpd -f -h /
  blixard vm create web --image busybox --cpus 2 --memory 512MiB --disk 10GiB --restart always
  blixard vm create web --image busybox --label app=web --apart app=web --constraint disk=ssd --dry-run
  blixard vm create web --image busybox --project shop
  blixard vm create busybox --no-wait -o json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			word, command, err := commandLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			if err := spec.nameOrImage(word); err != nil {
				return err
			}
			spec.project = a.project
			req, err := spec.request(command)
			if err != nil {
				return err
			}
			req.IdempotencyKey = client.NewKey()
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if dryRun {
					return a.explain(ctx, c, &blixardv1.ExplainVMRequest{Spec: req.GetSpec(), Labels: req.GetLabels()})
				}
				return a.create(ctx, c, req, noWait)
			})
		},
	}
	spec.register(cmd)
	cmd.Flags().StringVar(&spec.image, "image", "", "image to run")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return as soon as the VM is declared")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "create nothing, and show where the VM would go and why")
	cmd.Flags().SetInterspersed(false)
	_ = cmd.RegisterFlagCompletionFunc("image", a.completeImages)
	return cmd
}

func orHelp(cmd *cobra.Command, err error) error {
	if err != nil {
		return err
	}
	return cmd.Help()
}

// nameOrImage gives the first word its meaning.
func (s *specFlags) nameOrImage(word string) error {
	switch {
	case s.image == "" && word == "":
		return usageError("the image is missing").WithHint("write `blixard vm create NAME --image busybox`")
	case s.image == "":
		s.image = word
	case word != "" && s.name != "" && s.name != word:
		return usageError("the VM has two names, %q and %q", word, s.name).WithHint("leave --name out")
	case word != "":
		s.name = word
	}
	return nil
}

func (a *app) create(ctx context.Context, c *client.Client, req *blixardv1.CreateVMRequest, noWait bool) error {
	resp, err := c.VMs().CreateVM(ctx, req)
	if err != nil {
		return err
	}
	vm := resp.GetVm()
	if noWait {
		return a.print(vm, func() error {
			_, err := fmt.Fprintf(a.stdout, "%s declared\n", clean(vm.GetName()))
			return err
		})
	}
	vm, err = a.waitRunning(ctx, c, vm, 0)
	if err != nil {
		return err
	}
	return a.print(vm, func() error { return a.sayStarted(vm) })
}

func (a *app) sayStarted(vm *blixardv1.VM) error {
	s := vm.GetStatus()
	if s.GetState() != blixardv1.AllocationState_running {
		code := ""
		if s.ExitCode != nil {
			code = fmt.Sprintf(", exit code %d", s.GetExitCode())
		}
		_, err := fmt.Fprintf(a.stdout, "%s has ended already%s\n", clean(vm.GetName()), code)
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "%s runs on %s, ready after %s (%s)\n", clean(vm.GetName()), clean(s.GetNode()),
		units.HumanDuration(msToDuration(s.GetReadyMs())), clean(s.GetAccelerator()))
	return err
}

// waitRunning waits until the VM runs, or did and ended. starts is the requested
// start that is waited for: an older run does not count.
func (a *app) waitRunning(ctx context.Context, c *client.Client, vm *blixardv1.VM, starts uint64) (*blixardv1.VM, error) {
	ctx, cancel := a.waiting(ctx)
	defer cancel()
	p := a.progress("vm " + vm.GetName() + " is " + stateWord(vm))
	defer p.stop()
	last, err := c.WaitVM(ctx, vm.GetId(), func(vm *blixardv1.VM, deleted bool) (bool, error) {
		s := vm.GetStatus()
		text := "vm " + vm.GetName() + " is " + stateWord(vm)
		if r := reason(vm); r != "" && s.GetState() != blixardv1.AllocationState_running {
			text += ": " + r
		}
		p.set("%s", text)
		switch {
		case s.GetStartCount() < starts && !deleted:
			return false, nil
		case s.GetState() == blixardv1.AllocationState_running:
			return true, nil
		case s.GetState() == blixardv1.AllocationState_failed && ended(vm) && s.ExitCode == nil:
			return true, didNotStart(vm)
		case ended(vm) || deleted:
			return true, nil
		}
		return false, nil
	})
	if last == nil {
		last = vm
	}
	return last, late(err, last, "running")
}

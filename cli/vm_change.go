package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

// changesAtATime bounds the calls of one command on many VMs.
const changesAtATime = 16

// labelTries bounds the repeats of an edit that another change overtook.
const labelTries = 10

// change is a command on some VMs, one after the other done and printed.
type change struct {
	noWait bool
	grace  durationFlag
	force  bool
	// do asks for the change; wait, when wanted, waits for its effect.
	do   func(ctx context.Context, c *client.Client, name string) (*blixardv1.VM, error)
	wait func(ctx context.Context, c *client.Client, vm *blixardv1.VM) (*blixardv1.VM, error)
	// asked and done are the words for the line printed.
	asked, done string
}

// timeout gives the bound of the guest's own shutdown, nil when not given.
func (ch *change) timeout() *durationpb.Duration {
	if ch.grace == 0 {
		return nil
	}
	return durationpb.New(time.Duration(ch.grace))
}

func (ch *change) register(cmd *cobra.Command, stops bool) {
	cmd.Args = atLeastOne("NAME")
	cmd.Flags().BoolVar(&ch.noWait, "no-wait", false, "return as soon as the change is accepted")
	if stops {
		cmd.Flags().Var(&ch.grace, "grace", "time for the guest's own shutdown and all further means (default: 10s)")
		cmd.Flags().BoolVarP(&ch.force, "force", "f", false, "do not ask the guest, end it at once")
	}
}

// result of a change of one VM.
type changed struct {
	vm  *blixardv1.VM
	err error
}

// run changes all VMs, some at a time, and prints in the order of the names.
func (a *app) change(cmd *cobra.Command, names []string, ch *change) error {
	if f := cmd.Flags().Lookup("grace"); f != nil && f.Changed && ch.grace <= 0 {
		return usageError("--grace %s leaves no time", f.Value).WithHint("--force ends a VM at once, without asking its guest")
	}
	return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
		names := a.fullNames(names)
		results := make([]chan changed, len(names))
		slots := make(chan struct{}, changesAtATime)
		var wg sync.WaitGroup
		defer wg.Wait()
		for i, name := range names {
			results[i] = make(chan changed, 1)
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				vm, err := a.changeOne(ctx, c, name, ch)
				results[i] <- changed{vm, err}
			})
		}
		var wrong []error
		for i := range names {
			r := <-results[i]
			if r.err != nil {
				wrong = append(wrong, r.err)
				continue
			}
			word := ch.done
			if ch.noWait || ch.wait == nil {
				word = ch.asked
			}
			if err := a.printChanged(r.vm, word); err != nil {
				return err
			}
		}
		return errors.Join(wrong...)
	})
}

func (a *app) changeOne(ctx context.Context, c *client.Client, name string, ch *change) (*blixardv1.VM, error) {
	vm, err := ch.do(ctx, c, name)
	if err != nil {
		return nil, a.nearestVM(ctx, c, name, err)
	}
	if ch.noWait || ch.wait == nil {
		return vm, nil
	}
	return ch.wait(ctx, c, vm)
}

func (a *app) printChanged(vm *blixardv1.VM, word string) error {
	return a.printLineOrObject(vm, func() error {
		extra := ""
		if s := vm.GetStatus(); s.GetStopRung() != "" && (word == "stopped" || word == "restarted") {
			extra = " (" + strings.ReplaceAll(s.GetStopRung(), "_", " ") + ")"
		}
		_, err := fmt.Fprintf(a.stdout, "%s %s%s\n", clean(vm.GetName()), word, clean(extra))
		return err
	})
}

// printLineOrObject prints the object itself as print does; several are several
// documents.
func (a *app) printLineOrObject(vm *blixardv1.VM, line func() error) error {
	if a.output == "yaml" {
		return a.printLine(vm, line)
	}
	return a.print(vm, line)
}

func (a *app) vmStartCommand() *cobra.Command {
	ch := &change{asked: "is told to start", done: "started"}
	var starts sync.Map // id -> the requested start to wait for
	ch.do = func(ctx context.Context, c *client.Client, name string) (*blixardv1.VM, error) {
		old, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: name})
		if err != nil {
			return nil, err
		}
		resp, err := c.VMs().StartVM(ctx, &blixardv1.StartVMRequest{Name: old.GetVm().GetId()})
		if err == nil && ended(old.GetVm()) {
			starts.Store(resp.GetVm().GetId(), old.GetVm().GetStatus().GetStartCount()+1)
		}
		return resp.GetVm(), err
	}
	ch.wait = a.waitStarted(&starts)
	cmd := &cobra.Command{
		Use: "start NAME...", Short: "Start stopped VMs and wait until they run", ValidArgsFunction: a.completeVMs(anyNumber),
		Example: "  blixard vm start web db",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.change(cmd, args, ch) },
	}
	ch.register(cmd, false)
	return cmd
}

// waitStarted waits until VMs run, each after the start that was noted for its id.
func (a *app) waitStarted(starts *sync.Map) func(context.Context, *client.Client, *blixardv1.VM) (*blixardv1.VM, error) {
	return func(ctx context.Context, c *client.Client, vm *blixardv1.VM) (*blixardv1.VM, error) {
		n, _ := starts.Load(vm.GetId())
		count, _ := n.(uint64)
		return a.waitRunning(ctx, c, vm, count)
	}
}

func (a *app) vmStopCommand() *cobra.Command {
	ch := &change{asked: "is told to stop", done: "stopped"}
	ch.do = func(ctx context.Context, c *client.Client, name string) (*blixardv1.VM, error) {
		resp, err := c.VMs().StopVM(ctx, &blixardv1.StopVMRequest{Name: name, Timeout: ch.timeout(), Force: ch.force})
		return resp.GetVm(), err
	}
	ch.wait = func(ctx context.Context, c *client.Client, vm *blixardv1.VM) (*blixardv1.VM, error) {
		return a.waitFor(ctx, c, vm, "stopped", func(vm *blixardv1.VM) bool { return ended(vm) || vm.GetStatus().GetAllocationId() == "" })
	}
	cmd := &cobra.Command{
		Use: "stop NAME...", Short: "Stop VMs and wait until they are stopped", ValidArgsFunction: a.completeVMs(anyNumber),
		Long: `Stop VMs and keep their disks. The guest is asked first, then its power button is pressed, then its hypervisor is
told and at last made to end, all within the grace time. What it took is printed.`,
		Example: "  blixard vm stop web\n  blixard vm stop web --grace 30s\n  blixard vm stop web --force",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.change(cmd, args, ch) },
	}
	ch.register(cmd, true)
	return cmd
}

func (a *app) waitFor(ctx context.Context, c *client.Client, vm *blixardv1.VM, what string, done func(*blixardv1.VM) bool) (*blixardv1.VM, error) {
	ctx, cancel := a.waiting(ctx)
	defer cancel()
	p := a.progress("vm " + vm.GetName() + " is " + stateWord(vm))
	defer p.stop()
	last, err := c.WaitVM(ctx, vm.GetId(), func(vm *blixardv1.VM, _ bool) (bool, error) {
		p.set("vm %s is %s", vm.GetName(), stateWord(vm))
		return done(vm), nil
	})
	return last, late(err, last, what)
}

func (a *app) vmRestartCommand() *cobra.Command {
	ch := &change{asked: "is told to restart", done: "restarted"}
	var starts sync.Map // id -> the requested start to wait for
	ch.do = func(ctx context.Context, c *client.Client, name string) (*blixardv1.VM, error) {
		old, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: name})
		if err != nil {
			return nil, err
		}
		starts.Store(old.GetVm().GetId(), max(1, old.GetVm().GetStatus().GetStartCount())+1)
		resp, err := c.VMs().RestartVM(ctx, &blixardv1.RestartVMRequest{Name: old.GetVm().GetId(), Timeout: ch.timeout(), Force: ch.force})
		return resp.GetVm(), err
	}
	ch.wait = a.waitStarted(&starts)
	cmd := &cobra.Command{
		Use: "restart NAME...", Short: "Stop VMs, start them afresh and wait until they run", ValidArgsFunction: a.completeVMs(anyNumber),
		Example: "  blixard vm restart web",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.change(cmd, args, ch) },
	}
	ch.register(cmd, true)
	return cmd
}

func (a *app) vmDeleteCommand() *cobra.Command {
	ch := &change{asked: "is told to go", done: "deleted"}
	ch.do = func(ctx context.Context, c *client.Client, name string) (*blixardv1.VM, error) {
		resp, err := c.VMs().DeleteVM(ctx, &blixardv1.DeleteVMRequest{Name: name, Timeout: ch.timeout(), Force: ch.force})
		return resp.GetVm(), err
	}
	ch.wait = a.waitGone
	cmd := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Stop VMs and delete them with their disks", ValidArgsFunction: a.completeVMs(anyNumber),
		Example: "  blixard vm delete web\n  blixard vm delete $(blixard vm list -q)",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.change(cmd, args, ch) },
	}
	ch.register(cmd, true)
	return cmd
}

// waitGone waits until nothing is left of a VM.
func (a *app) waitGone(ctx context.Context, c *client.Client, vm *blixardv1.VM) (*blixardv1.VM, error) {
	last := vm
	gone, err := a.waitFor(ctx, c, vm, "deleted", func(vm *blixardv1.VM) bool { last = vm; return false })
	if gone != nil {
		last = gone
	}
	if problem.Is(err, problem.NotFound) {
		return last, nil
	}
	return last, err
}

func (a *app) vmLabelCommand() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use: "label NAME KEY=VALUE... [KEY-...]", Short: "Set and remove labels; nothing restarts",
		Long:    "Set labels, and remove those written with a dash behind the key. Others stay, unless --replace is given.",
		Example: "  blixard vm label web tier=front stage-\n  blixard vm label web --replace",
		Args:    atLeastOne("NAME"), ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !replace {
				return usageError("the labels are missing").WithHint("write `blixard vm label %s KEY=VALUE`", args[0])
			}
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				return a.label(ctx, c, a.full(args[0]), args[1:], replace)
			})
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "remove all other labels")
	return cmd
}

func (a *app) label(ctx context.Context, c *client.Client, name string, edits []string, replace bool) error {
	for try := 1; ; try++ {
		vm, err := a.labelOnce(ctx, c, name, edits, replace)
		if problem.Is(err, problem.Conflict) && try < labelTries {
			continue // its status changed meanwhile
		}
		if err != nil {
			return err
		}
		return a.printChanged(vm, "labeled")
	}
}

func (a *app) labelOnce(ctx context.Context, c *client.Client, name string, edits []string, replace bool) (*blixardv1.VM, error) {
	old, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: name})
	if err != nil {
		return nil, err
	}
	labels := map[string]string{}
	if !replace {
		maps.Copy(labels, old.GetVm().GetLabels())
	}
	set, drop, err := parseLabelEdits(edits)
	if err != nil {
		return nil, err
	}
	for _, key := range drop {
		delete(labels, key)
	}
	maps.Copy(labels, set)
	if _, err := c.VMs().LabelVM(ctx, &blixardv1.LabelVMRequest{
		Name: old.GetVm().GetId(), ExpectedIndex: old.GetVm().GetModifyIndex(), Labels: labels,
	}); err != nil {
		return nil, err
	}
	resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: old.GetVm().GetId()})
	return resp.GetVm(), err
}

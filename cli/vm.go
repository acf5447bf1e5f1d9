package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
)

// completionTimeout bounds what a press of the tab key may take.
const completionTimeout = time.Second

func (a *app) vmCommand() *cobra.Command {
	return a.ofProjects(noun("vm", "Declare, change and reach VMs", []string{"vms"},
		a.vmCreateCommand(), a.vmListCommand(), a.vmStatusCommand(), a.vmExplainCommand(),
		a.vmStartCommand(), a.vmStopCommand(), a.vmRestartCommand(), a.vmDeleteCommand(), a.vmLabelCommand(),
		a.vmUpdateCommand(), a.vmRenameCommand(), a.vmMoveCommand(), a.vmPauseCommand(true), a.vmPauseCommand(false), a.vmInspectCommand(),
		a.vmLogsCommand(), a.vmConsoleCommand(), a.vmExecCommand(), a.vmCopyCommand(), a.vmSSHCommand(), a.vmForwardCommand(),
		a.vmWatchCommand(), a.vmStatsCommand(), a.vmTopCommand(),
	))
}

// completeVMs completes the names of VMs; most says how many arguments are names.
func (a *app) completeVMs(most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.ask(func(ctx context.Context, c *client.Client) (names []cobra.Completion) {
			vms, _ := c.AllVMs(ctx)
			for _, vm := range vms {
				if name, fits := a.completed(vm, prefix); fits {
					names = append(names, cobra.CompletionWithDesc(name, stateWord(vm)))
				}
			}
			return names
		})
	}
}

// ask lets f ask the node for what completes a word; a node that does not answer in time
// completes nothing.
func (a *app) ask(f func(context.Context, *client.Client) []cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	c, err := a.dial(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer func() { _ = c.Close() }()
	return f(ctx, c), cobra.ShellCompDirectiveNoFileComp
}

// anyNumber of arguments are names.
const anyNumber = 1 << 30

// withVM runs f, and when there is no such VM names the nearest one.
func (a *app) withVM(ctx context.Context, name string, f func(context.Context, *client.Client) error) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		return a.nearestVM(ctx, c, name, f(ctx, c))
	})
}

func (a *app) nearestVM(ctx context.Context, c *client.Client, name string, err error) error {
	if err == nil || !problem.HasCode(err, "vm.not_found") {
		return err
	}
	vms, listErr := c.AllVMs(ctx)
	if listErr != nil {
		return err
	}
	names := make([]string, 0, len(vms))
	for _, vm := range vms {
		names = append(names, vm.GetName())
	}
	var exit *exitError
	if near := nearest.Of(name, names); near != "" && !errors.As(err, &exit) {
		return problem.From(err).WithHint("did you mean %s?", near)
	}
	return err
}

// stateWord says in one word how a VM is.
func stateWord(vm *blixardv1.VM) string {
	state := vm.GetStatus().GetState()
	if vm.GetDeleting() {
		return "deleting"
	}
	if state == blixardv1.AllocationState_unspecified {
		return blixardv1.AllocationState_pending.String()
	}
	if state == blixardv1.AllocationState_running && vm.GetStatus().GetPaused() {
		return "paused"
	}
	if state == blixardv1.AllocationState_running && vm.GetStatus().GetHealth() == blixardv1.Health_unhealthy {
		return "unhealthy"
	}
	return state.String()
}

func stateColor(word string) string {
	switch word {
	case "running":
		return green
	case "failed", "lost", "unhealthy":
		return red
	case "stopped":
		return faint
	case "":
		return ""
	}
	return yellow
}

// ended reports whether nothing of the VM runs and nothing will by itself.
func ended(vm *blixardv1.VM) bool {
	s := vm.GetStatus()
	switch s.GetState() {
	case blixardv1.AllocationState_stopped, blixardv1.AllocationState_failed, blixardv1.AllocationState_lost:
		return s.GetNextStartAt() == nil
	}
	return false
}

// reason gives the sentence that a node wrote about the newest transition.
func reason(vm *blixardv1.VM) string {
	s := vm.GetStatus()
	switch {
	case s.GetMessage() != "":
		return s.GetMessage()
	case s.GetReason() != "":
		return s.GetReason()
	}
	return ""
}

// didNotStart is the problem of a VM that failed to start.
func didNotStart(vm *blixardv1.VM) error {
	text := reason(vm)
	if text == "" {
		text = "it is " + stateWord(vm)
	}
	code := "vm.not_started"
	if r := vm.GetStatus().GetReason(); r != "" {
		code = "vm." + r
	}
	return problem.New(problem.Unavailable, code, "vm %s did not start: %s", vm.GetName(), text).
		WithHint("see `blixard vm logs %s` and `blixard events %s`; `blixard vm delete %s` removes it", vm.GetName(), vm.GetName(), vm.GetName())
}

// late turns the end of a wait into a problem that says what was waited for.
func late(err error, vm *blixardv1.VM, what string) error {
	if err == nil || !problem.HasCode(err, "deadline") || vm == nil {
		return err
	}
	return problem.New(problem.Unavailable, "deadline", "vm %s is still %s, after waiting for it to be %s", vm.GetName(), stateWord(vm), what).
		WithHint("it goes on by itself: see `blixard vm status %s`, or wait longer with --timeout", vm.GetName())
}

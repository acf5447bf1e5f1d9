package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// attachTries bounds how often run joins its command again after the
	// connection broke.
	attachTries = 20
	// endWait bounds how long run waits to hear how a lost command ended, and
	// for a VM with --rm to be gone.
	endWait = time.Minute
	// attachAgainWait is between two tries.
	attachAgainWait = 250 * time.Millisecond
)

func (a *app) runCommand() *cobra.Command {
	var spec specFlags
	var detach bool
	cmd := &cobra.Command{
		Use: "run IMAGE [flags] [--] [COMMAND [ARG]...]", Short: "Run a command in a new VM and end with its exit code",
		Long: `Declare a VM, join its command and end with that command's exit code. Flags may stand before and behind IMAGE, up to "--" or
the command. The VM is not started again when the command ended, unless --restart says so; it stays, stopped, for
"vm logs" and "vm start", unless --rm is given.

Signals go to the command (with -t the keys do); three interrupts that it ignores, and a fourth ends this program and leaves
the VM running.

` + exitHelp,
		Example: `  blixard run busybox -- uname -a
  blixard run --rm -it busybox sh
  blixard run -d --name web --memory 512MiB busybox -- httpd -f -h /
  echo hello | blixard run --rm -i busybox -- cat`,
		Args: atLeastOne("IMAGE"), ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			image, command, err := commandLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			if image == "" {
				return usageError("IMAGE is missing").WithHint("write `blixard run busybox -- uname -a`")
			}
			spec.image = image
			if spec.restart == "" {
				spec.restart = "never"
			}
			spec.env = withTerm(spec.env, spec.tty, a.env("TERM"))
			spec.project = a.project
			req, err := spec.request(command)
			if err != nil {
				return err
			}
			req.IdempotencyKey = client.NewKey()
			req.Spec.HoldOutput = !detach
			return a.runVM(cmd.Context(), req, detach)
		},
	}
	spec.register(cmd)
	a.projectFlag(cmd)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the VM's name when it runs, and leave it")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// completeImages completes the images of the nodes' bundles.
func (a *app) completeImages(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.ask(func(ctx context.Context, c *client.Client) (images []cobra.Completion) {
		nodes, _ := c.Nodes().ListNodes(ctx, &blixardv1.ListNodesRequest{})
		for _, n := range nodes.GetNodes() {
			images = append(images, n.GetFingerprint().GetImages()...)
		}
		return images
	})
}

func (a *app) runVM(ctx context.Context, req *blixardv1.CreateVMRequest, detach bool) error {
	if detach {
		return a.withClient(ctx, func(ctx context.Context, c *client.Client) error { return a.runDetached(ctx, c, req) })
	}
	ctx, cancel, stop := sessionContext(ctx, req.GetSpec().GetTty())
	defer stop()
	defer cancel(nil)
	c, err := a.dial(ctx)
	if err != nil {
		return guestError(causeOf(ctx, err))
	}
	defer func() { _ = c.Close() }()
	resp, err := c.VMs().CreateVM(ctx, req)
	if err != nil {
		return guestError(causeOf(ctx, err))
	}
	vm := resp.GetVm()
	code, err := a.attach(ctx, cancel, c, vm)
	if err != nil {
		return guestError(causeOf(ctx, err))
	}
	if req.GetSpec().GetRemoveOnExit() {
		gone, cancelWait := context.WithTimeout(ctx, endWait)
		defer cancelWait()
		if _, err := a.waitGone(gone, c, vm); err != nil {
			return &exitError{code: exitNotStarted, err: err}
		}
	}
	return guestExit(code)
}

func (a *app) runDetached(ctx context.Context, c *client.Client, req *blixardv1.CreateVMRequest) error {
	resp, err := c.VMs().CreateVM(ctx, req)
	if err != nil {
		return err
	}
	vm, err := a.waitRunning(ctx, c, resp.GetVm(), 0)
	if err != nil {
		return err
	}
	return a.print(vm, func() error {
		_, err := fmt.Fprintln(a.stdout, clean(vm.GetName()))
		return err
	})
}

// attach joins the VM's command, again when the connection breaks, and gives its
// exit code.
func (a *app) attach(ctx context.Context, cancel context.CancelCauseFunc, c *client.Client, vm *blixardv1.VM) (int32, error) {
	stopProgress := a.showBoot(ctx, c, vm)
	defer stopProgress()
	started := false
	for try := 1; ; try++ {
		code, exited, err := a.attachOnce(ctx, cancel, c, vm, func() { started = true; stopProgress() })
		if exited {
			return code, nil
		}
		stopProgress()
		if ctx.Err() != nil {
			return 0, a.left(ctx, vm, started, err)
		}
		if try >= attachTries || !lostConnection(err) {
			return a.howEnded(ctx, c, vm, err)
		}
		_, _ = fmt.Fprintf(a.stderr, "%s\n", a.errColor(faint, "the connection to the node was lost, joining again ..."))
		timer := time.NewTimer(attachAgainWait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// left tells where the VM is that a person turned away from.
func (a *app) left(ctx context.Context, vm *blixardv1.VM, started bool, err error) error {
	if started || err != nil {
		_, _ = fmt.Fprintf(a.stderr, "VM %s goes on: `blixard vm logs -f %s`, `blixard vm stop %s`\n", clean(vm.GetName()), clean(vm.GetName()), clean(vm.GetName()))
	}
	return context.Cause(ctx)
}

// showBoot tells what goes on until the VM runs. The function it returns may be
// called more than once and waits for all that it started.
func (a *app) showBoot(ctx context.Context, c *client.Client, vm *blixardv1.VM) func() {
	ctx, cancel := context.WithCancel(ctx)
	p := a.progress("vm " + vm.GetName() + " is " + stateWord(vm))
	var wg sync.WaitGroup
	wg.Go(func() {
		// Who only waits for a second need not ask the node for every change.
		timer := time.NewTimer(progressDelay / 2)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		_, _ = c.WaitVM(ctx, vm.GetId(), func(vm *blixardv1.VM, _ bool) (bool, error) {
			text := "vm " + vm.GetName() + " is " + stateWord(vm)
			if r := reason(vm); r != "" {
				text += ": " + r
			}
			p.set("%s", text)
			return vm.GetStatus().GetState() == blixardv1.AllocationState_running, nil
		})
	})
	return func() {
		cancel()
		p.stop()
		wg.Wait()
	}
}

// attachOnce joins the command once. exited is whether its exit code was told.
func (a *app) attachOnce(ctx context.Context, cancel context.CancelCauseFunc, c *client.Client, vm *blixardv1.VM, onStart func()) (code int32, exited bool, err error) {
	ctx, done := context.WithCancel(ctx)
	defer done()
	stream, err := c.VMs().Attach(ctx)
	if err != nil {
		return 0, false, err
	}
	spec := vm.GetSpec()
	start := &blixardv1.AttachStart{Name: vm.GetId(), Stdin: spec.GetStdin(), Size: a.sizeFor(spec.GetTty())}
	if err := stream.Send(&blixardv1.AttachRequest{Message: &blixardv1.AttachRequest_Start{Start: start}}); err != nil {
		return 0, false, firstError(err, func() error { _, err := stream.Recv(); return err })
	}
	s := &session{a: a, stdin: spec.GetStdin(), tty: spec.GetTty() && spec.GetStdin(), signals: !spec.GetTty(), onStart: onStart, r: attachRemote(stream)}
	code, err = s.run(ctx, cancel)
	if errors.Is(err, io.EOF) {
		err = checkNoEnd(vm.GetName())
	}
	return code, s.exited, err
}

func attachRemote(stream blixardv1.VMService_AttachClient) remote {
	send := func(m *blixardv1.AttachRequest) error { return stream.Send(m) }
	return remote{
		recv: func() (frame, error) {
			m, err := stream.Recv()
			if err != nil {
				return frame{}, err
			}
			return guestFrame(m, m.GetMessage()), nil
		},
		stdin: func(p []byte) error {
			return send(&blixardv1.AttachRequest{Message: &blixardv1.AttachRequest_Stdin{Stdin: p}})
		},
		end: func() error {
			return send(&blixardv1.AttachRequest{Message: &blixardv1.AttachRequest_StdinEnd{StdinEnd: true}})
		},
		size: func(columns, rows uint32) error {
			return send(&blixardv1.AttachRequest{Message: &blixardv1.AttachRequest_Size{Size: &blixardv1.TerminalSize{Columns: columns, Rows: rows}}})
		},
		signal: func(n uint32) error {
			return send(&blixardv1.AttachRequest{Message: &blixardv1.AttachRequest_Signal{Signal: n}})
		},
		closeSend: stream.CloseSend,
	}
}

// howEnded asks the cluster how a command ended whose end was not seen.
func (a *app) howEnded(ctx context.Context, c *client.Client, vm *blixardv1.VM, cause error) (int32, error) {
	ctx, cancel := context.WithTimeout(ctx, endWait)
	defer cancel()
	var code *int32
	last, err := c.WaitVM(ctx, vm.GetId(), func(vm *blixardv1.VM, deleted bool) (bool, error) {
		if ended(vm) || deleted {
			code = vm.GetStatus().ExitCode
			return true, nil
		}
		return problem.Is(cause, problem.NotFound), nil
	})
	switch {
	case code != nil:
		return *code, nil
	case err == nil && last != nil && last.GetStatus().GetState() == blixardv1.AllocationState_failed:
		return 0, didNotStart(last)
	}
	return 0, cause
}

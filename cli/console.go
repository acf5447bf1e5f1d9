package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

// escapeKey leaves a console: Ctrl-], as in telnet and virsh.
const escapeKey = 0x1d

func (a *app) vmConsoleCommand() *cobra.Command {
	var watch, steal bool
	cmd := &cobra.Command{
		Use: "console NAME", Short: "Join the console of a VM", Args: exactly("NAME"), ValidArgsFunction: a.completeVMs(1),
		Long: `Join the console of a VM: its last screen is shown first, then all that comes. Keys go to the guest; Ctrl-] leaves.

One session may write and any number may watch. The first one writes; a later one watches unless it is told to --steal the
writer's place. The end of the VM ends the session. Standard input that is no terminal is written to the console as it is.`,
		Example: "  blixard vm console web\n  blixard vm console web --watch\n  blixard vm console web --steal",
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch && steal {
				return usageError("--watch and --steal exclude each other").WithHint("leave one of them out")
			}
			return a.console(cmd.Context(), a.full(args[0]), !watch, steal)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "watch only")
	cmd.Flags().BoolVar(&steal, "steal", false, "take the writer's place")
	return cmd
}

func (a *app) console(ctx context.Context, name string, write, steal bool) error {
	_, interactive := terminalOf(a.stdin)
	ctx, stop := untilSignal(ctx)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c, err := a.dial(ctx)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer func() { _ = c.Close() }()
	stream, err := c.VMs().Console(ctx)
	if err != nil {
		return causeOf(ctx, err)
	}
	first := &blixardv1.ConsoleRequest{Name: name, Write: write, Steal: steal}
	if interactive {
		first.Size = a.sizeFor(write)
	}
	if err := stream.Send(first); err != nil {
		err = firstError(err, func() error { _, err := stream.Recv(); return err })
		return causeOf(ctx, a.nearestVM(ctx, c, name, err))
	}
	s := a.consoleSession(stream, name, write, interactive)
	_, err = s.run(ctx, cancel)
	return a.consoleEnd(ctx, c, name, interactive, err)
}

func (a *app) consoleSession(stream blixardv1.VMService_ConsoleClient, name string, write, interactive bool) *session {
	s := &session{a: a, stdin: write || interactive, tty: interactive}
	if interactive {
		s.escape = escapeKey
	}
	s.r = remote{
		recv: func() (frame, error) {
			m, err := stream.Recv()
			if err != nil {
				return frame{}, err
			}
			if m.Writer != nil {
				a.sayWriter(name, m.GetWriter(), write, interactive)
			}
			return frame{stdout: m.GetData()}, nil
		},
		stdin: func(p []byte) error {
			if !write {
				return nil
			}
			return stream.Send(&blixardv1.ConsoleRequest{Data: p})
		},
		size: func(columns, rows uint32) error {
			return stream.Send(&blixardv1.ConsoleRequest{Size: &blixardv1.TerminalSize{Columns: columns, Rows: rows}})
		},
		closeSend: stream.CloseSend,
	}
	return s
}

// sayWriter tells a person what they joined; lines end as a raw terminal needs it.
func (a *app) sayWriter(name string, writer, wanted, interactive bool) {
	end := "\n"
	if interactive {
		end = "\r\n"
	}
	text := "Console of " + clean(name)
	switch {
	case !wanted:
		text += ", watching"
	case !writer:
		text += ", watching: another session writes (--steal takes its place)"
	}
	if interactive {
		text += "; Ctrl-] leaves"
	} else if writer || !wanted {
		return
	}
	_, _ = fmt.Fprint(a.stderr, a.errColor(faint, text+"."), end)
}

func (a *app) consoleEnd(ctx context.Context, c *client.Client, name string, interactive bool, err error) error {
	switch {
	case errors.Is(err, errEscaped):
		_, _ = fmt.Fprintf(a.stderr, "\nLeft the console of %s.\n", clean(name))
		return nil
	case errors.Is(err, io.EOF):
		if interactive {
			_, _ = fmt.Fprintf(a.stderr, "\nThe console of %s has ended.\n", clean(name))
		}
		return nil
	}
	return a.nearestVM(ctx, c, name, causeOf(ctx, err))
}

package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

func (a *app) vmExecCommand() *cobra.Command {
	var env []string
	var workdir, user string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use: "exec NAME [flags] [--] COMMAND [ARG]...", Short: "Run a further command in a running VM",
		Long: `Run a further command in a running VM and end with its exit code. Flags may stand before and behind NAME.

Signals go to the command (with -t the keys do); three interrupts that it ignores, and a fourth ends this program.

` + exitHelp,
		Example: `  blixard vm exec web -- ps
  blixard vm exec -it web sh
  tar c . | blixard vm exec -i web -- tar x -C /srv`,
		Args: atLeastOne("NAME"), ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command, err := commandLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			if name == "" || len(command) == 0 {
				return usageError("the command is missing").WithHint("write `blixard vm exec NAME -- COMMAND`, as in `blixard vm exec web -- ps`")
			}
			vars, err := parseEnv(withTerm(env, tty, a.env("TERM")))
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), &blixardv1.ExecStart{
				Name: a.full(name), Command: command, Env: vars, WorkingDir: workdir, Tty: tty, Stdin: stdin, User: user,
			})
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringArrayVarP(&env, "env", "e", nil, "environment variable NAME=VALUE, or NAME to pass on this shell's; may be repeated")
	f.StringVarP(&workdir, "workdir", "w", "", "working directory")
	f.StringVarP(&user, "user", "u", "", "user: NAME, UID, NAME:GROUP or UID:GID (default: that of the VM's command)")
	f.BoolVarP(&stdin, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

// withTerm tells a command with a terminal which kind it is.
func withTerm(env []string, tty bool, kind string) []string {
	has := func(e string) bool { return e == "TERM" || len(e) > 4 && e[:5] == "TERM=" }
	if !tty || kind == "" || slices.ContainsFunc(env, has) {
		return env
	}
	return append(slices.Clone(env), "TERM="+kind)
}

// guestError is blixard's own failure of a command that was to run in a guest.
func guestError(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: exitNotStarted, err: err}
}

// guestExit is the end of the guest's command.
func guestExit(code int32) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: int(code)}
}

// sessionContext gives a context for a session. A session without a terminal
// passes signals on; one with a terminal is ended by them.
func sessionContext(ctx context.Context, tty bool) (context.Context, context.CancelCauseFunc, func()) {
	stop := func() {}
	if tty {
		ctx, stop = untilSignal(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, cancel, stop
}

func (a *app) exec(ctx context.Context, start *blixardv1.ExecStart) error {
	ctx, cancel, stop := sessionContext(ctx, start.GetTty())
	defer stop()
	defer cancel(nil)
	c, err := a.dial(ctx)
	if err != nil {
		return guestError(causeOf(ctx, err))
	}
	defer func() { _ = c.Close() }()
	code, err := a.execOn(ctx, cancel, c, start)
	if err != nil {
		return guestError(a.nearestVM(ctx, c, start.GetName(), causeOf(ctx, err)))
	}
	return guestExit(code)
}

func (a *app) execOn(ctx context.Context, cancel context.CancelCauseFunc, c *client.Client, start *blixardv1.ExecStart) (int32, error) {
	stream, err := c.VMs().Exec(ctx)
	if err != nil {
		return 0, err
	}
	start.Size = a.sizeFor(start.GetTty())
	if err := stream.Send(&blixardv1.ExecRequest{Message: &blixardv1.ExecRequest_Start{Start: start}}); err != nil {
		return 0, firstError(err, func() error { _, err := stream.Recv(); return err })
	}
	send := func(m *blixardv1.ExecRequest) error { return stream.Send(m) }
	s := &session{a: a, stdin: start.GetStdin(), tty: start.GetTty(), signals: !start.GetTty(), r: remote{
		recv: func() (frame, error) {
			m, err := stream.Recv()
			if err != nil {
				return frame{}, err
			}
			return guestFrame(m, m.GetMessage()), nil
		},
		stdin: func(p []byte) error {
			return send(&blixardv1.ExecRequest{Message: &blixardv1.ExecRequest_Stdin{Stdin: p}})
		},
		end: func() error {
			return send(&blixardv1.ExecRequest{Message: &blixardv1.ExecRequest_StdinEnd{StdinEnd: true}})
		},
		size: func(columns, rows uint32) error {
			return send(&blixardv1.ExecRequest{Message: &blixardv1.ExecRequest_Size{Size: &blixardv1.TerminalSize{Columns: columns, Rows: rows}}})
		},
		signal: func(n uint32) error {
			return send(&blixardv1.ExecRequest{Message: &blixardv1.ExecRequest_Signal{Signal: n}})
		},
		closeSend: stream.CloseSend,
	}}
	return s.run(ctx, cancel)
}

// firstError gives the stream's own error for the bare end of file that sending
// on a broken one returns.
func firstError(err error, recv func() error) error {
	if e := recv(); e != nil {
		return e
	}
	return err
}

func (a *app) sizeFor(tty bool) *blixardv1.TerminalSize {
	columns, rows, ok := a.terminalSize()
	if !tty || !ok {
		return nil
	}
	return &blixardv1.TerminalSize{Columns: columns, Rows: rows}
}

// guestMessage is what ExecResponse and AttachResponse share.
type guestMessage interface {
	GetStdout() []byte
	GetStderr() []byte
	GetExitCode() int32
	GetStarted() bool
}

func guestFrame(m guestMessage, one any) frame {
	switch one.(type) {
	case *blixardv1.ExecResponse_ExitCode, *blixardv1.AttachResponse_ExitCode:
		code := m.GetExitCode()
		return frame{exit: &code}
	}
	return frame{stdout: m.GetStdout(), stderr: m.GetStderr(), started: m.GetStarted()}
}

// checkNoEnd is the problem of a stream that ended without an exit code.
func checkNoEnd(name string) error {
	return problem.New(problem.Unavailable, "vm.lost", "the command's end in VM %s was not seen", name).
		WithHint("see `blixard vm status %s` and `blixard events %s`", name, name)
}

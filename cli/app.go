package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// waitMax bounds waits for a VM when --timeout was not given: an image must be
// fetched and a slow host boot it several times.
const waitMax = 5 * time.Minute

// app is one run of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) string

	addr string
	// credentials is the file for addresses of the network.
	credentials string
	// project of names that have none, and of what is made; empty means all in lists.
	project string
	timeout durationFlag
	output  outputFlag
}

// Main runs the program with those arguments (without the program's name) and
// returns its exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, env: os.Getenv}
	err := a.run(args)
	if err != nil {
		a.showError(err)
	}
	return exitCode(err)
}

func (a *app) run(args []string) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = a.recovered(value, debug.Stack())
		}
	}()
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	if err := a.defaultsFromEnv(); err != nil {
		return err
	}
	return root.ExecuteContext(context.Background())
}

// defaultsFromEnv reads the client's own variables; flags replace them later.
func (a *app) defaultsFromEnv() error {
	if v := a.env("BLIXARD_OUTPUT"); v != "" {
		if err := a.output.Set(v); err != nil {
			return usageError("environment BLIXARD_OUTPUT: %v", err).WithHint("%s", problem.From(err).Hint)
		}
	}
	if v := a.env("BLIXARD_TIMEOUT"); v != "" {
		if err := a.timeout.Set(v); err != nil {
			return usageError("environment BLIXARD_TIMEOUT: %v", err).WithHint("%s", problem.From(err).Hint)
		}
	}
	return nil
}

// dial connects to the node; the caller closes the client.
func (a *app) dial(ctx context.Context) (*client.Client, error) {
	return client.Dial(ctx, client.Config{Addr: a.addr, Credentials: a.credentials, Timeout: time.Duration(a.timeout)})
}

// withClient runs f with a connection.
func (a *app) withClient(ctx context.Context, f func(context.Context, *client.Client) error) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	c, err := a.dial(ctx)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer func() { _ = c.Close() }()
	return causeOf(ctx, f(ctx, c))
}

// waiting gives the context of a wait.
func (a *app) waiting(ctx context.Context) (context.Context, context.CancelFunc) {
	return a.waitingBeyond(ctx, 0)
}

// waitingBeyond bounds a wait for what takes that long before it is late.
func (a *app) waitingBeyond(ctx context.Context, usual time.Duration) (context.Context, context.CancelFunc) {
	d := usual + waitMax
	if a.timeout > 0 {
		d = time.Duration(a.timeout)
	}
	return context.WithTimeout(ctx, d)
}

// endSignals end a command; run and exec pass them on to the guest instead.
var endSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

// untilSignal gives a context that a signal cancels, with the signal as the
// cause. The returned function must be called; it waits for its goroutine.
func untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, endSignals...)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case s := <-signals:
			if n, ok := s.(syscall.Signal); ok {
				cancel(&signalError{n})
			}
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
		wg.Wait()
	}
}

// terminalOf gives the descriptor of a stream that is a terminal.
func terminalOf(stream any) (fd int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

// durationFlag reads what units.ParseDuration does.
type durationFlag time.Duration

func (d *durationFlag) String() string {
	if *d == 0 {
		return ""
	}
	return units.FormatDuration(time.Duration(*d))
}

func (d *durationFlag) Set(text string) error {
	v, err := units.ParseDuration(text)
	if err == nil {
		*d = durationFlag(v)
	}
	return err
}

func (d *durationFlag) Type() string { return "duration" }

// sizeFlag reads what units.ParseSize does.
type sizeFlag units.Size

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return units.Size(*s).String()
}

func (s *sizeFlag) Set(text string) error { return (*units.Size)(s).Set(text) }

func (s *sizeFlag) Type() string { return "size" }

// noun makes the command of a noun, which has no action of its own.
func noun(use, short string, aliases []string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " COMMAND", Short: short, Aliases: aliases,
		Args: cobra.ArbitraryArgs, DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	cmd.AddCommand(commands...)
	return cmd
}

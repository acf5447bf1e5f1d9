package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/natefinch/lumberjack.v2"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/daemon"
	"github.com/blixard/blixard/daemon/config"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/version"
)

const (
	// detachTimeout bounds the wait for a detached node to answer. It opens its
	// log, checks its bundle, and finds the accelerator by running a guest.
	detachTimeout = 2 * time.Minute
	// daemonLogFile and daemonErrorFile are in the data directory: what a detached
	// daemon logs, and what it wrote when it could not log.
	daemonLogFile   = "daemon.log"
	daemonErrorFile = "daemon.err"
	// The log is rotated at 8 MiB and four files are kept: 32 MiB in all.
	daemonLogMiB   = 8
	daemonLogFiles = 3
	// errorBytesMax of a failed start are shown.
	errorBytesMax = 16 << 10
	// readyFD is where a detached daemon tells that it is up.
	readyFD = 3
)

// nodeFlags are the flags of node start and of config.
type nodeFlags struct {
	file   string
	values map[string]*string
}

func (n *nodeFlags) register(cmd *cobra.Command) {
	n.values = map[string]*string{}
	cmd.Flags().StringVar(&n.file, "config", "", "TOML file with settings (default: BLIXARD_CONFIG, else /etc/blixard/blixard.toml or ~/.config/blixard/blixard.toml)")
	for _, k := range config.Keys() {
		n.values[k.Name] = new(string)
		// pflag takes what stands between backquotes for the kind of the value.
		help := strings.ReplaceAll(k.Help(), "`", "\"")
		cmd.Flags().Var(&settingFlag{n.values[k.Name], k.ValueKind()}, k.FlagName(), help)
	}
}

// settingFlag holds the text of a setting; config.Load judges it.
type settingFlag struct {
	text *string
	kind string
}

func (f *settingFlag) String() string {
	if f.text == nil {
		return ""
	}
	return *f.text
}
func (f *settingFlag) Set(text string) error { *f.text = text; return nil }
func (f *settingFlag) Type() string          { return f.kind }

// load reads the configuration with the flags that were given.
func (n *nodeFlags) load(cmd *cobra.Command) (config.Source, config.Config, []config.Setting, error) {
	src, err := config.System()
	if err != nil {
		return src, config.Config{}, nil, err
	}
	if n.file != "" {
		src.File = n.file
	}
	src.Flags = map[string]string{}
	for _, k := range config.Keys() {
		if cmd.Flags().Changed(k.FlagName()) {
			src.Flags[k.Name] = *n.values[k.Name]
		}
	}
	cfg, settings, err := config.Load(src)
	return src, cfg, settings, err
}

func (a *app) nodeStartCommand() *cobra.Command {
	var flags nodeFlags
	var detach bool
	var logFile string
	cmd := &cobra.Command{
		Use: "start", Short: "Run the node on this host", Args: exactly(),
		Long: `Run the node on this host until it is interrupted. Its VMs run on then, and the next start takes them up again.

With --detach it runs in the background and this command ends when the node answers; its log is daemon.log in the data
directory. All settings are described in docs/CONFIGURATION.md; "blixard config show" prints the effective ones.`,
		Example: `  blixard node start --detach
  blixard node start --data-dir ~/blixard --socket ~/blixard/socket
  BLIXARD_LOG_LEVEL=debug blixard node start`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, cfg, settings, err := flags.load(cmd)
			if err != nil {
				return err
			}
			if detach {
				return a.detachNode(cmd.Context(), cmd.Flags(), src, cfg, settings)
			}
			return a.runNode(cmd.Context(), cfg, logFile)
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVar(&detach, "detach", false, "run in the background; end when the node answers")
	cmd.Flags().StringVar(&logFile, "detached-log", "", "")
	_ = cmd.Flags().MarkHidden("detached-log")
	return cmd
}

func (a *app) runNode(ctx context.Context, cfg config.Config, logFile string) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	executable, err := os.Executable()
	if err != nil {
		return problem.New(problem.Internal, "node.executable", "this program's own path can't be found").WithCause(err)
	}
	opts := daemon.Options{Config: cfg, Version: version.String(), Executable: executable}
	if logFile == "" {
		opts.Logger = a.logger(cfg, a.stderr)
	} else {
		out := &lumberjack.Logger{Filename: logFile, MaxSize: daemonLogMiB, MaxBackups: daemonLogFiles}
		defer func() { _ = out.Close() }()
		opts.Logger = a.logger(cfg, out)
		ready := readyPipe()
		defer func() { _ = ready.Close() }()
		opts.Ready = func() { _, _ = ready.WriteString("ready\n") }
	}
	slog.SetDefault(opts.Logger)
	return daemon.Run(ctx, opts)
}

// readyPipe is where a detached node tells the process that started it that it
// answers; nil, which is safe to use, when there is none.
func readyPipe() *os.File {
	var st syscall.Stat_t
	if err := syscall.Fstat(readyFD, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return nil
	}
	syscall.CloseOnExec(readyFD)
	return os.NewFile(readyFD, "ready")
}

// logger makes the daemon's log as the settings want it.
func (a *app) logger(cfg config.Config, w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level := levels[cfg.Log.Level]
	_, terminal := terminalOf(w)
	if cfg.Log.Format == "text" || cfg.Log.Format == "auto" && terminal {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly + ".000", NoColor: !a.colorful(w)}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

// detachNode starts this program again in a session of its own and waits until
// that node answers.
func (a *app) detachNode(ctx context.Context, given *pflag.FlagSet, src config.Source, cfg config.Config, settings []config.Setting) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	if err := freeSocket(ctx, cfg); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return problem.New(problem.Invalid, "data.unusable", "the data directory %s can't be made", cfg.DataDir).WithCause(err).
			WithHint("choose another with --data-dir, or mend its permissions")
	}
	errorFile, err := os.OpenFile(filepath.Join(cfg.DataDir, daemonErrorFile), os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return problem.New(problem.Invalid, "data.unusable", "the data directory %s can't be written", cfg.DataDir).WithCause(err).
			WithHint("choose another with --data-dir, or mend its permissions")
	}
	defer func() { _ = errorFile.Close() }()
	begin, err := errorFile.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	child, ready, err := startChild(childArgs(given, src, cfg, settings), errorFile)
	if err != nil {
		return problem.New(problem.Internal, "node.detach", "the node can't be started").WithCause(err)
	}
	defer func() { _ = ready.Close() }()
	if err := a.awaitReady(ctx, child, ready); err != nil {
		if text := written(errorFile, begin); text != "" && errors.Is(err, errChildEnded) {
			// The child wrote its error as this program would.
			_, _ = io.WriteString(a.stderr, text)
			return &exitError{code: max(exitFailure, child.ProcessState.ExitCode())}
		}
		return causeOf(ctx, err)
	}
	return a.sayNode(ctx, cfg, child)
}

// freeSocket says so at once when a node runs there already.
func freeSocket(ctx context.Context, cfg config.Config) error {
	c, err := client.Dial(ctx, client.Config{Addr: "unix:" + cfg.Socket})
	if err != nil {
		return nil //nolint:nilerr // nobody answers, which is what is wanted
	}
	defer func() { _ = c.Close() }()
	st, err := c.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{})
	text := fmt.Sprintf("a node listens at %s already", cfg.Socket)
	if err == nil {
		text = fmt.Sprintf("node %s (process %d) listens at %s already", st.GetNode().GetName(), st.GetPid(), cfg.Socket)
	}
	return problem.New(problem.Conflict, "socket.in_use", "%s", text).
		WithHint("use that one, stop it with `blixard node stop`, or choose another --data-dir and --socket")
}

// childArgs are the arguments of the detached node. It runs in / and so gets
// what was relative to this directory as absolute paths.
func childArgs(given *pflag.FlagSet, src config.Source, cfg config.Config, settings []config.Setting) []string {
	args := []string{"node", "start", "--detached-log=" + filepath.Join(cfg.DataDir, daemonLogFile)}
	if src.File != "" {
		path := src.File
		if !filepath.IsAbs(path) {
			path = filepath.Join(src.Dir, path)
		}
		args = append(args, "--config="+path)
	}
	for _, s := range settings {
		if given.Changed(s.Key.FlagName()) || s.Key.IsPath() && strings.HasPrefix(s.Origin, "environment") {
			args = append(args, "--"+s.Key.FlagName()+"="+s.Value)
		}
	}
	return args
}

func startChild(args []string, errorFile *os.File) (*exec.Cmd, *os.File, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = tell.Close() }()
	child := exec.Command(executable, args...)
	child.Dir = "/"
	child.Stdout, child.Stderr = errorFile, errorFile
	child.ExtraFiles = []*os.File{tell}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		_ = ready.Close()
		return nil, nil, err
	}
	return child, ready, nil
}

// errChildEnded says that the detached node ended before it answered.
var errChildEnded = problem.New(problem.Internal, "node.ended", "the node ended before it answered")

// awaitReady waits for the child's word. The child goes on when the wait is
// ended, but for a child that is too late, which is told to end.
func (a *app) awaitReady(ctx context.Context, child *exec.Cmd, ready *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, max(detachTimeout, time.Duration(a.timeout)))
	defer cancel()
	p := a.progress("the node is starting")
	defer p.stop()
	unblock := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer unblock()
	word := make([]byte, 1)
	_, err := ready.Read(word)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		_ = child.Wait()
		return errChildEnded
	}
	_ = child.Process.Signal(syscall.SIGTERM)
	return problem.New(problem.Unavailable, "deadline", "the node did not answer in time and was told to end").
		WithHint("see daemon.log in its data directory, or wait longer with --timeout")
}

// written gives what the file got since begin.
func written(f *os.File, begin int64) string {
	buf := make([]byte, errorBytesMax)
	n, _ := f.ReadAt(buf, begin)
	return string(buf[:n])
}

func (a *app) sayNode(ctx context.Context, cfg config.Config, child *exec.Cmd) error {
	pid := child.Process.Pid
	if err := child.Process.Release(); err != nil {
		return err
	}
	c, err := client.Dial(ctx, client.Config{Addr: "unix:" + cfg.Socket})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	st, err := c.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	return a.print(st, func() error {
		if _, err := fmt.Fprintf(a.stdout, "%s runs (process %d, %s)\n", clean(st.GetNode().GetName()), pid, clean(st.GetNode().GetFingerprint().GetAccelerator())); err != nil {
			return err
		}
		if system := client.LocalSocket(); system != cfg.Socket {
			_, _ = fmt.Fprintf(a.stderr, "To speak to it: export %s=unix:%s\n", client.EnvAddr, cfg.Socket)
		}
		return nil
	})
}

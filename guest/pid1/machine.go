//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"hash/maphash"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// ownGrace is the time a program of the guest that asks for the end leaves the main command.
	ownGrace = 10 * time.Second
	// drainLimit bounds the wait for the command's last output to reach the console.
	drainLimit = 5 * time.Second
	// callsLimit bounds the wait for attaches and execs to get their last output out.
	callsLimit = 5 * time.Second
)

// platform is what a machine does to the kernel; the real one is this process as process 1.
type platform interface {
	// buildRoot makes the image the root and gives it all else that the configuration says.
	buildRoot(cfg *wire.BootConfig) error
	// setClock takes the host's time, in microseconds since 1970, if the machine's is further off than
	// ClockSkew, and says by how much that was ahead.
	setClock(us int64) int64
	// mount, unmount and grow change the volumes of a running machine; beside runs what they do to files
	// where the commands are.
	mount(v *wire.Mount, beside func(func() error) error) error
	unmount(path string, beside func(func() error) error) error
	grow(path string, beside func(func() error) error) (size uint64, err error)
	// settled is called once the command runs: time for what need not come before.
	settled()
	// killAll ends every other process and waits for that.
	killAll()
	// cleanDisks leaves the disks as an unmount would.
	cleanDisks() error
	// restart ends the machine. It does not return on a real one.
	restart()
}

// clock gives microseconds since init began.
type clock func() int64

// ending is why and how a machine is to end.
type ending struct {
	reason    wire.ExitReason
	requested bool
	deadline  time.Time // of the main command
}

// machine is one boot: it is configured once, runs one command, and ends once. Safe for concurrent use.
type machine struct {
	plat  platform
	reap  *reaper
	out   *output
	con   *console
	since clock

	calls   sync.WaitGroup // attaches and execs that still have something to say
	workers sync.WaitGroup // copies, which have files open
	over    chan struct{}  // closed under mu when no more of them may begin

	mu          sync.Mutex
	status      wire.Status
	changed     chan struct{}    // closed and replaced with each change of status
	given       *wire.BootConfig // as it came, until the command runs
	digest      [2]uint64        // of given, when that is gone
	cfg         *wire.BootConfig // given without the contents of files; never changed
	configured  chan struct{}
	main        *running
	end         *ending
	endChanged  chan struct{} // one token: end was set or its deadline moved
	stdinTaken  bool
	releaseHold func()
	acked       chan struct{}
	ackOnce     sync.Once
}

func newMachine(p platform, r *reaper, con *console, since clock, first wire.Status) *machine {
	first.Phase = wire.PhaseWaitingConfig
	return &machine{
		plat: p, reap: r, out: newOutput(), con: con, since: since, status: first,
		changed: make(chan struct{}), configured: make(chan struct{}),
		endChanged: make(chan struct{}, 1), over: make(chan struct{}), acked: make(chan struct{}), releaseHold: func() {},
	}
}

// set changes the status under the lock and tells all who wait for changes.
func (m *machine) set(f func(*wire.Status)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.status)
	close(m.changed)
	m.changed = make(chan struct{})
}

// state is the status and a channel that is closed when it changes.
func (m *machine) state() (wire.Status, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status, m.changed
}

// configure accepts the first configuration and ones equal to it.
func (m *machine) configure(cfg *wire.BootConfig) (wire.Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg != nil {
		if m.given != nil && !reflect.DeepEqual(m.given, cfg) || m.given == nil && m.digest != digestOf(cfg) {
			return wire.Status{}, &wire.Problem{
				Kind: wire.KindConflict, Code: "guest.configured",
				Message: "this boot was configured otherwise", Hint: "reboot the VM to change its configuration",
			}
		}
		return m.status, nil
	}
	if p := checkConfig(cfg); p != nil {
		return wire.Status{}, p
	}
	m.given = cfg
	slim := *cfg
	slim.Files, slim.Secrets, slim.UserData, slim.MetaData = nil, nil, "", ""
	m.cfg = &slim
	m.status.ConfigUS = m.since()
	close(m.configured)
	return m.status, nil
}

// digestSeeds are this process's: digests are compared with its own only.
var digestSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// digestOf tells configurations apart.
func digestOf(cfg *wire.BootConfig) (digest [2]uint64) {
	coded := (&wire.Request{Config: cfg}).Encode()
	for i, seed := range digestSeeds {
		digest[i] = maphash.Bytes(seed, coded)
	}
	return digest
}

// forgetContents keeps no secret, and no megabytes, longer than it takes to write them.
func (m *machine) forgetContents() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.given; len(g.Files) > 0 || len(g.Secrets) > 0 || g.UserData != "" || g.MetaData != "" {
		m.digest, m.given = digestOf(g), nil
	}
}

func checkConfig(cfg *wire.BootConfig) error {
	invalid := func(message string) error {
		return &wire.Problem{Kind: wire.KindInvalid, Code: "guest.config", Message: message}
	}
	switch {
	case len(cfg.Argv) == 0 && !cfg.Init:
		return invalid("no command, and the image's init is not asked for")
	case cfg.Image.Device == "" || cfg.Image.FSType == "":
		return invalid("no device or file system type of the image")
	case cfg.Writable != nil && (cfg.Writable.Device == "" || cfg.Writable.FSType == ""):
		return invalid("no device or file system type of the writable disk")
	case cfg.StopSignal < 0 || cfg.StopSignal > 64:
		return invalid("no such stop signal")
	}
	if err := checkMore(cfg); err != nil {
		return invalid(wire.CleanText(err.Error(), wire.MaxMessage))
	}
	return nil
}

// checkMore looks at what the root is given beyond its disks.
func checkMore(cfg *wire.BootConfig) error {
	for i := range cfg.Interfaces {
		if _, err := parseInterface(&cfg.Interfaces[i]); err != nil {
			return fmt.Errorf("interface: %w", err)
		}
	}
	for _, s := range append(append([]string{cfg.Hostname}, cfg.DNS...), cfg.Search...) {
		if strings.ContainsAny(s, " \t\r\n#") {
			return fmt.Errorf("no name or address: %.128q", s)
		}
	}
	for i := range cfg.Mounts {
		if err := checkMount(&cfg.Mounts[i]); err != nil {
			return err
		}
	}
	for _, list := range [][]wire.File{cfg.Files, cfg.Secrets} {
		for i := range list {
			if err := checkPath(list[i].Path); err != nil {
				return fmt.Errorf("file: %w", err)
			}
		}
	}
	for _, key := range cfg.SSHKeys {
		if strings.ContainsAny(key, "\r\n\x00") {
			return errors.New("an ssh key of several lines")
		}
	}
	return nil
}

func checkMount(m *wire.Mount) error {
	if err := checkPath(m.Path); err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	if m.Disk.Device == "" || m.Disk.FSType == "" {
		return fmt.Errorf("volume %s: no device or file system type", m.Path)
	}
	return nil
}

// live goes through a whole boot and returns when the machine was told to restart.
func (m *machine) live() {
	exit := m.boot()
	m.mu.Lock()
	close(m.over)
	m.mu.Unlock()
	m.plat.killAll()
	waitFor(&m.workers, callsLimit)
	m.finishOutput()
	if err := m.plat.cleanDisks(); err != nil {
		m.con.say("disks may not be clean: %v", err)
	}
	if exit.Message != "" {
		m.con.say("%s", exit.Message)
	}
	m.set(func(s *wire.Status) {
		s.Phase = wire.PhaseExited
		s.Exit = &exit
	})
	select {
	case <-m.acked:
	case <-time.After(wire.AckLimit):
	}
	waitFor(&m.calls, callsLimit)
	m.plat.restart()
}

// boot waits for the configuration, builds the root, runs the command to its end and says how it ended.
func (m *machine) boot() wire.Exit {
	select {
	case <-m.configured:
	case <-m.endChanged:
		return m.exit(0, 0, "")
	}
	m.set(func(s *wire.Status) { s.Phase = wire.PhaseStarting })
	if err := m.plat.buildRoot(m.given); err != nil { // nobody changes it before the command runs
		e := m.exit(wire.CodeBootFailed, 0, "build the root: "+err.Error())
		e.Reason = wire.ExitBootFailed
		return e
	}
	return m.runMain()
}

// exit makes the report of an end; why it ended is what was asked for, or else the command itself.
func (m *machine) exit(code, signal int, message string) wire.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := wire.Exit{Reason: wire.ExitCommand, Code: code, Signal: signal, Message: wire.CleanText(message, wire.MaxMessage)}
	if m.end != nil {
		e.Reason, e.Requested = m.end.reason, m.end.requested
	}
	return e
}

// runMain starts the main command and sees it through.
func (m *machine) runMain() wire.Exit {
	cfg := m.cfg
	if cfg.HoldOutput {
		m.mu.Lock()
		m.releaseHold = m.out.hold(wire.HoldOutputLimit)
		m.mu.Unlock()
	}
	run, err := m.startMain()
	if err != nil {
		var p *wire.Problem
		if errors.As(err, &p) && p.ExitCode != 0 {
			return m.exit(p.ExitCode, 0, p.Message)
		}
		return m.exit(wire.CodeNotExecutable, 0, err.Error())
	}
	m.mu.Lock()
	m.main = run
	m.mu.Unlock()
	ready := m.since()
	m.set(func(s *wire.Status) {
		s.Phase = wire.PhaseRunning
		s.ReadyUS = ready
	})
	m.copyOutput(run)
	m.plat.settled()
	m.forgetContents()
	m.superviseMain(run)
	if !cfg.Init {
		code, signal := exitCode(run.status)
		return m.exit(code, signal, "")
	}
	reason, code, signal := initExit(run.status)
	e := m.exit(code, signal, "")
	if !e.Requested && e.Reason == wire.ExitCommand {
		e.Reason = reason
	}
	return e
}

// startMain starts what the machine is for.
func (m *machine) startMain() (*running, error) {
	cfg := m.cfg
	if cfg.Init {
		return m.reap.startInit(cfg.Argv, cfg.Env, cfg.WorkDir)
	}
	return m.reap.startCommand(command{
		argv: cfg.Argv, env: cfg.Env, dir: cfg.WorkDir, user: cfg.User, tty: cfg.TTY, size: cfg.Size, stdin: cfg.Stdin,
	})
}

// startBesideMain starts a further command where the main command is.
func (m *machine) startBesideMain(main *running, c command) (*running, error) {
	if m.cfg.Init {
		return m.reap.startBeside(main.pid, c)
	}
	return m.reap.startCommand(c)
}

// copyOutput starts the copying of the main command's output to the console and the readers.
func (m *machine) copyOutput(run *running) {
	if run.tty != nil {
		if err := m.con.join(run); err != nil {
			m.con.say("the console can't be typed at: %v", err)
		}
	}
	var pumps sync.WaitGroup
	sink := func(t wire.FrameType) func([]byte) {
		return func(p []byte) {
			_, _ = m.con.Write(p)
			m.out.write(t, p)
		}
	}
	pumps.Go(func() { run.pump(run.out, sink(wire.FrameStdout)) })
	if run.err != nil {
		pumps.Go(func() { run.pump(run.err, sink(wire.FrameStderr)) })
	}
	go func() {
		pumps.Wait()
		m.out.close()
	}()
}

// finishOutput waits until all output is with the console and in the readers' reach.
func (m *machine) finishOutput() {
	m.mu.Lock()
	run, release := m.main, m.releaseHold
	m.mu.Unlock()
	release()
	if run == nil {
		m.out.close()
		return
	}
	m.out.wait(drainLimit)
	run.close()
}

// superviseMain waits for the command's end and carries out requests to end it.
func (m *machine) superviseMain(run *running) {
	var kill <-chan time.Time
	for {
		select {
		case <-run.done:
			return
		case <-kill:
			m.reap.signal(run.process, syscall.SIGKILL, false)
			kill = nil
		case <-m.endChanged:
			m.mu.Lock()
			end := *m.end
			first := m.status.Phase == wire.PhaseRunning
			m.mu.Unlock()
			if first {
				m.set(func(s *wire.Status) { s.Phase = wire.PhaseStopping })
				m.reap.signal(run.process, m.stopSignal(), false)
			}
			kill = time.After(time.Until(end.deadline))
		}
	}
}

func (m *machine) stopSignal() syscall.Signal {
	if m.cfg.StopSignal != 0 {
		return syscall.Signal(m.cfg.StopSignal)
	}
	if m.cfg.Init {
		return initPowerOff
	}
	return syscall.SIGTERM
}

// askEnd asks for the end. The first reason counts; later requests may only bring the end nearer.
func (m *machine) askEnd(reason wire.ExitReason, requested bool, grace time.Duration) {
	deadline := time.Now().Add(min(max(grace, 0), wire.MaxGrace))
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.end == nil:
		m.end = &ending{reason: reason, requested: requested, deadline: deadline}
	case deadline.Before(m.end.deadline):
		m.end.deadline = deadline
	default:
		return
	}
	select {
	case m.endChanged <- struct{}{}:
	default:
	}
}

// ack takes the host's word that the exit is recorded.
func (m *machine) ack() { m.ackOnce.Do(func() { close(m.acked) }) }

// onSignal maps what programs send to process 1 when they want the machine to end: those of busybox,
// sysvinit and systemd.
func (m *machine) onSignal(sig syscall.Signal) {
	const rtmin = 34
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT, rtmin + 5:
		m.askEnd(wire.ExitReboot, false, ownGrace)
	case syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPWR, rtmin + 3, rtmin + 4:
		m.askEnd(wire.ExitPowerOff, false, ownGrace)
	}
}

// mainCommand is the main command once it was started, else a problem.
func (m *machine) mainCommand() (*running, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.main == nil {
		return nil, &wire.Problem{
			Kind: wire.KindUnavailable, Code: "guest.not_running",
			Message: "the command was not started (phase " + string(m.status.Phase) + ")", Hint: "wait for the ready event",
		}
	}
	return m.main, nil
}

// waitFor waits for wg, at most limit, and reports whether it became idle.
func waitFor(wg *sync.WaitGroup, limit time.Duration) bool {
	idle := make(chan struct{})
	go func() {
		wg.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return true
	case <-time.After(limit):
		return false
	}
}

//go:build linux

package pid1

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// gcPercent once the command runs: the agent lives in the VM's own memory.
	gcPercent = 50
	// reapLimit bounds the wait for killed processes to go away.
	reapLimit = 2 * time.Second
	reapPoll  = time.Millisecond
)

// Main is the whole program. As process 1 it does not return; else it does what its arguments say and
// returns the exit code.
func Main() int {
	if os.Args[0] == stageName {
		return stage(os.Args[1:])
	}
	if os.Getpid() != 1 {
		_, _ = os.Stderr.WriteString("blixard-guest: this is the init of a blixard microVM and runs only as process 1\n")
		return 2
	}
	runInit()
	return 0
}

// uptime is microseconds since the kernel started, sleep included.
func uptime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano() / 1000
}

func runInit() {
	debug.SetGCPercent(-1) // nothing is worth collecting before the command runs
	begin := uptime()
	since := func() int64 { return uptime() - begin }
	mountErr := mountKernel()
	con := openConsole()
	if mountErr != nil {
		con.say("%v", mountErr)
	}
	k := &kernel{con: con, reap: newReaper(false), loaded: make(chan struct{}), more: make(chan struct{})}
	m := newMachine(k, k.reap, con, since, wire.Status{
		BootID: readLine("/proc/sys/kernel/random/boot_id"), KernelRelease: release(), InitStartUS: begin,
	})
	go k.watchSignals(m)
	if exists(modulesList) {
		go k.loadModules()
	} else {
		close(k.loaded)
	}
	// A built-in driver has found the port by now; a module will.
	first := findPort(portsDir, wire.PortName)
	go serveChannel(m, con, first)
	mountMore()
	loopbackUp()
	close(k.more)
	m.live()
}

func openConsole() *console {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &console{f: os.Stderr}
	}
	return &console{f: os.NewFile(uintptr(fd), "/dev/console")}
}

// serveChannel opens the port, once it is there, and answers hosts for ever.
func serveChannel(m *machine, con *console, path string) {
	token, err := wire.TokenFromCmdline(readLine("/proc/cmdline"))
	if err != nil {
		con.say("the kernel command line has no %s: this machine can't be reached", wire.CmdlineKey)
		return
	}
	if path == "" {
		path = waitPort()
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		con.say("open the channel: %v", err)
		return
	}
	p, err := newPort(f)
	if err != nil {
		con.say("open the channel: %v", err)
		return
	}
	srv := &server{m: m}
	st, _ := m.state()
	c := newChannel(p, token, st.BootID, srv.serve)
	p.onHangup = c.hangup
	con.say("the channel broke: %v", c.run())
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// kernel is the platform of a real machine.
type kernel struct {
	con    *console
	reap   *reaper
	loaded chan struct{} // closed when the modules are in
	more   chan struct{} // closed when all is there that needs no configuration

	mu   sync.Mutex // of the root's volumes; root and init are set before any command runs
	root *root
	init bool
}

func (k *kernel) loadModules() {
	defer close(k.loaded)
	if err := loadModules(modulesList); err != nil {
		k.con.say("%v", err)
	}
}

// watchSignals reaps children and hands on what programs ask of process 1.
func (k *kernel) watchSignals(m *machine) {
	const pending, rtmin = 64, 34
	c := make(chan os.Signal, pending)
	signal.Notify(c, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPWR,
		syscall.Signal(rtmin+3), syscall.Signal(rtmin+4), syscall.Signal(rtmin+5))
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // Ctrl-Alt-Del becomes SIGINT to this process
	for s := range c {
		if s == syscall.SIGCHLD {
			k.reap.collect()
		} else if sig, ok := s.(syscall.Signal); ok {
			m.onSignal(sig)
		}
	}
}

func (k *kernel) buildRoot(cfg *wire.BootConfig) error {
	<-k.loaded
	<-k.more
	if cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return os.NewSyscallError("sethostname", err)
		}
	}
	k.init = cfg.Init
	var err error
	if k.root, err = buildRoot(cfg); err != nil {
		return err
	}
	if err := setupNetwork(cfg.Interfaces); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return equip(cfg, k.con)
}

func (k *kernel) setClock(us int64) int64 { return setClock(us, true) }

// loopbackUp brings lo up; a kernel without a network has none.
func loopbackUp() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	_ = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func (k *kernel) settled() {
	debug.SetGCPercent(gcPercent)
	k.root.forget()
}

func (k *kernel) killAll() {
	if os.Getpid() != 1 {
		panic("pid1: kill of every process asked for outside of a machine")
	}
	// Every process descends from this one and becomes its child when its parent ends.
	for begin := time.Now(); time.Since(begin) < reapLimit; time.Sleep(reapPoll) {
		_ = syscall.Kill(-1, syscall.SIGKILL)
		if k.reap.collect() {
			return
		}
	}
	k.con.say("some processes do not end")
}

func (k *kernel) cleanDisks() error {
	saveCounters(k.con)
	return k.root.clean()
}

func (k *kernel) restart() {
	if os.Getpid() != 1 {
		panic("pid1: restart asked for outside of a machine")
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {} // the kernel is about to end this
}

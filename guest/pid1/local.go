//go:build linux

package pid1

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/blixard/blixard/guest/wire"
)

// LocalConfig describes a guest without a machine.
type LocalConfig struct {
	Token  wire.Token
	BootID string
	// Console takes what the guest writes to its console; nil discards it.
	Console io.Writer
	// BuildRoot stands for the mounting of the disks; nil does nothing.
	BuildRoot func(wire.BootConfig) error
}

// Local is the guest's agent in an ordinary process: commands run as ordinary children of it, with its
// rights and its view of the file system. It is for tests of whatever talks to guests and for drivers
// that run no VM; it isolates nothing. Unlike in a machine, what a command leaves running in its process
// group ends with the command: nobody else would ever end it.
type Local struct {
	m      *machine
	ch     *channel
	ended  chan struct{}
	pumped chan struct{}
	conn   net.Conn
	closed sync.Once
}

// StartLocal boots a guest on conn, whose other end is what a host connects to. Hosts may come one after
// the other over the same conn, as they do with a virtio port. The caller must Close it.
func StartLocal(conn net.Conn, cfg LocalConfig) (*Local, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	l := &Local{ended: make(chan struct{}), pumped: make(chan struct{}), conn: conn}
	if cfg.Console == nil {
		cfg.Console = io.Discard
	}
	begin := uptime()
	reap := newReaper(true)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(cfg.Console, read)
		_ = read.Close()
	}()
	l.m = newMachine(&localPlatform{l: l, cfg: cfg, reap: reap}, reap, &console{f: write}, func() int64 { return uptime() - begin },
		wire.Status{BootID: cfg.BootID, KernelRelease: release(), InitStartUS: begin})
	l.ch = newChannel(conn, cfg.Token, cfg.BootID, (&server{m: l.m}).serve)
	go func() {
		defer close(l.pumped)
		_ = l.ch.run()
	}()
	go func() {
		defer close(l.ended)
		l.m.live()
		_ = write.Close()
		<-copied
	}()
	return l, nil
}

// Signal does what a signal to process 1 does in a machine: SIGTERM asks for a reboot, SIGUSR2 for the
// power to go off.
func (l *Local) Signal(sig syscall.Signal) { l.m.onSignal(sig) }

// Ended is closed when the guest would have ended its machine.
func (l *Local) Ended() <-chan struct{} { return l.ended }

// Close pulls the plug: commands are killed, the connection is closed. It waits for all goroutines.
func (l *Local) Close() error {
	l.closed.Do(func() {
		l.m.askEnd(wire.ExitPowerOff, true, 0)
		l.m.reap.killChildren()
		l.m.ack()
	})
	<-l.ended
	err := l.conn.Close()
	<-l.pumped
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// localPlatform leaves the kernel alone.
type localPlatform struct {
	l    *Local
	cfg  LocalConfig
	reap *reaper
}

func (p *localPlatform) buildRoot(cfg *wire.BootConfig) error {
	if p.cfg.BuildRoot == nil {
		return nil
	}
	return p.cfg.BuildRoot(*cfg)
}

// setClock leaves the host's own clock alone.
func (p *localPlatform) setClock(us int64) int64 { return setClock(us, false) }

func (p *localPlatform) mount(*wire.Mount, func(func() error) error) error { return errNoVolumes }
func (p *localPlatform) unmount(string, func(func() error) error) error    { return errNoVolumes }
func (p *localPlatform) grow(string, func(func() error) error) (uint64, error) {
	return 0, errNoVolumes
}

// errNoVolumes answers what only a machine of its own can do.
var errNoVolumes = &wire.Problem{Kind: wire.KindInvalid, Code: "guest.volume", Message: "this guest is no machine and has no volumes"}

func (p *localPlatform) settled()          {}
func (p *localPlatform) killAll()          { p.reap.killChildren() }
func (p *localPlatform) cleanDisks() error { return nil }

// restart ends the session, as the end of a machine does.
func (p *localPlatform) restart() { _ = p.l.conn.Close() }

package guest_test

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/pid1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 30 * time.Second

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func socketPair(t *testing.T) (a, b net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return conns[0], conns[1]
}

// plug stands for a virtio port: the guest's end stays, hosts come and go one after the other, and what
// a guest says to nobody is lost.
type plug struct {
	t    *testing.T
	back net.Conn // the other end of the guest's
	wg   sync.WaitGroup

	mu   sync.Mutex
	host net.Conn
	from int // bytes hosts sent to the guest, over all
}

func newPlug(t *testing.T) (*plug, net.Conn) {
	guestEnd, back := socketPair(t)
	p := &plug{t: t, back: back}
	p.wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := back.Read(buf)
			if err != nil {
				p.unplug()
				return
			}
			p.mu.Lock()
			host := p.host
			p.mu.Unlock()
			if host != nil {
				_, _ = host.Write(buf[:n])
			}
		}
	})
	t.Cleanup(func() {
		p.unplug()
		_ = back.Close()
		p.wg.Wait()
	})
	return p, guestEnd
}

// connect plugs a host in, of whose bytes the first limit reach the guest (-1: all) before its
// connection breaks.
func (p *plug) connect(limit int) net.Conn {
	mine, theirs := socketPair(p.t)
	p.mu.Lock()
	old := p.host
	p.host = mine
	p.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	p.wg.Go(func() {
		defer mine.Close()
		buf := make([]byte, 4096)
		for limit != 0 {
			n, err := mine.Read(buf)
			if err != nil {
				return
			}
			if limit > 0 {
				n = min(n, limit)
				limit -= n
			}
			_, _ = p.back.Write(buf[:n])
			p.mu.Lock()
			p.from += n
			p.mu.Unlock()
		}
	})
	return theirs
}

func (p *plug) unplug() {
	p.mu.Lock()
	host := p.host
	p.host = nil
	p.mu.Unlock()
	if host != nil {
		_ = host.Close()
	}
}

func (p *plug) sent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.from
}

// world is a guest with a token and the plug to reach it.
type world struct {
	*plug
	token guest.Token
	local *pid1.Local
}

func newWorld(t *testing.T, cfg pid1.LocalConfig) *world {
	p, conn := newPlug(t)
	w := &world{plug: p, token: guest.NewToken()}
	cfg.Token = w.token
	if cfg.BootID == "" {
		cfg.BootID = "boot-1"
	}
	var err error
	if w.local, err = pid1.StartLocal(conn, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.local.Close() })
	return w
}

func (w *world) session(t *testing.T) *guest.Session {
	t.Helper()
	s, err := guest.Connect(testContext(t), w.connect(-1), w.token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// running boots a guest with a command and returns a session in which it runs.
func running(t *testing.T, cfg guest.BootConfig) (*world, *guest.Session) {
	t.Helper()
	w := newWorld(t, pid1.LocalConfig{})
	s := w.session(t)
	configure(t, s, cfg)
	awaitEvent(t, s, guest.EventReady)
	return w, s
}

func configure(t *testing.T, s *guest.Session, cfg guest.BootConfig) guest.Status {
	t.Helper()
	cfg.Image = guest.Disk{Device: "none", FSType: "none"}
	st, err := s.Configure(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// awaitEvent reads events up to one of the kind, or a first one that says it has been.
func awaitEvent(t *testing.T, s *guest.Session, kind guest.EventKind) guest.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e, ok := <-s.Events():
			if !ok {
				t.Fatalf("events ended before %s: %v", kind, s.Err())
			}
			been := e.Status.ReadyUS > 0
			if kind == guest.EventExited {
				been = e.Status.Exit != nil
			}
			if e.Kind == kind || e.Kind == guest.EventStatus && been {
				return e
			}
		case <-timeout:
			t.Fatalf("no event %s", kind)
		}
	}
}

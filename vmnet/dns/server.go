package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// udpBytesMax is the largest answer by UDP: what passes everywhere in one packet.
	udpBytesMax = 1232
	// forwardsMax queries of one network are with the host's resolvers at a time, and
	// forwardsGuestMax of one guest. A quarter of the former for a guest, so that one
	// alone can't take them all.
	forwardsMax      = 256
	forwardsGuestMax = 64
	// queriesPerSecond that a guest may ask, and queriesBurst at once.
	queriesPerSecond = 2000
	queriesBurst     = 2000
	// connsMax connections of a network by TCP, connsGuestMax of one guest, each open
	// for idleMax without a query.
	connsMax      = 128
	connsGuestMax = 16
	idleMax       = 10 * time.Second
)

// Config says what a Server needs.
type Config struct {
	// Device that the sockets are bound to, and Addresses that they answer on; Port 0
	// means 53.
	Device    string
	Addresses []netip.Addr
	Port      int
	Zone      *Zone
	Resolvers *Resolvers
	Logger    *slog.Logger
}

// Server answers on one bridge.
type Server struct {
	config Config
	zone   atomic.Pointer[Zone]
	ctx    context.Context
	stop   context.CancelFunc
	closes []func() error
	wait   sync.WaitGroup

	mu     sync.Mutex
	guests map[netip.Addr]*guest
	// forwards and conns that are open.
	forwards, conns int
}

// guest is what one guest has going on.
type guest struct {
	limit           *rate.Limiter
	forwards, conns int
}

// Listen opens the sockets and answers until Close.
func Listen(c Config) (*Server, error) {
	s := &Server{config: c, guests: map[netip.Addr]*guest{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.zone.Store(c.Zone)
	if c.Logger == nil {
		s.config.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Port == 0 {
		s.config.Port = 53
	}
	for _, ip := range c.Addresses {
		if err := s.listen(netip.AddrPortFrom(ip, uint16(s.config.Port))); err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("answer DNS on %s: %w", c.Device, err)
		}
	}
	return s, nil
}

func (s *Server) listen(at netip.AddrPort) error {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		control := c.Control(func(fd uintptr) {
			level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
			if at.Addr().Is6() {
				level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
			}
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), level, option, 1),
			)
			if s.config.Device != "" {
				err = errors.Join(err, unix.BindToDevice(int(fd), s.config.Device))
			}
		})
		return errors.Join(control, err)
	}}
	packets, err := config.ListenPacket(s.ctx, "udp", at.String())
	if err != nil {
		return err
	}
	udp := packets.(*net.UDPConn)
	s.closes = append(s.closes, udp.Close)
	s.wait.Go(func() { s.servePackets(udp) })
	listener, err := config.Listen(s.ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	s.closes = append(s.closes, listener.Close)
	s.wait.Go(func() { s.serveConns(listener) })
	return nil
}

// SetZone replaces the names.
func (s *Server) SetZone(z *Zone) {
	s.zone.Store(z)
	s.mu.Lock()
	defer s.mu.Unlock()
	for ip, g := range s.guests {
		if !z.guests[ip] && g.forwards == 0 && g.conns == 0 {
			delete(s.guests, ip)
		}
	}
}

// Close ends the answers.
func (s *Server) Close() error {
	s.stop()
	var errs []error
	for _, c := range s.closes {
		errs = append(errs, c())
	}
	s.wait.Wait()
	return errors.Join(errs...)
}

// admit finds a guest that may ask now; nil for a stranger or one that asks too
// much.
func (s *Server) admit(from netip.Addr) *guest {
	from = from.Unmap().WithZone("")
	if !s.zone.Load().guests[from] {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[from]
	if g == nil {
		g = &guest{limit: rate.NewLimiter(queriesPerSecond, queriesBurst)}
		s.guests[from] = g
	}
	if !g.limit.Allow() {
		return nil
	}
	return g
}

// servePackets answers own names at once and passes on the rest beside.
func (s *Server) servePackets(conn *net.UDPConn) {
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		g := s.admit(from.Addr())
		if g == nil {
			continue
		}
		send := func(reply []byte) {
			if reply == nil {
				return
			}
			if _, err := conn.WriteToUDPAddrPort(reply, from); err != nil && s.ctx.Err() == nil {
				s.config.Logger.Debug("no answer by DNS", "device", s.config.Device, "to", from, "err", err)
			}
		}
		reply, forward := s.zone.Load().Answer(buf[:n], sizeOf(buf[:n]))
		if !forward {
			send(reply)
			continue
		}
		packet := append([]byte(nil), buf[:n]...)
		if !s.take(g) {
			send(refusal(packet, dns.RcodeServerFailure))
			continue
		}
		s.wait.Go(func() {
			defer s.give(g)
			send(s.pass(packet, false))
		})
	}
}

// take counts a query that is passed on, if there is room for it.
func (s *Server) take(g *guest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forwards >= forwardsMax || g.forwards >= forwardsGuestMax {
		return false
	}
	s.forwards++
	g.forwards++
	return true
}

func (s *Server) give(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forwards--
	g.forwards--
}

// pass gives the host's answer, or that there is none.
func (s *Server) pass(packet []byte, tcp bool) []byte {
	reply, err := s.config.Resolvers.forward(s.ctx, packet, tcp)
	if err != nil {
		s.config.Logger.Debug("the host's resolvers don't answer", "device", s.config.Device, "err", err)
		return refusal(packet, dns.RcodeServerFailure)
	}
	return reply
}

func (s *Server) serveConns(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of file descriptors: those who are connected go on.
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(time.Second):
			}
			continue
		}
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		g := s.admit(from.Addr())
		if g == nil || !s.connect(g) {
			_ = conn.Close()
			continue
		}
		s.wait.Go(func() {
			defer s.disconnect(g)
			s.serveConn(conn, from.Addr(), g)
		})
	}
}

func (s *Server) connect(g *guest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns >= connsMax || g.conns >= connsGuestMax {
		return false
	}
	s.conns++
	g.conns++
	return true
}

func (s *Server) disconnect(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
	g.conns--
}

// serveConn answers the queries of a connection, one after the other.
func (s *Server) serveConn(conn net.Conn, from netip.Addr, g *guest) {
	defer conn.Close()
	defer context.AfterFunc(s.ctx, func() { _ = conn.Close() })()
	buf := make([]byte, dns.MaxMsgSize)
	for {
		if conn.SetDeadline(time.Now().Add(idleMax)) != nil {
			return
		}
		n, err := readMessage(conn, buf, true)
		if err != nil || s.admit(from) == nil {
			return
		}
		reply, forward := s.zone.Load().Answer(buf[:n], dns.MaxMsgSize)
		if forward {
			reply = refusal(buf[:n], dns.RcodeServerFailure)
			if s.take(g) {
				reply = s.pass(buf[:n], true)
				s.give(g)
			}
		}
		if reply == nil || writeMessage(conn, reply, true) != nil {
			return
		}
	}
}

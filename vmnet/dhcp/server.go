package dhcp

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

	"golang.org/x/sys/unix"
)

var errNoAnswer = errors.New("no answer")

const (
	// packetBytesMax is the largest packet that is read: the largest MTU of a network.
	packetBytesMax = 9000
	// advertisePeriod between advertisements that nobody asked for: often enough that
	// a guest hears ten before it forgets the gateway.
	advertisePeriod = RouterLifetime / 10
)

// Server answers on one bridge.
type Server struct {
	device string
	leases atomic.Pointer[Leases]
	log    *slog.Logger
	stop   context.CancelFunc
	conns  []net.PacketConn
	wait   sync.WaitGroup
}

// Listen opens the sockets on a device, which hear nobody else, and answers until
// Close.
func Listen(device string, leases *Leases, log *slog.Logger) (*Server, error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{device: device, log: log, stop: stop}
	s.leases.Store(leases)
	fail := func(err error) (*Server, error) {
		_ = s.Close()
		return nil, fmt.Errorf("answer DHCP on %s: %w", device, err)
	}
	if leases.Subnet4.IsValid() {
		conn, err := listenOn(ctx, device, "udp4", fmt.Sprintf("0.0.0.0:%d", serverPort4))
		if err != nil {
			return fail(err)
		}
		s.conns = append(s.conns, conn)
		s.wait.Go(func() { s.serve(conn, s.reply4) })
	}
	if !leases.Subnet6.IsValid() {
		return s, nil
	}
	conn, err := listenOn(ctx, device, "udp6", fmt.Sprintf("[::]:%d", serverPort6))
	if err != nil {
		return fail(err)
	}
	s.conns = append(s.conns, conn)
	if err := join(conn, device, "ff02::1:2"); err != nil {
		return fail(err)
	}
	s.wait.Go(func() { s.serve(conn, s.reply6) })
	raw, err := listenOn(ctx, device, "ip6:ipv6-icmp", "::")
	if err != nil {
		return fail(err)
	}
	s.conns = append(s.conns, raw)
	if err := s.prepareRaw(raw); err != nil {
		return fail(err)
	}
	s.wait.Go(func() { s.serve(raw, s.solicited) })
	s.wait.Go(func() { s.advertise(ctx, raw) })
	return s, nil
}

// SetLeases replaces the leases; the subnets must be the same.
func (s *Server) SetLeases(leases *Leases) { s.leases.Store(leases) }

// Close ends the answers.
func (s *Server) Close() error {
	s.stop()
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	s.wait.Wait()
	return errors.Join(errs...)
}

// listenOn opens a socket that is bound to a device.
func listenOn(ctx context.Context, device, network, address string) (net.PacketConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		control := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), device),
			)
		})
		return errors.Join(control, err)
	}}
	return config.ListenPacket(ctx, network, address)
}

// rawControl calls do with the file descriptor of a connection.
func rawControl(conn net.PacketConn, do func(fd int) error) error {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no file descriptor", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(raw.Control(func(fd uintptr) { inner = do(int(fd)) }), inner)
}

// join makes the socket hear a group on the device.
func join(conn net.PacketConn, device, group string) error {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	return rawControl(conn, func(fd int) error {
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: netip.MustParseAddr(group).As16(), Interface: uint32(ifi.Index)})
	})
}

// prepareRaw makes the socket of advertisements hear solicitations alone, and send
// with the hop limit that proves that a packet was not routed.
func (s *Server) prepareRaw(conn net.PacketConn) error {
	const hopLimit, solicitation = 255, 133
	if err := join(conn, s.device, "ff02::2"); err != nil {
		return err
	}
	return rawControl(conn, func(fd int) error {
		var filter unix.ICMPv6Filter
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[solicitation>>5] &^= 1 << (solicitation & 31)
		return errors.Join(
			unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, hopLimit),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hopLimit),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0),
		)
	})
}

// serve answers each packet until the socket ends.
func (s *Server) serve(conn net.PacketConn, answer func(packet []byte, from net.Addr) ([]byte, net.Addr)) {
	buf := make([]byte, packetBytesMax)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// The device is gone: its network is, or it is made anew and so is this server.
			s.log.Debug("no DHCP", "device", s.device, "err", err)
			return
		}
		reply, to := answer(buf[:n], from)
		if reply == nil {
			continue
		}
		if _, err := conn.WriteTo(reply, to); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Debug("no answer by DHCP", "device", s.device, "to", to, "err", err)
		}
	}
}

func (s *Server) reply4(packet []byte, _ net.Addr) ([]byte, net.Addr) {
	reply, to, ok := s.leases.Load().Reply4(packet)
	if !ok {
		return nil, nil
	}
	return reply, net.UDPAddrFromAddrPort(to)
}

func (s *Server) reply6(packet []byte, from net.Addr) ([]byte, net.Addr) {
	udp, ok := from.(*net.UDPAddr)
	if !ok {
		return nil, nil
	}
	ip, _ := netip.AddrFromSlice(udp.IP)
	reply, ok := s.leases.Load().Reply6(packet, ip)
	if !ok {
		return nil, nil
	}
	return reply, from
}

// allNodes are all guests on the link.
var allNodes = &net.IPAddr{IP: net.ParseIP("ff02::1")}

// solicited answers a router solicitation.
func (s *Server) solicited(_ []byte, from net.Addr) ([]byte, net.Addr) {
	to := *allNodes
	if ip, ok := from.(*net.IPAddr); ok && !ip.IP.IsUnspecified() {
		to.IP = ip.IP
	}
	to.Zone = s.device
	return s.leases.Load().Advertisement(), &to
}

// advertise tells of the gateway now and then.
func (s *Server) advertise(ctx context.Context, conn net.PacketConn) {
	tick := time.NewTicker(advertisePeriod)
	defer tick.Stop()
	to := *allNodes
	to.Zone = s.device
	for {
		if _, err := conn.WriteTo(s.leases.Load().Advertisement(), &to); err != nil && ctx.Err() == nil {
			s.log.Debug("no advertisement", "device", s.device, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

package vmnet

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// hold takes a published port of the host, for both IPv4 and IPv6, so that nobody
// else can and a packet that is not for a VM finds nobody. The sockets never
// listen: what is for the port is sent on before it reaches them.
func hold(p Port) (io.Closer, error) {
	var held sockets
	kind, protocol := unix.SOCK_STREAM, unix.IPPROTO_TCP
	if p.protocol() == "udp" {
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	}
	for _, address := range []unix.Sockaddr{&unix.SockaddrInet4{Port: int(p.HostPort)}, &unix.SockaddrInet6{Port: int(p.HostPort)}} {
		domain := unix.AF_INET
		if _, is6 := address.(*unix.SockaddrInet6); is6 {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		if domain == unix.AF_INET6 && errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err == nil {
			held = append(held, fd)
			if domain == unix.AF_INET6 {
				err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
			}
		}
		if err == nil {
			err = unix.Bind(fd, address)
		}
		if err != nil {
			_ = held.Close()
			if errors.Is(err, unix.EADDRINUSE) {
				return nil, problem.New(problem.Conflict, "network.port_taken", "%s port %d of this node is in use by another program", p.protocol(), p.HostPort).
					WithHint("see who has it with `ss -lnp 'sport = :%d'`, or publish another port", p.HostPort)
			}
			return nil, problem.New(problem.Internal, "network.port_failed", "%s port %d of this node", p.protocol(), p.HostPort).WithCause(err)
		}
	}
	return held, nil
}

// overlayPortTaken reports whether a program has the overlay's port. The kernel's own
// overlays share it.
func (k *kernel) overlayPortTaken(port int) bool {
	for _, l := range k.objects.links {
		if l.kind == kindOverlay && l.udpPort == port {
			return false
		}
	}
	for _, o := range k.facts.overlays {
		if o.port == port {
			return false
		}
	}
	held, err := hold(Port{HostPort: uint16(port), Protocol: blixardv1.Protocol_udp})
	if err == nil {
		_ = held.Close()
	}
	return problem.HasCode(err, "network.port_taken")
}

// sockets are file descriptors.
type sockets []int

func (s sockets) Close() error {
	var errs []error
	for _, fd := range s {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// portName is how a port is called in Problems.
func portName(p Port) string { return fmt.Sprintf("port %d/%s", p.HostPort, p.protocol()) }

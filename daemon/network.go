package daemon

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// network is the node's listeners for others.
type network struct {
	grpc, https net.Listener
	// address that is told to the others: HOST:PORT.
	address string
}

// listenNetwork takes both ports. bind is HOST:PORT, https may be empty for the
// port after it; port 0 lets the kernel choose, and remembered is then taken again
// if it is free. advertise, if not empty, is what others are told.
func listenNetwork(bind, https, advertise, remembered string) (*network, error) {
	host, port, err := splitAddress(bind)
	if err != nil {
		return nil, err
	}
	n := &network{}
	if port == 0 && remembered != "" {
		if _, p, err := net.SplitHostPort(remembered); err == nil {
			n.grpc, _ = net.Listen("tcp", net.JoinHostPort(host, p))
		}
	}
	if n.grpc == nil {
		if n.grpc, err = listenTCP(bind, "--bind"); err != nil {
			return nil, err
		}
	}
	bound := n.grpc.Addr().(*net.TCPAddr)
	if https == "" {
		next := 0
		if port != 0 {
			next = port + 1
		}
		https = net.JoinHostPort(host, strconv.Itoa(next))
	}
	if n.https, err = listenTCP(https, "--https-bind"); err != nil {
		return nil, errors.Join(err, n.grpc.Close())
	}
	n.address, err = advertised(host, advertise, bound.Port)
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *network) close() error { return errors.Join(n.grpc.Close(), n.https.Close()) }

// splitAddress reads HOST:PORT with a port of 0 to 65535.
func splitAddress(s string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(s)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, problem.New(problem.Invalid, "address.malformed", "%q is no address: it must be HOST:PORT", s).WithHint("for instance 10.0.0.1:7700")
	}
	return host, port, nil
}

func listenTCP(address, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, problem.New(problem.Conflict, "address.in_use", "another program listens at %s", address).WithCause(err).
			WithHint("stop it, or choose another address with %s HOST:PORT", flag)
	case errors.Is(err, unix.EACCES):
		return nil, problem.New(problem.Denied, "address.denied", "%s may not be listened at", address).WithCause(err).
			WithHint("choose a port above 1023 with %s", flag)
	}
	return nil, problem.New(problem.Invalid, "address.unusable", "%s can't be listened at", address).WithCause(err).
		WithHint("is it an address of this host? Choose another with %s", flag)
}

// advertised is where others reach a listener of that host and port.
func advertised(host, advertise string, port int) (string, error) {
	if advertise != "" {
		h, p, err := net.SplitHostPort(advertise)
		if err != nil {
			h, p = advertise, strconv.Itoa(port) // a host alone
		}
		return net.JoinHostPort(h, p), nil
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return net.JoinHostPort(host, strconv.Itoa(port)), nil
	}
	return net.JoinHostPort(outward().String(), strconv.Itoa(port)), nil
}

// outward is the host's address towards the world; without one it is loopback. No
// packet is sent to find it (the address is of RFC 5737's for documentation).
func outward() net.IP {
	c, err := net.Dial("udp", "192.0.2.1:9")
	if err != nil {
		return net.IPv4(127, 0, 0, 1)
	}
	defer func() { _ = c.Close() }()
	return c.LocalAddr().(*net.UDPAddr).IP
}

// samePlace tells whether two addresses are written alike once read.
func samePlace(a, b string) bool {
	ha, pa, errA := net.SplitHostPort(a)
	hb, pb, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || pa != pb {
		return false
	}
	ia, ib := net.ParseIP(ha), net.ParseIP(hb)
	return ha == hb || ia != nil && ia.Equal(ib)
}

func addressText(n *network) string { return fmt.Sprintf("%s (HTTPS %s)", n.address, n.https.Addr()) }

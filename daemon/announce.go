package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/blixard/blixard/internal/localpath"
)

// announce makes a link to the socket for each address by which people on this
// host may name the node, so that they need no credentials. It gives the links,
// which withdraw removes.
func announce(n *network, socket string) ([]string, error) {
	dir := localpath.Current().AddressDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	addresses := []string{n.address, n.grpc.Addr().String()}
	bound := n.grpc.Addr().(*net.TCPAddr)
	if bound.IP.IsUnspecified() || bound.IP.IsLoopback() {
		for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
			addresses = append(addresses, net.JoinHostPort(host, strconv.Itoa(bound.Port)))
		}
	}
	slices.Sort(addresses)
	var links []string
	var errs []error
	for _, a := range slices.Compact(addresses) {
		link := filepath.Join(dir, a)
		_ = os.Remove(link) // of a node that had the port before
		if err := os.Symlink(socket, link); err != nil {
			errs = append(errs, err)
			continue
		}
		links = append(links, link)
	}
	return links, errors.Join(errs...)
}

// withdraw removes the links that still lead to the socket.
func withdraw(links []string, socket string) {
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == socket {
			_ = os.Remove(link)
		}
	}
}

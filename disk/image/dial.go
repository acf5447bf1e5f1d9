package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"

	"github.com/blixard/blixard/internal/problem"
)

// addressPolicy says where a connection may lead. It is asked with the address
// itself, after the name was resolved, for each connection and so at each redirect.
type addressPolicy struct {
	// named are the addresses that the operator wrote down, as HOST:PORT.
	named        map[string]bool
	allowPrivate bool
}

// errAddress is the answer of the policy.
type errAddress struct {
	name, address, why string
}

func (e *errAddress) Error() string {
	return fmt.Sprintf("%s leads to %s, %s", e.name, e.address, e.why)
}

var (
	carrierNet  = netip.MustParsePrefix("100.64.0.0/10")
	thisHostNet = netip.MustParsePrefix("0.0.0.0/8")
	nat64Net    = netip.MustParsePrefix("64:ff9b::/96")
	metadataV6  = netip.MustParseAddr("fd00:ec2::254")
)

// refuse gives the reason why an address is not reached; "" if it is. named is
// whether the operator wrote it down.
func (p *addressPolicy) refuse(ip netip.Addr, named bool) string {
	ip = ip.Unmap().WithZone("")
	if nat64Net.Contains(ip) { // it stands for the IPv4 address in its last bytes
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case ip.IsLinkLocalUnicast() || ip == metadataV6:
		return "a link-local address, where clouds tell their secrets"
	case !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() || thisHostNet.Contains(ip):
		return "no address of a host"
	case ip.IsLoopback() && !named:
		return "this very host"
	case (ip.IsPrivate() || carrierNet.Contains(ip)) && !named && !p.allowPrivate:
		return "a private address"
	}
	return ""
}

// isLocalName tells whether a host is written as an address, or as localhost.
func isLocalName(host string) bool {
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}

func isLoopbackName(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback() || host == "localhost"
}

// name adds a registry that the operator wrote down.
func (p *addressPolicy) name(registry string) {
	host, port, err := net.SplitHostPort(registry)
	if err != nil {
		host, port = strings.Trim(registry, "[]"), "443"
		if isLoopbackName(host) {
			p.named[net.JoinHostPort(host, "80")] = true
		}
	}
	if isLocalName(host) {
		p.named[net.JoinHostPort(host, port)] = true
	}
}

func (p *addressPolicy) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	named := p.named[addr]
	d := net.Dialer{Timeout: dialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if why := p.refuse(to.Addr(), named); why != "" {
			return &errAddress{addr, to.Addr().String(), why}
		}
		return nil
	}}
	return d.DialContext(ctx, network, addr)
}

// transport makes the connections of one pull. Its caller closes idle ones.
func (s *Store) transport(p *addressPolicy) *http.Transport {
	return &http.Transport{
		DialContext:            p.dial,
		TLSClientConfig:        &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true, // digests are of what is sent
		ForceAttemptHTTP2:      true,
	}
}

// bulk marks the context of a request whose answer may be long.
type bulk struct{}

// smallAnswerMax bounds tokens, error texts and what else is not asked as bulk.
const smallAnswerMax = 64 << 10

// bounded refuses plain HTTP to other hosts, and keeps answers short that nobody
// expects to be long.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !isLoopbackName(r.URL.Hostname()) {
		return nil, &errAddress{r.URL.Host, r.URL.Scheme + "://" + r.URL.Host, "which would not be encrypted"}
	}
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if r.Context().Value(bulk{}) == nil || resp.StatusCode >= 300 {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, smallAnswerMax), resp.Body}
	}
	return resp, nil
}

var errRedirects = errors.New("too many redirects")

func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > redirectsMax {
		return errRedirects
	}
	if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
		return &errAddress{via[0].URL.Host, r.URL.Scheme + "://" + r.URL.Host, "which would not be encrypted"}
	}
	return nil
}

// refusedAddress makes the policy's answer a problem.
func refusedAddress(e *errAddress) *problem.Error {
	return problem.New(problem.Denied, "image.address", "%s", e.Error()).
		WithHint("name the registry by its address, allow private addresses in the node's configuration, or see who answers in its name")
}

package dns

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// upstreamTimeout is how long one resolver has; upstreamsMax are asked in turn, so
	// that a guest, which waits 5 seconds, hears of a failure.
	upstreamTimeout = 1500 * time.Millisecond
	upstreamsMax    = 3
	// resolvConfAge is how old what was read of the host's resolvers may be.
	resolvConfAge = 5 * time.Second
)

var errNoUpstream = errors.New("the host has no resolver")

// Resolvers are those of the host, from its resolv.conf. It is safe for concurrent
// use.
type Resolvers struct {
	// File is the resolv.conf.
	File string
	// Own reports whether an address is one of our gateways: asking it would come
	// back.
	Own func(netip.Addr) bool

	// port, where it is not that of the file's format, 53.
	port string

	mu   sync.Mutex
	read time.Time
	list []string
}

// addresses gives the resolvers in order, with their ports.
func (r *Resolvers) addresses() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.read) < resolvConfAge {
		return r.list
	}
	r.read, r.list = time.Now(), nil
	file, err := os.Open(r.File)
	if err != nil {
		return nil
	}
	defer file.Close()
	config, err := dns.ClientConfigFromReader(file)
	if err != nil {
		return nil
	}
	for _, s := range config.Servers {
		ip, err := netip.ParseAddr(s)
		if err != nil || r.Own != nil && r.Own(ip.WithZone("")) || len(r.list) == upstreamsMax {
			continue
		}
		r.list = append(r.list, net.JoinHostPort(s, cmp.Or(r.port, config.Port)))
	}
	return r.list
}

// forward asks the resolvers in turn for the answer to a query as it is.
func (r *Resolvers) forward(ctx context.Context, packet []byte, tcp bool) ([]byte, error) {
	err := errNoUpstream
	for _, to := range r.addresses() {
		var reply []byte
		if reply, err = exchange(ctx, packet, to, tcp); err == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, err
}

// exchange sends a query, under a number of our own and from a port of its own, and
// takes the answer to it.
func exchange(ctx context.Context, packet []byte, to string, tcp bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, to)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	asked := append([]byte(nil), packet...)
	_, _ = rand.Read(asked[:2])
	if err := writeMessage(conn, asked, tcp); err != nil {
		return nil, err
	}
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, err := readMessage(conn, buf, tcp)
		if err != nil {
			return nil, err
		}
		reply := buf[:n]
		if answers(reply, asked) {
			copy(reply, packet[:2])
			return reply, nil
		}
		if tcp {
			return nil, errors.New("another's answer")
		}
	}
}

// answers reports whether a reply is one to the query: by number and question.
func answers(reply, query []byte) bool {
	if len(reply) < 12 || reply[0] != query[0] || reply[1] != query[1] {
		return false
	}
	var r, q dns.Msg
	return r.Unpack(reply) == nil && q.Unpack(query) == nil && r.Response && len(r.Question) == 1 && len(q.Question) == 1 &&
		dns.CanonicalName(r.Question[0].Name) == dns.CanonicalName(q.Question[0].Name) && r.Question[0].Qtype == q.Question[0].Qtype
}

// readMessage reads one, which by TCP has its length before it.
func readMessage(conn io.Reader, buf []byte, tcp bool) (int, error) {
	if !tcp {
		return conn.Read(buf)
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(buf))
	return io.ReadFull(conn, buf[:n])
}

func writeMessage(conn io.Writer, message []byte, tcp bool) error {
	if tcp {
		message = append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
	}
	_, err := conn.Write(message)
	return err
}

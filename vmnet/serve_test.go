package vmnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/miekg/dns"

	"github.com/blixard/blixard/internal/problem"
)

// addBareGuest attaches a guest that knows nothing yet.
func addBareGuest(t testing.TB, f *Fabric, name string, e Endpoint) {
	t.Helper()
	newNamespace(t, name)
	f.makeTap = vethTap(name, e)
	if _, _, err := f.Tap(t.Context(), e.AllocationID, e.Index, TapOptions{}); err != nil {
		t.Fatal(err)
	}
	// The link-local address is there at once, as in a guest that waited for it.
	within(t, name, func() error { return writeSysctl("net/ipv6/conf/eth0/accept_dad", "0") })
	ip(t, name, "link", "set", "eth0", "up")
}

// lookup asks the DNS of a guest's gateway.
func lookup(ns, network, server, name string, kind uint16) (*dns.Msg, error) {
	var reply *dns.Msg
	err := withinErr(ns, func() error {
		query := new(dns.Msg).SetQuestion(name, kind)
		conn, err := net.DialTimeout(network, net.JoinHostPort(server, "53"), time.Second)
		if err != nil {
			return err
		}
		c := &dns.Conn{Conn: conn}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if err := c.WriteMsg(query); err != nil {
			return err
		}
		reply, err = c.ReadMsg()
		return err
	})
	return reply, err
}

// TestGuestsLearnTheirAddressesAndNames: a guest with clients of its own gets its
// address by DHCP and DHCPv6, its router and MTU, and finds its neighbours by name.
func TestGuestsLearnTheirAddressesAndNames(t *testing.T) {
	resolver := startResolver(t)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	// The first is our own gateway: it is never asked.
	if err := os.WriteFile(conf, []byte("nameserver 10.1.0.1\nnameserver "+resolver+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFabric(t, func(c *Config) { c.ResolvConf = conf })
	a, b, other := nic(1, 2), nic(1, 3), nic(2, 2)
	b.Aliases = []string{"db"}
	remote := on(nic(1, 4), "192.0.2.9")
	apply(t, f, Desired{Networks: []Network{
		{Spec: newNetwork(1), Local: []Endpoint{a, b}, Remote: []Endpoint{remote}},
		{Spec: newNetwork(2), Local: []Endpoint{other}},
	}})
	addBareGuest(t, f, "a", a)

	within(t, "a", func() error {
		c, err := nclient4.New("eth0", nclient4.WithTimeout(2*time.Second))
		if err != nil {
			return err
		}
		defer c.Close()
		lease, err := c.Request(t.Context())
		if err != nil {
			return err
		}
		ack := lease.ACK
		mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
		if !ack.YourIPAddr.Equal(net.IP(a.IPv4.AsSlice())) || ack.Router()[0].String() != "10.1.0.1" || ack.DNS()[0].String() != "10.1.0.1" ||
			ack.HostName() != "vm2" || ack.DomainName() != "net1.blixard" || mtu != 1500 {
			t.Errorf("DHCP: %s", ack.Summary())
		}
		return nil
	})
	within(t, "a", func() error {
		c, err := nclient6.New("eth0", nclient6.WithTimeout(2*time.Second))
		if err != nil {
			return err
		}
		defer c.Close()
		offer, err := c.Solicit(t.Context())
		if err != nil {
			return err
		}
		reply, err := c.Request(t.Context(), offer)
		if err != nil {
			return err
		}
		got := reply.Options.OneIANA().Options.OneAddress()
		if !got.IPv6Addr.Equal(net.IP(a.IPv6.AsSlice())) || reply.Options.GetOne(dhcpv6.OptionDNSRecursiveNameServer) == nil {
			t.Errorf("DHCPv6: %s", reply.Summary())
		}
		return nil
	})
	// The kernel heard the advertisement.
	eventually(t, "a default route by router advertisement", func() bool {
		return strings.Contains(ip(t, "a", "-6", "route"), "default via fe80::")
	})
	ip(t, "a", "addr", "add", "10.1.0.2/24", "dev", "eth0")
	ip(t, "a", "addr", "add", "fd00:1::2/64", "dev", "eth0", "nodad")

	for _, tc := range []struct {
		name string
		kind uint16
		want string // the answer's data, or the code
	}{
		{"vm3.net1.blixard.", dns.TypeA, "10.1.0.3"},
		{"DB.net1.Blixard.", dns.TypeAAAA, "fd00:1::3"},
		{"vm4.net1.blixard.", dns.TypeA, "10.1.0.4"},
		{"vm3.", dns.TypeA, "10.1.0.3"},
		{"gateway.net1.blixard.", dns.TypeA, "10.1.0.1"},
		{"3.0.1.10.in-addr.arpa.", dns.TypePTR, "vm3.net1.blixard."},
		{"9.0.1.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"vm3.net1.blixard.", dns.TypeMX, "NOERROR"},
		{"vm9.net1.blixard.", dns.TypeA, "NXDOMAIN"},
		{"vm2.net2.blixard.", dns.TypeA, "NXDOMAIN"},
		{"vm9.", dns.TypeA, "NXDOMAIN"},
		{"example.org.", dns.TypeA, "198.51.100.7"},
	} {
		for _, at := range [][2]string{{"udp", "10.1.0.1"}, {"tcp", "10.1.0.1"}, {"udp", "fd00:1::1"}} {
			reply, err := lookup("a", at[0], at[1], tc.name, tc.kind)
			if err != nil {
				t.Errorf("%s by %s at %s: %v", tc.name, at[0], at[1], err)
				continue
			}
			got := dns.RcodeToString[reply.Rcode]
			if len(reply.Answer) > 0 {
				fields := strings.Fields(reply.Answer[0].String())
				got = fields[len(fields)-1]
			} else if len(reply.Ns) != 1 || reply.Ns[0].Header().Rrtype != dns.TypeSOA {
				t.Errorf("%s: no SOA with the answer %s", tc.name, got)
			}
			if got != tc.want {
				t.Errorf("%s by %s at %s: %s, want %s", tc.name, at[0], at[1], got, tc.want)
			}
		}
	}
	// Neither the other network's gateway nor its names.
	if reply, err := lookup("a", "udp", "10.2.0.1", "vm2.net2.blixard.", dns.TypeA); err == nil {
		t.Errorf("the other network's DNS answers %v", reply)
	}
	// A bridge that is made anew is answered on again.
	ip(t, "", "link", "del", f.planner.bridge(newNetwork(1).GetId()))
	if _, err := f.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if reply, err := lookup("a", "udp", "10.1.0.1", "vm3.net1.blixard.", dns.TypeA); err != nil || len(reply.Answer) != 1 {
		t.Errorf("after the bridge was made anew: %v %v", reply, err)
	}
}

// eventually waits for something that takes a moment.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// startResolver answers every A with 198.51.100.7 on the loopback, by UDP and TCP,
// and gives its address.
func startResolver(t testing.TB) string {
	t.Helper()
	const at = "127.0.0.1:53"
	mux := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(198, 51, 100, 7)}}
		}
		_ = w.WriteMsg(m)
	})
	for _, network := range []string{"udp", "tcp"} {
		started, ended := make(chan struct{}), make(chan error, 1)
		s := &dns.Server{Addr: at, Net: network, Handler: mux, NotifyStartedFunc: func() { close(started) }}
		go func() { ended <- s.ListenAndServe() }()
		select {
		case <-started:
		case err := <-ended:
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.ShutdownContext(context.Background()); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return netip.MustParseAddrPort(at).Addr().String()
}

// TestServiceThatCanNotStart: a program that has the DNS port of all addresses is
// named; VMs start all the same, and once it is gone the service comes.
func TestServiceThatCanNotStart(t *testing.T) {
	stranger, err := net.Listen("tcp4", "0.0.0.0:53")
	if err != nil {
		t.Fatal(err)
	}
	f := newFabric(t)
	e := nic(1, 2)
	want := Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{e}}}}
	if err := f.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if p := f.Problems(); len(p) != 1 || !problem.HasCode(p["net1"], "network.service_failed") {
		t.Errorf("problems: %v", p)
	}
	if _, _, err := f.Tap(t.Context(), e.AllocationID, 0, TapOptions{}); err != nil {
		t.Error(err)
	}
	if err := stranger.Close(); err != nil {
		t.Fatal(err)
	}
	apply(t, f, want)
}

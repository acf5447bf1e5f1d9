package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// me is who asks in these tests.
var me = netip.MustParseAddr("127.0.0.1")

func testZone() *Zone {
	return NewZone("blue", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}, []Host{
		{Names: []string{"web", "www"}, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2"), netip.MustParseAddr("fe80::1")}, Local: true},
		{Names: []string{"me"}, Addresses: []netip.Addr{me}, Local: true},
	})
}

// freePort is one that nobody has.
func freePort(t testing.TB) int {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// server is a Server on the loopback; its resolvers are these addresses, which are
// asked on a port of the test's.
func server(t testing.TB, port int, resolvers ...string) (*Server, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	text := "search example.org\n"
	for _, r := range resolvers {
		text += "nameserver " + r + "\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	own := func(ip netip.Addr) bool { return ip == netip.MustParseAddr("10.1.0.1") }
	c := Config{Addresses: []netip.Addr{me}, Port: freePort(t), Zone: testZone(), Resolvers: &Resolvers{File: file, Own: own, port: strconv.Itoa(port)}}
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, net.JoinHostPort(me.String(), strconv.Itoa(c.Port))
}

// upstream is a resolver on an address of the loopback and a port.
func upstream(t testing.TB, ip string, port int, do dns.HandlerFunc) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		started, ended := make(chan struct{}), make(chan error, 1)
		s := &dns.Server{Addr: net.JoinHostPort(ip, strconv.Itoa(port)), Net: network, Handler: do, NotifyStartedFunc: func() { close(started) }}
		go func() { ended <- s.ListenAndServe() }()
		select {
		case <-started:
		case err := <-ended:
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = s.ShutdownContext(context.Background())
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func address(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

func exchangeOn(t testing.TB, network, at string, q *dns.Msg) (*dns.Msg, error) {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 8 * time.Second}
	reply, _, err := c.Exchange(q, at)
	return reply, err
}

// TestAnswersOfTheZone: what is answered, what passed on, what dropped.
func TestAnswersOfTheZone(t *testing.T) {
	z := testZone()
	if z.Domain() != "blue.blixard" {
		t.Errorf("domain %q", z.Domain())
	}
	for _, tc := range []struct {
		name string
		kind uint16
		want string
	}{
		{"web.blue.blixard.", dns.TypeA, "10.1.0.2"},
		{"WWW.Blue.blixard.", dns.TypeAAAA, "fd00:1::2"},
		{"web.blue.blixard.", dns.TypeANY, "10.1.0.2 fd00:1::2"},
		{"web.", dns.TypeA, "10.1.0.2"},
		{"nobody.", dns.TypeAAAA, "NXDOMAIN"},
		{"org.", dns.TypeNS, "forward"},
		{".", dns.TypeNS, "forward"},
		{"blue.blixard.", dns.TypeSOA, "gateway.blue.blixard."},
		{"blue.blixard.", dns.TypeA, "NOERROR"},
		{"blixard.", dns.TypeA, "NOERROR"},
		{"web.red.blixard.", dns.TypeA, "NXDOMAIN"},
		{"red.blixard.", dns.TypeSOA, "NXDOMAIN"},
		{"2.0.1.10.in-addr.arpa.", dns.TypePTR, "web.blue.blixard."},
		{"2.0.1.10.in-addr.arpa.", dns.TypeA, "NOERROR"},
		{"3.0.1.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"1.0.1.10.in-addr.arpa.x.", dns.TypePTR, "forward"},
		{"0.1.10.in-addr.arpa.", dns.TypePTR, "forward"},
		{"300.0.1.10.in-addr.arpa.", dns.TypePTR, "forward"},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "forward"},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "forward"},
		{"example.org.", dns.TypeA, "forward"},
		{"blixard.org.", dns.TypeA, "forward"},
	} {
		q := new(dns.Msg).SetQuestion(tc.name, tc.kind)
		packet, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		reply, forward := z.Answer(packet, dns.MaxMsgSize)
		got := "forward"
		if !forward {
			var m dns.Msg
			if err := m.Unpack(reply); err != nil {
				t.Fatal(err)
			}
			got = dns.RcodeToString[m.Rcode]
			if len(m.Answer) > 0 {
				got = ""
			}
			for _, rr := range m.Answer {
				switch rr := rr.(type) {
				case *dns.A:
					got += " " + rr.A.String()
				case *dns.AAAA:
					got += " " + rr.AAAA.String()
				case *dns.PTR:
					got += " " + rr.Ptr
				case *dns.SOA:
					got += " " + rr.Ns
				}
			}
			if len(m.Answer) == 0 && len(m.Ns) != 1 || !m.Authoritative {
				t.Errorf("%s: no SOA, or not authoritative: %v", tc.name, &m)
			}
		}
		if got = strings.TrimSpace(got); got != tc.want {
			t.Errorf("%s %s: %q, want %q", tc.name, dns.TypeToString[tc.kind], got, tc.want)
		}
	}
	arpa, err := dns.ReverseAddr("fd00:1::2")
	if err != nil {
		t.Fatal(err)
	}
	packet, _ := new(dns.Msg).SetQuestion(arpa, dns.TypePTR).Pack()
	var m dns.Msg
	if reply, _ := z.Answer(packet, 512); m.Unpack(reply) != nil || len(m.Answer) != 1 {
		t.Errorf("reverse of IPv6: %v", &m)
	}
}

// TestOddQueries: those that break a rule get the answer that says so, or none.
func TestOddQueries(t *testing.T) {
	z := testZone()
	for name, tc := range map[string]struct {
		change func(q *dns.Msg)
		want   int // -1: none
	}{
		"a response":       {func(q *dns.Msg) { q.Response = true }, -1},
		"another opcode":   {func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"two questions":    {func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }, dns.RcodeFormatError},
		"no question":      {func(q *dns.Msg) { q.Question = nil }, dns.RcodeFormatError},
		"another class":    {func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"a newer EDNS":     {func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"EDNS of no bytes": {func(q *dns.Msg) { q.SetEdns0(0, false) }, dns.RcodeSuccess},
	} {
		q := address("web.blue.blixard.")
		tc.change(q)
		packet, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		reply, forward := z.Answer(packet, 512)
		var m dns.Msg
		switch {
		case forward:
			t.Errorf("%s: passed on", name)
		case tc.want < 0 && reply != nil:
			t.Errorf("%s: answered", name)
		case tc.want >= 0 && (m.Unpack(reply) != nil || m.Rcode != tc.want):
			t.Errorf("%s: %v", name, &m)
		}
	}
	for _, bad := range []string{"", "x", "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"} {
		if reply, forward := z.Answer([]byte(bad), 512); reply != nil || forward {
			t.Errorf("%q: %q %v", bad, reply, forward)
		}
	}
	// More addresses than fit by UDP are cut, and said to be.
	var hosts []Host
	for i := range 100 {
		hosts = append(hosts, Host{Names: []string{"all"}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})}})
	}
	packet, _ := address("all.blue.blixard.").Pack()
	var m dns.Msg
	if reply, _ := NewZone("blue", nil, hosts).Answer(packet, 512); m.Unpack(reply) != nil || !m.Truncated || len(reply) > 512 {
		t.Errorf("%d bytes, cut: %v", len(reply), m.Truncated)
	}
}

// TestRestIsPassedOn: to the host's resolvers, in turn, and never to ourselves.
func TestRestIsPassedOn(t *testing.T) {
	port := freePort(t)
	var mu sync.Mutex
	var asked []string
	upstream(t, "127.0.0.3", port, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		asked = append(asked, q.Question[0].Name)
		mu.Unlock()
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 7)}}
		if q.Question[0].Name == "lie.example." {
			// First another's answer, as one who guesses would send.
			other := m.Copy()
			other.Id++
			_ = w.WriteMsg(other)
			other = m.Copy()
			other.Question[0].Name = "other.example."
			_ = w.WriteMsg(other)
		}
		_ = w.WriteMsg(m)
	})
	// Ourselves, one that is dead, and one that answers.
	_, at := server(t, port, "10.1.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
	for _, network := range []string{"udp", "tcp"} {
		q := address("example.org.")
		reply, err := exchangeOn(t, network, at, q)
		if err != nil || len(reply.Answer) != 1 || reply.Id != q.Id {
			t.Errorf("%s: %v %v", network, reply, err)
		}
	}
	if reply, err := exchangeOn(t, "udp", at, address("lie.example.")); err != nil || len(reply.Answer) != 1 {
		t.Errorf("beside another's answer: %v %v", reply, err)
	}
	if reply, err := exchangeOn(t, "tcp", at, address("lie.example.")); err != nil || reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("beside another's answer by TCP: %v %v", reply, err)
	}
	for _, own := range []string{"web.blue.blixard.", "web.red.blixard.", "secret.", "9.0.1.10.in-addr.arpa."} {
		if _, err := exchangeOn(t, "udp", at, address(own)); err != nil {
			t.Error(own, err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if slices.ContainsFunc(asked, func(n string) bool { return n != "example.org." && n != "lie.example." }) {
		t.Errorf("asked of the host's resolvers: %v", asked)
	}
}

// TestNoResolverIsSaid: without an answer a guest hears so, in the time it waits.
func TestNoResolverIsSaid(t *testing.T) {
	for name, resolvers := range map[string][]string{"none": nil, "silent": {"127.0.0.5"}} {
		port := freePort(t)
		if name == "silent" {
			c, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.5:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		s, at := server(t, port, resolvers...)
		begin := time.Now()
		for _, network := range []string{"udp", "tcp"} {
			if reply, err := exchangeOn(t, network, at, address("example.org.")); err != nil || reply.Rcode != dns.RcodeServerFailure {
				t.Errorf("%s %s: %v %v", name, network, reply, err)
			}
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
		s.config.Resolvers.File += ".none"
		s.config.Resolvers.read = time.Time{}
		if got := s.config.Resolvers.addresses(); got != nil {
			t.Errorf("without a file: %v", got)
		}
	}
}

// TestLimitsOfAGuest: strangers get nothing, a guest not more than its share.
func TestLimitsOfAGuest(t *testing.T) {
	port := freePort(t)
	release := make(chan struct{})
	upstream(t, "127.0.0.6", port, func(w dns.ResponseWriter, q *dns.Msg) {
		<-release
		_ = w.WriteMsg(new(dns.Msg).SetReply(q))
	})
	s, at := server(t, port, "127.0.0.6")
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range forwardsGuestMax + 1 {
		packet, _ := address(fmt.Sprintf("n%d.example.", i)).Pack()
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 1500)
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	n, err := conn.Read(buf)
	var m dns.Msg
	if err != nil || m.Unpack(buf[:n]) != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("the query beyond the share: %v %v", &m, err)
	}
	close(release)

	// Connections.
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	refused := 0
	for range connsGuestMax + 4 {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		packet, _ := address("web.").Pack()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if writeMessage(c, packet, true) != nil {
			refused++
		} else if _, err := readMessage(c, buf, true); err != nil {
			refused++
		}
	}
	if refused != 4 {
		t.Errorf("%d connections beyond the share were refused, want 4", refused)
	}

	// More than a burst at once.
	admitted := 0
	for range 3 * queriesBurst {
		if s.admit(me) != nil {
			admitted++
		}
	}
	if admitted < queriesBurst/2 || admitted > 2*queriesBurst {
		t.Errorf("%d queries at once were admitted", admitted)
	}
	if s.admit(netip.MustParseAddr("127.0.0.9")) != nil {
		t.Error("a stranger was admitted")
	}
	// A guest that is gone is forgotten.
	s.SetZone(NewZone("blue", nil, nil))
	if s.admit(me) != nil {
		t.Error("a guest that is gone was admitted")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.guests) > 1 {
		t.Errorf("%d guests are kept", len(s.guests))
	}
}

func TestListenSaysWhy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(Config{Device: "lo", Addresses: []netip.Addr{me}, Port: l.Addr().(*net.TCPAddr).Port, Zone: testZone()}); err == nil || !strings.Contains(err.Error(), "answer DNS on lo") {
		t.Errorf("a port that is taken: %v", err)
	}
	if _, err := Listen(Config{Device: "nothere", Addresses: []netip.Addr{me}, Zone: testZone()}); err == nil {
		t.Error("a device that is not there")
	}
}

// FuzzAnswer: no packet of a guest breaks anything, and each answer is one to it.
func FuzzAnswer(f *testing.F) {
	z := testZone()
	for _, name := range []string{"web.blue.blixard.", "2.0.1.10.in-addr.arpa.", "example.org.", "web."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeANY, dns.TypePTR, dns.TypeSOA} {
			q := new(dns.Msg).SetQuestion(name, kind)
			q.SetEdns0(600, true)
			packet, _ := q.Pack()
			f.Add(packet)
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		size := sizeOf(packet)
		reply, forward := z.Answer(packet, size)
		if forward && reply != nil {
			t.Error("answered and passed on")
		}
		if reply == nil {
			return
		}
		var m dns.Msg
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("%x is answered with %x: %v", packet, reply, err)
		}
		if !m.Response || reply[0] != packet[0] || reply[1] != packet[1] || len(reply) > size {
			t.Errorf("%x is answered with %x", packet, reply)
		}
		_ = refusal(packet, dns.RcodeServerFailure)
		_ = answers(packet, reply)
	})
}

// BenchmarkOwnName measures an answer by UDP, of 1,000 names; p99 is the time that
// 99 of 100 answers keep.
func BenchmarkOwnName(b *testing.B) {
	var hosts []Host
	for i := range 1000 {
		hosts = append(hosts, Host{Names: []string{fmt.Sprintf("vm%d", i)}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}})
	}
	hosts = append(hosts, Host{Names: []string{"me"}, Addresses: []netip.Addr{me}, Local: true})
	s, at := server(b, 1)
	s.SetZone(NewZone("blue", nil, hosts))
	conn, err := net.Dial("udp", at)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 1500)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		s.mu.Lock()
		clear(s.guests) // the bound on queries is not what is measured
		s.mu.Unlock()
		packet, _ := address(fmt.Sprintf("vm%d.blue.blixard.", i%1000)).Pack()
		begin := time.Now()
		if _, err := conn.Write(packet); err != nil {
			b.Fatal(err)
		}
		_ = conn.SetReadDeadline(begin.Add(time.Second))
		if _, err := conn.Read(buf); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

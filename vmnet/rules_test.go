package vmnet

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestRulesDecide: what goes out of a network and into it, by its rules.
func TestRulesDecide(t *testing.T) {
	for _, frames := range []string{"0", "1"} {
		t.Run("frames shown to the IP rules="+frames, func(t *testing.T) {
			setBridgeCalls(t, frames)
			newOutside(t)
			ip(t, "", "addr", "add", "169.254.169.254/32", "dev", "lo")
			t.Cleanup(func() { ip(t, "", "addr", "del", "169.254.169.254/32", "dev", "lo") })
			ip(t, "outside", "addr", "add", "192.0.2.3/24", "dev", "eth0")
			ip(t, "outside", "addr", "add", "198.51.100.254/32", "dev", "lo")
			ip(t, "", "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
			rule := func(action, cidr string, protocol blixardv1.Protocol_Enum, first, last uint32) *blixardv1.NetworkRule {
				return &blixardv1.NetworkRule{Action: action, Cidr: cidr, Protocol: protocol, PortFirst: first, PortLast: last}
			}
			const tcp, udp, anyProtocol = blixardv1.Protocol_tcp, blixardv1.Protocol_udp, blixardv1.Protocol_unspecified
			rules := map[int]*blixardv1.NetworkRules{
				1: nil,
				2: {Internal: true},
				3: {Isolated: true},
				4: {Egress: []*blixardv1.NetworkRule{
					rule("deny", "192.0.2.2/32", tcp, 80, 0), rule("allow", "192.0.2.0/24", anyProtocol, 0, 0), rule("allow", "2001:db8::/64", udp, 80, 90),
				}},
				5: {Ingress: []*blixardv1.NetworkRule{rule("deny", "192.0.2.3/32", anyProtocol, 0, 0), rule("allow", "192.0.2.0/24", tcp, 1, 100)}},
			}
			f := newFabric(t)
			var want Desired
			for n := 1; n <= 5; n++ {
				want.Networks = append(want.Networks, Network{Spec: newNetwork(n, withRules(rules[n])), Local: []Endpoint{nic(n, 2), nic(n, 3)}})
				for _, p := range []blixardv1.Protocol_Enum{tcp, udp} {
					e := nic(n, 2)
					want.Ports = append(want.Ports, Port{HostPort: uint16(8000 + n), GuestPort: 80, IPv4: e.IPv4, IPv6: e.IPv6, Protocol: p})
				}
			}
			apply(t, f, want)
			guest := func(n, k int) string { return fmt.Sprintf("g%d%d", n, k) }
			for n := 1; n <= 5; n++ {
				for k := 2; k <= 3; k++ {
					addGuest(t, f, guest(n, k), nic(n, k))
					echo(t, guest(n, k), guest(n, k), ":80")
				}
			}
			echo(t, "outside", "outside", ":80")
			echo(t, "", "host", "0.0.0.0:9")
			var asking sync.WaitGroup
			for _, tc := range []struct {
				from, protocol, to string
				passes             bool
			}{
				// Between networks nothing, but by published ports.
				{"g12", "tcp", "10.3.0.2:80", false},
				{"g12", "udp", "[fd00:3::2]:80", false},
				{"g12", "tcp", "10.5.0.2:80", false},
				{"g12", "tcp", "192.0.2.1:8003", true},
				{"g12", "tcp", "10.3.0.1:8003", false},
				// The node's own.
				{"g12", "tcp", "192.0.2.1:9", false},
				{"g12", "udp", "192.0.2.1:9", false},
				{"g12", "tcp", "169.254.169.254:9", false},
				{"g12", "tcp", "10.2.0.1:9", false},
				{"g12", "udp", "127.0.0.1:9", false},
				// Internal.
				{"g22", "tcp", "10.2.0.3:80", true},
				{"g22", "tcp", "192.0.2.2:80", false},
				{"g22", "udp", "[2001:db8::2]:80", false},
				{"outside", "tcp", "192.0.2.1:8002", false},
				{"g22", "tcp", "192.0.2.1:8001", false},
				{"g22", "tcp", "192.0.2.1:8002", false},
				// Isolated: to the outside, not to each other.
				{"g32", "tcp", "10.3.0.3:80", false},
				{"g32", "udp", "[fd00:3::3]:80", false},
				{"g32", "tcp", "192.0.2.2:80", true},
				{"outside", "udp", "192.0.2.1:8003", true},
				// Egress.
				{"g42", "tcp", "192.0.2.2:80", false},
				{"g42", "udp", "192.0.2.2:80", true},
				{"g42", "tcp", "192.0.2.3:80", true},
				{"g42", "tcp", "198.51.100.254:80", false},
				{"g42", "udp", "[2001:db8::2]:80", true},
				{"g42", "tcp", "[2001:db8::2]:80", false},
				{"g42", "tcp", "10.4.0.3:80", true},
				{"outside", "tcp", "192.0.2.1:8004", true},
				{"g12", "tcp", "198.51.100.254:80", true},
				// Ingress.
				{"outside", "tcp", "192.0.2.1:8005", true},
				{"outside", "udp", "192.0.2.1:8005", false},
				{"outside", "tcp", "[2001:db8::1]:8005", false},
				{"g52", "udp", "192.0.2.2:80", true},
				// Without rules: published ports alone.
				{"outside", "tcp", "[2001:db8::1]:8001", true},
				{"outside", "udp", "192.0.2.1:8001", true},
			} {
				asking.Go(func() {
					if got := ask(t, tc.from, tc.protocol, tc.to); (got != "") != tc.passes {
						t.Errorf("%s from %s to %s: %q, passes should be %v", tc.protocol, tc.from, tc.to, got, tc.passes)
					}
				})
			}
			asking.Wait()
			// Not even one who routes to the node's networks gets in without a published
			// port.
			ip(t, "outside", "route", "add", "10.0.0.0/8", "via", "192.0.2.1")
			if got := ask(t, "outside", "tcp", "10.1.0.2:80"); got != "" {
				t.Errorf("the outside reaches a guest by its own address: %q", got)
			}
			if got := ask(t, "outside", "tcp", "10.1.0.1:53"); got != "" {
				t.Errorf("the outside reaches the DNS of guests: %q", got)
			}
			forgedLoopback(t, f)
		})
	}
}

// forgedLoopback: a packet for 127.0.0.1 from the outside or a guest reaches nothing,
// though route_localnet is on.
func forgedLoopback(t *testing.T, f *Fabric) {
	t.Helper()
	ip(t, "outside", "route", "add", "127.0.0.1/32", "via", "192.0.2.1", "table", "9")
	ip(t, "outside", "rule", "add", "to", "127.0.0.1/32", "lookup", "9", "pref", "0")
	_ = withinErr("outside", func() error {
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if n, err := c.Read(make([]byte, 10)); err == nil && n > 0 {
				t.Error("127.0.0.1 answers the outside")
			}
		}
		return nil
	})
}

// setBridgeCalls sets whether frames between the ports of bridges are shown to the
// rules for IP, as container engines want it.
func setBridgeCalls(t testing.TB, value string) {
	t.Helper()
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		path := "net/bridge/bridge-nf-call-" + name
		was := readSysctl(path)
		if was == "" {
			return // a kernel without
		}
		if err := writeSysctl(path, value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := writeSysctl(path, was); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRateIsBounded: what a VM sends keeps to the network's rate, what it receives
// is not bounded.
func TestRateIsBounded(t *testing.T) {
	const mbit = 40
	f := newFabric(t)
	a, b := nic(1, 2), nic(1, 3)
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1, withRules(&blixardv1.NetworkRules{RateMbit: mbit})), Local: []Endpoint{a, b}}}})
	name, _, err := f.Tap(t.Context(), a.AllocationID, 0, TapOptions{})
	if err != nil {
		t.Fatal(err)
	}
	from := openTap(t, name)
	if name, _, err = f.Tap(t.Context(), b.AllocationID, 0, TapOptions{}); err != nil {
		t.Fatal(err)
	}
	to := openTap(t, name)
	mark := []byte(strings.Repeat("rate", 250))
	frame := ether(b.MAC, a.MAC, 0x800, ip4("10.1.0.2", "10.1.0.3", 17, udp(7, 7, mark)))
	// sent gives what arrives while so much time goes by, in megabits a second.
	sent := func(span time.Duration) float64 {
		before, begin := to.heard(mark[:100]), time.Now()
		for time.Since(begin) < span {
			from.send(t, frame)
		}
		return float64((to.heard(mark[:100])-before)*len(frame)*8) / 1e6 / time.Since(begin).Seconds()
	}
	first := sent(1500 * time.Millisecond)
	steady := sent(2 * time.Second)
	t.Logf("bound %d Mbit/s: %.1f at first, %.1f afterwards", mbit, first, steady)
	if steady > mbit*1.05 || steady < mbit*0.95 {
		t.Errorf("%.1f Mbit/s pass, the bound is %d", steady, mbit)
	}
}

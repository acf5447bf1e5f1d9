package vmnet

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestNetworkSpansNodes: two nodes, one network. VMs reach each other with packets
// of full size, every node answers on a published port of either, and nobody on
// the underlay gets in.
func TestNetworkSpansNodes(t *testing.T) {
	for _, tc := range []struct {
		name, one, two string
		mtu            int
	}{
		{"IPv4", "192.0.2.1", "192.0.2.2", 1450},
		{"IPv6", "2001:db8::1", "2001:db8::2", 1430},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newOutside(t)
			f := newFabric(t)
			other := newRemoteHost(t, "outside", Config{StateDir: t.TempDir(), Owner: "node-2", ResolvConf: os.DevNull})
			a, b := nic(1, 2), nic(1, 3)
			ports := []Port{{HostPort: 8080, GuestPort: 80, IPv4: a.IPv4, IPv6: a.IPv6}, {HostPort: 8081, Node: netip.MustParseAddr(tc.two)}}
			apply(t, f, Desired{
				Underlay: netip.MustParseAddr(tc.one), Ports: ports,
				Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{a}, Remote: []Endpoint{on(b, tc.two)}}},
			})
			remote := Desired{
				Underlay: netip.MustParseAddr(tc.two),
				Ports:    []Port{{HostPort: 8080, Node: netip.MustParseAddr(tc.one)}, {HostPort: 8081, GuestPort: 80, IPv4: b.IPv4, IPv6: b.IPv6}},
				Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{b}, Remote: []Endpoint{on(a, tc.one)}}},
			}
			if p := other.ask(order{Do: "apply", Desired: remote}).Problems; len(p) > 0 {
				t.Fatal(p)
			}
			addGuest(t, f, "a", a)
			newNamespace(t, "b")
			tap := other.ask(order{Do: "tap", Guest: "b", Endpoint: b})
			configureGuest(t, "b", b, tap.MTU)
			if tap.MTU != tc.mtu {
				t.Errorf("MTU %d, want %d", tap.MTU, tc.mtu)
			}
			echo(t, "a", "vm-a", ":80")
			echo(t, "b", "vm-b", ":80")
			two, one := netip.AddrPortFrom(netip.MustParseAddr(tc.two), 8080).String(), netip.AddrPortFrom(netip.MustParseAddr(tc.one), 8081).String()
			for _, ask1 := range []struct{ from, to, want string }{
				{"a", "10.1.0.3:80", "vm-b 10.1.0.2:"},
				{"b", "[fd00:1::2]:80", "vm-a [fd00:1::3]:"},
				{"", two, "vm-a "},
				{"outside", two, "vm-a "},
				{"outside", one, "vm-b "},
				{"", "192.0.2.1:8080", "vm-a "},
			} {
				if got := ask(t, ask1.from, "tcp", ask1.to); !strings.HasPrefix(got, ask1.want) {
					t.Errorf("from %q to %s: got %q, want %q", ask1.from, ask1.to, got, ask1.want)
				}
			}
			if tc.name == "IPv4" {
				if got := ask(t, "", "tcp", "127.0.0.1:8081"); !strings.HasPrefix(got, "vm-b ") {
					t.Errorf("127.0.0.1 to the other node: got %q", got)
				}
			}
			if !ping(t, "a", "10.1.0.3", tc.mtu-28) || ping(t, "a", "10.1.0.3", tc.mtu-27) {
				t.Error("packets of full size don't pass, or larger ones do")
			}
			if !ping(t, "b", "fd00:1::2", tc.mtu-48) {
				t.Error("no IPv6 packets of full size")
			}
			if t.Failed() {
				t.Log(run(t, "bridge", "-d", "link"), run(t, "bridge", "fdb"), run(t, "ip", "neigh"), run(t, "ip", "a"))
			}
			other.ask(order{Do: "destroy"})
		})
	}
}

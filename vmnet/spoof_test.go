package vmnet

import (
	"encoding/binary"
	"fmt"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

const (
	everyone  = "ff:ff:ff:ff:ff:ff"
	allHosts6 = "33:33:00:00:00:01"
)

// spoofing is one frame that guest a sends.
type spoofing struct {
	name  string
	frame func(mark []byte) []byte
	// atPeer and atHost: the other guest or the node may hear it.
	atPeer, atHost bool
}

// TestNoGuestIsAnother: what a guest sends under another's name reaches neither its
// neighbours nor the node, in whatever wrapping; what is its own does.
func TestNoGuestIsAnother(t *testing.T) {
	f := newFabric(t)
	a, b, c := nic(1, 2), nic(1, 3), nic(1, 4)
	spec := newNetwork(1)
	apply(t, f, Desired{Networks: []Network{{Spec: spec, Local: []Endpoint{a, b, c}}}})
	var wires []*wire
	for _, e := range []Endpoint{a, b, c} {
		name, _, err := f.Tap(t.Context(), e.AllocationID, 0, TapOptions{})
		if err != nil {
			t.Fatal(err)
		}
		wires = append(wires, openTap(t, name))
	}
	host := openLink(t, f.planner.bridge(spec.GetId()))
	gw := gatewayMAC(spec.GetId())
	// send gives whether a peer and the node heard a frame.
	send := func(t *testing.T, i int, s spoofing) (peer, node bool) {
		mark, after := fmt.Appendf(nil, "mark-%04d", i), fmt.Appendf(nil, "after-%04d", i)
		frame := s.frame(mark)
		if frame[12] == 0x86 && frame[13] == 0xdd {
			// Bridges cut what is behind an IPv6 packet: the flow label is its mark.
			binary.BigEndian.PutUint32(frame[14:], 0x600a5000+uint32(i))
			mark = frame[12:18]
		}
		wires[0].send(t, frame)
		// A frame that is right, sent after: when it is there, the other is too, or
		// never will be.
		wires[0].send(t, ether(everyone, a.MAC, 0x800, ip4("10.1.0.2", "255.255.255.255", 17, udp(9, 9, after))))
		eventually(t, "the frame after", func() bool { return wires[1].heard(after) > 0 && wires[2].heard(after) > 0 && host.heard(after) > 0 })
		return wires[1].heard(mark)+wires[2].heard(mark) > 0, host.heard(mark) > 0
	}
	all := spoofings(a, b, c, gw)
	for i, s := range all {
		t.Run(s.name, func(t *testing.T) {
			if peer, node := send(t, i, s); peer != s.atPeer || node != s.atHost {
				t.Errorf("heard by a peer: %v, want %v; by the node: %v, want %v", peer, s.atPeer, node, s.atHost)
			}
		})
	}
	// Without the rules most of it is heard: the test hears what crosses.
	for _, chain := range []string{"prerouting", "forward"} {
		run(t, "nft", "flush", "chain", "bridge", f.planner.table(), chain)
	}
	var silent []string
	for i, s := range all {
		if peer, node := send(t, 1000+i, s); !peer && !node {
			silent = append(silent, s.name)
		}
	}
	t.Logf("not heard without rules either: %q", silent)
	if len(silent) > len(all)/5 {
		t.Errorf("%d of %d frames are not heard even without the rules", len(silent), len(all))
	}
}

// spoofings are what a guest may try and what it may do.
func spoofings(a, b, c Endpoint, gw string) []spoofing {
	a4, c4, a6, c6 := a.IPv4.String(), c.IPv4.String(), a.IPv6.String(), c.IPv6.String()
	aLocal, cLocal := linkLocal(a.MAC).String(), linkLocal(c.MAC).String()
	b4, b6 := b.IPv4.String(), b.IPv6.String()
	const none6, all6, routers6 = "::", "ff02::1", "ff02::2"
	slla := func(m string) []byte { return join([]byte{1, 1}, mac(m)) }
	tlla := func(m string) []byte { return join([]byte{2, 1}, mac(m)) }
	solicit := func(src, dst, target string, options ...[]byte) []byte {
		return icmp6(src, dst, 135, join([]byte{0, 0, 0, 0}, addr(target), join(options...)))
	}
	advert := func(src, target string, options ...[]byte) []byte {
		return icmp6(src, all6, 136, join([]byte{0x20, 0, 0, 0}, addr(target), join(options...)))
	}
	// of gives a frame with the mark at its end, behind what length fields cover.
	of := func(dst, src string, kind uint16, payload []byte) func([]byte) []byte {
		return func(mark []byte) []byte { return ether(dst, src, kind, join(payload, mark)) }
	}
	udp6 := func(src, dst string, from, to uint16) func(mark []byte) []byte {
		return func(mark []byte) []byte { return ip6(src, dst, 17, udp(from, to, mark)) }
	}
	in := func(dst, src string, kind uint16, payload func([]byte) []byte) func([]byte) []byte {
		return func(mark []byte) []byte { return ether(dst, src, kind, payload(mark)) }
	}
	udp4 := func(src, dst string, from, to uint16) func(mark []byte) []byte {
		return func(mark []byte) []byte { return ip4(src, dst, 17, udp(from, to, mark)) }
	}
	vlan := func(inner uint16, payload []byte) []byte {
		return join([]byte{0, 5, byte(inner >> 8), byte(inner)}, payload)
	}
	hopByHop := []byte{58, 0, 5, 2, 0, 0, 1, 0}
	destination := []byte{58, 0, 1, 4, 0, 0, 0, 0}
	fragment := func(next byte, offset uint16, more byte) []byte {
		return []byte{next, 0, byte(offset >> 8), byte(offset)&0xf8 | more, 0, 0, 0, 9}
	}
	ra := icmp6(aLocal, all6, 134, make([]byte, 12))
	return []spoofing{
		// What is its own.
		{"own UDP to a peer", in(b.MAC, a.MAC, 0x800, udp4(a4, b4, 7, 7)), true, false},
		{"own UDP to the node", in(gw, a.MAC, 0x800, udp4(a4, "10.1.0.1", 7, 7)), false, true},
		{"own UDP by IPv6", in(b.MAC, a.MAC, 0x86dd, udp6(a6, b6, 7, 7)), true, false},
		{"own ARP request", of(everyone, a.MAC, 0x806, arp(1, a.MAC, a4, "00:00:00:00:00:00", b4)), true, true},
		{"own ARP reply", of(b.MAC, a.MAC, 0x806, arp(2, a.MAC, a4, b.MAC, b4)), true, false},
		{"ARP probe for the own address", of(everyone, a.MAC, 0x806, arp(1, a.MAC, "0.0.0.0", "00:00:00:00:00:00", a4)), true, true},
		{"own solicitation", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, solicit(a6, all6, b6, slla(a.MAC)))), true, true},
		{"own solicitation from link-local", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 58, solicit(aLocal, all6, b6, slla(a.MAC)))), true, true},
		{"own address detection", of(allHosts6, a.MAC, 0x86dd, ip6(none6, all6, 58, solicit(none6, all6, a6))), true, true},
		{"own address detection with a nonce", of(allHosts6, a.MAC, 0x86dd, ip6(none6, all6, 58, solicit(none6, all6, a6, []byte{14, 1, 1, 2, 3, 4, 5, 6}))), true, true},
		{"own advertisement", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, advert(a6, a6, tlla(a.MAC)))), true, true},
		{"own listener report", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 0, join(hopByHop, icmp6(aLocal, all6, 143, make([]byte, 4))))), true, true},
		{"router solicitation is for the node alone", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, routers6, 58, icmp6(aLocal, routers6, 133, join(make([]byte, 4), slla(a.MAC))))), false, true},
		{"own fragment of UDP", of(b.MAC, a.MAC, 0x86dd, ip6(a6, b6, 44, join(fragment(17, 0, 0), udp(7, 7, make([]byte, 8))))), true, false},
		{"DHCP request is for the node alone", in(everyone, a.MAC, 0x800, udp4("0.0.0.0", "255.255.255.255", 68, 67)), false, true},
		// Another's MAC.
		{"peer's MAC", in(b.MAC, c.MAC, 0x800, udp4(c4, b4, 7, 7)), false, false},
		{"peer's MAC with the own IP", in(b.MAC, c.MAC, 0x800, udp4(a4, b4, 7, 7)), false, false},
		{"gateway's MAC", in(b.MAC, gw, 0x800, udp4("10.1.0.1", b4, 7, 7)), false, false},
		{"random MAC", in(b.MAC, "02:00:00:00:00:99", 0x800, udp4(a4, b4, 7, 7)), false, false},
		// Another's IP.
		{"peer's IP", in(b.MAC, a.MAC, 0x800, udp4(c4, b4, 7, 7)), false, false},
		{"peer's IP to the node", in(gw, a.MAC, 0x800, udp4(c4, "10.1.0.1", 7, 7)), false, false},
		{"gateway's IP", in(b.MAC, a.MAC, 0x800, udp4("10.1.0.1", b4, 7, 7)), false, false},
		{"outside's IP", in(gw, a.MAC, 0x800, udp4("198.51.100.1", "192.0.2.2", 7, 7)), false, false},
		{"loopback's IP", in(gw, a.MAC, 0x800, udp4("127.0.0.1", "10.1.0.1", 7, 7)), false, false},
		{"no IP", in(b.MAC, a.MAC, 0x800, udp4("0.0.0.0", b4, 7, 7)), false, false},
		{"no IP from the DHCP port to a peer", in(b.MAC, a.MAC, 0x800, udp4("0.0.0.0", b4, 68, 67)), false, false},
		{"peer's IPv6", in(b.MAC, a.MAC, 0x86dd, udp6(c6, b6, 7, 7)), false, false},
		{"peer's link-local IPv6", in(b.MAC, a.MAC, 0x86dd, udp6(cLocal, b6, 7, 7)), false, false},
		{"gateway's IPv6", in(b.MAC, a.MAC, 0x86dd, udp6("fd00:1::1", b6, 7, 7)), false, false},
		{"no IPv6", in(b.MAC, a.MAC, 0x86dd, udp6(none6, b6, 7, 7)), false, false},
		// ARP.
		{"ARP with the peer's IP", of(everyone, a.MAC, 0x806, arp(1, a.MAC, c4, "00:00:00:00:00:00", b4)), false, false},
		{"ARP reply with the peer's IP", of(b.MAC, a.MAC, 0x806, arp(2, a.MAC, c4, b.MAC, b4)), false, false},
		{"ARP reply with the gateway's IP", of(b.MAC, a.MAC, 0x806, arp(2, a.MAC, "10.1.0.1", b.MAC, b4)), false, false},
		{"ARP with the peer's MAC inside", of(everyone, a.MAC, 0x806, arp(1, c.MAC, c4, "00:00:00:00:00:00", b4)), false, false},
		{"ARP with the gateway's MAC and IP inside", of(everyone, a.MAC, 0x806, arp(2, gw, "10.1.0.1", everyone, b4)), false, false},
		{"ARP probe for the peer's IP", of(everyone, a.MAC, 0x806, arp(1, a.MAC, "0.0.0.0", "00:00:00:00:00:00", c4)), false, false},
		{"ARP of another hardware", of(everyone, a.MAC, 0x806, join([]byte{0, 6}, arp(1, a.MAC, a4, everyone, b4)[2:])), false, false},
		{"reverse ARP", of(everyone, a.MAC, 0x8035, arp(3, a.MAC, a4, everyone, b4)), false, false},
		{"ARP of another operation", of(everyone, a.MAC, 0x806, arp(9, a.MAC, a4, everyone, b4)), false, false},
		// Servers.
		{"DHCP server", in(everyone, a.MAC, 0x800, udp4(a4, "255.255.255.255", 67, 68)), false, false},
		{"DHCP server to one peer", in(b.MAC, a.MAC, 0x800, udp4(a4, b4, 67, 68)), false, false},
		{"DHCPv6 server", in(b.MAC, a.MAC, 0x86dd, udp6(aLocal, b6, 547, 546)), false, false},
		{"router advertisement", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 58, ra)), false, false},
		{"router advertisement from the own address", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, icmp6(a6, all6, 134, make([]byte, 12)))), false, false},
		{"redirect", of(b.MAC, a.MAC, 0x86dd, ip6(aLocal, b6, 58, icmp6(aLocal, b6, 137, make([]byte, 36)))), false, false},
		{"listener query", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 0, join(hopByHop, icmp6(aLocal, all6, 130, make([]byte, 20))))), false, false},
		// Neighbour discovery.
		{"advertisement of the peer's address", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, advert(a6, c6, tlla(a.MAC)))), false, false},
		{"advertisement of the gateway's address", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, advert(a6, "fd00:1::1", tlla(a.MAC)))), false, false},
		{"advertisement with the peer's MAC", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, advert(a6, a6, tlla(c.MAC)))), false, false},
		{"advertisement from the peer's address", of(allHosts6, a.MAC, 0x86dd, ip6(c6, all6, 58, advert(c6, c6, tlla(a.MAC)))), false, false},
		{"advertisement with a second MAC", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, advert(a6, a6, tlla(a.MAC), tlla(c.MAC)))), false, false},
		{"solicitation with the peer's MAC", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, solicit(a6, all6, b6, slla(c.MAC)))), false, false},
		{"solicitation with a second MAC", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 58, solicit(a6, all6, b6, slla(a.MAC), slla(c.MAC)))), false, false},
		{"solicitation from the peer's address", of(allHosts6, a.MAC, 0x86dd, ip6(c6, all6, 58, solicit(c6, all6, b6, slla(a.MAC)))), false, false},
		{"address detection for the peer's", of(allHosts6, a.MAC, 0x86dd, ip6(none6, all6, 58, solicit(none6, all6, c6))), false, false},
		{"address detection with a MAC", of(allHosts6, a.MAC, 0x86dd, ip6(none6, all6, 58, solicit(none6, all6, a6, slla(c.MAC)))), false, false},
		{"router solicitation with the peer's MAC", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, routers6, 58, icmp6(aLocal, routers6, 133, join(make([]byte, 4), slla(c.MAC))))), false, false},
		// Hidden behind headers.
		{"router advertisement behind hop-by-hop", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 0, join(hopByHop, ra))), false, false},
		{"router advertisement behind destination options", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 60, join(destination, ra))), false, false},
		{"router advertisement behind two headers", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 0, join([]byte{60, 0, 5, 2, 0, 0, 1, 0}, destination, ra))), false, false},
		{"router advertisement behind routing", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 43, join([]byte{58, 0, 0, 0, 0, 0, 0, 0}, ra))), false, false},
		{"router advertisement in an atomic fragment", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 44, join(fragment(58, 0, 0), ra))), false, false},
		{"router advertisement in a first fragment", of(allHosts6, a.MAC, 0x86dd, ip6(aLocal, all6, 44, join(fragment(58, 0, 1), ra))), false, false},
		{"advertisement in a fragment", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 44, join(fragment(58, 0, 0), advert(a6, c6, tlla(a.MAC))))), false, false},
		{"fragment that hides its protocol", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 44, join(fragment(60, 0, 1), destination, ra))), false, false},
		{"fragment with the peer's address", of(b.MAC, a.MAC, 0x86dd, ip6(c6, b6, 44, join(fragment(17, 0, 1), udp(7, 7, make([]byte, 8))))), false, false},
		{"advertisement behind destination options", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 60, join(destination, advert(a6, c6, tlla(a.MAC))))), false, false},
		{"DHCPv6 server behind destination options", of(b.MAC, a.MAC, 0x86dd, ip6(aLocal, b6, 60, join([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(547, 546, nil)))), false, false},
		{"listener report that is none", of(allHosts6, a.MAC, 0x86dd, ip6(a6, all6, 0, join(hopByHop, advert(a6, c6, tlla(a.MAC))))), false, false},
		// Other protocols of the link.
		{"VLAN tag", of(b.MAC, a.MAC, 0x8100, vlan(0x800, ip4(a4, b4, 17, udp(7, 7, nil)))), false, false},
		{"VLAN tag on ARP", of(everyone, a.MAC, 0x8100, vlan(0x806, arp(2, a.MAC, c4, everyone, b4))), false, false},
		{"priority tag", of(b.MAC, a.MAC, 0x8100, join([]byte{0x20, 0, 8, 0}, ip4(c4, b4, 17, udp(7, 7, nil)))), false, false},
		{"two VLAN tags", of(b.MAC, a.MAC, 0x88a8, vlan(0x8100, vlan(0x800, ip4(a4, b4, 17, udp(7, 7, nil))))), false, false},
		{"spanning tree", of("01:80:c2:00:00:00", a.MAC, 38, []byte{0x42, 0x42, 3, 0, 0, 0, 0, 0}), false, false},
		{"LLDP", of("01:80:c2:00:00:0e", a.MAC, 0x88cc, nil), false, false},
		{"pause", of("01:80:c2:00:00:01", a.MAC, 0x8808, nil), false, false},
		{"EAPOL", of(everyone, a.MAC, 0x888e, nil), false, false},
		{"MPLS", of(b.MAC, a.MAC, 0x8847, ip4(a4, b4, 17, nil)), false, false},
		{"a protocol nobody knows", of(everyone, a.MAC, 0x88b5, nil), false, false},
		{"802.3 with SNAP", of(everyone, a.MAC, 40, join([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, ip4(c4, b4, 17, nil))), false, false},
	}
}

// TestIsolatedVMsDoNotMeet: neither by the bridge nor by way of the gateway.
func TestIsolatedVMsDoNotMeet(t *testing.T) {
	f := newFabric(t)
	a, b := nic(1, 2), nic(1, 3)
	spec := newNetwork(1, withRules(&blixardv1.NetworkRules{Isolated: true}))
	apply(t, f, Desired{Networks: []Network{{Spec: spec, Local: []Endpoint{a, b}}}})
	wires := map[string]*wire{}
	for _, e := range []Endpoint{a, b} {
		name, _, err := f.Tap(t.Context(), e.AllocationID, 0, TapOptions{})
		if err != nil {
			t.Fatal(err)
		}
		wires[e.MAC] = openTap(t, name)
	}
	host := openLink(t, f.planner.bridge(spec.GetId()))
	direct, routed, after := []byte("mark-direct"), []byte("mark-routed"), []byte("mark-after")
	gw := gatewayMAC(spec.GetId())
	from := wires[a.MAC]
	from.send(t, ether(b.MAC, a.MAC, 0x800, ip4("10.1.0.2", "10.1.0.3", 17, udp(7, 7, direct))))
	from.send(t, ether(everyone, a.MAC, 0x800, ip4("10.1.0.2", "10.1.0.255", 17, udp(7, 7, direct))))
	from.send(t, ether(gw, a.MAC, 0x800, ip4("10.1.0.2", "10.1.0.3", 17, udp(7, 7, routed))))
	from.send(t, ether(gw, a.MAC, 0x800, ip4("10.1.0.2", "10.1.0.1", 17, udp(7, 7, after))))
	eventually(t, "the last frame at the node", func() bool { return host.heard(after) > 0 })
	if n := wires[b.MAC].heard([]byte("mark-")); n != 0 {
		t.Errorf("%d frames crossed", n)
	}
}

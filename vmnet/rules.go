package vmnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// tables are the owner's tables of nftables.
type tables []table

// table of a family.
type table struct {
	family, name, comment string
	sets                  []set
	chains                []chain
}

// set or map; kind is the type of its elements as nftables writes it, or "typeof"
// and what they are compared with.
type set struct {
	name, kind string
	isMap      bool
	elements   []string
}

// chain with its rules; hook is empty for chains that are jumped to.
type chain struct {
	name, hook string
	rules      []string
}

// bytesPerMbit: a million bits.
const bytesPerMbit = 125_000

// tables gives the rules for what is planned.
func (p planner) tables(out planned, host hostFacts, underlay netip.Addr) tables {
	comment := "blixard owner=" + p.owner
	return tables{
		{family: "bridge", name: p.table(), comment: comment, sets: bridgeSets(out), chains: append(bridgeChains(out), markBridged(host)...)},
		{family: "inet", name: p.table(), comment: comment, sets: inetSets(out), chains: p.inetChains(out, host, underlay)},
	}
}

// nicChain is the chain of a NIC whose rate is bounded.
func nicChain(l nicPlan) string { return "nic" + l.tap[strings.LastIndexByte(l.tap, '-'):] }

// bridgeSets are who may be what behind each port of our bridges.
func bridgeSets(out planned) []set {
	origin := set{name: "origin", kind: "ifname : verdict", isMap: true}
	targets := set{name: "targets", kind: "typeof iifname . @th,64,128"}
	options := set{name: "options", kind: "typeof iifname . @th,192,64"}
	deliver := set{name: "deliver", kind: "ifname : verdict", isMap: true}
	ports, overlays := set{name: "ports", kind: "ifname"}, set{name: "overlays", kind: "ifname"}
	gateways := set{name: "gateways", kind: "ether_addr"}
	macs := set{name: "macs", kind: "ifname . ether_addr"}
	addresses4 := set{name: "addresses4", kind: "ifname . ether_addr . ipv4_addr"}
	addresses6 := set{name: "addresses6", kind: "ifname . ether_addr . ipv6_addr"}
	member := func(port string, e Endpoint) {
		macs.add("%q . %s", port, e.MAC)
		if e.IPv4.IsValid() {
			addresses4.add("%q . %s . %s", port, e.MAC, e.IPv4)
		}
		if e.IPv6.IsValid() {
			addresses6.add("%q . %s . %s", port, e.MAC, e.IPv6)
			addresses6.add("%q . %s . %s", port, e.MAC, linkLocal(e.MAC))
		}
	}
	for _, np := range out.networks {
		gateways.add("%s", np.gatewayMAC)
		if np.overlay != "" {
			ports.add("%q", np.overlay)
			overlays.add("%q", np.overlay)
			origin.add("%q : goto overlay", np.overlay)
			toOverlay := "to_overlay"
			if np.rules.GetIsolated() {
				toOverlay = "to_isolated"
			}
			deliver.add("%q : goto %s", np.overlay, toOverlay)
			for _, e := range np.remote {
				member(np.overlay, e)
			}
		}
		for _, l := range np.local {
			to := "guest"
			if np.rules.GetRateMbit() > 0 {
				to = nicChain(l)
			}
			ports.add("%q", l.tap)
			origin.add("%q : goto %s", l.tap, to)
			toGuest := "to_guest"
			if np.rules.GetIsolated() {
				toGuest = "to_isolated"
			}
			deliver.add("%q : goto %s", l.tap, toGuest)
			if l.IPv6.IsValid() {
				hw, _ := net.ParseMAC(l.MAC) // checked by the plan
				leased, local := l.IPv6.As16(), linkLocal(l.MAC).As16()
				targets.add("%q . %s", l.tap, hexOf(leased[:]))
				targets.add("%q . %s", l.tap, hexOf(local[:]))
				options.add("%q . %s", l.tap, hexOf(append([]byte{1, 1}, hw...)))
				options.add("%q . %s", l.tap, hexOf(append([]byte{2, 1}, hw...)))
			}
			member(l.tap, l.Endpoint)
		}
	}
	return []set{origin, deliver, ports, overlays, gateways, macs, addresses4, addresses6, targets, options}
}

// bridgeChains say what frames pass. What a guest sends is refused unless a rule
// knows it: by its MAC and IP, in ARP, in neighbour discovery, and with nothing
// that a rule can't see through.
func bridgeChains(out planned) []chain {
	const own4, own6 = "iifname . ether saddr . ip saddr @addresses4", "iifname . ether saddr . ip6 saddr @addresses6"
	const strangeMAC = "iifname . ether saddr != @macs drop"
	const target = "iifname . @th,64,128 @targets"
	chains := []chain{
		// What is most of the traffic is asked for first, with few look-ups.
		{name: "guest", rules: []string{
			"ether type vmap { arp : goto guest_arp, ip : goto guest_ip, ip6 : goto guest_ip6 }",
			"drop",
		}},
		{name: "guest_arp", rules: []string{
			strangeMAC,
			"arp htype != 1 drop", "arp ptype != ip drop", "arp hlen != 6 drop", "arp plen != 4 drop",
			"arp operation != { request, reply } drop",
			"iifname . arp saddr ether . arp saddr ip @addresses4 accept",
			"arp operation request arp saddr ip 0.0.0.0 iifname . arp saddr ether . arp daddr ip @addresses4 accept",
			"drop",
		}},
		{name: "guest_ip", rules: []string{
			"udp sport 67 drop",
			own4 + " accept",
			strangeMAC,
			"ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
			"drop",
		}},
		{name: "guest_ip6", rules: []string{
			"ip6 nexthdr 6 " + own6 + " accept",
			"udp sport 547 drop",
			"ip6 nexthdr 17 " + own6 + " accept",
			strangeMAC,
			"icmpv6 type { mld-listener-query, nd-router-advert, nd-redirect } drop",
			// Listeners' reports come behind a hop-by-hop header; at the start of a NIC's
			// life without an address.
			"ip6 nexthdr 0 icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } ip6 saddr :: accept",
			"ip6 nexthdr 0 icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } " + own6 + " accept",
			"ip6 nexthdr icmpv6 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } goto guest_nd",
			"ip6 nexthdr icmpv6 icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply } " + own6 + " accept",
			// SCTP, DCCP, UDP-Lite, and what carries other protocols.
			"ip6 nexthdr { 4, 33, 41, 47, 50, 132, 136 } " + own6 + " accept",
			// Fragments: the first one's protocol must be plain to see; neighbour discovery
			// is never in fragments.
			"ip6 nexthdr 44 frag nexthdr { 6, 17 } " + own6 + " accept",
			"ip6 nexthdr 44 frag nexthdr icmpv6 frag frag-off 0 icmpv6 type { echo-request, echo-reply } " + own6 + " accept",
			"ip6 nexthdr 44 frag nexthdr icmpv6 frag frag-off != 0 " + own6 + " accept",
			"drop",
		}},
		// Of its own addresses, and with one option at most, which tells its own MAC or,
		// before it has an address, a nonce. Lengths are checked, since a second option
		// might say something else.
		{name: "guest_nd", rules: []string{
			"icmpv6 type nd-neighbor-solicit ip6 saddr :: ip6 length 24 " + target + " accept",
			"icmpv6 type nd-neighbor-solicit ip6 saddr :: ip6 length 32 @th,192,16 0x0e01 " + target + " accept",
			"icmpv6 type nd-neighbor-solicit ip6 length 24 " + own6 + " accept",
			"icmpv6 type nd-neighbor-solicit ip6 length 32 iifname . @th,192,64 @options " + own6 + " accept",
			"icmpv6 type nd-neighbor-advert ip6 length 24 " + own6 + " " + target + " accept",
			"icmpv6 type nd-neighbor-advert ip6 length 32 iifname . @th,192,64 @options " + own6 + " " + target + " accept",
			"icmpv6 type nd-router-solicit ip6 length 8 ip6 saddr :: accept",
			"icmpv6 type nd-router-solicit ip6 length 8 " + own6 + " accept",
			"icmpv6 type nd-router-solicit ip6 length 16 iifname . @th,64,64 @options " + own6 + " accept",
			"drop",
		}},
		{name: "overlay", rules: []string{
			"ether daddr @gateways drop",
			"ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 drop",
			"iifname . ether saddr != @macs drop",
			"udp sport { 67, 547 } drop",
			"icmpv6 type { 130, 131, 132, 133, 134, 135, 136, 137, 143 } drop",
			"ether type ip " + own4 + " accept",
			"ether type ip6 " + own6 + " accept",
			"drop",
		}},
		{name: "to_guest", rules: []string{
			// From a port that somebody else put on one of our bridges.
			"iifname != @ports drop",
			// Guests ask the node alone for addresses and routers.
			"meta l4proto udp udp dport { 67, 547 } drop",
			"meta l4proto ipv6-icmp icmpv6 type nd-router-solicit drop",
		}},
		// Nobody but the node, which does not forward between ports.
		{name: "to_isolated", rules: []string{"drop"}},
		{name: "to_overlay", rules: []string{
			"iifname != @ports drop",
			"ether saddr @gateways drop",
			"oifname . ether daddr != @macs drop",
			"icmpv6 type { 130, 131, 132, 133, 134, 135, 136, 137, 143 } drop",
			"udp dport { 67, 547 } drop",
			"ether type { ip, ip6 } accept",
			"drop",
		}},
	}
	for _, np := range out.networks {
		for _, l := range np.local {
			if rate := np.rules.GetRateMbit(); rate > 0 {
				chains = append(chains, chain{name: nicChain(l), rules: []string{
					// The kernel lets what was not used for up to a second be used at once.
					fmt.Sprintf("limit rate over %d bytes/second drop", uint64(rate)*bytesPerMbit),
					"goto guest",
				}})
			}
		}
	}
	return append(
		chains,
		chain{name: "prerouting", hook: "type filter hook prerouting priority -300; policy accept;", rules: []string{
			"iifname vmap @origin",
		}},
		chain{name: "forward", hook: "type filter hook forward priority -200; policy accept;", rules: []string{
			"oifname vmap @deliver",
			// To a port that somebody else put on one of our bridges.
			"iifname @ports drop",
		}},
		chain{name: "output", hook: "type filter hook output priority -200; policy accept;", rules: []string{
			// The gateway is on every node: nobody else's guests hear this one's.
			"oifname @overlays drop",
		}},
	)
}

func (s *set) add(format string, args ...any) {
	s.elements = append(s.elements, fmt.Sprintf(format, args...))
}

// sorted gives the elements in order, each once.
func (s set) sorted() []string {
	return slices.Compact(slices.Sorted(slices.Values(s.elements)))
}

// family gives the word for addresses of a prefix.
func family(is6 bool) string {
	if is6 {
		return "ip6"
	}
	return "ip"
}

// ruleMatches gives the matches of a network's rule, one for each family that it
// speaks of; other is "saddr" or "daddr", where the other side's address is.
func ruleMatches(r *blixardv1.NetworkRule, other string) []string {
	match := ""
	if prefix, err := netip.ParsePrefix(r.GetCidr()); err == nil {
		match = fmt.Sprintf("%s %s %s ", family(prefix.Addr().Is6()), other, prefix.Masked())
	} else if r.GetCidr() != "" {
		return nil // it can't match; the API refuses it
	}
	first, last := r.GetPortFirst(), max(r.GetPortFirst(), r.GetPortLast())
	if first == 0 && r.GetPortLast() > 0 {
		first = 1
	}
	ports := ""
	if last > 0 {
		ports = fmt.Sprintf(" th dport %d-%d", first, last)
		if first == last {
			ports = fmt.Sprintf(" th dport %d", first)
		}
	}
	protocol := ""
	switch {
	case r.GetProtocol() != blixardv1.Protocol_unspecified:
		protocol = "meta l4proto " + r.GetProtocol().String()
	case ports != "":
		protocol = "meta l4proto { tcp, udp }"
	}
	return []string{strings.TrimSpace(match + protocol + ports)}
}

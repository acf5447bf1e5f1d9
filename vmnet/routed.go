package vmnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// inetSets are the bridges, their gateways, the nodes of the overlay and where
// published ports go.
func inetSets(out planned) []set {
	bridges := set{name: "bridges", kind: "ifname"}
	gateway4, gateway6 := set{name: "gateway4", kind: "ifname . ipv4_addr"}, set{name: "gateway6", kind: "ifname . ipv6_addr"}
	gateways4, gateways6 := set{name: "gateways4", kind: "ipv4_addr"}, set{name: "gateways6", kind: "ipv6_addr"}
	nodes4, nodes6 := set{name: "nodes4", kind: "ipv4_addr"}, set{name: "nodes6", kind: "ipv6_addr"}
	egress := set{name: "egress", kind: "ifname : verdict", isMap: true}
	ingress := set{name: "ingress", kind: "ifname : verdict", isMap: true}
	within := set{name: "within", kind: "ifname . ifname"}
	untracked := set{name: "untracked", kind: "ifname : verdict", isMap: true}
	for _, np := range out.networks {
		bridges.add("%q", np.bridge)
		untracked.add("%q : jump untracked%s", np.bridge, np.suffix())
		if !np.rules.GetIsolated() {
			within.add("%q . %q", np.bridge, np.bridge)
		}
		egress.add("%q : jump egress%s", np.bridge, np.suffix())
		ingress.add("%q : goto ingress%s", np.bridge, np.suffix())
		if np.gateway4.IsValid() {
			gateway4.add("%q . %s", np.bridge, np.gateway4)
			gateways4.add("%s", np.gateway4)
		}
		if np.gateway6.IsValid() {
			gateway6.add("%q . %s", np.bridge, np.gateway6)
			gateways6.add("%s", np.gateway6)
		}
		for _, e := range np.remote {
			if node := e.Node.Unmap(); node.Is4() {
				nodes4.add("%s", node)
			} else if node.Is6() {
				nodes6.add("%s", node)
			}
		}
	}
	const portKey = "inet_proto . inet_service : "
	publish4 := set{name: "publish4", kind: portKey + "ipv4_addr . inet_service", isMap: true}
	publish6 := set{name: "publish6", kind: portKey + "ipv6_addr . inet_service", isMap: true}
	relay4 := set{name: "relay4", kind: "ipv4_addr . inet_proto . inet_service"}
	relay6 := set{name: "relay6", kind: "ipv6_addr . inet_proto . inet_service"}
	for _, port := range out.ports {
		to4, to6, toPort := port.IPv4, port.IPv6, port.GuestPort
		if node := port.Node.Unmap(); node.IsValid() {
			to4, to6, toPort = node, netip.Addr{}, port.HostPort
			if node.Is6() {
				to4, to6 = netip.Addr{}, node
			}
		}
		if to4.IsValid() {
			publish4.add("%s : %s . %d", port.key(), to4, toPort)
		}
		if to6.IsValid() {
			publish6.add("%s : %s . %d", port.key(), to6, toPort)
		}
		if !port.local() && to4.IsValid() {
			relay4.add("%s . %s", to4, port.key())
		}
		if !port.local() && to6.IsValid() {
			relay6.add("%s . %s", to6, port.key())
		}
	}
	return []set{
		bridges, within, untracked, gateway4, gateway6, gateways4, gateways6, nodes4, nodes6, egress, ingress,
		publish4, publish6, relay4, relay6,
	}
}

// suffix of the names of a network's chains.
func (np netPlan) suffix() string { return np.bridge[strings.LastIndexByte(np.bridge, '-'):] }

// inetChains say what packets pass between the networks, the node and the outside.
func (p planner) inetChains(out planned, host hostFacts, underlay netip.Addr) []chain {
	raw := []string{
		"iifname vmap @untracked",
		// What the kernel drops by itself where route_localnet is off.
		`iifname != "lo" ip daddr 127.0.0.0/8 drop`,
		`iifname != "lo" ip saddr 127.0.0.0/8 drop`,
	}
	var vnis []string
	source, publishRelay := []string{}, []string{}
	chains := []chain{
		{name: "publish", rules: []string{
			// The gateway's own services are never shadowed.
			"ip daddr @gateways4 return",
			"ip6 daddr @gateways6 return",
			// ::1 can't be sent on from; refused at once, clients try 127.0.0.1.
			"ip6 daddr ::1 return",
			"dnat ip to meta l4proto . th dport map @publish4",
			"dnat ip6 to meta l4proto . th dport map @publish6",
		}},
		// Frames between ports, where the host shows them to these rules.
		{name: "frames", rules: []string{"iifname . oifname @within accept"}},
		// A connection's packets fit into the links that it goes by.
		{name: "clamp", rules: []string{
			"iifname @bridges tcp option maxseg size set rt mtu",
			"oifname @bridges tcp option maxseg size set rt mtu",
		}},
		{name: "from_guest", rules: []string{
			"ct state established,related accept",
			"udp sport 68 udp dport 67 accept",
			"iifname . ip daddr @gateway4 meta l4proto { tcp, udp } th dport 53 accept",
			"iifname . ip6 daddr @gateway6 meta l4proto { tcp, udp } th dport 53 accept",
			"iifname . ip daddr @gateway4 icmp type echo-request accept",
			"icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept",
			"ip6 daddr fe80::/10 icmpv6 type echo-request accept",
			"iifname . ip6 daddr @gateway6 icmpv6 type echo-request accept",
			"udp sport 546 udp dport 547 accept",
			"drop",
		}},
	}
	for _, np := range out.networks {
		if np.overlay != "" {
			vnis = append(vnis, strconv.Itoa(np.vni))
		}
		chains = append(chains, np.untracked(), np.egress(), np.ingress())
		source = append(source, np.source()...)
	}
	leave := []string{
		"iifname . oifname @within ct status ! dnat accept",
		"ip daddr { 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4 } drop",
		"ip6 daddr { fe80::/10, ff00::/8 } drop",
		"oifname @bridges ct status ! dnat drop",
		"oifname @bridges ct state untracked drop",
		"iifname vmap @egress",
	}
	if len(vnis) > 0 {
		// The overlay is only for the nodes that have endpoints in it.
		match := fmt.Sprintf("udp dport %d @th,96,24 { %s } %s saddr != @nodes%s drop", p.vxlanPort, strings.Join(vnis, ", "), family(underlay.Is6()), map[bool]string{false: "4", true: "6"}[underlay.Is6()])
		raw = append(raw, match)
	}
	publishRelay = append(
		publishRelay,
		"ct status dnat ip daddr . meta l4proto . th dport @relay4 masquerade",
		"ct status dnat ip6 daddr . meta l4proto . th dport @relay6 masquerade",
		"ct status dnat oifname @bridges ip saddr 127.0.0.0/8 masquerade",
	)
	forward := []string{
		"tcp flags & (syn | rst) == syn jump clamp",
		// What has begun goes on, whatever the rules are now.
		"ct state vmap { established : accept, related : accept, untracked : jump frames }",
		"iifname @bridges jump leave",
		"oifname @bridges goto enter",
	}
	chains = append(chains, guard(host)...)
	return append(
		chains,
		chain{name: "leave", rules: leave},
		chain{name: "enter", rules: []string{
			"oifname vmap @ingress",
			"drop",
		}},
		chain{name: "raw", hook: "type filter hook prerouting priority -300; policy accept;", rules: raw},
		chain{name: "arrive", hook: "type nat hook prerouting priority -100; policy accept;", rules: []string{"fib daddr type local jump publish"}},
		chain{name: "send", hook: "type nat hook output priority -100; policy accept;", rules: []string{"fib daddr type local jump publish"}},
		chain{name: "source", hook: "type nat hook postrouting priority 100; policy accept;", rules: append(publishRelay, source...)},
		chain{name: "forward", hook: "type filter hook forward priority 0; policy accept;", rules: forward},
		chain{name: "input", hook: "type filter hook input priority 0; policy accept;", rules: []string{"iifname @bridges goto from_guest"}},
	)
}

// untracked spares the tracking of connections within the network, where the host
// shows frames between ports to the rules for IP.
func (np netPlan) untracked() chain {
	var rules []string
	for subnet, gateway := range map[netip.Prefix]netip.Addr{np.subnet4: np.gateway4, np.subnet6: np.gateway6} {
		if subnet.IsValid() {
			f := family(subnet.Addr().Is6())
			rules = append(rules, fmt.Sprintf("%s saddr %s %s daddr %s %s daddr != %s notrack", f, subnet, f, subnet, f, gateway))
		}
	}
	slices.Sort(rules)
	return chain{name: "untracked" + np.suffix(), rules: rules}
}

// source gives the rules for the source address of what leaves a network.
func (np netPlan) source() []string {
	var rules []string
	for _, subnet := range []netip.Prefix{np.subnet4, np.subnet6} {
		if !subnet.IsValid() {
			continue
		}
		f := family(subnet.Addr().Is6())
		// To a published port of its own network: the answer must come back this way.
		rules = append(rules, fmt.Sprintf("%s saddr %s oifname %q ct status dnat masquerade", f, subnet, np.bridge))
		if !np.rules.GetInternal() {
			rules = append(rules, fmt.Sprintf("%s saddr %s oifname != %q masquerade", f, subnet, np.bridge))
		}
	}
	return rules
}

// egress gives the chain for what VMs send out of the network. It returns for what
// may go on.
func (np netPlan) egress() chain {
	c := chain{name: "egress" + np.suffix()}
	if np.rules.GetInternal() {
		c.rules = []string{"drop"}
		return c
	}
	for _, r := range np.rules.GetEgress() {
		verdict := "drop"
		if r.GetAction() == "allow" {
			verdict = "return"
		}
		for _, match := range ruleMatches(r, "daddr") {
			c.rules = append(c.rules, strings.TrimSpace(match+" "+verdict))
		}
	}
	if len(np.rules.GetEgress()) > 0 {
		c.rules = append(c.rules, "drop")
	}
	return c
}

// ingress gives the chain for what comes into the network from outside.
func (np netPlan) ingress() chain {
	c := chain{name: "ingress" + np.suffix()}
	if np.rules.GetInternal() {
		c.rules = []string{"drop"}
		return c
	}
	for _, r := range np.rules.GetIngress() {
		verdict := "drop"
		if r.GetAction() == "allow" {
			verdict = "accept"
		}
		for _, match := range ruleMatches(r, "saddr") {
			c.rules = append(c.rules, strings.TrimSpace(match+" "+verdict))
		}
	}
	if len(np.rules.GetIngress()) == 0 {
		c.rules = append(c.rules, "ct status dnat accept")
	}
	c.rules = append(c.rules, "drop")
	return c
}

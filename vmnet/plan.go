package vmnet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// mtuDefaultBytes is used where nothing else is known.
	mtuDefaultBytes = 1500
	// mtuMinBytes is the least that IPv6 works with.
	mtuMinBytes = 1280
	// overlayBytes4 and overlayBytes6 are what the overlay adds: Ethernet 14, VXLAN 8,
	// UDP 8, and IP 20 or 40.
	overlayBytes4 = 50
	overlayBytes6 = 70
	vniMax        = 1<<24 - 1
)

// planned is what shall be.
type planned struct {
	objects objects
	// networks that can be, in the order of their names.
	networks []netPlan
	// ports that shall be published.
	ports []Port
	// rules are nftables' tables.
	rules tables
	// problems of networks that can't be as they should, by name.
	problems map[string]error
}

// netPlan is a network with what was derived from it.
type netPlan struct {
	id, name, bridge, overlay string
	gatewayMAC                string
	subnet4, subnet6          netip.Prefix
	gateway4, gateway6        netip.Addr
	mtu, vni                  int // bytes
	rules                     *blixardv1.NetworkRules
	local                     []nicPlan
	remote                    []Endpoint
}

// nicPlan is a local endpoint with its tap.
type nicPlan struct {
	Endpoint
	tap string
}

// planner makes plans for one owner.
type planner struct {
	names
	vxlanPort int
}

// plan is pure: what the kernel shall have for what is desired on this host. A
// network that can't be is left out, with its problem.
func (p planner) plan(want Desired, host hostFacts) planned {
	out := planned{objects: newObjects(), problems: map[string]error{}}
	underlay := want.Underlay.Unmap()
	if !underlay.IsValid() || underlay.IsLoopback() {
		underlay = netip.Addr{}
	}
	// Those that are there come first: a new one never takes their place.
	isNew := func(n Network) int {
		if host.ours[p.bridge(n.Spec.GetId())] {
			return 0
		}
		return 1
	}
	for _, n := range slices.SortedFunc(slices.Values(want.Networks), func(a, b Network) int {
		return cmp.Or(cmp.Compare(isNew(a), isNew(b)), cmp.Compare(a.Spec.GetName(), b.Spec.GetName()))
	}) {
		if n.Spec.GetType() == blixardv1.NetworkType_user {
			continue
		}
		np, err := p.network(n, host, underlay)
		if err == nil {
			err = p.clash(np, host, out.networks)
		}
		if err != nil {
			out.problems[n.Spec.GetName()] = err
			continue
		}
		// A NIC that can't be is no reason to take the network from the others.
		if err := p.endpoints(&np, n, host); err != nil {
			out.problems[np.name] = err
		}
		if room := mtuMax(host, underlay); np.overlay != "" && np.mtu > room {
			out.problems[np.name] = problem.New(problem.Invalid, "network.mtu_too_large", "network %q: its MTU of %d bytes does not fit into the %d of this node's overlay", np.name, np.mtu, room).
				WithHint("make the network anew with an MTU of %d or less, or raise the MTU of the link of %s", room, underlay)
		}
		out.networks = append(out.networks, np)
		p.addNetwork(out.objects, np, underlay)
	}
	for _, port := range want.Ports {
		// A port that is said to be on another node, which is this one, or of a VM that
		// is in no network here, leads nowhere.
		if !port.local() && port.Node.Unmap() == underlay || port.local() && !out.has(port) {
			continue
		}
		out.ports = append(out.ports, port)
	}
	slices.SortFunc(out.ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.protocol(), b.protocol()))
	})
	if len(out.networks) > 0 || len(out.ports) > 0 {
		p.addHost(out.objects, out, host)
		out.rules = p.tables(out, host, underlay)
	}
	return out
}

// has reports whether the VM of a local port is in a network that may be reached.
func (p planned) has(port Port) bool {
	for _, np := range p.networks {
		for _, l := range np.local {
			if !np.rules.GetInternal() && (port.IPv4.IsValid() && l.IPv4 == port.IPv4 || port.IPv6.IsValid() && l.IPv6 == port.IPv6) {
				return true
			}
		}
	}
	return false
}

// mtuMax is the largest MTU of a network on this host, in bytes.
func mtuMax(host hostFacts, underlay netip.Addr) int {
	switch {
	case !underlay.IsValid():
		return cmp.Or(host.uplinkMTU, mtuDefaultBytes)
	case underlay.Is6():
		return cmp.Or(host.underlayMTU, mtuDefaultBytes) - overlayBytes6
	}
	return cmp.Or(host.underlayMTU, mtuDefaultBytes) - overlayBytes4
}

// network derives a network's plan from what is desired.
func (p planner) network(n Network, host hostFacts, underlay netip.Addr) (netPlan, error) {
	spec := n.Spec
	np := netPlan{
		id: spec.GetId(), name: spec.GetName(), bridge: p.bridge(spec.GetId()), gatewayMAC: gatewayMAC(spec.GetId()),
		mtu: int(spec.GetMtu()), vni: int(spec.GetVni()), rules: spec.GetRules(),
	}
	bad := func(format string, args ...any) error {
		return problem.New(problem.Invalid, "network.invalid", "network %q: "+format, append([]any{np.name}, args...)...)
	}
	if np.id == "" {
		return np, bad("it has no id")
	}
	var err error
	if np.subnet4, err = parseSubnet(spec.GetIpv4Subnet(), 32); err != nil {
		return np, bad("%v", err)
	}
	if np.subnet6, err = parseSubnet(spec.GetIpv6Subnet(), 128); err != nil {
		return np, bad("%v", err)
	}
	if !np.subnet4.IsValid() && !np.subnet6.IsValid() {
		return np, bad("it has no subnet")
	}
	if np.subnet4.IsValid() {
		np.gateway4 = gatewayOf(np.subnet4)
	}
	if np.subnet6.IsValid() {
		np.gateway6 = gatewayOf(np.subnet6)
	}
	if np.mtu == 0 {
		np.mtu = max(mtuMax(host, underlay), mtuMinBytes)
	}
	if underlay.IsValid() {
		if np.vni < 1 || np.vni > vniMax {
			return np, bad("its overlay has the number %d; it is from 1 to %d", np.vni, vniMax)
		}
		np.overlay = p.names.overlay(np.id)
	}
	return np, nil
}

// endpoints takes those of a network that can be. Of two with the same address the
// first is taken, and a local one before a remote one: while a VM moves, it may be
// told of in both places.
func (p planner) endpoints(np *netPlan, n Network, host hostFacts) error {
	var errs []error
	seen := map[string]string{}
	take := func(e Endpoint, local bool) bool {
		if err := np.checkEndpoint(e); err != nil {
			errs = append(errs, problem.New(problem.Invalid, "network.nic_invalid", "network %q: VM %q: %v", np.name, e.VMName, err))
			return false
		}
		for _, own := range []string{e.MAC, e.IPv4.String(), e.IPv6.String()} {
			if other, taken := seen[own]; taken && own != "invalid IP" {
				if local || other != e.VMName {
					errs = append(errs, problem.New(problem.Invalid, "network.nic_invalid", "network %q: VM %q and VM %q both have %s", np.name, other, e.VMName, own))
				}
				return false
			}
		}
		seen[e.MAC], seen[e.IPv4.String()], seen[e.IPv6.String()] = e.VMName, e.VMName, e.VMName
		return true
	}
	for _, e := range n.Local {
		tap := p.tap(e.AllocationID, e.Index)
		if err := p.nameTaken(np.name, tap, host); err != nil {
			errs = append(errs, err)
		} else if take(e, true) {
			np.local = append(np.local, nicPlan{Endpoint: e, tap: tap})
		}
	}
	slices.SortFunc(np.local, func(a, b nicPlan) int { return cmp.Compare(a.tap, b.tap) })
	for _, e := range n.Remote {
		if take(e, false) {
			np.remote = append(np.remote, e)
		}
	}
	return errors.Join(errs...)
}

func parseSubnet(s string, bits int) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().BitLen() != bits || p.Bits() > bits-2 || p.Masked() != p {
		return netip.Prefix{}, fmt.Errorf("%q is no subnet", s)
	}
	return p, nil
}

// checkEndpoint refuses what would make rules that let too much pass.
func (np netPlan) checkEndpoint(e Endpoint) error {
	hw, err := net.ParseMAC(e.MAC)
	switch {
	case err != nil || len(hw) != 6 || hw.String() != e.MAC || hw[0]&1 != 0:
		return fmt.Errorf("%q is no MAC of a NIC", e.MAC)
	case e.MAC == np.gatewayMAC:
		return fmt.Errorf("%s is the gateway's MAC", e.MAC)
	case e.IPv4.IsValid() && (!np.subnet4.Contains(e.IPv4) || e.IPv4 == np.gateway4 || e.IPv4 == np.subnet4.Addr()):
		return fmt.Errorf("%s is no address of %s for a VM", e.IPv4, np.subnet4)
	case e.IPv6.IsValid() && (!np.subnet6.Contains(e.IPv6) || e.IPv6 == np.gateway6 || e.IPv6 == np.subnet6.Addr()):
		return fmt.Errorf("%s is no address of %s for a VM", e.IPv6, np.subnet6)
	}
	return nil
}

// clash finds what the host, or another network, has in the way. A network that
// is there already does not clash.
func (p planner) clash(np netPlan, host hostFacts, others []netPlan) error {
	for _, o := range others {
		for _, pair := range [][2]netip.Prefix{{np.subnet4, o.subnet4}, {np.subnet6, o.subnet6}} {
			if pair[0].IsValid() && pair[1].IsValid() && pair[0].Overlaps(pair[1]) {
				return problem.New(problem.Conflict, "network.subnet_overlaps", "network %q: its subnet %s overlaps %s of network %q", np.name, pair[0], pair[1], o.name).
					WithHint("make it anew with another subnet")
			}
		}
	}
	for _, name := range []string{np.bridge, np.overlay} {
		if err := p.nameTaken(np.name, name, host); err != nil {
			return err
		}
	}
	if host.ours[np.bridge] {
		return nil
	}
	for _, subnet := range []netip.Prefix{np.subnet4, np.subnet6} {
		for _, r := range host.routes {
			if !subnet.IsValid() || r.prefix.Bits() == 0 || !r.prefix.Overlaps(subnet) {
				continue
			}
			what := "route"
			if r.address {
				what = "address"
			}
			return problem.New(problem.Conflict, "network.subnet_overlaps", "network %q: its subnet %s overlaps the host's %s %s of %s", np.name, subnet, what, r.prefix, r.link).
				WithHint("make the network anew with another subnet, or remove the %s", what)
		}
	}
	if np.overlay != "" && host.overlayPortTaken {
		return problem.New(problem.Conflict, "network.overlay_port_taken", "network %q: a program has UDP port %d, which the overlay needs", np.name, p.vxlanPort).
			WithHint("see who has it with `ss -lunp 'sport = :%d'`, or give the cluster another port for its overlay", p.vxlanPort)
	}
	for _, o := range host.overlays {
		if np.overlay != "" && o.vni == np.vni && o.port == p.vxlanPort {
			return problem.New(problem.Conflict, "network.vni_taken", "network %q: interface %s has the overlay number %d on UDP port %d already", np.name, o.link, np.vni, o.port).
				WithHint("remove %s, or give the cluster another port for its overlay", o.link)
		}
	}
	return nil
}

// nameTaken refuses a name of an interface that is somebody else's.
func (p planner) nameTaken(network, name string, host hostFacts) error {
	alias, there := host.links[name]
	if !there {
		return nil
	}
	if m, ok := parseMark(alias); ok {
		return problem.New(problem.Conflict, "network.owned_elsewhere", "network %q: interface %s belongs to the blixard of node %s", network, name, m.owner).
			WithHint("give this daemon another prefix for its interfaces, or remove the other one's")
	}
	return problem.New(problem.Conflict, "network.name_taken", "network %q: interface %s is there already and not of blixard", network, name).
		WithHint("rename it, or give the daemon another prefix for its interfaces")
}

// addNetwork adds the kernel's objects of a network.
func (p planner) addNetwork(o objects, np netPlan, underlay netip.Addr) {
	o.links[np.bridge] = link{
		kind: kindBridge, alias: mark{owner: p.owner, kind: kindBridge, id: np.id}.String(),
		mac: np.gatewayMAC, mtu: np.mtu, up: true,
	}
	isolated := np.rules.GetIsolated()
	if np.overlay != "" {
		o.links[np.overlay] = link{
			kind: kindOverlay, alias: mark{owner: p.owner, kind: kindOverlay, id: np.id}.String(),
			mac: overlayMAC(np.id), mtu: np.mtu, up: true, bridge: np.bridge,
			vni: np.vni, udpPort: p.vxlanPort, local: underlay,
			port: portFlags{guard: true, isolated: isolated, suppress: true},
		}
		o.sysctls["net/ipv6/conf/"+np.overlay+"/disable_ipv6"] = "1"
	}
	p.addGateway(o, np)
	for _, l := range np.local {
		o.links[l.tap] = link{
			kind: kindTap, alias: mark{owner: p.owner, kind: kindTap, id: l.AllocationID, index: l.Index}.String(),
			mtu: np.mtu, up: true, bridge: np.bridge, port: portFlags{guard: true, isolated: isolated},
		}
		o.sysctls["net/ipv6/conf/"+l.tap+"/disable_ipv6"] = "1"
		o.forwarding[forward{link: l.tap, mac: l.MAC}] = netip.Addr{}
		o.addNeighbours(np, l.Endpoint)
	}
	for _, e := range np.remote {
		if np.overlay == "" || !e.Node.IsValid() || e.Node.Unmap() == underlay {
			continue
		}
		o.forwarding[forward{link: np.overlay, mac: e.MAC}] = netip.Addr{}
		o.forwarding[forward{link: np.overlay, mac: e.MAC, overlay: true}] = e.Node.Unmap()
		o.addNeighbours(np, e)
	}
}

// addNeighbours makes the node know where an endpoint is without asking.
func (o objects) addNeighbours(np netPlan, e Endpoint) {
	if e.IPv4.IsValid() {
		o.neighbours[neighbour{np.bridge, e.IPv4}] = e.MAC
	}
	if np.subnet6.IsValid() && e.IPv6.IsValid() {
		o.neighbours[neighbour{np.bridge, e.IPv6}] = e.MAC
		o.neighbours[neighbour{np.bridge, linkLocal(e.MAC)}] = e.MAC
	}
}

// addGateway adds the addresses of the node in a network, and how it behaves there.
func (p planner) addGateway(o objects, np netPlan) {
	conf4, conf6 := "net/ipv4/conf/"+np.bridge+"/", "net/ipv6/conf/"+np.bridge+"/"
	if np.subnet4.IsValid() {
		o.addresses[address{np.bridge, netip.PrefixFrom(np.gateway4, np.subnet4.Bits())}] = true
		// Packets of 127.0.0.0/8 come here from this host's published ports; those of
		// guests are dropped by the rules.
		o.sysctls[conf4+"route_localnet"] = "1"
		o.sysctls[conf4+"forwarding"] = "1"
		o.sysctls[conf4+"send_redirects"] = "0"
		o.sysctls[conf4+"arp_ignore"] = "1"
	}
	if !np.subnet6.IsValid() {
		o.sysctls[conf6+"disable_ipv6"] = "1"
		return
	}
	o.addresses[address{np.bridge, netip.PrefixFrom(np.gateway6, np.subnet6.Bits())}] = true
	// The gateway is on every node: it must neither doubt its address nor believe
	// another's announcement.
	o.sysctls[conf6+"disable_ipv6"] = "0"
	o.sysctls[conf6+"accept_dad"] = "0"
	o.sysctls[conf6+"accept_ra"] = "0"
	o.sysctls[conf6+"autoconf"] = "0"
	o.sysctls[conf6+"forwarding"] = "1"
}

// addHost adds what must be set on links that are not ours, as long as there is a
// network that goes out.
func (p planner) addHost(o objects, out planned, host hostFacts) {
	v4, v6 := len(out.ports) > 0, false
	for _, np := range out.networks {
		if !np.rules.GetInternal() {
			v4, v6 = v4 || np.subnet4.IsValid(), v6 || np.subnet6.IsValid()
		}
	}
	for _, u := range host.uplinks {
		if v4 && !host.forward4 {
			o.sysctls["net/ipv4/conf/"+u.link+"/forwarding"] = "1"
		}
		if v4 && len(out.ports) > 0 {
			// For 127.0.0.1 of this host, relayed to another node.
			o.sysctls["net/ipv4/conf/"+u.link+"/route_localnet"] = "1"
		}
		if v6 && !host.forward6 && host.forceForward6 {
			o.sysctls["net/ipv6/conf/"+u.link+"/force_forwarding"] = "1"
		}
		if v6 && !host.forward6 && !host.forceForward6 && u.acceptRA {
			o.sysctls["net/ipv6/conf/"+u.link+"/accept_ra"] = "2"
		}
	}
	if v6 && !host.forward6 {
		if !host.forceForward6 {
			o.sysctls["net/ipv6/conf/all/forwarding"] = "1"
			return
		}
		for _, np := range out.networks {
			o.sysctls["net/ipv6/conf/"+np.bridge+"/force_forwarding"] = "1"
		}
	}
}

// keys of both protocols and the port, as nftables has them.
func (p Port) key() string { return p.protocol() + " . " + strconv.Itoa(int(p.HostPort)) }

package state

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of networks.
const (
	// networksMax: each costs a bridge and a device of the overlay on every node
	// that has a VM of it.
	networksMax = 4096
	// vniFirst leaves the small numbers, which people use by hand, to them. An
	// overlay's number has 24 bits.
	vniFirst = 0xb1_0000
	// prefixMin and prefixMax of an IPv4 subnet: 16 million hosts, and 5.
	prefixMin, prefixMax = 8, 29
)

func (b *batch) network(ref string) *blixardv1.Network {
	return byRef[blixardv1.Network](b.db, tableNetwork, ref)
}

func (b *batch) putNetwork(n *blixardv1.Network) {
	n.ModifyIndex = b.index
	insert(b.db, tableNetwork, n)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindNetwork, Network: n})
}

func (b *batch) networkEvent(n *blixardv1.Network, kind, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "network", ObjectId: n.GetId(), ObjectName: n.GetName(), Message: message})
}

func networkNotFound(ref string) *problem.Error {
	return problem.New(problem.NotFound, "network.not_found", "there is no network %q", ref).
		WithHint("`blixard network list` shows the networks; make one with `blixard network create %s`", ref)
}

// createNetwork checks all that a network must be, since addresses are given out by
// it.
func (b *batch) createNetwork(c *blixardv1.CreateNetworkCommand) Result {
	n := proto.CloneOf(c.GetNetwork())
	if n.GetId() == "" || n.GetName() == "" {
		return refused(b.index, problem.New(problem.Invalid, "network.incomplete", "a network needs an id and a name"))
	}
	if b.network(n.GetName()) != nil {
		return refused(b.index, problem.New(problem.Conflict, "network.name_taken", "there is a network %q already", n.GetName()).
			WithHint("choose another name").WithField("name"))
	}
	others := every[blixardv1.Network](b.db, tableNetwork, indexID)
	if len(others) >= networksMax {
		return refused(b.index, problem.New(problem.NoCapacity, "network.too_many", "there are %d networks", len(others)).
			WithHint("delete those that are not used"))
	}
	if p := CheckSubnets(n, others); p != nil {
		return refused(b.index, p)
	}
	n.Vni = freeVNI(others)
	n.CreatedAt, n.CreateIndex, n.NextHost = b.time, b.index, 0
	b.putNetwork(n)
	b.networkEvent(n, "network.created", "the network was made")
	return Result{Index: b.index, Network: n}
}

func freeVNI(others []*blixardv1.Network) uint32 {
	taken := map[uint32]bool{}
	for _, o := range others {
		taken[o.GetVni()] = true
	}
	vni := uint32(vniFirst)
	for taken[vni] {
		vni++
	}
	return vni
}

// CheckSubnets says why a network can't have its subnets beside those of the others;
// nil when it can.
func CheckSubnets(n *blixardv1.Network, others []*blixardv1.Network) *problem.Error {
	if n.GetType() == blixardv1.NetworkType_user {
		if n.GetIpv4Subnet() != "" || n.GetIpv6Subnet() != "" {
			field := "ipv4_subnet"
			if n.GetIpv4Subnet() == "" {
				field = "ipv6_subnet"
			}
			return problem.New(problem.Invalid, "network.user_subnet", "a network of type user has no subnets of its own").
				WithHint("leave the subnets out, or make a network of type nat").WithField("%s", field)
		}
		return nil
	}
	v4, err := netip.ParsePrefix(n.GetIpv4Subnet())
	if err != nil || !v4.Addr().Is4() || v4 != v4.Masked() || v4.Bits() < prefixMin || v4.Bits() > prefixMax || !ordinary(v4) {
		return problem.New(problem.Invalid, "network.subnet", "%q is no subnet for VMs", n.GetIpv4Subnet()).
			WithHint("name a private IPv4 prefix of %d to %d bits, such as 10.64.0.0/16", prefixMin, prefixMax).WithField("ipv4_subnet")
	}
	subnets := []netip.Prefix{v4}
	if n.GetIpv6Subnet() != "" {
		v6, err := netip.ParsePrefix(n.GetIpv6Subnet())
		if err != nil || !v6.Addr().Is6() || v6.Addr().Is4In6() || v6 != v6.Masked() || v6.Bits() != 64 || !ordinary(v6) {
			return problem.New(problem.Invalid, "network.subnet", "%q is no subnet for VMs", n.GetIpv6Subnet()).
				WithHint("name an IPv6 prefix of 64 bits, such as fd12:3456:789a:1::/64").WithField("ipv6_subnet")
		}
		subnets = append(subnets, v6)
	}
	for _, o := range others {
		for _, text := range []string{o.GetIpv4Subnet(), o.GetIpv6Subnet()} {
			other, err := netip.ParsePrefix(text)
			if err != nil {
				continue
			}
			for i, s := range subnets {
				if s.Overlaps(other) {
					return problem.New(problem.Conflict, "network.subnet_overlaps", "subnet %s overlaps %s of network %q", s, other, o.GetName()).
						WithHint("choose another subnet, or leave it out").WithField("%s", []string{"ipv4_subnet", "ipv6_subnet"}[i])
				}
			}
		}
	}
	return nil
}

// ordinary addresses can be hosts of a network.
func ordinary(p netip.Prefix) bool {
	a := p.Addr()
	return !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified() &&
		!netip.MustParsePrefix("169.254.0.0/16").Overlaps(p) && !netip.MustParsePrefix("127.0.0.0/8").Overlaps(p) &&
		!netip.MustParsePrefix("224.0.0.0/3").Overlaps(p)
}

func (b *batch) updateNetwork(c *blixardv1.UpdateNetworkCommand) Result {
	old := b.network(c.GetName())
	switch {
	case old == nil:
		return refused(b.index, networkNotFound(c.GetName()))
	case c.GetExpectedIndex() != 0 && c.GetExpectedIndex() != old.GetModifyIndex():
		return refused(b.index, problem.New(problem.Conflict, "network.index_mismatch", "network %q was changed at index %d, not %d",
			old.GetName(), old.GetModifyIndex(), c.GetExpectedIndex()).WithHint("read the network again and repeat the change"))
	}
	n := proto.CloneOf(old)
	n.Rules = c.GetRules()
	b.putNetwork(n)
	b.networkEvent(n, "network.updated", "the rules were replaced")
	return Result{Index: b.index, Network: n}
}

func (b *batch) deleteNetwork(c *blixardv1.DeleteNetworkCommand) Result {
	old := b.network(c.GetName())
	if old == nil {
		return refused(b.index, networkNotFound(c.GetName()))
	}
	// A VM keeps its interfaces until it is gone.
	if vm := b.whoHas(func(vm *blixardv1.VM) bool { return attached(vm, old) }); vm != nil {
		return refused(b.index, problem.New(problem.Conflict, "network.in_use", "network %q is in use by VM %q", old.GetName(), vm.GetName()).
			WithHint("delete that VM first, or attach it to another network"))
	}
	n := proto.CloneOf(old)
	n.ModifyIndex = b.index
	remove(b.db, tableNetwork, old)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindNetwork, Network: n, Deleted: true})
	b.networkEvent(n, "network.deleted", "the network is gone")
	return Result{Index: b.index, Network: n}
}

func attached(vm *blixardv1.VM, n *blixardv1.Network) bool {
	for _, i := range vm.GetInterfaces() {
		if i.GetNetworkId() == n.GetId() {
			return true
		}
	}
	return false
}

// leaseAddresses finds an address in each of the VM's networks. Networks is their
// fresh copies where the search moved on.
func (b *batch) leaseAddresses(vm, old *blixardv1.VM) (interfaces []*blixardv1.Interface, networks []*blixardv1.Network, why *problem.Error) {
	kept := map[string]*blixardv1.Interface{}
	for _, i := range old.GetInterfaces() {
		kept[i.GetNetworkId()] = i
	}
	seen := map[string]bool{}
	for k, at := range vm.GetSpec().GetNetworks() {
		n := b.network(at.GetNetwork())
		if n == nil {
			return nil, nil, networkNotFound(at.GetNetwork()).WithField("spec.networks[%d].network", k)
		}
		if seen[n.GetId()] {
			return nil, nil, problem.New(problem.Invalid, "network.twice", "the VM is attached to network %q twice", n.GetName()).
				WithHint("name each network once").WithField("spec.networks[%d]", k)
		}
		seen[n.GetId()] = true
		if was := kept[n.GetId()]; was != nil && (at.GetIpv4() == "" || at.GetIpv4() == was.GetIpv4()) {
			interfaces = append(interfaces, was)
			continue
		}
		i := &blixardv1.Interface{Network: n.GetName(), NetworkId: n.GetId(), Mac: hashedMAC(vm.GetId(), k)}
		if n.GetType() != blixardv1.NetworkType_user {
			host, why := b.freeHost(n, at.GetIpv4())
			switch {
			case why != nil && at.GetIpv4() != "":
				return nil, nil, why.WithField("spec.networks[%d].ipv4", k)
			case why != nil:
				return nil, nil, why.WithField("spec.networks[%d]", k)
			}
			address(n, i, host)
			next := proto.CloneOf(n)
			next.NextHost = host + 1
			networks = append(networks, next)
		} else if at.GetIpv4() != "" {
			return nil, nil, problem.New(problem.Invalid, "network.user_address", "network %q is of type user, which gives no addresses", n.GetName()).
				WithHint("leave the address out").WithField("spec.networks[%d].ipv4", k)
		}
		interfaces = append(interfaces, i)
	}
	return interfaces, networks, nil
}

// hostMask is the number of addresses of an IPv4 subnet, less one.
func hostMask(v4 netip.Prefix) uint32 { return uint32(1)<<(32-v4.Bits()) - 1 }

// hostFirst: 0 is the network itself and 1 the gateway.
const hostFirst = 2

// freeHost gives the number of a free address, going on from where the last search
// ended, so that an address rests before it is given out again.
func (b *batch) freeHost(n *blixardv1.Network, wished string) (uint32, *problem.Error) {
	v4 := netip.MustParsePrefix(n.GetIpv4Subnet())
	last := hostMask(v4) - 1
	if wished != "" {
		a, err := netip.ParseAddr(wished)
		if err != nil || !v4.Contains(a) {
			return 0, problem.New(problem.Invalid, "network.address", "%s is no address of network %q, which has %s", wished, n.GetName(), v4).
				WithHint("choose one of that subnet, or leave it out")
		}
		host := toUint(a) - toUint(v4.Addr())
		if host < hostFirst || host > last {
			return 0, problem.New(problem.Invalid, "network.address", "%s of network %q is not for VMs", wished, n.GetName()).
				WithHint("the first address is the gateway, the last one is for broadcasts")
		}
		if other := b.claimant(addressKey(n.GetId(), a.String())); other != "" {
			return 0, problem.New(problem.Conflict, "network.address_taken", "%s of network %q is leased to VM %q", wished, n.GetName(), b.vm(other).GetName()).
				WithHint("choose another, or leave it out")
		}
		return host, nil
	}
	host := max(n.GetNextHost(), hostFirst)
	for range last - hostFirst + 1 {
		if host > last {
			host = hostFirst
		}
		if b.claimant(addressKey(n.GetId(), hostAddress(v4, host).String())) == "" {
			return host, nil
		}
		host++
	}
	return 0, problem.New(problem.NoCapacity, "network.full", "all %d addresses of network %q are leased", last-hostFirst+1, n.GetName()).
		WithHint("delete VMs of it, or make a network with a larger subnet")
}

func toUint(a netip.Addr) uint32 { v := a.As4(); return binary.BigEndian.Uint32(v[:]) }

func hostAddress(v4 netip.Prefix, host uint32) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], toUint(v4.Addr())+host)
	return netip.AddrFrom4(a)
}

// address fills an interface. The NIC's own address follows the IPv4 one, which is
// unique in the network; the IPv6 one has the same number.
func address(n *blixardv1.Network, i *blixardv1.Interface, host uint32) {
	v4 := hostAddress(netip.MustParsePrefix(n.GetIpv4Subnet()), host)
	b := v4.As4()
	i.Ipv4 = v4.String()
	i.Mac = fmt.Sprintf("0a:58:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
	if n.GetIpv6Subnet() == "" {
		return
	}
	v6 := netip.MustParsePrefix(n.GetIpv6Subnet()).Addr().As16()
	binary.BigEndian.PutUint32(v6[12:], host)
	i.Ipv6 = netip.AddrFrom16(v6).String()
}

// hashedMAC is for NICs that have no address to take it from: locally administered.
func hashedMAC(vmID string, index int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", vmID, index))
	return fmt.Sprintf("0a:59:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3])
}

// Gateway gives the first address of a subnet in CIDR form, which every node has on
// its bridge; the zero Addr when there is none.
func Gateway(subnet string) netip.Addr {
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Next()
}

// Network finds a network by its id or name; nil when there is none.
func (v *View) Network(ref string) *blixardv1.Network {
	return byRef[blixardv1.Network](v.db, tableNetwork, ref)
}

// Networks gives all networks, ordered by name.
func (v *View) Networks() []*blixardv1.Network {
	return every[blixardv1.Network](v.db, tableNetwork, indexName)
}

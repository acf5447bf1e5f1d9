package dhcp

import (
	"net"
	"net/netip"
	"time"
)

// LeaseTime is what guests are told. A lease never ends before its VM does, so
// that it only says how often a guest asks again; a node may be away for days.
const LeaseTime = 7 * 24 * time.Hour

// Leases are those of one network.
type Leases struct {
	// Subnet4 and Subnet6; either may be the zero value. Gateway4 and Gateway6 are
	// router and DNS of the network.
	Subnet4, Subnet6   netip.Prefix
	Gateway4, Gateway6 netip.Addr
	// GatewayMAC as six hex bytes with colons.
	GatewayMAC string
	// MTU in bytes.
	MTU int
	// Domain that names without a dot are looked up in.
	Domain string
	// ByMAC are the leases of NICs, by MAC as six hex bytes with colons.
	ByMAC map[string]Lease
}

// Lease of a NIC.
type Lease struct {
	IPv4, IPv6 netip.Addr
	Hostname   string
}

// linkLocalMAC gives the MAC that a link-local address was derived from.
func linkLocalMAC(ip netip.Addr) (string, bool) {
	b := ip.As16()
	if !ip.IsLinkLocalUnicast() || !ip.Is6() || b[11] != 0xff || b[12] != 0xfe {
		return "", false
	}
	return net.HardwareAddr{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}.String(), true
}

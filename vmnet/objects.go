package vmnet

import (
	"net/netip"
)

// objects are what the kernel has, or shall have, of one owner. All of it is
// comparable, so that what differs is found by comparing.
type objects struct {
	links map[string]link
	// addresses of our links.
	addresses map[address]bool
	// neighbours are the permanent ones of our bridges, with their MAC.
	neighbours map[neighbour]string
	// forwarding entries of bridges and overlays, with the node of the latter.
	forwarding map[forward]netip.Addr
	// sysctls by their path below /proc/sys.
	sysctls map[string]string
}

func newObjects() objects {
	return objects{
		links: map[string]link{}, addresses: map[address]bool{}, neighbours: map[neighbour]string{},
		forwarding: map[forward]netip.Addr{}, sysctls: map[string]string{},
	}
}

// link is an interface of ours.
type link struct {
	kind string
	// alias says whose it is and what for.
	alias string
	mac   string // empty: any
	mtu   int    // bytes
	up    bool
	// bridge that it is a port of, and how.
	bridge string
	port   portFlags
	// vni, udpPort and local of an overlay.
	vni, udpPort int
	local        netip.Addr
}

// portFlags say how a bridge treats a port.
type portFlags struct {
	// learning from source addresses, flood of unicast to unknown addresses.
	learning, flood bool
	// hairpin sends frames back to where they came from.
	hairpin bool
	// guard takes no BPDU.
	guard bool
	// isolated ports don't reach each other.
	isolated bool
	// suppress answers for neighbours behind the port, instead of asking them.
	suppress bool
}

// address of a link.
type address struct {
	link   string
	prefix netip.Prefix
}

// neighbour is an IP address on a bridge.
type neighbour struct {
	link string
	ip   netip.Addr
}

// forward is an entry of a forwarding table: of the bridge that link is a port of,
// or of the overlay itself.
type forward struct {
	link, mac string
	overlay   bool
}

// hostFacts are what a plan needs to know of the host beside our own objects.
type hostFacts struct {
	// links that are not ours, with their aliases.
	links map[string]string
	// ours are our own links that are there.
	ours map[string]bool
	// routes and addresses of links that are not ours.
	routes []hostRoute
	// bridges: one of the links that are not ours is a bridge.
	bridges bool
	// overlays that are not ours.
	overlays []hostOverlay
	// overlayPortTaken: a program has the UDP port of the overlay.
	overlayPortTaken bool
	// uplinks are the links that answers to guests may come in by.
	uplinks []uplink
	// underlayMTU is the MTU in bytes of the link that has the underlay address, and
	// uplinkMTU that of the default route's; 0 means unknown.
	underlayMTU, uplinkMTU int
	// forward4 and forward6 tell that the host forwards packets by its own settings.
	forward4, forward6 bool
	// forceForward6: the kernel can forward IPv6 by link (Linux 6.17).
	forceForward6 bool
}

type hostRoute struct {
	prefix  netip.Prefix
	link    string
	address bool
}

type hostOverlay struct {
	link      string
	vni, port int
}

type uplink struct {
	link     string
	acceptRA bool
}

package vmnet

import (
	"net/netip"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Desired is all that the node shall have. It replaces what was desired before.
type Desired struct {
	Networks []Network
	// Ports that the node answers on.
	Ports []Port
	// Underlay is the node's own address that other nodes send the overlay to. With
	// the zero value or a loopback address there is no overlay.
	Underlay netip.Addr
	// Node is the name of the node, for logs.
	Node string
}

// Network is a network with its endpoints.
type Network struct {
	Spec *blixardv1.Network
	// Local are the NICs of VMs on this node and Remote those on other ones.
	Local  []Endpoint
	Remote []Endpoint
}

// Endpoint is a NIC of a VM.
type Endpoint struct {
	AllocationID string
	// VMName is the full name.
	VMName string
	// Index of the NIC in its VM, from 0.
	Index int
	// MAC as six hex bytes with colons.
	MAC string
	// IPv4 and IPv6 are the leased addresses; either may be the zero value.
	IPv4, IPv6 netip.Addr
	// Node is the underlay address of the node that a remote endpoint is on.
	Node netip.Addr
	// Aliases are further names of the VM in its network.
	Aliases []string
}

// Port is a published port: what arrives at HostPort of this node goes to a VM on
// it, or on to the node that has the VM.
type Port struct {
	HostPort uint16
	// Protocol; unset means tcp.
	Protocol blixardv1.Protocol_Enum
	// GuestPort of the VM at IPv4 and IPv6, when it is on this node. Either address
	// may be the zero value.
	GuestPort  uint16
	IPv4, IPv6 netip.Addr
	// Node is the underlay address of the node that has the VM, when it is another;
	// the zero value says that the VM is here.
	Node netip.Addr
}

// protocol gives the word of the port's protocol.
func (p Port) protocol() string {
	if p.Protocol == blixardv1.Protocol_udp {
		return "udp"
	}
	return "tcp"
}

// local reports whether the VM is on this node.
func (p Port) local() bool { return !p.Node.IsValid() }

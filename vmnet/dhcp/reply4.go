package dhcp

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	serverPort4 = 67
	clientPort4 = 68
)

// Reply4 gives the answer to a DHCP packet and whom it goes to; ok is false for
// what gets none.
func (l *Leases) Reply4(packet []byte) (reply []byte, to netip.AddrPort, ok bool) {
	request, err := dhcpv4.FromBytes(packet)
	if err != nil || request.OpCode != dhcpv4.OpcodeBootRequest || len(request.ClientHWAddr) != 6 ||
		!isUnspecified(request.GatewayIPAddr) || !l.Gateway4.IsValid() {
		return nil, to, false
	}
	lease := l.ByMAC[request.ClientHWAddr.String()]
	if !lease.IPv4.IsValid() {
		return nil, to, false
	}
	var kind dhcpv4.MessageType
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeInform:
		kind = dhcpv4.MessageTypeAck
	case dhcpv4.MessageTypeRequest:
		if id := request.ServerIdentifier(); id != nil && !id.Equal(l.Gateway4.AsSlice()) {
			return nil, to, false // it chose another server
		}
		kind = dhcpv4.MessageTypeAck
		wished := request.RequestedIPAddress()
		if isUnspecified(wished) {
			wished = request.ClientIPAddr
		}
		if got, valid := netip.AddrFromSlice(wished); !valid || got.Unmap() != lease.IPv4 {
			kind = dhcpv4.MessageTypeNak
		}
	default:
		return nil, to, false
	}
	answer, err := l.answer4(request, kind, lease)
	if err != nil {
		return nil, to, false
	}
	return answer.ToBytes(), l.address4(request, kind, lease), true
}

func isUnspecified(ip net.IP) bool { return ip == nil || ip.IsUnspecified() }

func (l *Leases) answer4(request *dhcpv4.DHCPv4, kind dhcpv4.MessageType, lease Lease) (*dhcpv4.DHCPv4, error) {
	mods := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(l.Gateway4.AsSlice()), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Gateway4.AsSlice()))}
	if kind == dhcpv4.MessageTypeNak {
		return dhcpv4.NewReplyFromRequest(request, mods...)
	}
	if request.MessageType() != dhcpv4.MessageTypeInform {
		mods = append(mods, dhcpv4.WithYourIP(lease.IPv4.AsSlice()), dhcpv4.WithLeaseTime(uint32(LeaseTime.Seconds())))
	}
	mods = append(
		mods,
		dhcpv4.WithNetmask(net.CIDRMask(l.Subnet4.Bits(), 32)),
		dhcpv4.WithRouter(l.Gateway4.AsSlice()),
		dhcpv4.WithDNS(l.Gateway4.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptDomainName(l.Domain)),
		dhcpv4.WithDomainSearchList(l.Domain),
		dhcpv4.WithOption(dhcpv4.OptHostName(lease.Hostname)),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(l.MTU >> 8), byte(l.MTU)}),
	)
	return dhcpv4.NewReplyFromRequest(request, mods...)
}

// address4 gives where the answer goes: to the address that the client has, or the
// one it gets (the node knows the NIC without asking), or to all.
func (l *Leases) address4(request *dhcpv4.DHCPv4, kind dhcpv4.MessageType, lease Lease) netip.AddrPort {
	to := lease.IPv4
	if kind == dhcpv4.MessageTypeNak || isUnspecified(request.ClientIPAddr) && request.IsBroadcast() {
		to = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return netip.AddrPortFrom(to, clientPort4)
}

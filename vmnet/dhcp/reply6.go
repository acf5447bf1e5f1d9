package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

const (
	serverPort6 = 547
	// RouterLifetime is how long guests use the gateway without hearing of it again:
	// the longest that there is, 2.5 hours, since the daemon may be away.
	RouterLifetime = 9000 * time.Second
)

// Reply6 gives the answer to a DHCPv6 packet that came from a link-local address;
// ok is false for what gets none. Which NIC it is tells the address, which nobody
// else can send from.
func (l *Leases) Reply6(packet []byte, from netip.Addr) (reply []byte, ok bool) {
	mac, ok := linkLocalMAC(from.WithZone(""))
	lease := l.ByMAC[mac]
	if !ok || !lease.IPv6.IsValid() {
		return nil, false
	}
	request, err := dhcpv6.MessageFromBytes(packet)
	if err != nil || request.Options.ClientID() == nil {
		return nil, false
	}
	hw, err := net.ParseMAC(l.GatewayMAC)
	if err != nil {
		return nil, false
	}
	own := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw}
	if id := request.Options.ServerID(); id != nil && !id.Equal(own) {
		return nil, false
	}
	answer, err := l.answer6(request)
	if err != nil {
		return nil, false
	}
	answer.AddOption(dhcpv6.OptServerID(own))
	switch request.MessageType {
	case dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRelease:
		answer.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		return answer.ToBytes(), true
	}
	if ask := request.Options.OneIANA(); ask != nil && request.MessageType != dhcpv6.MessageTypeInformationRequest {
		life := LeaseTime
		answer.AddOption(&dhcpv6.OptIANA{
			IaId: ask.IaId, T1: life / 2, T2: life * 4 / 5,
			Options: dhcpv6.IdentityOptions{Options: []dhcpv6.Option{&dhcpv6.OptIAAddress{IPv6Addr: lease.IPv6.AsSlice(), PreferredLifetime: life, ValidLifetime: life}}},
		})
	}
	answer.AddOption(dhcpv6.OptDNS(l.Gateway6.AsSlice()))
	return answer.ToBytes(), true
}

// answer6 gives the frame of an answer.
func (l *Leases) answer6(request *dhcpv6.Message) (*dhcpv6.Message, error) {
	switch request.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if request.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
			return dhcpv6.NewAdvertiseFromSolicit(request)
		}
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind,
		dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeInformationRequest:
	default:
		return nil, errNoAnswer
	}
	return dhcpv6.NewReplyFromMessage(request)
}

// Advertisement gives the router advertisement of the network, as ICMPv6 with a
// checksum that the kernel fills in: the gateway as router, addresses by DHCPv6,
// the subnet on the link, MTU and DNS.
func (l *Leases) Advertisement() []byte {
	const managed, other = 0x80, 0x40
	life := uint32(RouterLifetime.Seconds())
	ra := []byte{134, 0, 0, 0, 64, managed | other}
	ra = binary.BigEndian.AppendUint16(ra, uint16(life))
	ra = append(ra, make([]byte, 8)...) // reachable time and retransmission: the guest's own
	if hw, err := net.ParseMAC(l.GatewayMAC); err == nil {
		ra = append(append(ra, 1, 1), hw...)
	}
	ra = binary.BigEndian.AppendUint32(append(ra, 5, 1, 0, 0), uint32(l.MTU))
	const onLink, infinite = 0x80, 0xffffffff
	ra = append(ra, 3, 4, byte(l.Subnet6.Bits()), onLink)
	ra = binary.BigEndian.AppendUint32(ra, infinite)
	ra = binary.BigEndian.AppendUint32(ra, infinite)
	subnet, dns := l.Subnet6.Addr().As16(), l.Gateway6.As16()
	ra = append(append(ra, 0, 0, 0, 0), subnet[:]...)
	ra = binary.BigEndian.AppendUint32(append(ra, 25, 3, 0, 0), life)
	ra = append(ra, dns[:]...)
	return append(ra, l.searchOption(life)...)
}

// searchOption tells the domain.
func (l *Leases) searchOption(life uint32) []byte {
	var name []byte
	for label := range strings.SplitSeq(l.Domain, ".") {
		name = append(append(name, byte(len(label))), label...)
	}
	name = append(name, 0)
	for len(name)%8 != 0 {
		name = append(name, 0)
	}
	option := binary.BigEndian.AppendUint32([]byte{31, byte(1 + len(name)/8), 0, 0}, life)
	return append(option, name...)
}

package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

const guestMAC = "52:54:00:00:01:02"

// guestLocal is the link-local address that guestMAC makes.
var guestLocal = netip.MustParseAddr("fe80::5054:ff:fe00:102")

func testLeases() *Leases {
	return &Leases{
		Subnet4: netip.MustParsePrefix("10.1.0.0/24"), Subnet6: netip.MustParsePrefix("fd00:1::/64"),
		Gateway4: netip.MustParseAddr("10.1.0.1"), Gateway6: netip.MustParseAddr("fd00:1::1"),
		GatewayMAC: "02:00:00:00:00:01", MTU: 1450, Domain: "blue.blixard",
		ByMAC: map[string]Lease{
			guestMAC:            {IPv4: netip.MustParseAddr("10.1.0.2"), IPv6: netip.MustParseAddr("fd00:1::2"), Hostname: "web"},
			"52:54:00:00:01:03": {Hostname: "without"},
		},
	}
}

func hw(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func request4(t testing.TB, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(hw(guestMAC))}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.ToBytes()
}

// TestReply4: each message of a client, and what it is answered with.
func TestReply4(t *testing.T) {
	l := testLeases()
	ip := func(s string) net.IP { return net.ParseIP(s) }
	wish := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip(s))) }
	has := func(s string) dhcpv4.Modifier { return dhcpv4.WithClientIP(ip(s)) }
	server := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(s))) }
	for _, tc := range []struct {
		name   string
		packet []byte
		want   string // "" for no answer
		to     string
	}{
		{"discover", request4(t, dhcpv4.MessageTypeDiscover), "OFFER 10.1.0.2", "10.1.0.2:68"},
		{"discover, to be answered to all", request4(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true)), "OFFER 10.1.0.2", "255.255.255.255:68"},
		{"request", request4(t, dhcpv4.MessageTypeRequest, wish("10.1.0.2"), server("10.1.0.1")), "ACK 10.1.0.2", "10.1.0.2:68"},
		{"request of another server", request4(t, dhcpv4.MessageTypeRequest, wish("10.1.0.2"), server("10.1.0.9")), "", ""},
		{"request for another address", request4(t, dhcpv4.MessageTypeRequest, wish("10.1.0.3")), "NAK 0.0.0.0", "255.255.255.255:68"},
		{"request for nothing", request4(t, dhcpv4.MessageTypeRequest), "NAK 0.0.0.0", "255.255.255.255:68"},
		{"renewal", request4(t, dhcpv4.MessageTypeRequest, has("10.1.0.2")), "ACK 10.1.0.2", "10.1.0.2:68"},
		{"renewal of another address", request4(t, dhcpv4.MessageTypeRequest, has("10.1.0.3")), "NAK 0.0.0.0", "255.255.255.255:68"},
		{"inform", request4(t, dhcpv4.MessageTypeInform, has("10.1.0.2")), "ACK 0.0.0.0", "10.1.0.2:68"},
		{"release", request4(t, dhcpv4.MessageTypeRelease), "", ""},
		{"decline", request4(t, dhcpv4.MessageTypeDecline), "", ""},
		{"a stranger", request4(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(hw("52:54:00:00:01:09"))), "", ""},
		{"without a lease", request4(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(hw("52:54:00:00:01:03"))), "", ""},
		{"by a relay", request4(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithRelay(ip("10.1.0.7"))), "", ""},
		{"a server's", request4(t, dhcpv4.MessageTypeOffer), "", ""},
		{"rubbish", []byte("rubbish"), "", ""},
	} {
		reply, to, ok := l.Reply4(tc.packet)
		got := ""
		if ok {
			m, err := dhcpv4.FromBytes(reply)
			if err != nil {
				t.Fatal(err)
			}
			got = m.MessageType().String() + " " + m.YourIPAddr.String()
			if m.MessageType() != dhcpv4.MessageTypeNak && (m.SubnetMask().String() != "ffffff00" ||
				m.Router()[0].String() != "10.1.0.1" || m.DNS()[0].String() != "10.1.0.1" || m.DomainName() != "blue.blixard" || m.HostName() != "web") {
				t.Errorf("%s: %s", tc.name, m.Summary())
			}
			if m.MessageType() == dhcpv4.MessageTypeAck && !m.YourIPAddr.IsUnspecified() && m.IPAddressLeaseTime(0) != LeaseTime {
				t.Errorf("%s: lease of %s", tc.name, m.IPAddressLeaseTime(0))
			}
			if to.String() != tc.to {
				t.Errorf("%s: goes to %s, want %s", tc.name, to, tc.to)
			}
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func message6(t testing.TB, kind dhcpv6.MessageType, options ...dhcpv6.Option) []byte {
	t.Helper()
	m, err := dhcpv6.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = kind
	for _, o := range options {
		m.AddOption(o)
	}
	return m.ToBytes()
}

// TestReply6: each message of a client by IPv6, and what it is answered with.
func TestReply6(t *testing.T) {
	l := testLeases()
	id := dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw(guestMAC)})
	ask := &dhcpv6.OptIANA{IaId: [4]byte{1, 2, 3, 4}}
	own := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw(l.GatewayMAC)})
	other := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw(guestMAC)})
	rapid := &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
	for _, tc := range []struct {
		name   string
		packet []byte
		from   netip.Addr
		want   string
	}{
		{"solicit", message6(t, dhcpv6.MessageTypeSolicit, id, ask), guestLocal, "ADVERTISE fd00:1::2"},
		{"solicit in a hurry", message6(t, dhcpv6.MessageTypeSolicit, id, ask, rapid), guestLocal, "REPLY fd00:1::2"},
		{"request", message6(t, dhcpv6.MessageTypeRequest, id, ask, own), guestLocal, "REPLY fd00:1::2"},
		{"renew", message6(t, dhcpv6.MessageTypeRenew, id, ask, own), guestLocal, "REPLY fd00:1::2"},
		{"rebind", message6(t, dhcpv6.MessageTypeRebind, id, ask), guestLocal, "REPLY fd00:1::2"},
		{"confirm", message6(t, dhcpv6.MessageTypeConfirm, id, ask), guestLocal, "REPLY"},
		{"release", message6(t, dhcpv6.MessageTypeRelease, id, ask, own), guestLocal, "REPLY"},
		{"information", message6(t, dhcpv6.MessageTypeInformationRequest, id), guestLocal, "REPLY"},
		{"request of another server", message6(t, dhcpv6.MessageTypeRequest, id, ask, other), guestLocal, ""},
		{"without an id", message6(t, dhcpv6.MessageTypeSolicit, ask), guestLocal, ""},
		{"from a stranger", message6(t, dhcpv6.MessageTypeSolicit, id, ask), netip.MustParseAddr("fe80::5054:ff:fe00:109"), ""},
		{"from one without a lease", message6(t, dhcpv6.MessageTypeSolicit, id, ask), netip.MustParseAddr("fe80::5054:ff:fe00:103"), ""},
		{"from no link-local address", message6(t, dhcpv6.MessageTypeSolicit, id, ask), netip.MustParseAddr("fd00:1::2"), ""},
		{"a server's", message6(t, dhcpv6.MessageTypeAdvertise, id, ask), guestLocal, ""},
		{"rubbish", []byte("rubbish"), guestLocal, ""},
	} {
		reply, ok := l.Reply6(tc.packet, tc.from)
		got := ""
		if ok {
			m, err := dhcpv6.MessageFromBytes(reply)
			if err != nil {
				t.Fatal(err)
			}
			got = m.MessageType.String()
			if na := m.Options.OneIANA(); na != nil {
				got += " " + na.Options.OneAddress().IPv6Addr.String()
				if na.IaId != ask.IaId {
					t.Errorf("%s: another association", tc.name)
				}
			}
			if m.Options.ClientID() == nil || m.Options.ServerID() == nil {
				t.Errorf("%s: ids are missing: %s", tc.name, m.Summary())
			}
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	l.GatewayMAC = "none"
	if _, ok := l.Reply6(message6(t, dhcpv6.MessageTypeSolicit, id, ask), guestLocal); ok {
		t.Error("an answer without an id of the server")
	}
}

// TestAdvertisement: its options are whole, and say what they should.
func TestAdvertisement(t *testing.T) {
	ra := testLeases().Advertisement()
	if ra[0] != 134 || ra[5] != 0xc0 || len(ra)%8 != 0 {
		t.Fatalf("%x", ra)
	}
	got := map[byte][]byte{}
	for rest := ra[16:]; len(rest) > 0; rest = rest[int(rest[1])*8:] {
		if rest[1] == 0 || int(rest[1])*8 > len(rest) {
			t.Fatalf("an option that does not end: %x", rest)
		}
		got[rest[0]] = rest[:int(rest[1])*8]
	}
	if len(got) != 5 || string(got[1][2:]) != string(hw("02:00:00:00:00:01")) || got[5][6] != 1450>>8 || got[5][7] != 1450&0xff ||
		got[3][2] != 64 || got[3][3] != 0x80 || netip.AddrFrom16([16]byte(got[25][8:])) != netip.MustParseAddr("fd00:1::1") ||
		!strings.Contains(string(got[31]), "\x04blue\x07blixard\x00") {
		t.Errorf("%x", got)
	}
}

func TestListenSaysWhy(t *testing.T) {
	if _, err := Listen("nothere", testLeases(), nil); err == nil || !strings.Contains(err.Error(), "answer DHCP on nothere") {
		t.Errorf("a device that is not there: %v", err)
	}
	l := testLeases()
	l.Subnet4 = netip.Prefix{}
	if _, err := Listen("nothere", l, nil); err == nil {
		t.Error("a device that is not there, by IPv6")
	}
}

// FuzzReply4: no packet of a guest breaks anything, and only a lease is given.
func FuzzReply4(f *testing.F) {
	l := testLeases()
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform} {
		f.Add(request4(f, kind))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		reply, _, ok := l.Reply4(packet)
		if !ok {
			return
		}
		m, err := dhcpv4.FromBytes(reply)
		if err != nil {
			t.Fatalf("%x is answered with %x: %v", packet, reply, err)
		}
		if lease := l.ByMAC[m.ClientHWAddr.String()]; !m.YourIPAddr.IsUnspecified() && !m.YourIPAddr.Equal(lease.IPv4.AsSlice()) {
			t.Errorf("%s gets %s", m.ClientHWAddr, m.YourIPAddr)
		}
	})
}

// FuzzReply6 is the same by IPv6.
func FuzzReply6(f *testing.F) {
	l := testLeases()
	id := dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hw(guestMAC)})
	for kind := dhcpv6.MessageTypeSolicit; kind <= dhcpv6.MessageTypeInformationRequest; kind++ {
		f.Add(message6(f, kind, id, &dhcpv6.OptIANA{}))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		reply, ok := l.Reply6(packet, guestLocal)
		if !ok {
			return
		}
		if _, err := dhcpv6.MessageFromBytes(reply); err != nil {
			t.Fatalf("%x is answered with %x: %v", packet, reply, err)
		}
	})
}

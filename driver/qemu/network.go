package qemu

import (
	"bytes"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/blixard/blixard/driver"
)

// Limits of network devices.
const (
	nicsMax = 4
	// forwardsMax of one device: each is a socket of QEMU.
	forwardsMax = 64
	// The least and the most that virtio-net takes and IPv4 allows.
	mtuMin, mtuMax = 68, 65535
	userBitsMin    = 8
	userBitsMax    = 30
)

// tapPattern is what a name of a device may be: no pattern for new ones (%d) and
// nothing that is more than a file name.
var tapPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)

// defaultUserNet is what QEMU has by itself.
var defaultUserNet = netip.MustParsePrefix("10.0.2.0/24")

// nics attaches the network devices. The descriptors of taps are counted in the
// order of the devices.
func nics(list []driver.NIC) []string {
	var a []string
	tap := tapsFD
	for i, n := range list {
		id := "net" + strconv.Itoa(i)
		if n.User != nil {
			a = append(a, "-netdev", userNet(id, *n.User))
		} else {
			a = append(a, "-netdev", "tap,id="+id+",fd="+strconv.Itoa(tap)+",vhost=off")
			tap++
		}
		device := "virtio-net-device,netdev=" + id + ",mac=" + n.MAC
		if n.MTU != 0 {
			device += ",host_mtu=" + strconv.FormatUint(uint64(n.MTU), 10)
		}
		a = append(a, "-device", device)
	}
	return a
}

func userNet(id string, u driver.UserNet) string {
	u = withDefaults(u)
	o := []string{
		"user", "id=" + id, "ipv4=on", "ipv6=off", "net=" + u.Network.String(), "host=" + u.Router.String(),
		"dns=" + u.DNS.String(), "dhcpstart=" + u.Guest.String(), "restrict=" + onOff(u.Isolated),
	}
	for _, f := range u.Forwards {
		o = append(o, "hostfwd="+f.Protocol+":"+f.HostAddress.String()+":"+strconv.Itoa(int(f.HostPort))+
			"-"+u.Guest.String()+":"+strconv.Itoa(int(f.GuestPort)))
	}
	return strings.Join(o, ",")
}

// withDefaults fills in what is left out.
func withDefaults(u driver.UserNet) driver.UserNet {
	if !u.Network.IsValid() {
		u.Network = defaultUserNet
	}
	u.Network = u.Network.Masked()
	for _, d := range []struct {
		to     *netip.Addr
		number int
	}{{&u.Router, 2}, {&u.DNS, 3}, {&u.Guest, 15}} {
		if !d.to.IsValid() {
			*d.to = nth(u.Network.Addr(), d.number)
		}
	}
	u.Forwards = append([]driver.Forward(nil), u.Forwards...)
	for i := range u.Forwards {
		if !u.Forwards[i].HostAddress.IsValid() {
			u.Forwards[i].HostAddress = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
	}
	return u
}

func nth(a netip.Addr, n int) netip.Addr {
	for range n {
		a = a.Next()
	}
	return a
}

// checkNICs refuses what can't become a device.
func checkNICs(list []driver.NIC) error {
	if len(list) > nicsMax {
		return invalid("driver.nics", "%d network devices, at most %d are possible", len(list), nicsMax)
	}
	macs, taps := map[string]bool{}, map[string]bool{}
	for i, n := range list {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) || mac.String() != n.MAC {
			return invalid("driver.mac", "network device %d: %q is not the address of a single device in the form 02:00:00:00:00:01", i, n.MAC)
		}
		if macs[n.MAC] {
			return invalid("driver.mac", "network device %d: the address %s is there twice", i, n.MAC)
		}
		macs[n.MAC] = true
		if n.MTU != 0 && (n.MTU < mtuMin || n.MTU > mtuMax) {
			return invalid("driver.mtu", "network device %d: an MTU of %d, %d to %d are possible", i, n.MTU, mtuMin, mtuMax)
		}
		switch {
		case n.User == nil && !tapPattern.MatchString(n.Tap):
			return invalid("driver.tap", "network device %d: the tap %q does not match %s", i, n.Tap, tapPattern)
		case n.User == nil && taps[n.Tap]:
			return invalid("driver.tap", "network device %d: the tap %s is there twice", i, n.Tap)
		case n.User != nil && n.Tap != "":
			return invalid("driver.tap", "network device %d has a tap and a user-mode network", i)
		case n.User != nil:
			if err := checkUserNet(i, *n.User); err != nil {
				return err
			}
		}
		taps[n.Tap] = true
	}
	return nil
}

func checkUserNet(i int, u driver.UserNet) error {
	refuse := func(format string, args ...any) error {
		return invalid("driver.user_net", "network device "+strconv.Itoa(i)+": "+format, args...)
	}
	if u.Network.IsValid() && (!u.Network.Addr().Is4() || u.Network.Bits() < userBitsMin || u.Network.Bits() > userBitsMax) {
		return refuse("%v is not an IPv4 network of %d to %d bits", u.Network, userBitsMin, userBitsMax)
	}
	if len(u.Forwards) > forwardsMax {
		return refuse("%d forwards, at most %d are possible", len(u.Forwards), forwardsMax)
	}
	u = withDefaults(u)
	own := map[netip.Addr]bool{u.Network.Addr(): true}
	for _, a := range []netip.Addr{u.Router, u.DNS, u.Guest} {
		if !a.Is4() || !u.Network.Contains(a) || own[a] {
			return refuse("the address %v is not in %v, or is there twice", a, u.Network)
		}
		own[a] = true
	}
	seen := map[driver.Forward]bool{}
	for _, f := range u.Forwards {
		host := f
		host.GuestPort = 0
		switch {
		case f.Protocol != "tcp" && f.Protocol != "udp":
			return refuse("protocol %q of a forward, tcp and udp are possible", f.Protocol)
		case f.HostPort == 0 || f.GuestPort == 0:
			return refuse("a forward without a port")
		case !f.HostAddress.Is4():
			return refuse("%v is not an IPv4 address to listen on", f.HostAddress)
		case seen[host]:
			return refuse("%s port %d of %v is forwarded twice", f.Protocol, f.HostPort, f.HostAddress)
		}
		seen[host] = true
	}
	return nil
}

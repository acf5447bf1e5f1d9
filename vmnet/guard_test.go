package vmnet

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestStrangersBridgeGoesOn: what another's bridge on a host that does not forward
// passes on is passed on still, whether or not the host shows it to the rules for IP,
// with its mark as it was; and the host forwards nothing of it, not even back to the
// bridge.
func TestStrangersBridgeGoesOn(t *testing.T) {
	for _, frames := range []string{"0", "1"} {
		t.Run("frames shown to the IP rules="+frames, func(t *testing.T) {
			setBridgeCalls(t, frames)
			strangersBridge(t)
		})
	}
}

func strangersBridge(t *testing.T) {
	newOutside(t)
	ip(t, "", "link", "add", "stranger", "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", "stranger") })
	ip(t, "", "addr", "add", "198.51.100.1/24", "dev", "stranger")
	ip(t, "", "addr", "add", "2001:db8:1::1/64", "dev", "stranger", "nodad")
	ip(t, "", "link", "set", "stranger", "up")
	for name, last := range map[string]string{"s2": "2", "s3": "3"} {
		newNamespace(t, name)
		ip(t, "", "link", "add", "to-"+name, "type", "veth", "peer", "name", "eth0", "netns", name)
		t.Cleanup(func() { run(t, "ip", "link", "del", "to-"+name) })
		ip(t, "", "link", "set", "to-"+name, "master", "stranger", "up")
		ip(t, name, "addr", "add", "198.51.100."+last+"/24", "dev", "eth0")
		ip(t, name, "addr", "add", "2001:db8:1::"+last+"/64", "dev", "eth0", "nodad")
		ip(t, name, "link", "set", "eth0", "up")
		ip(t, name, "route", "add", "192.0.2.0/24", "via", "198.51.100.1")
		ip(t, name, "route", "add", "2001:db8::/64", "via", "2001:db8:1::1")
		echo(t, name, name, ":80")
	}
	echo(t, "outside", "outside", ":80")
	ip(t, "outside", "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
	ip(t, "outside", "route", "add", "2001:db8:1::/64", "via", "2001:db8::1")
	// What a rule of the host's sees of a mark: its own 1, and no other bit.
	run(t, "nft", "add table bridge host; "+
		"add chain bridge host before { type filter hook prerouting priority -300 ; }; add rule bridge host before iifname \"to-s*\" meta mark set 1; "+
		"add chain bridge host after { type filter hook forward priority 2 ; }; add rule bridge host after iifname \"to-s*\" meta mark != 1 counter drop; "+
		"add table inet host; add chain inet host forward { type filter hook forward priority -998 ; }; add rule inet host forward meta mark & 0xfffffffe != 0 counter drop")
	t.Cleanup(func() { run(t, "nft", "delete table bridge host; delete table inet host") })
	// Two daemons, neither of which may be in the other's way.
	a := nic(1, 2)
	f := newFabric(t)
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{a}}}})
	addGuest(t, f, "a", a)
	other := newFabric(t, func(c *Config) { c.Owner, c.Prefix = "node-2", "bly" })
	apply(t, other, Desired{Networks: []Network{{Spec: newNetwork(2), Local: []Endpoint{nic(2, 2)}}}})
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{a}, Remote: []Endpoint{}}}})
	noDrift(t, f)
	var asking sync.WaitGroup
	asks := func(from, to, want string) {
		for _, protocol := range []string{"tcp", "udp"} {
			asking.Go(func() {
				if got := ask(t, from, protocol, to); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
					t.Errorf("%s from %s to %s: got %q, want %q", protocol, from, to, got, want)
				}
			})
		}
	}
	asks("s2", "198.51.100.3:80", "s3 198.51.100.2:")
	asks("s2", "[2001:db8:1::3]:80", "s3 [2001:db8:1::2]:")
	asks("a", "198.51.100.3:80", "s3 198.51.100.1:")
	asks("a", "192.0.2.2:80", "outside 192.0.2.1:")
	asks("s2", "192.0.2.2:80", "")
	asks("s2", "[2001:db8::2]:80", "")
	asking.Wait()
	// By way of the host, on one link.
	for _, name := range []string{"s2", "s3"} {
		ip(t, name, "route", "add", "198.51.100.2/31", "via", "198.51.100.1")
		ip(t, name, "route", "add", "2001:db8:1::2/127", "via", "2001:db8:1::1")
	}
	asks("s2", "198.51.100.3:80", "")
	asks("s2", "[2001:db8:1::3]:80", "")
	asking.Wait()
}

// TestInterfacesComeAndGo: that others make and remove interfaces all the time is no
// reason for a network not to be read and set up.
func TestInterfacesComeAndGo(t *testing.T) {
	newOutside(t)
	f := newFabric(t)
	stop := make(chan struct{})
	var strangers sync.WaitGroup
	for i := range 2 {
		strangers.Go(func() {
			link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("stranger", i)}, PeerName: fmt.Sprint("peer", i)}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := netlink.LinkAdd(link); err != nil {
					t.Error(err)
					return
				}
				if err := netlink.LinkDel(link); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range 100 {
		apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{nic(1, 2+n%2)}}}})
		noDrift(t, f)
		if _, err := HostSubnets("node-1"); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	strangers.Wait()
}

package vmnet

import (
	"strings"
	"sync"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestGuestsReachEachOtherAndTheOutside: two guests of a network, by IPv4 and
// IPv6, the outside by translation, and the published port by every way there is.
func TestGuestsReachEachOtherAndTheOutside(t *testing.T) {
	for _, frames := range []string{"0", "1"} {
		t.Run("frames shown to the IP rules="+frames, func(t *testing.T) {
			setBridgeCalls(t, frames)
			guestsReach(t)
		})
	}
}

// TestOlderKernelsForwardIPv6: where a link alone can't forward IPv6, all do, and
// none of it is left.
func TestOlderKernelsForwardIPv6(t *testing.T) {
	t.Run("all", func(t *testing.T) { guestsReach(t, func(f *Fabric) { f.beforeLinux617 = true }) })
	if got := readSysctl("net/ipv6/conf/all/forwarding"); got != "0" {
		t.Errorf("IPv6 forwarding of the host is %q after", got)
	}
}

func guestsReach(t *testing.T, change ...func(*Fabric)) {
	newOutside(t)
	before := census(t)
	t.Cleanup(func() { sameCensus(t, before, census(t)) })
	f := newFabric(t)
	for _, do := range change {
		do(f)
	}
	a, b := nic(1, 2), nic(1, 3)
	apply(t, f, Desired{
		Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{a, b}}},
		Ports: []Port{
			{HostPort: 8080, GuestPort: 80, IPv4: a.IPv4, IPv6: a.IPv6},
			{HostPort: 8080, GuestPort: 80, IPv4: a.IPv4, IPv6: a.IPv6, Protocol: blixardv1.Protocol_udp},
		},
	})
	addGuest(t, f, "a", a)
	addGuest(t, f, "b", b)
	var asking sync.WaitGroup
	echo(t, "a", "vm-a", ":80")
	echo(t, "outside", "outside", ":80")
	echo(t, "", "host", ":22")
	for _, tc := range []struct{ from, to, want string }{
		{"b", "10.1.0.2:80", "vm-a 10.1.0.3:"},
		{"b", "[fd00:1::2]:80", "vm-a [fd00:1::3]:"},
		{"b", "192.0.2.2:80", "outside 192.0.2.1:"},
		{"b", "[2001:db8::2]:80", "outside [2001:db8::1]:"},
		{"outside", "192.0.2.1:8080", "vm-a 192.0.2.2:"},
		{"outside", "[2001:db8::1]:8080", "vm-a [2001:db8::2]:"},
		{"", "127.0.0.1:8080", "vm-a 10.1.0.1:"},
		{"", "192.0.2.1:8080", "vm-a 192.0.2.1:"},
		{"", "[2001:db8::1]:8080", "vm-a [2001:db8::1]:"},
		{"", "[::1]:8080", ""},
		{"b", "192.0.2.1:8080", "vm-a 10.1.0.1:"},
		{"b", "192.0.2.1:22", ""},
		{"b", "10.1.0.1:22", ""},
		{"b", "[fd00:1::1]:22", ""},
		{"b", "10.1.0.1:8080", ""},
		{"outside", "192.0.2.1:22", "host 192.0.2.2:"},
	} {
		for _, protocol := range []string{"tcp", "udp"} {
			asking.Go(func() {
				if got := ask(t, tc.from, protocol, tc.to); !strings.HasPrefix(got, tc.want) || (tc.want == "") != (got == "") {
					t.Errorf("%s from %q to %s: got %q, want %q", protocol, tc.from, tc.to, got, tc.want)
				}
			})
		}
	}
	asking.Wait()
	if !ping(t, "b", "10.1.0.2", 1472) || !ping(t, "b", "fd00:1::2", 1452) || !ping(t, "b", "10.1.0.1", 100) {
		t.Error("no echo")
	}
}

package vmnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// refused applies and wants one problem, of that code, that names something; and
// that nothing was changed for it.
func refused(t *testing.T, f *Fabric, want Desired, name, code, names string) {
	t.Helper()
	before := strings.Join(lines(t, "ip", "-br", "link"), "\n")
	if err := f.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	problems := f.Problems()
	p := problem.From(problems[name])
	if len(problems) != 1 || p == nil || p.Code != code || !strings.Contains(p.Message, names) || p.Hint == "" && code != "network.invalid" {
		t.Errorf("got %v, want one of %q with the code %s that names %q", problems, name, code, names)
	}
	if after := strings.Join(lines(t, "ip", "-br", "link"), "\n"); after != before {
		t.Errorf("links changed from\n%s\nto\n%s", before, after)
	}
}

// TestClashesAreRefused: what the host has already is named, before anything is
// changed, and the other networks come all the same.
func TestClashesAreRefused(t *testing.T) {
	newOutside(t)
	underlay := netip.MustParseAddr("192.0.2.1")
	f := newFabric(t)
	one := func(spec *blixardv1.Network, local ...Endpoint) Desired {
		return Desired{Underlay: underlay, Networks: []Network{{Spec: spec, Local: local}}}
	}
	subnet := func(s string) func(*blixardv1.Network) { return func(n *blixardv1.Network) { n.Ipv4Subnet = s } }
	bridge := f.planner.bridge(newNetwork(1).GetId())

	ip(t, "", "route", "add", "10.1.0.128/25", "via", "192.0.2.2")
	refused(t, f, one(newNetwork(1)), "net1", "network.subnet_overlaps", "route 10.1.0.128/25 of up0")
	ip(t, "", "route", "del", "10.1.0.128/25")
	refused(t, f, one(newNetwork(1, subnet("192.0.2.0/25"))), "net1", "network.subnet_overlaps", "192.0.2.1/24 of up0")
	ip(t, "", "-6", "route", "add", "fd00:1::/48", "via", "2001:db8::2")
	refused(t, f, one(newNetwork(1)), "net1", "network.subnet_overlaps", "route fd00:1::/48 of up0")
	ip(t, "", "-6", "route", "del", "fd00:1::/48")

	ip(t, "", "link", "add", bridge, "type", "bridge")
	refused(t, f, one(newNetwork(1)), "net1", "network.name_taken", bridge)
	ip(t, "", "link", "set", bridge, "alias", mark{owner: "node-9", kind: kindBridge, id: "x"}.String())
	refused(t, f, one(newNetwork(1)), "net1", "network.owned_elsewhere", "node-9")
	ip(t, "", "link", "del", bridge)
	e := nic(1, 2)
	ip(t, "", "link", "add", f.planner.tap(e.AllocationID, 0), "type", "bridge")
	if err := f.Apply(t.Context(), one(newNetwork(1), e)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Tap(t.Context(), e.AllocationID, 0, TapOptions{}); !problem.HasCode(err, "network.name_taken") {
		t.Errorf("a tap of the network: %v", err)
	}
	ip(t, "", "link", "del", f.planner.tap(e.AllocationID, 0))
	apply(t, f, Desired{})

	ip(t, "", "link", "add", "vx", "type", "vxlan", "id", "1", "dstport", "4789", "local", "192.0.2.1")
	refused(t, f, one(newNetwork(1)), "net1", "network.vni_taken", "vx")
	ip(t, "", "link", "del", "vx")
	udp, err := net.ListenPacket("udp", "0.0.0.0:4789")
	if err != nil {
		t.Fatal(err)
	}
	refused(t, f, one(newNetwork(1)), "net1", "network.overlay_port_taken", "4789")
	_ = udp.Close()
	apply(t, f, one(newNetwork(1)))
	apply(t, f, Desired{})

	stranger, err := net.Listen("tcp", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	want := one(newNetwork(1), e)
	apply(t, f, want)
	want.Ports = []Port{{HostPort: 8080, GuestPort: 80, IPv4: e.IPv4}}
	refused(t, f, want, "port 8080/tcp", "network.port_taken", "8080")
	if strings.Contains(run(t, "nft", "list", "ruleset"), "tcp . 8080") {
		t.Error("the port that somebody else has is published all the same")
	}
	_ = stranger.Close()
	apply(t, f, want)
	if l, err := net.Listen("tcp", "127.0.0.1:8080"); err == nil {
		_ = l.Close()
		t.Error("somebody else can take a published port")
	}
	if l, err := net.ListenPacket("udp", "127.0.0.1:8080"); err != nil {
		t.Errorf("the other protocol's port is free: %v", err)
	} else {
		_ = l.Close()
	}

	// Two networks, of which one can't be.
	both := Desired{Networks: []Network{{Spec: newNetwork(1)}, {Spec: newNetwork(2, subnet("10.1.0.0/16"))}, {Spec: newNetwork(3)}}}
	if err := f.Apply(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	if p := f.Problems(); len(p) != 1 || !problem.HasCode(p["net2"], "network.subnet_overlaps") {
		t.Errorf("two networks of one subnet: %v", p)
	}
	// A route that comes when the network is there does not end it.
	ip(t, "", "route", "add", "10.1.0.0/16", "via", "192.0.2.2")
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1)}}})
	ip(t, "", "route", "del", "10.1.0.0/16")
}

// TestInvalidNetworksAreRefused: what would make rules that let too much pass.
func TestInvalidNetworksAreRefused(t *testing.T) {
	f := newFabric(t)
	for _, tc := range []struct {
		names  string
		change func(*Network)
	}{
		{"no id", func(n *Network) { n.Spec.Id = "" }},
		{"no subnet", func(n *Network) { n.Spec.Ipv4Subnet, n.Spec.Ipv6Subnet = "", "" }},
		{"10.1.0.1/24", func(n *Network) { n.Spec.Ipv4Subnet = "10.1.0.1/24" }},
		{"fd00::/16 x", func(n *Network) { n.Spec.Ipv6Subnet = "fd00::/16 x" }},
		{"10.1.0.0/31", func(n *Network) { n.Spec.Ipv4Subnet = "10.1.0.0/31" }},
	} {
		n := Network{Spec: newNetwork(1), Local: []Endpoint{nic(1, 2), nic(1, 3)}}
		tc.change(&n)
		refused(t, f, Desired{Networks: []Network{n}}, "net1", "network.invalid", tc.names)
	}
	for _, n := range []uint32{0, 1 << 24} {
		spec := newNetwork(1, func(s *blixardv1.Network) { s.Vni = n })
		refused(t, f, Desired{Underlay: netip.MustParseAddr("192.0.2.1"), Networks: []Network{{Spec: spec}}}, "net1", "network.invalid", "1 to 16777215")
	}
}

// TestInvalidNICsAreLeftOut: the others of their network are not.
func TestInvalidNICsAreLeftOut(t *testing.T) {
	f := newFabric(t)
	good := nic(1, 9)
	for _, tc := range []struct {
		names  string
		change func(*Network)
	}{
		{"no MAC", func(n *Network) { n.Local[0].MAC = "52-54-00-00-01-02" }},
		{"no MAC", func(n *Network) { n.Local[0].MAC = "53:54:00:00:01:02" }},
		{"no MAC", func(n *Network) { n.Local[0].MAC = `"; flush ruleset` }},
		{"gateway's MAC", func(n *Network) { n.Local[0].MAC = gatewayMAC(n.Spec.GetId()) }},
		{"10.1.0.1 is no address", func(n *Network) { n.Local[0].IPv4 = netip.MustParseAddr("10.1.0.1") }},
		{"10.2.0.2 is no address", func(n *Network) { n.Local[0].IPv4 = netip.MustParseAddr("10.2.0.2") }},
		{"fd00:1::1 is no address", func(n *Network) { n.Local[0].IPv6 = netip.MustParseAddr("fd00:1::1") }},
		{"both have 10.1.0.2", func(n *Network) { n.Local[1].IPv4 = n.Local[0].IPv4 }},
		{"both have 52:54:00:00:01:02", func(n *Network) { n.Local[1].MAC = n.Local[0].MAC }},
	} {
		n := Network{Spec: newNetwork(1), Local: []Endpoint{nic(1, 2), nic(1, 3), good}}
		tc.change(&n)
		if err := f.Apply(t.Context(), Desired{Networks: []Network{n}}); err != nil {
			t.Fatal(err)
		}
		p := f.Problems()
		if len(p) != 1 || !problem.HasCode(p["net1"], "network.nic_invalid") || !strings.Contains(p["net1"].Error(), tc.names) {
			t.Errorf("got %v, want one that names %q", p, tc.names)
		}
		if _, _, err := f.Tap(t.Context(), good.AllocationID, 0, TapOptions{}); err != nil {
			t.Errorf("%s: the other VM: %v", tc.names, err)
		}
	}
	// While a VM moves it may be told of in both places; it is here then.
	moved := on(nic(1, 2), "192.0.2.2")
	moved.AllocationID = "older"
	apply(t, f, Desired{Underlay: netip.MustParseAddr("192.0.2.1"), Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{nic(1, 2)}, Remote: []Endpoint{moved}}}})
	noDrift(t, f)
	// A new network that overlaps one that is there does not take its place.
	before := newNetwork(0, func(n *blixardv1.Network) { n.Ipv4Subnet, n.Vni = "10.1.0.0/16", 9 })
	if err := f.Apply(t.Context(), Desired{Networks: []Network{{Spec: before}, {Spec: newNetwork(1)}}}); err != nil {
		t.Fatal(err)
	}
	if p := f.Problems(); len(p) != 1 || !problem.HasCode(p["net0"], "network.subnet_overlaps") {
		t.Errorf("problems: %v", p)
	}
}

// TestTapsAreTheirOwners: a tap is for one user, is used again, and is made anew for
// another.
func TestTapsAreTheirOwners(t *testing.T) {
	f := newFabric(t)
	e := nic(1, 2)
	if _, _, err := f.Tap(t.Context(), e.AllocationID, 0, TapOptions{}); !problem.HasCode(err, "network.nic_unknown") {
		t.Errorf("before Apply: %v", err)
	}
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1, func(n *blixardv1.Network) { n.Mtu = 1400 }), Local: []Endpoint{e}}}})
	tap := func(opts TapOptions) int {
		t.Helper()
		name, mtu, err := f.Tap(t.Context(), e.AllocationID, 0, opts)
		if err != nil {
			t.Fatal(err)
		}
		if mtu != 1400 {
			t.Errorf("MTU %d", mtu)
		}
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return ifi.Index
	}
	first := tap(TapOptions{UID: 65534})
	if again := tap(TapOptions{UID: 65534}); again != first {
		t.Error("the tap was made anew for the same owner")
	}
	details := ip(t, "", "-d", "link", "show", "master", f.planner.bridge(newNetwork(1).GetId()))
	for _, want := range []string{"vnet_hdr on", "persist on", "user nobody", "mtu 1400", "isolated off", "learning off", "hairpin off"} {
		if !strings.Contains(details, want) {
			t.Errorf("the tap is not %q: %s", want, details)
		}
	}
	second := tap(TapOptions{UID: 65534, GID: 65534})
	if second == first {
		t.Error("the tap was not made anew for another owner")
	}
	if err := f.Untap(e.AllocationID); err != nil {
		t.Fatal(err)
	}
	if err := f.Untap(e.AllocationID); err != nil {
		t.Errorf("a second time: %v", err)
	}
	noDrift(t, f)
	// With its endpoint a tap goes by itself.
	tap(TapOptions{})
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1)}}})
	if left := ip(t, "", "link", "show", "type", "tun"); left != "" {
		t.Errorf("left: %s", left)
	}
	f.makeTap = func(string, string, TapOptions) error { return errors.New("no tap today") }
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{e}}}})
	if _, _, err := f.Tap(t.Context(), e.AllocationID, 0, TapOptions{}); !problem.HasCode(err, "network.tap_failed") {
		t.Errorf("a tap that can't be made: %v", err)
	}
}

// TestTwoDaemonsOnOneHost: neither touches what is the other's.
func TestTwoDaemonsOnOneHost(t *testing.T) {
	one := newFabric(t)
	two := newFabric(t, func(c *Config) { c.Owner, c.Prefix = "node-2", "bly" })
	e := nic(1, 2)
	apply(t, one, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{e}}}})
	if _, _, err := one.Tap(t.Context(), e.AllocationID, 0, TapOptions{}); err != nil {
		t.Fatal(err)
	}
	apply(t, two, Desired{Networks: []Network{{Spec: newNetwork(2), Local: []Endpoint{nic(2, 2)}}}})
	noDrift(t, one)
	refused(t, two, Desired{Networks: []Network{{Spec: newNetwork(2)}, {Spec: newNetwork(1)}}}, "net1", "network.subnet_overlaps", "10.1.0.1/24")
	if err := two.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	noDrift(t, one)
	// A daemon with the same prefix, for another node.
	three := newFabric(t, func(c *Config) { c.Owner = "node-3" })
	refused(t, three, Desired{Networks: []Network{{Spec: newNetwork(1)}}}, "net1", "network.owned_elsewhere", "node-1")
	noDrift(t, one)
	// Tables of the same short name, by whatever accident.
	run(t, "nft", "add", "table", "inet", three.planner.table(), "{ comment \"blixard owner=node-x\" ; }")
	if err := three.Apply(t.Context(), Desired{Networks: []Network{{Spec: newNetwork(5)}}}); !problem.HasCode(err, "network.owned_elsewhere") {
		t.Errorf("a table of another: %v", err)
	}
	run(t, "nft", "delete", "table", "inet", three.planner.table())
}

func TestOpenWantsSense(t *testing.T) {
	dir := t.TempDir()
	for code, c := range map[string]Config{
		"network.prefix":    {StateDir: dir, Owner: "n", Prefix: "a-b"},
		"network.owner":     {StateDir: dir, Owner: "a b"},
		"network.state_dir": {Owner: "n"},
	} {
		if _, err := Open(c); !problem.HasCode(err, code) {
			t.Errorf("%s: %v", code, err)
		}
	}
	if err := os.WriteFile(dir+"/network.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{StateDir: dir, Owner: "n"}); err == nil {
		t.Error("a record that can't be read was taken")
	}
	f := newFabric(t)
	if _, err := f.Check(t.Context()); !problem.HasCode(err, "network.not_ready") {
		t.Errorf("check before Apply: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(t.Context(), Desired{}); !problem.HasCode(err, "network.closed") {
		t.Errorf("apply after Close: %v", err)
	}
}

// TestCapableNamesWhatIsMissing: each need in its turn.
func TestCapableNamesWhatIsMissing(t *testing.T) {
	if err := Capable(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := Capable(t.Context()); !problem.HasCode(err, "network.nft") {
		t.Errorf("without nft: %v", err)
	}
	fake := t.TempDir() + "/nft"
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho no such thing >&2\nexit 1\n"), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	t.Setenv("PATH", fake[:len(fake)-4]+":/bin")
	if err := Capable(t.Context()); !problem.HasCode(err, "network.nft") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("with an nft that does not work: %v", err)
	}
	// A thread of its own without the capability, and one that sees no device.
	for code, prepare := range map[string]func() error{
		"network.capability": func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			return unix.Capset(&header, &none[0])
		},
		"network.tun": func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			return unix.Mount("none", "/dev/net", "tmpfs", 0, "")
		},
	} {
		err := withinErr("self", func() error {
			if err := prepare(); err != nil {
				t.Error(err)
			}
			return Capable(context.Background())
		})
		if !problem.HasCode(err, code) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// TestNetworksOfTypeUserNeedNothing: nothing of the kernel is touched.
func TestNetworksOfTypeUserNeedNothing(t *testing.T) {
	f := newFabric(t)
	before := census(t)
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1, func(n *blixardv1.Network) { n.Type = blixardv1.NetworkType_user })}}})
	sameCensus(t, before, census(t))
	if out, err := exec.Command("nft", "list", "tables").Output(); err != nil || strings.Contains(string(out), "blixard") {
		t.Errorf("tables: %s %v", out, err)
	}
}

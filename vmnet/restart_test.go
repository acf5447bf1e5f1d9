package vmnet

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// flow sends numbered packets from one namespace to another, a thousand a second,
// and counts those that are answered.
type flow struct {
	name           string
	sent, answered int
	stop           chan struct{}
	wait           sync.WaitGroup
}

// newFlow begins a flow to an echo that is there.
func newFlow(t testing.TB, from, to string) *flow {
	t.Helper()
	w := &flow{name: from + " to " + to, stop: make(chan struct{})}
	within(t, from, func() error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		var answers sync.WaitGroup
		var answered atomic.Int64
		answers.Go(func() {
			buf := make([]byte, 1500)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if n > 0 {
					answered.Add(1)
				}
			}
		})
		w.wait.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-w.stop:
					// What is on its way may take a while on a busy machine.
					for end := time.Now().Add(patience); int(answered.Load()) < w.sent && time.Now().Before(end); {
						<-tick.C
					}
					_ = c.Close()
					answers.Wait()
					w.answered = int(answered.Load())
					return
				case <-tick.C:
					if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(w.sent))); err == nil {
						w.sent++
					}
				}
			}
		})
		return nil
	})
	return w
}

// end stops the flow and wants that nothing was lost.
func (w *flow) end(t testing.TB) {
	t.Helper()
	close(w.stop)
	w.wait.Wait()
	t.Logf("%s: %d packets, %d answered", w.name, w.sent, w.answered)
	if w.sent != w.answered || w.sent == 0 {
		t.Errorf("%s: %d of %d packets were lost", w.name, w.sent-w.answered, w.sent)
	}
}

// TestRestartLosesNothing: the daemon ends, starts again, and changes other
// networks; traffic of running VMs goes on without the loss of one packet, and a
// connection to a published port stays.
func TestRestartLosesNothing(t *testing.T) {
	newOutside(t)
	config := Config{StateDir: t.TempDir(), Owner: "node-1", ResolvConf: os.DevNull}
	f := newFabric(t, func(c *Config) { c.StateDir = config.StateDir })
	a, b := nic(1, 2), nic(1, 3)
	want := Desired{
		Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{a, b}}},
		Ports:    []Port{{HostPort: 8080, GuestPort: 80, IPv4: a.IPv4}, {HostPort: 8080, GuestPort: 80, IPv4: a.IPv4, Protocol: 2}},
	}
	apply(t, f, want)
	addGuest(t, f, "a", a)
	addGuest(t, f, "b", b)
	echo(t, "a", "a", ":80")
	echo(t, "b", "b", ":80")
	echo(t, "outside", "outside", ":80")
	var held net.Conn
	within(t, "outside", func() error {
		var err error
		held, err = net.Dial("tcp", "192.0.2.1:8080")
		return err
	})
	defer held.Close()
	flows := []*flow{
		newFlow(t, "a", "10.1.0.3:80"), newFlow(t, "a", "[fd00:1::3]:80"), newFlow(t, "b", "192.0.2.2:80"), newFlow(t, "outside", "192.0.2.1:8080"),
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for round := range 10 {
		g, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, g, want)
		more := want
		more.Networks = append([]Network{{Spec: newNetwork(2+round%3, withRules(nil)), Local: []Endpoint{nic(2+round%3, 2)}}}, want.Networks...)
		apply(t, g, more)
		run(t, "nft", "add", "rule", "inet", g.planner.table(), "leave", "counter")
		if drifts, err := g.Mend(t.Context()); err != nil || len(drifts) != 1 {
			t.Errorf("mend: %v %v", drifts, err)
		}
		apply(t, g, want)
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range flows {
		w.end(t)
	}
	_ = held.SetReadDeadline(time.Now().Add(patience))
	if text, err := io.ReadAll(held); err != nil || !strings.HasPrefix(string(text), "a ") {
		t.Errorf("the connection of before: %q %v", text, err)
	}
}

// TestDriftIsFoundAndMended: what somebody else changes is named, and put right.
func TestDriftIsFoundAndMended(t *testing.T) {
	newOutside(t)
	f := newFabric(t)
	a, remote := nic(1, 2), on(nic(1, 3), "192.0.2.2")
	spec := newNetwork(1)
	apply(t, f, Desired{
		Underlay: remote.Node.Prev(),
		Networks: []Network{{Spec: spec, Local: []Endpoint{a}, Remote: []Endpoint{remote}}},
		Ports:    []Port{{HostPort: 8080, GuestPort: 80, IPv4: a.IPv4}},
	})
	tap, _, err := f.Tap(t.Context(), a.AllocationID, 0, TapOptions{UID: 1})
	if err != nil {
		t.Fatal(err)
	}
	noDrift(t, f)
	bridge, overlay, table := f.planner.bridge(spec.GetId()), f.planner.overlay(spec.GetId()), f.planner.table()
	for _, tc := range []struct {
		name   string
		change []string
		says   string
	}{
		{"rule added", []string{"nft", "insert", "rule", "bridge", table, "guest", "accept"}, `"accept" was added`},
		{"chain flushed", []string{"nft", "flush", "chain", "bridge", table, "prerouting"}, `"iifname vmap @origin" is missing`},
		{"element removed", []string{"nft", "delete", "element", "bridge", table, "macs", "{", fmt.Sprintf("%q . %s", tap, a.MAC), "}"}, a.MAC},
		{"table removed", []string{"nft", "delete", "table", "inet", table}, "is missing"},
		{"all rules removed", []string{"nft", "flush", "ruleset"}, "is missing"},
		{"address removed", []string{"ip", "addr", "del", "10.1.0.1/24", "dev", bridge}, "address 10.1.0.1/24"},
		{"address added", []string{"ip", "addr", "add", "10.9.0.1/24", "dev", bridge}, "address 10.9.0.1/24"},
		{"neighbour removed", []string{"ip", "neigh", "del", "10.1.0.3", "dev", bridge}, "neighbour 10.1.0.3"},
		{"neighbour changed", []string{"ip", "neigh", "replace", "10.1.0.2", "lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", bridge}, "neighbour 10.1.0.2"},
		{"overlay entry removed", []string{"bridge", "fdb", "del", remote.MAC, "dev", overlay, "dst", "192.0.2.2", "self"}, "forwarding entry " + remote.MAC},
		{"overlay entry changed", []string{"bridge", "fdb", "replace", remote.MAC, "dev", overlay, "dst", "192.0.2.9", "self"}, "forwarding entry " + remote.MAC},
		{"bridge entry removed", []string{"bridge", "fdb", "del", a.MAC, "dev", tap, "master"}, "forwarding entry " + a.MAC},
		{"learning", []string{"bridge", "link", "set", "dev", tap, "learning", "on"}, "flags as a port"},
		{"isolation", []string{"bridge", "link", "set", "dev", overlay, "isolated", "on"}, "flags as a port"},
		{"MTU", []string{"ip", "link", "set", tap, "mtu", "1300"}, "MTU is 1300"},
		{"gateway's MAC", []string{"ip", "link", "set", bridge, "address", "02:00:00:00:00:02"}, "MAC is 02:00:00:00:00:02"},
		{"tap out of its bridge", []string{"ip", "link", "set", tap, "nomaster"}, "port of"},
		{"bridge down", []string{"ip", "link", "set", bridge, "down"}, "is down"},
		{"tap removed", []string{"ip", "link", "del", tap}, "cut off"},
		{"overlay removed", []string{"ip", "link", "del", overlay}, "overlay " + overlay + " is missing"},
		{"bridge removed", []string{"ip", "link", "del", bridge}, "bridge " + bridge + " is missing"},
		{"forwarding", []string{"ip", "netns", "exec", "self", "true"}, "sysctl net/ipv4/conf/up0/forwarding"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "forwarding" {
				if err := writeSysctl("net/ipv4/conf/up0/forwarding", "0"); err != nil {
					t.Fatal(err)
				}
			} else {
				run(t, tc.change...)
			}
			drifts, err := f.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			named := false
			for _, d := range drifts {
				named = named || strings.Contains(d.What, tc.says) && d.Mendable
			}
			if !named {
				t.Errorf("%q is not named in %v", tc.says, drifts)
			}
			if _, err := f.Mend(t.Context()); err != nil {
				t.Fatal(err)
			}
			noDrift(t, f)
		})
	}
	// What is not ours is told and left.
	run(t, "nft", "add", "table", "inet", "firewall")
	run(t, "nft", "add", "chain", "inet", "firewall", "f", "{ type filter hook forward priority 0 ; policy drop ; }")
	t.Cleanup(func() { run(t, "nft", "delete", "table", "inet", "firewall") })
	drifts, err := f.Mend(t.Context())
	if err != nil || len(drifts) != 1 || drifts[0].Mendable || !strings.Contains(drifts[0].What, "inet firewall f") {
		t.Errorf("a firewall of the host: %v %v", drifts, err)
	}
}

// TestOtherRulesAreReplaced: a blixard of another version has left tables whose sets
// can't become these.
func TestOtherRulesAreReplaced(t *testing.T) {
	f := newFabric(t)
	table := f.planner.table()
	run(t, "nft", "add", "table", "bridge", table, "{ comment \"blixard owner=node-1\" ; }")
	run(t, "nft", "add", "set", "bridge", table, "macs", "{ type ipv4_addr ; }")
	run(t, "nft", "add", "set", "bridge", table, "older", "{ type ipv4_addr ; }")
	run(t, "nft", "add", "chain", "bridge", table, "prerouting", "{ type filter hook prerouting priority -100 ; }")
	apply(t, f, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{nic(1, 2)}}}})
	noDrift(t, f)
	text := run(t, "nft", "list", "table", "bridge", table)
	if strings.Contains(text, "older") || !strings.Contains(text, "type ifname . ether_addr\n") {
		t.Errorf("the tables are %s", text)
	}
}

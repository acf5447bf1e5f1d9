package vmnet

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestRulesByDifference: whatever networks, VMs and ports follow each other, and whatever
// somebody else changed in between, the rules end as if they were made anew; and the
// transaction that brings another network has no part of what stays.
func TestRulesByDifference(t *testing.T) {
	desired := rapid.Custom(func(t *rapid.T) Desired {
		d := Desired{Underlay: on(nic(1, 2), "192.0.2.1").Node}
		for n := 1; n <= 3; n++ {
			if !rapid.Bool().Draw(t, "network") {
				continue
			}
			var rules *blixardv1.NetworkRules
			switch rapid.IntRange(0, 4).Draw(t, "rules") {
			case 1:
				rules = &blixardv1.NetworkRules{Isolated: true}
			case 2:
				rules = &blixardv1.NetworkRules{RateMbit: 8}
			case 3:
				rules = &blixardv1.NetworkRules{Ingress: []*blixardv1.NetworkRule{{Action: "allow", Cidr: "192.0.2.0/24"}}}
			case 4:
				rules = &blixardv1.NetworkRules{Internal: true}
			}
			network := Network{Spec: newNetwork(n, withRules(rules))}
			for k := 2; k <= 4; k++ {
				switch rapid.IntRange(0, 2).Draw(t, "endpoint") {
				case 1:
					network.Local = append(network.Local, nic(n, k))
				case 2:
					network.Remote = append(network.Remote, on(nic(n, k), "192.0.2.2"))
				}
			}
			d.Networks = append(d.Networks, network)
			if rapid.Bool().Draw(t, "port") {
				to := nic(n, rapid.IntRange(2, 4).Draw(t, "to"))
				d.Ports = append(d.Ports, Port{HostPort: uint16(8000 + n), GuestPort: 80, IPv4: to.IPv4, IPv6: to.IPv6})
			}
		}
		return d
	})
	tables := func(f *Fabric) []string {
		had, err := listTables(t.Context(), f.planner.table())
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, id := range slices.Collect(sortedKeys(had)) {
			for _, l := range linesOf(had[id].text) {
				all = append(all, fmt.Sprintf("%s: %s: %s", id, l.block, l.text))
			}
		}
		slices.Sort(all)
		return all
	}
	fabric := func() *Fabric {
		f, err := Open(Config{StateDir: t.TempDir(), Owner: "node-1", ResolvConf: os.DevNull})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	// Each life makes the kernel work a while, and there is one kernel: a few, always the
	// same ones.
	const lives, steps = 10, 4
	for life := range lives {
		f := fabric()
		var want Desired
		for n := range steps {
			want = desired.Example(life*steps + n)
			apply(t, f, want)
			if n%2 == 1 && len(want.Networks) > 0 {
				run(t, "nft", "add", "rule", "inet", f.planner.table(), "leave", "counter")
				run(t, "nft", "flush", "set", "bridge", f.planner.table(), "macs")
				// Also into a chain that has no rules of ours.
				egress := "egress" + f.plan.networks[0].suffix()
				run(t, "nft", "add", "rule", "inet", f.planner.table(), egress, "drop")
				if _, err := f.Mend(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := tables(f)
		if err := f.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		anew := fabric()
		apply(t, anew, want)
		if diff := cmp.Diff(tables(anew), got); diff != "" {
			t.Errorf("life %d: rules made anew, and by difference:\n%s", life, diff)
		}
		if err := anew.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	f := newFabric(t)
	one := Network{Spec: newNetwork(1), Local: []Endpoint{nic(1, 2)}}
	apply(t, f, Desired{Networks: []Network{one}})
	had, err := listTables(t.Context(), f.planner.table())
	if err != nil {
		t.Fatal(err)
	}
	have, _, err := f.readLocked()
	if err != nil {
		t.Fatal(err)
	}
	two := f.planner.plan(Desired{Networks: []Network{one, {Spec: newNetwork(2), Local: []Endpoint{nic(2, 2)}}}}, have.facts)
	script := two.rules.script(had, f.record.made(had))
	for _, stays := range []string{nic(1, 2).MAC, nic(1, 2).IPv4.String(), "flush chain bridge", "flush set", "flush map", "leave ", "delete"} {
		for line := range strings.Lines(script) {
			if strings.Contains(line, stays) && !strings.HasPrefix(line, "add chain ") {
				t.Errorf("the transaction says %s", line)
			}
		}
	}
	if !strings.Contains(script, nic(2, 2).MAC) {
		t.Errorf("the transaction is %s", script)
	}
}

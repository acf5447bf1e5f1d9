package scheduler

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// zoned are nodes in zones, with room for so much memory each.
func zoned(zones int, each int, memory uint64) view {
	var v view
	for k := range zones * each {
		n := node(fmt.Sprintf("n%03d", k), memory, 0)
		n.Allocatable.Vcpus, n.Allocatable.DiskBytes = 1<<20, 1<<60
		n.Fingerprint.Labels = map[string]string{"zone": fmt.Sprint("z", k%zones)}
		v.nodes = append(v.nodes, n)
	}
	return v
}

func web(k int, wish *blixardv1.Spread) *blixardv1.VM {
	one := vm(func(s *blixardv1.VMSpec) { s.Scheduling = &blixardv1.Scheduling{Spreads: []*blixardv1.Spread{wish}} })
	one.Id, one.Labels = fmt.Sprint("vm-", k), map[string]string{"app": "web"}
	return one
}

// After every VM each zone is less than one VM away from its share while there is room,
// whether the shares must or should be kept; where they must, whatever the load of nodes.
func TestSpreadKeepsShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zones := rapid.IntRange(1, 6).Draw(t, "zones")
		v := zoned(zones, rapid.IntRange(1, 3).Draw(t, "nodes of each"), 1<<30)
		wish := &blixardv1.Spread{Key: "app", Value: "web", Over: "zone", Weight: rapid.SampledFrom([]uint32{0, 0, 100}).Draw(t, "weight")}
		for _, n := range v.nodes {
			n.Busy = wish.GetWeight() == 0 && rapid.Bool().Draw(t, "busy")
		}
		left, named := uint32(100), rapid.IntRange(0, zones).Draw(t, "named")
		for k := range named {
			p := rapid.Uint32Range(0, left).Draw(t, "percent")
			left -= p
			wish.Shares = append(wish.Shares, &blixardv1.SpreadShare{Value: fmt.Sprint("z", k), Percent: p})
		}
		share := func(k int) float64 {
			switch {
			case k < named && named == zones:
				return float64(wish.GetShares()[k].GetPercent()) / float64(max(100-left, 1))
			case k < named:
				return float64(wish.GetShares()[k].GetPercent()) / 100
			}
			return float64(left) / 100 / float64(zones-named)
		}
		f := NewFleet(blixardv1.Strategy_Enum(rapid.IntRange(0, 2).Draw(t, "strategy")))
		f.Follow(v)
		counts := map[string]int{}
		for n := 1; n <= rapid.IntRange(1, 60).Draw(t, "VMs"); n++ {
			d := f.Place(v, web(n, wish))
			if d.Node == nil {
				if named == zones && left == 100 {
					return // no zone has a share
				}
				t.Fatalf("VM %d has no place: %s", n, d.Message)
			}
			counts[d.Node.GetFingerprint().GetLabels()["zone"]]++
			for k := range zones {
				if named == zones && left == 100 {
					break
				}
				if got, want := float64(counts[fmt.Sprint("z", k)]), share(k)*float64(n); math.Abs(got-want) > 1-1e-9 {
					t.Fatalf("of %d VMs zone z%d has %g, its share is %g: %v", n, k, got, want, wish)
				}
			}
		}
	})
}

// Where shares must be kept a zone is not filled above its own, however much room it has;
// where they should, VMs go where there is room.
func TestSpreadWithoutRoom(t *testing.T) {
	for _, tc := range []struct {
		weight  uint32
		placed  int
		message string
	}{
		{0, 4, "node n000 is, by its zone z0, where 2 VMs with app=web are: that is its share; node n001 has too little memory"},
		{100, 8, ""},
	} {
		v := zoned(2, 1, 1<<20)
		v.nodes[1].Allocatable.MemoryMib = 2 * (256 + 80)
		wish := &blixardv1.Spread{Key: "app", Value: "web", Over: "zone", Shares: []*blixardv1.SpreadShare{{Value: "z0", Percent: 50}}, Weight: tc.weight}
		f := NewFleet(blixardv1.Strategy_unspecified)
		f.Follow(v)
		placed, message := 0, ""
		for k := range 8 {
			if d := f.Place(v, web(k, wish)); d.Node != nil {
				placed++
			} else {
				message = d.Message
			}
		}
		if placed < tc.placed || tc.message != "" && placed > tc.placed+1 || !strings.Contains(message, strings.Split(tc.message, " 2 VMs")[0]) {
			t.Errorf("weight %d: %d were placed: %s", tc.weight, placed, message)
		}
	}
}

func TestSpreadNeedsTheLabel(t *testing.T) {
	v := view{nodes: []*blixardv1.Node{node("a", 4000, 0)}}
	d := placed(v, web(1, &blixardv1.Spread{Key: "app", Value: "web", Over: "zone"}))
	if d.Reason != ReasonSpread || !strings.Contains(d.Message, "node a has no zone") {
		t.Error(d)
	}
}

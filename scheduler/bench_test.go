package scheduler

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// fleetSeed makes the same nodes and VMs each time.
const fleetSeed = 7

// rig is many nodes of a few kinds, in zones and racks.
func rig(nodes, racks int) view {
	r := rand.New(rand.NewPCG(fleetSeed, 1))
	var v view
	for k := range nodes {
		n := node(fmt.Sprintf("n%05d", k), uint64(32+r.IntN(225))<<10, 0)
		n.Allocatable.Vcpus, n.Allocatable.DiskBytes = 1<<20, 1<<60
		n.Fingerprint.Labels = map[string]string{
			"zone": fmt.Sprint("z", k%3), "disk": []string{"ssd", "hdd"}[k/3%2], "rack": fmt.Sprint("r", k%racks),
		}
		v.nodes = append(v.nodes, n)
	}
	return v
}

// load is VMs of 256 MiB to 16 GiB. With rules, half of them want a kind of disk, a third
// one of two zones, and all are of an application whose VMs are spread over zones.
func load(vms int, rules bool, strategy blixardv1.Strategy_Enum) []*blixardv1.VM {
	r := rand.New(rand.NewPCG(fleetSeed, 2))
	var all []*blixardv1.VM
	for k := range vms {
		one := vm(func(s *blixardv1.VMSpec) {
			s.MemoryMib = 256 << r.IntN(7)
			s.Scheduling = &blixardv1.Scheduling{Strategy: strategy}
		})
		one.Id = fmt.Sprint("vm-", k)
		if rules {
			s := one.Spec.Scheduling
			if r.IntN(2) == 0 {
				s.Constraints = append(s.Constraints, only("disk="+[]string{"ssd", "hdd"}[r.IntN(2)]).Constraints...)
			}
			if r.IntN(3) == 0 {
				s.Constraints = append(s.Constraints, only("zone in z0,z1").Constraints...)
			}
			app := fmt.Sprint("app-", r.IntN(vms/20+1))
			one.Labels = map[string]string{"app": app}
			s.Affinities = append(s.Affinities, &blixardv1.Affinity{Key: "app", Value: app, Apart: true, Weight: 50, Over: "zone"})
		}
		all = append(all, one)
	}
	return all
}

// fill places all and gives how many, and on how many nodes.
func fill(f *Fleet, v View, vms []*blixardv1.VM) (placed, used int) {
	nodes := map[*blixardv1.Node]bool{}
	for _, one := range vms {
		if d := f.Place(v, one); d.Node != nil {
			placed++
			nodes[d.Node] = true
		}
	}
	return placed, len(nodes)
}

// bestFit is the plain exact loop over flat arrays: the node with the least memory left
// that has room. It knows of memory alone.
func bestFit(v view, vms []*blixardv1.VM) (placed, used int) {
	free := make([]uint64, len(v.nodes))
	touched := make([]bool, len(v.nodes))
	for k, n := range v.nodes {
		free[k] = n.GetAllocatable().GetMemoryMib()
	}
	for _, one := range vms {
		need := v.Limits().Reservation(one.GetSpec()).GetMemoryMib()
		best := -1
		for k, left := range free {
			if left >= need && (best < 0 || left < free[best]) {
				best = k
			}
		}
		if best >= 0 {
			free[best] -= need
			placed++
			if !touched[best] {
				touched[best] = true
				used++
			}
		}
	}
	return placed, used
}

// BenchmarkPlace measures placements a second, and how tightly VMs are packed beside the
// exact loop.
func BenchmarkPlace(b *testing.B) {
	for _, c := range []struct {
		name       string
		nodes, vms int
		racks      int
		rules      bool
		strategy   blixardv1.Strategy_Enum
	}{
		{"nodes=100/pack", 100, 1000, 1, false, blixardv1.Strategy_pack},
		{"nodes=1000/pack", 1000, 10_000, 1, false, blixardv1.Strategy_pack},
		{"nodes=10000/pack", 10_000, 100_000, 1, false, blixardv1.Strategy_pack},
		{"nodes=10000/spread", 10_000, 100_000, 1, false, blixardv1.Strategy_spread},
		{"nodes=100/rules", 100, 1000, 1, true, blixardv1.Strategy_pack},
		{"nodes=1000/rules", 1000, 10_000, 1, true, blixardv1.Strategy_pack},
		{"nodes=10000/rules", 10_000, 100_000, 1, true, blixardv1.Strategy_pack},
		{"nodes=10000/rules/racks=100", 10_000, 100_000, 100, true, blixardv1.Strategy_pack},
	} {
		b.Run(c.name, func(b *testing.B) {
			v, vms := rig(c.nodes, c.racks), load(c.vms, c.rules, c.strategy)
			var took time.Duration
			placed, used := 0, 0
			for range b.N {
				f := NewFleet(blixardv1.Strategy_unspecified)
				f.Follow(v)
				begun := time.Now()
				placed, used = fill(f, v, vms)
				took += time.Since(begun)
			}
			b.ReportMetric(float64(b.N*len(vms))/took.Seconds(), "placements/s")
			b.ReportMetric(float64(took.Nanoseconds())/float64(b.N*len(vms)), "ns/placement")
			b.ReportMetric(float64(placed), "placed")
			b.ReportMetric(float64(used), "nodes")
			if !c.rules && c.strategy == blixardv1.Strategy_pack {
				begun := time.Now()
				exactPlaced, exactUsed := bestFit(v, vms)
				b.ReportMetric(float64(len(vms))/time.Since(begun).Seconds(), "exact/s")
				b.ReportMetric(float64(exactUsed), "exact-nodes")
				b.ReportMetric(float64(exactPlaced), "exact-placed")
			}
		})
	}
}

// BenchmarkPreempt measures the search for VMs that make room, on nodes that are full of
// 50 VMs each.
func BenchmarkPreempt(b *testing.B) {
	for _, nodes := range []int{10, 1000} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			var v occupied
			for k := range nodes {
				name := fmt.Sprintf("n%05d", k)
				n := node(name, 50*400, 0)
				n.Allocatable.Vcpus, n.Allocatable.DiskBytes = 1<<20, 1<<60
				v.nodes = append(v.nodes, n)
			}
			for _, n := range v.nodes {
				one := occupied{view: view{nodes: []*blixardv1.Node{n}}, allocations: v.allocations}
				for k := range 50 {
					one.put(n.GetName(), fmt.Sprint(n.GetName(), "-", k), uint32(k), 400, nil)
				}
				v.allocations = one.allocations
			}
			f := NewFleet(blixardv1.Strategy_unspecified)
			f.Follow(v)
			vm := waiting(60, 4000, nil)
			for b.Loop() {
				if f.Preempt(v, vm, none) == nil {
					b.Fatal("nobody makes room")
				}
			}
		})
	}
}

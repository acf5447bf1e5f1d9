package vmnet

import (
	"testing"
)

// manyVMs is a node with so many VMs in one network, and as many on another node.
func manyVMs(count int) Desired {
	n := Network{Spec: newNetwork(1)}
	for k := range count {
		n.Local = append(n.Local, nic(1, 2+k))
		n.Remote = append(n.Remote, on(nic(1, 2+count+k), "192.0.2.2"))
	}
	return Desired{Networks: []Network{n}}
}

// BenchmarkApplyUnchanged measures Apply where nothing changed, with 100 VMs.
func BenchmarkApplyUnchanged(b *testing.B) {
	f := newFabric(b)
	want := manyVMs(100)
	apply(b, f, want)
	for b.Loop() {
		apply(b, f, want)
	}
}

// BenchmarkTap measures the making and removing of one tap among 100 VMs.
func BenchmarkTap(b *testing.B) {
	f := newFabric(b)
	want := manyVMs(100)
	apply(b, f, want)
	e := want.Networks[0].Local[7]
	for b.Loop() {
		if _, _, err := f.Tap(b.Context(), e.AllocationID, e.Index, TapOptions{}); err != nil {
			b.Fatal(err)
		}
		if err := f.Untap(e.AllocationID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApplyChanged measures Apply where one VM of 100 comes or goes.
func BenchmarkApplyChanged(b *testing.B) {
	f := newFabric(b)
	want, less := manyVMs(100), manyVMs(100)
	less.Networks[0].Local = less.Networks[0].Local[:99]
	apply(b, f, want)
	for i := 0; b.Loop(); i++ {
		apply(b, f, []Desired{less, want}[i%2])
	}
}

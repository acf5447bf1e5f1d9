package cli

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestNodeStateWords: the list and the status of nodes say what keeps VMs from them.
func TestNodeStateWords(t *testing.T) {
	ready := blixardv1.NodeState_ready
	for _, tc := range []struct {
		node *blixardv1.Node
		want string
	}{
		{&blixardv1.Node{State: ready}, "ready"},
		{&blixardv1.Node{State: ready, Busy: true}, "ready, busy"},
		{&blixardv1.Node{State: ready, Cordoned: true, Damped: true, Busy: true}, "ready, cordoned, unsteady, busy"},
		{&blixardv1.Node{State: blixardv1.NodeState_down, Draining: true}, "down, draining"},
	} {
		if got := nodeStateWords(tc.node); got != tc.want {
			t.Errorf("%v is %q, not %q", tc.node, got, tc.want)
		}
	}
	for _, tc := range []struct {
		load *uint32
		want string
	}{{nil, ""}, {proto.Uint32(0), "0 %"}, {proto.Uint32(93), "93 %"}} {
		if !slices.Contains(nodeFacts(&blixardv1.GetStatusResponse{LoadPercent: tc.load}), [2]string{"Load", tc.want}) {
			t.Errorf("a load is not told as %q", tc.want)
		}
	}
}

// TestDiskOfNode: the list and the status of nodes say what is given of a disk, and how
// much of it volumes have.
func TestDiskOfNode(t *testing.T) {
	for _, tc := range []struct {
		allocated, volumes, all uint64
		cell, fact              string
	}{
		{cell: "0B", fact: "0B given"},
		{allocated: 2 << 30, all: 100 << 30, cell: "2GiB/100GiB", fact: "2GiB of 100GiB given"},
		{2 << 30, 1 << 30, 100 << 30, "3GiB/100GiB (volumes 1GiB)", "3GiB of 100GiB given, 1GiB of it to volumes"},
		{0, 3 << 30, 2 << 30, "3GiB/2GiB (volumes 3GiB)", "3GiB of 2GiB given, 3GiB of it to volumes"},
	} {
		n := &blixardv1.Node{
			Allocated: &blixardv1.Resources{DiskBytes: tc.allocated}, Allocatable: &blixardv1.Resources{DiskBytes: tc.all}, VolumeBytes: tc.volumes,
		}
		if got := diskCell(n); got != tc.cell {
			t.Errorf("the list says %q, not %q", got, tc.cell)
		}
		if !slices.Contains(nodeFacts(&blixardv1.GetStatusResponse{Node: n}), [2]string{"Disk", tc.fact}) {
			t.Errorf("the status says %q, not %q", diskFact(n), tc.fact)
		}
	}
}

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

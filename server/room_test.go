package server_test

import (
	"strings"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// TestMovesLookForTheRoomOfVolumes: a VM does not move where its volumes have no room, and a
// simulation places none there.
func TestMovesLookForTheRoomOfVolumes(t *testing.T) {
	w := newWorld(t)
	w.register()
	ctx := t.Context()
	propose := func(cmd *blixardv1.Command) {
		t.Helper()
		if r, err := w.replica.Propose(ctx, cmd); err != nil || r.Problem != nil {
			t.Fatal(err, r.Problem)
		}
	}
	propose(&blixardv1.Command{Actor: "test", Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: "node-b", Name: "b", Incarnation: 1, Fingerprint: w.replica.View().Node("a").GetFingerprint(),
	}}})
	for _, v := range []*blixardv1.CreateVolumeRequest{
		{Name: "data", Node: "a", SizeBytes: 100 << 30}, {Name: "stock", Node: "b", SizeBytes: 1000 << 30}, {Name: "fresh", SizeBytes: 100 << 30},
	} {
		if _, err := w.client.Volumes().CreateVolume(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	spec := func(volume string) *blixardv1.VMSpec {
		return &blixardv1.VMSpec{
			Image: "busybox", NoNetwork: true, Desired: blixardv1.DesiredState_stop,
			Volumes: []*blixardv1.VolumeAttachment{{Volume: volume, Path: "/data"}},
		}
	}
	if _, err := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: "db", Spec: spec("data")}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.Volumes().CreateVolume(ctx, &blixardv1.CreateVolumeRequest{Name: "huge", SizeBytes: 2 << 40}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: "x", Spec: spec("huge")}); !problem.HasCode(err, "vm.too_large") || len(problem.From(err).Violations) != 0 {
		t.Errorf("with a volume for which no node has room: %v", err)
	}
	const short = "node b has too little disk: 24576 MiB free"
	for code, node := range map[string]string{"move.impossible": "b", "move.no_place": ""} {
		if _, err := w.client.VMs().MoveVM(ctx, &blixardv1.MoveVMRequest{Name: "db", Node: node}); !problem.HasCode(err, code) || !strings.Contains(err.Error(), short) {
			t.Errorf("to %q: %v", node, err)
		}
	}
	simulate := func() *blixardv1.PlannedVM {
		t.Helper()
		resp, err := w.client.Nodes().Simulate(ctx, &blixardv1.SimulateRequest{WithoutNodes: []string{"a"}, Vms: []*blixardv1.CreateVMRequest{{Name: "x", Spec: spec("fresh")}}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetVms()[len(resp.GetVms())-1]
	}
	if one := simulate(); one.GetTo() != "" || !strings.Contains(one.GetMessage(), short) {
		t.Errorf("it would go to %q: %s", one.GetTo(), one.GetMessage())
	}
	if _, err := w.client.Volumes().DeleteVolume(ctx, &blixardv1.DeleteVolumeRequest{Name: "stock"}); err != nil {
		t.Fatal(err)
	}
	propose(&blixardv1.Command{Actor: "test", Change: &blixardv1.Command_ReleaseVolume{ReleaseVolume: &blixardv1.ReleaseVolumeCommand{
		VolumeId: w.replica.View().Volume("stock").GetId(), NodeId: "node-b",
	}}})
	if one := simulate(); one.GetTo() != "b" {
		t.Errorf("it would go to %q: %s", one.GetTo(), one.GetMessage())
	}
	if resp, err := w.client.VMs().MoveVM(ctx, &blixardv1.MoveVMRequest{Name: "db"}); err != nil || resp.GetNode() != "b" {
		t.Errorf("it moves to %q: %v", resp.GetNode(), err)
	}
}

package state

import (
	"bytes"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

func TestNeed(t *testing.T) {
	st := newStory()
	for _, c := range []string{
		registerN1, `create_volume {id: "vol-1" name: "here" size_bytes: 7 node_id: "n1"}`, `create_volume {id: "vol-2" name: "fresh" size_bytes: 11}`,
	} {
		st.must(t, c)
	}
	v := st.s.View()
	for _, tc := range []struct {
		name                 string
		volumes              []string
		need, toN1, to, anew uint64
	}{
		{name: "none", need: 5, toN1: 5, to: 5, anew: 5},
		{"placed", []string{"here"}, 5, 5, 12, 12},
		{"fresh", []string{"fresh"}, 16, 16, 16, 16},
		{"both", []string{"here", "fresh"}, 16, 16, 23, 23},
		{"unknown", []string{"gone"}, 5, 5, 5, 5},
	} {
		spec := &blixardv1.VMSpec{Vcpus: 2, MemoryMib: 64, DiskBytes: 5}
		for _, name := range tc.volumes {
			spec.Volumes = append(spec.Volumes, &blixardv1.VolumeAttachment{Volume: name})
		}
		for what, got := range map[*blixardv1.Resources]uint64{
			Need(v, spec): tc.need, NeedToMove(v, spec, "n1"): tc.toN1, NeedToMove(v, spec, "n2"): tc.to, NeedToMove(v, spec, ""): tc.anew,
		} {
			if what.GetDiskBytes() != got || what.GetVcpus() != 2 || what.GetMemoryMib() != 64+v.Limits().OverheadMiB {
				t.Errorf("%s: %v is needed, want %d bytes", tc.name, what, got)
			}
		}
	}
	if got := Reserved(v.Node("n1")).GetDiskBytes(); got != 7 {
		t.Errorf("%d bytes are reserved", got)
	}
	if err := v.CheckVolume("x", v.Node("n1"), 93); err != nil {
		t.Error(err)
	}
	if err := v.CheckVolume("x", v.Node("n1"), 94); !problem.HasCode(err, "placement.no_room") {
		t.Error(err)
	}
	if err := v.CheckVolume("x", v.Node("nowhere"), 94); err != nil {
		t.Error(err)
	}
}

// TestSnapshotWithoutVolumeBytes: a snapshot of a version that did not count volumes gives
// the state of one that does, and a wrong count is damage.
func TestSnapshotWithoutVolumeBytes(t *testing.T) {
	st := newStory()
	for _, c := range []string{registerN1, `create_volume {id: "vol-1" name: "data" size_bytes: 30 node_id: "n1"}`} {
		st.must(t, c)
	}
	for bytesThere, want := range map[uint64]string{0: "", 30: "", 29: "snapshot.damaged"} {
		older := ownCopy(t, st.s).View()
		older.Node("n1").VolumeBytes = bytesThere
		var b bytes.Buffer
		if err := older.WriteSnapshot(&b); err != nil {
			t.Fatal(err)
		}
		next := New(DefaultLimits())
		err := next.Restore(&b)
		if want != "" {
			if !problem.HasCode(err, want) {
				t.Errorf("with %d bytes: %v", bytesThere, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if next.View().Hash() != st.s.View().Hash() || next.View().Node("n1").GetVolumeBytes() != 30 {
			t.Errorf("with %d bytes it becomes %v", bytesThere, next.View().Node("n1"))
		}
	}
}

// TestVolumesCountOnceAllKnow: with each member that comes, changes or goes the volumes are
// counted or are not.
func TestVolumesCountOnceAllKnow(t *testing.T) {
	w := &clusterWorld{t: t, s: New(DefaultLimits()), now: time.Unix(1_800_000_000, 0)}
	level := func(node string, level uint32) *blixardv1.Command {
		return &blixardv1.Command{Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{Node: node, Version: "v", FeatureLevel: level}}}
	}
	want := func(bytes uint64) {
		t.Helper()
		if got := w.s.View().Node("node-a").GetVolumeBytes(); got != bytes {
			t.Fatalf("at level %d node a has %d bytes of volumes, want %d", w.s.View().FeatureLevel(), got, bytes)
		}
		hash := w.s.View().Hash()
		if ownCopy(t, w.s).View().Hash() != hash {
			t.Fatal("a snapshot gives another state")
		}
	}
	w.must(form())
	w.must(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: "node-a", Name: "a", Incarnation: 1, Fingerprint: &blixardv1.NodeFingerprint{Capacity: &blixardv1.Resources{MemoryMib: 4096, Vcpus: 2, DiskBytes: 50}},
	}}})
	w.must(&blixardv1.Command{Change: &blixardv1.Command_CreateVolume{CreateVolume: &blixardv1.CreateVolumeCommand{Id: "vol-1", Name: "data", SizeBytes: 60, NodeId: "node-a"}}})
	want(0)
	w.must(level("a", levelOfVolumeRoom))
	want(60)
	w.must(tokenOf("t", 1, w.now.Add(time.Hour)))
	w.must(enroll("t", "digest", "node-b", "b", "h:2"))
	want(0)
	w.must(removal("b"))
	want(60)
	w.must(level("a", levelOfVolumeRoom-1))
	want(0)
	w.must(level("a", levelOfVolumeRoom+1))
	want(60)
	w.must(&blixardv1.Command{Change: &blixardv1.Command_DeleteVolume{DeleteVolume: &blixardv1.DeleteVolumeCommand{Name: "data"}}})
	want(60)
	w.must(&blixardv1.Command{Change: &blixardv1.Command_ReleaseVolume{ReleaseVolume: &blixardv1.ReleaseVolumeCommand{VolumeId: "vol-1", NodeId: "node-a"}}})
	want(0)
}

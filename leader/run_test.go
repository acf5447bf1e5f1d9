package leader

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// TestLeaderFallsBehind: a leader that hears of changes later than they are kept, since
// it was busy for longer than until its next round, looks at everything again.
func TestLeaderFallsBehind(t *testing.T) {
	limits := state.DefaultLimits()
	limits.Changes = 8
	rep, err := replica.Open(t.Context(), replica.Config{Dir: filepath.Join(t.TempDir(), "raft"), NodeID: "node-a", Limits: limits, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := rep.Close(); err != nil {
			t.Error(err)
		}
	}()
	propose := func(cmd *blixardv1.Command) {
		t.Helper()
		if res, err := rep.Propose(t.Context(), cmd); err != nil || res.Problem != nil {
			t.Fatal(res.Problem, err)
		}
	}
	propose(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: "node-a", Name: "a", Incarnation: 1, Fingerprint: &blixardv1.NodeFingerprint{
			Capacity: &blixardv1.Resources{Vcpus: 8, MemoryMib: 1 << 16}, Images: []string{"busybox"},
		},
	}}})
	r := &runner{cfg: Config{Name: "a", Replica: rep, Logger: slog.New(slog.DiscardHandler)}, core: NewCore(NewAllocationID, 50, 0), term: rep.LeadTerm()}
	r.list(rep.View())
	for n := range 20 {
		propose(&blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
			Id: fmt.Sprint("vm-", n), Name: fmt.Sprint("v", n), Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 64},
		}}})
	}
	for range 3 { // it is late each time
		if err := r.follow(t.Context(), time.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := r.proposeAll(t.Context(), r.core.Decide(rep.View())); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(rep.View().AllocationsOfNode("node-a")); n != 20 {
		t.Errorf("%d of 20 VMs have a place", n)
	}
}

package replica

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline of everything that a test waits for.
const deadline = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func testConfig(dir string) Config {
	return Config{Dir: dir, NodeID: "node-1", Logger: slog.New(slog.DiscardHandler), SegmentBytes: 1 << 20}
}

func mustOpen(t testing.TB, c Config) *Replica {
	t.Helper()
	r, err := Open(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil && r.Err() == nil {
			t.Error(err)
		}
	})
	return r
}

func create(name string) *blixardv1.Command {
	return &blixardv1.Command{Key: "create-" + name, Actor: "user:0", Change: &blixardv1.Command_CreateVm{
		CreateVm: &blixardv1.CreateVMCommand{Id: "id-" + name, Name: name, Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 64}},
	}}
}

func label(name, value string) *blixardv1.Command {
	return &blixardv1.Command{Actor: "user:0", Change: &blixardv1.Command_LabelVm{
		LabelVm: &blixardv1.LabelVMCommand{Name: name, Labels: map[string]string{"l": value}},
	}}
}

func mustPropose(t testing.TB, r *Replica, cmd *blixardv1.Command) state.Result {
	t.Helper()
	res, err := r.Propose(testContext(t), cmd)
	if err != nil {
		t.Fatal(err)
	}
	if res.Problem != nil {
		t.Fatal(res.Problem)
	}
	return res
}

func TestChangesSurviveARestart(t *testing.T) {
	c := testConfig(t.TempDir())
	r := mustOpen(t, c)
	mustPropose(t, r, create("a"))
	for i := range 100 {
		mustPropose(t, r, label("a", fmt.Sprint(i)))
	}
	hash, st := r.View().Hash(), r.Status()
	if !st.Leader || st.LeaderID != FirstID || st.Applied < 102 || st.Commit < st.Applied || st.LogBytes == 0 {
		t.Errorf("status %+v", st)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = mustOpen(t, c)
	view, err := r.Read(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := view.VM("a").GetLabels()["l"]; got != "99" {
		t.Errorf("label %q", got)
	}
	if r.Status().ClusterID != st.ClusterID {
		t.Error("another cluster")
	}
	if hash == view.Hash() {
		t.Error("the index did not move with the new term")
	}
	if res := mustPropose(t, r, create("a")); !res.Repeated || res.VM.GetId() != "id-a" {
		t.Errorf("repeated create gave %+v", res)
	}
}

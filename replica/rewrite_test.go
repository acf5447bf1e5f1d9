package replica

import (
	"fmt"
	"path/filepath"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/wal"
)

// What one replica of three has goes on as a cluster of one, with everything in
// its log and the change that made it so, and the old log is as it was.
func TestSurvivorGoesOn(t *testing.T) {
	n, dir := newNetwork(t), t.TempDir()
	three(t, n, dir)
	for i := range 20 {
		mustPropose(t, n.leader(0), create(fmt.Sprintf("vm-%d", i)))
	}
	last := n.leader(0).View().Index()
	if err := n.replicas[3].WaitApplied(testContext(t), last); err != nil {
		t.Fatal(err)
	}
	survivor := n.replicas[3]
	n.drop(3)
	if err := survivor.Close(); err != nil {
		t.Fatal(err)
	}
	c := testConfig(filepath.Join(dir, "3"))
	c.NodeID, c.ClusterID, c.RaftID = "node-3", "cluster-1", 3
	s, err := Survive(c)
	if err != nil {
		t.Fatal(err)
	}
	if s.View.Index() < last || len(s.Members.GetVoters()) != 3 {
		t.Fatalf("index %d of %d, members %v", s.View.Index(), last, s.Members)
	}
	next := c
	next.Dir, next.ClusterID = filepath.Join(dir, "next"), "cluster-2"
	if err := s.Found(next, create("vm-last")); err != nil {
		t.Fatal(err)
	}
	if err := s.Found(next, create("vm-more")); err == nil {
		t.Fatal("a log was begun over another")
	}
	if _, _, err := wal.Open(wal.Config{Dir: c.Dir, NodeID: "node-3", ClusterID: "cluster-2"}); !problem.Is(err, problem.Conflict) {
		t.Fatalf("the old log is opened as the new cluster's: %v", err)
	}
	r := mustOpen(t, next)
	for i := range 20 {
		if r.View().VM(fmt.Sprintf("vm-%d", i)) == nil {
			t.Errorf("vm-%d is lost", i)
		}
	}
	if r.View().VM("vm-last") == nil {
		t.Error("the change behind the log is lost")
	}
	mustPropose(t, r, create("vm-after"))
	if _, err := Survive(Config{Dir: filepath.Join(dir, "empty"), NodeID: "node-9", Logger: c.Logger}); err == nil {
		t.Error("an empty directory has a survivor")
	}
}

// A change that the state refuses begins no log.
func TestSurvivorRefusesAWrongChange(t *testing.T) {
	c := testConfig(filepath.Join(t.TempDir(), "1"))
	r := mustOpen(t, c)
	mustPropose(t, r, create("a"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Survive(c)
	if err != nil {
		t.Fatal(err)
	}
	next := c
	next.Dir = filepath.Join(t.TempDir(), "next")
	if err := s.Found(next, &blixardv1.Command{Change: &blixardv1.Command_RecoverCluster{RecoverCluster: &blixardv1.RecoverClusterCommand{}}}); !problem.HasCode(err, "cluster.not_formed") {
		t.Errorf("%v", err)
	}
}

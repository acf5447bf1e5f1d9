package leader

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

func memberAs(id uint64, role blixardv1.MemberRole_Enum) *blixardv1.Member {
	return &blixardv1.Member{NodeId: "node-" + string(rune('a'+id-1)), RaftId: id, Role: role}
}

// raftOf makes Raft's side: who of the voters and learners has acknowledged all.
func raftOf(voters, learners, active []uint64) replica.Membership {
	m := replica.Membership{Voters: voters, Learners: learners, Leader: 1, Progress: map[uint64]replica.Progress{}}
	for _, id := range append(append([]uint64{}, voters...), learners...) {
		m.Progress[id] = replica.Progress{}
	}
	for _, id := range active {
		m.Progress[id] = replica.Progress{Match: 5000, Active: true}
	}
	return m
}

const (
	voter   = blixardv1.MemberRole_voter
	standby = blixardv1.MemberRole_standby
	worker  = blixardv1.MemberRole_worker
)

func alone(string) string { return "" }

// roles gives what Roles decided: node -> role.
func roles(cmds []*blixardv1.Command) map[string]blixardv1.MemberRole_Enum {
	out := map[string]blixardv1.MemberRole_Enum{}
	for _, c := range cmds {
		out[c.GetChangeMember().GetNode()] = c.GetChangeMember().GetRole()
	}
	return out
}

func steps(c *raftpb.ConfChangeV2) map[uint64]raftpb.ConfChangeType {
	out := map[uint64]raftpb.ConfChangeType{}
	for _, s := range c.GetChanges() {
		out[s.GetNodeId()] = s.GetType()
	}
	return out
}

// A cluster of one grows to three: enrolled members become learners, stand-bys
// voters two at a time, and nobody who has acknowledged nothing.
func TestMembersGrow(t *testing.T) {
	d := &Members{Voters: 3, ReplaceAfter: time.Minute}
	d.Begin()
	members := []*blixardv1.Member{memberAs(1, voter), memberAs(2, standby), memberAs(3, standby)}
	now := time.Now()
	change, to := d.Change(raftOf([]uint64{1}, nil, []uint64{1}), members)
	if got := steps(change); to != 0 || len(got) != 2 || got[2] != raftpb.ConfChangeAddLearnerNode || got[3] != raftpb.ConfChangeAddLearnerNode {
		t.Fatalf("the first change is %v", got)
	}
	// One of the two has acknowledged: a vote for it alone would bear no loss more.
	if got := d.Roles(raftOf([]uint64{1}, []uint64{2, 3}, []uint64{1, 2}), members, alone, now); len(got) != 0 {
		t.Fatalf("one stand-by became %v", roles(got))
	}
	got := roles(d.Roles(raftOf([]uint64{1}, []uint64{2, 3}, []uint64{1, 2, 3}), members, alone, now))
	if len(got) != 2 || got["node-b"] != voter || got["node-c"] != voter {
		t.Fatalf("the stand-bys became %v", got)
	}
	members[1].Role, members[2].Role = voter, voter
	// Raft takes a new member for active before it was heard of.
	m := raftOf([]uint64{1}, []uint64{2, 3}, []uint64{1, 2})
	m.Progress[3] = replica.Progress{Active: true}
	change, _ = d.Change(m, members)
	if got := steps(change); len(got) != 1 || got[2] != raftpb.ConfChangeAddNode {
		t.Fatalf("the votes go to %v", got)
	}
	// Three are enough.
	members = append(members, memberAs(4, standby))
	if got := d.Roles(raftOf([]uint64{1, 2, 3}, []uint64{4}, []uint64{1, 2, 3, 4}), members, alone, now); len(got) != 0 {
		t.Fatalf("a fourth became %v", roles(got))
	}
}

// A voter that is silent for long enough loses its vote to a stand-by, not before,
// and not when it was heard of in between.
func TestSilentVoterIsReplaced(t *testing.T) {
	d := &Members{Voters: 3, ReplaceAfter: time.Minute}
	d.Begin()
	members := []*blixardv1.Member{memberAs(1, voter), memberAs(2, voter), memberAs(3, voter), memberAs(4, standby), memberAs(5, worker)}
	all, silent := []uint64{1, 2, 3}, raftOf([]uint64{1, 2, 3}, []uint64{4, 5}, []uint64{1, 2, 4, 5})
	heard := raftOf(all, []uint64{4, 5}, []uint64{1, 2, 3, 4, 5})
	begin := time.Now()
	for _, step := range []struct {
		m     replica.Membership
		after time.Duration
		want  int
	}{
		{silent, 0, 0},
		{silent, 59 * time.Second, 0},
		{heard, 59500 * time.Millisecond, 0},
		{silent, 61 * time.Second, 0},
		{silent, 120 * time.Second, 0},
		{silent, 121 * time.Second, 2},
	} {
		got := roles(d.Roles(step.m, members, alone, begin.Add(step.after)))
		if len(got) != step.want {
			t.Fatalf("after %v: %v", step.after, got)
		}
		if step.want == 2 && (got["node-d"] != voter || got["node-c"] != standby) {
			t.Fatalf("after %v: %v", step.after, got)
		}
	}
}

// Voters are spread over failure domains where there is a choice.
func TestVotersAreSpread(t *testing.T) {
	d := &Members{Voters: 3, ReplaceAfter: time.Minute}
	d.Begin()
	members := []*blixardv1.Member{memberAs(1, voter), memberAs(2, standby), memberAs(3, standby), memberAs(4, standby)}
	domain := func(node string) string {
		return map[string]string{"node-a": "x", "node-b": "x", "node-c": "y", "node-d": "z"}[node]
	}
	got := roles(d.Roles(raftOf([]uint64{1}, []uint64{2, 3, 4}, []uint64{1, 2, 3, 4}), members, domain, time.Now()))
	if len(got) != 2 || got["node-c"] != voter || got["node-d"] != voter {
		t.Fatalf("the voters are %v", got)
	}
}

// The domains of nodes are what they were told, each its own where they were not.
func TestDomainsOfNodes(t *testing.T) {
	s := state.New(state.DefaultLimits())
	for i, domain := range []string{"rack-1", "rack-1", "rack-2", "", "node-d"} {
		id := "node-" + string(rune('a'+i))
		s.Apply([]state.Entry{{Index: uint64(i + 1), Command: &blixardv1.Command{Change: &blixardv1.Command_RegisterNode{
			RegisterNode: &blixardv1.RegisterNodeCommand{NodeId: id, Name: id, Fingerprint: &blixardv1.NodeFingerprint{FailureDomain: domain}},
		}}}})
	}
	domain := Domains(s.View())
	if domain("node-a") != domain("node-b") || domain("node-a") == domain("node-c") {
		t.Errorf("racks are not told apart: %s, %s, %s", domain("node-a"), domain("node-b"), domain("node-c"))
	}
	if domain("node-d") == domain("node-x") || domain("node-d") == domain("node-e") {
		t.Errorf("nodes without a domain share one: %s, %s, %s", domain("node-d"), domain("node-x"), domain("node-e"))
	}
}

// A leader that is to have no vote hands over the lead first; another member just
// loses its own.
func TestDemotionAndRemoval(t *testing.T) {
	d := &Members{Voters: 3, ReplaceAfter: time.Minute}
	d.Begin()
	m := raftOf([]uint64{1, 2, 3}, nil, []uint64{1, 2, 3})
	p := m.Progress[3]
	p.Match++
	m.Progress[3] = p
	members := []*blixardv1.Member{memberAs(1, worker), memberAs(2, voter), memberAs(3, voter)}
	if change, to := d.Change(m, members); change != nil || to != 3 {
		t.Fatalf("%v, the lead goes to %d", change, to)
	}
	members[0].Role, members[1].Role = voter, worker
	change, to := d.Change(m, members)
	if got := steps(change); to != 0 || len(got) != 1 || got[2] != raftpb.ConfChangeAddLearnerNode {
		t.Fatalf("the demotion is %v", got)
	}
	members[1].Removed = true
	change, _ = d.Change(raftOf([]uint64{1, 3}, []uint64{2}, []uint64{1, 3}), members)
	if got := steps(change); len(got) != 1 || got[2] != raftpb.ConfChangeRemoveNode {
		t.Fatalf("the removal is %v", got)
	}
	// One change at a time.
	m.Outgoing = []uint64{1}
	if change, to := d.Change(m, members); change != nil || to != 0 {
		t.Fatalf("during another: %v, %d", change, to)
	}
}

// A voter that is to be replaced keeps its vote while another is gone, until the one in
// its place has caught up: without most of the voters nobody could change them again.
func TestMembersKeepAQuorumThatAnswers(t *testing.T) {
	d := &Members{Voters: 3, ReplaceAfter: time.Minute}
	d.Begin()
	members := []*blixardv1.Member{memberAs(1, voter), memberAs(2, standby), memberAs(3, voter), memberAs(4, voter)}
	if change, _ := d.Change(raftOf([]uint64{1, 2, 3}, []uint64{4}, []uint64{1, 2}), members); change != nil {
		t.Errorf("with replica 3 gone: %v", change)
	}
	change, _ := d.Change(raftOf([]uint64{1, 2, 3}, []uint64{4}, []uint64{1, 2, 4}), members)
	if got := steps(change); len(got) != 2 || got[2] != raftpb.ConfChangeAddLearnerNode || got[4] != raftpb.ConfChangeAddNode {
		t.Errorf("with replica 4 caught up: %v", got)
	}
}

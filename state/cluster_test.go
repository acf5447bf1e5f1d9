package state

import (
	"encoding/pem"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// clusterWorld applies one command after the other at a given time.
type clusterWorld struct {
	t     *testing.T
	s     *State
	index uint64
	now   time.Time
}

func (w *clusterWorld) apply(cmd *blixardv1.Command) Result {
	w.t.Helper()
	w.index++
	cmd.Actor, cmd.Time = "test", timestamppb.New(w.now)
	return w.s.Apply([]Entry{{Index: w.index, Command: cmd}})[0]
}

// must apply; refuses must not, with that code, and change no member or token.
func (w *clusterWorld) must(cmd *blixardv1.Command) Result {
	w.t.Helper()
	r := w.apply(cmd)
	if r.Problem != nil {
		w.t.Fatalf("%v: %v", cmd, r.Problem)
	}
	return r
}

func (w *clusterWorld) refuses(code string, cmd *blixardv1.Command) {
	w.t.Helper()
	members, tokens := len(w.s.View().Members()), w.s.View().Tokens()
	r := w.apply(cmd)
	if !problem.HasCode(problemOf(r), code) {
		w.t.Fatalf("%v: %v, wanted %s", cmd, r.Problem, code)
	}
	if r.Problem.Hint == "" && code != "cluster.incomplete" && code != "token.incomplete" && code != "member.incomplete" && code != "cluster.formed" && code != "token.id_taken" && code != "authority.incomplete" {
		w.t.Fatalf("%s has no hint", code)
	}
	after := w.s.View().Tokens()
	if len(w.s.View().Members()) != members || len(after) != len(tokens) || len(after) > 0 && after[0].GetUses() != tokens[0].GetUses() {
		w.t.Fatalf("%s changed something", code)
	}
}

func problemOf(r Result) error {
	if r.Problem == nil {
		return nil
	}
	return r.Problem
}

func form() *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
		ClusterId: "cluster-x", CaCertificate: []byte("ca"), SealedCaKey: []byte("key"),
		Member: &blixardv1.Member{NodeId: "node-a", Name: "a", RaftId: 1, Address: "h:1", FeatureLevel: 1},
	}}}
}

func tokenOf(id string, uses uint32, end time.Time) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_CreateToken{CreateToken: &blixardv1.CreateTokenCommand{
		Id: id, SecretDigest: []byte("digest"), Role: blixardv1.MemberRole_standby, Uses: uses, ExpiresAt: timestamppb.New(end),
	}}}
}

func enroll(token, digest, node, name, address string) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_EnrollMember{EnrollMember: &blixardv1.EnrollMemberCommand{
		TokenId: token, SecretDigest: []byte(digest), Member: &blixardv1.Member{NodeId: node, Name: name, Address: address, FeatureLevel: 1, RaftId: 77, Role: blixardv1.MemberRole_voter},
	}}}
}

func roleOf(node string, role blixardv1.MemberRole_Enum) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{Node: node, Role: role}}}
}

func removal(node string) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_RemoveMember{RemoveMember: &blixardv1.RemoveMemberCommand{Node: node}}}
}

// The life of a cluster's members: formed once, joined by tokens that are used up,
// never without a voter, and nobody comes back under an id that was removed.
func TestMembersOfACluster(t *testing.T) {
	w := &clusterWorld{t: t, s: New(DefaultLimits()), now: time.Unix(1_800_000_000, 0)}
	end := w.now.Add(time.Hour)
	w.refuses("cluster.not_formed", tokenOf("t", 1, end))
	w.refuses("cluster.incomplete", &blixardv1.Command{Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{}}})
	if m := w.must(form()).Member; m.GetRole() != blixardv1.MemberRole_voter {
		t.Fatalf("the first member is %v", m)
	}
	w.refuses("cluster.formed", form())
	w.refuses("token.incomplete", tokenOf("t", 0, end))
	w.must(tokenOf("t", 2, end))
	w.refuses("token.id_taken", tokenOf("t", 1, end))

	w.refuses("token.unknown", enroll("other", "digest", "node-b", "b", "h:2"))
	w.refuses("token.wrong", enroll("t", "guess", "node-b", "b", "h:2"))
	w.refuses("member.incomplete", enroll("t", "digest", "node-b", "", "h:2"))
	w.refuses("member.exists", enroll("t", "digest", "node-a", "b", "h:2"))
	w.refuses("member.name_taken", enroll("t", "digest", "node-b", "a", "h:2"))
	w.refuses("member.address_taken", enroll("t", "digest", "node-b", "b", "h:1"))
	// What the node asks to be does not count: id and role are the cluster's.
	if m := w.must(enroll("t", "digest", "node-b", "b", "h:2")).Member; m.GetRaftId() != 2 || m.GetRole() != blixardv1.MemberRole_standby {
		t.Fatalf("enrolled as %v", m)
	}
	w.must(enroll("t", "digest", "node-c", "c", "h:3"))
	w.refuses("token.unknown", enroll("t", "digest", "node-d", "d", "h:4"))
	w.must(tokenOf("late", 1, end))
	w.now = end.Add(time.Second)
	w.refuses("token.expired", enroll("late", "digest", "node-d", "d", "h:4"))

	w.refuses("member.last_voter", roleOf("a", blixardv1.MemberRole_standby))
	w.refuses("member.last_voter", removal("a"))
	w.must(roleOf("b", blixardv1.MemberRole_voter))
	w.must(removal("node-a"))
	w.must(removal("node-a")) // once more is no change
	w.refuses("member.not_found", roleOf("node-a", blixardv1.MemberRole_voter))
	w.refuses("member.not_found", removal("nobody"))
	w.must(tokenOf("again", 5, w.now.Add(time.Hour)))
	w.refuses("member.removed", enroll("again", "digest", "node-a", "a2", "h:9"))
	if m := w.must(enroll("again", "digest", "node-e", "a", "h:1")).Member; m.GetRaftId() != 4 {
		t.Fatalf("Raft id %d: one was used twice", m.GetRaftId())
	}
	revoke := &blixardv1.Command{Change: &blixardv1.Command_RevokeToken{RevokeToken: &blixardv1.RevokeTokenCommand{Id: "again"}}}
	w.must(revoke)
	w.refuses("token.not_found", revoke)
}

// The oldest member says what all know.
func TestFeatureLevel(t *testing.T) {
	w := &clusterWorld{t: t, s: New(DefaultLimits()), now: time.Unix(1_800_000_000, 0)}
	if got := w.s.View().FeatureLevel(); got != FeatureLevel {
		t.Fatalf("without members it is %d", got)
	}
	w.must(form())
	if got := w.s.View().FeatureLevel(); got != 1 {
		t.Fatalf("with one member it is %d", got)
	}
	if got := Level(form()); got != 1 {
		t.Fatalf("forming a cluster wants level %d", got)
	}
	if got := Level(&blixardv1.Command{}); got != 1 {
		t.Fatalf("nothing wants level %d", got)
	}
}

// pemOf makes something that passes for a certificate.
func pemOf(text string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)})
}

// A cluster that lost its majority goes on from one member, under another id:
// everybody else is out, and no token of before lets anybody in.
func TestRecoveredCluster(t *testing.T) {
	// Both orders of the ids: the old one must be gone, not just behind.
	for _, id := range []string{"cluster-a", "cluster-z"} {
		w := &clusterWorld{t: t, s: New(DefaultLimits()), now: time.Unix(1_800_000_000, 0)}
		recover := &blixardv1.Command{Change: &blixardv1.Command_RecoverCluster{RecoverCluster: &blixardv1.RecoverClusterCommand{
			ClusterId: id, CaCertificate: pemOf("new"), SealedCaKey: []byte("key"), NodeId: "node-b",
		}}}
		w.refuses("cluster.not_formed", recover)
		w.must(form())
		w.must(tokenOf("t", 3, w.now.Add(time.Hour)))
		w.refuses("cluster.incomplete", recover) // of a stranger
		w.must(enroll("t", "digest", "node-b", "b", "h:2"))
		w.must(enroll("t", "digest", "node-c", "c", "h:3"))
		if m := w.must(recover).Member; m.GetRole() != blixardv1.MemberRole_voter || m.GetAuthority() != AuthorityID(pemOf("new")) {
			t.Fatalf("the survivor is %v", m)
		}
		before := w.s.View()
		w.must(recover) // once more is no change
		view := w.s.View()
		if view.Cluster().GetId() != id || len(view.Cluster().GetCaCertificates()) != 1 || len(view.Tokens()) != 0 || view.Cluster().GetModifyIndex() != before.Cluster().GetModifyIndex() {
			t.Fatalf("%v, %v", view.Cluster(), view.Tokens())
		}
		for _, m := range view.Members() {
			if m.GetRemoved() == (m.GetNodeId() == "node-b") {
				t.Errorf("%v", m)
			}
		}
		w.must(tokenOf("u", 1, w.now.Add(time.Hour)))
		w.refuses("member.removed", enroll("u", "digest", "node-c", "c", "h:3"))
		if m := w.must(enroll("u", "digest", "node-d", "a", "h:1")).Member; m.GetRaftId() != 4 {
			t.Fatalf("Raft id %d: one was used twice", m.GetRaftId())
		}
	}
}

// An authority takes over from another, which is trusted until everybody has a
// certificate of the new one.
func TestAuthoritiesRotate(t *testing.T) {
	w := &clusterWorld{t: t, s: New(DefaultLimits()), now: time.Unix(1_800_000_000, 0)}
	rotate := func(from, to string) *blixardv1.Command {
		return &blixardv1.Command{Change: &blixardv1.Command_RotateAuthority{RotateAuthority: &blixardv1.RotateAuthorityCommand{
			CaCertificate: pemOf(to), SealedCaKey: []byte("key"), CrossCertificate: pemOf("cross " + to), ExpectedCaCertificate: pemOf(from),
		}}}
	}
	drop := &blixardv1.Command{Change: &blixardv1.Command_DropAuthorities{DropAuthorities: &blixardv1.DropAuthoritiesCommand{}}}
	w.refuses("cluster.not_formed", rotate("one", "two"))
	w.refuses("cluster.not_formed", drop)
	first := form()
	first.GetFormCluster().CaCertificate = pemOf("one")
	first.GetFormCluster().Member.Authority = AuthorityID(pemOf("one"))
	w.must(first)
	w.must(drop) // there is nothing to drop
	w.refuses("authority.changed", rotate("other", "two"))
	w.must(rotate("one", "two"))
	w.must(rotate("two", "three"))
	w.refuses("authority.too_many", rotate("three", "four"))
	c := w.s.View().Cluster()
	if len(c.GetCaCertificates()) != 3 || string(c.GetCaCertificates()[0]) != string(pemOf("three")) || len(c.GetCrossCertificates()) != 2 {
		t.Fatalf("%v", c)
	}
	w.refuses("authority.in_use", drop)
	w.must(&blixardv1.Command{Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{Node: "a", Authority: AuthorityID(pemOf("three"))}}})
	w.must(drop)
	if c := w.s.View().Cluster(); len(c.GetCaCertificates()) != 1 || len(c.GetCrossCertificates()) != 0 {
		t.Fatalf("%v", c)
	}
	if AuthorityID([]byte("nothing")) != "" {
		t.Error("what is no certificate has an id")
	}
}

// A member is not removed while an exclusive VM may still run on it, however much is
// forced: only the end of its lease makes that sure.
func TestMayStillRun(t *testing.T) {
	w := &clusterWorld{t: t, s: New(DefaultLimits()), now: time.Unix(1_800_000_000, 0)}
	w.must(form())
	w.must(tokenOf("t", 1, w.now.Add(time.Hour)))
	w.must(enroll("t", "digest", "node-b", "b", "h:2"))
	w.must(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: "node-b", Name: "b", Incarnation: 1, Fingerprint: &blixardv1.NodeFingerprint{Capacity: &blixardv1.Resources{MemoryMib: 4096, Vcpus: 2}},
	}}})
	vm := w.must(&blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{Id: "vm-1", Name: "x", Spec: &blixardv1.VMSpec{
		Desired: blixardv1.DesiredState_run, MemoryMib: 64, Vcpus: 1, OnNodeLoss: blixardv1.NodeLossPolicy_failover,
	}}}}).VM
	r := w.must(&blixardv1.Command{Change: &blixardv1.Command_Place{Place: &blixardv1.PlaceCommand{Placements: []*blixardv1.Placement{
		{VmId: "vm-1", AllocationId: "alloc-1", NodeId: "node-b", VmModifyIndex: vm.GetModifyIndex()},
	}}}})
	if len(r.Refused) > 0 {
		t.Fatal(r.Refused)
	}
	force := removal("b")
	force.GetRemoveMember().Force = true
	w.refuses("member.has_vms", removal("b"))
	w.refuses("member.may_run", force)
	if err := w.s.View().CheckRemoval(w.s.View().Member("b"), true); !problem.HasCode(err, "member.may_run") {
		t.Errorf("the view says %v", err)
	}
	w.must(&blixardv1.Command{Change: &blixardv1.Command_SetNodeState{SetNodeState: &blixardv1.SetNodeStateCommand{
		NodeId: "node-b", Incarnation: 1, State: blixardv1.NodeState_down,
	}}})
	if err := w.s.View().CheckRemoval(w.s.View().Member("b"), true); err != nil {
		t.Errorf("the view says %v", err)
	}
	w.must(force)
	if a := w.s.View().AllocationsOfNode("node-b"); len(a) != 0 {
		t.Errorf("it still has %v", a)
	}
}

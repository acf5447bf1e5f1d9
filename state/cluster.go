package state

import (
	"crypto/subtle"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// tokensMax may be valid at once; more are a mistake or an attack.
	tokensMax = 1000
	// membersMax bounds the members that are remembered, removed ones included:
	// more than 10 times the planned size of a cluster.
	membersMax = 131072
)

func (b *batch) cluster() *blixardv1.Cluster {
	all := every[blixardv1.Cluster](b.db, tableCluster, indexID)
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

func (b *batch) putCluster(c *blixardv1.Cluster) {
	c.ModifyIndex = b.index
	insert(b.db, tableCluster, c)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindCluster, Cluster: c})
}

// member finds a member by the id or, among those that were not removed, the
// name of its node.
func (b *batch) member(ref string) *blixardv1.Member {
	return byRef[blixardv1.Member](b.db, tableMember, ref)
}

func (b *batch) putMember(m *blixardv1.Member) {
	m.ModifyIndex = b.index
	old := first[blixardv1.Member](b.db, tableMember, indexID, m.GetNodeId())
	onNodes, inProjects := rises(levelOfVolumeRoom, old, m), rises(levelOfVolumeQuota, old, m)
	counted := inProjects && b.FeatureLevel() >= levelOfVolumeQuota
	insert(b.db, tableMember, m)
	b.level = 0
	if onNodes {
		b.countVolumes()
	}
	if count := inProjects && b.FeatureLevel() >= levelOfVolumeQuota; count != counted {
		recountVolumes(b.db, count)
	}
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindMember, Member: m})
}

func (b *batch) memberEvent(m *blixardv1.Member, kind, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "member", ObjectId: m.GetNodeId(), ObjectName: m.GetName(), Node: m.GetName(), Message: message})
}

// votes tells whether a member of that role has a vote.
func votes(r blixardv1.MemberRole_Enum) bool {
	return r == blixardv1.MemberRole_voter || r == blixardv1.MemberRole_witness
}

// formCluster gives the cluster its authority and its first member, once.
func (b *batch) formCluster(c *blixardv1.FormClusterCommand) Result {
	m := c.GetMember()
	if old := b.cluster(); old != nil {
		return refused(b.index, problem.New(problem.Conflict, "cluster.formed", "there is a cluster already, %s", old.GetId()))
	}
	if c.GetClusterId() == "" || len(c.GetCaCertificate()) == 0 || m.GetNodeId() == "" || m.GetName() == "" || m.GetRaftId() == 0 {
		return refused(b.index, problem.New(problem.Invalid, "cluster.incomplete", "a cluster needs an id, an authority and a first member"))
	}
	b.putCluster(&blixardv1.Cluster{
		Id: c.GetClusterId(), CaCertificates: [][]byte{c.GetCaCertificate()}, SealedCaKey: c.GetSealedCaKey(),
		NextRaftId: m.GetRaftId() + 1, CreatedAt: b.time,
	})
	m = proto.CloneOf(m)
	m.Role, m.Removed, m.CreateIndex, m.JoinedAt = blixardv1.MemberRole_voter, false, b.index, b.time
	b.putMember(m)
	b.memberEvent(m, "cluster.formed", "the cluster has its first member")
	return Result{Index: b.index, Member: m}
}

var errNoCluster = problem.New(problem.Unavailable, "cluster.not_formed", "the cluster has no authority yet").WithHint("try again in a moment")

func (b *batch) createToken(c *blixardv1.CreateTokenCommand) Result {
	if b.cluster() == nil {
		return refused(b.index, errNoCluster)
	}
	if c.GetId() == "" || len(c.GetSecretDigest()) == 0 || c.GetUses() == 0 || c.GetExpiresAt() == nil || c.GetRole() == blixardv1.MemberRole_unspecified {
		return refused(b.index, problem.New(problem.Invalid, "token.incomplete", "a token needs an id, a digest, a role, uses and an end"))
	}
	if first[blixardv1.Token](b.db, tableToken, indexID, c.GetId()) != nil {
		return refused(b.index, problem.New(problem.Conflict, "token.id_taken", "there is a token %s already", c.GetId()))
	}
	b.dropExpired()
	if n := count[blixardv1.Token](b.db, tableToken); n >= tokensMax {
		return refused(b.index, problem.New(problem.NoCapacity, "token.too_many", "there are %d tokens already", n).
			WithHint("revoke some: `blixard cluster token list`, `blixard cluster token revoke ID`"))
	}
	t := &blixardv1.Token{
		Id: c.GetId(), SecretDigest: c.GetSecretDigest(), Role: c.GetRole(), ExpiresAt: c.GetExpiresAt(), Uses: c.GetUses(),
		Creator: b.actor, CreateIndex: b.index,
	}
	insert(b.db, tableToken, t)
	b.tokenEvent(t, "token.created", "nodes may join with it as "+t.GetRole().String())
	return Result{Index: b.index, Token: t}
}

func (b *batch) tokenEvent(t *blixardv1.Token, kind, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "token", ObjectId: t.GetId(), ObjectName: t.GetId(), Message: message})
}

// dropExpired forgets tokens whose time is over, in the time of commands.
func (b *batch) dropExpired() {
	for _, t := range every[blixardv1.Token](b.db, tableToken, indexID) {
		if b.expired(t) {
			remove(b.db, tableToken, t)
		}
	}
}

func (b *batch) expired(t *blixardv1.Token) bool {
	return b.time.AsTime().After(t.GetExpiresAt().AsTime())
}

func (b *batch) revokeToken(c *blixardv1.RevokeTokenCommand) Result {
	t := first[blixardv1.Token](b.db, tableToken, indexID, c.GetId())
	if t == nil {
		return refused(b.index, problem.New(problem.NotFound, "token.not_found", "there is no token %q", c.GetId()).
			WithHint("`blixard cluster token list` shows the tokens; used and expired ones are gone"))
	}
	remove(b.db, tableToken, t)
	b.tokenEvent(t, "token.revoked", "nobody joins with it any more")
	return Result{Index: b.index, Token: t}
}

// enrollMember uses a token once and makes a node a member. What is refused uses
// nothing.
func (b *batch) enrollMember(c *blixardv1.EnrollMemberCommand) Result {
	cluster := b.cluster()
	if cluster == nil {
		return refused(b.index, errNoCluster)
	}
	t := first[blixardv1.Token](b.db, tableToken, indexID, c.GetTokenId())
	if p := b.checkToken(t, c); p != nil {
		return refused(b.index, p)
	}
	m := proto.CloneOf(c.GetMember())
	if p := b.checkNewMember(m); p != nil {
		return refused(b.index, p)
	}
	if used := proto.CloneOf(t); used.GetUses() > 1 {
		used.Uses--
		insert(b.db, tableToken, used)
	} else {
		remove(b.db, tableToken, t)
	}
	next := proto.CloneOf(cluster)
	m.RaftId, m.Role, m.Removed = next.GetNextRaftId(), t.GetRole(), false
	m.CreateIndex, m.JoinedAt = b.index, b.time
	next.NextRaftId++
	b.putCluster(next)
	b.putMember(m)
	b.memberEvent(m, "member.enrolled", "the node may join as "+m.GetRole().String()+" with token "+t.GetId())
	return Result{Index: b.index, Member: m}
}

func (b *batch) checkToken(t *blixardv1.Token, c *blixardv1.EnrollMemberCommand) *problem.Error {
	return checkToken(t, c.GetSecretDigest(), b.time.AsTime())
}

func checkToken(t *blixardv1.Token, digest []byte, now time.Time) *problem.Error {
	hint := "make another with `blixard cluster token create`"
	switch {
	case t == nil:
		return problem.New(problem.Denied, "token.unknown", "the token is not known here: it was used up, revoked or has expired, or is another cluster's").WithHint("%s", hint)
	case subtle.ConstantTimeCompare(t.GetSecretDigest(), digest) != 1:
		return problem.New(problem.Denied, "token.wrong", "the token's secret is wrong").WithHint("copy the whole token")
	case now.After(t.GetExpiresAt().AsTime()):
		return problem.New(problem.Denied, "token.expired", "the token ended at %s", t.GetExpiresAt().AsTime().Format("2006-01-02 15:04:05 MST")).WithHint("%s", hint)
	}
	return nil
}

// CheckToken tells why a token lets nobody in, nil when it does.
func (v *View) CheckToken(id string, digest []byte, now time.Time) error {
	if p := checkToken(first[blixardv1.Token](v.db, tableToken, indexID, id), digest, now); p != nil {
		return p
	}
	return nil
}

// CheckNewMember tells why a node can't become a member, nil when it can.
func (v *View) CheckNewMember(m *blixardv1.Member) error {
	if p := checkNewMember(m, every[blixardv1.Member](v.db, tableMember, indexID)); p != nil {
		return p
	}
	return nil
}

func (b *batch) checkNewMember(m *blixardv1.Member) *problem.Error {
	return checkNewMember(m, every[blixardv1.Member](b.db, tableMember, indexID))
}

// checkNewMember refuses whom the cluster knows already.
func checkNewMember(m *blixardv1.Member, members []*blixardv1.Member) *problem.Error {
	if m.GetNodeId() == "" || m.GetName() == "" || m.GetAddress() == "" {
		return problem.New(problem.Invalid, "member.incomplete", "a member needs an id, a name and an address")
	}
	if len(members) >= membersMax {
		return problem.New(problem.NoCapacity, "member.too_many", "the cluster remembers %d members already", len(members))
	}
	for _, other := range members {
		switch {
		case other.GetNodeId() == m.GetNodeId() && other.GetRemoved():
			return problem.New(problem.Conflict, "member.removed", "node id %s was removed from this cluster and can't come back", m.GetNodeId()).
				WithHint("start the node with an empty --data-dir: it gets a new id")
		case other.GetNodeId() == m.GetNodeId():
			return problem.New(problem.Conflict, "member.exists", "node id %s is member %q already", m.GetNodeId(), other.GetName()).
				WithHint("was its data directory copied? Start the other node with an empty --data-dir")
		case other.GetRemoved():
		case other.GetName() == m.GetName():
			return problem.New(problem.Conflict, "member.name_taken", "there is a node %q already, with id %s", m.GetName(), other.GetNodeId()).
				WithHint("give this node another name: `blixard node start --id NAME`")
		case other.GetAddress() == m.GetAddress():
			return problem.New(problem.Conflict, "member.address_taken", "node %q has the address %s already", other.GetName(), m.GetAddress()).
				WithHint("give this node another address: `blixard node start --bind HOST:PORT`")
		}
	}
	return nil
}

func (b *batch) changeableMember(ref string) (*blixardv1.Member, *problem.Error) {
	m := b.member(ref)
	if m == nil || m.GetRemoved() {
		return nil, problem.New(problem.NotFound, "member.not_found", "there is no member %q", ref).
			WithHint("`blixard cluster members` shows them")
	}
	return m, nil
}

// otherVoters counts the members with a vote beside m.
func (b *batch) otherVoters(m *blixardv1.Member) int {
	n := 0
	for _, other := range every[blixardv1.Member](b.db, tableMember, indexID) {
		if !other.GetRemoved() && other.GetNodeId() != m.GetNodeId() && votes(other.GetRole()) {
			n++
		}
	}
	return n
}

func lastVoter(m *blixardv1.Member) *problem.Error {
	return problem.New(problem.Conflict, "member.last_voter", "node %q is the last one with a vote: without it nobody could decide anything", m.GetName()).
		WithHint("promote another member first: `blixard cluster promote NODE`")
}

// changeMember changes what the command names; what it leaves empty stays.
func (b *batch) changeMember(c *blixardv1.ChangeMemberCommand) Result {
	old, p := b.changeableMember(c.GetNode())
	if p != nil {
		return refused(b.index, p)
	}
	m := proto.CloneOf(old)
	if c.GetRole() != blixardv1.MemberRole_unspecified {
		if votes(m.GetRole()) && !votes(c.GetRole()) && b.otherVoters(m) == 0 {
			return refused(b.index, lastVoter(m))
		}
		m.Role = c.GetRole()
	}
	if c.GetAddress() != "" {
		m.Address = c.GetAddress()
	}
	if c.GetVersion() != "" {
		m.Version, m.FeatureLevel = c.GetVersion(), c.GetFeatureLevel()
	}
	if c.GetAuthority() != "" {
		m.Authority = c.GetAuthority()
	}
	if proto.Equal(m, old) {
		return Result{Index: b.index, Member: old}
	}
	b.putMember(m)
	if m.GetRole() != old.GetRole() {
		b.memberEvent(m, "member.role", "it is "+m.GetRole().String()+" now")
	} else {
		b.memberEvent(m, "member.changed", "its address, version or certificate changed")
	}
	return Result{Index: b.index, Member: m}
}

// removeMember takes a member out for good. One that still has VMs is refused
// unless they are given up.
func (b *batch) removeMember(c *blixardv1.RemoveMemberCommand) Result {
	old, p := b.changeableMember(c.GetNode())
	if p != nil {
		if gone := b.member(c.GetNode()); gone != nil {
			return Result{Index: b.index, Member: gone} // done before
		}
		return refused(b.index, p)
	}
	if votes(old.GetRole()) && b.otherVoters(old) == 0 {
		return refused(b.index, lastVoter(old))
	}
	left := all[blixardv1.Allocation](b.db, tableAllocation, indexNode, old.GetNodeId())
	if p := checkRemoval(old, b.node(old.GetNodeId()), left, c.GetForce()); p != nil {
		return refused(b.index, p)
	}
	return Result{Index: b.index, Member: b.expel(old)}
}

// CheckRemoval tells why a member can't be removed now, nil when it can.
func (v *View) CheckRemoval(m *blixardv1.Member, force bool) error {
	if p := checkRemoval(m, v.Node(m.GetNodeId()), v.AllocationsOfNode(m.GetNodeId()), force); p != nil {
		return p
	}
	return nil
}

// checkRemoval refuses to give up VMs without being asked to, and exclusive ones
// while the node's lease is not over: they may run there, and would run twice.
func checkRemoval(m *blixardv1.Member, n *blixardv1.Node, left []*blixardv1.Allocation, force bool) *problem.Error {
	if has := len(notLost(left)); has > 0 && !force {
		return problem.New(problem.Conflict, "member.has_vms", "node %q still has %d VMs", m.GetName(), has).
			WithHint("let it leave by `blixard cluster leave`, which empties it first, or give its VMs up with --force if it will never come back")
	}
	for _, a := range left {
		if n.GetState() != blixardv1.NodeState_down && a.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_failover {
			return problem.New(problem.Conflict, "member.may_run", "node %q may still run VM %q, which must never run twice", m.GetName(), a.GetVmName()).
				WithHint("stop the node and wait until `blixard node list` shows it as down, or let it leave by `blixard cluster leave`")
		}
	}
	return nil
}

// expel takes a member out for good and gives up what it has.
func (b *batch) expel(old *blixardv1.Member) *blixardv1.Member {
	for _, a := range all[blixardv1.Allocation](b.db, tableAllocation, indexNode, old.GetNodeId()) {
		b.giveUp(a)
	}
	if n := b.node(old.GetNodeId()); n != nil {
		next := copyNode(n)
		next.State, next.Draining, next.Drain = blixardv1.NodeState_left, true, nil
		b.putNode(next)
	}
	m := proto.CloneOf(old)
	m.Removed = true
	b.putMember(m)
	b.memberEvent(m, "member.removed", "the node is out for good and its certificate is worth nothing")
	return m
}

// giveUp ends an allocation of a node that will never be heard of again: the VM
// may be placed elsewhere, under a higher epoch.
func (b *batch) giveUp(a *blixardv1.Allocation) {
	lost := proto.CloneOf(a.GetStatus())
	lost.State, lost.Reason, lost.Message = stLost, "node_removed", "its node was removed from the cluster"
	next := copyAllocation(a)
	next.Status = lost
	b.allocationEvent(next, "allocation.lost", lost)
	b.removed(next, nil)
}

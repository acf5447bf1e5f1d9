package leader

import (
	"cmp"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/replica"
)

const (
	// lagMax entries behind the leader and a member counts as caught up: what comes
	// within some 25 ms at the highest rate.
	lagMax = 1000
	// changesMax of members in one change, so that its entry stays small.
	changesMax = 64
)

// Members decides who votes. It is plain, as Table is, and not safe for concurrent
// use.
type Members struct {
	// Voters is how many the cluster wants: 3 or 5.
	Voters int
	// ReplaceAfter: a voter that is silent for so long loses its vote to a stand-by.
	ReplaceAfter time.Duration
	// silent tells since when a voter is.
	silent map[uint64]time.Time
}

// Begin forgets what an earlier term saw.
func (d *Members) Begin() { d.silent = map[uint64]time.Time{} }

// seen is who takes part, and what the state wants of each.
type seen struct {
	m    replica.Membership
	live map[uint64]*blixardv1.Member
	head uint64 // newest entry of the leader
}

func look(m replica.Membership, members []*blixardv1.Member) seen {
	s := seen{m: m, live: map[uint64]*blixardv1.Member{}, head: m.Progress[m.Leader].Match}
	for _, one := range members {
		if !one.GetRemoved() {
			s.live[one.GetRaftId()] = one
		}
	}
	return s
}

// caughtUp tells that a replica answers and has nearly everything.
func (s seen) caughtUp(id uint64) bool {
	p := s.m.Progress[id]
	// Raft takes a new member for active until it learns better; what it has
	// acknowledged is the proof that it is there.
	return p.Active && p.Match > 0 && p.Match+lagMax >= s.head
}

func wantsVote(r blixardv1.MemberRole_Enum) bool {
	return r == blixardv1.MemberRole_voter || r == blixardv1.MemberRole_witness
}

// ids in ascending order, so that a decision does not depend on a map's.
func (s seen) ids() []uint64 {
	var ids []uint64
	for id := range s.live {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Change gives the next change of Raft's members towards what the state says, nil
// when there is none or one is under way. transferTo is the Raft id of who shall
// lead first, when the leader itself is to lose its vote, else 0.
func (d *Members) Change(m replica.Membership, members []*blixardv1.Member) (change *raftpb.ConfChangeV2, transferTo uint64) {
	s := look(m, members)
	if len(m.Outgoing) > 0 || len(s.live) == 0 {
		return nil, 0
	}
	var steps []*raftpb.ConfChangeSingle
	step := func(kind raftpb.ConfChangeType, id uint64) {
		if len(steps) < changesMax {
			steps = append(steps, &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: &id})
		}
	}
	voters := 0
	for _, id := range slices.Concat(m.Voters, m.Learners) {
		one, votes := s.live[id], slices.Contains(m.Voters, id)
		switch {
		case one == nil && id == m.Leader, one != nil && votes && !wantsVote(one.GetRole()) && id == m.Leader:
			return nil, s.successor()
		case one == nil:
			step(raftpb.ConfChangeRemoveNode, id)
		case votes && !wantsVote(one.GetRole()):
			step(raftpb.ConfChangeAddLearnerNode, id)
		case votes:
			voters++
		case wantsVote(one.GetRole()) && s.caughtUp(id):
			step(raftpb.ConfChangeAddNode, id)
			voters++
		}
	}
	for _, id := range s.ids() {
		if !slices.Contains(m.Voters, id) && !slices.Contains(m.Learners, id) {
			step(raftpb.ConfChangeAddLearnerNode, id)
		}
	}
	if !s.answers(steps) {
		// A voter that is replaced keeps its vote until the other one has caught up.
		steps = slices.DeleteFunc(steps, func(c *raftpb.ConfChangeSingle) bool {
			return slices.Contains(m.Voters, c.GetNodeId()) && c.GetType() != raftpb.ConfChangeAddNode
		})
	}
	if len(steps) == 0 || voters == 0 {
		return nil, 0
	}
	return &raftpb.ConfChangeV2{Changes: steps}, 0
}

// answers tells whether most of the voters that a change leaves answer now: without
// them nobody could undo it.
func (s seen) answers(steps []*raftpb.ConfChangeSingle) bool {
	votes := map[uint64]bool{}
	for _, id := range s.m.Voters {
		votes[id] = true
	}
	for _, c := range steps {
		delete(votes, c.GetNodeId())
		if c.GetType() == raftpb.ConfChangeAddNode {
			votes[c.GetNodeId()] = true
		}
	}
	active := 0
	for id := range votes {
		if s.m.Progress[id].Active {
			active++
		}
	}
	return active > len(votes)/2
}

// successor is the voter beside the leader that has most of the log; 0 when none
// answers.
func (s seen) successor() uint64 {
	var best uint64
	for _, id := range s.m.Voters {
		one := s.live[id]
		if id == s.m.Leader || one == nil || !wantsVote(one.GetRole()) || !s.m.Progress[id].Active {
			continue
		}
		if best == 0 || s.m.Progress[id].Match > s.m.Progress[best].Match {
			best = id
		}
	}
	return best
}

// Roles gives the commands that make stand-bys voters and the other way round: the
// cluster wants an odd number of voters, up to Voters, and replaces one that has
// been silent for too long. domain gives the failure domain of a member; voters are
// spread over domains where there is a choice.
func (d *Members) Roles(m replica.Membership, members []*blixardv1.Member, domain func(nodeID string) string, now time.Time) []*blixardv1.Command {
	s := look(m, members)
	if len(m.Outgoing) > 0 || len(s.live) == 0 {
		return nil
	}
	var voters, standbys, lost []uint64
	for _, id := range s.ids() {
		switch r := s.live[id].GetRole(); {
		case wantsVote(r):
			voters = append(voters, id)
			if d.lost(s, id, now) {
				lost = append(lost, id)
			}
		case r == blixardv1.MemberRole_standby && s.caughtUp(id):
			standbys = append(standbys, id)
		}
	}
	var out []*blixardv1.Command
	for len(lost) > 0 && len(standbys) > 0 {
		gone := lost[0]
		lost, voters = lost[1:], without(voters, gone)
		next := spread(s, voters, standbys, domain)
		voters, standbys = append(voters, next), without(standbys, next)
		out = append(out, setRole(s.live[next], blixardv1.MemberRole_voter), setRole(s.live[gone], blixardv1.MemberRole_standby))
	}
	// Two at once: an even number of voters bears no more losses than one less.
	for len(voters)%2 == 1 && len(voters)+2 <= d.Voters && len(standbys) >= 2 || len(voters)%2 == 0 && len(voters) < d.Voters && len(standbys) >= 1 {
		next := spread(s, voters, standbys, domain)
		voters, standbys = append(voters, next), without(standbys, next)
		out = append(out, setRole(s.live[next], blixardv1.MemberRole_voter))
	}
	return out
}

// lost tells that a voter has been silent for too long.
func (d *Members) lost(s seen, id uint64, now time.Time) bool {
	if s.m.Progress[id].Active || id == s.m.Leader || !slices.Contains(s.m.Voters, id) {
		delete(d.silent, id)
		return false
	}
	if d.silent[id].IsZero() {
		d.silent[id] = now
	}
	return now.Sub(d.silent[id]) >= d.ReplaceAfter
}

func without(ids []uint64, id uint64) []uint64 {
	return slices.DeleteFunc(slices.Clone(ids), func(other uint64) bool { return other == id })
}

// spread chooses the stand-by whose failure domain has the fewest voters; equal
// ones by their Raft id.
func spread(s seen, voters, standbys []uint64, domain func(string) string) uint64 {
	count := map[string]int{}
	for _, id := range voters {
		count[domain(s.live[id].GetNodeId())]++
	}
	return slices.MinFunc(standbys, func(a, b uint64) int {
		return cmp.Or(cmp.Compare(count[domain(s.live[a].GetNodeId())], count[domain(s.live[b].GetNodeId())]), cmp.Compare(a, b))
	})
}

func setRole(m *blixardv1.Member, r blixardv1.MemberRole_Enum) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{Node: m.GetNodeId(), Role: r}}}
}

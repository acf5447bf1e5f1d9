package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// Defaults and limits of the cluster's calls.
const (
	defaultTokenTTL  = time.Hour
	defaultTokenUses = 1
	// progressTimeout bounds what a status asks of the leader.
	progressTimeout = time.Second
	// demoteTimeout bounds the wait until a member that is removed has no vote.
	demoteTimeout = 20 * time.Second
	// memberPoll between looks at Raft's members.
	memberPoll = 20 * time.Millisecond
)

// Membership is what the daemon does for the cluster's calls. It must be safe for
// concurrent use.
type Membership interface {
	// Join takes the node into another cluster; the node begins anew right after.
	Join(ctx context.Context, req *blixardv1.JoinRequest) (*blixardv1.JoinResponse, error)
	// Leave takes the node out of its cluster; it begins anew right after.
	Leave(ctx context.Context) error
	// Secret opens the sealed key of the authority; nil where there is none, on
	// workers.
	Secret() []byte
	// Probe makes sure that the node of that id answers at an address.
	Probe(ctx context.Context, nodeID, address string) error
	// Address of this node for others.
	Address() string
	// Removed tells that the other members say this node is one no more.
	Removed() bool
}

// clusterService is ClusterService; see the .proto for its contract.
type clusterService struct {
	blixardv1.UnimplementedClusterServiceServer
	*Server
}

func (s clusterService) GetCluster(ctx context.Context, _ *blixardv1.GetClusterRequest) (*blixardv1.GetClusterResponse, error) {
	own := s.ownCluster(ctx)
	if own.GetLeaderNodeId() == "" || own.GetLeaderNodeId() == s.cfg.NodeID || s.cfg.Nodes == nil || hopped(ctx) {
		return own, nil
	}
	asking, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	conn, err := s.ready(asking, own.GetLeaderNodeId())
	if err == nil {
		var told *blixardv1.GetClusterResponse
		if told, err = blixardv1.NewClusterServiceClient(conn).GetCluster(s.outgoing(asking), &blixardv1.GetClusterRequest{}); err == nil {
			// The leader knows the members and how far they are; the rest is this node's.
			own.Members, own.Healthy, own.FeatureLevel = told.GetMembers(), told.GetHealthy(), told.GetFeatureLevel()
			return own, nil
		}
	}
	own.Notices = append(own.Notices, fmt.Sprintf("the leader, node %s, does not answer this node: what is told of the members may be old", s.nodeName(own.GetLeaderNodeId())))
	return own, nil
}

// ownCluster tells what this node knows by itself.
func (s *Server) ownCluster(ctx context.Context) *blixardv1.GetClusterResponse {
	view, st := s.cfg.Replica.View(), s.cfg.Replica.Status()
	resp := &blixardv1.GetClusterResponse{
		ClusterId: view.Cluster().GetId(), NodeId: s.cfg.NodeID, LeaderNodeId: view.MemberOfReplica(st.LeaderID).GetNodeId(),
		Term: st.Term, CommitIndex: st.Commit, AppliedIndex: st.Applied, FeatureLevel: view.FeatureLevel(),
		LogBytes: uint64(st.LogBytes), SnapshotIndex: st.SnapshotIndex,
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	raft, err := s.cfg.Replica.Membership(ctx)
	if err != nil {
		resp.Notices = append(resp.Notices, "the replica does not answer: "+err.Error())
	}
	active := 0
	for _, m := range view.Members() {
		if m.GetRemoved() {
			continue
		}
		one := memberStatus(m, raft, st)
		one.NodeState = view.Node(m.GetNodeId()).GetState().String()
		if one.GetActive() && slices.Contains(raft.Voters, m.GetRaftId()) {
			active++
		}
		resp.Members = append(resp.Members, one)
	}
	resp.Healthy = st.Leader && active > len(raft.Voters)/2
	if s.removed() {
		resp.Notices = append(resp.Notices, "this node was removed from the cluster: "+removedHint)
	}
	if st.LeaderID == 0 {
		resp.Notices = append(resp.Notices, "there is no leader: "+s.votersText())
	}
	if st.StorageFull {
		resp.Notices = append(resp.Notices, "the disk of this node's data directory is full: changes are refused until there is space")
	}
	return resp
}

func memberStatus(m *blixardv1.Member, raft replica.Membership, st replica.Status) *blixardv1.MemberStatus {
	id := m.GetRaftId()
	one := &blixardv1.MemberStatus{Member: m, Leader: id == st.LeaderID, RaftRole: "joining"}
	switch {
	case slices.Contains(raft.Voters, id):
		one.RaftRole = "voter"
	case slices.Contains(raft.Learners, id):
		one.RaftRole = "learner"
	}
	if p, ok := raft.Progress[id]; ok && st.Leader {
		one.MatchIndex, one.Active = p.Match, p.Active
		if id == st.LeaderID {
			one.Active = true
		}
		if head := raft.Progress[st.LeaderID].Match; head > p.Match {
			one.Lag = head - p.Match
		}
	}
	return one
}

func (s clusterService) CreateToken(ctx context.Context, req *blixardv1.CreateTokenRequest) (*blixardv1.CreateTokenResponse, error) {
	cluster := s.cfg.Replica.View().Cluster()
	if cluster == nil {
		return nil, problem.New(problem.Unavailable, "cluster.not_formed", "the cluster has no authority yet").WithHint("try again in a moment")
	}
	t, err := auth.NewToken(cluster.GetCaCertificates()[0])
	if err != nil {
		return nil, err
	}
	cmd := &blixardv1.CreateTokenCommand{
		Id: t.ID, SecretDigest: t.SecretDigest(), Role: req.GetRole(), Uses: max(req.GetUses(), defaultTokenUses),
		ExpiresAt: timestamppb.New(wallclock.Now().Add(defaultTokenTTL)),
	}
	if req.GetTtl() != nil {
		cmd.ExpiresAt = timestamppb.New(wallclock.Now().Add(req.GetTtl().AsDuration()))
	}
	if cmd.Role == blixardv1.MemberRole_unspecified {
		cmd.Role = blixardv1.MemberRole_standby
	}
	// A key would give the first token's answer without its secret, which is kept
	// nowhere; so every call makes a token of its own.
	r, err := s.propose(ctx, "", &blixardv1.Command{Change: &blixardv1.Command_CreateToken{CreateToken: cmd}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.CreateTokenResponse{Text: t.String(), Token: withoutDigest(r.Token), Address: s.cfg.Membership.Address()}, nil
}

func withoutDigest(t *blixardv1.Token) *blixardv1.Token {
	t = proto.CloneOf(t)
	t.SecretDigest = nil
	return t
}

func (s clusterService) ListTokens(ctx context.Context, _ *blixardv1.ListTokensRequest) (*blixardv1.ListTokensResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.ListTokensResponse{}
	now := wallclock.Now()
	for _, t := range view.Tokens() {
		if t.GetExpiresAt().AsTime().After(now) {
			resp.Tokens = append(resp.Tokens, withoutDigest(t))
		}
	}
	return resp, nil
}

func (s clusterService) RevokeToken(ctx context.Context, req *blixardv1.RevokeTokenRequest) (*blixardv1.RevokeTokenResponse, error) {
	_, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_RevokeToken{
		RevokeToken: &blixardv1.RevokeTokenCommand{Id: req.GetId()},
	}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RevokeTokenResponse{}, nil
}

func changeRole(node string, role blixardv1.MemberRole_Enum) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{Node: node, Role: role}}}
}

func (s clusterService) ChangeMember(ctx context.Context, req *blixardv1.ChangeMemberRequest) (*blixardv1.ChangeMemberResponse, error) {
	m := s.cfg.Replica.View().Member(req.GetNode())
	if m.GetRole() == blixardv1.MemberRole_worker && req.GetRole() != blixardv1.MemberRole_worker {
		return nil, problem.New(problem.Conflict, "member.worker", "node %q joined as a worker, which has not the cluster's secret and so can't lead", m.GetName()).
			WithHint("let it leave (`blixard cluster leave`) and join again with a token of role standby")
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), changeRole(req.GetNode(), req.GetRole()))
	if err != nil {
		return nil, err
	}
	return &blixardv1.ChangeMemberResponse{Member: r.Member}, nil
}

// RemoveMember takes the vote first, while the member still takes part, since two
// voters agree only together.
func (s clusterService) RemoveMember(ctx context.Context, req *blixardv1.RemoveMemberRequest) (*blixardv1.RemoveMemberResponse, error) {
	m := s.cfg.Replica.View().Member(req.GetNode())
	if m != nil && !m.GetRemoved() {
		if err := s.cfg.Replica.View().CheckRemoval(m, req.GetForce()); err != nil {
			return nil, err
		}
		if _, err := s.propose(ctx, "", changeRole(m.GetNodeId(), blixardv1.MemberRole_worker)); err != nil {
			return nil, err
		}
		if err := s.untilVoteless(ctx, m); err != nil {
			return nil, err
		}
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_RemoveMember{
		RemoveMember: &blixardv1.RemoveMemberCommand{Node: req.GetNode(), Force: req.GetForce()},
	}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RemoveMemberResponse{Member: r.Member}, nil
}

// untilVoteless waits until a member's replica has no vote. When this node is
// that member and stops leading for it, the answer is "replica.not_leader", and
// the next leader goes on.
func (s *Server) untilVoteless(ctx context.Context, m *blixardv1.Member) error {
	ctx, cancel := context.WithTimeout(ctx, demoteTimeout)
	defer cancel()
	for {
		raft, err := s.cfg.Replica.Membership(ctx)
		if err != nil {
			return err
		}
		if !s.cfg.Replica.Status().Leader {
			return problem.New(problem.NotLeader, "replica.not_leader", "another node leads by now")
		}
		if !slices.Contains(raft.Voters, m.GetRaftId()) && !slices.Contains(raft.Outgoing, m.GetRaftId()) {
			return nil
		}
		select {
		case <-time.After(memberPoll):
		case <-ctx.Done():
			return problem.New(problem.Unavailable, "member.still_votes", "node %q could not be relieved of its vote in %v", m.GetName(), demoteTimeout).
				WithHint("a majority of the voters must answer; see `blixard cluster status`, and try again")
		}
	}
}

// DrainNode lets the VMs go at once where a node is too old to know of drains in steps,
// unless there is a deadline: nobody would keep it.
func (s clusterService) DrainNode(ctx context.Context, req *blixardv1.DrainNodeRequest) (*blixardv1.DrainNodeResponse, error) {
	cmd := &blixardv1.Command{Change: &blixardv1.Command_DrainNode{
		DrainNode: &blixardv1.DrainNodeCommand{Node: req.GetNode(), Drain: req.GetDrain(), Gradual: req.GetGradual(), Deadline: req.GetDeadline()},
	}}
	if req.GetDeadline() == nil && s.cfg.Replica.View().FeatureLevel() < state.Level(cmd) {
		cmd.GetDrainNode().Gradual = false
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), cmd)
	if err != nil {
		return nil, err
	}
	return &blixardv1.DrainNodeResponse{Node: r.Node}, nil
}

func (s clusterService) TransferLeader(ctx context.Context, req *blixardv1.TransferLeaderRequest) (*blixardv1.TransferLeaderResponse, error) {
	view := s.cfg.Replica.View()
	raft, err := s.cfg.Replica.Membership(ctx)
	if err != nil {
		return nil, err
	}
	to := view.Member(req.GetNode())
	if req.GetNode() == "" {
		for _, m := range view.Members() {
			p := raft.Progress[m.GetRaftId()]
			if m.GetRaftId() != raft.Leader && slices.Contains(raft.Voters, m.GetRaftId()) && p.Active && (to == nil || p.Match > raft.Progress[to.GetRaftId()].Match) {
				to = m
			}
		}
		if to == nil {
			return nil, problem.New(problem.Conflict, "cluster.no_successor", "no other voter answers").WithHint("see `blixard cluster status`")
		}
	}
	switch {
	case to == nil || to.GetRemoved():
		return nil, problem.New(problem.NotFound, "member.not_found", "there is no member %q", req.GetNode()).WithHint("`blixard cluster members` shows them")
	case !slices.Contains(raft.Voters, to.GetRaftId()):
		return nil, problem.New(problem.Conflict, "member.no_vote", "node %q has no vote and so can't lead", to.GetName()).WithHint("`blixard cluster promote %s`", to.GetName())
	}
	if err := s.cfg.Replica.TransferLeader(ctx, to.GetRaftId()); err != nil {
		return nil, err
	}
	return &blixardv1.TransferLeaderResponse{LeaderNodeId: to.GetNodeId()}, nil
}

func (s clusterService) Compact(ctx context.Context, _ *blixardv1.CompactRequest) (*blixardv1.CompactResponse, error) {
	if err := s.cfg.Replica.Compact(ctx); err != nil {
		return nil, err
	}
	st := s.cfg.Replica.Status()
	return &blixardv1.CompactResponse{SnapshotIndex: st.SnapshotIndex, LogBytes: uint64(st.LogBytes)}, nil
}

func (s clusterService) Join(ctx context.Context, req *blixardv1.JoinRequest) (*blixardv1.JoinResponse, error) {
	return s.cfg.Membership.Join(ctx, req)
}

func (s clusterService) Leave(ctx context.Context, _ *blixardv1.LeaveRequest) (*blixardv1.LeaveResponse, error) {
	return &blixardv1.LeaveResponse{}, s.cfg.Membership.Leave(ctx)
}

package server

import (
	"context"
	"net"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/state"
)

const (
	// skewMax between the clocks of a new node and the leader's.
	skewMax = 5 * time.Minute
	// probeTimeout of the call back to a node that wants to join.
	probeTimeout = 5 * time.Second
)

// enrollService is EnrollService; see the .proto for its contract.
type enrollService struct {
	blixardv1.UnimplementedEnrollServiceServer
	*Server
}

// authority opens the cluster's, on a node that has the secret.
func (s *Server) authority(c *blixardv1.Cluster) (*auth.Authority, error) {
	if c == nil {
		return nil, problem.New(problem.Unavailable, "cluster.not_formed", "the cluster has no authority yet").WithHint("try again in a moment")
	}
	secret := s.cfg.Membership.Secret()
	if secret == nil {
		return nil, problem.New(problem.Internal, "cluster.no_secret", "this node has not the cluster's secret").
			WithHint("let another node lead: `blixard cluster transfer-leader`")
	}
	return auth.OpenAuthority(c.GetId(), c.GetCaCertificates()[0], c.GetSealedCaKey(), secret)
}

// Enroll lets a node in that has a token. Everything is checked before the token
// is used up.
func (s enrollService) Enroll(ctx context.Context, req *blixardv1.EnrollRequest) (*blixardv1.EnrollResponse, error) {
	view := s.cfg.Replica.View()
	resp, err := s.enroll(ctx, view, req)
	if err != nil {
		return nil, s.audited(caller{actor: "node:" + req.GetNodeId()}, "Enroll", err)
	}
	return resp, nil
}

func (s enrollService) enroll(ctx context.Context, view *state.View, req *blixardv1.EnrollRequest) (*blixardv1.EnrollResponse, error) {
	// The token comes first: who has none learns nothing else.
	if err := view.CheckToken(req.GetTokenId(), auth.SecretDigest(req.GetTokenSecret()), wallclock.Now()); err != nil {
		return nil, err
	}
	ca, err := s.authority(view.Cluster())
	if err != nil {
		return nil, err
	}
	if err := s.checkJoiner(ctx, view, req); err != nil {
		return nil, err
	}
	cert, err := ca.Sign(req.GetSigningRequest(), auth.Identity{ClusterID: view.Cluster().GetId(), Role: auth.RoleNode, Name: req.GetNodeId()}, wallclock.Now())
	if err != nil {
		return nil, err
	}
	ctx = context.WithValue(ctx, actorKey{}, "node:"+req.GetName())
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_EnrollMember{EnrollMember: &blixardv1.EnrollMemberCommand{
		TokenId: req.GetTokenId(), SecretDigest: auth.SecretDigest(req.GetTokenSecret()),
		Member: &blixardv1.Member{
			NodeId: req.GetNodeId(), Name: req.GetName(), Address: req.GetAddress(), FeatureLevel: req.GetFeatureLevel(), Version: req.GetVersion(),
			Authority: state.AuthorityID(view.Cluster().GetCaCertificates()[0]),
		},
	}}})
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.EnrollResponse{
		ClusterId: view.Cluster().GetId(), Certificate: cert, CaCertificates: view.Cluster().GetCaCertificates(),
		Member: r.Member, Members: s.liveMembers(), ClusterIndex: view.Cluster().GetModifyIndex(),
	}
	if r.Member.GetRole() != blixardv1.MemberRole_worker {
		resp.ClusterSecret = s.cfg.Membership.Secret()
	}
	return resp, nil
}

func (s *Server) liveMembers() []*blixardv1.Member {
	var live []*blixardv1.Member
	for _, m := range s.cfg.Replica.View().Members() {
		if !m.GetRemoved() {
			live = append(live, m)
		}
	}
	return live
}

// checkJoiner refuses a node that could not take part.
func (s *Server) checkJoiner(ctx context.Context, view *state.View, req *blixardv1.EnrollRequest) error {
	if skew := wallclock.Now().Sub(req.GetTime().AsTime()); skew > skewMax || skew < -skewMax {
		return problem.New(problem.Conflict, "member.clock", "the clock of the node is %v off the leader's", skew.Round(time.Second)).
			WithHint("set the clocks of both hosts right, by NTP for instance, and join again")
	}
	if level := view.FeatureLevel(); req.GetFeatureLevel() < level {
		return problem.New(problem.Conflict, "member.too_old", "the node's blixard %s is too old for this cluster: it knows level %d, the cluster is at %d", req.GetVersion(), req.GetFeatureLevel(), level).
			WithHint("install the version that the cluster has, %s", s.cfg.Version)
	}
	if m := view.CheckNewMember(&blixardv1.Member{NodeId: req.GetNodeId(), Name: req.GetName(), Address: req.GetAddress()}); m != nil {
		return m
	}
	host, _, err := net.SplitHostPort(req.GetAddress())
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		return problem.New(problem.Invalid, "member.address", "%q is no address that other nodes could use", req.GetAddress()).WithHint("give HOST:PORT with --local-addr")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return s.cfg.Membership.Probe(ctx, req.GetNodeId(), req.GetAddress())
}

// RenewCertificate signs for the same name again, and takes what is new of a node.
func (s enrollService) RenewCertificate(ctx context.Context, req *blixardv1.RenewCertificateRequest) (*blixardv1.RenewCertificateResponse, error) {
	view, c := s.cfg.Replica.View(), callerOf(ctx)
	if c.agent {
		return nil, denied("auth.no_certificate", "only the holder of a certificate can renew it").WithHint("make one with `blixard cluster credentials`")
	}
	ca, err := s.authority(view.Cluster())
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(req.GetSigningRequest(), auth.Identity{ClusterID: view.Cluster().GetId(), Role: c.role, Name: c.name}, wallclock.Now())
	if err != nil {
		return nil, err
	}
	if c.role == auth.RoleNode && req.GetAddress() != "" {
		if _, err := s.propose(ctx, "", &blixardv1.Command{Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{
			Node: c.name, Address: req.GetAddress(), Version: req.GetVersion(), FeatureLevel: req.GetFeatureLevel(),
			Authority: req.GetAuthority(),
		}}}); err != nil {
			return nil, err
		}
	}
	return &blixardv1.RenewCertificateResponse{Certificate: cert, CaCertificates: view.Cluster().GetCaCertificates()}, nil
}

// IssueCertificate signs for a person or a program.
func (s enrollService) IssueCertificate(_ context.Context, req *blixardv1.IssueCertificateRequest) (*blixardv1.IssueCertificateResponse, error) {
	view := s.cfg.Replica.View()
	ca, err := s.authority(view.Cluster())
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(req.GetSigningRequest(), auth.Identity{ClusterID: view.Cluster().GetId(), Role: auth.Role(req.GetRole()), Name: req.GetName()}, wallclock.Now())
	if err != nil {
		return nil, err
	}
	return &blixardv1.IssueCertificateResponse{
		ClusterId: view.Cluster().GetId(), Certificate: cert, CaCertificates: view.Cluster().GetCaCertificates(), Members: s.liveMembers(),
	}, nil
}

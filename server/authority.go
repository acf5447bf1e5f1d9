package server

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/state"
)

// authoritiesOf tells who signs for a cluster, the present one first.
func authoritiesOf(view *state.View) ([]*blixardv1.Authority, error) {
	var out []*blixardv1.Authority
	for i, pem := range view.Cluster().GetCaCertificates() {
		begin, end, err := auth.Life(pem)
		if err != nil {
			return nil, err
		}
		a := &blixardv1.Authority{
			Id: state.AuthorityID(pem), NotBefore: timestamppb.New(begin), NotAfter: timestamppb.New(end), Signs: i == 0,
		}
		for _, m := range view.Members() {
			if !m.GetRemoved() && m.GetAuthority() == a.Id {
				a.Members = append(a.Members, m.GetName())
			}
		}
		out = append(out, a)
	}
	return out, nil
}

func (s clusterService) GetAuthorities(ctx context.Context, _ *blixardv1.GetAuthoritiesRequest) (*blixardv1.GetAuthoritiesResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	all, err := authoritiesOf(view)
	if err != nil {
		return nil, err
	}
	return &blixardv1.GetAuthoritiesResponse{Authorities: all}, nil
}

// RotateAuthority makes an authority whose key the present one signs too, so that
// whoever knows only the present one goes on.
func (s clusterService) RotateAuthority(ctx context.Context, _ *blixardv1.RotateAuthorityRequest) (*blixardv1.RotateAuthorityResponse, error) {
	cluster := s.cfg.Replica.View().Cluster()
	old, err := s.authority(cluster)
	if err != nil {
		return nil, err
	}
	now := wallclock.Now()
	next, err := auth.NewAuthority(cluster.GetId(), now)
	if err != nil {
		return nil, err
	}
	cross, err := old.Cross(next, now)
	if err != nil {
		return nil, err
	}
	sealed, err := next.Seal(s.cfg.Membership.Secret())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, "", &blixardv1.Command{Change: &blixardv1.Command_RotateAuthority{RotateAuthority: &blixardv1.RotateAuthorityCommand{
		CaCertificate: next.Certificate(), SealedCaKey: sealed, CrossCertificate: cross, ExpectedCaCertificate: cluster.GetCaCertificates()[0],
	}}}); err != nil {
		return nil, err
	}
	all, err := authoritiesOf(s.cfg.Replica.View())
	if err != nil {
		return nil, err
	}
	return &blixardv1.RotateAuthorityResponse{Authority: all[0]}, nil
}

func (s clusterService) DropAuthorities(ctx context.Context, req *blixardv1.DropAuthoritiesRequest) (*blixardv1.DropAuthoritiesResponse, error) {
	if _, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DropAuthorities{DropAuthorities: &blixardv1.DropAuthoritiesCommand{}}}); err != nil {
		return nil, err
	}
	all, err := authoritiesOf(s.cfg.Replica.View())
	if err != nil {
		return nil, err
	}
	return &blixardv1.DropAuthoritiesResponse{Authorities: all}, nil
}

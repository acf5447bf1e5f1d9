package server

import (
	"context"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// secretService is SecretService; see the .proto for its contract.
type secretService struct {
	blixardv1.UnimplementedSecretServiceServer
	*Server
}

// keys gives what seals: the cluster's secret and its id.
func (s *Server) keys(view *state.View) (secret []byte, clusterID string, err error) {
	if s.cfg.Membership == nil || view.Cluster() == nil {
		return nil, "", problem.New(problem.Unavailable, "cluster.forming", "the cluster is not formed yet").WithHint("try again in a moment")
	}
	if secret = s.cfg.Membership.Secret(); len(secret) == 0 {
		return nil, "", problem.New(problem.Unavailable, "cluster.no_secret", "this node holds no secret of the cluster: it is a worker").
			WithHint("ask a voter")
	}
	return secret, view.Cluster().GetId(), nil
}

// openSecret gives the value of a secret.
func (s *Server) openSecret(_ context.Context, name string) ([]byte, error) {
	view := s.cfg.Replica.View()
	o := view.Secret(name)
	if o == nil {
		return nil, problem.New(problem.NotFound, "secret.not_found", "there is no secret %q", name).WithHint("set it first: blixard secret set %s", name)
	}
	secret, id, err := s.keys(view)
	if err != nil {
		return nil, err
	}
	return auth.OpenValue(secret, id, name, o.GetSealed())
}

// shown is a secret without what is sealed.
func shown(o *blixardv1.Secret) *blixardv1.Secret {
	o = proto.CloneOf(o)
	o.Sealed = nil
	return o
}

func (s secretService) SetSecret(ctx context.Context, req *blixardv1.SetSecretRequest) (*blixardv1.SetSecretResponse, error) {
	secret, id, err := s.keys(s.cfg.Replica.View())
	if err != nil {
		return nil, err
	}
	sealed, err := auth.SealValue(secret, id, req.GetName(), req.GetValue())
	if err != nil {
		return nil, err
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_SetSecret{SetSecret: &blixardv1.SetSecretCommand{
		Name: req.GetName(), Sealed: sealed, SizeBytes: uint64(len(req.GetValue())), CreateOnly: req.GetCreateOnly(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.SetSecretResponse{Secret: shown(r.Secret)}, nil
}

func (s secretService) ListSecrets(ctx context.Context, req *blixardv1.ListSecretsRequest) (*blixardv1.ListSecretsResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.ListSecretsResponse{Index: view.Index()}
	for _, o := range view.Secrets() {
		resp.Secrets = append(resp.Secrets, shown(o))
	}
	return resp, nil
}

func (s secretService) DeleteSecret(ctx context.Context, req *blixardv1.DeleteSecretRequest) (*blixardv1.DeleteSecretResponse, error) {
	_, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DeleteSecret{
		DeleteSecret: &blixardv1.DeleteSecretCommand{Name: req.GetName()},
	}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.DeleteSecretResponse{}, nil
}

// RevealSecrets opens what an allocation names, and nothing else.
func (s agentService) RevealSecrets(ctx context.Context, req *blixardv1.RevealSecretsRequest) (*blixardv1.RevealSecretsResponse, error) {
	if err := s.speaksFor(ctx, req.GetNodeId()); err != nil {
		return nil, err
	}
	view := s.cfg.Replica.View()
	a := view.Allocation(req.GetAllocationId())
	if a == nil || a.GetNodeId() != req.GetNodeId() {
		return nil, problem.New(problem.NotFound, "allocation.not_found", "node %s has no allocation %q", req.GetNodeId(), req.GetAllocationId())
	}
	resp := &blixardv1.RevealSecretsResponse{Values: map[string][]byte{}}
	for _, at := range a.GetSpec().GetSecrets() {
		value, err := s.openSecret(ctx, at.GetSecret())
		if err != nil {
			return nil, err
		}
		resp.Values[at.GetSecret()] = value
	}
	return resp, nil
}

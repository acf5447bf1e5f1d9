package server

import (
	"context"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// quotaService is QuotaService; see the .proto for its contract.
type quotaService struct {
	blixardv1.UnimplementedQuotaServiceServer
	*Server
}

// nameOf gives the full name and the project of what a request declares. The project is as
// a command has it: members of older builds know no projects, and VMs of the default one go
// on to be made beside them.
func nameOf(project, name string) (full, of string, err error) {
	full, err = objectname.Resolve(project, name)
	if err != nil {
		return "", "", problem.From(err).WithField("name")
	}
	if of = objectname.Project(full); of == objectname.DefaultProject {
		of = ""
	}
	return full, of, nil
}

func (s quotaService) SetQuota(ctx context.Context, req *blixardv1.SetQuotaRequest) (*blixardv1.SetQuotaResponse, error) {
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_SetQuota{SetQuota: &blixardv1.SetQuotaCommand{
		Project: req.GetProject(), ExpectedIndex: req.GetExpectedIndex(), Limits: req.GetLimits(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.SetQuotaResponse{Quota: r.Quota, Usage: s.cfg.Replica.View().ProjectUsage(req.GetProject())}, nil
}

func (s quotaService) GetQuota(ctx context.Context, req *blixardv1.GetQuotaRequest) (*blixardv1.GetQuotaResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	q := view.Quota(req.GetProject())
	if q == nil {
		return nil, state.QuotaNotFound(req.GetProject())
	}
	return &blixardv1.GetQuotaResponse{Quota: q, Index: view.Index()}, nil
}

func (s quotaService) ListQuotas(ctx context.Context, req *blixardv1.ListQuotasRequest) (*blixardv1.ListQuotasResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	return &blixardv1.ListQuotasResponse{Quotas: view.Quotas(), Index: view.Index()}, nil
}

func (s quotaService) QuotaUsage(ctx context.Context, req *blixardv1.QuotaUsageRequest) (*blixardv1.QuotaUsageResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.QuotaUsageResponse{Index: view.Index()}
	if req.GetProject() != "" {
		resp.Usages = []*blixardv1.ProjectUsage{view.ProjectUsage(req.GetProject())}
		return resp, nil
	}
	resp.Usages, resp.NextPageToken = page(req, view.ProjectUsages, (*blixardv1.ProjectUsage).GetProject)
	return resp, nil
}

func (s quotaService) RemoveQuota(ctx context.Context, req *blixardv1.RemoveQuotaRequest) (*blixardv1.RemoveQuotaResponse, error) {
	_, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_RemoveQuota{RemoveQuota: &blixardv1.RemoveQuotaCommand{
		Project: req.GetProject(), ExpectedIndex: req.GetExpectedIndex(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RemoveQuotaResponse{}, nil
}

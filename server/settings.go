package server

import (
	"context"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// GetSettings gives what holds for the whole cluster.
func (s clusterService) GetSettings(ctx context.Context, _ *blixardv1.GetSettingsRequest) (*blixardv1.GetSettingsResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return &blixardv1.GetSettingsResponse{Settings: view.Settings()}, nil
}

// ChangeSettings changes what is set.
func (s clusterService) ChangeSettings(ctx context.Context, req *blixardv1.ChangeSettingsRequest) (*blixardv1.ChangeSettingsResponse, error) {
	_, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_SetSettings{SetSettings: &blixardv1.SetSettingsCommand{
		ExpectedIndex: req.GetExpectedIndex(), CpuPercent: req.CpuPercent, MemoryPercent: req.MemoryPercent, DiskPercent: req.DiskPercent,
		EventsKeep: req.GetEventsKeep(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.ChangeSettingsResponse{Settings: s.cfg.Replica.View().Settings()}, nil
}

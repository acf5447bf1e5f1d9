package server

import (
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/supervisor"
)

// Logs sends what the node recorded of the console.
func (s vmService) Logs(req *blixardv1.LogsRequest, stream blixardv1.VMService_LogsServer) error {
	ctx := stream.Context()
	a, local, err := s.here(ctx, req.GetName())
	if err != nil {
		return err
	}
	place, err := local.Locate(a.GetId())
	if problem.Is(err, problem.NotFound) && !req.GetFollow() {
		return nil // nothing was written yet
	}
	if err != nil {
		return err
	}
	opts := supervisor.LogOptions{Follow: req.GetFollow(), TailLines: req.TailLines}
	if req.GetSince() != nil {
		opts.Since = req.GetSince().AsTime()
	}
	err = supervisor.ReadLogs(ctx, place.LogPath, opts, func(p []byte) error {
		return stream.Send(&blixardv1.LogsResponse{Data: p})
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

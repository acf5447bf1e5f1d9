package server

import (
	"context"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
)

// nodeService is NodeService; see the .proto for its contract.
type nodeService struct {
	blixardv1.UnimplementedNodeServiceServer
	*Server
}

func (s nodeService) ListNodes(ctx context.Context, req *blixardv1.ListNodesRequest) (*blixardv1.ListNodesResponse, error) {
	view, age, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	return &blixardv1.ListNodesResponse{Nodes: view.Nodes(), Index: view.Index(), Age: age}, nil
}

func (s nodeService) UpdateNode(ctx context.Context, req *blixardv1.UpdateNodeRequest) (*blixardv1.UpdateNodeResponse, error) {
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{
		Node: req.GetNode(), SetLabels: req.GetSetLabels(), DropLabels: req.GetDropLabels(), Cordoned: req.Cordoned,
		SetTaints: req.GetSetTaints(), DropTaints: req.GetDropTaints(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.UpdateNodeResponse{Node: r.Node}, nil
}

// statusTimeout bounds what a status asks of others, since it is what a person
// looks at when something hangs.
const statusTimeout = 2 * time.Second

// GetStatus answers even without a leader: it is what one looks at in trouble.
func (s nodeService) GetStatus(ctx context.Context, _ *blixardv1.GetStatusRequest) (*blixardv1.GetStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	view := s.cfg.Replica.View()
	st := s.cfg.Replica.Status()
	resp := &blixardv1.GetStatusResponse{
		Node: view.Node(s.cfg.NodeID), Version: s.cfg.Version, DataDir: s.cfg.DataDir, Socket: s.cfg.Socket,
		StartedAt: timestamppb.New(s.started), Pid: uint32(os.Getpid()),
		Term: st.Term, CommitIndex: st.Commit, AppliedIndex: st.Applied, Leader: st.Leader,
		VmsByState: map[string]uint32{},
	}
	for _, a := range view.AllocationsOfNode(s.cfg.NodeID) {
		resp.VmsByState[a.GetStatus().GetState().String()]++
	}
	if st.StorageFull {
		resp.Notices = append(resp.Notices, "the disk of the data directory is full: changes are refused until there is space")
	}
	if kept, err := s.kept(); err == nil && kept.Notices != nil {
		resp.Notices = append(resp.Notices, kept.Notices(ctx)...)
	}
	if local, err := s.agent(); err == nil {
		resp.LoadPercent = local.Load()
	}
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		info, err := s.cfg.Consoles.Info(ctx, lane)
		if err != nil {
			continue // a lane without VMs has no supervisor
		}
		one := &blixardv1.SupervisorStatus{Lane: string(lane), Pid: info.GetPid(), Processes: info.GetProcesses(), StartedAt: info.GetStartedAt()}
		if local, err := s.agent(); err == nil && lane == driver.LaneExclusive {
			one.LeaseLeft = durationpb.New(local.LeaseLeft())
		}
		resp.Supervisors = append(resp.Supervisors, one)
	}
	return resp, nil
}

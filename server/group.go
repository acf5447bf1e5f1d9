package server

import (
	"context"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// groupService is GroupService; see the .proto for its contract.
type groupService struct {
	blixardv1.UnimplementedGroupServiceServer
	*Server
}

func noGroup(name string) *problem.Error {
	return problem.New(problem.NotFound, "group.not_found", "there is no group %q", name).
		WithHint("`blixard group list` shows the groups")
}

// completeGroup makes a spec the one that is stored, and refuses what contradicts itself; its
// problems name fields of the spec.
func (s groupService) completeGroup(ctx context.Context, given *blixardv1.GroupSpec) (*blixardv1.GroupSpec, error) {
	spec := proto.CloneOf(given)
	vm := spec.GetVm()
	if vm.GetRestart().GetMode() == blixardv1.RestartMode_unspecified {
		if vm.Restart == nil {
			vm.Restart = &blixardv1.RestartPolicy{}
		}
		vm.Restart.Mode = blixardv1.RestartMode_always
	}
	if len(spec.GetVolumes()) > 0 && vm.GetOnNodeLoss() == blixardv1.NodeLossPolicy_unspecified {
		vm.OnNodeLoss = blixardv1.NodeLossPolicy_keep // their volumes are on that node
	}
	if spec.Update == nil {
		spec.Update = &blixardv1.UpdateRules{}
	}
	u := spec.Update
	u.MaxSurge, u.MaxUnavailable = proto.Uint32(uint32(state.Surge(spec))), proto.Uint32(uint32(state.Unavailable(spec)))
	u.MinHealthy, u.ProgressDeadline = durationpb.New(state.MinHealthy(spec)), durationpb.New(state.ProgressDeadline(spec))
	switch {
	case u.GetAutoPromote() && u.GetCanary() == 0:
		return nil, problem.New(problem.Invalid, "group.promote_what", "a group without canaries has nothing to promote").
			WithHint("add --canary 1, or leave --auto-promote out").WithField("update.auto_promote")
	case u.GetCanary() > 0 && u.GetCanary() >= spec.GetReplicas():
		return nil, problem.New(problem.Invalid, "group.all_canaries", "%d canaries of %d replicas leave none that wait", u.GetCanary(), spec.GetReplicas()).
			WithHint("choose fewer canaries than replicas, or leave --canary out").WithField("update.canary")
	}
	if why := state.CheckGroup(spec); why != nil {
		return nil, why
	}
	if err := s.complete(ctx, vm); err != nil {
		return nil, problem.Under("vm", err)
	}
	return spec, nil
}

func (s groupService) CreateGroup(ctx context.Context, req *blixardv1.CreateGroupRequest) (*blixardv1.CreateGroupResponse, error) {
	spec, err := s.completeGroup(ctx, req.GetSpec())
	if err != nil {
		return nil, problem.Under("spec", err)
	}
	name, project, err := nameOf(req.GetProject(), req.GetName())
	if err != nil {
		return nil, err
	}
	if req.GetDryRun() {
		return &blixardv1.CreateGroupResponse{Group: &blixardv1.Group{Name: name, Spec: spec, Project: project}}, nil
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_CreateGroup{CreateGroup: &blixardv1.CreateGroupCommand{
		Id: newID("group-"), Name: name, Spec: spec, Project: project,
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.CreateGroupResponse{Group: r.Group}, nil
}

func (s groupService) GetGroup(ctx context.Context, req *blixardv1.GetGroupRequest) (*blixardv1.GetGroupResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	g := view.Group(req.GetName())
	if g == nil {
		return nil, noGroup(req.GetName())
	}
	return &blixardv1.GetGroupResponse{Group: g, Vms: view.Replicas(g.GetId()), Index: view.Index()}, nil
}

func (s groupService) ListGroups(ctx context.Context, req *blixardv1.ListGroupsRequest) (*blixardv1.ListGroupsResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.ListGroupsResponse{Index: view.Index()}
	resp.Groups, resp.NextPageToken = page(req, view.Groups, (*blixardv1.Group).GetName)
	return resp, nil
}

func (s groupService) WatchGroups(req *blixardv1.WatchGroupsRequest, stream blixardv1.GroupService_WatchGroupsServer) error {
	ctx := stream.Context()
	view, err := s.read(ctx)
	if err != nil {
		return err
	}
	index := req.GetAfterIndex()
	if g := view.Group(req.GetName()); req.GetName() != "" && g == nil && index == 0 {
		return noGroup(req.GetName())
	}
	id := view.Group(req.GetName()).GetId()
	fits := func(g *blixardv1.Group) bool {
		return req.GetName() == "" || g.GetId() == id || g.GetId() == req.GetName() || g.GetName() == req.GetName()
	}
	if index == 0 {
		index = view.Index()
		for _, g := range view.Groups("", 0) {
			if !fits(g) {
				continue
			}
			if err := stream.Send(&blixardv1.WatchGroupsResponse{Index: index, Group: g}); err != nil {
				return err
			}
		}
	}
	if err := stream.Send(&blixardv1.WatchGroupsResponse{Index: index, Synced: true}); err != nil {
		return err
	}
	return s.changes(ctx, index, func(list []state.Change, _ uint64) error {
		for _, c := range lastOfEntry(list, state.KindGroup) {
			if !fits(c.Group) {
				continue
			}
			if err := stream.Send(&blixardv1.WatchGroupsResponse{Index: c.Index, Group: c.Group, Deleted: c.Deleted}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s groupService) UpdateGroup(ctx context.Context, req *blixardv1.UpdateGroupRequest) (*blixardv1.UpdateGroupResponse, error) {
	spec, err := s.completeGroup(ctx, req.GetSpec())
	if err != nil {
		return nil, problem.Under("spec", err)
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_UpdateGroup{UpdateGroup: &blixardv1.UpdateGroupCommand{
		Name: req.GetName(), ExpectedGeneration: req.GetExpectedGeneration(), Spec: spec,
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.UpdateGroupResponse{Group: r.Group}, nil
}

// change is the common part of what changes a group without giving it a whole spec.
func (s groupService) change(ctx context.Context, key string, c *blixardv1.ChangeGroupCommand) (*blixardv1.Group, error) {
	r, err := s.propose(ctx, key, &blixardv1.Command{Change: &blixardv1.Command_ChangeGroup{ChangeGroup: c}})
	return r.Group, err
}

func (s groupService) ScaleGroup(ctx context.Context, req *blixardv1.ScaleGroupRequest) (*blixardv1.ScaleGroupResponse, error) {
	g, err := s.change(ctx, req.GetIdempotencyKey(), &blixardv1.ChangeGroupCommand{Change: blixardv1.GroupChange_scale, Name: req.GetName(), Replicas: req.GetReplicas()})
	if err != nil {
		return nil, err
	}
	return &blixardv1.ScaleGroupResponse{Group: g}, nil
}

func (s groupService) RolloutGroup(ctx context.Context, req *blixardv1.RolloutGroupRequest) (*blixardv1.RolloutGroupResponse, error) {
	g, err := s.change(ctx, req.GetIdempotencyKey(), &blixardv1.ChangeGroupCommand{Change: req.GetChange(), Name: req.GetName()})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RolloutGroupResponse{Group: g}, nil
}

func (s groupService) UndoGroup(ctx context.Context, req *blixardv1.UndoGroupRequest) (*blixardv1.UndoGroupResponse, error) {
	g, err := s.change(ctx, req.GetIdempotencyKey(), &blixardv1.ChangeGroupCommand{Change: blixardv1.GroupChange_undo, Name: req.GetName(), Version: req.GetVersion()})
	if err != nil {
		return nil, err
	}
	return &blixardv1.UndoGroupResponse{Group: g}, nil
}

func (s groupService) DeleteGroup(ctx context.Context, req *blixardv1.DeleteGroupRequest) (*blixardv1.DeleteGroupResponse, error) {
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DeleteGroup{DeleteGroup: &blixardv1.DeleteGroupCommand{Name: req.GetName()}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.DeleteGroupResponse{Group: r.Group}, nil
}

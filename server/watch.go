package server

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// endOfStream makes nil of a client that has said all.
func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// changes calls each with every batch of changes after index until it fails.
func (s *Server) changes(ctx context.Context, index uint64, each func([]state.Change, uint64) error) error {
	sub := s.cfg.Replica.Subscribe(index)
	defer sub.Close()
	for {
		list, at, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		if err := each(list, at); err != nil {
			return err
		}
	}
}

// lastOfEntry gives the changes of VMs, of tasks or of groups, of several changes of one in one
// entry of the log only the last: an entry is done wholly or not at all, and a client
// that resumes knows by the index and the object what it has had.
func lastOfEntry(list []state.Change, kind state.Kind) []state.Change {
	type change struct {
		index uint64
		id    string
	}
	of := func(c state.Change) change {
		switch kind {
		case state.KindTask:
			return change{c.Index, c.Task.GetId()}
		case state.KindGroup:
			return change{c.Index, c.Group.GetId()}
		}
		return change{c.Index, c.VM.GetId()}
	}
	last := make(map[change]int, len(list))
	for i, c := range list {
		if c.Kind == kind {
			last[of(c)] = i
		}
	}
	kept := make([]state.Change, 0, len(last))
	for i, c := range list {
		if c.Kind == kind && last[of(c)] == i {
			kept = append(kept, c)
		}
	}
	return kept
}

func (s vmService) WatchVMs(req *blixardv1.WatchVMsRequest, stream blixardv1.VMService_WatchVMsServer) error {
	ctx := stream.Context()
	view, err := s.read(ctx)
	if err != nil {
		return err
	}
	index := req.GetAfterIndex()
	id := ""
	if req.GetName() != "" {
		vm := view.VM(req.GetName())
		if vm == nil && index == 0 {
			return notFound(req.GetName())
		}
		id = vm.GetId()
	}
	if index == 0 {
		index = view.Index()
		for _, vm := range view.VMs("", 0) {
			if id != "" && vm.GetId() != id {
				continue
			}
			if err := stream.Send(&blixardv1.WatchVMsResponse{Index: index, Vm: vm}); err != nil {
				return err
			}
		}
	}
	if err := stream.Send(&blixardv1.WatchVMsResponse{Index: index, Synced: true}); err != nil {
		return err
	}
	return s.changes(ctx, index, func(list []state.Change, _ uint64) error {
		for _, c := range lastOfEntry(list, state.KindVM) {
			if req.GetName() != "" && c.VM.GetId() != id && c.VM.GetName() != req.GetName() && c.VM.GetId() != req.GetName() {
				continue
			}
			if err := stream.Send(&blixardv1.WatchVMsResponse{Index: c.Index, Vm: c.VM, Deleted: c.Deleted}); err != nil {
				return err
			}
		}
		return nil
	})
}

// eventService is EventService; see the .proto for its contract.
type eventService struct {
	blixardv1.UnimplementedEventServiceServer
	*Server
}

func (s eventService) ListEvents(ctx context.Context, req *blixardv1.ListEventsRequest) (*blixardv1.ListEventsResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit == 0 {
		limit = defaultPageSize
	}
	return &blixardv1.ListEventsResponse{Events: view.Events(filterOf(req), limit), Index: view.Index()}, nil
}

// filterOf gives the filter of a request, with the object that may stand beside it.
func filterOf(req interface {
	GetObject() string
	GetFilter() *blixardv1.EventFilter
},
) *blixardv1.EventFilter {
	filter := &blixardv1.EventFilter{}
	proto.Merge(filter, req.GetFilter())
	if req.GetObject() != "" {
		filter.Object = req.GetObject()
	}
	filter.Object = objectname.Canonical(filter.Object)
	return filter
}

func (s eventService) WatchEvents(req *blixardv1.WatchEventsRequest, stream blixardv1.EventService_WatchEventsServer) error {
	ctx := stream.Context()
	view, err := s.read(ctx)
	if err != nil {
		return err
	}
	index, filter := req.GetAfterIndex(), filterOf(req)
	if index == 0 {
		index = view.Index()
		for _, e := range view.Events(filter, 0) {
			if err := stream.Send(&blixardv1.WatchEventsResponse{Event: e}); err != nil {
				return err
			}
		}
	}
	if err := stream.Send(&blixardv1.WatchEventsResponse{Synced: true}); err != nil {
		return err
	}
	return s.changes(ctx, index, func(list []state.Change, _ uint64) error {
		for _, c := range list {
			if c.Kind != state.KindEvent || !state.EventFits(c.Event, filter) {
				continue
			}
			if err := stream.Send(&blixardv1.WatchEventsResponse{Event: c.Event}); err != nil {
				return err
			}
		}
		return nil
	})
}

// agentService is AgentService; see the .proto for its contract.
type agentService struct {
	blixardv1.UnimplementedAgentServiceServer
	*Server
}

// asAgent names the agent of a node in events, whoever its user is.
func asAgent(ctx context.Context, node string) context.Context {
	return context.WithValue(ctx, actorKey{}, "agent:"+node)
}

func (s agentService) Register(ctx context.Context, req *blixardv1.RegisterRequest) (*blixardv1.RegisterResponse, error) {
	if err := s.speaksFor(ctx, req.GetNodeId()); err != nil {
		return nil, err
	}
	r, err := s.propose(asAgent(ctx, req.GetName()), "", &blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: req.GetNodeId(), Name: req.GetName(), Fingerprint: req.GetFingerprint(), Incarnation: req.GetIncarnation(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RegisterResponse{Node: r.Node}, nil
}

func (s agentService) WatchAllocations(req *blixardv1.WatchAllocationsRequest, stream blixardv1.AgentService_WatchAllocationsServer) error {
	ctx := stream.Context()
	if err := s.speaksFor(ctx, req.GetNodeId()); err != nil {
		return err
	}
	watch := s.dispatcher.watch(req.GetNodeId()) // before the list, so that nothing is between them
	defer s.dispatcher.leave(watch)
	view, err := s.read(ctx)
	if err != nil {
		return err
	}
	// Only the index is kept: a view keeps what was replaced since, and an agent watches for
	// months.
	index := view.Index()
	for _, a := range view.AllocationsOfNode(req.GetNodeId()) {
		if err := stream.Send(&blixardv1.WatchAllocationsResponse{Index: index, Allocation: a}); err != nil {
			return err
		}
	}
	if err := stream.Send(&blixardv1.WatchAllocationsResponse{Index: index, Synced: true}); err != nil {
		return err
	}
	for {
		list, err := s.dispatcher.next(ctx, watch)
		if err != nil {
			return err
		}
		for _, c := range list {
			if c.Index <= index {
				continue
			}
			if err := stream.Send(&blixardv1.WatchAllocationsResponse{Index: c.Index, Allocation: c.Allocation, Removed: c.Deleted}); err != nil {
				return err
			}
		}
	}
}

func (s agentService) Report(ctx context.Context, req *blixardv1.ReportRequest) (*blixardv1.ReportResponse, error) {
	if err := s.speaksFor(ctx, req.GetNodeId()); err != nil {
		return nil, err
	}
	name := req.GetNodeId()
	if n := s.cfg.Replica.View().Node(name); n != nil {
		name = n.GetName()
	}
	cmd := &blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{
		NodeId: req.GetNodeId(), Reports: req.GetReports(), Incarnation: req.GetIncarnation(),
	}}}
	if state.Level(cmd) > s.cfg.Replica.View().FeatureLevel() {
		cmd.GetReport().Incarnation = 0 // an older member would not compare it
	}
	r, err := s.propose(asAgent(ctx, name), req.GetIdempotencyKey(), cmd)
	if err != nil {
		return nil, err
	}
	for _, f := range r.Refused {
		s.log.Warn("a report was refused", "alloc", f.AllocationID, "code", f.Problem.Code, "err", f.Problem)
	}
	return &blixardv1.ReportResponse{Index: r.Index}, nil
}

func (s agentService) RenewLease(ctx context.Context, req *blixardv1.RenewLeaseRequest) (*blixardv1.RenewLeaseResponse, error) {
	if err := s.speaksFor(ctx, req.GetNodeId()); err != nil {
		return nil, err
	}
	var asked time.Duration
	if req.GetTtl() != nil {
		asked = req.GetTtl().AsDuration()
	}
	ttl, err := s.cfg.Leases.Grant(ctx, req.GetNodeId(), req.GetIncarnation(), asked, req.GetAllocationId())
	if err != nil {
		return nil, err
	}
	if ttl <= 0 {
		return nil, problem.New(problem.Fenced, "lease.refused", "node %s gets no lease", req.GetNodeId())
	}
	s.cfg.Leases.Loaded(req.GetNodeId(), req.LoadPercent)
	return &blixardv1.RenewLeaseResponse{Ttl: durationpb.New(ttl)}, nil
}

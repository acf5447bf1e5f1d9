package server

import (
	"cmp"
	"context"
	"errors"
	"io"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/supervisor"
)

// artifactChunkBytes is one message of files.
const artifactChunkBytes = 64 << 10

// taskService is TaskService; see the .proto for its contract.
type taskService struct {
	blixardv1.UnimplementedTaskServiceServer
	*Server
}

func noTask(name string) *problem.Error {
	return problem.New(problem.NotFound, "task.not_found", "there is no task %q", name).
		WithHint("`blixard task list` shows the tasks; a finished one is forgotten after the time of --keep")
}

func (s taskService) SubmitTask(ctx context.Context, req *blixardv1.SubmitTaskRequest) (*blixardv1.SubmitTaskResponse, error) {
	spec := proto.CloneOf(req.GetSpec())
	if err := s.completeTask(ctx, spec); err != nil {
		return nil, problem.Under("spec", err)
	}
	name, project, err := nameOf(req.GetProject(), cmp.Or(req.GetName(), randomName(spec.GetVm().GetImage())))
	if err != nil {
		return nil, err
	}
	if req.GetDryRun() {
		task := &blixardv1.Task{Name: name, Spec: spec, Labels: req.GetLabels(), Project: project}
		return &blixardv1.SubmitTaskResponse{Task: task, Count: max(1, req.GetCount())}, nil
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_SubmitTask{SubmitTask: &blixardv1.SubmitTaskCommand{
		Id: newID("task-"), Name: name, Spec: spec, Labels: req.GetLabels(), Count: req.GetCount(), Project: project,
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.SubmitTaskResponse{Task: r.Tasks[0], Count: max(1, req.GetCount())}, nil
}

// completeTask checks and completes what is run; its problems name fields of the spec.
func (s *Server) completeTask(ctx context.Context, spec *blixardv1.TaskSpec) error {
	if err := checkTask(spec); err != nil {
		return err
	}
	if spec.GetDelivery() == blixardv1.Delivery_unspecified {
		spec.Delivery = blixardv1.Delivery_at_least_once
	}
	if spec.GetKeep() == nil {
		spec.Keep = durationpb.New(state.TaskKeep(spec))
	}
	spec.Vm.Restart = nil
	return problem.Under("vm", s.complete(ctx, spec.GetVm()))
}

// checkTask refuses what contradicts itself.
func checkTask(spec *blixardv1.TaskSpec) error {
	vm := spec.GetVm()
	switch {
	case spec.GetDelivery() == blixardv1.Delivery_at_most_once && spec.GetRetries() > 0:
		return problem.New(problem.Invalid, "task.once_and_again", "a task that runs at most once can't have %d retries", spec.GetRetries()).
			WithHint("leave --retries out, or let it run at least once").WithField("retries")
	case spec.GetDelivery() == blixardv1.Delivery_at_most_once && vm.GetOnNodeLoss() != blixardv1.NodeLossPolicy_unspecified && vm.GetOnNodeLoss() != blixardv1.NodeLossPolicy_keep:
		return problem.New(problem.Invalid, "task.once_and_again", "a task that runs at most once is kept on its node, and can't be to %s when that is lost", vm.GetOnNodeLoss()).
			WithHint("leave --on-node-loss out, or let it run at least once").WithField("vm.on_node_loss")
	case len(vm.GetPorts()) > 0:
		return problem.New(problem.Invalid, "task.ports", "a task publishes no ports").
			WithHint("leave -p out; a VM of its own can publish ports: see `blixard run --help`").WithField("vm.ports")
	}
	for _, one := range []struct {
		field string
		set   bool
	}{{"remove_on_exit", vm.GetRemoveOnExit()}, {"hold_output", vm.GetHoldOutput()}, {"paused", vm.GetPaused()}} {
		if one.set {
			return problem.New(problem.Invalid, "task.of_a_vm", "remove_on_exit, hold_output and paused are of VMs, not of tasks").
				WithField("vm.%s", one.field)
		}
	}
	return nil
}

func (s taskService) GetTask(ctx context.Context, req *blixardv1.GetTaskRequest) (*blixardv1.GetTaskResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	task := view.Task(req.GetName())
	if task == nil {
		return nil, noTask(req.GetName())
	}
	return &blixardv1.GetTaskResponse{Task: task, Index: view.Index()}, nil
}

func (s taskService) ListTasks(ctx context.Context, req *blixardv1.ListTasksRequest) (*blixardv1.ListTasksResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPageSize
	}
	array := ""
	if req.GetArray() != "" {
		if array = view.Array(req.GetArray()); array == "" {
			return nil, noTask(req.GetArray())
		}
	}
	resp := &blixardv1.ListTasksResponse{Index: view.Index()}
	for after := req.GetPageToken(); ; {
		page := view.Tasks(after, size+1)
		for _, t := range page {
			if array != "" && t.GetArray() != array {
				continue
			}
			if len(resp.Tasks) == size {
				resp.NextPageToken = resp.Tasks[size-1].GetName()
				return resp, nil
			}
			resp.Tasks = append(resp.Tasks, t)
		}
		if len(page) <= size {
			return resp, nil
		}
		after = page[size].GetName()
	}
}

func (s taskService) WatchTasks(req *blixardv1.WatchTasksRequest, stream blixardv1.TaskService_WatchTasksServer) error {
	ctx := stream.Context()
	view, err := s.read(ctx)
	if err != nil {
		return err
	}
	index := req.GetAfterIndex()
	id, array := "", ""
	if req.GetName() != "" {
		id, array = view.Task(req.GetName()).GetId(), view.Array(req.GetName())
		if id == "" && array == "" && index == 0 {
			return noTask(req.GetName())
		}
	}
	// A name that is gone may have been the task's before the watch broke.
	fits := func(t *blixardv1.Task) bool {
		name := req.GetName()
		return name == "" || t.GetId() == id || array != "" && t.GetArray() == array ||
			t.GetName() == name || t.GetId() == name || t.GetArray() == name || t.GetArrayName() == name
	}
	if index == 0 {
		index = view.Index()
		there := view.TasksNamed(req.GetName())
		if req.GetName() == "" {
			there = view.Tasks("", 0)
		}
		for _, t := range there {
			if err := stream.Send(&blixardv1.WatchTasksResponse{Index: index, Task: t}); err != nil {
				return err
			}
		}
	}
	if err := stream.Send(&blixardv1.WatchTasksResponse{Index: index, Synced: true}); err != nil {
		return err
	}
	return s.changes(ctx, index, func(list []state.Change, _ uint64) error {
		for _, c := range lastOfEntry(list, state.KindTask) {
			if !fits(c.Task) {
				continue
			}
			if err := stream.Send(&blixardv1.WatchTasksResponse{Index: c.Index, Task: c.Task, Deleted: c.Deleted}); err != nil {
				return err
			}
		}
		return nil
	})
}

// change is the common part of cancel, retry and remove.
func (s taskService) change(ctx context.Context, key, name string, change blixardv1.ChangeTasksCommand_Change) ([]*blixardv1.Task, error) {
	r, err := s.propose(ctx, key, &blixardv1.Command{Change: &blixardv1.Command_ChangeTasks{ChangeTasks: &blixardv1.ChangeTasksCommand{Change: change, Name: name}}})
	return r.Tasks, err
}

func (s taskService) CancelTask(ctx context.Context, req *blixardv1.CancelTaskRequest) (*blixardv1.CancelTaskResponse, error) {
	tasks, err := s.change(ctx, req.GetIdempotencyKey(), req.GetName(), blixardv1.ChangeTasksCommand_cancel)
	if err != nil {
		return nil, err
	}
	return &blixardv1.CancelTaskResponse{Tasks: tasks}, nil
}

func (s taskService) RetryTask(ctx context.Context, req *blixardv1.RetryTaskRequest) (*blixardv1.RetryTaskResponse, error) {
	tasks, err := s.change(ctx, req.GetIdempotencyKey(), req.GetName(), blixardv1.ChangeTasksCommand_retry)
	if err != nil {
		return nil, err
	}
	return &blixardv1.RetryTaskResponse{Tasks: tasks}, nil
}

func (s taskService) RemoveTask(ctx context.Context, req *blixardv1.RemoveTaskRequest) (*blixardv1.RemoveTaskResponse, error) {
	tasks, err := s.change(ctx, req.GetIdempotencyKey(), req.GetName(), blixardv1.ChangeTasksCommand_remove)
	if err != nil {
		return nil, err
	}
	return &blixardv1.RemoveTaskResponse{Tasks: tasks}, nil
}

// nodeOfTask gives the node that has the output of a request's task; this one, when
// there is none yet.
func (s *Server) nodeOfTask(ctx context.Context, req proto.Message) (string, error) {
	r, ok := req.(interface{ GetName() string })
	if !ok {
		return s.cfg.NodeID, nil
	}
	view, err := s.read(ctx)
	if err != nil {
		return "", err
	}
	task := view.Task(r.GetName())
	if task == nil {
		p := noTask(r.GetName())
		if view.Array(r.GetName()) != "" {
			p = p.WithHint("%s is an array: name one of its tasks, such as %s-0", r.GetName(), r.GetName())
		}
		return "", p
	}
	if id := task.GetStatus().GetNodeId(); id != "" {
		return id, nil
	}
	return s.cfg.NodeID, nil
}

// TaskArtifacts sends what the node has of the newest attempt's files.
func (s taskService) TaskArtifacts(req *blixardv1.TaskArtifactsRequest, stream blixardv1.TaskService_TaskArtifactsServer) error {
	view, err := s.read(stream.Context())
	if err != nil {
		return err
	}
	task := view.Task(req.GetName())
	st := task.GetStatus()
	switch {
	case task == nil:
		return noTask(req.GetName())
	case len(task.GetSpec().GetArtifacts()) == 0:
		return problem.New(problem.NotFound, "artifacts.none", "task %q has no artifacts", task.GetName()).
			WithHint("name them when it is submitted: blixard task submit --artifact PATH")
	case !state.Finished(st.GetState()) || st.GetAllocationId() == "":
		return problem.New(problem.NotFound, "artifacts.none", "task %q is %s and has no artifacts yet", task.GetName(), st.GetState()).
			WithHint("wait for its end: blixard task wait %s", task.GetName())
	case st.GetNodeId() != s.cfg.NodeID:
		return elsewhere(s.nodeName(st.GetNodeId()))
	}
	local, err := s.agent()
	if err != nil {
		return err
	}
	archive, notes, err := local.Artifacts(st.GetAllocationId())
	if err != nil {
		return err
	}
	if archive != nil {
		defer func() { _ = archive.Close() }()
	}
	if err := stream.Send(&blixardv1.TaskArtifactsResponse{Notes: notes}); err != nil || archive == nil {
		return err
	}
	buf := make([]byte, artifactChunkBytes)
	for {
		n, err := archive.Read(buf)
		if n > 0 {
			if err := stream.Send(&blixardv1.TaskArtifactsResponse{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// TaskLogs sends what the node has of the newest attempt's output.
func (s taskService) TaskLogs(req *blixardv1.TaskLogsRequest, stream blixardv1.TaskService_TaskLogsServer) error {
	ctx := stream.Context()
	view, err := s.read(ctx)
	if err != nil {
		return err
	}
	task := view.Task(req.GetName())
	if task == nil {
		return noTask(req.GetName())
	}
	st := task.GetStatus()
	if st.GetAllocationId() == "" {
		return nil // nothing ran yet
	}
	if st.GetNodeId() != s.cfg.NodeID {
		return elsewhere(s.nodeName(st.GetNodeId()))
	}
	local, err := s.agent()
	if err != nil {
		return err
	}
	// The log may be taken to where it is kept between the look and the reading.
	for range 2 {
		var path string
		var kept bool
		if path, kept, err = local.Output(st.GetAllocationId()); err == nil {
			opts := supervisor.LogOptions{Follow: req.GetFollow() && !kept, TailLines: req.TailLines}
			err = supervisor.ReadLogs(ctx, path, opts, func(p []byte) error { return stream.Send(&blixardv1.TaskLogsResponse{Data: p}) })
		}
		if !problem.Is(err, problem.NotFound) {
			return err
		}
	}
	return nil
}

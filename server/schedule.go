package server

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/cron"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/leader"
	"github.com/blixard/blixard/state"
)

// timesShown of a schedule.
const timesShown = 5

// scheduleService is ScheduleService; see the .proto for its contract.
type scheduleService struct {
	blixardv1.UnimplementedScheduleServiceServer
	*Server
}

// shownSchedule is a schedule with at most runs of its newest runs; 0 or less means all.
func shownSchedule(view *state.View, s *blixardv1.Schedule, runs int) *blixardv1.ShownSchedule {
	out := &blixardv1.ShownSchedule{Schedule: s}
	for _, t := range leader.NextTimes(s, wallclock.Now(), timesShown) {
		out.Next = append(out.Next, timestamppb.New(t))
	}
	out.Tasks = view.RunsOf(s.GetId())
	slices.Reverse(out.Tasks)
	if runs > 0 {
		out.Tasks = out.Tasks[:min(runs, len(out.Tasks))]
	}
	return out
}

// completeSchedule gives the final, defaulted spec; its problems name fields of it.
func (s scheduleService) completeSchedule(ctx context.Context, req *blixardv1.ScheduleSpec) (*blixardv1.ScheduleSpec, error) {
	spec := proto.CloneOf(req)
	if _, why := cron.Parse(spec.GetCron()); why != nil {
		return nil, problem.From(why).WithField("cron")
	}
	if _, why := cron.Zone(spec.GetTimeZone()); why != nil {
		return nil, problem.From(why).WithField("time_zone")
	}
	if len(spec.GetTask().GetAfter()) > 0 {
		return nil, problem.New(problem.Invalid, "schedule.after", "a schedule's runs come after no other tasks").WithHint("leave --after out").WithField("task.after")
	}
	if spec.GetTimeZone() == "" {
		spec.TimeZone = "UTC"
	}
	if spec.GetOverlap() == blixardv1.Overlap_unspecified {
		spec.Overlap = blixardv1.Overlap_skip
	}
	if spec.GetCatchUp() == blixardv1.CatchUp_unspecified {
		spec.CatchUp = blixardv1.CatchUp_none
	}
	spec.KeepRuns = uint32(state.KeepRuns(spec))
	return spec, problem.Under("task", s.completeTask(ctx, spec.GetTask()))
}

func (s scheduleService) CreateSchedule(ctx context.Context, req *blixardv1.CreateScheduleRequest) (*blixardv1.CreateScheduleResponse, error) {
	spec, err := s.completeSchedule(ctx, req.GetSpec())
	if err != nil {
		return nil, problem.Under("spec", err)
	}
	name, project, err := nameOf(req.GetProject(), req.GetName())
	if err != nil {
		return nil, err
	}
	if req.GetDryRun() {
		would := &blixardv1.Schedule{Name: name, Spec: spec, Labels: req.GetLabels(), Project: project}
		return &blixardv1.CreateScheduleResponse{Shown: shownSchedule(s.cfg.Replica.View(), would, 0)}, nil
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_CreateSchedule{CreateSchedule: &blixardv1.CreateScheduleCommand{
		Id: newID("schedule-"), Name: name, Spec: spec, Labels: req.GetLabels(), Project: project,
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.CreateScheduleResponse{Shown: shownSchedule(s.cfg.Replica.View(), r.Schedule, 0)}, nil
}

func (s scheduleService) UpdateSchedule(ctx context.Context, req *blixardv1.UpdateScheduleRequest) (*blixardv1.UpdateScheduleResponse, error) {
	spec, err := s.completeSchedule(ctx, req.GetSpec())
	if err != nil {
		return nil, problem.Under("spec", err)
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_UpdateSchedule{UpdateSchedule: &blixardv1.UpdateScheduleCommand{
		Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Spec: spec, Labels: req.GetLabels(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.UpdateScheduleResponse{Shown: shownSchedule(s.cfg.Replica.View(), r.Schedule, 0)}, nil
}

func (s scheduleService) GetSchedule(ctx context.Context, req *blixardv1.GetScheduleRequest) (*blixardv1.GetScheduleResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	schedule := view.Schedule(req.GetName())
	if schedule == nil {
		return nil, state.ScheduleNotFound(req.GetName())
	}
	return &blixardv1.GetScheduleResponse{Shown: shownSchedule(view, schedule, 0), Index: view.Index()}, nil
}

func (s scheduleService) ListSchedules(ctx context.Context, req *blixardv1.ListSchedulesRequest) (*blixardv1.ListSchedulesResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	schedules, next := page(req, view.Schedules, (*blixardv1.Schedule).GetName)
	resp := &blixardv1.ListSchedulesResponse{Index: view.Index(), NextPageToken: next}
	for _, schedule := range schedules {
		resp.Schedules = append(resp.Schedules, shownSchedule(view, schedule, 1))
	}
	return resp, nil
}

// change is the common part of pause, resume, run and remove.
func (s scheduleService) change(ctx context.Context, key, name string, change blixardv1.ChangeScheduleCommand_Change) (*blixardv1.ShownSchedule, *blixardv1.Task, error) {
	r, err := s.propose(ctx, key, &blixardv1.Command{Change: &blixardv1.Command_ChangeSchedule{ChangeSchedule: &blixardv1.ChangeScheduleCommand{Change: change, Name: name}}})
	if err != nil {
		return nil, nil, err
	}
	var task *blixardv1.Task
	if len(r.Tasks) > 0 {
		task = r.Tasks[0]
	}
	return shownSchedule(s.cfg.Replica.View(), r.Schedule, 0), task, nil
}

func (s scheduleService) PauseSchedule(ctx context.Context, req *blixardv1.PauseScheduleRequest) (*blixardv1.PauseScheduleResponse, error) {
	out, _, err := s.change(ctx, req.GetIdempotencyKey(), req.GetName(), blixardv1.ChangeScheduleCommand_pause)
	if err != nil {
		return nil, err
	}
	return &blixardv1.PauseScheduleResponse{Shown: out}, nil
}

func (s scheduleService) ResumeSchedule(ctx context.Context, req *blixardv1.ResumeScheduleRequest) (*blixardv1.ResumeScheduleResponse, error) {
	out, _, err := s.change(ctx, req.GetIdempotencyKey(), req.GetName(), blixardv1.ChangeScheduleCommand_resume)
	if err != nil {
		return nil, err
	}
	return &blixardv1.ResumeScheduleResponse{Shown: out}, nil
}

func (s scheduleService) RunSchedule(ctx context.Context, req *blixardv1.RunScheduleRequest) (*blixardv1.RunScheduleResponse, error) {
	out, task, err := s.change(ctx, req.GetIdempotencyKey(), req.GetName(), blixardv1.ChangeScheduleCommand_run)
	if err != nil {
		return nil, err
	}
	return &blixardv1.RunScheduleResponse{Shown: out, Task: task}, nil
}

func (s scheduleService) RemoveSchedule(ctx context.Context, req *blixardv1.RemoveScheduleRequest) (*blixardv1.RemoveScheduleResponse, error) {
	if _, _, err := s.change(ctx, req.GetIdempotencyKey(), req.GetName(), blixardv1.ChangeScheduleCommand_remove); err != nil {
		return nil, err
	}
	return &blixardv1.RemoveScheduleResponse{}, nil
}

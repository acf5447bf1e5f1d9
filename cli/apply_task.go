package cli

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

// planTask compares a task with the one of its name, finished or not. Nothing of a task
// changes once it was submitted.
func (s *step) planTask(ctx context.Context, c *client.Client) error {
	asked := proto.CloneOf(s.Task)
	asked.DryRun = true
	completed, err := c.Tasks().SubmitTask(ctx, asked)
	if err != nil {
		return err
	}
	want := &blixardv1.Task{Spec: completed.GetTask().GetSpec(), Labels: s.Task.GetLabels()}
	resp, err := c.Tasks().GetTask(ctx, &blixardv1.GetTaskRequest{Name: s.Name})
	if problem.Is(err, problem.NotFound) {
		s.changes, err = changesOf(&blixardv1.Task{}, want)
		return err
	}
	if err != nil {
		return err
	}
	s.action, s.task = actionUpdate, resp.GetTask()
	if err := s.sameProject(s.Task, s.task); err != nil {
		return err
	}
	has := &blixardv1.Task{Spec: proto.CloneOf(s.task.GetSpec()), Labels: s.task.GetLabels()}
	if has.Spec.After, want.Spec.After, err = comparableAfter(ctx, c, has.GetSpec().GetAfter(), want.GetSpec().GetAfter()); err != nil {
		return err
	}
	if s.changes, err = changesOf(has, want); err != nil || len(s.changes) == 0 {
		return err
	}
	way := "blixard task remove " + s.Name
	if !taskFinished(s.task) {
		way = "blixard task cancel " + s.Name + ", then " + way
	}
	return problem.New(problem.Conflict, "manifest.fixed", "a task can't change: task %q was submitted with another %s", s.Name, s.changes[0].path).
		WithHint("give it another name, or remove the one that is there: %s", way).WithField("%s", s.changes[0].path)
}

// comparableAfter gives what a task comes after and shall come after in one form: the
// cluster keeps ids, files have names. A task that was forgotten since has no name any more,
// so that both count as equal.
func comparableAfter(ctx context.Context, c *client.Client, has, want []string) (hasIDs, wantIDs []string, err error) {
	if hasIDs, err = afterIDs(ctx, c, has); err != nil || slices.Contains(hasIDs, "") {
		return nil, nil, err
	}
	if wantIDs, err = afterIDs(ctx, c, want); err != nil {
		return nil, nil, err
	}
	return hasIDs, wantIDs, nil
}

// afterIDs gives the ids of tasks and arrays, sorted and each once; "" stands for those that
// are not known.
func afterIDs(ctx context.Context, c *client.Client, refs []string) ([]string, error) {
	var ids []string
	for _, ref := range refs {
		one, err := c.Tasks().GetTask(ctx, &blixardv1.GetTaskRequest{Name: ref})
		id := one.GetTask().GetId()
		if problem.Is(err, problem.NotFound) {
			var array *blixardv1.ListTasksResponse
			array, err = c.Tasks().ListTasks(ctx, &blixardv1.ListTasksRequest{Array: ref, PageSize: 1})
			if len(array.GetTasks()) > 0 {
				id = array.GetTasks()[0].GetArray()
			}
		}
		if err != nil && !problem.Is(err, problem.NotFound) {
			return nil, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// awaitTask waits for the end of a task, which is an error unless it succeeds.
func (a *app) awaitTask(ctx context.Context, c *client.Client, s *step) error {
	err := a.waitTasks(ctx, c, s.task.GetId(), false)
	if end := (*exitError)(nil); errors.As(err, &end) {
		err = end.err // the codes of commands are not this command's
	}
	if err != nil {
		return about(s.Object, err)
	}
	return nil
}

// deleteTask cancels a task if it is not finished, and forgets it. It gives the VM of an
// attempt that has to end yet.
func deleteTask(ctx context.Context, c *client.Client, name string) (*blixardv1.VM, error) {
	resp, err := c.Tasks().GetTask(ctx, &blixardv1.GetTaskRequest{Name: name})
	if err != nil {
		return nil, err
	}
	task := resp.GetTask()
	var vm *blixardv1.VM
	if id := task.GetStatus().GetVmId(); id != "" {
		attempt, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: id})
		if err != nil && !problem.Is(err, problem.NotFound) {
			return nil, err
		}
		vm = attempt.GetVm()
	}
	if !taskFinished(task) {
		if _, err := changeTasks(ctx, c, "cancel", task.GetId()); err != nil && !problem.HasCode(err, "task.finished") {
			return nil, err
		}
	}
	_, err = changeTasks(ctx, c, "remove", task.GetId())
	return vm, err
}

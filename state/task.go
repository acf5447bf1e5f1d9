package state

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of tasks.
const (
	// tasksMax: some kilobyte each, so a gigabyte.
	tasksMax = 1_000_000
	// taskCountMax of one submission: they become durable in one entry.
	taskCountMax = 10_000
	// tasksAnswered of the tasks that one command changed.
	tasksAnswered = 1000
	// taskKeepDefault for tasks that name no time, as for the output on the node.
	taskKeepDefault = 24 * time.Hour
)

const (
	taskWaiting   = blixardv1.TaskState_waiting
	taskPending   = blixardv1.TaskState_pending
	taskRunning   = blixardv1.TaskState_running
	taskSucceeded = blixardv1.TaskState_succeeded
	taskFailed    = blixardv1.TaskState_failed
	taskCanceled  = blixardv1.TaskState_canceled
)

// taskIDPattern is what ids look like; a name of that form could be taken for one.
var taskIDPattern = regexp.MustCompile(`^task-[a-z0-9]{16}(-[0-9]+)?$`)

// Finished reports whether a task came to its end.
func Finished(s blixardv1.TaskState_Enum) bool {
	return s == taskSucceeded || s == taskFailed || s == taskCanceled
}

// TaskKeep is how long a finished task and its output are kept.
func TaskKeep(spec *blixardv1.TaskSpec) time.Duration {
	if spec.GetKeep() == nil {
		return taskKeepDefault
	}
	return spec.GetKeep().AsDuration()
}

// task finds a task by id or name.
func (b *batch) task(ref string) *blixardv1.Task { return taskNamed(b.db, ref) }

func (b *batch) putTask(t *blixardv1.Task) {
	t.ModifyIndex = b.index
	recountTask(b.db, t, first[blixardv1.Task](b.db, tableTask, indexID, t.GetId()))
	insert(b.db, tableTask, t)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindTask, Task: t})
}

func (b *batch) dropTask(t *blixardv1.Task) {
	recountTask(b.db, nil, first[blixardv1.Task](b.db, tableTask, indexID, t.GetId()))
	remove(b.db, tableTask, t)
	t.ModifyIndex = b.index
	b.s.tasks--
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindTask, Task: t, Deleted: true})
}

func (b *batch) taskEvent(t *blixardv1.Task, kind, reason, message string) {
	b.event(&blixardv1.Event{
		Kind: kind, ObjectKind: "task", ObjectId: t.GetId(), ObjectName: t.GetName(),
		Node: t.GetStatus().GetNode(), Reason: reason, Message: message,
	})
}

// copyTask is a copy with a status of its own.
func copyTask(t *blixardv1.Task) *blixardv1.Task {
	return &blixardv1.Task{
		Id: t.Id, Name: t.Name, Spec: t.Spec, Status: proto.CloneOf(t.Status), CreateIndex: t.CreateIndex, ModifyIndex: t.ModifyIndex,
		CreatedAt: t.CreatedAt, Labels: t.Labels, Array: t.Array, ArrayName: t.ArrayName, Number: t.Number, Project: t.Project,
		Schedule: t.Schedule, Run: t.Run, ScheduledAt: t.ScheduledAt,
	}
}

func taskNotFound(ref string) *problem.Error {
	return problem.New(problem.NotFound, "task.not_found", "there is no task %q", ref).
		WithHint("`blixard task list` shows the tasks; a finished one is forgotten after the time of --keep")
}

// submitTask declares a task, or an array of them.
func (b *batch) submitTask(c *blixardv1.SubmitTaskCommand) Result {
	if c.GetId() == "" || c.GetName() == "" || c.GetSpec().GetVm() == nil {
		return refused(b.index, problem.New(problem.Invalid, "task.incomplete", "a task needs an id, a name and a VM").
			WithHint("this is a fault of the proposer: report it"))
	}
	if taskIDPattern.MatchString(c.GetName()) {
		return refused(b.index, problem.New(problem.Invalid, "task.name_is_id", "the name %q looks like an id", c.GetName()).
			WithHint("choose a name that does not begin with task- and 16 letters or digits").WithField("name"))
	}
	if c.GetCount() > taskCountMax || b.s.tasks+max(1, int(c.GetCount())) > tasksMax {
		return refused(b.index, problem.New(problem.NoCapacity, "task.too_many", "%d tasks are known, and %d more are too many", b.s.tasks, max(1, c.GetCount())).
			WithHint("an array has at most %d tasks, and %d are kept in all: remove finished ones with `blixard task remove`", taskCountMax, tasksMax))
	}
	if why := checkName(c.GetName(), c.GetProject()); why != nil {
		return refused(b.index, why)
	}
	after, why := b.resolveAfter(c)
	if why != nil {
		return refused(b.index, why)
	}
	tasks := b.tasksOf(c, after)
	for _, t := range tasks {
		if b.task(t.GetName()) != nil || b.task(t.GetId()) != nil || b.arrayNamed(t.GetName()) != "" {
			return refused(b.index, problem.New(problem.Conflict, "task.name_taken", "there is a task %q already", t.GetName()).
				WithHint("choose another name, or remove that task first: blixard task remove %s", t.GetName()).WithField("name"))
		}
	}
	if c.GetCount() > 0 && (b.arrayNamed(c.GetName()) != "" || b.task(c.GetName()) != nil) {
		return refused(b.index, problem.New(problem.Conflict, "task.name_taken", "there are tasks of the name %q already", c.GetName()).
			WithHint("choose another name, or remove those first: blixard task remove %s", c.GetName()).WithField("name"))
	}
	if why := b.quotaAllowsTasks(storedProject(c.GetProject()), uint64(len(tasks)), 0); why != nil {
		return refused(b.index, why)
	}
	b.s.tasks += len(tasks)
	for _, t := range tasks {
		b.putTask(t)
	}
	if c.GetCount() > 0 {
		b.taskEvent(tasks[0], "task.submitted", "", fmt.Sprintf("%d tasks were submitted as %s", len(tasks), c.GetName()))
	} else {
		b.taskEvent(tasks[0], "task.submitted", "", "the task was submitted")
	}
	return Result{Index: b.index, Tasks: tasks[:min(len(tasks), tasksAnswered)]}
}

// tasksOf gives the tasks of a submission.
func (b *batch) tasksOf(c *blixardv1.SubmitTaskCommand, after []string) []*blixardv1.Task {
	spec := c.GetSpec()
	if len(spec.GetAfter()) > 0 {
		spec = proto.CloneOf(spec)
		spec.After = after
	}
	state, reason := taskPending, "submitted"
	if len(after) > 0 {
		state, reason = taskWaiting, "after"
	}
	one := func(id, name string) *blixardv1.Task {
		return &blixardv1.Task{
			Id: id, Name: name, Spec: spec, CreateIndex: b.index, CreatedAt: b.time, Labels: c.GetLabels(), Project: storedProject(c.GetProject()),
			Status: &blixardv1.TaskStatus{State: state, Reason: reason},
		}
	}
	if c.GetCount() == 0 {
		return []*blixardv1.Task{one(c.GetId(), c.GetName())}
	}
	tasks := make([]*blixardv1.Task, c.GetCount())
	for i := range tasks {
		n := "-" + strconv.Itoa(i)
		tasks[i] = one(c.GetId()+n, c.GetName()+n)
		tasks[i].Array, tasks[i].ArrayName, tasks[i].Number = c.GetId(), c.GetName(), uint32(i)
	}
	return tasks
}

// arrayNamed gives the id of the array with that name or id, "" when there is none.
func (b *batch) arrayNamed(ref string) string { return arrayNamed(b.db, ref) }

// resolveAfter gives the ids of what a task comes after, which must be known already:
// so there are no cycles.
func (b *batch) resolveAfter(c *blixardv1.SubmitTaskCommand) ([]string, *problem.Error) {
	var after []string
	for i, ref := range c.GetSpec().GetAfter() {
		if ref == c.GetName() || ref == c.GetId() {
			return nil, problem.New(problem.Invalid, "task.after_itself", "task %q can't come after itself", ref).
				WithHint("name tasks that were submitted before").WithField("spec.after[%d]", i)
		}
		id := b.arrayNamed(ref)
		if t := b.task(ref); t != nil {
			id = t.GetId()
		}
		if id == "" {
			return nil, problem.New(problem.NotFound, "task.after_unknown", "task %q, which %q shall come after, is not known", ref, c.GetName()).
				WithHint("submit it first; `blixard task list` shows what there is").WithField("spec.after[%d]", i)
		}
		if containsString(after, id) {
			continue
		}
		after = append(after, id)
	}
	return after, nil
}

// unfinished reports whether a task or an array, by its id, will still come to its end.
func (b *batch) unfinished(id string) bool {
	return slices.ContainsFunc(tasksNamed(b.db, id), func(t *blixardv1.Task) bool { return !Finished(t.GetStatus().GetState()) })
}

// changeTasks carries out a person's wish. It is refused when it fits none of the tasks.
func (b *batch) changeTasks(c *blixardv1.ChangeTasksCommand) Result {
	tasks := tasksNamed(b.db, c.GetName())
	if len(tasks) == 0 {
		return refused(b.index, taskNotFound(c.GetName()))
	}
	r := Result{Index: b.index}
	var refusal *problem.Error
	for _, old := range tasks {
		if again := c.GetChange() == blixardv1.ChangeTasksCommand_retry; again && len(tasks) > 1 && old.GetStatus().GetState() == taskSucceeded {
			refusal = problem.New(problem.Conflict, "task.succeeded", "all tasks of %q have succeeded", c.GetName()).
				WithHint("name one of them to let it run again all the same")
			continue
		}
		t, why := b.changeTask(old, c.GetChange())
		if why != nil {
			refusal = why
			continue
		}
		if len(r.Tasks) < tasksAnswered {
			r.Tasks = append(r.Tasks, t)
		}
	}
	if len(r.Tasks) == 0 {
		return refused(b.index, refusal)
	}
	return r
}

func (b *batch) changeTask(old *blixardv1.Task, change blixardv1.ChangeTasksCommand_Change) (*blixardv1.Task, *problem.Error) {
	finished := Finished(old.GetStatus().GetState())
	t := copyTask(old)
	switch change {
	case blixardv1.ChangeTasksCommand_cancel:
		if finished {
			return nil, problem.New(problem.Conflict, "task.finished", "task %q has %s already", old.GetName(), old.GetStatus().GetState()).
				WithHint("there is nothing to cancel; `blixard task remove %s` forgets it", old.GetName())
		}
		b.finish(t, taskCanceled, "canceled", "the task was canceled")
		return t, nil
	case blixardv1.ChangeTasksCommand_retry:
		if !finished {
			return nil, problem.New(problem.Conflict, "task.unfinished", "task %q is %s", old.GetName(), old.GetStatus().GetState()).
				WithHint("only finished tasks run again; cancel it first with `blixard task cancel %s`", old.GetName())
		}
		if why := b.quotaAllowsTasks(old.GetProject(), 1, 0); why != nil {
			return nil, why
		}
		t.Status = &blixardv1.TaskStatus{State: taskPending, Reason: "retried", Attempt: old.GetStatus().GetAttempt()}
		if slices.ContainsFunc(t.GetSpec().GetAfter(), b.unfinished) {
			t.Status.State = taskWaiting
		}
		b.putTask(t)
		b.taskEvent(t, "task.retried", "", "the task runs again")
		return t, nil
	case blixardv1.ChangeTasksCommand_remove:
		if !finished {
			return nil, problem.New(problem.Conflict, "task.unfinished", "task %q is %s", old.GetName(), old.GetStatus().GetState()).
				WithHint("cancel it first with `blixard task cancel %s`", old.GetName())
		}
		b.dropTask(t)
		b.taskEvent(t, "task.removed", "", "the task was removed")
		return t, nil
	}
	return nil, problem.New(problem.Invalid, "task.change", "%v is no change of a task", change)
}

// stepTasks carries tasks on. Each step is refused by itself.
func (b *batch) stepTasks(c *blixardv1.StepTasksCommand) Result {
	r := Result{Index: b.index}
	for _, s := range c.GetSteps() {
		if why := b.stepTask(s); why != nil {
			r.Refused = append(r.Refused, Refusal{TaskID: s.GetTaskId(), Problem: why})
		}
	}
	if n := len(r.Refused); n > 0 && n == len(c.GetSteps()) {
		r.Problem = r.Refused[0].Problem
	}
	return r
}

func (b *batch) stepTask(s *blixardv1.TaskStep) *problem.Error {
	old := first[blixardv1.Task](b.db, tableTask, indexID, s.GetTaskId())
	if old == nil {
		return taskNotFound(s.GetTaskId())
	}
	if old.GetModifyIndex() != s.GetTaskModifyIndex() {
		return problem.New(problem.Conflict, "task.stale", "task %q was changed at index %d, not %d", old.GetName(), old.GetModifyIndex(), s.GetTaskModifyIndex())
	}
	st := old.GetStatus()
	unfit := problem.New(problem.Conflict, "task.unfit", "task %q is %s: %s does not fit", old.GetName(), st.GetState(), s.GetKind())
	t := copyTask(old)
	switch s.GetKind() {
	case blixardv1.TaskStep_begin:
		if st.GetState() != taskPending && st.GetState() != taskWaiting || st.GetVmId() != "" {
			return unfit
		}
		b.beginAttempt(t)
	case blixardv1.TaskStep_expire:
		if Finished(st.GetState()) || st.GetVmId() == "" || st.GetStartedAt() == nil {
			return unfit
		}
		b.endAttempt(t, outcome{reason: "timeout", message: fmt.Sprintf("it ran longer than %v", t.GetSpec().GetTimeout().AsDuration())})
	case blixardv1.TaskStep_abandon:
		if st.GetState() != taskWaiting {
			return unfit
		}
		b.finish(t, taskFailed, "after-failed", "it comes after "+s.GetReference()+", which did not succeed")
	case blixardv1.TaskStep_forget:
		if !Finished(st.GetState()) {
			return unfit
		}
		b.dropTask(t)
		b.taskEvent(t, "task.removed", "kept", "the time to keep it is over")
	default:
		return unfit
	}
	return nil
}

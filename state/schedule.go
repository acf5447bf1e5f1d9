package state

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/cron"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of schedules.
const (
	// schedulesMax: the leader looks at those that are due alone; some kilobyte each.
	schedulesMax = 10_000
	// keepRunsDefault of schedules that name no number.
	keepRunsDefault = 10
	// clockAheadMax that a clock may have been when it decided; beyond it a resumed
	// schedule does not wait until its clock is that far.
	clockAheadMax = 2 * time.Hour
)

// KeepRuns is how many finished runs of a schedule are kept.
func KeepRuns(spec *blixardv1.ScheduleSpec) int {
	if spec.GetKeepRuns() == 0 {
		return keepRunsDefault
	}
	return int(spec.GetKeepRuns())
}

// schedule finds a schedule by id or name.
func (b *batch) schedule(ref string) *blixardv1.Schedule { return scheduleNamed(b.db, ref) }

func scheduleNamed(db *database, ref string) *blixardv1.Schedule {
	return named[blixardv1.Schedule](db, tableSchedule, ref)
}

func (b *batch) putSchedule(s *blixardv1.Schedule) {
	s.ModifyIndex = b.index
	insert(b.db, tableSchedule, s)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindSchedule, Schedule: s})
}

func (b *batch) scheduleEvent(s *blixardv1.Schedule, kind, reason, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "schedule", ObjectId: s.GetId(), ObjectName: s.GetName(), Reason: reason, Message: message})
}

// copySchedule is a copy with a status of its own.
func copySchedule(s *blixardv1.Schedule) *blixardv1.Schedule {
	return &blixardv1.Schedule{
		Id: s.Id, Name: s.Name, Spec: s.Spec, Status: proto.CloneOf(s.Status), CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
		CreatedAt: s.CreatedAt, Labels: s.Labels, Project: s.Project,
	}
}

// ScheduleNotFound is the problem of a schedule that is not there.
func ScheduleNotFound(ref string) *problem.Error {
	return problem.New(problem.NotFound, "schedule.not_found", "there is no schedule %q", ref).
		WithHint("`blixard schedule list` shows the schedules")
}

func (b *batch) createSchedule(c *blixardv1.CreateScheduleCommand) Result {
	if c.GetId() == "" || c.GetName() == "" || c.GetSpec().GetTask().GetVm() == nil {
		return refused(b.index, problem.New(problem.Invalid, "schedule.incomplete", "a schedule needs an id, a name, and a task with a VM").
			WithHint("this is a fault of the proposer: report it"))
	}
	if _, why := cron.Parse(c.GetSpec().GetCron()); why != nil {
		return refused(b.index, why.WithField("spec.cron"))
	}
	if why := checkName(c.GetName(), c.GetProject()); why != nil {
		return refused(b.index, why)
	}
	if b.schedule(c.GetName()) != nil || b.schedule(c.GetId()) != nil {
		return refused(b.index, problem.New(problem.Conflict, "schedule.name_taken", "there is a schedule %q already", c.GetName()).
			WithHint("choose another name, or remove that schedule first: blixard schedule remove %s", c.GetName()).WithField("name"))
	}
	if n := count[blixardv1.Schedule](b.db, tableSchedule); n >= schedulesMax {
		return refused(b.index, problem.New(problem.NoCapacity, "schedule.too_many", "there are %d schedules", n).
			WithHint("remove those that are not needed with `blixard schedule remove`"))
	}
	s := &blixardv1.Schedule{
		Id: c.GetId(), Name: c.GetName(), Spec: c.GetSpec(), CreateIndex: b.index, CreatedAt: b.time, Labels: c.GetLabels(), Project: storedProject(c.GetProject()),
		Status: &blixardv1.ScheduleStatus{DecidedUntil: b.time},
	}
	b.putSchedule(s)
	b.scheduleEvent(s, "schedule.created", "", "the schedule was created")
	return Result{Index: b.index, Schedule: s}
}

func (b *batch) updateSchedule(c *blixardv1.UpdateScheduleCommand) Result {
	old := b.schedule(c.GetName())
	switch _, why := cron.Parse(c.GetSpec().GetCron()); {
	case old == nil:
		return refused(b.index, ScheduleNotFound(c.GetName()))
	case c.GetExpectedIndex() != 0 && c.GetExpectedIndex() != old.GetModifyIndex():
		return refused(b.index, problem.New(problem.Conflict, "schedule.index_mismatch", "schedule %q was changed at index %d, not %d", old.GetName(), old.GetModifyIndex(), c.GetExpectedIndex()).
			WithHint("read the schedule again and repeat the change with its modify_index"))
	case why != nil:
		return refused(b.index, why)
	case c.GetSpec().GetTask().GetVm() == nil:
		return refused(b.index, problem.New(problem.Invalid, "schedule.incomplete", "a schedule needs a task with a VM"))
	}
	s := copySchedule(old)
	s.Spec, s.Labels = c.GetSpec(), c.GetLabels()
	if proto.Equal(s, old) {
		return Result{Index: b.index, Schedule: old}
	}
	// Times of the new expression that have passed are nobody's.
	s.Status.DecidedUntil = laterOf(s.Status.DecidedUntil, b.time)
	if s.GetSpec().GetOverlap() != blixardv1.Overlap_queue {
		b.unqueue(s)
	}
	b.putSchedule(s)
	b.scheduleEvent(s, "schedule.updated", "", "the schedule was changed")
	return Result{Index: b.index, Schedule: s}
}

func laterOf(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if a.AsTime().After(b.AsTime()) {
		return a
	}
	return b
}

// unqueue gives up a queued run.
func (b *batch) unqueue(s *blixardv1.Schedule) {
	if s.Status.GetQueued() {
		s.Status.Queued, s.Status.QueuedAt = false, nil
		b.skip(s, "unqueued", "the run that waited does not begin any more")
	}
}

// skip notes that a run does not begin.
func (b *batch) skip(s *blixardv1.Schedule, reason, message string) {
	s.Status.Skipped++
	s.Status.Reason, s.Status.Message = reason, message
	b.scheduleEvent(s, "schedule.skipped", reason, message)
}

// changeSchedule carries out a person's wish.
func (b *batch) changeSchedule(c *blixardv1.ChangeScheduleCommand) Result {
	old := b.schedule(c.GetName())
	if old == nil {
		return refused(b.index, ScheduleNotFound(c.GetName()))
	}
	s := copySchedule(old)
	switch c.GetChange() {
	case blixardv1.ChangeScheduleCommand_pause:
		if old.GetStatus().GetPaused() {
			return Result{Index: b.index, Schedule: old}
		}
		s.Status.Paused = true
		b.unqueue(s)
		b.putSchedule(s)
		b.scheduleEvent(s, "schedule.paused", "", "the schedule was paused")
	case blixardv1.ChangeScheduleCommand_resume:
		ahead := old.GetStatus().GetDecidedUntil().AsTime().After(b.time.AsTime().Add(clockAheadMax))
		if !old.GetStatus().GetPaused() && !ahead {
			return Result{Index: b.index, Schedule: old}
		}
		s.Status.Paused = false
		if s.Status.DecidedUntil = laterOf(s.Status.DecidedUntil, b.time); ahead {
			s.Status.DecidedUntil = b.time
		}
		b.putSchedule(s)
		b.scheduleEvent(s, "schedule.resumed", "", "the schedule was resumed")
	case blixardv1.ChangeScheduleCommand_run:
		return b.runNow(s)
	case blixardv1.ChangeScheduleCommand_remove:
		remove(b.db, tableSchedule, old)
		s.ModifyIndex = b.index
		b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindSchedule, Schedule: s, Deleted: true})
		b.scheduleEvent(s, "schedule.removed", "", "the schedule was removed")
	default:
		return refused(b.index, problem.New(problem.Invalid, "schedule.change", "%v is no change of a schedule", c.GetChange()))
	}
	return Result{Index: b.index, Schedule: s}
}

// runNow begins a run that a person asks for, or queues it. s is a fresh copy.
func (b *batch) runNow(s *blixardv1.Schedule) Result {
	under := b.openRuns(s.GetId())
	if len(under) > 0 && s.GetSpec().GetOverlap() != blixardv1.Overlap_replace {
		if s.GetSpec().GetOverlap() != blixardv1.Overlap_queue || s.Status.GetQueued() {
			return refused(b.index, problem.New(problem.Conflict, "schedule.overlaps", "run %q of schedule %q is %s", under[0].GetName(), s.GetName(), under[0].GetStatus().GetState()).
				WithHint("wait for it, or end it first: blixard task cancel %s", under[0].GetName()))
		}
		b.queue(s, nil, under[0])
		b.putSchedule(s)
		return Result{Index: b.index, Schedule: s}
	}
	// A refused command must change nothing, so what may refuse is looked at first.
	if why := b.runFits(s, len(under)); why != nil {
		return refused(b.index, why)
	}
	b.cancelRuns(under)
	t := b.beginRun(s, nil)
	b.putSchedule(s)
	return Result{Index: b.index, Schedule: s, Tasks: []*blixardv1.Task{t}}
}

// queue lets a run begin when the one before is finished.
func (b *batch) queue(s *blixardv1.Schedule, at *timestamppb.Timestamp, before *blixardv1.Task) {
	s.Status.Queued, s.Status.QueuedAt = true, at
	s.Status.Reason, s.Status.Message = "queued", "the run waits for "+before.GetName()
	b.scheduleEvent(s, "schedule.queued", "queued", s.Status.Message)
}

// cancelRuns ends runs for the sake of the next.
func (b *batch) cancelRuns(under []*blixardv1.Task) {
	for _, t := range under {
		b.finish(copyTask(t), taskCanceled, "replaced", "the next run took its place")
	}
}

// openRuns gives the runs of a schedule that are not finished, the oldest first.
func (b *batch) openRuns(id string) []*blixardv1.Task {
	return slices.DeleteFunc(runsOf(b.db, id), func(t *blixardv1.Task) bool { return Finished(t.GetStatus().GetState()) })
}

// runsOf gives the runs of a schedule that are known, the oldest first.
func runsOf(db *database, id string) []*blixardv1.Task {
	runs := all[blixardv1.Task](db, tableTask, indexSchedule, id)
	slices.SortFunc(runs, func(a, b *blixardv1.Task) int { return cmp.Compare(a.GetRun(), b.GetRun()) })
	return runs
}

// runName is that of a schedule's next run.
func runName(s *blixardv1.Schedule) string {
	return s.GetName() + "-" + strconv.FormatUint(s.GetStatus().GetRuns()+1, 10)
}

// runTaskID is the id of a run: the same wherever it is made.
func runTaskID(s *blixardv1.Schedule) string {
	sum := sha256.Sum256([]byte(s.GetId() + " " + runName(s)))
	return "task-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// runFits says why a schedule's next run can't be submitted, once canceled others are
// finished; nil when it can.
func (b *batch) runFits(s *blixardv1.Schedule, canceled int) *problem.Error {
	name := runName(s)
	if b.s.tasks >= tasksMax {
		return problem.New(problem.NoCapacity, "task.too_many", "%d tasks are known", b.s.tasks).WithHint("remove finished ones with `blixard task remove`")
	}
	if b.task(name) != nil || b.arrayNamed(name) != "" {
		return problem.New(problem.Conflict, "task.name_taken", "there is a task %q already, which is no run of the schedule", name).
			WithHint("remove that task: blixard task remove %s", name)
	}
	return b.quotaAllowsTasks(s.GetProject(), 1, uint64(canceled))
}

// beginRun submits the next run of s, a fresh copy that its caller puts; runFits has said
// that it may.
func (b *batch) beginRun(s *blixardv1.Schedule, at *timestamppb.Timestamp) *blixardv1.Task {
	spec := s.GetSpec().GetTask()
	if len(spec.GetAfter()) > 0 {
		spec = proto.CloneOf(spec)
		spec.After = nil
	}
	t := &blixardv1.Task{
		Id: runTaskID(s), Name: runName(s), Spec: spec, CreateIndex: b.index, CreatedAt: b.time, Labels: s.GetLabels(), Project: s.GetProject(),
		Schedule: s.GetId(), Run: s.GetStatus().GetRuns() + 1, ScheduledAt: at,
		Status: &blixardv1.TaskStatus{State: taskPending, Reason: "submitted"},
	}
	s.Status.Runs, s.Status.Task, s.Status.ScheduledAt = t.GetRun(), t.GetId(), at
	s.Status.Reason, s.Status.Message = "started", "run "+t.GetName()+" began"
	b.s.tasks++
	b.putTask(t)
	b.taskEvent(t, "task.submitted", "schedule", "the task was submitted by schedule "+s.GetName())
	b.scheduleEvent(s, "schedule.started", "", s.Status.Message)
	return t
}

// forgetRuns drops the oldest finished runs of which there are more than are kept; newest
// is one that has just finished and stays.
func (b *batch) forgetRuns(s *blixardv1.Schedule, newest *blixardv1.Task) {
	finished := slices.DeleteFunc(runsOf(b.db, s.GetId()), func(t *blixardv1.Task) bool {
		return !Finished(t.GetStatus().GetState()) || t.GetId() == newest.GetId()
	})
	for _, t := range finished[:max(0, len(finished)+1-KeepRuns(s.GetSpec()))] {
		gone := copyTask(t)
		b.dropTask(gone)
		b.taskEvent(gone, "task.removed", "runs", fmt.Sprintf("%d newer runs of its schedule are kept", KeepRuns(s.GetSpec())))
	}
}

// runEnded begins the run that waited for t, which is finished.
func (b *batch) runEnded(t *blixardv1.Task) {
	if t.GetSchedule() == "" {
		return
	}
	old := b.schedule(t.GetSchedule())
	if old == nil {
		return
	}
	b.forgetRuns(old, t)
	if !old.GetStatus().GetQueued() || len(b.openRuns(old.GetId())) > 0 {
		return
	}
	s := copySchedule(old)
	at := s.Status.QueuedAt
	s.Status.Queued, s.Status.QueuedAt = false, nil
	b.beginOrSkip(s, at)
	b.putSchedule(s)
}

func (b *batch) beginOrSkip(s *blixardv1.Schedule, at *timestamppb.Timestamp) {
	if why := b.runFits(s, 0); why != nil {
		b.skip(s, why.Code, "a run did not begin: "+why.Message)
		return
	}
	b.beginRun(s, at)
}

// stepSchedules takes in what time brought. Each step is refused by itself.
func (b *batch) stepSchedules(c *blixardv1.StepSchedulesCommand) Result {
	r := Result{Index: b.index}
	for _, step := range c.GetSteps() {
		if why := b.stepSchedule(step); why != nil {
			r.Refused = append(r.Refused, Refusal{ScheduleID: step.GetScheduleId(), Problem: why})
		}
	}
	if n := len(r.Refused); n > 0 && n == len(c.GetSteps()) {
		r.Problem = r.Refused[0].Problem
	}
	return r
}

// stepSchedule decides about one time.
//
// Invariant: of each schedule the times with a run go up, so none has two.
func (b *batch) stepSchedule(step *blixardv1.ScheduleStep) *problem.Error {
	old := first[blixardv1.Schedule](b.db, tableSchedule, indexID, step.GetScheduleId())
	if old == nil {
		return ScheduleNotFound(step.GetScheduleId())
	}
	at, until := step.GetAt().AsTime(), old.GetStatus().GetDecidedUntil().AsTime()
	switch {
	case old.GetModifyIndex() != step.GetScheduleModifyIndex():
		return problem.New(problem.Conflict, "schedule.stale", "schedule %q was changed at index %d, not %d", old.GetName(), old.GetModifyIndex(), step.GetScheduleModifyIndex())
	case old.GetStatus().GetPaused():
		return problem.New(problem.Conflict, "schedule.paused", "schedule %q is paused", old.GetName())
	case !at.After(until):
		return problem.New(problem.Conflict, "schedule.decided", "of %v it is decided: schedule %q is at %v", at, old.GetName(), until)
	case at.After(b.time.AsTime()):
		return problem.New(problem.Conflict, "schedule.early", "%v has not come: it is %v", at, b.time.AsTime())
	}
	s := copySchedule(old)
	if !planted.Is(planted.ScheduleForgetsTime) {
		s.Status.DecidedUntil = step.GetAt()
	}
	if n := step.GetMissed(); n > 0 {
		s.Status.Missed += n
		words := strconv.FormatUint(n, 10)
		if step.GetAtLeast() {
			words = "at least " + words
		}
		s.Status.Reason, s.Status.Message = "missed", words+" times were missed, the newest at "+at.Format(time.RFC3339)
		if n == 1 && !step.GetAtLeast() {
			s.Status.Message = "one time was missed"
			if !step.GetBegin() {
				s.Status.Message = "the time " + at.Format(time.RFC3339) + " was missed"
			}
		}
		b.scheduleEvent(s, "schedule.missed", "missed", s.Status.Message)
	}
	if step.GetBegin() {
		b.due(s, step.GetAt())
	}
	b.putSchedule(s)
	return nil
}

// due begins the run of a time, or does what overlap says.
func (b *batch) due(s *blixardv1.Schedule, at *timestamppb.Timestamp) {
	under := b.openRuns(s.GetId())
	overlap := s.GetSpec().GetOverlap()
	switch {
	case len(under) == 0 || planted.Is(planted.OverlapIgnored):
	case overlap == blixardv1.Overlap_queue && !s.Status.GetQueued():
		b.queue(s, at, under[0])
		return
	case overlap != blixardv1.Overlap_replace:
		b.skip(s, "overlap", under[0].GetName()+" is not finished")
		return
	case b.runFits(s, len(under)) == nil:
		b.cancelRuns(under)
	}
	b.beginOrSkip(s, at)
}

// Schedule finds a schedule by its id or name; nil when there is none.
func (v *View) Schedule(ref string) *blixardv1.Schedule { return scheduleNamed(v.db, ref) }

// Schedules gives at most limit schedules whose name comes after the given one, as VMs does.
func (v *View) Schedules(after string, limit int) []*blixardv1.Schedule {
	return listAfter[blixardv1.Schedule](v.db, tableSchedule, indexName, after, limit)
}

// RunsOf gives the runs of a schedule, by its id, that are known, the oldest first.
func (v *View) RunsOf(id string) []*blixardv1.Task { return runsOf(v.db, id) }

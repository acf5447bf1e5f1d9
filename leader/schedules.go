package leader

import (
	"cmp"
	"time"

	"github.com/google/btree"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/cron"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/state"
)

const (
	// runGrace is how late a run may begin and still be on time: a new leader is there
	// sooner, after ten seconds or so.
	runGrace = time.Minute
	// missedMax times are counted in one decision; each takes some microseconds.
	missedMax = 1000
)

// dueSchedule is a schedule and its next time.
type dueSchedule struct {
	at int64 // Unix time in nanoseconds, by the wall clock
	id string
}

func (d dueSchedule) less(o dueSchedule) bool {
	return cmp.Or(cmp.Compare(d.at, o.at), cmp.Compare(d.id, o.id)) < 0
}

// schedules decides which runs are due. It is not safe for concurrent use.
type schedules struct {
	due   *btree.BTreeG[dueSchedule]
	timed map[string]dueSchedule
	// fresh schedules are not in due yet.
	fresh map[string]bool
}

func newSchedules() *schedules {
	s := &schedules{}
	s.reset()
	return s
}

func (s *schedules) reset() {
	s.due = btree.NewG(taskDegree, dueSchedule.less)
	s.timed, s.fresh = map[string]dueSchedule{}, map[string]bool{}
}

// changed tells that a schedule is not as it was.
func (s *schedules) changed(id string) {
	if d, ok := s.timed[id]; ok {
		s.due.Delete(d)
		delete(s.timed, id)
	}
	s.fresh[id] = true
}

// takeFresh notes the next time of the schedules that changed.
func (s *schedules) takeFresh(view View) {
	for id := range s.fresh {
		schedule := view.Schedule(id)
		if schedule == nil || schedule.GetStatus().GetPaused() {
			continue
		}
		next, ok := Times(schedule, schedule.GetStatus().GetDecidedUntil().AsTime())
		if !ok {
			continue
		}
		d := dueSchedule{next.UnixNano(), id}
		s.timed[id] = d
		s.due.ReplaceOrInsert(d)
	}
	clear(s.fresh)
}

// steps gives what the time brought.
func (s *schedules) steps(view View, now time.Time) []*blixardv1.ScheduleStep {
	s.takeFresh(view)
	var steps []*blixardv1.ScheduleStep
	for len(steps) < stepsMax {
		d, ok := s.due.Min()
		if !ok || d.at > now.UnixNano() {
			break
		}
		s.due.DeleteMin()
		delete(s.timed, d.id)
		if step := DueRun(view.Schedule(d.id), now); step != nil {
			steps = append(steps, step)
		}
	}
	return steps
}

// Times gives the first time of a schedule after t; ok is false when there is none.
func Times(s *blixardv1.Schedule, t time.Time) (next time.Time, ok bool) {
	e, why := cron.Parse(s.GetSpec().GetCron())
	if why != nil {
		return time.Time{}, false // an older build took what this one does not
	}
	zone := s.GetSpec().GetTimeZone()
	if planted.Is(planted.ScheduleZoneIgnored) {
		zone = ""
	}
	loc, why := cron.Zone(zone)
	if why != nil {
		return time.Time{}, false
	}
	return e.Next(t, s.GetCreatedAt().AsTime(), loc)
}

// DueRun decides about the times of a schedule that have come and are not decided: at
// most one run begins, for the newest of them, when that is on time or the schedule
// catches up. The others are missed. It gives nil when no time has come.
func DueRun(s *blixardv1.Schedule, now time.Time) *blixardv1.ScheduleStep {
	if s == nil || s.GetStatus().GetPaused() {
		return nil
	}
	until := s.GetStatus().GetDecidedUntil().AsTime()
	first, ok := Times(s, until)
	if !ok || first.After(now) {
		return nil
	}
	newest := newestTime(s, first, now)
	step := &blixardv1.ScheduleStep{ScheduleId: s.GetId(), ScheduleModifyIndex: s.GetModifyIndex(), At: timestamppb.New(newest)}
	for t := first; t.Before(newest); t, _ = Times(s, t) {
		if step.Missed == missedMax {
			step.AtLeast = true
			break
		}
		step.Missed++
	}
	if step.Begin = now.Sub(newest) <= runGrace || s.GetSpec().GetCatchUp() == blixardv1.CatchUp_one; !step.Begin {
		step.Missed++
	}
	return step
}

// newestTime gives the newest time up to now; first is one. There may be very many
// between, so it halves what is between.
func newestTime(s *blixardv1.Schedule, first, now time.Time) time.Time {
	low, high := int64(0), int64(now.Sub(first)/time.Second)+1
	newest := first
	for low < high {
		middle := low + (high-low)/2
		t, ok := Times(s, first.Add(time.Duration(middle)*time.Second))
		if ok && !t.After(now) {
			newest = t
			low = int64(t.Sub(first) / time.Second)
			if low <= middle {
				low = middle + 1
			}
		} else {
			high = middle
		}
	}
	return newest
}

// NextTimes gives at most n times of a schedule that come after now; none while it is
// paused.
func NextTimes(s *blixardv1.Schedule, now time.Time, n int) []time.Time {
	if s.GetStatus().GetPaused() {
		return nil
	}
	if until := s.GetStatus().GetDecidedUntil().AsTime(); until.After(now) {
		now = until
	}
	var next []time.Time
	for range n {
		t, ok := Times(s, now)
		if !ok {
			break
		}
		next = append(next, t)
		now = t
	}
	return next
}

func scheduleCommand(steps []*blixardv1.ScheduleStep) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_StepSchedules{StepSchedules: &blixardv1.StepSchedulesCommand{Steps: steps}}}
}

// scheduleLevel is the feature level of StepSchedulesCommand.
var scheduleLevel = state.Level(scheduleCommand(nil))

// SchedulesDue gives the commands for the times of schedules that have come, by the wall
// clock.
func (c *Core) SchedulesDue(view View, now time.Time) []*blixardv1.Command {
	if view.FeatureLevel() < scheduleLevel {
		return nil
	}
	if steps := c.schedules.steps(view, now); len(steps) > 0 {
		return []*blixardv1.Command{scheduleCommand(steps)}
	}
	return nil
}

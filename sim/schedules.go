package sim

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/cron"
	"github.com/blixard/blixard/state"
)

var (
	scheduleNames = []string{"s0", "s1"}
	// The hours of the last two are, where a run of the simulator begins at midnight of UTC
	// by clocks that are an hour off, those of the zones or those of UTC.
	scheduleCrons = []string{"@every 3s", "@every 7s", "* * * * *", "* 4-6,18-20 * * *", "* 23,0,1 * * *"}
	scheduleZones = []string{"", "Asia/Kathmandu", "America/New_York"}
)

// schedules creates, changes and removes schedules.
func (w *world) schedules() {
	kinds := []string{"create", "create", "create", "pause", "resume", "resume", "run", "remove", "update"}
	var next func()
	next = func() {
		if w.quiet {
			return
		}
		cmd := w.scheduleChange(scheduleNames[w.IntN(len(scheduleNames))], kinds[w.IntN(len(kinds))])
		w.request(&request{cmd: cmd, tries: 3, done: func(_ state.Result, err error, _ bool) {
			if err == nil {
				w.count("operations on schedules")
			}
			w.after(w.tail(4*w.faults.think), next)
		}})
	}
	w.after(time.Second, next)
}

func (w *world) scheduleChange(name, kind string) *blixardv1.Command {
	w.keys++
	cmd := &blixardv1.Command{Key: fmt.Sprintf("key-%d", w.keys), Actor: "client", Time: timestamppb.New(epoch.Add(w.now))}
	spec := &blixardv1.ScheduleSpec{
		Cron: scheduleCrons[w.IntN(len(scheduleCrons))], TimeZone: scheduleZones[w.IntN(len(scheduleZones))],
		Overlap: blixardv1.Overlap_Enum(1 + w.IntN(3)), CatchUp: blixardv1.CatchUp_Enum(1 + w.IntN(2)), KeepRuns: uint32(1 + w.IntN(3)),
		Task: &blixardv1.TaskSpec{Delivery: blixardv1.Delivery_at_least_once, Vm: &blixardv1.VMSpec{MemoryMib: 64, Vcpus: 1, OnNodeLoss: blixardv1.NodeLossPolicy_replace}},
	}
	switch kind {
	case "create":
		cmd.Change = &blixardv1.Command_CreateSchedule{CreateSchedule: &blixardv1.CreateScheduleCommand{Id: fmt.Sprintf("schedule-%d", w.keys), Name: name, Spec: spec}}
	case "update":
		cmd.Change = &blixardv1.Command_UpdateSchedule{UpdateSchedule: &blixardv1.UpdateScheduleCommand{Name: name, Spec: spec}}
	default:
		cmd.Change = &blixardv1.Command_ChangeSchedule{ChangeSchedule: &blixardv1.ChangeScheduleCommand{
			Name: name, Change: blixardv1.ChangeScheduleCommand_Change(blixardv1.ChangeScheduleCommand_Change_value[kind]),
		}}
	}
	return cmd
}

// endSchedules removes what schedules there are, again and again: a late change may make
// another one.
func (w *world) endSchedules() {
	if h := w.leader(); h != nil {
		for _, s := range h.steps.View().Schedules("", 0) {
			w.request(&request{cmd: w.scheduleChange(s.GetName(), "remove"), tries: 3})
		}
	}
	w.after(2*time.Second, w.endSchedules)
}

// run: each time of a schedule has one run, which is one of its expression's, and begins
// when the one before is finished. Of runs it is told in the order in which they change.
func (c *checks) run(t *blixardv1.Task, deleted bool) {
	id := t.GetSchedule()
	if id == "" {
		return
	}
	open := c.openRuns[id]
	if deleted || state.Finished(t.GetStatus().GetState()) {
		delete(open, t.GetId())
		return
	}
	if t.GetStatus().GetReason() != "submitted" {
		return
	}
	c.w.count("runs of schedules")
	if open == nil {
		open = map[string]string{}
		c.openRuns[id] = open
	}
	for other, name := range open {
		if other != t.GetId() {
			c.w.fail("run %s begins although %s is not finished", t.GetName(), name)
		}
	}
	open[t.GetId()] = t.GetName()
	if t.GetScheduledAt() == nil {
		return
	}
	at := t.GetScheduledAt().AsTime()
	if other, known := c.runTimes[id]; known && other.task != t.GetId() && !at.After(other.at) {
		c.w.fail("run %s of %v begins after %s of %v", t.GetName(), at, other.task, other.at)
	}
	c.runTimes[id] = runTime{at, t.GetId()}
	if s := c.scheduled[id]; s != nil && !fitsSchedule(s, at) {
		c.w.fail("run %s begins for %v, which is no time of %v", t.GetName(), at, s.GetSpec())
	}
}

type runTime struct {
	at   time.Time
	task string
}

// fitsSchedule tells by the expression alone, and not by the leader's code.
func fitsSchedule(s *blixardv1.Schedule, at time.Time) bool {
	e, why := cron.Parse(s.GetSpec().GetCron())
	if why != nil {
		return false
	}
	loc, why := cron.Zone(s.GetSpec().GetTimeZone())
	if why != nil {
		return false
	}
	next, ok := e.Next(at.Add(-time.Nanosecond), s.GetCreatedAt().AsTime(), loc)
	return ok && next.Equal(at)
}

// schedule notes how a schedule is. A run that was queued may be of the times before.
func (c *checks) schedule(s *blixardv1.Schedule, deleted bool) {
	id := s.GetId()
	old := c.scheduled[id]
	if deleted || old == nil && s.GetStatus().GetQueued() || old != nil && !sameTimes(old, s) {
		c.changedTimes[id] = true
	}
	if c.changedTimes[id] {
		delete(c.scheduled, id)
		return
	}
	c.scheduled[id] = s
	if s.GetStatus().GetMissed() > old.GetStatus().GetMissed() {
		c.w.count("schedules that missed times")
	}
	if m := s.GetStatus().GetReason(); m != "" {
		c.w.count("schedules " + strings.ReplaceAll(m, ".", " "))
	}
}

func sameTimes(a, b *blixardv1.Schedule) bool {
	return a.GetSpec().GetCron() == b.GetSpec().GetCron() && a.GetSpec().GetTimeZone() == b.GetSpec().GetTimeZone()
}

// schedulesUnknown: changes were missed.
func (c *checks) schedulesUnknown() {
	clear(c.openRuns)
	clear(c.runTimes)
	clear(c.scheduled)
	clear(c.changedTimes)
}

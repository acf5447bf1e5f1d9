package state

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// drawSchedule draws a command about schedules and their runs, true and untrue ones.
func drawSchedule(t *rapid.T, v *View, now time.Time) *blixardv1.Command {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	name := pick("name", "s", "u")
	cmd := &blixardv1.Command{Key: pick("key", "", "", "", "k1", "k2")}
	spec := &blixardv1.ScheduleSpec{
		Cron: pick("cron", "@every 2s", "* * * * *", "61 * * * *"), Overlap: blixardv1.Overlap_Enum(rapid.IntRange(0, 3).Draw(t, "overlap")),
		KeepRuns: uint32(rapid.IntRange(0, 2).Draw(t, "keep")), Task: &blixardv1.TaskSpec{Vm: &blixardv1.VMSpec{Image: "busybox", MemoryMib: 64}},
	}
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0, 1:
		cmd.Change = &blixardv1.Command_CreateSchedule{CreateSchedule: &blixardv1.CreateScheduleCommand{Id: "schedule-" + name, Name: name, Spec: spec}}
	case 2:
		cmd.Change = &blixardv1.Command_UpdateSchedule{UpdateSchedule: &blixardv1.UpdateScheduleCommand{Name: name, Spec: spec, ExpectedIndex: uint64(rapid.IntRange(0, 3).Draw(t, "expected"))}}
	case 3, 4:
		cmd.Change = &blixardv1.Command_ChangeSchedule{ChangeSchedule: &blixardv1.ChangeScheduleCommand{
			Name: name, Change: blixardv1.ChangeScheduleCommand_Change(rapid.IntRange(0, 4).Draw(t, "change")),
		}}
	case 5:
		task := pick("task", "s-1", "s-2", "s-3", "u-1", "u-2")
		cmd.Change = &blixardv1.Command_ChangeTasks{ChangeTasks: &blixardv1.ChangeTasksCommand{Name: task, Change: blixardv1.ChangeTasksCommand_Change(rapid.IntRange(1, 3).Draw(t, "of a task"))}}
	case 6:
		task := pick("task", "s-1", "s-3", "u-2", "x")
		cmd.Change = &blixardv1.Command_SubmitTask{SubmitTask: &blixardv1.SubmitTaskCommand{Id: "task-" + task, Name: task, Spec: spec.GetTask(), Count: uint32(rapid.IntRange(0, 2).Draw(t, "count"))}}
	default:
		steps := &blixardv1.StepSchedulesCommand{}
		for _, s := range v.Schedules("", 0) {
			steps.Steps = append(steps.Steps, &blixardv1.ScheduleStep{
				ScheduleId: s.GetId(), ScheduleModifyIndex: s.GetModifyIndex() - uint64(rapid.IntRange(0, 3).Draw(t, "stale")/3), Begin: rapid.Bool().Draw(t, "begin"),
				At:     timestamppb.New(now.Add(time.Duration(rapid.IntRange(-3, 2).Draw(t, "at")) * time.Second)),
				Missed: uint64(rapid.IntRange(0, 1).Draw(t, "missed")),
			})
		}
		cmd.Change = &blixardv1.Command_StepSchedules{StepSchedules: steps}
	}
	return cmd
}

// TestSchedulesRunOnce: whatever is asked in whatever order, no time of a schedule has two
// runs, none begins before its time or while the one before is not finished, no more are
// kept than shall be, and replicas that apply in batches or restore snapshots agree.
func TestSchedulesRunOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, restored, batched := newStory(), New(DefaultLimits()), New(DefaultLimits())
		var batch []Entry
		began := map[string]time.Time{}
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			cmd := drawSchedule(t, one.s.View(), one.clock)
			before := schedulesText(one.s.View())
			r := one.do(cmd)
			e := Entry{Index: one.index, Command: proto.CloneOf(cmd)}
			batch = append(batch, e)
			if r.Problem != nil && schedulesText(one.s.View()) != before {
				t.Fatalf("%v was refused (%v) and changed\n%s\nto\n%s", cmd, r.Problem, before, schedulesText(one.s.View()))
			}
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				restored = again(t, restored)
			}
			if got := restored.Apply([]Entry{e})[0]; outline(got) != outline(r) || got.Schedule.GetModifyIndex() != r.Schedule.GetModifyIndex() {
				t.Fatalf("the restored replica answered %s, not %s", outline(got), outline(r))
			}
			holdSchedules(t, one, began)
		}
		batched.Apply(batch)
		if hash := one.s.View().Hash(); restored.View().Hash() != hash || batched.View().Hash() != hash {
			t.Fatal("the replicas have come to different states")
		}
	})
}

func schedulesText(v *View) string {
	var b bytes.Buffer
	for _, s := range v.Schedules("", 0) {
		fmt.Fprintln(&b, s)
	}
	for _, s := range v.Tasks("", 0) {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// holdSchedules checks what holds after each step; began is the newest time of each
// schedule, by its creation.
func holdSchedules(t *rapid.T, st *story, began map[string]time.Time) {
	v := st.s.View()
	for _, s := range v.Schedules("", 0) {
		key := fmt.Sprint(s.GetId(), s.GetCreateIndex())
		open, finished, retried := 0, 0, 0
		for _, run := range v.RunsOf(s.GetId()) {
			if Finished(run.GetStatus().GetState()) {
				finished++
			} else if open++; run.GetStatus().GetReason() == "retried" {
				retried++
			}
			if run.GetCreateIndex() < s.GetCreateIndex() {
				continue // of one of that id before
			}
			if at := run.GetScheduledAt(); at != nil && run.GetCreateIndex() == st.index {
				if !at.AsTime().After(began[key]) {
					t.Fatalf("a run of %v begins after one of %v", at.AsTime(), began[key])
				}
				if at.AsTime().After(st.clock) {
					t.Fatalf("a run of %v begins at %v", at.AsTime(), st.clock)
				}
				began[key] = at.AsTime()
			}
		}
		if open-retried > 1 {
			t.Fatalf("%d runs of %s are not finished", open, s.GetName())
		}
		if newest := v.Task(s.GetStatus().GetTask()); newest.GetCreateIndex() == st.index && finished > 0 && s.GetStatus().GetReason() != "started" {
			t.Fatalf("%s began %s and says %s", s.GetName(), newest.GetName(), s.GetStatus().GetReason())
		}
	}
}

// TestLevels: what older members would apply differently is not proposed beside
// them.
func TestLevels(t *testing.T) {
	for text, want := range map[string]uint32{
		`create_schedule {name: "s"}`: 14, `step_schedules {}`: 14, `change_schedule {}`: 14, `update_schedule {}`: 14,
		`place {bounds_tasks: true}`: 17, `place {}`: 1,
		`set_quota {limits {tasks: 1}}`: 14, `set_quota {limits {vms: 1}}`: 11, `submit_task {spec {artifacts: "/a"}}`: 14, `submit_task {spec {}}`: 10,
	} {
		if got := Level(command(t, text)); got != want {
			t.Errorf("%s has level %d, want %d", text, got, want)
		}
	}
}

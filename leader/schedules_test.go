package leader

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

func TestDueRun(t *testing.T) {
	created := time.Date(2026, 3, 28, 12, 0, 30, 0, time.UTC)
	for _, tc := range []struct {
		name, cron, zone string
		catchUp          blixardv1.CatchUp_Enum
		paused           bool
		now              string
		want             string // time, and whether it begins; missed
		missed           uint64
		atLeast          bool
	}{
		{"before its time", "0 * * * *", "", 1, false, "2026-03-28T12:59:59Z", "", 0, false},
		{"on time", "0 * * * *", "", 1, false, "2026-03-28T13:00:00Z", "2026-03-28T13:00:00Z begins", 0, false},
		{"a little late", "0 * * * *", "", 1, false, "2026-03-28T13:01:00Z", "2026-03-28T13:00:00Z begins", 0, false},
		{"late", "0 * * * *", "", 1, false, "2026-03-28T13:01:01Z", "2026-03-28T13:00:00Z", 1, false},
		{"late, and it catches up", "0 * * * *", "", 2, false, "2026-03-28T13:30:00Z", "2026-03-28T13:00:00Z begins", 0, false},
		{"paused", "0 * * * *", "", 2, true, "2026-03-28T13:30:00Z", "", 0, false},
		{"a day away", "*/5 * * * *", "", 2, false, "2026-03-29T12:03:00Z", "2026-03-29T12:00:00Z begins", 287, false},
		{"a day away, none caught up", "*/5 * * * *", "", 1, false, "2026-03-29T12:03:00Z", "2026-03-29T12:00:00Z", 288, false},
		{"a day away, and just in time", "*/5 * * * *", "", 1, false, "2026-03-29T12:00:10Z", "2026-03-29T12:00:00Z begins", 287, false},
		{"a clock that jumps by years", "* * * * *", "", 2, false, "2031-01-01T00:00:30Z", "2031-01-01T00:00:00Z begins", missedMax, true},
		{"years of seconds", "@every 1s", "", 1, false, "2036-01-01T00:00:30Z", "2036-01-01T00:00:30Z begins", missedMax, true},
		{"clocks go forward", "30 2 * * *", "Europe/Berlin", 1, false, "2026-03-29T01:00:05Z", "2026-03-29T01:00:00Z begins", 0, false},
		{"a zone", "0 9 * * *", "America/New_York", 1, false, "2026-03-28T13:00:00Z", "2026-03-28T13:00:00Z begins", 0, false},
		{"never", "0 9 * *", "", 1, false, "2026-03-28T13:00:00Z", "", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &blixardv1.Schedule{
				Id: "s", CreatedAt: timestamppb.New(created), Spec: &blixardv1.ScheduleSpec{Cron: tc.cron, TimeZone: tc.zone, CatchUp: tc.catchUp},
				Status: &blixardv1.ScheduleStatus{DecidedUntil: timestamppb.New(created), Paused: tc.paused},
			}
			now, err := time.Parse(time.RFC3339, tc.now)
			if err != nil {
				t.Fatal(err)
			}
			got := DueRun(s, now)
			if tc.want == "" {
				if got != nil {
					t.Fatalf("%v is due", got)
				}
				return
			}
			at, begins := strings.CutSuffix(tc.want, " begins")
			if got.GetAt().AsTime().Format(time.RFC3339) != at || got.GetBegin() != begins || got.GetMissed() != tc.missed || got.GetAtLeast() != tc.atLeast {
				t.Errorf("%v begin=%v missed=%d at least=%v", got.GetAt().AsTime(), got.GetBegin(), got.GetMissed(), got.GetAtLeast())
			}
		})
	}
}

// TestDueRunIsTheNewest: the run that is due is the newest time up to now, however long
// the way there.
func TestDueRunIsTheNewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		crons := []string{"*/7 * * * *", "30 2 * * *", "@every 13s", "0 0 29 2 *", "15 1,2,3 * * sun", "* 2 * * *"}
		created := time.Unix(rapid.Int64Range(1_700_000_000, 1_900_000_000).Draw(t, "created"), 500)
		s := &blixardv1.Schedule{
			Id: "s", CreatedAt: timestamppb.New(created),
			Spec:   &blixardv1.ScheduleSpec{Cron: rapid.SampledFrom(crons).Draw(t, "cron"), TimeZone: "Europe/Berlin"},
			Status: &blixardv1.ScheduleStatus{DecidedUntil: timestamppb.New(created)},
		}
		now := created.Add(time.Duration(rapid.Int64Range(0, 200_000_000).Draw(t, "later")) * time.Second)
		step := DueRun(s, now)
		if step == nil {
			if next, ok := Times(s, created); ok && !next.After(now) {
				t.Fatalf("%v is left out", next)
			}
			return
		}
		at := step.GetAt().AsTime()
		if next, ok := Times(s, at); at.After(now) || ok && !next.After(now) {
			t.Fatalf("at %v the time %v is due, and %v after it", now, at, next)
		}
		if again, ok := Times(s, at.Add(-time.Nanosecond)); !ok || !again.Equal(at) {
			t.Fatalf("%v is no time of the schedule; %v is", at, again)
		}
	})
}

// ticks lets the leader look at schedules so long after the newest command.
func (c *cluster) ticks(after time.Duration) (begun int) {
	c.t.Helper()
	for _, cmd := range c.core.SchedulesDue(c.state.View(), time.Unix(int64(c.index)+1, 0).Add(after)) {
		cmd.Time = timestamppb.New(time.Unix(int64(c.index)+1, 0).Add(after))
		r := c.apply(cmd)
		c.core.Refused(r.Refused)
		for _, s := range cmd.GetStepSchedules().GetSteps() {
			if s.GetBegin() && r.Problem == nil {
				begun++
			}
		}
	}
	c.settle()
	return begun
}

// Leaders that follow each other do not begin a run twice, and one that was away for a
// day begins one.
func TestSchedulesAcrossLeaders(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	spec := &blixardv1.ScheduleSpec{
		Cron: "* * * * *", Overlap: blixardv1.Overlap_replace, CatchUp: blixardv1.CatchUp_one,
		Task: &blixardv1.TaskSpec{Vm: &blixardv1.VMSpec{Image: "busybox", MemoryMib: 64, DiskBytes: 1 << 20}},
	}
	r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateSchedule{CreateSchedule: &blixardv1.CreateScheduleCommand{Id: "schedule-1", Name: "s", Spec: spec}}})
	if r.Problem != nil {
		t.Fatal(r.Problem)
	}
	c.settle()
	if c.ticks(0) != 0 {
		t.Error("a run begins before its time")
	}
	if c.ticks(time.Minute) != 1 || c.ticks(59*time.Second) != 0 {
		t.Error("not one run for the first minute")
	}
	// The next leader's clock is half a minute behind.
	c.core.Reset(c.state.View())
	if c.ticks(30*time.Second) != 0 {
		t.Error("another leader begins a run for the same minute")
	}
	// What the one before still had under way is refused.
	other := NewCore(c.core.newID, 100, 0)
	other.Reset(c.state.View())
	late := other.SchedulesDue(c.state.View(), time.Unix(int64(c.index), 0).Add(3*time.Minute))
	if c.ticks(3*time.Minute) != 1 || len(late) != 1 {
		t.Fatal("no run after three minutes")
	}
	late[0].Time = timestamppb.New(time.Unix(int64(c.index), 0).Add(4 * time.Minute))
	if r := c.apply(late[0]); r.Problem == nil {
		t.Error("a run begins twice")
	}
	c.core.Reset(c.state.View())
	if c.ticks(24*time.Hour) != 1 || c.ticks(24*time.Hour) != 0 {
		t.Error("a day away does not begin one run")
	}
	if runs := c.state.View().RunsOf("schedule-1"); len(runs) != 3 {
		t.Errorf("%d runs", len(runs))
	}
}

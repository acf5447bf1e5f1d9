package cron

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"
)

// TestScenarios: "next" takes zone, start and number, and an expression a line.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var b strings.Builder
			for line := range strings.SplitSeq(d.Input, "\n") {
				e, why := Parse(line)
				switch {
				case why != nil:
					fmt.Fprintf(&b, "%s: %v\n  %s\n", line, why, why.Hint)
				case d.Cmd == "parse":
					fmt.Fprintf(&b, "%s: fine\n", line)
				default:
					fmt.Fprintf(&b, "%s\n%s", line, nexts(t, d, e))
				}
			}
			return b.String()
		})
	})
}

func nexts(t *testing.T, d *datadriven.TestData, e *Expression) string {
	var zone, start string
	var n int
	d.ScanArgs(t, "zone", &zone)
	d.ScanArgs(t, "after", &start)
	d.ScanArgs(t, "n", &n)
	loc, why := Zone(zone)
	if why != nil {
		t.Fatal(why)
	}
	at, err := time.Parse(time.RFC3339, start)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	anchor := at
	for range n {
		next, ok := e.Next(at, anchor, loc)
		if !ok {
			fmt.Fprintln(&b, "  never")
			break
		}
		fmt.Fprintln(&b, " ", next.Format("Mon 2006-01-02T15:04:05 MST"))
		at = next
	}
	return b.String()
}

func TestZone(t *testing.T) {
	for _, name := range []string{"", "UTC", "Europe/Berlin", "America/Argentina/Ushuaia"} {
		if _, why := Zone(name); why != nil {
			t.Errorf("%q: %v", name, why)
		}
	}
	for _, name := range []string{"Local", "europe/nowhere", "../etc/passwd", "/etc/localtime", "Europe", strings.Repeat("a/", 40)} {
		if _, why := Zone(name); why == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

// slow tells by looking at each minute whether one is due: the meaning of an expression
// without any of its shortcuts, in a zone whose clocks are not changed.
func slow(minutes, hours, days, months, weekdays []int, either bool, at time.Time) bool {
	in := func(set []int, v int) bool {
		for _, s := range set {
			if s == v {
				return true
			}
		}
		return false
	}
	day := in(days, at.Day()) && in(weekdays, int(at.Weekday()))
	if either {
		day = in(days, at.Day()) || in(weekdays, int(at.Weekday()))
	}
	return in(minutes, at.Minute()) && in(hours, at.Hour()) && in(months, int(at.Month())) && day
}

// TestNextEqualsLookingAtEachMinute compares with the plain meaning.
func TestNextEqualsLookingAtEachMinute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := func(label string, low, high int) (string, []int) {
			if rapid.Bool().Draw(t, label+" any") {
				var all []int
				for v := range 60 {
					all = append(all, v)
				}
				return "*", all
			}
			some := rapid.SliceOfNDistinct(rapid.IntRange(low, high), 1, 4, rapid.ID).Draw(t, label)
			return strings.Trim(strings.ReplaceAll(fmt.Sprint(some), " ", ","), "[]"), some
		}
		mi, minutes := set("minute", 0, 59)
		ho, hours := set("hour", 0, 23)
		dom, days := set("day", 1, 28)
		mo, months := set("month", 1, 12)
		dow, weekdays := set("weekday", 0, 6)
		e, why := Parse(strings.Join([]string{mi, ho, dom, mo, dow}, " "))
		if why != nil {
			t.Fatal(why)
		}
		at := time.Unix(rapid.Int64Range(946684800, 4102444800).Draw(t, "at"), 0).UTC()
		next, ok := e.Next(at, at, time.UTC)
		if !ok {
			t.Fatal("it is never due")
		}
		either := dom != "*" && dow != "*"
		looked := 0
		for m := at.Truncate(time.Minute).Add(time.Minute); m.Before(next) && looked < 50_000; m = m.Add(time.Minute) {
			looked++
			if slow(minutes, hours, days, months, weekdays, either, m) {
				t.Fatalf("%v is left out; the next is %v", m, next)
			}
		}
		if !slow(minutes, hours, days, months, weekdays, either, next) {
			t.Fatalf("%v does not fit", next)
		}
	})
}

// TestClockChanges: in every zone and whatever the hour, a daily time is due once on each
// day that the zone has, and what is due with the time as it goes by keeps its distance.
func TestClockChanges(t *testing.T) {
	zones := []string{"Europe/Berlin", "America/New_York", "America/Havana", "Atlantic/Azores", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca", "Asia/Kathmandu"}
	rapid.Check(t, func(t *rapid.T) {
		loc, why := Zone(rapid.SampledFrom(zones).Draw(t, "zone"))
		if why != nil {
			t.Fatal(why)
		}
		start := time.Unix(rapid.Int64Range(946684800, 2051222400).Draw(t, "start"), 0)
		hour, minute := rapid.IntRange(0, 23).Draw(t, "hour"), rapid.IntRange(0, 59).Draw(t, "minute")
		daily, why := Parse(fmt.Sprintf("%d %d * * *", minute, hour))
		if why != nil {
			t.Fatal(why)
		}
		at, _ := daily.Next(start, start, loc)
		for range 400 {
			next, ok := daily.Next(at, start, loc)
			if !ok || next.Sub(at) > 26*time.Hour || next.Sub(at) < 22*time.Hour {
				t.Fatalf("after %v comes %v", at, next)
			}
			if h, m, _ := next.Clock(); (h != hour || m != minute) && !isChange(next) {
				t.Fatalf("%v is not %d:%02d, and no clock is changed", next, hour, minute)
			}
			at = next
		}
		flowing, why := Parse("*/10 * * * *")
		if why != nil {
			t.Fatal(why)
		}
		change, _ := flowing.Next(start, start, loc)
		if _, end := change.ZoneBounds(); !end.IsZero() {
			change = end.Add(-time.Hour)
		}
		for range 24 {
			next, ok := flowing.Next(change, start, loc)
			if d := next.Sub(change); !ok || d <= 0 || d > 10*time.Minute {
				t.Fatalf("after %v comes %v", change, next)
			}
			change = next
		}
	})
}

// isChange reports whether clocks go forward at that time.
func isChange(t time.Time) bool {
	start, _ := t.ZoneBounds()
	return start.Equal(t)
}

// FuzzParse: whatever is written is refused, or is due at times that go up, or never.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"*/5 * * * *", "0 0 29 2 *", "@every 90s", "@hourly", "1-5/2,7 mon * * *", "TZ=UTC", "60 * * * *", "* * * * sun-sat", "0 0 31 2,4 5"} {
		f.Add(seed, int64(1_800_000_000))
	}
	berlin, why := Zone("Europe/Berlin")
	if why != nil {
		f.Fatal(why)
	}
	f.Fuzz(func(t *testing.T, text string, unix int64) {
		e, why := Parse(text)
		if why != nil {
			if why.Code != "cron.invalid" || why.Hint == "" {
				t.Fatalf("%q is refused with %v and hint %q", text, why, why.Hint)
			}
			return
		}
		at := time.Unix(946684800+(unix&0x3fffffff), 0)
		anchor := at
		for range 5 {
			next, ok := e.Next(at, anchor, berlin)
			if !ok {
				t.Fatalf("%q is never due after %v", text, at)
			}
			if !next.After(at) {
				t.Fatalf("%q: after %v comes %v", text, at, next)
			}
			// The next time does not depend on from where before it one looks.
			if middle, _ := e.Next(at.Add(next.Sub(at)/2), anchor, berlin); !middle.Equal(next) {
				t.Fatalf("%q: after %v comes %v, but after half of that %v", text, at, next, middle)
			}
			at = next
		}
	})
}

func BenchmarkNext(b *testing.B) {
	e, why := Parse("30 2 29 2 *")
	if why != nil {
		b.Fatal(why)
	}
	at := time.Unix(1_800_000_000, 0)
	for b.Loop() {
		e.Next(at, at, time.UTC)
	}
}

package cron

import (
	"math/bits"
	"time"
)

const (
	// daysAhead that are looked through: a 29th of February that is a Sunday may be 40
	// years away, where a year in between that ends in 00 has none.
	daysAhead = 41 * 366
	// secondsOfDay is more than any zone is off.
	secondsOfDay = 86400
)

// Next gives the first time after t at which it is due, as a clock in loc shows it; ok is
// false when there is none within 41 years. anchor is what @every is counted from. It
// never goes back: a later t has the same next time or a later one.
func (e *Expression) Next(t, anchor time.Time, loc *time.Location) (next time.Time, ok bool) {
	switch {
	case e.every > 0 && t.Before(anchor):
		return anchor.Add(e.every).In(loc), true
	case e.every > 0:
		return anchor.Add((t.Sub(anchor)/e.every + 1) * e.every).In(loc), true
	case e.flows:
		return e.nextFlowing(t.In(loc))
	}
	return e.nextFixed(t.In(loc))
}

// shown is what a clock shows, as a time of UTC: there each day has 24 hours.
func shown(t time.Time) time.Time {
	_, offset := t.Zone()
	return time.Unix(t.Unix()+int64(offset), 0).UTC()
}

// nextFlowing looks at each stretch of time in which clocks are not changed.
func (e *Expression) nextFlowing(t time.Time) (time.Time, bool) {
	from, limit := shown(t), t.AddDate(0, 0, daysAhead)
	for t.Before(limit) {
		clock, ok := e.after(from)
		if !ok {
			return time.Time{}, false
		}
		_, offset := t.Zone()
		_, end := t.ZoneBounds()
		next := time.Unix(clock.Unix()-int64(offset), 0)
		if end.IsZero() || next.Before(end) {
			return next.In(t.Location()), true
		}
		t = end.In(t.Location())
		from = shown(t).Add(-time.Second) // the first second of the stretch counts, too
	}
	return time.Time{}, false
}

// nextFixed goes by what clocks show, each of it once.
func (e *Expression) nextFixed(t time.Time) (time.Time, bool) {
	for clock, ok := e.after(shown(t)); ok; clock, ok = e.after(clock) {
		if next := when(clock, t.Location()); next.After(t) {
			return next, true
		}
	}
	return time.Time{}, false
}

// when gives the first time at which clocks of loc show that; where they never do, the
// moment at which they go over it.
func when(clock time.Time, loc *time.Location) time.Time {
	u := clock.Unix()
	_, before := time.Unix(u-secondsOfDay, 0).In(loc).Zone()
	_, later := time.Unix(u+secondsOfDay, 0).In(loc).Zone()
	for _, offset := range []int{max(before, later), min(before, later)} {
		t := time.Unix(u-int64(offset), 0).In(loc)
		if _, now := t.Zone(); now == offset {
			return t
		}
	}
	start, _ := time.Unix(u-int64(before), 0).In(loc).ZoneBounds()
	return start
}

// after gives the first minute after one that fits, both as times of UTC.
func (e *Expression) after(clock time.Time) (time.Time, bool) {
	year, month, day := clock.Date()
	date := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	if e.fits(date) {
		hour, minute := clock.Hour(), clock.Minute()
		if m := from(e.minute, minute+1); e.hour&(1<<hour) != 0 && m >= 0 {
			return date.Add(time.Duration(hour)*time.Hour + time.Duration(m)*time.Minute), true
		}
		if h := from(e.hour, hour+1); h >= 0 {
			return e.first(date, h), true
		}
	}
	for range daysAhead {
		date = date.AddDate(0, 0, 1)
		if e.fits(date) {
			return e.first(date, from(e.hour, 0)), true
		}
	}
	return time.Time{}, false
}

func (e *Expression) first(date time.Time, hour int) time.Time {
	return date.Add(time.Duration(hour)*time.Hour + time.Duration(from(e.minute, 0))*time.Minute)
}

// from gives the lowest value of a set that is not below low; -1 when there is none.
func from(set uint64, low int) int {
	if set >>= low; set == 0 {
		return -1
	}
	return low + bits.TrailingZeros64(set)
}

// fits tells about a day.
func (e *Expression) fits(date time.Time) bool {
	_, month, day := date.Date()
	if e.month&(1<<month) == 0 {
		return false
	}
	d, w := e.day&(1<<day) != 0, e.weekday&(1<<date.Weekday()) != 0
	if e.anyDay || e.anyWeekday {
		return d && w
	}
	return d || w
}

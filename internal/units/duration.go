package units

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

const day = 24 * time.Hour

// durationUnits maps what people write, in lower case, to its length.
var durationUnits = map[string]time.Duration{
	"ns": time.Nanosecond, "us": time.Microsecond, "µs": time.Microsecond, "μs": time.Microsecond,
	"ms": time.Millisecond, "millisecond": time.Millisecond, "milliseconds": time.Millisecond,
	"s": time.Second, "sec": time.Second, "secs": time.Second, "second": time.Second, "seconds": time.Second,
	"m": time.Minute, "min": time.Minute, "mins": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hrs": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": day, "day": day, "days": day,
	"w": 7 * day, "week": 7 * day, "weeks": 7 * day,
}

// ParseDuration reads a duration such as 10s, 1h30m, 1.5h, 500ms, 2 days or
// "1 min 30 s". It is never negative, and a number needs a unit unless it is 0.
// Errors are of kind Invalid, code duration.invalid.
func ParseDuration(text string) (time.Duration, error) {
	if len(text) > textBytesMax {
		return 0, badDuration(text, "it is too long")
	}
	rest := strings.TrimSpace(text)
	if rest == "0" {
		return 0, nil
	}
	if rest == "" {
		return 0, badDuration(text, "it is empty")
	}
	if rest[0] == '-' {
		return 0, badDuration(text, "it is negative")
	}
	var total uint64
	for rest != "" {
		value, tail, reason := durationPart(rest)
		if reason != "" {
			return 0, badDuration(text, reason)
		}
		total += value // both are at most 2^63-1, so this can't wrap
		if total > math.MaxInt64 {
			return 0, badDuration(text, "it is too large")
		}
		rest = strings.TrimLeft(tail, " ")
	}
	return time.Duration(total), nil
}

func durationPart(text string) (value uint64, rest, reason string) {
	end := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' && r != ' ' })
	if end < 0 {
		return 0, "", "it has no unit"
	}
	unitEnd := strings.IndexFunc(text[end:], func(r rune) bool { return r >= '0' && r <= '9' || r == '.' || r == ' ' })
	if unitEnd < 0 {
		unitEnd = len(text) - end
	}
	whole, fraction, _, ok := splitNumber(text[:end])
	if !ok || strings.Trim(text[:end], "0123456789. ") != "" || strings.Contains(strings.TrimSpace(text[:end]), " ") ||
		strings.Count(text[:end], ".") > 1 {
		return 0, "", "it is not a number with a unit"
	}
	unit := text[end : end+unitEnd]
	scale, known := durationUnits[strings.ToLower(unit)]
	if !known {
		return 0, "", "the unit " + strconv.Quote(unit) + " is not known"
	}
	value, reason = scaled(whole, fraction, uint64(scale))
	if reason == "" && value > math.MaxInt64 {
		reason = "it is too large"
	}
	return value, text[end+unitEnd:], reason
}

func badDuration(text, reason string) error {
	return problem.New(problem.Invalid, "duration.invalid", "duration %q: %s", shorten(text), reason).
		WithHint("write a duration as 500ms, 10s, 1m30s, 2h or 1d")
}

// FormatDuration writes a duration without the parts that are zero: 1m, not
// 1m0s. ParseDuration reads a duration that is not negative back to the same
// value.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// HumanDuration writes an age for a table: its two largest parts at most, as in
// 3d4h, 5m10s, 12s or 340ms.
func HumanDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < time.Minute:
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	case d < time.Hour:
		return two(d, time.Minute, "m", time.Second, "s")
	case d < day:
		return two(d, time.Hour, "h", time.Minute, "m")
	}
	return two(d, day, "d", time.Hour, "h")
}

func two(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	s := strconv.FormatInt(int64(d/large), 10) + largeName
	if rest := d % large / small; rest > 0 {
		s += strconv.FormatInt(int64(rest), 10) + smallName
	}
	return s
}

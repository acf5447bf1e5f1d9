package cron

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of expressions.
const (
	// TextMax bytes of an expression: each minute, hour and day named by itself is less.
	TextMax = 512
	// EveryMin and EveryMax bound the time of @every.
	EveryMin = time.Second
	EveryMax = 366 * 24 * time.Hour
)

// Expression says when something is due. It is read-only.
type Expression struct {
	minute, hour, day, month, weekday uint64 // a bit for each value
	// anyDay and anyWeekday: that field begins with "*".
	anyDay, anyWeekday bool
	// flows: the hour begins with "*".
	flows bool
	// every is set for @every alone.
	every time.Duration
}

// field of an expression.
type field struct {
	name     string
	min, max int
	names    []string // of the values from min on
	example  string
}

var (
	months   = []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}
	weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

	fields = [5]field{
		{"minute", 0, 59, nil, "*/5"},
		{"hour", 0, 23, nil, "9-17"},
		{"day of the month", 1, 31, nil, "1,15"},
		{"month", 1, 12, months, "jan-mar"},
		{"day of the week", 0, 7, weekdays, "mon-fri"},
	}
)

// words stand for expressions.
var words = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

var wordNames = []string{"@annually", "@daily", "@every", "@hourly", "@midnight", "@monthly", "@weekly", "@yearly"}

func invalid(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "cron.invalid", format, args...)
}

const hintFields = `write five fields: minute (0-59), hour (0-23), day of the month (1-31), month (1-12), day of the week (0-7), such as "*/5 * * * *"`

// Parse reads an expression. Its errors say which field is wrong and what would be right.
func Parse(text string) (*Expression, *problem.Error) {
	if len(text) > TextMax {
		return nil, invalid("the expression has %d bytes, at most %d are read", len(text), TextMax).WithHint(hintFields)
	}
	parts := strings.Fields(text)
	if len(parts) > 0 && strings.HasPrefix(parts[0], "@") {
		return word(parts)
	}
	if len(parts) > 0 && strings.Contains(parts[0], "TZ=") {
		return nil, invalid("the expression %q names a time zone", text).WithHint("name it beside the expression, with --time-zone")
	}
	if len(parts) != len(fields) {
		return nil, invalid("the expression %q has %d fields, not 5", text, len(parts)).WithHint(hintFields)
	}
	e := &Expression{
		flows: parts[1][0] == '*', anyDay: parts[2][0] == '*', anyWeekday: parts[4][0] == '*',
	}
	for i, to := range []*uint64{&e.minute, &e.hour, &e.day, &e.month, &e.weekday} {
		set, why := fields[i].parse(parts[i])
		if why != nil {
			return nil, why
		}
		*to = set
	}
	if e.weekday&(1<<7) != 0 {
		e.weekday = e.weekday&^(1<<7) | 1
	}
	if !e.possible() {
		return nil, invalid("the day of the month %q is in no month of %q", parts[2], parts[3]).
			WithHint("the months have 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30 and 31 days; the last day of each can't be written")
	}
	return e, nil
}

// word reads what begins with "@".
func word(parts []string) (*Expression, *problem.Error) {
	name := strings.ToLower(parts[0])
	if name == "@every" && len(parts) == 2 {
		d, err := time.ParseDuration(parts[1])
		if err != nil || d < EveryMin || d > EveryMax || d%time.Second != 0 {
			return nil, invalid("the time of %q is not from %v to %v in whole seconds", "@every "+parts[1], EveryMin, EveryMax).
				WithHint(`write it with units, such as "@every 90s" or "@every 1h30m"`)
		}
		return &Expression{every: d}, nil
	}
	if text, ok := words[name]; ok && len(parts) == 1 {
		return Parse(text)
	}
	hint := "there are " + strings.Join(wordNames, ", ") + `; @every is followed by one time, as "@every 90s"`
	if near := nearest.Of(name, wordNames); near != "" && near != name {
		hint = "did you mean " + near + "?"
	}
	return nil, invalid("the word %q is not known so", strings.Join(parts, " ")).WithHint("%s", hint)
}

// possible reports whether there is a day in any of the months.
func (e *Expression) possible() bool {
	if !e.anyWeekday {
		return true // a day of the week is enough, or, beside any day, what counts
	}
	days := [...]int{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
	first := bits.TrailingZeros64(e.day)
	for m, n := range days {
		if e.month&(1<<(m+1)) != 0 && first <= n {
			return true
		}
	}
	return false
}

func (f *field) wrong(text, format string, args ...any) *problem.Error {
	return invalid("the %s %q is wrong: %s", f.name, text, fmt.Sprintf(format, args...)).
		WithHint("it is a number from %d to %d, a range a-b, */n or a-b/n for each n-th, or several of these with commas, such as %s", f.min, f.max, f.example)
}

// parse reads a list of ranges.
func (f *field) parse(text string) (uint64, *problem.Error) {
	var set uint64
	for part := range strings.SplitSeq(text, ",") {
		one, why := f.part(text, part)
		if why != nil {
			return 0, why
		}
		set |= one
	}
	return set, nil
}

func (f *field) part(text, part string) (uint64, *problem.Error) {
	span, stepText, stepped := strings.Cut(part, "/")
	lowText, highText, ranged := strings.Cut(span, "-")
	step := 1
	if stepped {
		n, ok := number(stepText)
		if !ok || n < 1 || n > f.max {
			return 0, f.wrong(text, "the step %q is not a number from 1 to %d", stepText, f.max)
		}
		step = n
	}
	low, high := f.min, f.max
	switch {
	case part == "":
		return 0, f.wrong(text, "there is nothing between two commas, or beside one")
	case span == "*":
		if f.max == 7 {
			high = 6
		}
	default:
		var why *problem.Error
		if low, why = f.value(text, lowText); why != nil {
			return 0, why
		}
		if high = low; ranged {
			if high, why = f.value(text, highText); why != nil {
				return 0, why
			}
		}
		if high < low {
			return 0, f.wrong(text, "the range %s ends before it begins", span)
		}
		if stepped && !ranged {
			return 0, f.wrong(text, "only a range has steps; write %s-%d/%s", span, f.max, stepText)
		}
	}
	var set uint64
	for v := low; v <= high; v += step {
		set |= 1 << v
	}
	return set, nil
}

// value reads one number or name.
func (f *field) value(text, word string) (int, *problem.Error) {
	if i := slices.Index(f.names, strings.ToLower(word)); i >= 0 {
		return f.min + i, nil
	}
	v, ok := number(word)
	switch {
	case ok && v >= f.min && v <= f.max:
		return v, nil
	case ok:
		return 0, f.wrong(text, "%s is not from %d to %d", word, f.min, f.max)
	}
	if near := nearest.Of(strings.ToLower(word), f.names); near != "" {
		return 0, f.wrong(text, "%q is no number or name; did you mean %s?", word, near)
	}
	return 0, f.wrong(text, "%q is no number or name", word)
}

// number reads at most two digits.
func number(text string) (int, bool) {
	if len(text) < 1 || len(text) > 2 || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	return n, err == nil
}

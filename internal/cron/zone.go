package cron

import (
	"regexp"
	"sync"
	"time"
	_ "time/tzdata" // zones are known on hosts without a database of them, too

	"github.com/blixard/blixard/internal/problem"
)

// zonePattern of names in the database of zones.
var zonePattern = regexp.MustCompile(`^[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}$`)

// zones that were found: to read one takes far longer than to use it. There are some 600.
var zones sync.Map

// Zone finds a time zone by its name in the IANA's database; the empty name is UTC.
func Zone(name string) (*time.Location, *problem.Error) {
	if name == "" {
		return time.UTC, nil
	}
	unknown := problem.New(problem.Invalid, "time_zone.unknown", "there is no time zone %q", name).
		WithHint("name one of the IANA's, such as UTC, Europe/Berlin or America/New_York; capitals count")
	if !zonePattern.MatchString(name) || name == "Local" {
		return nil, unknown
	}
	if loc, ok := zones.Load(name); ok {
		return loc.(*time.Location), nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, unknown
	}
	zones.Store(name, loc)
	return loc, nil
}

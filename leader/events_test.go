package leader

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// eventful is a view with one old event.
type eventful struct {
	level  uint32
	keep   time.Duration
	oldest time.Time
	asked  time.Time
}

func (e *eventful) FeatureLevel() uint32 { return e.level }

func (e *eventful) Settings() *blixardv1.Settings {
	return &blixardv1.Settings{EventsKeep: durationpb.New(e.keep)}
}

func (e *eventful) OldestEvent() *blixardv1.Event {
	if e.oldest.IsZero() {
		return nil
	}
	return &blixardv1.Event{Time: timestamppb.New(e.oldest)}
}

func (e *eventful) EventsThrough(before time.Time) uint64 {
	e.asked = before
	return 7
}

// TestPruneEvents: events are forgotten when they are older than they may become, many at
// once, and never where a member does not know how.
func TestPruneEvents(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tc := range []struct {
		name  string
		view  eventful
		wants bool
	}{
		{"none", eventful{level: state.FeatureLevel, keep: time.Hour}, false},
		{"young", eventful{level: state.FeatureLevel, keep: time.Hour, oldest: now.Add(-time.Hour)}, false},
		{"hardly too old", eventful{level: state.FeatureLevel, keep: 64 * time.Minute, oldest: now.Add(-65 * time.Minute)}, false},
		{"too old", eventful{level: state.FeatureLevel, keep: 64 * time.Minute, oldest: now.Add(-66 * time.Minute)}, true},
		{"kept for ever", eventful{level: state.FeatureLevel, oldest: now.Add(-1000 * time.Hour)}, false},
		{"an older member", eventful{level: pruneLevel - 1, keep: time.Hour, oldest: now.Add(-2 * time.Hour)}, false},
		{"of a clock that was ahead", eventful{level: state.FeatureLevel, keep: time.Hour, oldest: now.Add(time.Hour)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmds := PruneEvents(&tc.view, now)
			if (len(cmds) > 0) != tc.wants {
				t.Fatalf("%v", cmds)
			}
			if tc.wants && (cmds[0].GetPruneEvents().GetThroughIndex() != 7 || !tc.view.asked.Equal(now.Add(-tc.view.keep))) {
				t.Errorf("%v of %v", cmds, tc.view.asked)
			}
		})
	}
}

package leader

import (
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// pruneSlack is the part of the age at which events are forgotten that they may be older: so
// one command forgets many, and there are at most 64 in that time.
const pruneSlack = 64

// Eventful is a view that knows of events.
type Eventful interface {
	FeatureLevel() uint32
	Settings() *blixardv1.Settings
	OldestEvent() *blixardv1.Event
	EventsThrough(before time.Time) uint64
}

// pruneLevel is the feature level of PruneEventsCommand.
var pruneLevel = state.Level(&blixardv1.Command{Change: &blixardv1.Command_PruneEvents{PruneEvents: &blixardv1.PruneEventsCommand{}}})

// PruneEvents gives the command that forgets events which are older than the settings let
// them become. now is of the wall clock.
func PruneEvents(view Eventful, now time.Time) []*blixardv1.Command {
	oldest := view.OldestEvent()
	if oldest == nil {
		return nil
	}
	keep := view.Settings().GetEventsKeep().AsDuration()
	if keep <= 0 || now.Sub(oldest.GetTime().AsTime()) <= keep+keep/pruneSlack || view.FeatureLevel() < pruneLevel {
		return nil
	}
	return []*blixardv1.Command{{Change: &blixardv1.Command_PruneEvents{PruneEvents: &blixardv1.PruneEventsCommand{
		ThroughIndex: view.EventsThrough(now.Add(-keep)),
	}}}}
}

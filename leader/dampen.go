package leader

import (
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// A node is damped when it was lost flapsMin times within flapWindow, until it was not
// lost for steadyAfter.
const (
	flapsMin    = 3
	flapWindow  = time.Hour
	steadyAfter = 15 * time.Minute
)

// Dampen gives the commands that keep VMs from nodes which come and go, and end that. now
// is of the clock that commands have.
func Dampen(view View, now time.Time) []*blixardv1.Command {
	if view.FeatureLevel() < dampenLevel {
		return nil
	}
	var out []*blixardv1.Command
	for _, n := range view.Nodes() {
		if want := flaps(n, now); want != n.GetDamped() {
			out = append(out, &blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: n.GetId(), Damped: proto.Bool(want)}}})
		}
	}
	return out
}

func flaps(n *blixardv1.Node, now time.Time) bool {
	downs := n.GetDowns()
	if len(downs) < flapsMin {
		return false
	}
	newest := downs[len(downs)-1].AsTime()
	lately := 0
	for _, d := range downs {
		if newest.Sub(d.AsTime()) < flapWindow {
			lately++
		}
	}
	return lately >= flapsMin && now.Sub(newest) < steadyAfter
}

// dampenLevel is the feature level of the command.
var dampenLevel = state.Level(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Damped: proto.Bool(true)}}})

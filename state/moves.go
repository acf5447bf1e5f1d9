package state

import blixardv1 "github.com/blixard/blixard/api/blixard/v1"

type moveSet uint16

func to(states ...blixardv1.AllocationState_Enum) moveSet {
	var m moveSet
	for _, s := range states {
		m |= 1 << s
	}
	return m
}

const (
	stPending   = blixardv1.AllocationState_pending
	stPreparing = blixardv1.AllocationState_preparing
	stStarting  = blixardv1.AllocationState_starting
	stRunning   = blixardv1.AllocationState_running
	stStopping  = blixardv1.AllocationState_stopping
	stStopped   = blixardv1.AllocationState_stopped
	stFailed    = blixardv1.AllocationState_failed
	stLost      = blixardv1.AllocationState_lost
	stUnknown   = blixardv1.AllocationState_unknown
)

// moves is the table of legal moves of an observed allocation.
//
// A life of a VM goes pending, preparing, starting, running, stopping, and ends
// in stopped or failed; another life begins with preparing or starting. Reports
// say the newest state, so steps of a life may be left out going forward, and a
// guest's reboot goes from running back to starting. What may not be left out is
// the end of a life, because it carries the exit code: running never goes back
// to preparing, and stopping goes nowhere but to an end; only a report of a later
// start may, when the daemon that knew the end was lost. Nothing returns to
// pending. unknown is said of nodes that are not heard of; a node that is heard of
// again may say anything but pending. lost is said by the cluster alone, and stays.
var moves = [...]moveSet{
	stPending:   to(stPending, stPreparing, stStarting, stRunning, stStopping, stStopped, stFailed, stUnknown),
	stPreparing: to(stPreparing, stStarting, stRunning, stStopping, stStopped, stFailed, stUnknown),
	stStarting:  to(stStarting, stRunning, stStopping, stStopped, stFailed, stUnknown),
	stRunning:   to(stStarting, stRunning, stStopping, stStopped, stFailed, stUnknown),
	stStopping:  to(stStopping, stStopped, stFailed, stUnknown),
	stStopped:   to(stPreparing, stStarting, stRunning, stStopping, stStopped, stFailed, stUnknown),
	stFailed:    to(stPreparing, stStarting, stRunning, stStopping, stStopped, stFailed, stUnknown),
	stLost:      0,
	stUnknown:   to(stPreparing, stStarting, stRunning, stStopping, stStopped, stFailed, stUnknown),
}

// LegalMove reports whether an allocation may be observed in state next after
// it was observed in state now.
func LegalMove(now, next blixardv1.AllocationState_Enum) bool {
	if now < 0 || int(now) >= len(moves) || next < 0 || int(next) >= len(moves) {
		return false
	}
	return moves[now]&(1<<next) != 0
}

// Ended reports whether a life of the VM ended in that state.
func Ended(s blixardv1.AllocationState_Enum) bool { return s == stStopped || s == stFailed }

package agent

import (
	"fmt"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// ActionKind names what the executor shall do.
type ActionKind string

// The actions. Each is idempotent: it may have been carried out before a crash.
const (
	// ActionPrepare makes the allocation's directory and writable disk.
	ActionPrepare ActionKind = "prepare"
	// ActionStart starts a VMM process.
	ActionStart ActionKind = "start"
	// ActionAdopt joins a VMM process that already runs.
	ActionAdopt ActionKind = "adopt"
	// ActionStop goes down the stop ladder until the process has ended.
	ActionStop ActionKind = "stop"
	// ActionKill ends the process at once.
	ActionKill ActionKind = "kill"
	// ActionForget drops the supervisor's memory of an ended process.
	ActionForget ActionKind = "forget"
	// ActionRemove deletes the allocation's directory.
	ActionRemove ActionKind = "remove"
	// ActionPause stops the virtual processors, ActionResume lets them go on.
	ActionPause  ActionKind = "pause"
	ActionResume ActionKind = "resume"
	// ActionCancel interrupts the running stop so that a stronger one follows, or the
	// preparing of what is not wanted any more.
	ActionCancel ActionKind = "cancel"
)

// Action is one step for one allocation. Record is durable before the step
// begins, and is the executor's to read, not to change.
type Action struct {
	Kind   ActionKind
	Record *blixardv1.AllocationRecord
	// Timeout bounds a stop; Force makes it a kill.
	Timeout time.Duration
	Force   bool
}

// String gives the line that scenario files show.
func (a Action) String() string {
	s := fmt.Sprintf("%s %s", a.Kind, a.Record.GetAllocation().GetId())
	switch a.Kind {
	case ActionStart:
		s += fmt.Sprintf(" boot=%d", a.Record.GetBoots())
	case ActionStop:
		s += fmt.Sprintf(" timeout=%v force=%v", a.Timeout, a.Force)
	}
	return s
}

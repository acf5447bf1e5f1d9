package agent

import (
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// desiredOf gives what shall become of the instance: an allocation that a synced
// cluster does not have shall go.
func (c *Core) desiredOf(i *instance) blixardv1.DesiredAllocation_Enum {
	if i.alloc != nil {
		return i.alloc.GetDesired()
	}
	if c.synced {
		return blixardv1.DesiredAllocation_remove
	}
	return blixardv1.DesiredAllocation_unspecified
}

// decide gives the next step of one instance, if one is due.
func (c *Core) decide(i *instance, now time.Time) (Action, bool) {
	want := c.desiredOf(i)
	if i.busy != "" {
		return c.decideBusy(i, want)
	}
	if i.retryAt.After(now) {
		c.wakeAt(i, i.retryAt)
		return Action{}, false
	}
	if i.rec == nil {
		return c.decideAbsent(i, want)
	}
	if i.alloc != nil {
		c.takeSpec(i)
	}
	switch i.process {
	case processRunning:
		return c.decideRunning(i, want, now)
	case processExited:
		c.classifyExit(i, now)
		return Action{Kind: ActionForget, Record: i.rec}, true
	}
	if inFlight(i.rec.GetStatus().GetState()) {
		c.classifyLoss(i, now)
	}
	return c.decideIdle(i, want, now)
}

// decideBusy lets a running step end, but makes way for a forced stop.
func (c *Core) decideBusy(i *instance, want blixardv1.DesiredAllocation_Enum) (Action, bool) {
	if i.canceled || want == blixardv1.DesiredAllocation_run || want == blixardv1.DesiredAllocation_unspecified {
		return Action{}, false
	}
	if i.busy == ActionStop && !i.busyForce && i.alloc.GetForceStop() ||
		i.busy == ActionPrepare && i.rec.GetStatus().GetState() == blixardv1.AllocationState_preparing {
		return Action{Kind: ActionCancel, Record: i.rec}, true
	}
	return Action{}, false
}

// decideAbsent handles an allocation of which nothing is on this node.
func (c *Core) decideAbsent(i *instance, want blixardv1.DesiredAllocation_Enum) (Action, bool) {
	switch {
	case want == blixardv1.DesiredAllocation_remove:
		c.removed(i)
		return Action{}, false
	case i.alloc == nil || want == blixardv1.DesiredAllocation_unspecified:
		return Action{}, false
	}
	a := i.alloc
	i.rec = &blixardv1.AllocationRecord{
		Format:     recordFormat,
		Allocation: a,
		Uid:        c.freeUID(),
		Status: &blixardv1.VMStatus{
			AllocationId: a.GetId(), Epoch: a.GetEpoch(), Node: a.GetStatus().GetNode(),
			ObservedGeneration: a.GetGeneration(), Accelerator: c.accelerator,
		},
	}
	if want == blixardv1.DesiredAllocation_stop {
		c.update(i, func(r *blixardv1.AllocationRecord) {
			r.Status.StartCount = a.GetStartCount()
			move(r.Status, blixardv1.AllocationState_stopped, "stopped", "it was never started")
		})
		return Action{Kind: ActionPrepare, Record: i.rec}, true
	}
	c.update(i, func(r *blixardv1.AllocationRecord) {
		move(r.Status, blixardv1.AllocationState_preparing, "preparing", "making its disk")
	})
	return Action{Kind: ActionPrepare, Record: i.rec}, true
}

// takeSpec keeps the newest allocation in the record. What can't change while the VM
// runs takes effect at the next start, and the status names it.
func (c *Core) takeSpec(i *instance) {
	if i.rec.GetAllocation().GetModifyIndex() == i.alloc.GetModifyIndex() {
		return
	}
	c.update(i, func(r *blixardv1.AllocationRecord) {
		s := r.Status
		if i.process == processRunning && i.alloc.GetGeneration() > s.GetObservedGeneration() {
			s.RestartNeeded = merge(s.RestartNeeded, fixedChanges(r.GetAllocation().GetSpec(), i.alloc.GetSpec()))
			if len(s.RestartNeeded) == 0 {
				s.ObservedGeneration = i.alloc.GetGeneration()
			}
		}
		r.Allocation = i.alloc
	})
}

// merge gives the sorted union.
func merge(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// live are the fields of a spec that a running VM takes over.
var live = map[protoreflect.Name]bool{
	"desired": true, "restart": true, "on_node_loss": true, "remove_on_exit": true, "ports": true, "health": true, "paused": true,
}

// fixedChanges names the fields of a spec that differ and can't change while the VM
// runs.
func fixedChanges(old, next *blixardv1.VMSpec) []string {
	var names []string
	a, b := old.ProtoReflect(), next.ProtoReflect()
	fields := b.Descriptor().Fields()
	for k := range fields.Len() {
		f := fields.Get(k)
		if !live[f.Name()] && !a.Get(f).Equal(b.Get(f)) {
			names = append(names, string(f.Name()))
		}
	}
	return names
}

// Users of VMs on this node: above all that distributions and containers give out
// (systemd, Users, Groups, UIDs and GIDs: up to 1879048191 and 65,536 times that many
// are for containers), and within 31 bits, which some programs need.
const (
	uidFirst = 1_900_000_000
	uidMax   = 65536
)

// freeUID gives the least user that no VM of this node has. 0 when there is none,
// which no start takes.
func (c *Core) freeUID() uint32 {
	for ; c.uidNext < uidFirst+uidMax; c.uidNext++ {
		if uid := c.uidNext; c.uids[uid] == 0 {
			c.uids[uid]++
			return uid
		}
	}
	return 0
}

// decideRunning handles an instance whose VMM process runs.
func (c *Core) decideRunning(i *instance, want blixardv1.DesiredAllocation_Enum, now time.Time) (Action, bool) {
	startAgain := i.rec.GetStatus().GetStartCount() < i.alloc.GetStartCount()
	if i.adoptFailures >= adoptTries {
		i.hung = true
	} else if !i.adopted {
		return Action{Kind: ActionAdopt, Record: i.rec}, true
	}
	switch {
	case want == blixardv1.DesiredAllocation_stop, want == blixardv1.DesiredAllocation_remove,
		want == blixardv1.DesiredAllocation_run && startAgain:
		return c.stop(i)
	case i.rec.GetStopping():
		// A stop that a crash of the daemon interrupted is finished.
		return c.stop(i)
	}
	if i.unhealthy != "" && !i.hung {
		return c.endUnhealthy(i)
	}
	if paused := i.alloc.GetSpec().GetPaused(); want == blixardv1.DesiredAllocation_run && paused != i.rec.GetStatus().GetPaused() &&
		i.rec.GetStatus().GetState() == blixardv1.AllocationState_running {
		kind := ActionResume
		if paused {
			kind = ActionPause
		}
		return Action{Kind: kind, Record: i.rec}, true
	}
	deadline, reason := c.runDeadline(i, now)
	if deadline.IsZero() {
		return Action{}, false
	}
	if now.Before(deadline) {
		c.wakeAt(i, deadline)
		return Action{}, false
	}
	c.update(i, func(r *blixardv1.AllocationRecord) {
		r.Status.Reason = reason
		r.Status.Message = "the hypervisor is killed, since it or its guest did not act in time"
	})
	return Action{Kind: ActionKill, Record: i.rec}, true
}

// runDeadline gives the time by which a running instance must have moved on.
func (c *Core) runDeadline(i *instance, now time.Time) (time.Time, string) {
	switch {
	case i.hung:
		return now, "vmm_hung"
	case !i.goodbyeAt.IsZero():
		return i.goodbyeAt.Add(exitGrace), "exit_timeout"
	case i.rec.GetStatus().GetState() == blixardv1.AllocationState_starting:
		return i.startedAt.Add(c.limits.ReadyTimeout), "boot_timeout"
	}
	return time.Time{}, ""
}

// reasonUnhealthy of a VM that is stopped to be restarted.
const reasonUnhealthy = "unhealthy"

// endUnhealthy stops a VM whose check failed; what follows is its policy's choice.
func (c *Core) endUnhealthy(i *instance) (Action, bool) {
	c.update(i, func(r *blixardv1.AllocationRecord) {
		r.Status.Reason = reasonUnhealthy
		r.Status.Message = "its check failed: " + i.unhealthy
	})
	return Action{Kind: ActionStop, Record: i.rec, Timeout: defaultStopTimeout}, true
}

func (c *Core) stop(i *instance) (Action, bool) {
	timeout := defaultStopTimeout
	if t := i.alloc.GetStopTimeout(); t != nil {
		timeout = t.AsDuration()
	}
	force := i.alloc.GetForceStop()
	c.update(i, func(r *blixardv1.AllocationRecord) {
		r.Stopping = true
		if r.Status.State != blixardv1.AllocationState_stopping {
			move(r.Status, blixardv1.AllocationState_stopping, "stopping", "it is being stopped")
		}
	})
	return Action{Kind: ActionStop, Record: i.rec, Timeout: timeout, Force: force}, true
}

func inFlight(s blixardv1.AllocationState_Enum) bool {
	return s == blixardv1.AllocationState_starting || s == blixardv1.AllocationState_running ||
		s == blixardv1.AllocationState_stopping
}

// decideIdle handles an instance without a VMM process whose end, if it had one,
// is in the record.
func (c *Core) decideIdle(i *instance, want blixardv1.DesiredAllocation_Enum, now time.Time) (Action, bool) {
	st := i.rec.GetStatus()
	switch want {
	case blixardv1.DesiredAllocation_remove:
		return Action{Kind: ActionRemove, Record: i.rec}, true
	case blixardv1.DesiredAllocation_stop:
		if st.GetNextStartAt() != nil || !terminal(st.GetState()) || st.GetStartCount() < i.alloc.GetStartCount() {
			c.update(i, func(r *blixardv1.AllocationRecord) {
				r.Status.NextStartAt = nil
				r.Status.StartCount = i.alloc.GetStartCount()
				if !terminal(r.Status.State) {
					move(r.Status, blixardv1.AllocationState_stopped, "stopped", "it was stopped")
				}
			})
			return Action{Kind: ActionPrepare, Record: i.rec}, true // keeps the record
		}
		return Action{}, false
	case blixardv1.DesiredAllocation_run:
	default:
		return Action{}, false
	}
	asked := st.GetStartCount() < i.alloc.GetStartCount()
	switch {
	case asked, st.GetState() == blixardv1.AllocationState_preparing:
		return c.start(i, asked, now)
	case st.GetNextStartAt() != nil:
		if at := st.GetNextStartAt().AsTime(); at.After(now) {
			c.wakeAt(i, at)
			return Action{}, false
		}
		return c.start(i, false, now)
	}
	return Action{}, false
}

func terminal(s blixardv1.AllocationState_Enum) bool {
	return s == blixardv1.AllocationState_stopped || s == blixardv1.AllocationState_failed
}

// reasonQueued of a VM that waits until fewer others boot: a node that boots too many at
// once makes all of them late, and late ones count as hung and are begun again.
const reasonQueued = "boot_queue"

// start announces a new boot in the record; asked is a person's wish, which
// clears the history of failures.
func (c *Core) start(i *instance, asked bool, now time.Time) (Action, bool) {
	if c.room <= 0 {
		if st := i.rec.GetStatus(); st.GetState() == blixardv1.AllocationState_preparing && st.GetReason() != reasonQueued {
			c.update(i, func(r *blixardv1.AllocationRecord) {
				r.Status.Reason, r.Status.Message = reasonQueued, "it boots when fewer VMs of the node do"
			})
		}
		c.queue.put(i)
		return Action{}, false // the next to be ready, or to fail, makes room
	}
	c.room--
	i.goodbyeAt, i.rung = time.Time{}, ""
	c.update(i, func(r *blixardv1.AllocationRecord) {
		r.Boots++
		r.Stopping, r.GuestExit, r.Channel = false, nil, c.newChannel()
		s := r.Status
		if asked || s.StartCount == 0 {
			r.RestartTimes, r.FailedBoots = nil, 0
		} else {
			s.Restarts++
		}
		s.StartCount = i.alloc.GetStartCount()
		s.ObservedGeneration = i.alloc.GetGeneration()
		s.NextStartAt, s.ExitCode, s.ReadyAt, s.FinishedAt = nil, nil, nil, nil
		s.BootId, s.StopRung, s.ReadyMs = "", "", 0
		s.StartedAt = timestamppb.New(now)
		s.Kernel, s.KernelRelease = "", ""
		s.Paused, s.RestartNeeded, s.Health, s.HealthMessage = false, nil, blixardv1.Health_unspecified, ""
		if r.GetAllocation().GetSpec().GetHealth() != nil {
			s.Health = blixardv1.Health_starting
		}
		if r.Uid == 0 { // of an older version
			r.Uid = c.freeUID()
		}
		if r.GetImage() == nil {
			move(s, blixardv1.AllocationState_starting, "starting", "its image and disks are prepared")
		} else {
			move(s, blixardv1.AllocationState_starting, "starting", "the hypervisor is starting")
		}
	})
	return Action{Kind: ActionStart, Record: i.rec}, true
}

// startFailed decides what a failed preparation or start means: bad input fails
// the allocation, a host's trouble is tried again with the count of boots.
func (c *Core) startFailed(i *instance, err error, now time.Time) {
	c.update(i, func(r *blixardv1.AllocationRecord) {
		r.FailedBoots++
		final := problem.Is(err, problem.Invalid) || problem.Is(err, problem.NotFound) || problem.Is(err, problem.Fenced)
		if final || r.FailedBoots >= c.limits.BootTries {
			c.fail(r, codeOf(err), messageOf(err), now)
			return
		}
		c.again(r, codeOf(err), messageOf(err), now.Add(backoff(r.Allocation.GetSpec().GetRestart(), int(r.FailedBoots))))
	})
}

func (c *Core) fail(r *blixardv1.AllocationRecord, reason, message string, now time.Time) {
	r.Status.NextStartAt = nil
	r.Status.FinishedAt = timestamppb.New(now)
	move(r.Status, blixardv1.AllocationState_failed, reason, "%s", message)
}

// again schedules the next start.
func (c *Core) again(r *blixardv1.AllocationRecord, reason, message string, at time.Time) {
	if r.GetAllocation().GetOnce() && r.GetBoots() > 0 {
		c.fail(r, reason, message+"; its command may have begun, and is begun once only", at)
		return
	}
	r.Status.NextStartAt = timestamppb.New(at)
	state := blixardv1.AllocationState_failed
	if reason == "guest_reboot" || reason == "start_interrupted" {
		state = blixardv1.AllocationState_stopped
	}
	move(r.Status, state, reason, "%s", message)
}

func codeOf(err error) string {
	if p := problem.From(err); p != nil {
		return p.Code
	}
	return ""
}

func messageOf(err error) string {
	var p *problem.Error
	if errors.As(err, &p) && p.Hint != "" {
		return err.Error() + " (" + p.Hint + ")"
	}
	return err.Error()
}

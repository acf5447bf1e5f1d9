package agent

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/planted"
)

// Limits of the core; the zero value of a field takes the default.
type Limits struct {
	// ReadyTimeout from the start of the VMM to the guest's ready.
	ReadyTimeout time.Duration
	// BootTries in a row without ready, after which the allocation has failed.
	BootTries uint32
	// Boots at once, from the start of the VMM to the guest's ready.
	Boots int
}

// recordFormat is the version of the AllocationRecord on disk.
const recordFormat = 1

// Defaults and fixed limits.
const (
	defaultReadyTimeout = 60 * time.Second
	defaultBootTries    = 3
	defaultBoots        = 64
	// defaultStopTimeout of the whole ladder.
	defaultStopTimeout = 10 * time.Second
	// restartWindow in which RestartPolicy.max_restarts counts.
	restartWindow = 10 * time.Minute
	// defaultMaxRestarts when the policy says none.
	defaultMaxRestarts = 5
	defaultBackoff     = time.Second
	maxBackoff         = 5 * time.Minute
	// exitGrace is how long a guest that said goodbye may take to end its VMM.
	exitGrace = 10 * time.Second
	// adoptTries before a VMM that does not let itself be adopted counts as hung.
	adoptTries = 3
	// actionRetry after an action failed for a reason of the host.
	actionRetry = 2 * time.Second
	// rebootSpacing is the least time between two starts for guest reboots, so
	// that a guest that reboots at once can't keep the node busy.
	rebootSpacing = time.Second
)

// processState is what is known of the VMM process of the newest boot.
type processState int

const (
	processNone processState = iota
	processRunning
	processExited
)

// instance is one allocation on this node.
type instance struct {
	id string
	// alloc is the newest the cluster said; nil once the cluster has none.
	alloc *blixardv1.Allocation
	// rec is the journal; nil while nothing of it is on this node.
	rec     *blixardv1.AllocationRecord
	process processState
	exit    driver.Exit
	// adopted is whether the executor follows the running process.
	adopted bool
	// adoptFailures in a row: a VMM that can't be joined is ended in the end.
	adoptFailures int
	// startedAt of the process and goodbyeAt of the guest, for the deadlines.
	startedAt time.Time
	goodbyeAt time.Time

	busy      ActionKind
	busyForce bool
	canceled  bool
	retryAt   time.Time
	// kernel is the name of the one that the process booted.
	kernel string
	// rung of the newest stop ladder.
	rung string
	// hung is set when the VMM does not answer.
	hung bool
	// unhealthy is why the VM shall be restarted: what its check said.
	unhealthy string

	// touched instances are looked at by the next poll, looked ones by this.
	touched, looked bool
	// counted is whether it is one of the core's booting.
	counted bool
	// wake is when it is to be looked at by the clock alone; zero for never.
	wake time.Time
	// timed and queued are its places in the core's heaps, 0 for none.
	timed, queued int
}

// Core decides what the node does. It is not safe for concurrent use.
type Core struct {
	limits    Limits
	instances map[string]*instance
	// synced is set once the cluster's whole list was seen: only then does the
	// absence of an allocation mean that it shall go.
	synced bool
	// accelerator is written into statuses.
	accelerator string
	// newChannel draws the secret of a boot's guest channel.
	newChannel func() []byte
	reports    []*blixardv1.AllocationReport
	dirty      map[string]bool
	// touched are those of which something changed since they were looked at, timers those
	// that wait for a time and queue those that wait until fewer boot. Nothing is to be done
	// for the others: a node may have thousands.
	touched       []*instance
	timers, queue ordered
	// booting VMs; room for more is what is left of them for this poll.
	booting, room int
	// uids counts who has which user; none below uidNext is free.
	uids    map[uint32]int
	uidNext uint32
}

// NewCore makes a core with nothing known. newChannel draws 16 random bytes.
func NewCore(limits Limits, accelerator string, newChannel func() []byte) *Core {
	if limits.ReadyTimeout <= 0 {
		limits.ReadyTimeout = defaultReadyTimeout
	}
	if limits.BootTries == 0 {
		limits.BootTries = defaultBootTries
	}
	if limits.Boots <= 0 {
		limits.Boots = defaultBoots
	}
	return &Core{
		limits: limits, instances: map[string]*instance{}, accelerator: accelerator,
		newChannel: newChannel, dirty: map[string]bool{},
		timers: ordered{less: wakesBefore, place: func(i *instance) *int { return &i.timed }},
		queue:  ordered{less: (*instance).before, place: func(i *instance) *int { return &i.queued }},
		uids:   map[uint32]int{}, uidNext: uidFirst,
	}
}

// ProcessID names the VMM process of the record's newest boot.
func ProcessID(rec *blixardv1.AllocationRecord) string {
	return fmt.Sprintf("%s.%d", rec.GetAllocation().GetId(), rec.GetBoots())
}

// LaneOf gives the supervisor that owns the VMs of that spec.
func LaneOf(spec *blixardv1.VMSpec) driver.Lane {
	if spec.GetOnNodeLoss() == blixardv1.NodeLossPolicy_failover {
		return driver.LaneExclusive
	}
	return driver.LaneShared
}

func (c *Core) get(id string) *instance {
	i := c.instances[id]
	if i == nil {
		i = &instance{id: id}
		c.instances[id] = i
	}
	return i
}

// Recover tells of an allocation found on this node at the agent's start: its
// journal, and the process of its newest boot if the supervisor knows one.
func (c *Core) Recover(rec *blixardv1.AllocationRecord, p *blixardv1.SupervisedProcess) {
	i := c.get(rec.GetAllocation().GetId())
	c.touch(i)
	i.rec = rec
	c.uids[rec.GetUid()]++
	i.process = processNone
	if p == nil || planted.Is(planted.StartsInsteadAdopt) {
		return
	}
	i.startedAt = p.GetStartedAt().AsTime()
	if p.GetExited() {
		i.process, i.exit = processExited, exitOf(p.GetExit())
		return
	}
	i.process = processRunning
}

func exitOf(e *blixardv1.ProcessExit) driver.Exit {
	return driver.Exit{Code: int(e.GetCode()), Signal: int(e.GetSignal()), At: e.GetAt().AsTime(), Stderr: e.GetStderr()}
}

// SetAllocation tells what the cluster desires of one allocation.
func (c *Core) SetAllocation(a *blixardv1.Allocation) {
	i := c.get(a.GetId())
	if i.alloc != nil && i.alloc.GetModifyIndex() > a.GetModifyIndex() {
		return // a late message
	}
	i.alloc = a
	c.touch(i)
	// The cluster had given the node up and has heard of it again.
	if a.GetStatus().GetState() == blixardv1.AllocationState_unknown && i.rec != nil {
		c.report(i.rec)
	}
}

// DropAllocation tells that the cluster has no such allocation any more.
func (c *Core) DropAllocation(id string) {
	if i := c.instances[id]; i != nil {
		i.alloc = nil
		c.touch(i)
		if i.rec == nil && i.busy == "" {
			c.leave(i)
		}
	}
}

// Synced tells that every allocation of the cluster was named by SetAllocation.
func (c *Core) Synced() {
	c.synced = true
	for _, i := range c.instances {
		c.touch(i)
	}
}

// Resync ends a listing: allocations that it did not name are gone. ids are those
// named. Where the cluster says something else than the record it is told again: a
// status that was kept before a crash may never have been reported.
func (c *Core) Resync(ids map[string]bool) {
	for _, id := range slices.Sorted(maps.Keys(c.instances)) {
		i := c.instances[id]
		if !ids[id] {
			i.alloc = nil
			c.touch(i)
		} else if i.rec != nil && !tells(i.alloc, i.rec) && !planted.Is(planted.KeptIsNotTold) {
			c.report(i.rec)
		}
	}
	c.Synced()
}

// tells whether the cluster's status of an allocation is that of the record; the name
// of the node is the cluster's own.
func tells(a *blixardv1.Allocation, r *blixardv1.AllocationRecord) bool {
	if a.GetStatus() == nil {
		return false
	}
	known := proto.CloneOf(a.GetStatus())
	known.Node = r.GetStatus().GetNode()
	return proto.Equal(known, r.GetStatus())
}

// ReadyInfo is what the guest says when its command has started.
type ReadyInfo struct {
	BootID        string
	KernelRelease string
}

// GuestReady tells that the guest of boot number boots is up.
func (c *Core) GuestReady(id string, boots uint64, info ReadyInfo, now time.Time) {
	i := c.instances[id]
	if i == nil || i.rec.GetBoots() != boots || i.process != processRunning {
		return
	}
	st := i.rec.GetStatus()
	if st.GetState() == blixardv1.AllocationState_running && st.GetBootId() == info.BootID {
		return
	}
	c.update(i, func(r *blixardv1.AllocationRecord) {
		r.FailedBoots = 0
		s := r.Status
		s.BootId, s.Kernel, s.KernelRelease = info.BootID, i.kernel, info.KernelRelease
		s.ReadyAt = timestamppb.New(now)
		if !i.startedAt.IsZero() {
			s.ReadyMs = uint32(max(0, now.Sub(i.startedAt).Milliseconds()))
		}
		if s.State == blixardv1.AllocationState_starting {
			move(s, blixardv1.AllocationState_running, "ready", "the guest is ready")
		}
	})
}

// GuestExited tells what the guest said of its end, before its VMM ends.
func (c *Core) GuestExited(id string, boots uint64, exit *blixardv1.GuestExit, now time.Time) {
	i := c.instances[id]
	if i == nil || i.rec.GetBoots() != boots || i.process == processNone {
		return
	}
	c.touch(i)
	if i.goodbyeAt.IsZero() {
		i.goodbyeAt = now
	}
	if i.rec.GetGuestExit() != nil {
		return
	}
	c.update(i, func(r *blixardv1.AllocationRecord) { r.GuestExit = exit })
}

// Preparing tells what the preparing of an allocation is about, for people.
func (c *Core) Preparing(id, text string) {
	i := c.instances[id]
	if i == nil || i.busy != ActionPrepare && i.busy != ActionStart || i.rec.GetStatus().GetMessage() == text {
		return
	}
	c.update(i, func(r *blixardv1.AllocationRecord) { r.Status.Message = text })
}

// Health tells what the check of boot number boots found. A VM that became unhealthy
// is restarted by its policy, unless its check says that it is kept.
func (c *Core) Health(id string, boots uint64, health blixardv1.Health_Enum, text string) {
	i := c.instances[id]
	if i == nil || i.rec.GetBoots() != boots || i.process != processRunning {
		return
	}
	c.update(i, func(r *blixardv1.AllocationRecord) { r.Status.Health, r.Status.HealthMessage = health, text })
	if health == blixardv1.Health_unhealthy && !i.rec.GetAllocation().GetSpec().GetHealth().GetKeep() {
		i.unhealthy = text
		if i.unhealthy == "" {
			i.unhealthy = "its check failed"
		}
	}
}

// Hung tells that the VMM of boot number boots does not answer any more.
func (c *Core) Hung(id string, boots uint64) {
	if i := c.instances[id]; i != nil && i.rec.GetBoots() == boots && i.process == processRunning {
		i.hung = true
		c.touch(i)
	}
}

// ProcessEnded tells that the VMM process of boot number boots has ended; known
// is false when the supervisor that was its parent is gone, and its exit with it.
func (c *Core) ProcessEnded(id string, boots uint64, exit driver.Exit, known bool) {
	i := c.instances[id]
	if i == nil || i.rec.GetBoots() != boots || i.process != processRunning {
		return
	}
	c.touch(i)
	i.adopted = false
	if !known {
		i.process = processNone
		return
	}
	i.process, i.exit = processExited, exit
}

// Done tells that an action ended. started is the process of a successful start
// or adopt; rung is the stop ladder's.
type Done struct {
	Action  Action
	Err     error
	Started *blixardv1.SupervisedProcess
	Rung    string
	// Exit of the process where the action waited for it.
	Exit *driver.Exit
	// Gone: adopt found no such process.
	Gone bool
	// Image that the allocation was prepared with.
	Image *blixardv1.Image
	// vm to follow after a start or adopt.
	vm driver.VM
}

// ActionDone feeds the result of an action back.
func (c *Core) ActionDone(d Done, now time.Time) {
	id := d.Action.Record.GetAllocation().GetId()
	i := c.instances[id]
	if i == nil {
		return
	}
	c.touch(i)
	i.busy, i.busyForce = "", false
	i.retryAt = time.Time{}
	if d.Err != nil {
		if i.canceled {
			i.canceled = false
			return
		}
		i.retryAt = now.Add(actionRetry)
		c.actionFailed(i, d, now)
		return
	}
	i.canceled = false
	if d.Image != nil && !proto.Equal(d.Image, i.rec.GetImage()) {
		c.update(i, func(r *blixardv1.AllocationRecord) {
			r.Image = d.Image
			r.Status.ImageDigest = d.Image.GetDigest()
		})
	}
	switch d.Action.Kind {
	case ActionPause, ActionResume:
		c.update(i, func(r *blixardv1.AllocationRecord) {
			s := r.Status
			if s.Paused = d.Action.Kind == ActionPause; s.Paused {
				s.Reason, s.Message = "paused", "its processors stand still"
			} else {
				s.Reason, s.Message = "ready", "the guest is ready"
			}
		})
	case ActionStart, ActionAdopt:
		c.started(i, d, now)
	case ActionStop, ActionKill:
		c.stopped(i, d)
	case ActionForget:
		i.process = processNone
	case ActionRemove:
		c.removed(i)
	}
}

func (c *Core) started(i *instance, d Done, now time.Time) {
	if d.Gone {
		i.process, i.adopted = processNone, false
		return
	}
	i.process, i.adopted, i.hung, i.adoptFailures, i.unhealthy = processRunning, true, false, 0, ""
	i.startedAt, i.kernel = now, d.Started.GetMetadata()[metaKernel]
	if at := d.Started.GetStartedAt(); at != nil {
		i.startedAt = at.AsTime()
	}
}

func (c *Core) stopped(i *instance, d Done) {
	if i.process == processRunning {
		i.process, i.adopted = processExited, false
		i.exit = driver.Exit{Code: -1}
		if d.Exit != nil {
			i.exit = *d.Exit
		}
	}
	i.rung = d.Rung
}

func (c *Core) removed(i *instance) {
	if a := i.alloc; a != nil {
		c.reports = append(c.reports, &blixardv1.AllocationReport{AllocationId: i.id, Epoch: a.GetEpoch(), Removed: true})
	}
	c.leave(i)
}

// actionFailed puts a failed step into the status: a host's problem is told to
// the owner and tried again.
func (c *Core) actionFailed(i *instance, d Done, now time.Time) {
	if i.rec == nil {
		return
	}
	if d.Action.Kind == ActionAdopt {
		i.adoptFailures++
		return
	}
	if d.Action.Kind == ActionStart || d.Action.Kind == ActionPrepare {
		c.startFailed(i, d.Err, now)
		return
	}
	c.update(i, func(r *blixardv1.AllocationRecord) {
		r.Status.Reason = string(d.Action.Kind) + "_failed"
		r.Status.Message = messageOf(d.Err)
	})
}

// Poll gives the actions that are due at now. The executor must persist each
// action's Record before it begins.
func (c *Core) Poll(now time.Time) []Action {
	due := c.due(now)
	var out []Action
	for _, i := range due {
		a, ok := c.decide(i, now)
		if !ok {
			continue
		}
		if a.Kind == ActionCancel {
			i.canceled = true
		} else {
			i.busy, i.busyForce = a.Kind, a.Force
		}
		c.touch(i)
		out = append(out, a)
	}
	for _, i := range due {
		i.looked = false
		c.count(i)
	}
	return out
}

// Turn is what is to be done after the core was told something, or was woken.
type Turn struct {
	// Keep is to be durable before the rest is begun: no step may be one that a crash
	// would forget.
	Keep    []*blixardv1.AllocationRecord
	Reports []*blixardv1.AllocationReport
	Actions []Action
	// Wake is when the next turn is due by the clock alone; zero for never.
	Wake time.Time
}

// Turn gives all that is due at now.
func (c *Core) Turn(now time.Time) Turn {
	t := Turn{Actions: c.Poll(now)}
	t.Keep, t.Reports, t.Wake = c.TakeDirty(), c.TakeReports(), c.NextWake()
	return t
}

// NextWake is when Poll has something to do by the clock alone; zero for never.
func (c *Core) NextWake() time.Time {
	if i := c.timers.first(); i != nil {
		return i.wake
	}
	return time.Time{}
}

// TakeReports gives the statuses to tell the cluster, in order, and forgets them.
func (c *Core) TakeReports() []*blixardv1.AllocationReport {
	r := c.reports
	c.reports = nil
	return r
}

// TakeDirty gives the records that changed since the last call, by id. They must
// be durable before any action, report or acknowledgement that follows.
func (c *Core) TakeDirty() []*blixardv1.AllocationRecord {
	ids := slices.Sorted(maps.Keys(c.dirty))
	var out []*blixardv1.AllocationRecord
	for _, id := range ids {
		if i := c.instances[id]; i != nil && i.rec != nil {
			out = append(out, i.rec)
		}
	}
	clear(c.dirty)
	return out
}

// Record gives the journal of an allocation, nil when there is none.
func (c *Core) Record(id string) *blixardv1.AllocationRecord {
	if i := c.instances[id]; i != nil {
		return i.rec
	}
	return nil
}

// update changes a copy of the record, makes it the instance's, and reports the
// status if it changed.
func (c *Core) update(i *instance, change func(*blixardv1.AllocationRecord)) {
	r := proto.Clone(i.rec).(*blixardv1.AllocationRecord)
	change(r)
	if !proto.Equal(r.GetStatus(), i.rec.GetStatus()) {
		c.report(r)
	}
	i.rec = r
	c.dirty[i.id] = true
	c.touch(i)
}

func (c *Core) report(r *blixardv1.AllocationRecord) {
	c.reports = append(c.reports, &blixardv1.AllocationReport{
		AllocationId: r.GetAllocation().GetId(),
		Epoch:        r.GetAllocation().GetEpoch(),
		Status:       proto.Clone(r.GetStatus()).(*blixardv1.VMStatus),
	})
}

func move(s *blixardv1.VMStatus, to blixardv1.AllocationState_Enum, reason, format string, args ...any) {
	s.State, s.Reason, s.Message = to, reason, fmt.Sprintf(format, args...)
}

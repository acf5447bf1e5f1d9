package sim

import (
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/leader"
	"github.com/blixard/blixard/replica"
)

const (
	// tick is the product's unit of Raft's time.
	tick = 100 * time.Millisecond
	// fullRetry is how often a full disk is tried again.
	fullRetry = 250 * time.Millisecond
	// inboxMax events wait for a paused host; the rest is lost, as in socket
	// buffers.
	inboxMax = 1000
	// queuedMax of what may wait inside a replica: more means that a queue has no
	// bound.
	queuedMax = 20_000
)

// epoch is when every simulation begins, in the time of commands.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// host is one machine of the cluster.
type host struct {
	w      *world
	n      int // from 0
	raftID uint64
	nodeID string
	disk   *disk
	// join: its replica begins without a log.
	join bool
	// rate of its clocks since rateSince, 1 when it is right; shown is what the
	// monotonic one showed then. offset is how far the one of dates is off.
	rate             float64
	rateSince, shown time.Duration
	offset           time.Duration
	machine          *machine
	loads            loads

	steps *replica.Steps
	up    bool
	// life counts its starts: what was begun in one is lost in the next.
	life   int
	paused bool
	inbox  []func()
	// replacing: it does not start until it has joined anew.
	replacing bool
	stuck     bool // its disk answers very late
	working   struct{ appending, applying, snapshotting bool }
	// applied is the newest index that it applied in this life.
	applied uint64
	// looked is the index at which the host looked last who waits for the state.
	looked uint64
	reads  []waitingRead
	lead   *lead
	table  leader.Table
	keeper *keeper
}

// waitingRead waits until the state here has come to index.
type waitingRead struct {
	index uint64
	do    func()
}

// start opens the replica from what the disk holds.
func (h *host) start() {
	h.life++
	h.up, h.paused, h.inbox, h.reads, h.lead = true, false, nil, nil, nil
	h.working.appending, h.working.applying, h.working.snapshotting = false, false, false
	if err := h.disk.open(); err != nil {
		h.up = false
		h.w.replace(h)
		return
	}
	rec := h.disk.recovered()
	h.applied, h.looked = rec.Snapshot.GetIndex(), 0
	var err error
	h.steps, err = replica.OpenSteps(replica.Config{
		NodeID: h.nodeID, ClusterID: h.disk.cluster, RaftID: h.raftID, Join: h.join, Sender: h, Now: h.now,
		SnapshotEntries: h.w.faults.snapshotEntries, SnapshotBytes: h.w.faults.snapshotBytes,
		SnapshotInterval: h.w.faults.snapshotInterval, TrailingEntries: h.w.faults.trailing, Limits: h.w.limits, Logger: slog.New(slog.DiscardHandler),
	}, h.disk, rec, h.sawApplied)
	if err != nil {
		h.w.fail("host %d does not open: %v", h.n, err)
		return
	}
	h.w.note("host %d: start %d, snapshot %d, %d entries", h.n, h.life, rec.Snapshot.GetIndex(), len(rec.Entries))
	h.checkState()
	h.pump()
	h.tick(h.life)
	h.table = leader.Table{TTL: h.w.faults.ttl, Margin: h.w.faults.margin, Steady: loadSteady}
	h.table.Begin(0, h.monotonic())
	h.every(roundInterval, h.round)
	h.keep()
	h.pump()
}

// elapsed is what the host's monotonic clock shows, and now what its clock of dates
// does.
func (h *host) elapsed() time.Duration {
	return h.shown + time.Duration(float64(h.w.now-h.rateSince)*h.rate)
}

func (h *host) now() time.Time { return epoch.Add(h.offset + h.elapsed()) }

// setRate lets the clocks go faster or slower from now on.
func (h *host) setRate(rate float64) {
	h.shown, h.rateSince = h.elapsed(), h.w.now
	h.rate = rate
}

// powerOff ends the machine with all that runs there.
func (h *host) powerOff(why string) {
	h.machine.powerOff()
	h.crash(why)
}

// crash ends the daemon: what its disk had not synced may be lost. The VMs live on.
func (h *host) crash(why string) {
	if !h.up {
		return
	}
	h.up = false
	h.life++
	h.w.note("host %d: %s", h.n, why)
	h.disk.crash(h.w.chance(0.5))
}

// act does something on the host, at once or when it goes on.
func (h *host) act(do func()) {
	if !h.paused || len(h.inbox) < inboxMax {
		h.actIn(h.life, do)
	}
}

// actIn does it only in that life. It is for what comes from the host itself, and is
// not lost.
func (h *host) actIn(life int, do func()) {
	switch {
	case !h.up || h.life != life:
	case h.paused:
		h.inbox = append(h.inbox, func() { h.actIn(life, do) })
	default:
		do()
		h.pump()
	}
}

func (h *host) pause() {
	h.paused = true
	h.w.note("host %d: pause", h.n)
}

func (h *host) resume() {
	if !h.up || !h.paused {
		return
	}
	h.paused = false
	h.w.note("host %d: go on", h.n)
	waiting := h.inbox
	h.inbox = nil
	for _, do := range waiting {
		do()
	}
}

func (h *host) tick(life int) {
	h.w.after(time.Duration(float64(tick)/h.rate), func() {
		if h.up && h.life == life {
			if !h.paused { // a ticker of a paused process loses its ticks
				h.actIn(life, h.steps.Tick)
			}
			h.tick(life)
		}
	})
}

// pump gives every part of the replica that has something to do its turn, as the
// goroutines of the product do.
func (h *host) pump() {
	if !h.up {
		return
	}
	life := h.life
	if queued := h.steps.Queued(); queued > queuedMax {
		h.w.fail("host %d: %d things wait in its replica", h.n, queued)
	}
	// A turn is always due: a tick may have made messages.
	h.steps.Turn()
	h.checkLeader()
	for {
		turn, apply, appends, snapshot := h.steps.Waiting()
		if appends && !h.working.appending {
			h.working.appending = true
			if !h.steps.BeginAppend() {
				h.exit()
				return
			}
			h.w.after(h.syncTime(), func() { h.actIn(life, h.endAppend) })
		}
		if apply && !h.working.applying {
			h.working.applying = true
			h.w.after(h.w.between(0, 500*time.Microsecond), func() { h.actIn(life, h.apply) })
		}
		if snapshot && !h.working.snapshotting {
			h.working.snapshotting = true
			h.w.after(h.w.between(time.Millisecond, 200*time.Millisecond), func() { h.actIn(life, h.snapshot) })
		}
		if !turn {
			return
		}
		h.steps.Turn()
		h.checkLeader()
	}
}

func (h *host) syncTime() time.Duration {
	if h.stuck {
		return h.w.between(time.Second, 5*time.Second)
	}
	return 200*time.Microsecond + h.w.tail(h.w.faults.syncMean)
}

func (h *host) endAppend() {
	life := h.life
	full, ok := h.steps.EndAppend()
	switch {
	case !ok:
		h.exit()
	case full:
		h.w.count("sync found no space")
		h.w.after(fullRetry, func() { h.actIn(life, h.endAppend) })
	default:
		h.working.appending = false
		h.moved() // a snapshot that was installed moves the state, too
	}
}

// exit is the process that ends because its replica failed.
func (h *host) exit() {
	err := h.steps.Err()
	if !h.disk.broken {
		h.w.fail("host %d: the replica failed without a fault of its disk: %v", h.n, err)
	}
	h.crash(fmt.Sprintf("exit: %v", err))
	h.w.after(h.w.between(time.Second, 5*time.Second), h.restart)
}

func (h *host) restart() {
	if !h.up && !h.replacing {
		h.start()
	}
}

func (h *host) apply() {
	h.working.applying = false
	if !h.steps.Apply() {
		h.exit()
		return
	}
	h.moved()
}

// moved lets those go on who wait for the state.
func (h *host) moved() {
	index := h.steps.View().Index()
	if index == h.looked {
		return
	}
	h.looked = index
	h.checkState()
	h.keeper.sawState()
	kept := h.reads[:0]
	var due []func()
	for _, r := range h.reads {
		if r.index <= index {
			due = append(due, r.do)
		} else {
			kept = append(kept, r)
		}
	}
	h.reads = kept
	for _, do := range due {
		do()
	}
}

func (h *host) snapshot() {
	h.working.snapshotting = false
	h.w.count("snapshots written")
	if !h.steps.Snapshot() {
		h.exit()
	}
}

// read calls do with the state once it holds everything that was acknowledged
// before.
func (h *host) read(do func(err error)) {
	h.steps.ReadIndexAsync(func(index uint64, err error) {
		if err != nil {
			do(err)
			return
		}
		h.whenApplied(index, func() { do(nil) })
	})
}

// whenApplied does something as soon as the state here has come to index.
func (h *host) whenApplied(index uint64, do func()) {
	if h.steps.View().Index() >= index {
		do()
		return
	}
	life := h.life
	h.reads = append(h.reads, waitingRead{index, func() { h.actIn(life, do) }})
}

// sawApplied is told of entries that were applied.
func (h *host) sawApplied(restored uint64, entries []*raftpb.Entry) {
	if restored > 0 {
		h.applied = restored
	}
	for _, e := range entries {
		h.w.checks.applied(h, e)
	}
	// Before anyone is answered.
	h.w.checks.saw(h.steps.View())
}

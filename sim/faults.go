package sim

import (
	"slices"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// faults are the rates of one run, drawn from its seed: a random subset of what
// can go wrong, each at a random rate, so that runs differ in kind.
type faults struct {
	loss, twice           float64
	delay                 time.Duration // mean of one way
	syncMean              time.Duration
	think                 time.Duration
	attempt               time.Duration // until a client asks another host
	snapshotEntries       uint64
	snapshotBytes         int64
	snapshotInterval      time.Duration
	trailing              uint64
	voters                int
	exclusive             float64 // share of the VMs that are
	replaceAfter          time.Duration
	clog, partition       time.Duration // mean time between; 0 means never
	crash, pause          time.Duration
	suspend               time.Duration
	crashAtVote           float64
	duel                  time.Duration
	depose, hasty, starve time.Duration
	fullDisk, brokenDisk  time.Duration
	slowDisk              time.Duration
	healAfter             time.Duration // mean time that a fault lasts
	drift                 float64
	offset                time.Duration
	asymmetric, flapping  bool
	transfer, everybodyAt time.Duration
	// Leases and agents.
	ttl, margin        time.Duration
	planned            time.Duration
	stormPercent       int // of the nodes that may be down before VMs wait for them
	strategy           blixardv1.Strategy_Enum
	preemption         bool
	action, boot, late time.Duration // means of what takes its time
	readyTimeout       time.Duration
	actionFails        float64
	bootFails          float64
	guestEnds          time.Duration
	tasks              bool
	schedules          bool
	groups             bool
	// rot of disks, and flips in snapshots on their way.
	rot   time.Duration
	flips float64
}

func (w *world) drawFaults() faults {
	some := func(p float64, low, high time.Duration) time.Duration {
		d := w.between(low, high)
		if !w.chance(p) {
			return 0
		}
		return d
	}
	f := faults{
		delay:            w.between(200*time.Microsecond, 10*time.Millisecond),
		syncMean:         w.between(200*time.Microsecond, 10*time.Millisecond),
		think:            w.between(5*time.Millisecond, 400*time.Millisecond),
		attempt:          w.between(time.Second, 15*time.Second),
		snapshotEntries:  5 + w.Uint64N(200),
		snapshotBytes:    1000 + w.Int64N(50_000),
		snapshotInterval: some(0.3, 5*time.Second, 30*time.Second),
		trailing:         1 + w.Uint64N(100),
		voters:           3,
		exclusive:        []float64{0, 0.5, 0.5, 1}[w.IntN(4)],
		replaceAfter:     w.between(5*time.Second, 30*time.Second),
		clog:             some(0.4, 2*time.Second, 20*time.Second),
		partition:        some(0.6, 3*time.Second, 15*time.Second),
		crash:            some(0.7, 2*time.Second, 15*time.Second),
		pause:            some(0.4, 3*time.Second, 20*time.Second),
		duel:             some(0.3, 3*time.Second, 10*time.Second),
		suspend:          some(0.4, 3*time.Second, 20*time.Second),
		fullDisk:         some(0.3, 10*time.Second, 30*time.Second),
		brokenDisk:       some(0.3, 10*time.Second, 30*time.Second),
		slowDisk:         some(0.3, 10*time.Second, 30*time.Second),
		healAfter:        w.between(500*time.Millisecond, 6*time.Second),
		transfer:         some(0.3, 2*time.Second, 10*time.Second),
		everybodyAt:      some(0.3, 10*time.Second, 40*time.Second),
		asymmetric:       w.chance(0.5),
		flapping:         w.chance(0.3),
	}
	f.depose, f.hasty = some(0.3, 3*time.Second, 10*time.Second), some(0.3, 500*time.Millisecond, 5*time.Second)
	f.starve = some(0.5, time.Second, 6*time.Second)
	f.ttl, f.margin = w.between(2*time.Second, 6*time.Second), some(0.5, 0, time.Second)
	f.stormPercent = []int{30, 50, 100}[w.IntN(3)]
	f.strategy = blixardv1.Strategy_Enum(1 + w.IntN(2))
	f.planned = some(0.4, 3*time.Second, 10*time.Second)
	f.action, f.boot, f.late = w.between(time.Millisecond, 300*time.Millisecond), w.between(50*time.Millisecond, time.Second), w.between(0, 300*time.Millisecond)
	f.rot = some(0.3, 5*time.Second, 20*time.Second)
	if w.chance(0.4) {
		f.flips = w.Float64() * 0.5
	}
	f.readyTimeout = w.between(3*time.Second, 20*time.Second)
	f.guestEnds = some(0.6, 2*time.Second, 30*time.Second)
	f.tasks = w.chance(0.5)
	if w.chance(0.5) {
		f.actionFails, f.bootFails = w.Float64()*0.3, w.Float64()*0.7
	}
	if w.chance(0.3) {
		f.delay = w.between(10*time.Millisecond, 50*time.Millisecond)
	}
	if w.chance(0.5) {
		f.loss = w.Float64() * 0.3
	}
	if w.chance(0.5) {
		f.twice = w.Float64() * 0.5
	}
	if w.chance(0.5) {
		f.snapshotEntries, f.trailing = 5+w.Uint64N(10), 1+w.Uint64N(5)
	}
	if w.chance(0.4) {
		f.crashAtVote = w.Float64()
	}
	if w.chance(0.4) {
		f.drift, f.offset = 0.01, time.Hour
	}
	if len(w.hosts) >= 5 && w.chance(0.5) {
		f.voters = 5
	}
	f.groups = w.chance(0.4)
	return f
}

// often lets something happen again and again, at random times of that mean,
// until the run is to heal.
func (w *world) often(mean time.Duration, do func()) {
	if mean == 0 {
		return
	}
	var next func()
	next = func() {
		if w.healing {
			return
		}
		do()
		w.after(time.Duration(w.ExpFloat64()*float64(mean)), next)
	}
	w.after(time.Duration(w.ExpFloat64()*float64(mean)), next)
}

// forAWhile undoes a fault after the time that faults last.
func (w *world) forAWhile(undo func()) { w.after(w.tail(w.faults.healAfter), undo) }

func (w *world) any() *host { return w.hosts[w.IntN(len(w.hosts))] }

// inject lets faults happen.
func (w *world) inject() {
	f := &w.faults
	for _, h := range w.hosts {
		h.setRate(1 + f.drift*(2*w.Float64()-1))
		h.offset = w.between(-f.offset, f.offset+1)
	}
	w.often(f.crash, func() {
		if h := w.any(); h.up {
			if w.chance(0.5) {
				w.count("crashes")
				h.crash("crash")
			} else {
				w.count("crashes of machines")
				h.powerOff("crash of the machine")
			}
			w.forAWhile(h.restart)
		}
	})
	w.often(f.everybodyAt, func() {
		w.count("power failures")
		for _, h := range w.hosts {
			h.powerOff("power failure")
			w.after(w.between(0, 2*time.Second), h.restart)
		}
	})
	w.often(f.pause, func() {
		if h := w.any(); h.up && !h.paused {
			w.count("pauses")
			h.pause()
			life := h.life
			w.forAWhile(func() {
				if h.life == life {
					h.resume()
				}
			})
		}
	})
	w.often(f.duel, w.duel)
	w.often(f.depose, w.depose)
	w.often(f.hasty, w.hasten)
	w.often(f.starve, w.starve)
	w.often(f.planned, w.planRestart)
	w.often(f.rot, w.rot)
	w.often(f.suspend, w.suspend)
	w.often(f.clog, func() {
		a, b := w.any(), w.any()
		w.count("clogged paths")
		w.net.clogged[[2]int{a.n, b.n}] = w.now + w.between(0, 5*time.Second)
	})
	w.often(f.partition, w.part)
	w.often(f.transfer, func() {
		if h := w.leader(); h != nil {
			w.count("transfers")
			h.act(func() { _ = h.steps.TransferLeader(w.ctx, w.any().raftID) })
		}
	})
	disk := func(name string, set, reset func(h *host)) func() {
		return func() {
			h := w.any()
			w.count(name)
			w.note("host %d: %s", h.n, name)
			set(h)
			w.forAWhile(func() { reset(h) })
		}
	}
	w.often(f.fullDisk, disk("full disks", func(h *host) { h.disk.full = true }, func(h *host) { h.disk.full = false }))
	w.often(f.slowDisk, disk("slow disks", func(h *host) { h.stuck = true }, func(h *host) { h.stuck = false }))
	w.often(f.brokenDisk, disk("failed syncs", func(h *host) { h.disk.broken = h.up }, func(*host) {}))
}

// suspend pauses the leader and cuts it off, as when its machine sleeps. It goes on
// before it hears of others, or is cut off again just after it did.
func (w *world) suspend() {
	h := w.leader()
	if h == nil || h.paused {
		return
	}
	w.count("suspends")
	h.pause()
	life := h.life
	w.cutOff(h, true)
	w.forAWhile(func() {
		if h.life == life {
			h.resume()
		}
		heard := w.between(0, time.Second)
		w.after(heard, func() { w.cutOff(h, false) })
		if w.chance(0.5) {
			w.after(heard+w.between(0, time.Second), func() { w.cutOff(h, !w.healing) })
			w.after(heard+w.between(w.faults.ttl, 3*w.faults.ttl), func() { w.cutOff(h, false) })
		}
	})
}

// planRestart restarts a daemon after it asked for a long lease, as the product does.
func (w *world) planRestart() {
	h := w.any()
	// A leader takes its table of leases down with itself.
	run := slices.DeleteFunc(w.exclusive(), func(h *host) bool { return h == w.leader() })
	if len(run) > 0 {
		h = run[w.IntN(len(run))]
	}
	if !h.up || h.paused {
		return
	}
	w.count("planned restarts")
	life := h.life
	restart := func(error) {
		if h.life == life && !w.healing {
			h.crash("planned end")
			w.after(w.between(100*time.Millisecond, 2*time.Second), h.restart)
			if w.chance(0.7) {
				w.after(w.between(time.Second, 4*time.Second), func() { w.cutOff(h, !w.healing) })
				w.after(longLeaseMax, func() { w.cutOff(h, false) })
			}
		}
	}
	h.act(func() { h.keeper.renew(w.between(longLeaseMax/3, longLeaseMax), "", restart) })
}

// longLeaseMax keeps long leases short enough to end within a run.
const longLeaseMax = 20 * time.Second

// cutOff cuts one host off the others.
func (w *world) cutOff(h *host, on bool) {
	for _, other := range w.hosts {
		w.net.cutBoth(h, other, on)
	}
}

// part cuts the network in two, or one host off, or a path between two, in both directions or one.
func (w *world) part() {
	w.count("partitions")
	if w.chance(0.3) {
		a, b := w.any(), w.any()
		w.note("partition between hosts %d and %d", a.n, b.n)
		w.net.cutBoth(a, b, true)
		w.forAWhile(func() { w.net.cutBoth(a, b, false) })
		return
	}
	side := make([]bool, len(w.hosts))
	if w.chance(0.5) {
		h := w.any()
		if lead := w.leader(); lead != nil && w.chance(0.5) {
			h = lead
		}
		side[h.n] = true
	} else {
		for i := range side {
			side[i] = w.chance(0.5)
		}
	}
	oneWay := w.faults.asymmetric && w.chance(0.5)
	w.note("partition %v one way %v", side, oneWay)
	cut := func(on bool) {
		for i := range side {
			for j := range side {
				if side[i] && !side[j] {
					w.net.cut[[2]int{i, j}] = on
					w.net.cut[[2]int{j, i}] = on && !oneWay
				}
			}
		}
	}
	cut(true)
	flaps := 0
	if w.faults.flapping {
		flaps = w.IntN(10)
	}
	for range flaps {
		at := w.tail(w.faults.healAfter)
		w.after(at, func() { cut(w.chance(0.5) && !w.healing) })
	}
	w.forAWhile(func() { w.note("partition ends"); cut(false) })
}

// heal ends every fault.
func (w *world) heal() {
	w.healing = true
	clear(w.net.cut)
	clear(w.net.clogged)
	w.faults.loss, w.faults.twice, w.faults.flips = 0, 0, 0
	w.faults.delay, w.faults.syncMean, w.faults.attempt = time.Millisecond, time.Millisecond, time.Second
	w.faults.action, w.faults.boot, w.faults.late = 10*time.Millisecond, 100*time.Millisecond, 10*time.Millisecond
	w.note("heal")
	for _, h := range w.hosts {
		h.disk.full, h.disk.broken, h.stuck = false, false, false
		h.resume()
		h.restart()
	}
}

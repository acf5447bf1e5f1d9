package sim

import (
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/driver"
)

// Faults of several steps, each of which brings a cluster near a mistake that
// independent faults would hardly ever lead to.

// duel lets two hosts that cannot hear each other ask for votes, by restarting the
// one that led them.
func (w *world) duel() {
	lead, a, b := w.leader(), w.any(), w.any()
	if lead == nil || a == b || lead == a || lead == b || w.dueling {
		return
	}
	w.count("duels")
	w.note("duel of hosts %d and %d", a.n, b.n)
	w.dueling = true
	w.net.cutBoth(a, b, true)
	lead.crash("crash before a duel")
	w.after(w.between(0, time.Second), lead.restart)
	w.after(4*time.Second, func() { w.dueling = false; w.net.cutBoth(a, b, false) })
}

// voted may crash a host that has just given its vote away, and in a duel cut the
// winner off.
func (w *world) voted(h, candidate *host) {
	if w.healing || !w.dueling && !w.chance(w.faults.crashAtVote) {
		return
	}
	life := h.life
	if w.dueling {
		w.after(3*w.faults.delay+10*time.Millisecond, func() {
			if w.dueling {
				w.cutOff(candidate, true)
				w.after(3*time.Second, func() { w.cutOff(candidate, false) })
			}
		})
	}
	w.after(w.between(0, 20*time.Millisecond), func() {
		if h.life == life {
			w.count("crashes after a vote")
			h.crash("crash after a vote")
			w.after(w.between(time.Millisecond, 50*time.Millisecond), h.restart)
		}
	})
}

const (
	// burstMax changes are taken by a leader while nobody else hears of them.
	burstMax = 30
	// deposeTime bounds how long a leader that was cut off is watched.
	deposeTime = 10 * time.Second
)

// depose cuts a leader off that has taken more changes than the next one will, and
// lets it lead again once it hears of that one.
func (w *world) depose() {
	h := w.leader()
	if h == nil || h.paused || w.deposing {
		return
	}
	w.count("deposed leaders")
	w.note("host %d: is to be deposed", h.n)
	w.deposing = true
	w.cutOff(h, true)
	n := clients + w.IntN(burstMax)
	w.burst(h, n)
	life, term, end := h.life, h.steps.LeadTerm(), w.now+deposeTime
	back := false
	var look func()
	look = func() {
		next := w.leader()
		switch over := h.life != life || w.healing || w.now > end; {
		case over, back && next == h:
			w.deposing = false
			w.cutOff(h, false)
			for range 2 * clients {
				w.operate(clients+w.values, h, 1, func() {})
			}
			w.after(tick, func() { w.burst(h, n) })
			return
		case next == nil || next == h || next.steps.LeadTerm() <= term:
		case !back:
			back = true
			w.cutOff(h, false)
		default:
			next.act(func() { _ = next.steps.TransferLeader(w.ctx, h.raftID) })
		}
		w.after(tick, look)
	}
	w.after(tick, look)
}

// burst asks a host for so many changes.
func (w *world) burst(at *host, n int) {
	for range n {
		w.request(&request{cmd: w.change(operation{name: fmt.Sprintf("w%d", w.IntN(workers)), kind: "set"}), tries: 1, at: at})
	}
}

// hastyRead is a host whose first read after a start is answered late: it starts anew
// before that, and is given the answer just after it asked the same again.
type hastyRead struct {
	h    *host
	life int
	held func()
}

// readTime bounds how long a hasty read takes.
const readTime = 5 * time.Second

// hasten begins a hasty read.
func (w *world) hasten() {
	h := w.any()
	if !h.up || h.paused || w.hasty.h != nil || h == w.leader() {
		return
	}
	w.count("hasty reads")
	h.crash("crash before a hasty read")
	w.after(w.between(time.Millisecond, 20*time.Millisecond), h.restart)
	w.hasty = hastyRead{h: h, life: h.life + 1}
	begun := w.hasty.life
	w.after(readTime, func() {
		if w.hasty.h == h && w.hasty.life <= begun+2 {
			w.hasty = hastyRead{}
		}
	})
}

// readPasses tells whether it took a message away from the network, to deliver it when
// it does most harm.
func (w *world) readPasses(from, to *host, m *raftpb.Message, deliver func()) bool {
	r := &w.hasty
	switch {
	case r.h == nil || w.healing:
	case m.GetType() == raftpb.MsgReadIndexResp && to == r.h && to.up && to.life == r.life && r.held == nil:
		r.held = deliver
		to.crash("crash after it asked for a read")
		r.life = to.life + 1
		w.after(w.between(20*time.Millisecond, time.Second), func() {
			to.restart()
			for range clients {
				w.operate(clients+w.values, to, 1, func() {})
			}
		})
		return true
	case m.GetType() == raftpb.MsgReadIndex && from == r.h && from.life == r.life && r.held != nil:
		w.count("hasty reads answered late")
		// What the other host says from now on comes later.
		w.net.clogged[[2]int{to.n, from.n}] = w.now + w.between(50*time.Millisecond, time.Second)
		w.after(time.Millisecond, r.held)
		w.hasty = hastyRead{}
	}
	return false
}

// starve lets a host with an exclusive VM be cut off once it is granted its next lease;
// a leader must ask for it after it was deposed and does not know.
func (w *world) starve() {
	run := w.exclusive()
	if len(run) == 0 || w.starving != nil {
		return
	}
	h := run[w.IntN(len(run))]
	if lead := w.leader(); slices.Contains(run, lead) && w.chance(0.5) {
		h = lead
	}
	w.count("starved hosts")
	w.note("host %d: is to be starved", h.n)
	w.starving = h
	w.after(deposeTime, func() {
		if w.starving == h {
			w.starving = nil
		}
	})
	if h != w.leader() {
		return
	}
	h.pause()
	w.cutOff(h, true)
	life, end := h.life, w.now+deposeTime
	var look func()
	look = func() {
		if lead := w.leader(); w.now < end && h.life == life && !w.healing && (lead == nil || lead == h) {
			w.after(tick, look)
			return
		}
		// Late enough that the next leader's count of the leases is ahead of its own.
		w.after(w.between(0, w.faults.ttl/6), func() {
			w.cutOff(h, false)
			if h.life == life {
				h.resume()
			}
		})
	}
	w.after(tick, look)
}

// exclusive gives the hosts that run an exclusive VM.
func (w *world) exclusive() []*host {
	return slices.DeleteFunc(slices.Clone(w.hosts), func(h *host) bool {
		return !h.up || h.paused || !slices.ContainsFunc(h.machine.running(), func(v *vmm) bool { return v.lane == driver.LaneExclusive })
	})
}

// granted answers a host that was granted its lease, or not. One that is to be starved
// hears late of it, and of nothing else afterwards.
func (w *world) granted(lead, h *host, err error, answer func()) {
	if err != nil || w.starving != h || w.healing {
		answer()
		return
	}
	w.starving = nil
	w.count("starved hosts that got a lease")
	ttl := w.faults.ttl
	starve := func() {
		w.cutOff(h, !w.healing)
		w.after(3*ttl, func() { w.cutOff(h, false) })
	}
	if lead == h {
		answer()
		starve()
		return
	}
	w.after(w.between(ttl/10, ttl*2/3), func() {
		answer()
		w.after(3*w.faults.delay+10*time.Millisecond, starve)
	})
}

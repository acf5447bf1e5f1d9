package sim

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/leader"
	"github.com/blixard/blixard/state"
)

const (
	// leaderWait and leaderRetry of the server's way to the leader; it tries more
	// often than here.
	leaderWait  = 5 * time.Second
	leaderRetry = 200 * time.Millisecond
)

// call is one of an agent to the leader, over its own host.
type call struct {
	h *host
	// do answers at the leader.
	do func(lead *host, answer func(v any, err error))
	// done gets the answer, once, in the host's life.
	done  func(v any, err error)
	life  int
	until time.Duration
	over  bool
}

// atLeader lets do happen at the leader that the host knows, and gives up after the
// timeout.
func (h *host) atLeader(timeout time.Duration, do func(lead *host, answer func(any, error)), done func(any, error)) {
	c := &call{h: h, do: do, life: h.life, until: h.w.now + leaderWait}
	c.done = func(v any, err error) {
		h.actIn(c.life, func() {
			if !c.over {
				c.over = true
				done(v, err)
			}
		})
	}
	h.w.after(timeout, func() {
		if !c.over {
			c.done(nil, problem.From(context.DeadlineExceeded))
		}
	})
	c.try()
}

func (c *call) try() {
	h := c.h
	if c.over || h.life != c.life {
		return
	}
	lead := h.w.byReplica(h.steps.Status().LeaderID)
	answer := func(v any, err error) {
		if problem.HasCode(err, "replica.not_leader") || problem.HasCode(err, "replica.no_leader") {
			c.again()
			return
		}
		c.done(v, err)
	}
	switch {
	case lead == nil:
		c.again()
	case lead == h:
		c.do(h, answer)
	default:
		// What is lost breaks the connection, and both sides notice that after a time.
		broken := func() { h.w.after(h.w.between(10*time.Millisecond, 2*time.Second), func() { answer(nil, errLost) }) }
		h.w.net.carryOnce(h.n, lead.n, func() {
			lead.act(func() {
				if lead.steps.LeadTerm() == 0 {
					h.w.net.carryOnce(lead.n, h.n, func() { answer(nil, errNotLeading) }, broken)
					return
				}
				c.do(lead, func(v any, err error) {
					h.w.net.carryOnce(lead.n, h.n, func() { answer(v, err) }, broken)
				})
			})
		}, broken)
	}
}

var (
	errLost       = problem.New(problem.Unavailable, "node.lost", "the connection broke")
	errNotLeading = problem.New(problem.NotLeader, "replica.not_leader", "this node does not lead")
)

func (c *call) again() {
	if c.h.w.now >= c.until {
		c.done(nil, problem.New(problem.Unavailable, "replica.no_leader", "there is no leader"))
		return
	}
	c.h.w.after(leaderRetry, func() { c.h.actIn(c.life, c.try) })
}

// propose makes a change at the leader.
func (h *host) propose(timeout time.Duration, cmd *blixardv1.Command, done func(state.Result, error)) {
	h.atLeader(timeout, func(lead *host, answer func(any, error)) {
		lead.steps.ProposeAsync(proto.CloneOf(cmd), func(r state.Result, err error) { answer(r, err) })
	}, func(v any, err error) {
		r, _ := v.(state.Result)
		if err == nil && r.Problem != nil {
			err = r.Problem
		}
		done(r, err)
	})
}

// renewLease asks the leader for the host's lease, in the steps of leader.Leases.
func (h *host) renewLease(incarnation uint64, ttl time.Duration, allocationID string, done func(time.Duration, error)) {
	load := h.loads.at(h.w.now)
	h.atLeader(leaseTimeout, func(lead *host, tell func(any, error)) {
		answer := func(v any, err error) {
			if err == nil {
				lead.table.Loaded(h.nodeID, load, lead.monotonic())
			}
			tell(v, err)
		}
		lead.grant(h.nodeID, incarnation, ttl, func(v any, err error) {
			if err != nil || allocationID == "" {
				h.w.granted(lead, h, err, func() { answer(v, err) })
				return
			}
			lead.read(func(err error) {
				if err == nil {
					err = leader.MayStart(lead.steps.View().Allocation(allocationID), h.nodeID)
				}
				h.w.granted(lead, h, err, func() { answer(v, err) })
			})
		})
	}, func(v any, err error) {
		granted, _ := v.(time.Duration)
		done(granted, err)
	})
}

// grant is Leases.grant.
func (h *host) grant(nodeID string, incarnation uint64, asked time.Duration, answer func(any, error)) {
	r, err := h.table.Ask(h.steps.LeadTerm(), nodeID, incarnation, asked)
	if err != nil {
		answer(nil, err)
		return
	}
	round := h.steps.ReadIndexAsync
	if planted.Is(planted.LeaseWithoutRound) {
		round = func(done func(uint64, error)) { done(0, nil) }
	}
	round(func(index uint64, err error) {
		switch {
		case err != nil:
			answer(nil, err)
		case h.table.Renew(r, h.steps.LeadTerm(), h.monotonic()):
			h.w.count("leases renewed by a round alone")
			h.w.note("host %d: lease of %s for %v is renewed", h.n, nodeID, r.TTL)
			answer(r.TTL, nil)
		default:
			h.whenApplied(index, func() { h.confirm(r, answer) })
		}
	})
}

// confirm is the rest of Leases.grant.
func (h *host) confirm(r leader.Request, answer func(any, error)) {
	view := h.steps.View()
	cmd, err := h.table.Confirm(&r, h.steps.LeadTerm(), view.Node(r.NodeID), h.monotonic())
	h.w.note("host %d: lease of %s for %v from index %d, %t that it needs a change: %v", h.n, r.NodeID, r.TTL, view.Index(), cmd != nil, err)
	if err != nil || cmd == nil {
		answer(r.TTL, err)
		return
	}
	h.w.count("leases that needed a change")
	cmd.Actor = "node:" + r.NodeID
	h.steps.ProposeInTermAsync(r.Term, cmd, func(res state.Result, err error) {
		if err == nil && res.Problem != nil {
			err = res.Problem
		}
		if err == nil {
			h.table.Done(r)
		}
		answer(r.TTL, err)
	})
}

// monotonic is the clock of a daemon, which no one sets.
func (h *host) monotonic() time.Time { return epoch.Add(h.elapsed()) }

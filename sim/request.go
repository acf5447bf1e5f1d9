package sim

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

const (
	// attemptPause before the next after a refusal.
	attemptPause = 100 * time.Millisecond
)

var errNoAnswer = errors.New("no answer")

// request is a change, or a read when cmd is nil, that a client asks for until it
// is answered or has tried often enough.
type request struct {
	cmd   *blixardv1.Command
	tries int
	// at is the host asked first; nil means any.
	at *host
	// view gets what a read found.
	view func(v *state.View)
	// done gets the answer once. unknown tells that the change may have been made.
	done func(r state.Result, err error, unknown bool)

	w       *world
	unknown bool
	attempt int
	err     error
}

// request begins a request.
func (w *world) request(q *request) {
	q.w = w
	if q.done == nil {
		q.done = func(state.Result, error, bool) {}
	}
	if q.at == nil {
		q.at = w.any()
	}
	q.try(q.at)
}

func (q *request) try(h *host) {
	if q.attempt++; q.attempt > q.tries {
		q.done(state.Result{}, q.err, q.unknown)
		return
	}
	w, attempt, answered := q.w, q.attempt, false
	if q.cmd.GetKey() != "" {
		w.note("%s: attempt %d at host %d", q.cmd.GetKey(), attempt, h.n)
	}
	answer := func(r state.Result, err error) {
		// The way back may lose it, too.
		if answered || w.chance(w.faults.loss) {
			return
		}
		w.after(w.tail(w.faults.delay), func() {
			if answered || q.attempt != attempt {
				return
			}
			answered = true
			if q.cmd.GetKey() != "" {
				w.note("%s: index %d, %v", q.cmd.GetKey(), r.Index, err)
			}
			q.take(r, err)
		})
	}
	w.after(w.tail(w.faults.delay), func() {
		h.act(func() {
			if q.cmd == nil {
				h.read(func(err error) {
					if err == nil && !answered && q.attempt == attempt {
						q.view(h.steps.View())
					}
					answer(state.Result{}, err)
				})
				return
			}
			h.steps.ProposeAsync(proto.CloneOf(q.cmd), func(r state.Result, err error) {
				if err == nil {
					w.checks.acknowledged(r, q.cmd)
				}
				answer(r, err)
			})
		})
	})
	w.after(w.faults.attempt, func() {
		if answered || q.attempt != attempt {
			return
		}
		answered = true
		q.unknown = true
		w.count("attempts without an answer")
		q.err = errNoAnswer
		q.try(w.hosts[w.IntN(len(w.hosts))])
	})
}

func (q *request) take(r state.Result, err error) {
	w := q.w
	if err == nil {
		q.done(r, nil, false)
		return
	}
	w.count("attempts refused")
	q.err = err
	if problem.HasCode(err, "change.unknown") {
		q.unknown = true
	}
	next := w.hosts[w.IntN(len(w.hosts))]
	if lead := w.leader(); lead != nil && w.chance(0.8) {
		next = lead
	}
	w.after(attemptPause, func() { q.try(next) })
}

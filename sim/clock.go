package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// event is something that happens at a time. Events of one time happen in the
// order they were made.
type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}

// clock is the simulated time, the chance, and the trace of everything that
// happened.
type clock struct {
	*rand.Rand
	now   time.Duration
	seq   uint64
	queue events

	digest uint64
	// watch, when set, gets every line of the trace.
	watch func(line string)
}

func newClock(seed uint64) *clock {
	return &clock{Rand: rand.New(rand.NewPCG(seed, 0x626c6978617264))}
}

// after lets something happen later.
func (c *clock) after(d time.Duration, do func()) {
	c.seq++
	heap.Push(&c.queue, event{c.now + max(d, 0), c.seq, do})
}

// run lets happen what is due until then, or until stop tells so.
func (c *clock) run(until time.Duration, stop func() bool) {
	for len(c.queue) > 0 && c.queue[0].at <= until {
		if stop() {
			return
		}
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
	}
	c.now = max(c.now, until)
}

// chance is true with probability p.
func (c *clock) chance(p float64) bool { return p > 0 && c.Float64() < p }

// between draws a duration.
func (c *clock) between(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + time.Duration(c.Int64N(int64(high-low)))
}

// tail draws a duration of that mean with a long tail: one in a hundred is 20
// times as long.
func (c *clock) tail(mean time.Duration) time.Duration {
	d := time.Duration(c.ExpFloat64() * float64(mean))
	if c.chance(0.01) {
		d *= 20
	}
	return d
}

// note writes a line of the trace.
func (c *clock) note(format string, args ...any) {
	line := fmt.Sprintf("%12.6f ", c.now.Seconds()) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%x%s", c.digest, line)
	c.digest = h.Sum64()
	if c.watch != nil {
		c.watch(line)
	}
}

// mix adds numbers to the trace's digest without a line, for what happens too
// often.
func (c *clock) mix(values ...uint64) {
	for _, v := range values {
		c.digest = (c.digest ^ v ^ uint64(c.now)) * 0x100000001b3
	}
}

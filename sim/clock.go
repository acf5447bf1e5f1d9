package sim

import (
	"fmt"
	"hash/crc64"
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

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// events are a heap. That of package container/heap would put every event into an
// interface, which costs as much as keeping it in order.
type events []event

func (e *events) push(x event) {
	*e = append(*e, x)
	h := *e
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(&h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (e *events) pop() event {
	h := *e
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if h[child].before(&h[least]) {
				least = child
			}
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	*e = h
	return first
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
	c.queue.push(event{c.now + max(d, 0), c.seq, do})
}

// run lets happen what is due until then, or until stop tells so.
func (c *clock) run(until time.Duration, stop func() bool) {
	for len(c.queue) > 0 && c.queue[0].at <= until {
		if stop() {
			return
		}
		e := c.queue.pop()
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

// note writes a line of the trace. A line that nobody watches is not made: what it
// would say goes into the digest all the same.
func (c *clock) note(format string, args ...any) {
	c.mix(uint64(len(args)), crc64.Checksum([]byte(format), table))
	for _, a := range args {
		c.mixAny(a)
	}
	if c.watch != nil {
		c.watch(fmt.Sprintf("%12.6f ", c.now.Seconds()) + fmt.Sprintf(format, args...))
	}
}

// mixAny adds what a line would say of a value.
func (c *clock) mixAny(a any) {
	switch a := a.(type) {
	case nil:
		c.mix(0)
	case int:
		c.mix(uint64(a))
	case uint64:
		c.mix(a)
	case time.Duration:
		c.mix(uint64(a))
	case string:
		c.mix(crc64.Checksum([]byte(a), table))
	default:
		c.mix(crc64.Checksum(fmt.Append(nil, a), table))
	}
}

// mix adds numbers to the trace's digest without a line, for what happens too
// often.
func (c *clock) mix(values ...uint64) {
	for _, v := range values {
		c.digest = (c.digest ^ v ^ uint64(c.now)) * 0x100000001b3
	}
}

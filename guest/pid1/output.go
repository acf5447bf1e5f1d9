//go:build linux

package pid1

import (
	"sync"
	"time"

	"github.com/blixard/blixard/guest/wire"
)

// mergeBelow: writes join the last chunk up to this size, so that single bytes do not each cost a chunk.
const mergeBelow = 4 << 10

// chunk is a piece of output; off is the position of its first byte in all output.
type chunk struct {
	t    wire.FrameType
	off  int64
	data []byte
}

// output keeps the last ReplayBytes of the main command's output for any number of readers. A
// write waits while a lossless reader is further behind than that. Safe for concurrent use.
type output struct {
	mu      sync.Mutex
	cond    sync.Cond
	chunks  []chunk
	end     int64 // bytes written in all
	readers map[*reader]struct{}
	closed  bool
}

// reader is one reader's place in the output.
type reader struct {
	o        *output
	off      int64
	lossless bool
	gone     bool
}

func newOutput() *output {
	o := &output{readers: map[*reader]struct{}{}}
	o.cond.L = &o.mu
	return o
}

// start is the position of the oldest byte kept.
func (o *output) start() int64 {
	if len(o.chunks) == 0 {
		return o.end
	}
	return o.chunks[0].off
}

// write adds at most MaxData bytes of output. Invariant: at most ReplayBytes are kept.
func (o *output) write(t wire.FrameType, p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.mustWait(len(p)) {
		o.cond.Wait()
	}
	if last := len(o.chunks) - 1; last >= 0 && o.chunks[last].t == t && len(o.chunks[last].data)+len(p) <= mergeBelow {
		o.chunks[last].data = append(o.chunks[last].data, p...)
	} else {
		o.chunks = append(o.chunks, chunk{t: t, off: o.end, data: append([]byte(nil), p...)})
	}
	o.end += int64(len(p))
	o.trim()
	o.cond.Broadcast()
}

// trim drops whole chunks, and the front of the first, beyond ReplayBytes.
func (o *output) trim() {
	floor := o.end - wire.ReplayBytes
	drop := 0
	for drop < len(o.chunks) && o.chunks[drop].off+int64(len(o.chunks[drop].data)) <= floor {
		o.chunks[drop].data = nil
		drop++
	}
	if o.chunks = o.chunks[drop:]; len(o.chunks) == 0 {
		return
	}
	if c := &o.chunks[0]; c.off < floor {
		c.data = c.data[floor-c.off:]
		c.off = floor
	}
}

// mustWait reports whether a lossless reader has not read what n further bytes would push out.
func (o *output) mustWait(n int) bool {
	if o.closed {
		return false
	}
	for r := range o.readers {
		if r.lossless && o.end+int64(n)-r.off > wire.ReplayBytes {
			return true
		}
	}
	return false
}

// close says that no more output comes; readers read to the end.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.cond.Broadcast()
}

// attach adds a reader that begins replay bytes before the end.
func (o *output) attach(replay int, lossless bool) *reader {
	o.mu.Lock()
	defer o.mu.Unlock()
	replay = min(max(replay, 0), wire.ReplayBytes)
	r := &reader{o: o, off: max(o.start(), o.end-int64(replay)), lossless: lossless}
	o.readers[r] = struct{}{}
	return r
}

// hold keeps the first output until release or limit, as a lossless reader does that never reads.
// The returned function is harmless when repeated.
func (o *output) hold(limit time.Duration) (release func()) {
	r := o.attach(0, true)
	timer := time.AfterFunc(limit, r.detach)
	return func() {
		timer.Stop()
		r.detach()
	}
}

// detach removes the reader and wakes what waits for it.
func (r *reader) detach() {
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	delete(r.o.readers, r)
	r.gone = true
	r.o.cond.Broadcast()
}

// next waits for output and copies it to buf. lost counts bytes that were dropped before it; ok is
// false when the output ended or the reader was detached.
func (r *reader) next(buf []byte) (t wire.FrameType, n int, lost int64, ok bool) {
	o := r.o
	o.mu.Lock()
	defer o.mu.Unlock()
	for r.off == o.end && !o.closed && !r.gone {
		o.cond.Wait()
	}
	if r.gone || r.off == o.end {
		return 0, 0, 0, false
	}
	if start := o.start(); r.off < start {
		lost = start - r.off
		r.off = start
	}
	for i := range o.chunks {
		c := &o.chunks[i]
		if at := r.off - c.off; at >= 0 && at < int64(len(c.data)) {
			n = copy(buf, c.data[at:])
			r.off += int64(n)
			o.cond.Broadcast()
			return c.t, n, lost, true
		}
	}
	return 0, 0, lost, true
}

// wait waits until the output is closed, at most limit; then it closes it.
func (o *output) wait(limit time.Duration) {
	timer := time.AfterFunc(limit, o.close)
	defer timer.Stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed {
		o.cond.Wait()
	}
}

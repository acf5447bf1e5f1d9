package supervisor

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestRing compares the ring with the whole stream.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r ring
		var all []byte
		for range rapid.IntRange(1, 30).Draw(t, "writes") {
			p := make([]byte, rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 3*ringBytesMax)).Draw(t, "bytes"))
			for i := range p {
				p[i] = byte(len(all) + i*7)
			}
			r.write(p)
			all = append(all, p...)
			if r.end != int64(len(all)) || r.end-r.start > int64(len(r.buf)) || len(r.buf) > ringBytesMax {
				t.Fatalf("after %d bytes: %d to %d in %d", len(all), r.start, r.end, len(r.buf))
			}
			if kept := min(len(all), ringBytesMax); r.end-r.start < int64(min(kept, len(r.buf))) {
				t.Fatalf("%d of %d bytes kept", r.end-r.start, kept)
			}
			at := rapid.Int64Range(0, r.end).Draw(t, "at")
			got := make([]byte, rapid.IntRange(0, 2*ringBytesMax).Draw(t, "read"))
			n, skipped := r.read(at, got)
			from := max(at, r.start)
			if skipped != from-at || n != min(len(got), int(r.end-from)) || !bytes.Equal(got[:n], all[from:from+int64(n)]) {
				t.Fatalf("read at %d: %d bytes, %d skipped", at, n, skipped)
			}
		}
	})
}

func TestRingIsSmallForAQuietConsole(t *testing.T) {
	var r ring
	r.write(make([]byte, 100))
	if len(r.buf) != ringBytesMin {
		t.Fatalf("%d bytes of buffer", len(r.buf))
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(1000, 500, func() time.Time { return now })
	for _, step := range []struct {
		after time.Duration
		take  int
		want  time.Duration
	}{
		{0, 500, 0},
		{0, 100, 100 * time.Millisecond},
		{100 * time.Millisecond, 0, 0},
		{0, 1000, time.Second},
		{time.Hour, 500, 0}, // no more than the burst is saved up
		{0, 1, time.Millisecond},
	} {
		now = now.Add(step.after)
		if got := l.take(step.take); got != step.want {
			t.Fatalf("%+v: %v", step, got)
		}
	}
}

package supervisor

import "time"

// Rate of a console's output. A boot writes some 30 KiB at once; a person reads
// less than 1 KiB a second. 512 KiB a second for 100 flooding guests are 50 MiB a
// second of log writes, which one disk takes, and 1 MiB of burst lets the boot of
// a talkative guest pass unslowed.
const (
	consoleBytesPerSecond = 512 << 10
	consoleBytesBurst     = 1 << 20
)

// limiter is a token bucket. It never refuses: it says how long to wait after
// bytes were taken. Not safe for concurrent use.
type limiter struct {
	perSecond, burst float64
	now              func() time.Time
	tokens           float64
	last             time.Time
}

func newLimiter(perSecond, burst int, now func() time.Time) *limiter {
	return &limiter{perSecond: float64(perSecond), burst: float64(burst), now: now, tokens: float64(burst), last: now()}
}

// take accounts for n bytes and gives the time to wait before more are read.
func (l *limiter) take(n int) time.Duration {
	now := l.now()
	l.tokens = min(l.burst, l.tokens+now.Sub(l.last).Seconds()*l.perSecond) - float64(n)
	l.last = now
	if l.tokens >= 0 {
		return 0
	}
	return time.Duration(-l.tokens / l.perSecond * float64(time.Second))
}

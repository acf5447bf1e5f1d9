package boottime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Instant is a time since the host's boot, in nanoseconds.
type Instant int64

// Now reads the clock. It can't fail on a kernel that Go supports; if it does
// all the same, it panics, since no lease can be kept without it.
func Now() Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("boottime: clock_gettime: %v", err))
	}
	return Instant(ts.Nano())
}

// Add gives the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub gives the time from o to i.
func (i Instant) Sub(o Instant) time.Duration { return time.Duration(i - o) }

//go:build failpoints

package wallclock

import (
	"os"
	"time"
)

var offset, _ = time.ParseDuration(os.Getenv("CLOCK_OFFSET_BLIXARD"))

// Now is what the host's clock shows, if it were off. It is safe for concurrent use.
func Now() time.Time { return time.Now().Add(offset) }

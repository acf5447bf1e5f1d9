//go:build !failpoints

package wallclock

import "time"

// Now is what the host's clock shows. It is safe for concurrent use.
func Now() time.Time { return time.Now() }

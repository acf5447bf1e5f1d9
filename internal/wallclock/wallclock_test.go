package wallclock

import (
	"testing"
	"time"
)

// TestNow: without the tag of tests it is the host's clock.
func TestNow(t *testing.T) {
	before := time.Now()
	if now := Now(); now.Before(before) || now.Sub(before) > time.Minute {
		t.Errorf("%v at %v", now, before)
	}
}

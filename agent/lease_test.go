package agent

import (
	"testing"
	"time"
)

// A short lease is renewed while two thirds of it are left, a long one while half is, and
// what failed is tried again while there is time for it.
func TestLeaseIsRenewedInTime(t *testing.T) {
	for _, tc := range []struct{ ttl, after, retry time.Duration }{
		{0, time.Second, 250 * time.Millisecond}, // nothing was granted yet
		{300 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond},
		{3 * time.Second, time.Second, 250 * time.Millisecond},
		{9 * time.Second, 3 * time.Second, 750 * time.Millisecond},
		{12 * time.Second, 5 * time.Second, 1250 * time.Millisecond},
		{14 * time.Second, 7 * time.Second, 1750 * time.Millisecond},
		{30 * time.Second, 15 * time.Second, 3750 * time.Millisecond},
		{5 * time.Minute, 150 * time.Second, 37500 * time.Millisecond},
	} {
		l := Lease{ttl: tc.ttl}
		if got := l.RenewAfter(false); got != tc.after {
			t.Errorf("a lease of %v is renewed after %v", tc.ttl, got)
		}
		if got := l.RenewAfter(true); got != tc.retry {
			t.Errorf("a lease of %v that was not renewed is asked for again after %v", tc.ttl, got)
		}
	}
}

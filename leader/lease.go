package leader

import (
	"context"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

// Leases grants the leases of nodes. It is safe for concurrent use.
type Leases struct {
	// Replica gives the quorum rounds.
	Replica interface {
		ReadIndex(ctx context.Context) (uint64, error)
	}
	// TTL is the cluster's lease, at least MinTTL.
	TTL time.Duration
}

// Bounds of a lease.
const (
	// MinTTL leaves time for three renewals on a slow disk.
	MinTTL = 2 * time.Second
	// MaxTTL of the one long lease before a planned restart.
	MaxTTL = 5 * time.Minute
)

var errTTL = problem.New(problem.Invalid, "lease.ttl", "a lease lasts from %v to %v", MinTTL, MaxTTL)

// Grant gives a node its lease after a quorum round that began after the call, so
// that no deposed leader can extend one. asked 0 means the cluster's ttl. A
// problem of kind Invalid says that asked is out of bounds.
func (l *Leases) Grant(ctx context.Context, _ string, asked time.Duration) (time.Duration, error) {
	ttl := l.TTL
	if asked != 0 {
		ttl = asked
	}
	if ttl < MinTTL || ttl > MaxTTL {
		return 0, errTTL.WithHint("ask for a time within these bounds")
	}
	if _, err := l.Replica.ReadIndex(ctx); err != nil {
		return 0, err
	}
	return ttl, nil
}

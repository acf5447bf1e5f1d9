package server

import (
	"context"
	"sync"
	"time"

	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// recheck lets the streams of other nodes look again whether these may still call, once what
// the state says of members or authorities has changed: ten thousand streams that each looked
// by themselves, twice a second, would be most of what idle nodes cost their leader. It is safe
// for concurrent use.
type recheck struct {
	mu      sync.Mutex
	changed chan struct{}
}

func newRecheck() *recheck { return &recheck{changed: make(chan struct{})} }

// next is closed at the next change.
func (r *recheck) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *recheck) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// run tells of changes until ctx ends, and of many in a row once in each interval.
func (r *recheck) run(ctx context.Context, of *replica.Replica) {
	changed := make(chan struct{}, 1)
	end := of.Observe(func(changes []state.Change) {
		if changes != nil && !ofTrust(changes) {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	defer end()
	r.tell() // those who came before
	rest := time.NewTimer(relayLookInterval)
	defer rest.Stop()
	for {
		select {
		case <-changed:
			r.tell()
		case <-ctx.Done():
			return
		}
		rest.Reset(relayLookInterval)
		select {
		case <-rest.C:
		case <-ctx.Done():
			return
		}
	}
}

// ofTrust reports whether changes may say that somebody is trusted no more.
func ofTrust(changes []state.Change) bool {
	for _, c := range changes {
		if c.Kind == state.KindMember || c.Kind == state.KindCluster {
			return true
		}
	}
	return false
}

package replica

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// restoreGCPercent is how much the heap grows between collections while a state is
// restored. Nearly all of it is kept, so that collections find nothing: with the
// usual 100 they take a third of the time.
const restoreGCPercent = 400

// A process with a large state lets less garbage gather for its size: twice a state of a
// million VMs would not fit where the state does. Up to garbageMax the heap may double, as
// usual; beyond, that much garbage gathers, but no less than gcPercentMin, since each
// collection looks at all that is kept. Who sets GOGC decides instead.
const (
	garbageMax   = 512 << 20
	gcPercentMax = 100
	gcPercentMin = 25
	// collectEvery so long what is kept is looked at.
	collectEvery = 10 * time.Second
)

// The process takes about memoryMax at most, of all that Go gives it, as long as a third of
// what is kept fits beside that: garbage gathers for a while, and most of it while very much
// is declared. A state that is larger still gets that third, since a collection that finds
// next to nothing follows the other. Who sets GOMEMLIMIT decides instead.
const (
	memoryMax   = 3900 << 20
	memoryShare = 3
	// memoryStep: the limit is not set anew for less.
	memoryStep = 256 << 20
)

func memoryLimit(kept uint64) int64 {
	need := kept + kept/memoryShare
	if need <= memoryMax {
		return memoryMax
	}
	return int64((need + memoryStep - 1) / memoryStep * memoryStep)
}

// boundMemory sets the limit for what is kept.
func boundMemory(kept uint64) {
	if next := memoryLimit(kept); os.Getenv("GOMEMLIMIT") == "" && next != debug.SetMemoryLimit(-1) {
		debug.SetMemoryLimit(next)
	}
}

func gcPercent(kept uint64) int {
	return max(gcPercentMin, min(gcPercentMax, int(garbageMax*100/max(kept, 1))))
}

var collecting struct {
	mu       sync.Mutex
	restores int
	before   int
}

// collector sets how much garbage may gather and how much memory all takes, by what is kept,
// until the replica stops. Setting it waits for a collection under way, which is why nothing else does it.
func (r *Replica) collector() {
	defer r.running.Done()
	for {
		select {
		case <-r.stopping:
			return
		case <-time.After(collectEvery):
			collectFitting()
		}
	}
}

func collectFitting() {
	c := &collecting
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.restores > 0 {
		return
	}
	kept := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/gogc:percent"}}
	metrics.Read(kept)
	if kept[0].Value.Kind() != metrics.KindUint64 || kept[1].Value.Kind() != metrics.KindUint64 {
		return
	}
	boundMemory(kept[0].Value.Uint64())
	if os.Getenv("GOGC") != "" {
		return
	}
	if next := gcPercent(kept[0].Value.Uint64()); uint64(next) != kept[1].Value.Uint64() {
		debug.SetGCPercent(next)
	}
}

// collectLess lets the collector run more seldom until the function it gives is
// called.
func collectLess() (done func()) {
	c := &collecting
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.restores++; c.restores == 1 {
		c.before = debug.SetGCPercent(restoreGCPercent)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.restores--; c.restores == 0 {
			debug.SetGCPercent(c.before)
		}
	}
}

package kernel

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// readTSC reads the processor's time stamp counter.
func readTSC() uint64

const (
	// tscWindow is how long one measurement lasts. Reading both clocks takes some 100 ns, so 10 ms
	// keep the error below 20 ppm, less than the drift of an ordinary quartz.
	tscWindow = 10 * time.Millisecond
	// tscRounds is how many measurements the median is taken of: one preempted in the middle of a
	// reading is off and must not count.
	tscRounds = 5
	// tscReadings is how often a pair of clocks is read to find one that was not interrupted.
	tscReadings = 8
)

// HostTSCKHz measures how many thousand cycles a second this host's time stamp counter counts. The
// first call takes about 50 ms, later ones give the same answer at once. It is safe for concurrent
// use. Zero means that the host has no such counter.
var HostTSCKHz = sync.OnceValue(measureTSCKHz)

func measureTSCKHz() uint32 {
	var rates [tscRounds]uint64
	for i := range rates {
		ns0, tsc0 := readClocks()
		time.Sleep(tscWindow)
		ns1, tsc1 := readClocks()
		if ns1 <= ns0 || tsc1 <= tsc0 {
			return 0
		}
		rates[i] = (tsc1 - tsc0) * 1_000_000 / (ns1 - ns0)
	}
	slices.Sort(rates[:])
	return uint32(rates[tscRounds/2])
}

// readClocks reads CLOCK_MONOTONIC_RAW and the counter as close to each other as it gets: of some
// tries it takes the one whose two counter readings, before and after, are nearest.
func readClocks() (ns, tsc uint64) {
	var best uint64 = 1<<64 - 1
	for range tscReadings {
		var ts unix.Timespec
		before := readTSC()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
			return 0, 0
		}
		after := readTSC()
		if took := after - before; took < best {
			best, ns, tsc = took, uint64(ts.Nano()), before+took/2
		}
	}
	return ns, tsc
}

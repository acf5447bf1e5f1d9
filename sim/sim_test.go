package sim

import (
	"flag"
	"testing"
	"testing/cryptotest"
)

var seedFlag = flag.Uint64("seed", 0, "the seed that TestSeed runs, with its trace")

// run runs a seed with everything that is random fixed.
func run(t *testing.T, o Options) Result {
	t.Helper()
	cryptotest.SetGlobalRandom(t, o.Seed)
	return Run(o)
}

// TestSeed shows the whole trace of one seed: go test ./sim -run TestSeed$ -seed N.
func TestSeed(t *testing.T) {
	o := Options{Seed: *seedFlag}
	if o.Seed != 0 {
		o.Watch = func(line string) { t.Log(line) }
	}
	r := run(t, o)
	t.Log(r)
	if r.Err != nil {
		t.Error(r.Err)
	}
}

var seedsFlag = flag.Uint64("seeds", 500, "how many seeds TestSeeds runs")

// TestSeeds: no seed breaks a promise.
func TestSeeds(t *testing.T) {
	for seed := uint64(1); seed <= *seedsFlag && !t.Failed(); seed++ {
		t.Run("", func(t *testing.T) {
			r := run(t, Options{Seed: seed})
			if r.Err != nil {
				t.Errorf("%v\nin %v\nreplay: make sim SEED=%d", r.Err, r, seed)
			}
		})
	}
}

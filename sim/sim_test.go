package sim

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "the seed that TestSeed runs, with its trace")
	soakFlag  = flag.Duration("soak", 0, "how long TestSoak runs new seeds")
	firstFlag = flag.Uint64("first", 1_000_000, "the first seed of TestSoak")
)

const (
	// seeds that TestSeeds runs.
	seeds = 500
	// keptSeeds that once failed are replayed first.
	keptSeeds = "testdata/seeds.txt"
	// rejected counts runs that did too little to prove anything; more than one in
	// rejectedShare would mean that the faults are too many.
	rejected      = "rejected runs"
	rejectedShare = 50
)

// collectPercent lets the collector run less often than usual: a run lives in a few
// megabytes, which it would otherwise go through hundreds of times a second.
const collectPercent = 800

func TestMain(m *testing.M) {
	debug.SetGCPercent(collectPercent)
	os.Exit(m.Run())
}

// run runs a seed with everything that is random fixed.
func run(t *testing.T, o Options) Result {
	t.Helper()
	cryptotest.SetGlobalRandom(t, o.Seed)
	return Run(o)
}

// TestSeed shows the whole trace of one seed: make sim SEED=n.
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

// check runs a seed as a test of its own, and adds to what was done in all.
func check(t *testing.T, seed uint64, total map[string]int) (ok bool) {
	return t.Run(fmt.Sprint(seed), func(t *testing.T) {
		r := run(t, Options{Seed: seed})
		if r.Err != nil {
			t.Errorf("%v\n%v\nreplay: make sim SEED=%d", r.Err, r, seed)
		}
		if r.Rejected {
			total[rejected]++
			t.Logf("rejected, since it did too little: %v", r)
			return
		}
		total["runs"]++
		for k, n := range r.Counts {
			total[k] += n
		}
		total["simulated seconds"] += int(r.Simulated.Seconds())
	})
}

// kept reads the seeds that once failed.
func kept(t *testing.T) []uint64 {
	f, err := os.Open(keptSeeds)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var out []uint64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var seed uint64
		if line := lines.Text(); line != "" && !strings.HasPrefix(line, "#") {
			if _, err := fmt.Sscan(line, &seed); err != nil {
				t.Fatalf("%s: %q: %v", keptSeeds, line, err)
			}
			out = append(out, seed)
		}
	}
	return out
}

// needed must have happened in the seeds of TestSeeds together: without one of
// them they would not test what they say.
var needed = []string{
	"changes", "operations get", "operations set", "operations create", "operations delete", "operations on running VMs", "operations on tasks", "operations on schedules", "runs of schedules", "operations on groups", "rollouts complete", "schedules that missed times", "schedules overlap", "attempts", "tasks succeeded", "tasks failed", "tasks canceled",
	"operations of unknown end", "crashes", "crashes after a vote", "power failures", "pauses", "suspends", "partitions", "duels", "deposed leaders", "hasty reads", "hasty reads answered late",
	"starved hosts", "starved hosts that got a lease",
	"clogged paths", "lost", "twice", "cut", "full disks", "sync found no space", "failed syncs", "slow disks", "transfers",
	"VMs started", "adoptions", "fences", "hypervisors that died", "hypervisors that hung", "guests that ended", "actions that failed",
	"leases", "leases refused", "leases that needed a change", "leases renewed by a round alone", "nodes down", "nodes busy", "nodes calm", "placements given up", "placements of exclusive VMs given up", "VMs tried elsewhere", "VMs preempted", "taints", "planned restarts", "crashes of machines", "reports",
	"damaged disks", "replaced hosts", "flips in snapshots",
	"snapshots written", "snapshots sent", "changes of members", "terms", "hosts that stayed down",
	"refused by a quota",
}

// TestSeeds: no seed breaks a promise.
func TestSeeds(t *testing.T) {
	total := map[string]int{}
	for _, seed := range kept(t) {
		check(t, seed, total)
	}
	for seed := uint64(1); seed <= seeds && !t.Failed(); seed++ {
		check(t, seed, total)
	}
	t.Log(Result{Counts: total})
	for _, what := range needed {
		if total[what] < 50 {
			t.Errorf("%s: only %d in all seeds", what, total[what])
		}
	}
	if total[rejected]*rejectedShare > total["runs"] {
		t.Errorf("%d runs were rejected beside %d that counted", total[rejected], total["runs"])
	}
}

// TestSoak runs new seeds for a time and writes down those that fail.
func TestSoak(t *testing.T) {
	total := map[string]int{}
	done := 0
	for begun, seed := time.Now(), *firstFlag; time.Since(begun) < *soakFlag; seed++ {
		done++
		if check(t, seed, total) {
			continue
		}
		f, err := os.OpenFile(keptSeeds, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Fprintln(f, seed)
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d seeds; %v", done, Result{Counts: total})
}

// TestSeedsRepeat: a seed has one trace, line for line.
func TestSeedsRepeat(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		var first, second []string
		var results [2]Result
		t.Run(fmt.Sprint(seed, "a"), func(t *testing.T) {
			results[0] = run(t, Options{Seed: seed, Watch: func(line string) { first = append(first, line) }})
		})
		t.Run(fmt.Sprint(seed, "b"), func(t *testing.T) {
			results[1] = run(t, Options{Seed: seed, Watch: func(line string) { second = append(second, line) }})
		})
		for i := range min(len(first), len(second)) {
			if first[i] != second[i] {
				t.Fatalf("seed %d: line %d is\n%s\nand then\n%s", seed, i, first[i], second[i])
			}
		}
		if results[0].Trace != results[1].Trace || len(first) != len(second) {
			t.Fatalf("seed %d: the traces %x and %x differ where no line does", seed, results[0].Trace, results[1].Trace)
		}
	}
}

// TestAnotherSeedIsAnotherRun: the seed matters.
func TestAnotherSeedIsAnotherRun(t *testing.T) {
	seen := map[uint64]bool{}
	for seed := uint64(1); seed <= 5; seed++ {
		t.Run("", func(t *testing.T) { seen[run(t, Options{Seed: seed}).Trace] = true })
	}
	if len(seen) != 5 {
		t.Errorf("5 seeds have %d traces", len(seen))
	}
}

// BenchmarkFiveHosts gives simulated seconds per real second, and per second of
// processors, which other work on the machine changes less.
func BenchmarkFiveHosts(b *testing.B) {
	simulated := time.Duration(0)
	seed := uint64(0)
	before := processorTime(b)
	for b.Loop() {
		seed++
		r := Run(Options{Seed: seed, Hosts: 5})
		if r.Err != nil {
			b.Fatal(r.Err)
		}
		simulated += r.Simulated
	}
	b.ReportMetric(simulated.Seconds()/b.Elapsed().Seconds(), "simulated-s/s")
	b.ReportMetric(simulated.Seconds()/(processorTime(b)-before).Seconds(), "simulated-s/cpu-s")
}

// processorTime that this process has taken.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package daemon_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/boottime"
)

const (
	// epochRounds of `make test`; `make rounds` has more.
	epochRounds    = 3
	epochRoundsEnv = "BLIXARD_TEST_EPOCH_ROUNDS"
	// exclusiveVMs tell their epochs.
	exclusiveVMs = 6
	// copiesOverlap is how long two of a VM that may run twice are to be heard.
	copiesOverlap = time.Second
	// heardMin percent of beacons are heard by a witness that proves anything.
	heardMin = 90
)

// ways to lose a host, as loseHost numbers them.
var ways = []string{"power", "a hanging daemon", "a partition"}

// takeover is one exclusive VM that a host lost to another.
type takeover struct {
	vm, way string
	// led is whether the lost host led the cluster.
	led bool
	// took is from the loss to the first beacon from elsewhere; boot is the part of it from
	// the start of the hypervisor to the guest's ready.
	took, boot time.Duration
}

func (t takeover) String() string {
	return fmt.Sprintf("%s after %v, its boot %v of that", t.vm, t.took.Round(time.Millisecond), t.boot)
}

// epochs is a cluster whose exclusive VMs tell their epochs while its hosts are lost.
type epochs struct {
	t      *testing.T
	c      *cluster
	h      *hosts
	heard  *hearer
	names  []string
	random *rand.Rand
	took   []takeover
	// firsts are the quickest of each round.
	firsts []takeover
}

// TestGuestsTellOneEpoch: hosts lose power, hang and are cut off while each exclusive VM
// sends its epoch to a witness beyond the hosts, which a host that is cut off from the
// others still reaches. No two boots of a VM are heard in turns and no epoch falls, but of
// a VM that may run twice, whose copies the witness does hear.
func TestGuestsTellOneEpoch(t *testing.T) {
	rounds := epochRounds
	if n, err := strconv.Atoi(os.Getenv(epochRoundsEnv)); err == nil {
		rounds = n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	e := &epochs{t: t, random: rand.New(rand.NewPCG(seed, 1))}
	e.c, e.h = startSite(t, 3, "--lease-ttl", "3s")
	e.heard = hearBeacons(t, e.h)
	first := e.c.nodes[0]
	create := func(name string, policy blixardv1.NodeLossPolicy_Enum) {
		first.create(name, func(s *blixardv1.VMSpec) {
			sendBeacons(name)(s)
			s.OnNodeLoss = policy
		})
	}
	for k := range exclusiveVMs {
		e.names = append(e.names, fmt.Sprint("one-", k))
		create(e.names[k], blixardv1.NodeLossPolicy_failover)
	}
	e.copies(func() { create("copy", blixardv1.NodeLossPolicy_replace) })
	begun := time.Now()
	var order []int
	for range rounds {
		if len(order) == 0 {
			order = e.random.Perm(len(ways))
		}
		e.round(order[0])
		order = order[1:]
	}
	e.tell(rounds, time.Since(begun))
}

// copies shows that the witness hears two at once where there are two: a VM that is
// replaced when its host is cut off, which is not fenced.
func (e *epochs) copies(create func()) {
	create()
	first := e.c.nodes[0]
	at := first.awaitRunning("copy").GetStatus()
	k := slices.IndexFunc(e.c.nodes, func(n *node) bool { return n.flags[1] == at.GetNode() })
	eventually(e.t, "the copy is heard", failoverLimit, func() bool { return e.heard.newest("copy").epoch == at.GetEpoch() })
	heal := loseHost(e.h, e.c.nodes[k], k, slices.Index(ways, "a partition"))
	var err error
	eventually(e.t, "two of a VM that may run twice are heard at once", failoverLimit, func() bool {
		var silence time.Duration
		silence, err = e.heard.judge("copy")
		return silence < -copiesOverlap
	})
	e.t.Logf("of the VM that may run twice: %v", err)
	heal()
	if e.t.Failed() {
		e.t.FailNow()
	}
	other := e.c.nodes[(k+1)%3]
	eventually(e.t, "the host is back, with its own VMs alone", failoverLimit, func() bool { return e.c.whole(other, e.c.nodes[k]) })
	other.delete("copy")
}

// settled waits until each exclusive VM runs and is heard, and gives their states.
func (e *epochs) settled(from *node) map[string]*blixardv1.VMStatus {
	states := map[string]*blixardv1.VMStatus{}
	for _, name := range e.names {
		states[name] = from.awaitRunning(name).GetStatus()
		asked := boottime.Now()
		eventually(e.t, name+" is heard with the epoch that it has", failoverLimit, func() bool {
			l := e.heard.newest(name)
			return l.epoch == states[name].GetEpoch() && l.last > asked
		})
	}
	if e.t.Failed() {
		e.t.FailNow() // what is not heard proves nothing
	}
	return states
}

// round loses a host that has exclusive VMs, until all of them are heard from elsewhere.
func (e *epochs) round(how int) {
	e.t.Helper()
	before := e.settled(e.c.nodes[0])
	of := map[int][]string{} // the VMs of each host
	var full []int
	for _, name := range e.names {
		k := slices.IndexFunc(e.c.nodes, func(n *node) bool { return n.flags[1] == before[name].GetNode() })
		if of[k] = append(of[k], name); len(of[k]) == 1 {
			full = append(full, k)
		}
	}
	k := full[e.random.IntN(len(full))]
	lost, other := e.c.nodes[k], e.c.nodes[(k+1)%3]
	led := e.c.leader() == lost
	gone := boottime.Now()
	heal := loseHost(e.h, lost, k, how)
	var all []takeover
	for _, name := range of[k] {
		eventually(e.t, name+" is heard from elsewhere", failoverLimit, func() bool { return e.heard.newest(name).epoch > before[name].GetEpoch() })
		if e.t.Failed() {
			e.t.FailNow()
		}
		took := e.heard.newest(name).first.Sub(gone)
		st := other.awaitRunning(name).GetStatus()
		if st.GetEpoch() != e.heard.newest(name).epoch || st.GetNode() == before[name].GetNode() {
			e.t.Errorf("%s is heard with epoch %d; the cluster says %d on %s, before %s", name, e.heard.newest(name).epoch, st.GetEpoch(), st.GetNode(), before[name].GetNode())
		}
		all = append(all, takeover{vm: name, way: ways[how], led: led, took: took, boot: time.Duration(st.GetReadyMs()) * time.Millisecond})
	}
	heal()
	eventually(e.t, "the host is back, with its own VMs alone", failoverLimit, func() bool { return e.c.whole(other, lost) })
	e.judge()
	e.took = append(e.took, all...)
	quickest := slices.MinFunc(all, func(a, b takeover) int { return int(a.took - b.took) })
	e.firsts = append(e.firsts, quickest)
	e.t.Logf("%d: %s lost by %s (led: %v), heard from elsewhere: %v", len(e.firsts), lost.flags[1], ways[how], led, all)
}

// judge checks all that was heard of exclusive VMs, and gives the shortest silence between
// two boots of one.
func (e *epochs) judge() time.Duration {
	e.t.Helper()
	shortest := time.Hour
	for _, name := range e.names {
		silence, err := e.heard.judge(name)
		if err != nil {
			e.t.Fatalf("%s: %v", name, err)
		}
		shortest = min(shortest, silence)
	}
	return shortest
}

// tell prints what was measured.
func (e *epochs) tell(rounds int, took time.Duration) {
	e.settled(e.c.nodes[0])
	shortest := e.judge()
	heard, sent, of, every := e.heard.count()
	if heard*100 < sent*heardMin {
		e.t.Errorf("only %d of %d beacons were heard", heard, sent)
	}
	e.t.Logf("%d rounds in %v, %d VMs came from a lost host; %d of %d beacons of %d boots were heard, one each %v; the shortest silence between two boots of a VM was %v",
		rounds, took.Round(time.Second), len(e.took), heard, sent, of, every.Round(time.Millisecond), shortest.Round(time.Millisecond))
	line := func(what string, all []takeover) {
		if len(all) == 0 {
			return
		}
		var whole, rest, boot []time.Duration
		for _, one := range all {
			whole, rest, boot = append(whole, one.took), append(rest, one.took-one.boot), append(boot, one.boot)
		}
		for _, l := range [][]time.Duration{whole, rest, boot} {
			slices.Sort(l)
		}
		half, last, ms := len(all)/2, len(all)-1, time.Millisecond
		e.t.Logf("%s: %d, to the first beacon median %v, longest %v; the boot %v, %v; without the boot %v, %v", what, len(all),
			whole[half].Round(ms), whole[last].Round(ms), boot[half], boot[last], rest[half].Round(ms), rest[last].Round(ms))
	}
	line("all VMs", e.took)
	line("the first of each round", e.firsts)
	for _, way := range ways {
		for _, led := range []bool{false, true} {
			var some []takeover
			for _, one := range e.firsts {
				if one.way == way && one.led == led {
					some = append(some, one)
				}
			}
			line(fmt.Sprintf("the first of each round, lost by %s (led: %v)", way, led), some)
		}
	}
}

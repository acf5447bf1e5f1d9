package daemon_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

const (
	// failoverRounds of make test; BLIXARD_TEST_FAILOVERS asks for more.
	failoverRounds = 4
	// failoverLimit bounds a round: the lease, an election, a boot, on a busy machine.
	failoverLimit = 60 * time.Second
	// sampleEvery is how often the witness looks.
	sampleEvery = 5 * time.Millisecond
)

// witness notes which placements had a hypervisor at the same instant.
type witness struct {
	stop chan struct{}
	done sync.WaitGroup

	mu   sync.Mutex
	met  map[[2]string]bool
	seen map[string]bool
	n    int
}

var guestOf = regexp.MustCompile(`guest=(alloc-[a-z0-9]+)\.`)

func newWitness() *witness {
	w := &witness{stop: make(chan struct{}), met: map[[2]string]bool{}, seen: map[string]bool{}}
	w.done.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.look()
			case <-w.stop:
				return
			}
		}
	})
	return w
}

// look takes one sample. A process that ended has no arguments any more.
func (w *witness) look() {
	var now []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		args, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if m := guestOf.FindSubmatch(args); m != nil {
			now = append(now, string(m[1]))
		}
	}
	slices.Sort(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	for i, a := range now {
		w.seen[a] = true
		for _, b := range now[i+1:] {
			w.met[[2]string{a, b}] = true
		}
	}
}

// end gives how many samples were taken.
func (w *witness) end() int {
	close(w.stop)
	w.done.Wait()
	return w.n
}

// placements of a VM, by its events, from the first.
func (n *node) placements(vm string) []string {
	n.t.Helper()
	resp, err := n.client.Events().ListEvents(n.t.Context(), &blixardv1.ListEventsRequest{Object: vm, Limit: 1000})
	if err != nil {
		n.t.Fatal(err)
	}
	var ids []string
	for _, e := range resp.GetEvents() {
		if e.GetKind() == "allocation.placed" {
			ids = append(ids, e.GetObjectId())
		}
	}
	return ids
}

// TestVMsOfALostHostRunElsewhere: hosts lose power, hang and are cut off in turn. What
// they ran runs elsewhere, an exclusive VM never on two hosts at an instant, a kept
// one nowhere else; and a host that is back ends what is no longer its own.
func TestVMsOfALostHostRunElsewhere(t *testing.T) {
	rounds := failoverRounds
	if n, err := strconv.Atoi(os.Getenv("BLIXARD_TEST_FAILOVERS")); err == nil {
		rounds = n
	}
	c, h := startSite(t, 3, "--lease-ttl", "3s")
	first := c.nodes[0]
	policy := func(p blixardv1.NodeLossPolicy_Enum) func(*blixardv1.VMSpec) {
		return func(s *blixardv1.VMSpec) { s.OnNodeLoss, s.NoNetwork = p, true }
	}
	first.create("one", policy(blixardv1.NodeLossPolicy_failover))
	first.create("copy", policy(blixardv1.NodeLossPolicy_replace))
	kept := map[string]string{}
	for k := range 3 {
		name := fmt.Sprint("kept-", k)
		first.create(name, policy(blixardv1.NodeLossPolicy_keep))
		kept[name] = first.awaitRunning(name).GetStatus().GetNode()
	}
	first.awaitRunning("copy")
	first.awaitRunning("one")
	w := newWitness()
	var took []time.Duration
	for round := range rounds {
		moving := []string{"one", "copy"}[round/3%2]
		k := slices.IndexFunc(c.nodes, func(n *node) bool { return n.flags[1] == first.get(moving).GetStatus().GetNode() })
		lost, other := c.nodes[k], c.nodes[(k+1)%3]
		before := other.get(moving).GetStatus()
		heal := loseHost(h, lost, k, round%3)
		begun := time.Now()
		vm := other.await(moving, "it runs elsewhere", func(vm *blixardv1.VM) bool {
			return running(vm) && vm.GetStatus().GetNode() != before.GetNode()
		})
		took = append(took, time.Since(begun))
		if e := vm.GetStatus().GetEpoch(); e <= before.GetEpoch() {
			t.Errorf("its epoch was %d, is %d", before.GetEpoch(), e)
		}
		t.Logf("%s lost by %s: %s runs on %s after %v, its boot %d ms of that", lost.flags[1], []string{"power", "a hanging daemon", "a partition"}[round%3],
			moving, vm.GetStatus().GetNode(), took[round].Round(time.Millisecond), vm.GetStatus().GetReadyMs())
		heal()
		eventually(t, "the host is back, with its own VMs alone", failoverLimit, func() bool { return c.whole(other, lost) })
		for name, node := range kept {
			if got := other.awaitRunning(name).GetStatus().GetNode(); got != node {
				t.Errorf("%s was kept on %s and is on %s", name, node, got)
			}
		}
		for _, name := range []string{"one", "copy"} {
			other.awaitRunning(name)
		}
	}
	samples := w.end()
	ids := first.placements("one")
	if len(ids) < 2 || !w.seen[ids[0]] || !w.seen[ids[len(ids)-1]] {
		t.Fatalf("the placements %v were not all seen in %d samples", ids, samples)
	}
	for _, name := range append([]string{"one"}, slices.Collect(maps.Keys(kept))...) {
		for i, a := range first.placements(name) {
			for _, b := range first.placements(name)[i+1:] {
				if w.met[[2]string{min(a, b), max(a, b)}] {
					t.Errorf("%s ran twice at once: as %s and as %s", name, a, b)
				}
			}
		}
	}
	slices.Sort(took)
	t.Logf("%d rounds, %d samples; from the loss to running elsewhere: median %v, longest %v", rounds, samples, took[len(took)/2], took[len(took)-1])
}

// loseHost takes a host from the others, and gives what brings it back.
func loseHost(h *hosts, n *node, k, how int) (heal func()) {
	switch how {
	case 0:
		n.powerLoss()
		h.wipe(k)
		return n.start
	case 1:
		pid := n.cmd.Process.Pid
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	}
	h.rules(k, deaf((k+1)%3), deaf((k+2)%3))
	for _, other := range []int{(k + 1) % 3, (k + 2) % 3} {
		h.rules(other, deaf(k))
	}
	return func() {
		for k := range 3 {
			h.rules(k)
		}
	}
}

// whole reports whether a node is ready and runs what the cluster has there, and
// nothing else.
func (c *cluster) whole(at, n *node) bool {
	ctx, cancel := context.WithTimeout(c.t.Context(), requestTimeout)
	defer cancel()
	nodes, err := at.client.Nodes().ListNodes(ctx, &blixardv1.ListNodesRequest{})
	if err != nil {
		return false
	}
	for _, one := range nodes.GetNodes() {
		if one.GetName() == n.flags[1] && one.GetState() != blixardv1.NodeState_ready {
			return false
		}
	}
	vms, err := at.client.AllVMs(ctx)
	if err != nil {
		return false
	}
	own := 0
	for _, vm := range vms {
		if vm.GetStatus().GetNode() == n.flags[1] {
			own++
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(n.data, "vms", "*"))
	return len(dirs) == own && len(n.qemus()) == own
}

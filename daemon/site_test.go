package daemon_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

const (
	// siteDefault is how long hosts are lost in `make test`, and siteVMs run meanwhile;
	// `make site` has more of both.
	siteDefault = 15 * time.Second
	siteVMs     = 9
	siteEnv     = "BLIXARD_TEST_SITE"
	siteVMsEnv  = "BLIXARD_TEST_SITE_VMS"
	// lostMin and lostMax are how long a host is lost, and what comes after it.
	lostMin, lostMax = 3 * time.Second, 12 * time.Second
	// rolloutEvery so long the group gets another version, and taskEvery a task begins.
	rolloutEvery, taskEvery = 20 * time.Second, 5 * time.Second
	// siteWhole bounds the wait until everything runs, for each VM.
	siteWhole = 5 * time.Second
)

// workload is a cluster with everything that runs on it, while its hosts are lost in turn.
type workload struct {
	t      *testing.T
	c      *cluster
	vms    map[string]blixardv1.NodeLossPolicy_Enum
	tasks  map[string]blixardv1.Delivery_Enum
	rolled int
	// placements of each VM, by the events that were followed from the beginning on.
	placements map[string][]string
}

// follow takes down all placements while it runs, through whatever happens to the node
// that it asks. until ends it when all up to an index are known.
func (s *workload) follow(from *node) (until func(index uint64)) {
	ctx, cancel := context.WithCancel(s.t.Context())
	s.placements = map[string][]string{}
	var heard atomic.Uint64
	seen := map[[2]uint64]bool{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil { // a node that is lost for long ends its watches
			for m, err := range from.client.WatchEvents(ctx, nil) {
				if err != nil {
					break
				}
				e := m.GetEvent()
				if id := [2]uint64{e.GetIndex(), uint64(e.GetNumber())}; e.GetKind() == "allocation.placed" && !seen[id] {
					seen[id] = true
					s.placements[e.GetObjectName()] = append(s.placements[e.GetObjectName()], e.GetObjectId())
				}
				heard.Store(max(heard.Load(), e.GetIndex()))
			}
		}
	}()
	end := func() {
		cancel()
		<-done
	}
	s.t.Cleanup(end)
	return func(index uint64) {
		eventually(s.t, "all events are heard", requestTimeout, func() bool { return heard.Load() >= index })
		end()
	}
}

// try calls until it succeeds, for a while: a host that answers may be lost meanwhile.
func (s *workload) try(from *node, what string, call func(context.Context, *client.Client) error) bool {
	ctx, cancel := context.WithTimeout(s.t.Context(), requestTimeout)
	defer cancel()
	err := call(ctx, from.client)
	if err != nil {
		s.t.Logf("%s: %v", what, err)
	}
	return err == nil
}

func siteVM(policy blixardv1.NodeLossPolicy_Enum) *blixardv1.VMSpec {
	return &blixardv1.VMSpec{
		Image: "busybox", MemoryMib: 64, DiskBytes: 16 << 20, NoNetwork: true, OnNodeLoss: policy,
		Restart: &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_always}, Command: []string{"sleep", "1000000"},
	}
}

// work submits a task, and now and then gives the group another version.
func (s *workload) work(from *node, begun time.Time) {
	if n := int(time.Since(begun) / taskEvery); n >= len(s.tasks) {
		name, delivery := fmt.Sprint("t", n), []blixardv1.Delivery_Enum{blixardv1.Delivery_at_least_once, blixardv1.Delivery_at_most_once}[n%2]
		vm := siteVM(blixardv1.NodeLossPolicy_unspecified)
		vm.Restart, vm.Command = nil, []string{"sh", "-c", "sleep 2; echo done"}
		if s.try(from, "submit "+name, func(ctx context.Context, c *client.Client) error {
			_, err := c.Tasks().SubmitTask(ctx, &blixardv1.SubmitTaskRequest{IdempotencyKey: name, Name: name, Spec: &blixardv1.TaskSpec{Vm: vm, Delivery: delivery}})
			return err
		}) {
			s.tasks[name] = delivery
		}
	}
	if n := int(time.Since(begun) / rolloutEvery); n > s.rolled {
		if s.try(from, "roll out", func(ctx context.Context, c *client.Client) error {
			vm := siteVM(blixardv1.NodeLossPolicy_replace)
			vm.Env = []*blixardv1.EnvVar{{Name: "VERSION", Value: strconv.Itoa(n)}}
			_, err := c.Groups().UpdateGroup(ctx, &blixardv1.UpdateGroupRequest{Name: "crew", Spec: &blixardv1.GroupSpec{Replicas: 3, Vm: vm}})
			return err
		}) {
			s.rolled = n
		}
	}
}

// TestSiteSurvives: hosts lose power, hang and are cut off at random while VMs of all
// policies run, a group rolls and tasks come and go. Nothing is lost, nothing exclusive
// runs twice, all runs when all hosts are back, and the events account for each move.
func TestSiteSurvives(t *testing.T) {
	lasts, count := siteDefault, siteVMs
	if d, err := time.ParseDuration(os.Getenv(siteEnv)); err == nil {
		lasts = d
	}
	if n, err := strconv.Atoi(os.Getenv(siteVMsEnv)); err == nil {
		count = n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	c, h := startSite(t, 3, "--lease-ttl", "3s")
	s := &workload{t: t, c: c, vms: map[string]blixardv1.NodeLossPolicy_Enum{}, tasks: map[string]blixardv1.Delivery_Enum{}}
	first := c.nodes[0]
	known := s.follow(first)
	for n := range count {
		policy := []blixardv1.NodeLossPolicy_Enum{blixardv1.NodeLossPolicy_failover, blixardv1.NodeLossPolicy_replace, blixardv1.NodeLossPolicy_keep}[(n+n/3)%3] // so that each host has all
		name := fmt.Sprintf("%s-%d", policy, n)
		first.create(name, func(spec *blixardv1.VMSpec) {
			proto.Reset(spec)
			proto.Merge(spec, siteVM(policy))
		})
		s.vms[name] = policy
	}
	if _, err := first.client.Groups().CreateGroup(t.Context(), &blixardv1.CreateGroupRequest{Name: "crew", Spec: &blixardv1.GroupSpec{
		Replicas: 3, Vm: siteVM(blixardv1.NodeLossPolicy_replace),
	}}); err != nil {
		t.Fatal(err)
	}
	limit := time.Duration(count+20) * siteWhole
	eventually(t, "all run at first", limit, func() bool { return s.whole(first) })
	homes := map[string]string{}
	for name := range s.vms {
		homes[name] = first.get(name).GetStatus().GetNode()
	}
	w := newWitness()
	begun, lost := time.Now(), 0
	between := func() time.Duration { return lostMin + rand.N(lostMax-lostMin) } //nolint:gosec // of a test
	until := func(from *node, end time.Time) {
		for time.Now().Before(end) {
			s.work(from, begun)
			<-time.After(100 * time.Millisecond)
		}
	}
	for time.Since(begun) < lasts {
		k, how := random.IntN(3), random.IntN(3)
		from := c.nodes[(k+1)%3]
		heal := loseHost(h, c.nodes[k], k, how)
		lost++
		until(from, time.Now().Add(between()))
		heal()
		until(from, time.Now().Add(between()/2))
	}
	t.Logf("hosts were lost %d times in %v, with %d VMs, %d tasks and %d rollouts", lost, time.Since(begun).Round(time.Second), count, len(s.tasks), s.rolled)
	eventually(t, "all run again", limit, func() bool { return s.whole(first) })
	eventually(t, "each host runs its own VMs alone", limit, func() bool {
		return !slices.ContainsFunc(c.nodes, func(n *node) bool { return !c.whole(first, n) })
	})
	samples := w.end()
	newest, err := first.client.Events().ListEvents(t.Context(), &blixardv1.ListEventsRequest{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	known(newest.GetEvents()[0].GetIndex())
	s.accounts(w, homes, samples)
}

// whole reports whether all that was declared runs, and all tasks have ended.
func (s *workload) whole(from *node) bool {
	ctx, cancel := context.WithTimeout(s.t.Context(), requestTimeout)
	defer cancel()
	vms, err := from.client.AllVMs(ctx)
	if err != nil {
		return false
	}
	up := 0
	for _, vm := range vms {
		if _, own := s.vms[vm.GetName()]; own && running(vm) {
			up++
		}
	}
	g, err := from.client.Groups().GetGroup(ctx, &blixardv1.GetGroupRequest{Name: "crew"})
	if err != nil {
		return false
	}
	st := g.GetGroup().GetStatus()
	if up < len(s.vms) || st.GetReplicas() != 3 || st.GetUpdatedAvailable() != 3 {
		return false
	}
	for name := range s.tasks {
		task, err := from.client.Tasks().GetTask(ctx, &blixardv1.GetTaskRequest{Name: name})
		if err != nil || task.GetTask().GetStatus().GetFinishedAt() == nil {
			return false
		}
	}
	return true
}

// accounts checks what happened.
func (s *workload) accounts(w *witness, homes map[string]string, samples int) {
	first, moves := s.c.nodes[0], 0
	for name, policy := range s.vms {
		vm := first.get(name)
		ids := s.placements[name]
		moves += len(ids) - 1
		if got := vm.GetStatus().GetEpoch(); int(got) != len(ids) {
			s.t.Errorf("%s has epoch %d, and its events tell of %d placements", name, got, len(ids))
		}
		if policy == blixardv1.NodeLossPolicy_keep && (len(ids) != 1 || vm.GetStatus().GetNode() != homes[name]) {
			s.t.Errorf("%s was kept on %s, and is on %s after %d placements", name, homes[name], vm.GetStatus().GetNode(), len(ids))
		}
		if why := first.blixard("vm", "explain", name); !strings.Contains(why, vm.GetStatus().GetNode()) {
			s.t.Errorf("`vm explain %s` does not name %s:\n%s", name, vm.GetStatus().GetNode(), why)
		}
		if policy == blixardv1.NodeLossPolicy_replace {
			continue // the old one may run on where nobody hears of it
		}
		for i, a := range ids {
			for _, b := range ids[i+1:] {
				if w.met[[2]string{min(a, b), max(a, b)}] {
					s.t.Errorf("%s ran twice at once: as %s and as %s", name, a, b)
				}
			}
		}
	}
	ended := map[blixardv1.TaskState_Enum]int{}
	for name, delivery := range s.tasks {
		resp, err := first.client.Tasks().GetTask(s.t.Context(), &blixardv1.GetTaskRequest{Name: name})
		if err != nil {
			s.t.Fatal(err)
		}
		st := resp.GetTask().GetStatus()
		ended[st.GetState()]++
		if delivery == blixardv1.Delivery_at_least_once && st.GetState() != blixardv1.TaskState_succeeded {
			s.t.Errorf("%s ended as %v: %s", name, st.GetState(), st.GetMessage())
		}
		if delivery == blixardv1.Delivery_at_most_once && st.GetTries() > 1 {
			s.t.Errorf("%s, which is to run at most once, was begun %d times", name, st.GetTries())
		}
	}
	s.t.Logf("%d moves of VMs, tasks ended %v, %d samples", moves, ended, samples)
}

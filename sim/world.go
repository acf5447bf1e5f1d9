package sim

import (
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

const (
	cluster = "simulated"
	// setupTime, convergeTime: a healthy cluster forms, and converges, within that.
	setupTime    = time.Minute
	convergeTime = 2 * time.Minute
	clients      = 5
	// boundedTasks of the default project, where schedules are.
	boundedTasks = 6
	// schedulesTime is how long faults happen at least where schedules are: some minutes
	// must come.
	schedulesTime = 100 * time.Second
	// checkTime bounds the search of porcupine, in real time.
	checkTime = 20 * time.Second
	// extensionsMax of the time of faults, for runs that did too little.
	extensionsMax = 6
	// operationsMin that a run must have done to prove something.
	operationsMin = 30
	// tokenUses are more joins than a run has.
	tokenUses = 1000
)

// Options of a run.
type Options struct {
	Seed uint64
	// Hosts; 0 draws 3 to 5 from the seed.
	Hosts int
	// Safety is how long faults happen, in simulated time; 0 means 40 s.
	Safety time.Duration
	// Watch, when set, gets every line of the trace.
	Watch func(line string)
}

// Result of a run.
type Result struct {
	Seed uint64
	// Trace is the digest of everything that happened.
	Trace uint64
	// Counts of operations and faults.
	Counts map[string]int
	// Simulated time.
	Simulated time.Duration
	// Err is what was wrong; nil when everything held.
	Err error
	// Rejected tells that too little was done to prove anything: nothing was found
	// wrong, and the run does not count.
	Rejected bool
}

// String gives the counts in one line.
func (r Result) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(r.Counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, r.Counts[k]))
	}
	return fmt.Sprintf("seed %d: %.0f s, %s", r.Seed, r.Simulated.Seconds(), strings.Join(parts, ", "))
}

// world is one run.
type world struct {
	*clock
	ctx     context.Context
	hosts   []*host
	net     *network
	faults  faults
	limits  state.Limits
	checks  *checks
	counts  map[string]int
	err     error
	healing bool // no new faults
	dueling bool
	// deposing tells that a leader is being deposed, starving is the host that will
	// be cut off after its next lease.
	deposing bool
	starving *host
	hasty    hastyRead
	quiet    bool // no new operations
	// unsettled is what the last look found not to be as it shall.
	unsettled string
	history   []porcupine.Operation
	open      map[int]porcupine.Operation // by client
	// values, keys and ids were given out so many times, and hosts joined anew.
	values, keys, ids, joins int
	// damaged is the host that is being replaced, if any.
	damaged *host
}

// Run runs one seed. It must be the only one of the process that uses
// crypto/rand meanwhile, whose source the caller has fixed: Raft draws its
// timeouts from it.
func Run(o Options) (result Result) {
	w := &world{clock: newClock(o.Seed), ctx: context.Background(), counts: map[string]int{}, open: map[int]porcupine.Operation{}, limits: state.DefaultLimits()}
	w.watch = o.Watch
	// Small ones, so that they are reached.
	w.limits.Events, w.limits.Changes, w.limits.Answers = 30, 200, 1000
	w.net = &network{w: w, cut: map[[2]int]bool{}, clogged: map[[2]int]time.Duration{}}
	w.checks = newChecks(w)
	defer func() {
		if p := recover(); p != nil {
			w.fail("panic: %v\n%s", p, debug.Stack())
		}
		result = Result{o.Seed, w.digest, w.counts, w.now, w.err, w.err == nil && len(w.history) < operationsMin}
	}()
	if o.Hosts == 0 {
		o.Hosts = 3 + w.IntN(3)
	}
	if o.Safety == 0 {
		o.Safety = 40 * time.Second
	}
	for n := range o.Hosts {
		w.hosts = append(w.hosts, &host{
			w: w, n: n, raftID: uint64(n + 1), nodeID: fmt.Sprintf("node-%d", n+1), disk: newDisk(cluster), join: n > 0, rate: 1, loads: newLoads(o.Seed, n),
		})
		w.hosts[n].machine = newMachine(w.hosts[n])
	}
	w.faults = w.drawFaults()
	w.faults.preemption = o.Seed%2 == 0
	w.faults.schedules = w.faults.tasks && o.Seed%3 == 0
	w.note("%+v", w.faults)
	w.live(o.Safety)
	return Result{}
}

// live runs the phases.
func (w *world) live(safety time.Duration) {
	drawn := w.faults
	w.faults.loss, w.faults.twice, w.faults.flips = 0, 0, 0
	w.setup()
	w.faults = drawn
	for id := range clients {
		w.client(id)
	}
	w.user()
	if w.faults.tasks {
		w.tasks()
	}
	if w.faults.schedules {
		w.schedules()
		safety = max(safety, schedulesTime)
	}
	if w.faults.groups {
		w.groups()
	}
	w.inject()
	// One whose faults let too little happen goes on for longer.
	for try := 0; try < extensionsMax && (try == 0 || len(w.history) < operationsMin); try++ {
		w.run(w.now+safety, w.failed)
	}
	w.quiet = true
	if w.faults.schedules {
		w.endSchedules()
	}
	w.heal()
	w.converge("after all faults ended")
	if w.bearsALoss() {
		w.count("hosts that stayed down")
		w.any().powerOff("stays down")
		w.converge("with one host down")
	}
	if w.err != nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(w.open)) {
		w.history = append(w.history, w.open[id])
	}
	for _, part := range registersModel.Partition(w.history) {
		if porcupine.CheckOperationsTimeout(registersModel, part, checkTime) != porcupine.Illegal {
			continue
		}
		for _, op := range part {
			w.note("client %d: %v from %v to %v: %+v", op.ClientId, op.Input, time.Duration(op.Call), time.Duration(op.Return), op.Output)
		}
		w.fail("the history of %d operations on a register is not linearizable", len(part))
		break
	}
}

// bearsALoss tells whether Raft has at least three voters: members that shall vote
// may not have caught up yet.
func (w *world) bearsALoss() bool {
	if w.err != nil {
		return false
	}
	m, err := w.leader().steps.Membership(w.ctx)
	return err == nil && len(m.Voters) >= 3 && len(m.Outgoing) == 0
}

// fail notes the first thing that was wrong.
func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %v: "+format, append([]any{w.now}, args...)...)
		w.note("FAILED: %v", w.err)
	}
}

func (w *world) failed() bool      { return w.err != nil }
func (w *world) count(what string) { w.counts[what]++ }
func (w *world) newID() string     { w.ids++; return fmt.Sprintf("alloc-%d", w.ids) }

func (w *world) byReplica(id uint64) *host {
	for _, h := range w.hosts {
		if h.raftID == id {
			return h
		}
	}
	return nil
}

// leader is the host that leads the newest term, nil when none is known.
func (w *world) leader() *host {
	var best *host
	var newest uint64
	for _, h := range w.hosts {
		if !h.up {
			continue
		}
		if term := h.steps.LeadTerm(); term > newest {
			best, newest = h, term
		}
	}
	return best
}

// must makes a change, however often it must be tried, and waits for it.
func (w *world) must(cmd *blixardv1.Command) state.Result {
	w.keys++
	cmd.Key, cmd.Actor, cmd.Time = fmt.Sprintf("key-%d", w.keys), "admin", timestamppb.New(epoch.Add(w.now))
	var got state.Result
	done := false
	w.request(&request{cmd: cmd, tries: 1000, done: func(r state.Result, err error, _ bool) {
		got, done = r, true
		if err == nil && r.Problem != nil {
			err = r.Problem
		}
		if err != nil {
			w.fail("%v: %v", cmd, err)
		}
	}})
	w.run(w.now+setupTime, func() bool { return done || w.failed() })
	if !done {
		w.fail("no answer within %v to %v", setupTime, cmd)
	}
	return got
}

// setup forms the cluster, as `cluster init` and `cluster join` do.
func (w *world) setup() {
	for _, h := range w.hosts {
		h.start()
	}
	w.must(&blixardv1.Command{Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
		ClusterId: cluster, CaCertificate: []byte("ca"), Member: w.hosts[0].member(),
	}}})
	w.must(&blixardv1.Command{Change: &blixardv1.Command_CreateToken{CreateToken: &blixardv1.CreateTokenCommand{
		Id: tokenID, SecretDigest: tokenSecret, Role: blixardv1.MemberRole_standby, Uses: tokenUses,
		ExpiresAt: timestamppb.New(epoch.Add(24 * time.Hour)),
	}}})
	for _, h := range w.hosts[1:] {
		r := w.must(&blixardv1.Command{Change: &blixardv1.Command_EnrollMember{EnrollMember: &blixardv1.EnrollMemberCommand{
			TokenId: tokenID, SecretDigest: tokenSecret, Member: h.member(),
		}}})
		if w.err == nil && r.Member.GetRaftId() != h.raftID {
			w.fail("host %d was given Raft id %d", h.n, r.Member.GetRaftId())
		}
	}
	registered := func() bool { return len(w.hosts[0].steps.View().Nodes()) == len(w.hosts) }
	w.run(w.now+setupTime, func() bool { return registered() || w.failed() })
	if !registered() {
		w.fail("the nodes are not registered within %v", setupTime)
	}
	w.must(&blixardv1.Command{Change: &blixardv1.Command_SetQuota{SetQuota: &blixardv1.SetQuotaCommand{
		Project: bounded, Limits: &blixardv1.QuotaLimits{Vms: proto.Uint64(boundedVMs), MemoryMib: proto.Uint64(boundedVMs * workerMiB)},
	}}})
	if w.faults.schedules {
		w.must(&blixardv1.Command{Change: &blixardv1.Command_SetQuota{SetQuota: &blixardv1.SetQuotaCommand{
			Project: state.DefaultProject, Limits: &blixardv1.QuotaLimits{Tasks: proto.Uint64(boundedTasks)},
		}}})
	}
	for i := range registers {
		w.must(w.change(operation{name: fmt.Sprintf("r%d", i), kind: "create"}))
	}
	for i := range registers {
		w.must(w.change(operation{name: fmt.Sprintf("r%d", i), kind: "delete"}))
	}
}

func (h *host) member() *blixardv1.Member {
	return &blixardv1.Member{NodeId: h.nodeID, Name: h.nodeID, RaftId: h.raftID, Address: h.nodeID + ":7700", FeatureLevel: state.FeatureLevel}
}

// converge waits until the hosts that are up agree on a state that holds
// everything acknowledged, and a new change with it.
func (w *world) converge(when string) {
	if w.err != nil {
		return
	}
	w.must(w.change(operation{name: fmt.Sprintf("c%d", w.keys), kind: "create"}))
	same := func() bool {
		lead := w.leader()
		if lead == nil || lead.applied < w.checks.newest {
			return false
		}
		for _, h := range w.hosts {
			if h.up && h.applied != lead.applied {
				return false
			}
		}
		if !w.settled(lead.steps.View()) {
			return false
		}
		hash := lead.steps.View().Hash()
		return !slices.ContainsFunc(w.hosts, func(h *host) bool { return h.up && h != lead && h.steps.View().Hash() != hash })
	}
	end, agree := w.now+convergeTime, same()
	for w.now < end && !w.failed() && !agree {
		w.run(w.now+100*time.Millisecond, w.failed)
		agree = same()
	}
	if !agree {
		w.fail("the hosts do not agree %v %s: %s", convergeTime, when, w.unsettled)
	}
	w.note("agreed on index %d %s", w.checks.newest, when)
}

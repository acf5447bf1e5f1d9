package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/internal/boottime"
)

// Bundle gives the kernels that guests boot, checked.
type Bundle interface {
	Kernel(name string) (bundle.Kernel, error)
}

// Images brings root disks to this node. Implementations are safe for concurrent use.
type Images interface {
	// Ensure gives the image that a name stands for, once its root disk is on this
	// node, and keeps it there for owner. known, when set, is what the name stood for
	// when the VM was first prepared, and is what is given. progress may be told what
	// goes on.
	Ensure(ctx context.Context, name string, known *blixardv1.Image, owner string, progress func(text string)) (*blixardv1.Image, error)
	// Disk gives the path of an image's root disk, checked.
	Disk(image *blixardv1.Image) (string, error)
	// Release ends what Ensure kept for owner.
	Release(owner string)
}

// Networks makes the NICs of VMs. Implementations are safe for concurrent use.
type Networks interface {
	// Attach makes the NICs of an allocation, for a VMM of that user. It is idempotent.
	Attach(ctx context.Context, a *blixardv1.Allocation, uid uint32) ([]driver.NIC, error)
	// Configure adds to cfg what the guest has to know of its networks.
	Configure(a *blixardv1.Allocation, cfg *guest.BootConfig) error
	// Detach takes the NICs of an allocation away. It is idempotent.
	Detach(ctx context.Context, allocID string) error
}

// Volumes gives VMs their volumes. Implementations are safe for concurrent use.
type Volumes interface {
	// Attach makes what is missing, fences older placements off, and gives the paths in
	// the order of the allocation. Until Detach nothing else may touch them.
	Attach(ctx context.Context, a *blixardv1.Allocation) ([]string, error)
	// Adopt tells that a VM runs that an earlier daemon started.
	Adopt(a *blixardv1.Allocation)
	// Detach gives the volumes of an allocation back. It is idempotent.
	Detach(allocID string)
}

// Disks makes writable root disks.
type Disks interface {
	// CreateRoot makes a formatted sparse file of that many bytes, or nothing.
	CreateRoot(ctx context.Context, path string, bytes uint64) error
	// Attach refuses an epoch lower than the newest that dir has seen, with a
	// problem of kind Fenced.
	Attach(dir string, epoch uint64) error
}

// Leases pushes the exclusive lane's deadline forward.
type Leases interface {
	Renew(ctx context.Context, deadline boottime.Instant) error
}

// Config of an agent. All fields but the limits and the load are needed.
type Config struct {
	NodeID string
	// Dir holds one directory an allocation, and OutputDir the logs of those that are gone.
	Dir       string
	OutputDir string
	Driver    driver.Driver
	Spawner   driver.Spawner
	Leases    Leases
	Bundle    Bundle
	Disks     Disks
	Images    Images
	Networks  Networks
	Volumes   Volumes
	// Confine puts each VMM into a jail of its own.
	Confine     bool
	Cluster     blixardv1.AgentServiceClient
	Fingerprint *blixardv1.NodeFingerprint
	NodeName    string
	// Incarnation of this start of the agent.
	Incarnation uint64
	Logger      *slog.Logger
	Limits      Limits
	// Load of the host in percent, which goes with each renewal of the lease, as
	// [HostLoad]; nil tells none.
	Load func() *uint32
	// TSCKHz is the rate of the host's time stamp counter, told to emulated guests.
	TSCKHz      uint32
	LogBytesMax uint64
	LogFilesMax uint32
}

// Limits of the run loop.
const (
	// eventsMax is how many facts wait for the core: a few a VM, so bounded by
	// the VMs of a node; senders wait when it is full.
	eventsMax = 1024
	// actionsMax is how many steps run at once, so that a node that starts with
	// hundreds of VMs does not start them all in one moment.
	actionsMax = 64
	// persistRetry after a record could not be kept.
	persistRetry = time.Second
	// idleWake bounds the sleep of the loop.
	idleWake = time.Minute
)

// fact is one thing the core is told; after runs once its records are durable.
type fact struct {
	tell  func(now time.Time)
	after func()
}

// Agent runs a node's VMs. Make it with New, then call Run once.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	journal *journal
	outputs *outputs
	core    *Core
	facts   chan fact
	reports *reporter
	slots   chan struct{}
	actions sync.WaitGroup

	// life is the context of Run, for followers.
	life context.Context

	mu        sync.Mutex
	followers map[string]*follower
	// preparing are the cancel functions of what is being prepared.
	preparing        map[string]context.CancelFunc
	followersChanged chan struct{}
	lease            Lease
}

// New opens the journal in cfg.Dir and recovers what it says; nothing runs yet.
func New(ctx context.Context, cfg Config) (*Agent, error) {
	j, err := openJournal(cfg.Dir)
	if err != nil {
		return nil, err
	}
	o, err := openOutputs(cfg.OutputDir)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger, journal: j, outputs: o,
		core: NewCore(cfg.Limits, cfg.Fingerprint.GetAccelerator(), func() []byte {
			t := guest.NewToken()
			return t[:]
		}),
		facts:            make(chan fact, eventsMax),
		slots:            make(chan struct{}, actionsMax),
		followers:        map[string]*follower{},
		preparing:        map[string]context.CancelFunc{},
		followersChanged: make(chan struct{}),
	}
	a.reports = newReporter(cfg.NodeID, cfg.Incarnation, cfg.Cluster, cfg.Logger)
	if err := a.recover(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// recover tells the core of every record, and of the process each belongs to by
// its own name for it: the supervisor knows it as its child, so no stranger's
// process can be taken for a VM. VMM processes without a record are ended.
func (a *Agent) recover(ctx context.Context) error {
	records, err := a.journal.load()
	if err != nil {
		return err
	}
	processes := map[string]*blixardv1.SupervisedProcess{}
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		list, err := a.cfg.Spawner.List(ctx, lane)
		if err != nil {
			return fmt.Errorf("agent: list the processes of lane %s: %w", lane, err)
		}
		for _, p := range list {
			processes[p.GetProcessId()] = p
		}
		for _, p := range Strays(list, records) {
			a.log.Warn("ending a hypervisor without a record", "process", p.GetProcessId(), "alloc", p.GetAllocationId())
			if !p.GetExited() {
				if err := a.killProcess(ctx, lane, p.GetProcessId()); err != nil {
					return fmt.Errorf("agent: end process %s: %w", p.GetProcessId(), err)
				}
			}
			if err := a.cfg.Spawner.Forget(ctx, lane, p.GetProcessId()); err != nil {
				return fmt.Errorf("agent: forget process %s: %w", p.GetProcessId(), err)
			}
		}
	}
	for _, r := range records {
		p := processes[ProcessID(r)]
		if p != nil && !p.GetExited() {
			a.cfg.Volumes.Adopt(r.GetAllocation())
		}
		if r.GetImage() != nil {
			// What it runs, or will run again, must not be swept before it is asked for.
			if _, err := a.cfg.Images.Ensure(ctx, "", r.GetImage(), r.GetAllocation().GetId(), nil); err != nil {
				a.log.Warn("the image of a VM is not here any more", "vm", r.GetAllocation().GetVmName(), "image", r.GetImage().GetName(), "err", err)
			}
		}
		a.core.Recover(r, p)
	}
	return nil
}

// Strays are processes that are not the newest boot of any record.
func Strays(list []*blixardv1.SupervisedProcess, records []*blixardv1.AllocationRecord) []*blixardv1.SupervisedProcess {
	known := map[string]bool{}
	for _, r := range records {
		known[ProcessID(r)] = true
	}
	var out []*blixardv1.SupervisedProcess
	for _, p := range list {
		if !known[p.GetProcessId()] {
			out = append(out, p)
		}
	}
	return out
}

// Run reconciles until ctx ends, and leaves the VMs running. It returns once
// every goroutine of the agent has ended; the error is nil after ctx ended.
func (a *Agent) Run(ctx context.Context) error {
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	a.life = life
	var wg sync.WaitGroup
	wg.Go(func() { a.watchCluster(life) })
	wg.Go(func() { a.reports.run(life) })
	wg.Go(func() { a.keepLease(life) })
	wg.Go(func() { a.sweepOutputs(life) })
	err := a.loop(life)
	cancel()
	wg.Wait()
	a.actions.Wait()
	a.mu.Lock()
	ids := make([]string, 0, len(a.followers))
	for id := range a.followers {
		ids = append(ids, id)
	}
	a.mu.Unlock()
	for _, id := range ids {
		a.unfollow(id)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// post tells the core a fact; it waits when many are pending.
func (a *Agent) post(ctx context.Context, tell func(now time.Time)) { a.postThen(ctx, tell, nil) }

// postThen is post, and runs after once what the core made of it is durable.
func (a *Agent) postThen(ctx context.Context, tell func(now time.Time), after func()) {
	select {
	case a.facts <- fact{tell, after}:
	case <-ctx.Done():
	}
}

// loop is the one owner of the core.
func (a *Agent) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var after []func()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case f := <-a.facts:
			after = a.tellAll(f)
		}
		now := time.Now()
		turn := a.core.Turn(now)
		if !a.persist(ctx, turn.Keep) {
			return ctx.Err()
		}
		for _, f := range after {
			f()
		}
		for _, r := range turn.Keep {
			if f := a.follower(r.GetAllocation().GetId()); f != nil {
				f.setCheck(r.GetAllocation().GetSpec().GetHealth())
			}
		}
		a.reports.add(turn.Reports)
		for _, act := range turn.Actions {
			a.begin(ctx, act)
		}
		wait := idleWake
		if !turn.Wake.IsZero() {
			wait = max(0, min(idleWake, turn.Wake.Sub(now)))
		}
		timer.Reset(wait)
	}
}

// tellAll takes what else is waiting too, so that one write serves them all.
func (a *Agent) tellAll(f fact) (after []func()) {
	for {
		f.tell(time.Now())
		if f.after != nil {
			after = append(after, f.after)
		}
		select {
		case f = <-a.facts:
		default:
			return after
		}
	}
}

// persist keeps the changed records, trying for as long as it takes: no step may
// begin that a crash would forget. On a full disk the node so stands still, and
// its VMs go on. It reports false when ctx ended.
func (a *Agent) persist(ctx context.Context, records []*blixardv1.AllocationRecord) bool {
	for _, r := range records {
		for {
			err := a.journal.put(r)
			if err == nil {
				break
			}
			a.log.Error("can't keep a record; no VM of this node is changed until it works",
				"alloc", r.GetAllocation().GetId(), "err", err)
			if !pause(ctx, persistRetry) {
				return false
			}
		}
	}
	return true
}

// begin carries an action out in the background and tells the core of its end.
func (a *Agent) begin(ctx context.Context, act Action) {
	if act.Kind == ActionCancel {
		a.mu.Lock()
		if cancel := a.preparing[act.Record.GetAllocation().GetId()]; cancel != nil {
			cancel()
		}
		a.mu.Unlock()
		if f := a.follower(act.Record.GetAllocation().GetId()); f != nil {
			f.mu.Lock()
			if f.cancelStop != nil {
				f.cancelStop()
			}
			f.mu.Unlock()
		}
		return
	}
	a.actions.Go(func() {
		select {
		case a.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		done := a.carryOut(ctx, act)
		<-a.slots
		if ctx.Err() != nil {
			if done.vm != nil {
				_ = done.vm.Close()
			}
			return
		}
		if done.Err != nil {
			a.log.Warn("a step failed", "step", act.Kind, "alloc", act.Record.GetAllocation().GetId(),
				"vm", act.Record.GetAllocation().GetVmName(), "err", done.Err)
		}
		a.post(ctx, func(now time.Time) {
			a.core.ActionDone(done, now)
			if done.vm != nil {
				rec := a.core.Record(act.Record.GetAllocation().GetId())
				if rec.GetBoots() != act.Record.GetBoots() {
					rec = act.Record
				}
				a.follow(rec, done.vm)
			}
		})
	})
}

package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of what the agent asks of the cluster.
const (
	registerTimeout = 10 * time.Second
	watchRetryFirst = 100 * time.Millisecond
	watchRetryMost  = 5 * time.Second
	leaseTimeout    = 5 * time.Second
	// leaseEvery when nothing is known yet of the cluster's ttl.
	leaseEvery = time.Second
	// A lease is renewed while two thirds of it are left, or leaseRest where that is less,
	// but at least half of it: what is left bears a leader that is lost meanwhile, and ten
	// thousand nodes with long leases ask no more often than that needs.
	leaseRest = 7 * time.Second
	// leaseRetries: a renewal that failed is tried again after this part of the time
	// between renewals, and not before leaseRetryLeast.
	leaseRetries    = 4
	leaseRetryLeast = 100 * time.Millisecond
)

// watchCluster registers the node, then follows its allocations for ever.
func (a *Agent) watchCluster(ctx context.Context) {
	delay := watchRetryFirst
	for ctx.Err() == nil {
		synced, err := a.watchOnce(ctx)
		if synced {
			delay = watchRetryFirst
		} else if delay *= 2; delay > watchRetryMost {
			delay = watchRetryMost
		}
		if ctx.Err() == nil {
			a.log.Warn("lost the cluster; trying again", "err", err)
		}
		if !pause(ctx, delay) {
			return
		}
	}
}

func (a *Agent) watchOnce(ctx context.Context) (synced bool, err error) {
	err = within(ctx, registerTimeout, func(ctx context.Context) error {
		_, err := a.cfg.Cluster.Register(ctx, &blixardv1.RegisterRequest{
			NodeId: a.cfg.NodeID, Name: a.cfg.NodeName, Fingerprint: a.cfg.Fingerprint, Incarnation: a.cfg.Incarnation,
		})
		return err
	})
	if err != nil {
		return false, fmt.Errorf("register: %w", err)
	}
	stream, err := a.cfg.Cluster.WatchAllocations(ctx, &blixardv1.WatchAllocationsRequest{NodeId: a.cfg.NodeID})
	if err != nil {
		return false, fmt.Errorf("watch allocations: %w", err)
	}
	var list Listing
	for {
		m, err := stream.Recv()
		if err != nil {
			return list.Synced(), fmt.Errorf("watch allocations: %w", err)
		}
		if tell := list.Take(m); tell != nil {
			a.post(ctx, func(time.Time) { tell(a.core) })
		}
	}
}

// Listing makes of the messages of one WatchAllocations what the core is to be
// told. The zero value is for a new stream. It is plain, and not safe for concurrent
// use.
type Listing struct {
	// first are the allocations named before the stream was synced: until then, one
	// that was not named may exist.
	first  []*blixardv1.Allocation
	synced bool
}

// Synced tells whether the whole list was seen.
func (l *Listing) Synced() bool { return l.synced }

// Take takes a message and gives what to tell the core, nil for nothing.
func (l *Listing) Take(m *blixardv1.WatchAllocationsResponse) (tell func(*Core)) {
	alloc := m.GetAllocation()
	switch {
	case m.GetSynced():
		l.synced = true
		list := l.first
		l.first = nil
		return func(c *Core) {
			ids := map[string]bool{}
			for _, a := range list {
				ids[a.GetId()] = true
				c.SetAllocation(a)
			}
			c.Resync(ids)
		}
	case alloc == nil:
		return nil
	case !l.synced:
		l.first = append(l.first, alloc)
		return nil
	case m.GetRemoved():
		return func(c *Core) { c.DropAllocation(alloc.GetId()) }
	default:
		return func(c *Core) { c.SetAllocation(alloc) }
	}
}

// Lease is what a node knows of its lease. It is plain, and not safe for concurrent
// use.
type Lease struct {
	// deadline on CLOCK_BOOTTIME.
	deadline boottime.Instant
	ttl      time.Duration
}

// Granted takes a grant of ttl that was asked for at sent, and gives the deadline
// for the fence. It counts from the moment before the request left: a late answer
// shortens the lease and can never lengthen it.
func (l *Lease) Granted(sent boottime.Instant, ttl time.Duration) boottime.Instant {
	deadline := sent.Add(ttl)
	l.deadline, l.ttl = max(l.deadline, deadline), ttl
	return deadline
}

// Deadline is the end of the lease.
func (l *Lease) Deadline() boottime.Instant { return l.deadline }

// RenewAfter is the time from a renewal, which may have failed, to the next.
func (l *Lease) RenewAfter(failed bool) time.Duration {
	every := leaseEvery
	if l.ttl > 0 {
		every = l.ttl - max(l.ttl/2, min(l.ttl*2/3, leaseRest))
	}
	if failed {
		return max(every/leaseRetries, leaseRetryLeast)
	}
	return every
}

// renewLease asks the cluster for the node's lease and hands the deadline to the
// exclusive lane's supervisor. ttl 0 asks for the cluster's own. allocID is that of an
// exclusive VM which is about to start; the problem is of kind Fenced when the cluster
// gave it up.
func (a *Agent) renewLease(ctx context.Context, ttl time.Duration, allocID string) error {
	req := &blixardv1.RenewLeaseRequest{NodeId: a.cfg.NodeID, Incarnation: a.cfg.Incarnation, AllocationId: allocID, LoadPercent: a.Load()}
	if ttl > 0 {
		req.Ttl = durationpb.New(ttl)
	}
	sent := boottime.Now()
	var granted time.Duration
	err := within(ctx, leaseTimeout, func(ctx context.Context) error {
		resp, err := a.cfg.Cluster.RenewLease(ctx, req)
		granted = resp.GetTtl().AsDuration()
		return err
	})
	if err != nil {
		return fmt.Errorf("renew the node's lease: %w", err)
	}
	if granted <= 0 {
		return problem.New(problem.Fenced, "lease.refused", "the cluster granted no lease")
	}
	a.mu.Lock()
	deadline := a.lease.Granted(sent, granted)
	a.mu.Unlock()
	return a.cfg.Leases.Renew(ctx, deadline)
}

// ExtendLease asks for one long lease before a planned restart of the daemon, so
// that exclusive VMs outlive it.
func (a *Agent) ExtendLease(ctx context.Context, ttl time.Duration) error {
	return a.renewLease(ctx, ttl, "")
}

// LeaseLeft is the time until the node's lease ends, 0 once it has or when there was none.
func (a *Agent) LeaseLeft() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(a.lease.Deadline().Sub(boottime.Now()), 0)
}

// Load of the host in percent; nil when it is not known.
func (a *Agent) Load() *uint32 {
	if a.cfg.Load == nil {
		return nil
	}
	return a.cfg.Load()
}

// keepLease renews until ctx ends. A failure needs no action here: the
// supervisor's kernel timer is the fence.
func (a *Agent) keepLease(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.renewLease(ctx, 0, "")
		if err != nil && ctx.Err() == nil {
			a.log.Warn("the node's lease was not renewed", "left", a.LeaseLeft(), "err", err)
		}
		a.mu.Lock()
		every := a.lease.RenewAfter(err != nil)
		a.mu.Unlock()
		if !pause(ctx, every) {
			return
		}
	}
}

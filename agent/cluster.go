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
	// leaseShare: a lease is renewed after this part of its time, so that two
	// renewals may fail before it ends.
	leaseShare = 3
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
	first := map[string]*blixardv1.Allocation{}
	for {
		m, err := stream.Recv()
		if err != nil {
			return synced, fmt.Errorf("watch allocations: %w", err)
		}
		switch {
		case m.GetSynced():
			synced = true
			list := first
			first = nil
			a.post(ctx, func(time.Time) {
				ids := map[string]bool{}
				for id, alloc := range list {
					ids[id] = true
					a.core.SetAllocation(alloc)
				}
				a.core.Resync(ids)
			})
		case m.GetAllocation() == nil:
		case !synced:
			first[m.GetAllocation().GetId()] = m.GetAllocation()
		case m.GetRemoved():
			id := m.GetAllocation().GetId()
			a.post(ctx, func(time.Time) { a.core.DropAllocation(id) })
		default:
			alloc := m.GetAllocation()
			a.post(ctx, func(time.Time) { a.core.SetAllocation(alloc) })
		}
	}
}

// leaseState is guarded by Agent.mu.
type leaseState struct {
	// deadline on CLOCK_BOOTTIME, counted from the moment the request was sent.
	deadline boottime.Instant
	ttl      time.Duration
}

// renewLease asks the cluster for the node's lease and hands the deadline to the
// exclusive lane's supervisor. ttl 0 asks for the cluster's own.
func (a *Agent) renewLease(ctx context.Context, ttl time.Duration) error {
	req := &blixardv1.RenewLeaseRequest{NodeId: a.cfg.NodeID, Incarnation: a.cfg.Incarnation}
	if ttl > 0 {
		req.Ttl = durationpb.New(ttl)
	}
	// The clock is read before the request leaves: a late answer shortens the
	// lease and can never lengthen it.
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
	deadline := sent.Add(granted)
	a.mu.Lock()
	if deadline > a.lease.deadline {
		a.lease.deadline = deadline
	}
	a.lease.ttl = granted
	a.mu.Unlock()
	return a.cfg.Leases.Renew(ctx, deadline)
}

// ExtendLease asks for one long lease before a planned restart of the daemon, so
// that exclusive VMs outlive it.
func (a *Agent) ExtendLease(ctx context.Context, ttl time.Duration) error {
	return a.renewLease(ctx, ttl)
}

// LeaseLeft is the time until the node's lease ends; negative once it has.
func (a *Agent) LeaseLeft() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lease.deadline.Sub(boottime.Now())
}

// keepLease renews until ctx ends. A failure needs no action here: the
// supervisor's kernel timer is the fence.
func (a *Agent) keepLease(ctx context.Context) {
	for ctx.Err() == nil {
		if err := a.renewLease(ctx, 0); err != nil && ctx.Err() == nil {
			a.log.Warn("the node's lease was not renewed", "left", a.LeaseLeft(), "err", err)
		}
		a.mu.Lock()
		every := a.lease.ttl / leaseShare
		a.mu.Unlock()
		if every <= 0 {
			every = leaseEvery
		}
		if !pause(ctx, every) {
			return
		}
	}
}

package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of reporting.
const (
	// reportsMax wait for a cluster that does not answer; beyond it only the
	// newest of each allocation is kept, so that memory is bounded by the VMs.
	reportsMax    = 4096
	reportBatch   = 256
	reportTimeout = 10 * time.Second
	reportRetry   = 500 * time.Millisecond
)

// Outbox is what waits to be told to the cluster, in order. It is plain: Next gives
// what is to be sent, and Settle says how that ended. It is not safe for concurrent
// use.
type Outbox struct {
	queue []*blixardv1.AllocationReport
	// sent was given by Next and is given again until it is settled: what follows
	// must not overtake it.
	sent []*blixardv1.AllocationReport
}

// Add puts reports behind those that wait.
func (o *Outbox) Add(reports []*blixardv1.AllocationReport) {
	o.queue = append(o.queue, reports...)
	if len(o.queue) > reportsMax {
		o.queue = newestOnly(o.queue)
	}
}

// Next gives the batch to send, nil when nothing waits.
func (o *Outbox) Next() []*blixardv1.AllocationReport {
	if len(o.sent) == 0 || planted.Is(planted.ReportOvertakes) && len(o.queue) > 0 {
		n := min(len(o.queue), reportBatch)
		o.sent, o.queue = o.queue[:n:n], o.queue[n:]
	}
	return o.sent
}

// Settle takes how sending the batch ended, and tells whether the next may follow:
// else the same is to be sent again after a pause. What the cluster refuses for good
// is dropped, since the next status of that allocation says what is true then.
func (o *Outbox) Settle(err error) (next bool) {
	if err != nil {
		if p := problem.From(err); p.Kind == problem.Unavailable || p.Kind == problem.NotLeader {
			return false
		}
	}
	o.sent = nil
	return true
}

// reporter sends statuses to the cluster in order, and again until it hears that
// they arrived.
type reporter struct {
	nodeID      string
	incarnation uint64
	cluster     blixardv1.AgentServiceClient
	log         *slog.Logger
	wake        chan struct{}

	mu  sync.Mutex
	out Outbox
}

func newReporter(nodeID string, incarnation uint64, cluster blixardv1.AgentServiceClient, log *slog.Logger) *reporter {
	return &reporter{nodeID: nodeID, incarnation: incarnation, cluster: cluster, log: log, wake: make(chan struct{}, 1)}
}

func (r *reporter) add(reports []*blixardv1.AllocationReport) {
	if len(reports) == 0 {
		return
	}
	r.mu.Lock()
	r.out.Add(reports)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// newestOnly keeps the last report of each allocation, and the last that ended a
// life before it: an end carries the exit code, and the state takes no new life
// before it has seen the end of the old one.
func newestOnly(q []*blixardv1.AllocationReport) []*blixardv1.AllocationReport {
	last, end := map[string]int{}, map[string]int{}
	for k, r := range q {
		last[r.GetAllocationId()] = k
		if terminal(r.GetStatus().GetState()) {
			end[r.GetAllocationId()] = k
		}
	}
	var out []*blixardv1.AllocationReport
	for k, r := range q {
		if e, ok := end[r.GetAllocationId()]; last[r.GetAllocationId()] == k || ok && e == k {
			out = append(out, r)
		}
	}
	return out
}

// run sends until ctx ends.
func (r *reporter) run(ctx context.Context) {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		for {
			r.mu.Lock()
			batch := r.out.Next()
			r.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			err := r.send(ctx, batch)
			if ctx.Err() != nil {
				return
			}
			r.mu.Lock()
			next := r.out.Settle(err)
			r.mu.Unlock()
			if !next && !pause(ctx, reportRetry) {
				return
			}
		}
	}
}

// send delivers one batch.
func (r *reporter) send(ctx context.Context, batch []*blixardv1.AllocationReport) error {
	err := within(ctx, reportTimeout, func(ctx context.Context) error {
		failpoint.Hit("agent.report.before")
		_, err := r.cluster.Report(ctx, &blixardv1.ReportRequest{NodeId: r.nodeID, Incarnation: r.incarnation, Reports: batch})
		return err
	})
	if err == nil {
		failpoint.Hit("agent.report.after")
	} else if ctx.Err() == nil {
		r.log.Warn("the cluster did not take a report", "reports", len(batch), "code", problem.From(err).Code, "err", err)
	}
	return err
}

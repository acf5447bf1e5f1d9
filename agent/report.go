package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/failpoint"
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

// reporter sends statuses to the cluster in order, and again until it hears that
// they arrived.
type reporter struct {
	nodeID  string
	cluster blixardv1.AgentServiceClient
	log     *slog.Logger
	wake    chan struct{}

	mu    sync.Mutex
	queue []*blixardv1.AllocationReport
}

func newReporter(nodeID string, cluster blixardv1.AgentServiceClient, log *slog.Logger) *reporter {
	return &reporter{nodeID: nodeID, cluster: cluster, log: log, wake: make(chan struct{}, 1)}
}

func (r *reporter) add(reports []*blixardv1.AllocationReport) {
	if len(reports) == 0 {
		return
	}
	r.mu.Lock()
	r.queue = append(r.queue, reports...)
	if len(r.queue) > reportsMax {
		r.queue = newestOnly(r.queue)
	}
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
			n := min(len(r.queue), reportBatch)
			batch := r.queue[:n:n]
			r.queue = r.queue[n:]
			r.mu.Unlock()
			if n == 0 {
				break
			}
			if !r.send(ctx, batch) {
				return
			}
		}
	}
}

// send delivers one batch. What the cluster refuses for good is dropped, since
// the next status of that allocation says what is true then.
func (r *reporter) send(ctx context.Context, batch []*blixardv1.AllocationReport) bool {
	for {
		err := within(ctx, reportTimeout, func(ctx context.Context) error {
			failpoint.Hit("agent.report.before")
			_, err := r.cluster.Report(ctx, &blixardv1.ReportRequest{NodeId: r.nodeID, Reports: batch})
			return err
		})
		if err == nil {
			failpoint.Hit("agent.report.after")
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		p := problem.From(err)
		if p.Kind != problem.Unavailable && p.Kind != problem.NotLeader {
			r.log.Error("the cluster refuses a report", "reports", len(batch), "code", p.Code, "err", err)
			return true
		}
		r.log.Warn("can't report to the cluster; trying again", "reports", len(batch), "err", err)
		if !pause(ctx, reportRetry) {
			return false
		}
	}
}

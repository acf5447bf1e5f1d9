package server_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
)

// machines is a node as far as the cluster sees one: the product's agent, whose
// hypervisors do nothing and are ready at once.
type machines struct {
	id      string
	api     blixardv1.AgentServiceClient
	core    *agent.Core
	out     agent.Outbox
	posts   chan func(*agent.Core, time.Time)
	running *atomic.Int64
}

func (m *machines) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_, err := m.api.Register(ctx, &blixardv1.RegisterRequest{NodeId: m.id, Name: m.id, Incarnation: 1, Fingerprint: &blixardv1.NodeFingerprint{
		Capacity: &blixardv1.Resources{Vcpus: 1024, MemoryMib: 1 << 24, DiskBytes: 1 << 50}, Images: []string{"busybox"}, Kernels: []string{"own"},
	}})
	if err != nil {
		return err
	}
	stream, err := m.api.WatchAllocations(ctx, &blixardv1.WatchAllocationsRequest{NodeId: m.id})
	if err != nil {
		return err
	}
	reports := make(chan []*blixardv1.AllocationReport)
	settled := make(chan error)
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for batch := range reports {
			_, err := m.api.Report(ctx, &blixardv1.ReportRequest{NodeId: m.id, Incarnation: 1, Reports: batch})
			for _, r := range batch {
				if err == nil && r.GetStatus().GetState() == blixardv1.AllocationState_running {
					m.running.Add(1)
				}
			}
			select {
			case settled <- err:
			case <-ctx.Done():
			}
		}
	})
	defer close(reports)
	defer cancel()
	var ended error
	heard := make(chan *blixardv1.WatchAllocationsResponse, 256)
	work.Go(func() {
		defer close(heard) // after ended is set
		for {
			msg, err := stream.Recv()
			if err != nil {
				ended = err
				return
			}
			select {
			case heard <- msg:
			case <-ctx.Done():
				return
			}
		}
	})
	work.Go(func() {
		var lease agent.Lease
		for ctx.Err() == nil {
			sent := boottime.Now()
			if resp, err := m.api.RenewLease(ctx, &blixardv1.RenewLeaseRequest{NodeId: m.id, Incarnation: 1}); err == nil {
				lease.Granted(sent, resp.GetTtl().AsDuration())
			}
			select {
			case <-time.After(lease.RenewAfter()):
			case <-ctx.Done():
			}
		}
	})
	var list agent.Listing
	sending := false
	for {
		var send chan []*blixardv1.AllocationReport
		var batch []*blixardv1.AllocationReport
		if !sending {
			if batch = m.out.Next(); len(batch) > 0 {
				send = reports
			}
		}
		select {
		case msg, ok := <-heard:
			if !ok {
				return ended
			}
			if tell := list.Take(msg); tell != nil {
				tell(m.core)
			}
			for more := len(heard); more > 0; more-- {
				msg, ok := <-heard
				if !ok {
					break
				}
				if tell := list.Take(msg); tell != nil {
					tell(m.core)
				}
			}
			m.turn()
		case send <- batch:
			sending = true
		case err := <-settled:
			if err != nil {
				return err
			}
			m.out.Settle(err)
			sending = false
		}
	}
}

// turn does all that the agent wants.
func (m *machines) turn() {
	for {
		now := time.Now()
		t := m.core.Turn(now)
		m.out.Add(t.Reports)
		if len(t.Actions) == 0 {
			return
		}
		for _, a := range t.Actions {
			d := agent.Done{Action: a}
			if a.Kind == agent.ActionStart {
				d.Started = &blixardv1.SupervisedProcess{ProcessId: agent.ProcessID(a.Record), Pid: 1}
			}
			m.core.ActionDone(d, now)
			if a.Kind == agent.ActionStart {
				m.core.GuestReady(a.Record.GetAllocation().GetId(), a.Record.GetBoots(), agent.ReadyInfo{BootID: "b"}, now)
			}
		}
	}
}

// BenchmarkDeclare declares VMs over the API, which go through the log to the leader,
// are placed, reach the agents of their nodes and are reported running: all of the
// product but hypervisors, on one disk.
func BenchmarkDeclare(b *testing.B) {
	const callers, conns = 256, 4
	for _, nodes := range []int{100, 1000} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			for range b.N {
				w := newWorld(b)
				ctx, cancel := context.WithCancel(b.Context())
				var agents, calls sync.WaitGroup
				var running, again atomic.Int64
				var pool []*client.Client
				for range conns {
					c, err := client.Dial(ctx, client.Config{Addr: "unix:" + w.socket})
					if err != nil {
						b.Fatal(err)
					}
					pool = append(pool, c)
				}
				for n := range nodes {
					m := &machines{
						id: fmt.Sprintf("node-%04d", n), api: pool[n%conns].Agents(), running: &running,
						core: agent.NewCore(agent.Limits{}, driver.AcceleratorTCG, func() []byte { return make([]byte, 16) }),
					}
					agents.Go(func() {
						for ctx.Err() == nil {
							if err := m.run(ctx); ctx.Err() == nil {
								again.Add(1)
								b.Log(m.id, err)
							}
						}
					})
				}
				for len(w.replica.View().Nodes()) < nodes {
					<-time.After(10 * time.Millisecond)
				}
				begun := time.Now()
				var next atomic.Int64
				for c := range callers {
					vms := pool[c%conns].VMs()
					calls.Go(func() {
						for {
							n := next.Add(1)
							if n > declared {
								return
							}
							_, err := vms.CreateVM(ctx, &blixardv1.CreateVMRequest{
								IdempotencyKey: "k" + strconv.Itoa(int(n)), Name: "vm" + strconv.Itoa(int(n)),
								Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 64},
							})
							if err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				calls.Wait()
				acked := time.Since(begun)
				for placed(w) < declared {
					<-time.After(10 * time.Millisecond)
				}
				all := time.Since(begun)
				for running.Load() < declared {
					<-time.After(10 * time.Millisecond)
				}
				ran := time.Since(begun)
				b.ReportMetric(declared/acked.Seconds(), "acked/s")
				b.ReportMetric(declared/all.Seconds(), "placed/s")
				b.ReportMetric(declared/ran.Seconds(), "running/s")
				b.ReportMetric(float64(again.Load()), "lists")
				cancel()
				agents.Wait()
				for _, c := range pool {
					_ = c.Close()
				}
			}
		})
	}
}

// declared VMs in one round.
const declared = 20_000

// placed counts the VMs that have a place.
func placed(w *world) (n int) {
	for _, vm := range w.replica.View().VMs("", 0) {
		if vm.GetStatus().GetAllocationId() != "" {
			n++
		}
	}
	return n
}

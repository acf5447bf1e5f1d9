package server_test

import (
	"context"
	"fmt"
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
	id   string
	api  blixardv1.AgentServiceClient
	core *agent.Core
	out  agent.Outbox
	*tally
}

// tally is what is seen of all nodes.
type tally struct {
	// running VMs that the cluster was told of, and lists that began anew.
	running, again atomic.Int64
	// begun is told of each VM whose start the cluster asked for; nil for nobody.
	begun func(*blixardv1.Allocation)
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
			resp, err := m.api.RenewLease(ctx, &blixardv1.RenewLeaseRequest{NodeId: m.id, Incarnation: 1})
			if err == nil {
				lease.Granted(sent, resp.GetTtl().AsDuration())
			}
			select {
			case <-time.After(lease.RenewAfter(err != nil)):
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
			if a.Kind != agent.ActionStart {
				continue
			}
			alloc, boots := a.Record.GetAllocation(), a.Record.GetBoots()
			if m.begun != nil {
				m.begun(alloc)
			}
			m.core.GuestReady(alloc.GetId(), boots, agent.ReadyInfo{BootID: "b"}, now)
			if alloc.GetKeepOutput() != nil { // it is a task's, whose command ends at once
				m.core.GuestExited(alloc.GetId(), boots, &blixardv1.GuestExit{Reason: "exit"}, now)
				m.core.ProcessEnded(alloc.GetId(), boots, driver.Exit{At: now}, true)
			}
		}
	}
}

// startMachines begins nodes of the cluster over that many connections, which it gives, and
// waits until the cluster knows them. stop ends them all.
func (w *world) startMachines(b *testing.B, nodes, conns int, seen *tally) (pool []*client.Client, stop func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	for range conns {
		c, err := client.Dial(ctx, client.Config{Addr: "unix:" + w.socket})
		if err != nil {
			b.Fatal(err)
		}
		pool = append(pool, c)
	}
	sub := w.replica.Subscribe(w.replica.View().Index())
	var agents sync.WaitGroup
	for n := range nodes {
		m := &machines{
			id: fmt.Sprintf("node-%04d", n), api: pool[n%conns].Agents(), tally: seen,
			core: agent.NewCore(agent.Limits{}, driver.AcceleratorTCG, func() []byte { return make([]byte, 16) }),
		}
		agents.Go(func() {
			for ctx.Err() == nil {
				if err := m.run(ctx); ctx.Err() == nil {
					seen.again.Add(1)
					b.Log(m.id, err)
				}
			}
		})
	}
	for len(w.replica.View().Nodes()) < nodes {
		if _, _, err := sub.Next(ctx); err != nil {
			b.Fatal(err)
		}
	}
	return pool, func() {
		cancel()
		agents.Wait()
		for _, c := range pool {
			_ = c.Close()
		}
	}
}

package server_test

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// BenchmarkDeclare declares VMs over the API, which go through the log to the leader,
// are placed, reach the agents of their nodes and are reported running: all of the
// product but hypervisors, on one disk.
func BenchmarkDeclare(b *testing.B) {
	const callers, conns = 256, 4
	for _, nodes := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			for range b.N {
				w := newWorld(b)
				ctx := b.Context()
				var seen tally
				pool, stop := w.startMachines(b, nodes, conns, &seen)
				var calls sync.WaitGroup
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
				for seen.running.Load() < declared {
					<-time.After(10 * time.Millisecond)
				}
				ran := time.Since(begun)
				b.ReportMetric(declared/acked.Seconds(), "acked/s")
				b.ReportMetric(declared/all.Seconds(), "placed/s")
				b.ReportMetric(declared/ran.Seconds(), "running/s")
				b.ReportMetric(float64(seen.again.Load()), "lists")
				stop()
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

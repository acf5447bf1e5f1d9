package server_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// submission is a task whose machine is as small as can be.
func submission(name string, count uint32) *blixardv1.SubmitTaskRequest {
	return &blixardv1.SubmitTaskRequest{
		IdempotencyKey: "k-" + name, Name: name, Count: count,
		Spec: &blixardv1.TaskSpec{Vm: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 64, Command: []string{"true"}}},
	}
}

// awaitSucceeded returns when that many tasks have succeeded. One who falls behind what the
// state keeps of changes counts anew.
func (w *world) awaitSucceeded(ctx context.Context, count int) error {
	for {
		view := w.replica.View()
		left := count
		for _, t := range view.Tasks("", 0) {
			if t.GetStatus().GetState() == blixardv1.TaskState_succeeded {
				left--
			}
		}
		sub := w.replica.Subscribe(view.Index())
		for left > 0 {
			changes, _, err := sub.Next(ctx)
			if problem.HasCode(err, "watch.compacted") {
				break
			}
			if err != nil {
				return err
			}
			for _, c := range changes {
				if c.Kind == state.KindTask && !c.Deleted && c.Task.GetStatus().GetState() == blixardv1.TaskState_succeeded {
					left--
				}
			}
		}
		if left <= 0 {
			return nil
		}
	}
}

// BenchmarkTasks submits tasks over the API, each in a call of its own or many in one, which
// go through the log to the leader, get a machine of their own on a node, and end there with
// 0: all of the product but hypervisors, on one disk.
func BenchmarkTasks(b *testing.B) {
	const nodes, callers, conns = 100, 256, 4
	for _, each := range []struct{ submissions, count int }{{5_000, 0}, {10, 1_000}} {
		tasks := each.submissions * max(1, each.count)
		b.Run(fmt.Sprintf("submissions=%d/tasks=%d", each.submissions, tasks), func(b *testing.B) {
			for range b.N {
				w := newWorld(b)
				var seen tally
				pool, stop := w.startMachines(b, nodes, conns, &seen)
				ended := make(chan error, 1)
				go func() { ended <- w.awaitSucceeded(b.Context(), tasks) }()
				begun, before := time.Now(), used(b)
				var next atomic.Int64
				var calls sync.WaitGroup
				for c := range callers {
					api := pool[c%conns].Tasks()
					calls.Go(func() {
						for n := next.Add(1); n <= int64(each.submissions); n = next.Add(1) {
							if _, err := api.SubmitTask(b.Context(), submission(fmt.Sprint("t", n), uint32(each.count))); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				calls.Wait()
				submitted := time.Since(begun)
				if b.Failed() {
					b.FailNow()
				}
				if err := <-ended; err != nil {
					b.Fatal(err)
				}
				succeeded := time.Since(begun)
				b.ReportMetric(float64(tasks)/submitted.Seconds(), "submitted/s")
				b.ReportMetric(float64(tasks)/succeeded.Seconds(), "succeeded/s")
				b.ReportMetric(float64((used(b)-before).Microseconds())/float64(tasks), "cpu-µs/task")
				b.ReportMetric(float64(seen.again.Load()), "lists")
				stop()
			}
		})
	}
}

// BenchmarkTaskBegins submits one task at a time to an idle cluster, and measures from the
// submission until the agent of a node is asked to start its machine.
func BenchmarkTaskBegins(b *testing.B) {
	const nodes, conns = 100, 4
	w := newWorld(b)
	begun := make(chan time.Time, 1)
	seen := tally{begun: func(*blixardv1.Allocation) { begun <- time.Now() }}
	pool, stop := w.startMachines(b, nodes, conns, &seen)
	api := pool[0].Tasks()
	var waits []time.Duration
	for n := 0; b.Loop(); n++ {
		submitted := time.Now()
		if _, err := api.SubmitTask(b.Context(), submission(fmt.Sprint("t", n), 0)); err != nil {
			b.Fatal(err)
		}
		waits = append(waits, (<-begun).Sub(submitted))
		b.StopTimer()
		if err := w.awaitSucceeded(b.Context(), n+1); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(waits)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	b.ReportMetric(ms(waits[len(waits)/2]), "p50-ms")
	b.ReportMetric(ms(waits[len(waits)*99/100]), "p99-ms")
	stop()
}

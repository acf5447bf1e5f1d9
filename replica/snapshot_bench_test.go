package replica

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

const (
	// loadClients change objects while the snapshot is written, one change each at a
	// time.
	loadClients = 16
	// probeInterval between looks how long the loop makes a caller wait.
	probeInterval = 500 * time.Microsecond
	// quietTimePerObject of the same load without a snapshot, to compare with: about
	// as long as one takes.
	quietTimePerObject = 12 * time.Microsecond
)

// declaration is a VM as people declare them.
func declaration(i int) *blixardv1.Command {
	name := fmt.Sprintf("web-%07d", i)
	return &blixardv1.Command{Actor: "user:1000", Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
		Id: fmt.Sprintf("vm-%016x", uint64(i)*0x9e3779b97f4a7c15), Name: name,
		Labels: map[string]string{"app": fmt.Sprintf("shop-%d", i%100), "tier": "front", "owner": "team-a"},
		Spec: &blixardv1.VMSpec{
			Image: "registry.example.org/shop/web:1.42.0", Vcpus: 2, MemoryMib: 512, DiskBytes: 1 << 30,
			Command: []string{"/usr/bin/web", "--listen", "0.0.0.0:8080"}, Hostname: name,
			Env:     []*blixardv1.EnvVar{{Name: "REGION", Value: "eu-1"}, {Name: "SHARD", Value: fmt.Sprint(i)}},
			Desired: blixardv1.DesiredState_stop, Restart: &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_on_failure, MaxRestarts: 5},
			OnNodeLoss: blixardv1.NodeLossPolicy_replace,
		},
	}}}
}

func declare(b *testing.B, r *Replica, n int) {
	slots := make(chan struct{}, batchOfChanges)
	for i := range n {
		slots <- struct{}{}
		r.ProposeAsync(declaration(i), func(res state.Result, err error) {
			if err != nil || res.Problem != nil {
				b.Error(err, res.Problem)
			}
			<-slots
		})
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
}

// waits are how long callers waited at most, and what was done meanwhile.
type waits struct {
	loop, change time.Duration
	changes      int64
}

// underLoad does something beside changes, and tells how long the loop and the
// changes made their callers wait.
func underLoad(b *testing.B, r *Replica, objects int, do func()) waits {
	ctx, cancel := context.WithCancel(testContext(b))
	defer cancel()
	var running sync.WaitGroup
	var loop, change, changes atomic.Int64
	most := func(m *atomic.Int64, d time.Duration) {
		for old := m.Load(); int64(d) > old && !m.CompareAndSwap(old, int64(d)); old = m.Load() {
		}
	}
	for c := range loadClients {
		running.Go(func() {
			for i := c; ctx.Err() == nil; i = (i + 7919) % objects {
				cmd := label(fmt.Sprintf("web-%07d", i), fmt.Sprint(i))
				began := time.Now()
				if res, err := r.Propose(testContext(b), cmd); err != nil || res.Problem != nil {
					b.Error(err, res.Problem)
					return
				}
				most(&change, time.Since(began))
				changes.Add(1)
			}
		})
	}
	running.Go(func() {
		tick := time.NewTicker(probeInterval)
		defer tick.Stop()
		for ctx.Err() == nil {
			began := time.Now()
			if err := r.call(testContext(b), func(*core) { most(&loop, time.Since(began)) }); err != nil {
				b.Error(err)
			}
			<-tick.C
		}
	})
	do()
	cancel()
	running.Wait()
	return waits{time.Duration(loop.Load()), time.Duration(change.Load()), changes.Load()}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkSnapshotOfObjects writes a snapshot of many VMs under a load of
// changes and starts again from it. Run it with -benchtime 1x.
func BenchmarkSnapshotOfObjects(b *testing.B) {
	for _, objects := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(objects), func(b *testing.B) {
			for b.Loop() {
				snapshotOfObjects(b, objects)
			}
		})
	}
}

func snapshotOfObjects(b *testing.B, objects int) {
	c := testConfig(b.TempDir())
	c.SegmentBytes, c.SnapshotEntries, c.SnapshotBytes = 0, 1<<40, 1<<40
	r, err := Open(testContext(b), c)
	if err != nil {
		b.Fatal(err)
	}
	declare(b, r, objects)
	alone := time.Duration(objects) * quietTimePerObject
	quiet := underLoad(b, r, objects, func() { <-time.After(alone) })
	var took time.Duration
	busy := underLoad(b, r, objects, func() {
		began := time.Now()
		if err := r.Compact(testContext(b)); err != nil {
			b.Error(err)
		}
		took = time.Since(began)
	})
	// The next one holds what was changed meanwhile: the start is from it alone.
	if err := r.Compact(testContext(b)); err != nil {
		b.Fatal(err)
	}
	index := r.View().Index()
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
	size := newestSnapshotBytes(b, c.Dir)
	r = nil
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	r, err = Open(testContext(b), c)
	ready := time.Since(began)
	if err != nil {
		b.Fatal(err)
	}
	if r.View().Index() < index || len(r.View().VMs("", 0)) != objects {
		b.Errorf("index %d of %d, %d VMs", r.View().Index(), index, len(r.View().VMs("", 0)))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(milliseconds(quiet.loop), "quiet-loop-ms")
	b.ReportMetric(milliseconds(quiet.change), "quiet-change-ms")
	b.ReportMetric(float64(quiet.changes)/alone.Seconds(), "quiet-changes/s")
	b.ReportMetric(milliseconds(busy.loop), "loop-ms")
	b.ReportMetric(milliseconds(busy.change), "change-ms")
	b.ReportMetric(float64(busy.changes)/took.Seconds(), "changes/s")
	b.ReportMetric(took.Seconds(), "write-s")
	b.ReportMetric(float64(size)/(1<<20), "MiB")
	b.ReportMetric(ready.Seconds(), "start-s")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "heap-MiB")
	b.ReportMetric(0, "ns/op")
}

func newestSnapshotBytes(b *testing.B, dir string) int64 {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.snap"))
	if err != nil || len(files) == 0 {
		b.Fatal("no snapshot", err)
	}
	slices.Sort(files)
	st, err := os.Stat(files[len(files)-1])
	if err != nil {
		b.Fatal(err)
	}
	return st.Size()
}

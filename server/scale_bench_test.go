package server_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
)

// memory gives a line of the process's status in MiB.
func memory(b *testing.B, line string) float64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), line+":")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kib) / 1024
}

// used gives the processor time of the process.
func used(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkScale has as many agents as a large cluster, in a process of their own, each
// with its connection, its stream and its lease, and as many VMs that run there: what the
// process of the leader takes of memory, what of a processor while nothing but leases is
// asked for, and how long it takes to start again from its snapshot.
func BenchmarkScale(b *testing.B) {
	const proposers, quiet = 512, 30 * time.Second
	for _, size := range []struct{ agents, vms int }{{100, 10_000}, {10_000, 1_000_000}} {
		b.Run(fmt.Sprintf("agents=%d/vms=%d", size.agents, size.vms), func(b *testing.B) {
			for range b.N {
				w := newWorld(b)
				stdout, end := w.crowd(b, crowd{Socket: w.socket, Agents: size.agents})
				begun := time.Now()
				var next atomic.Int64
				var calls sync.WaitGroup
				for range proposers {
					calls.Go(func() {
						for n := next.Add(1); n <= int64(size.vms); n = next.Add(1) {
							if err := declare(b.Context(), w.replica, int(n)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				calls.Wait()
				lines := bufio.NewScanner(stdout)
				for lines.Scan() {
					if n, _ := strconv.Atoi(lines.Text()); n >= size.vms {
						break
					}
				}
				b.ReportMetric(float64(size.vms)/time.Since(begun).Seconds(), "running/s")
				b.ReportMetric(memory(b, "VmHWM"), "MiB-peak")
				settle(w)
				runtime.GC()
				var heap runtime.MemStats
				runtime.ReadMemStats(&heap)
				b.ReportMetric(float64(heap.HeapAlloc)/(1<<20), "MiB-heap")
				before, from := used(b), time.Now()
				<-time.After(quiet)
				b.ReportMetric(100*float64(used(b)-before)/float64(time.Since(from)), "%core")
				b.ReportMetric(memory(b, "VmRSS"), "MiB")
				for {
					err := w.replica.Compact(b.Context())
					if err == nil {
						break
					}
					if !problem.HasCode(err, "snapshot.busy") {
						b.Fatal(err)
					}
					<-time.After(time.Second)
				}
				end()
				w.end()
				from = time.Now()
				r, err := replica.Open(b.Context(), w.config)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(from).Seconds(), "s-restart")
				if n := len(r.View().VMs("", 0)); n != size.vms {
					b.Errorf("%d VMs after the start", n)
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// settle waits until nothing changed for a while: what is late is done then.
func settle(w *world) {
	const still = 5 * time.Second
	for index := uint64(0); w.replica.View().Index() != index; {
		index = w.replica.View().Index()
		<-time.After(still)
	}
}

// declare proposes a VM as the server does.
func declare(ctx context.Context, r *replica.Replica, n int) error {
	res, err := r.Propose(ctx, &blixardv1.Command{
		Actor: "user:1000", Time: timestamppb.Now(), Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
			Id: fmt.Sprintf("vm-%016x", uint64(n)*0x9e3779b97f4a7c15), Name: fmt.Sprintf("web-%07d", n),
			Labels: map[string]string{"app": fmt.Sprintf("shop-%d", n%100)},
			Spec: &blixardv1.VMSpec{
				Image: "busybox", Vcpus: 1, MemoryMib: 64, DiskBytes: 1 << 30, NoNetwork: true,
				Command: []string{"/usr/bin/web", "--listen", "0.0.0.0:8080"},
				Env:     []*blixardv1.EnvVar{{Name: "SHARD", Value: strconv.Itoa(n)}},
			},
		}},
	})
	if err != nil {
		return err
	}
	if res.Problem != nil {
		return res.Problem
	}
	return nil
}

package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
)

// crowdEnv makes the test binary the process of the agents: "SOCKET COUNT".
const crowdEnv = "BLIXARD_TEST_AGENTS"

func TestMain(m *testing.M) {
	if at, n, ok := strings.Cut(os.Getenv(crowdEnv), " "); ok {
		count, err := strconv.Atoi(n)
		if err == nil {
			err = crowd(at, count)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// crowd runs agents, each with a connection of its own, until its input ends. It says
// how many VMs run whenever that changed.
func crowd(socket string, count int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	seen := &tally{}
	var agents sync.WaitGroup
	for n := range count {
		c, err := client.Dial(ctx, client.Config{Addr: "unix:" + socket})
		if err != nil {
			return err
		}
		m := &machines{
			id: nodeID(n), api: c.Agents(), tally: seen,
			core: agent.NewCore(agent.Limits{}, driver.AcceleratorTCG, func() []byte { return make([]byte, 16) }),
		}
		agents.Go(func() {
			defer c.Close()
			for ctx.Err() == nil {
				if err := m.run(ctx); ctx.Err() == nil {
					fmt.Fprintln(os.Stderr, m.id, err)
					<-time.After(time.Second)
				}
			}
		})
	}
	for last := int64(-1); ctx.Err() == nil; {
		if now := seen.running.Load(); now != last {
			fmt.Println(now)
			last = now
		}
		<-time.After(500 * time.Millisecond)
	}
	agents.Wait()
	return nil
}

func nodeID(n int) string { return fmt.Sprintf("node-%05d", n) }

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
				stdout, end := w.crowd(b, size.agents)
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

// crowd begins agents in a process of their own and waits until the cluster knows them all.
// What it gives says how many VMs run; end ends them.
func (w *world) crowd(b *testing.B, agents int) (stdout io.Reader, end func()) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", crowdEnv, w.socket, agents))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for len(w.replica.View().Nodes()) < agents {
		<-time.After(100 * time.Millisecond)
	}
	return out, func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	}
}

// BenchmarkLeases has ten thousand agents that do nothing but keep their leases: what that
// takes of one processor in the process of the leader.
func BenchmarkLeases(b *testing.B) {
	const agents, quiet = 10_000, 30 * time.Second
	for _, ttl := range []time.Duration{10 * time.Second, 30 * time.Second} {
		b.Run(fmt.Sprintf("ttl=%v", ttl), func(b *testing.B) {
			for range b.N {
				w := newWorldOf(b, ttl)
				stdout, end := w.crowd(b, agents)
				go func() { _, _ = io.Copy(io.Discard, stdout) }()
				settle(w)
				before, from := used(b), time.Now()
				<-time.After(quiet)
				b.ReportMetric(100*float64(used(b)-before)/float64(time.Since(from)), "%core")
				end()
				w.end()
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

package qemu

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/driver/drivertest"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/guest/kernel"
	"github.com/blixard/blixard/supervisor"
)

// rounds of the benchmark; each measures both ways, one after the other, so that
// what else the host does hits them alike.
const rounds = 21

// BenchmarkJail boots our own kernel up to init's first line, and a tiny one up to
// its greeting, with and without a jail.
func BenchmarkJail(b *testing.B) {
	k := boottest.Kernel(b, boottest.Bundle(b), bundle.KernelOwn)
	own := driver.Config{
		Kernel: k.Path, Initramfs: k.InitramfsPath, Cmdline: k.CommandLineTCG(kernel.HostTSCKHz()), ACPI: k.ACPI,
		Console: k.Console, MemoryMiB: 256,
	}
	tiny := driver.Config{Kernel: drivertest.TinyKernel(b, b.TempDir()), Console: consoleSerial, MemoryMiB: 32}
	for name, base := range map[string]driver.Config{"own": own, "tiny": tiny} {
		says := map[string]string{"own": "blixard-guest: ", "tiny": drivertest.TinyHello}[name]
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			b.Cleanup(func() { endSupervisor(b, dir) })
			s := spawner(b, dir)
			d := New(Config{Spawner: s, KVMDevice: "/nonexistent"})
			if _, err := d.Probe(b.Context()); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				var free, jailed, differences []time.Duration
				for i := range rounds {
					var took [2]time.Duration
					for _, j := range [][]int{{0, 1}, {1, 0}}[i%2] {
						cfg := base
						cfg.Dir, cfg.VCPUs, cfg.Lane = b.TempDir(), 1, driver.LaneShared
						cfg.LogPath = cfg.Dir + "/console.log"
						jail := testJail()
						cfg.ProcessID = "a" + time.Now().Format("150405.000000000")
						if j == 1 {
							cfg.Jail = jail
						}
						took[j] = bootTo(b, d, s, cfg, says)
					}
					if i == 0 {
						continue // the first one lists the program's libraries and warms the page cache
					}
					free, jailed, differences = append(free, took[0]), append(jailed, took[1]), append(differences, took[1]-took[0])
				}
				ms := func(d []time.Duration) float64 {
					slices.Sort(d)
					return float64(d[len(d)/2].Microseconds()) / 1000
				}
				b.ReportMetric(ms(free), "free-ms")
				b.ReportMetric(ms(jailed), "jailed-ms")
				b.ReportMetric(ms(differences), "difference-ms")
				b.ReportMetric(ms(jailed)/ms(free), "ratio")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// bootTo gives the time until the console says something.
func bootTo(b *testing.B, d driver.Driver, s *supervisor.Client, cfg driver.Config, says string) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), boottest.Patience)
	defer cancel()
	began := time.Now()
	vm, err := d.Start(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	c, err := s.Console(ctx, cfg.Lane, cfg.ProcessID, false, false)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var seen strings.Builder
	for !strings.Contains(seen.String(), says) {
		o, err := c.Recv()
		if err != nil {
			b.Fatalf("%v, after %q", err, seen.String())
		}
		seen.Write(o.Data)
	}
	took := time.Since(began)
	if err := vm.Kill(ctx); err != nil {
		b.Fatal(err)
	}
	_, err = vm.Wait(ctx)
	if err := errors.Join(err, vm.Forget(ctx), vm.Close()); err != nil {
		b.Fatal(err)
	}
	return took
}

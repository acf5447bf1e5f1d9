//go:build linux

package boottest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/guest/kernel"
)

// rounds of each benchmark of this file; each round measures all variants one after the other, so that what
// else the host does hits them alike.
const rounds = 11

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// bootReady gives the time from the exec of QEMU to the ready event at the host, and init's own share.
func bootReady(b *testing.B, s boottest.Spec) (total, kernelTime, init time.Duration) {
	b.Helper()
	m := boottest.Boot(b, s)
	st := m.Ready(m.Connect(), config("sleep", "1000000"))
	total = time.Since(m.Started)
	m.Kill()
	return total, time.Duration(st.InitStartUS) * time.Microsecond, time.Duration(st.ReadyUS) * time.Microsecond
}

// BenchmarkBoot boots our own kernel with disks and the agent's channel up to the ready event at the host,
// beside the stock kernel up to init's first line, with neither.
func BenchmarkBoot(b *testing.B) {
	bu := boottest.Bundle(b)
	own, stock := boottest.Kernel(b, bu, bundle.KernelOwn), boottest.Kernel(b, bu, bundle.KernelDebian)
	disk := writable(b)
	for b.Loop() {
		var ready, kernelTime, init, first []time.Duration
		for range rounds {
			r, k, i := bootReady(b, boottest.Spec{Kernel: own, MemoryMiB: 256, Image: image(b, bu), Writable: disk})
			ready, kernelTime, init = append(ready, r), append(kernelTime, k), append(init, i)
			// The stock kernel as its users start it, but told the counter's rate, without which it may hang.
			m := boottest.Boot(b, boottest.Spec{
				Kernel: stock, MemoryMiB: 256, NoGuestControl: true,
				Cmdline: fmt.Sprintf("console=ttyS0 quiet reboot=t panic=-1 tsc_early_khz=%d", kernel.HostTSCKHz()),
			})
			m.AwaitConsole("blixard-guest: ")
			first = append(first, time.Since(m.Started))
			m.Kill()
		}
		r, f := median(ready), median(first)
		b.ReportMetric(milliseconds(r), "ready-ms")
		b.ReportMetric(milliseconds(median(kernelTime)), "kernel-ms")
		b.ReportMetric(milliseconds(median(init)), "init-ms")
		b.ReportMetric(milliseconds(f), "stock-init-ms")
		b.ReportMetric(float64(r)/float64(f), "ratio")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkChoices boots with one choice undone at a time: what it costs is what the choice saves.
func BenchmarkChoices(b *testing.B) {
	bu := boottest.Bundle(b)
	own, stock := boottest.Kernel(b, bu, bundle.KernelOwn), boottest.Kernel(b, bu, bundle.KernelDebian)
	disk := writable(b)
	spec := boottest.Spec{Kernel: own, MemoryMiB: 256, Image: image(b, bu), Writable: disk}
	line := own.CommandLineTCG(kernel.HostTSCKHz())
	variants := []struct {
		name string
		spec boottest.Spec
	}{
		{"none", spec},
		{"debian-kernel", with(spec, func(s *boottest.Spec) { s.Kernel = stock })},
		{"pic-off", with(spec, func(s *boottest.Spec) { s.Machine = []string{"pic=off"} })},
		{"pit-off", with(spec, func(s *boottest.Spec) { s.Machine = []string{"pit=off"} })},
		{"rtc-off", with(spec, func(s *boottest.Spec) { s.Machine = []string{"rtc=off"} })},
		{"serial-console", with(spec, func(s *boottest.Spec) {
			s.Kernel.Console, s.Cmdline = bundle.ConsoleSerial, replaced(line, "console=hvc0", "console=ttyS0")
		})},
		{"verbose", with(spec, func(s *boottest.Spec) { s.Cmdline = replaced(line, "quiet", "") })},
	}
	for _, word := range []string{"no_timer_check", "noreplace-smp", "tsc=reliable", "lapic_timer_khz=", "tsc_early_khz=", "lpj="} {
		variants = append(variants, struct {
			name string
			spec boottest.Spec
		}{"without-" + word, with(spec, func(s *boottest.Spec) { s.Cmdline = without(line, word) })})
	}
	for b.Loop() {
		took := make([][]time.Duration, len(variants))
		for range rounds {
			for i, v := range variants {
				r, _, _ := bootReady(b, v.spec)
				took[i] = append(took[i], r)
			}
		}
		base := median(took[0])
		b.ReportMetric(milliseconds(base), "base-ms")
		for i, v := range variants[1:] {
			b.ReportMetric(milliseconds(median(took[i+1])-base), v.name+"-ms")
		}
		b.ReportMetric(0, "ns/op")
	}
}

func with(s boottest.Spec, change func(*boottest.Spec)) boottest.Spec {
	change(&s)
	return s
}

func replaced(line, word, by string) string { return strings.Replace(line, word, by, 1) }

// without takes the words that begin so out of a kernel's command line.
func without(line, begin string) string {
	words := slices.DeleteFunc(strings.Fields(line), func(w string) bool { return strings.HasPrefix(w, begin) })
	return strings.Join(words, " ")
}

//go:build linux

package boottest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
)

// BenchmarkCalls measures round trips into a running guest: a ping, a whole exec of the shortest program up to its
// exit, and what the guest's own shell takes to run that program. The floor of an exec is the ping and that together:
// emulation makes a new process expensive, whoever asks for it.
func BenchmarkCalls(b *testing.B) {
	const calls = 200
	bu := boottest.Bundle(b)
	m := boottest.Boot(b, boottest.Spec{
		Kernel: boottest.Kernel(b, bu, bundle.KernelOwn), MemoryMiB: 256, Image: image(b, bu), Writable: writable(b),
	})
	s := m.Connect()
	m.Ready(s, config("sleep", "1000000"))
	for b.Loop() {
		var pings, execs []time.Duration
		for range calls {
			d, err := s.Ping(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			pings = append(pings, d)
			begin := time.Now()
			if out, code := m.Exec(s, "true"); code != 0 {
				b.Fatal(out)
			}
			execs = append(execs, time.Since(begin))
		}
		var begin, end float64
		out, _ := m.Exec(s, "sh", "-c", fmt.Sprintf("read a x </proc/uptime; for i in $(seq %d); do /bin/true; done; read b x </proc/uptime; echo $a $b", calls))
		if _, err := fmt.Sscan(out, &begin, &end); err != nil {
			b.Fatal(out, err)
		}
		ping, exec, shell := milliseconds(median(pings)), milliseconds(median(execs)), (end-begin)/calls*1000
		b.ReportMetric(ping, "ping-ms")
		b.ReportMetric(exec, "exec-ms")
		b.ReportMetric(shell, "shell-ms")
		b.ReportMetric(exec-ping-shell, "above-ms")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkEquipment boots with one more piece of equipment at a time: what init takes longer for each.
func BenchmarkEquipment(b *testing.B) {
	bu := boottest.Bundle(b)
	spec := boottest.Spec{
		Kernel: boottest.Kernel(b, bu, bundle.KernelOwn), MemoryMiB: 256, Image: image(b, bu), Writable: writable(b), Volumes: []string{volume(b)}, MAC: mac,
	}
	full := equipped("sleep", "1000000")
	bare := config("sleep", "1000000")
	bare.Hostname = ""
	variants := []struct {
		name string
		cfg  guest.BootConfig
	}{{"bare", bare}}
	for _, piece := range []struct {
		name string
		add  func(*guest.BootConfig)
	}{
		{"nic", func(c *guest.BootConfig) { c.Interfaces = full.Interfaces }},
		{"names", func(c *guest.BootConfig) { c.Hostname, c.DNS, c.Search = full.Hostname, full.DNS, full.Search }},
		{"volume", func(c *guest.BootConfig) { c.Mounts = full.Mounts }},
		{"files", func(c *guest.BootConfig) { c.Files = full.Files[:1] }},
		{"secrets", func(c *guest.BootConfig) { c.Secrets = full.Secrets }},
		{"keys", func(c *guest.BootConfig) { c.SSHKeys = full.SSHKeys }},
	} {
		cfg := bare
		piece.add(&cfg)
		variants = append(variants, struct {
			name string
			cfg  guest.BootConfig
		}{piece.name, cfg})
	}
	variants = append(variants, struct {
		name string
		cfg  guest.BootConfig
	}{"all", full})
	for b.Loop() {
		took := make([][]time.Duration, len(variants))
		for range rounds {
			for i, v := range variants {
				s := spec
				s.Writable = writable(b)
				m := boottest.Boot(b, s)
				st := m.Ready(m.Connect(), v.cfg)
				m.Kill()
				took[i] = append(took[i], time.Duration(st.ReadyUS)*time.Microsecond)
			}
		}
		base := median(took[0])
		b.ReportMetric(milliseconds(base), "bare-ms")
		for i, v := range variants[1:] {
			b.ReportMetric(milliseconds(median(took[i+1])-base), v.name+"-ms")
		}
		b.ReportMetric(0, "ns/op")
	}
}

package state

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// manyVM declares a VM as people do.
func manyVM(i int) *blixardv1.Command {
	name := fmt.Sprintf("web-%07d", i)
	return &blixardv1.Command{
		Actor: "user:1000", Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
			Id: fmt.Sprintf("vm-%016x", uint64(i)*0x9e3779b97f4a7c15), Name: name,
			Labels: map[string]string{"app": fmt.Sprintf("shop-%d", i%100), "tier": "front"},
			Spec: &blixardv1.VMSpec{
				Image: "registry.example.org/shop/web:1.42.0", Vcpus: 2, MemoryMib: 512, DiskBytes: 1 << 30,
				Command: []string{"/usr/bin/web", "--listen", "0.0.0.0:8080"}, Hostname: name,
				Env:     []*blixardv1.EnvVar{{Name: "SHARD", Value: fmt.Sprint(i)}},
				Restart: &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_on_failure, MaxRestarts: 5},
			},
		}},
	}
}

// manyVMs is a state of VMs as people declare them.
func manyVMs(b *testing.B, n int) *State {
	s := New(DefaultLimits())
	var entries []Entry
	for i := range n {
		entries = append(entries, Entry{Index: uint64(i + 1), Command: manyVM(i)})
	}
	for _, r := range s.Apply(entries) {
		if r.Problem != nil {
			b.Fatal(r.Problem)
		}
	}
	return s
}

const manyObjects = 100_000

func BenchmarkWriteSnapshot(b *testing.B) {
	view := manyVMs(b, manyObjects).View()
	for b.Loop() {
		if err := view.WriteSnapshot(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/manyObjects, "ns/object")
}

func BenchmarkRestore(b *testing.B) {
	var stream bytes.Buffer
	if err := manyVMs(b, manyObjects).View().WriteSnapshot(&stream); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := New(DefaultLimits()).Restore(bytes.NewReader(stream.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/manyObjects, "ns/object")
}

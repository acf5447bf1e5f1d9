package state

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// BenchmarkHeld holds VMs that run on nodes, as declarations, plans and reports made
// them, and as a snapshot gives them back: what each takes of the heap.
func BenchmarkHeld(b *testing.B) {
	const vms, perNode = 100_000, 100
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		s := New(DefaultLimits())
		index := uint64(0)
		apply := func(cmd *blixardv1.Command) Result {
			b.Helper()
			index++
			cmd.Time = timestamppb.New(time.Unix(1_800_000_000+int64(index)/1000, 0))
			wire, err := proto.Marshal(cmd) // as the log gives it
			if err != nil {
				b.Fatal(err)
			}
			read := &blixardv1.Command{}
			if err := proto.Unmarshal(wire, read); err != nil {
				b.Fatal(err)
			}
			r := s.Apply([]Entry{{Index: index, Command: read}})[0]
			if r.Problem != nil {
				b.Fatal(r.Problem)
			}
			return r
		}
		for n := range vms / perNode {
			apply(&blixardv1.Command{Actor: "node", Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
				NodeId: fmt.Sprintf("node-%012d", n), Name: fmt.Sprintf("n%d", n), Incarnation: 1,
				Fingerprint: &blixardv1.NodeFingerprint{Capacity: &blixardv1.Resources{Vcpus: 1024, MemoryMib: 1 << 24, DiskBytes: 1 << 50}, Images: []string{"busybox"}},
			}}})
			apply(&blixardv1.Command{Actor: "leader", Change: &blixardv1.Command_SetNodeState{SetNodeState: &blixardv1.SetNodeStateCommand{
				NodeId: fmt.Sprintf("node-%012d", n), Incarnation: 1, State: blixardv1.NodeState_ready,
			}}})
		}
		var plan []*blixardv1.Placement
		for i := range vms {
			cmd := manyVM(i)
			id := cmd.GetCreateVm().GetId()
			apply(cmd)
			plan = append(plan, &blixardv1.Placement{
				VmId: id, VmModifyIndex: index, NodeId: fmt.Sprintf("node-%012d", i/perNode), AllocationId: fmt.Sprintf("alloc-%016x", uint64(i)*0x9e3779b97f4a7c15),
			})
			if len(plan) < perNode {
				continue
			}
			apply(&blixardv1.Command{Actor: "leader", Change: &blixardv1.Command_Place{Place: &blixardv1.PlaceCommand{Placements: plan}}})
			for _, st := range []blixardv1.AllocationState_Enum{stPreparing, stStarting, stRunning} {
				report := &blixardv1.ReportCommand{NodeId: plan[0].GetNodeId(), Incarnation: 1}
				for _, p := range plan {
					status := &blixardv1.VMStatus{
						State: st, Reason: "starting", Message: "the hypervisor is starting", Accelerator: "kvm", ObservedGeneration: 1, StartCount: 1,
						StartedAt: timestamppb.New(time.Unix(1_800_000_000, 0)), ImageDigest: "sha256:6124d6678bc1c897fcc27fd21d25a847dadbfa8a276000b6af8a93b560054deb",
					}
					if st == stRunning {
						status.Reason, status.Message, status.BootId = "ready", "the guest is ready", fmt.Sprintf("9076155a-33dd-7f67-7b6b-%012d", i)
						status.ReadyAt, status.ReadyMs, status.Kernel, status.KernelRelease = status.GetStartedAt(), 200, "own", "6.1.192"
					}
					report.Reports = append(report.Reports, &blixardv1.AllocationReport{AllocationId: p.GetAllocationId(), Epoch: 1, Status: status})
				}
				apply(&blixardv1.Command{Actor: "node:" + plan[0].GetNodeId(), Change: &blixardv1.Command_Report{Report: report}})
			}
			plan = nil
		}
		b.ReportMetric((heap()-before)/vms, "B/VM")
		var stream bytes.Buffer
		if err := s.View().WriteSnapshot(&stream); err != nil {
			b.Fatal(err)
		}
		s = nil
		before = heap()
		s = New(DefaultLimits())
		begun := time.Now()
		if err := s.Restore(bytes.NewReader(stream.Bytes())); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(begun).Nanoseconds())/vms, "ns/restored-VM")
		b.ReportMetric((heap()-before)/vms, "B/restored-VM")
		runtime.KeepAlive(s)
		runtime.KeepAlive(&stream)
	}
}

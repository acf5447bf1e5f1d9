package state

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// draw gives any command over a few names, so that they often meet.
func draw(t *rapid.T, v *View) *blixardv1.Command {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	vm := func() string { return pick("vm", "a", "b", "c", "id-a", "id-b") }
	node := func() string { return pick("node", "n1", "n2") }
	cmd := &blixardv1.Command{Key: pick("key", "", "", "", "k1", "k2"), Actor: pick("actor", "user:0", "user:1")}
	states := rapid.Int32Range(0, int32(len(moves)))
	switch rapid.IntRange(0, 18).Draw(t, "kind") {
	case 0:
		name := pick("name", "a", "b", "c")
		cmd.Change = &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
			Id: "id-" + name, Name: name, Labels: map[string]string{"x": "1", "y": "2"},
			Spec: &blixardv1.VMSpec{
				Image: "busybox", Vcpus: 1, MemoryMib: uint32(rapid.IntRange(64, 200).Draw(t, "memory")), DiskBytes: 5,
				OnNodeLoss: blixardv1.NodeLossPolicy_Enum(rapid.IntRange(0, 3).Draw(t, "policy")),
				Scheduling: &blixardv1.Scheduling{Priority: rapid.SampledFrom([]*uint32{nil, proto.Uint32(0), proto.Uint32(70)}).Draw(t, "priority")},
			},
		}}
	case 1:
		cmd.Change = &blixardv1.Command_SetVmDesired{SetVmDesired: &blixardv1.SetVMDesiredCommand{
			Name: vm(), Desired: blixardv1.DesiredState_Enum(rapid.IntRange(0, 2).Draw(t, "desired")),
			StartAgain: rapid.Bool().Draw(t, "again"), Force: rapid.Bool().Draw(t, "force"), TimeoutMs: rapid.Int64Range(0, 2).Draw(t, "timeout"),
		}}
	case 2:
		cmd.Change = &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: vm()}}
	case 3:
		cmd.Change = &blixardv1.Command_LabelVm{LabelVm: &blixardv1.LabelVMCommand{Name: vm(), Labels: map[string]string{"l": pick("value", "1", "2")}}}
	case 4:
		place := &blixardv1.PlaceCommand{}
		for _, declared := range v.VMs("", 0) {
			place.Placements = append(place.Placements, &blixardv1.Placement{
				VmId: declared.GetId(), AllocationId: fmt.Sprintf("al-%d", rapid.IntRange(0, 50).Draw(t, "allocation")), NodeId: node(),
				VmModifyIndex: declared.GetModifyIndex() - uint64(rapid.IntRange(0, 1).Draw(t, "stale")),
			})
		}
		cmd.Change = &blixardv1.Command_Place{Place: place}
	case 5:
		r := &blixardv1.ReportCommand{NodeId: node()}
		for _, a := range v.Allocations() {
			r.Reports = append(r.Reports, &blixardv1.AllocationReport{
				AllocationId: a.GetId(), Epoch: a.GetEpoch() - uint64(rapid.IntRange(0, 1).Draw(t, "old")), Removed: rapid.Bool().Draw(t, "removed"),
				Status: &blixardv1.VMStatus{State: blixardv1.AllocationState_Enum(states.Draw(t, "state"))},
			})
		}
		cmd.Change = &blixardv1.Command_Report{Report: r}
	case 6:
		id := node()
		cmd.Change = &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
			NodeId: id, Name: "name-" + id, Incarnation: rapid.Uint64Range(1, 3).Draw(t, "incarnation"),
			Fingerprint: &blixardv1.NodeFingerprint{Capacity: &blixardv1.Resources{Vcpus: 2, MemoryMib: 500, DiskBytes: 12}},
		}}
	case 7:
		states := []blixardv1.NodeState_Enum{blixardv1.NodeState_ready, blixardv1.NodeState_suspect, blixardv1.NodeState_down, blixardv1.NodeState_down}
		id := node()
		cmd.Change = &blixardv1.Command_SetNodeState{SetNodeState: &blixardv1.SetNodeStateCommand{
			NodeId: id, Incarnation: v.Node(id).GetIncarnation(), State: rapid.SampledFrom(states).Draw(t, "state of the node"),
		}}
	case 8:
		lose := &blixardv1.LoseCommand{}
		for _, a := range v.Allocations() {
			if rapid.Bool().Draw(t, "lose") {
				lose.AllocationIds = append(lose.AllocationIds, a.GetId())
			}
		}
		cmd.Change = &blixardv1.Command_Lose{Lose: lose}
	case 9:
		cmd.Change = &blixardv1.Command_MoveVm{MoveVm: &blixardv1.MoveVMCommand{Name: vm(), ToNodeId: pick("to", "", "n1", "n2", "n3"), Force: rapid.Bool().Draw(t, "force")}}
	case 10:
		cmd.Change = &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{
			Node: node(), Cordoned: proto.Bool(rapid.Bool().Draw(t, "cordoned")), SetLabels: map[string]string{"l": pick("value", "1", "2")},
		}}
	case 11:
		preempt := &blixardv1.PreemptCommand{VmId: vm()}
		for _, a := range v.Allocations() {
			if rapid.Bool().Draw(t, "preempt") {
				preempt.AllocationIds = append(preempt.AllocationIds, a.GetId())
			}
		}
		cmd.Change = &blixardv1.Command_Preempt{Preempt: preempt}
	case 12:
		update := &blixardv1.UpdateNodeCommand{Node: node()}
		if rapid.Bool().Draw(t, "drop") {
			update.DropTaints = []string{"t"}
		} else {
			update.SetTaints = []*blixardv1.Taint{{Key: "t", Effect: blixardv1.TaintEffect_Enum(rapid.IntRange(0, 2).Draw(t, "effect"))}}
		}
		cmd.Change = &blixardv1.Command_UpdateNode{UpdateNode: update}
	case 13:
		drain := &blixardv1.DrainNodeCommand{Node: node(), Drain: rapid.Bool().Draw(t, "drain"), Gradual: rapid.Bool().Draw(t, "gradual")}
		if rapid.Bool().Draw(t, "with a deadline") {
			drain.Deadline = durationpb.New(time.Duration(rapid.IntRange(-1, 3).Draw(t, "deadline")))
		}
		cmd.Change = &blixardv1.Command_DrainNode{DrainNode: drain}
	case 14:
		n := v.Node(node())
		advance := &blixardv1.AdvanceDrainCommand{
			NodeId: n.GetId(), BegunIndex: n.GetDrain().GetBegunIndex(), State: blixardv1.DrainState_Enum(rapid.IntRange(0, 3).Draw(t, "drain state")),
			Expired: rapid.Bool().Draw(t, "expired"),
		}
		if rapid.Bool().Draw(t, "notes") {
			advance.Left = durationpb.New(time.Duration(rapid.IntRange(-1, 3).Draw(t, "left")))
		}
		for _, a := range v.Allocations() {
			if rapid.Bool().Draw(t, "leaves") {
				advance.AllocationIds = append(advance.AllocationIds, a.GetId())
			}
		}
		cmd.Change = &blixardv1.Command_AdvanceDrain{AdvanceDrain: advance}
	case 15:
		cmd.Change = &blixardv1.Command_SetSettings{SetSettings: &blixardv1.SetSettingsCommand{
			CpuPercent:    rapid.SampledFrom([]*uint32{nil, proto.Uint32(0), proto.Uint32(50), proto.Uint32(100), proto.Uint32(1)}).Draw(t, "cpu"),
			MemoryPercent: rapid.SampledFrom([]*uint32{nil, proto.Uint32(0), proto.Uint32(50), proto.Uint32(300)}).Draw(t, "memory ratio"),
			DiskPercent:   rapid.SampledFrom([]*uint32{nil, proto.Uint32(0), proto.Uint32(40), proto.Uint32(300)}).Draw(t, "disk ratio"),
		}}
	case 16:
		cmd.Change = &blixardv1.Command_PruneEvents{PruneEvents: &blixardv1.PruneEventsCommand{ThroughIndex: rapid.Uint64Range(0, v.Index()).Draw(t, "through")}}
	case 17:
		cmd.Change = &blixardv1.Command_SetBusy{SetBusy: &blixardv1.SetBusyCommand{Nodes: []*blixardv1.NodeBusy{{NodeId: node(), Busy: rapid.Bool().Draw(t, "busy"), LoadPercent: proto.Uint32(70)}}}}
	default:
		cmd.Change = &blixardv1.Command_SetVmReason{SetVmReason: &blixardv1.SetVMReasonCommand{VmId: vm(), Reason: pick("reason", "x", "y")}}
	}
	return cmd
}

// content is the state without the index and what is remembered of keys.
func content(v *View) string {
	var b strings.Builder
	for _, o := range v.VMs("", 0) {
		fmt.Fprintln(&b, o)
	}
	for _, o := range v.Allocations() {
		fmt.Fprintln(&b, o)
	}
	for _, o := range v.Nodes() {
		fmt.Fprintln(&b, o)
	}
	fmt.Fprint(&b, len(v.Events(nil, 0)), v.Settings())
	return b.String()
}

// TestRandomLives feeds random commands to three replicas: one that applies them
// one by one, one that applies all in batches, and one that is restored from a
// snapshot now and then. All agree, and the promises hold after every step.
func TestRandomLives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, restored, batched := newStory(), New(DefaultLimits()), New(DefaultLimits())
		epochs := map[string]uint64{}
		var batch []Entry
		var want []Result
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			before := content(one.s.View())
			cmd := draw(t, one.s.View())
			r := one.do(cmd)
			e := Entry{Index: one.index, Command: proto.CloneOf(cmd)}
			batch, want = append(batch, Entry{Index: one.index, Command: proto.CloneOf(cmd)}), append(want, r)
			if r.Problem != nil && content(one.s.View()) != before {
				t.Fatalf("%v was refused (%v) and changed\n%s\nto\n%s", cmd, r.Problem, before, content(one.s.View()))
			}
			hold(t, one.s.View(), epochs)
			onlyLowerYield(t, cmd, r, one.s.View())
			drainsHold(t, cmd, r, one.s.View())
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				restored = again(t, restored)
			}
			if got := restored.Apply([]Entry{e})[0]; outline(got) != outline(r) {
				t.Fatalf("the restored replica answered %s, not %s", outline(got), outline(r))
			}
			if rapid.Bool().Draw(t, "flush") {
				for i, got := range batched.Apply(batch) {
					if outline(got) != outline(want[i]) {
						t.Fatalf("in a batch the answer is %s, not %s", outline(got), outline(want[i]))
					}
				}
				batch, want = nil, nil
			}
		}
		batched.Apply(batch)
		hash := one.s.View().Hash()
		if restored.View().Hash() != hash || batched.View().Hash() != hash {
			t.Fatal("the replicas have come to different states")
		}
	})
}

// onlyLowerYield checks what a preemption took: nothing of equal or higher priority, and
// nothing that stays. Specs do not change here.
func onlyLowerYield(t *rapid.T, cmd *blixardv1.Command, r Result, v *View) {
	if cmd.GetPreempt() == nil || r.Problem != nil || r.Repeated {
		return
	}
	for _, id := range cmd.GetPreempt().GetAllocationIds() {
		a := v.Allocation(id)
		if a.GetModifyIndex() == r.Index && (Priority(a.GetSpec()) >= Priority(r.VM.GetSpec()) || Stays(a) != "") {
			t.Fatalf("%v makes room for %v", a, r.VM)
		}
		if !Going(a) {
			t.Fatalf("%v was to make room and stays", a)
		}
	}
}

// drainsHold checks what a drain did: nothing went that stays, one that is done has nothing
// left to go, and its time only grows less.
func drainsHold(t *rapid.T, cmd *blixardv1.Command, r Result, v *View) {
	c := cmd.GetAdvanceDrain()
	if c == nil || r.Problem != nil || r.Repeated {
		return
	}
	d := r.Node.GetDrain()
	if d.GetLeft().AsDuration() > d.GetDeadline().AsDuration() || d.GetExpired() && d.GetDeadline() == nil {
		t.Fatalf("a drain became %v", d)
	}
	for _, a := range v.AllocationsOfNode(r.Node.GetId()) {
		if a.GetModifyIndex() == r.Index && Stays(a) != "" {
			t.Fatalf("%v leaves in a drain", a)
		}
		if d.GetState() == blixardv1.DrainState_done && !Lost(a) && (Stays(a) == "" || a.GetDesired() == blixardv1.DesiredAllocation_remove) {
			t.Fatalf("a drain is done with %v on the node", a)
		}
	}
}

func outline(r Result) string {
	code := ""
	if r.Problem != nil {
		code = r.Problem.Code
	}
	return fmt.Sprint(r.Index, code, r.Repeated, r.VM.GetId(), r.VM.GetModifyIndex(), r.Node.GetId(), len(r.Refused))
}

func again(t *rapid.T, s *State) *State {
	var b bytes.Buffer
	if err := s.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	next := New(DefaultLimits())
	if err := next.Restore(&b); err != nil {
		t.Fatal(err)
	}
	return next
}

// hold checks what is promised of every state.
func hold(t *rapid.T, v *View, epochs map[string]uint64) {
	sums := map[string]*blixardv1.Resources{}
	alive := map[string]int{}
	for _, a := range v.Allocations() {
		sums[a.GetNodeId()] = add(sums[a.GetNodeId()], v.Limits().Reservation(a.GetSpec()))
		if Lost(a) {
			if a.GetDesired() != blixardv1.DesiredAllocation_remove {
				t.Fatalf("what was given up is not removed: %v", a)
			}
			continue
		}
		alive[a.GetVmId()]++
		if vm := v.VM(a.GetVmId()); vm == nil || a.GetEpoch() > vm.GetStatus().GetEpoch() {
			t.Fatalf("allocation %v is of no VM of that epoch: %v", a, vm)
		}
	}
	for id, n := range alive {
		if n > 1 {
			t.Fatalf("VM %s has %d allocations", id, n)
		}
	}
	for _, n := range v.Nodes() {
		if _, ok := Fits(n.GetAllocatable(), n.GetAllocated(), nil); !ok || !proto.Equal(n.GetAllocated(), add(sums[n.GetId()], nil)) {
			t.Fatalf("node %v has %v reserved", n, sums[n.GetId()])
		}
	}
	names := map[string]bool{}
	for _, vm := range v.VMs("", 0) {
		if names[vm.GetName()] {
			t.Fatalf("two VMs have the name %s", vm.GetName())
		}
		names[vm.GetName()] = true
		key := fmt.Sprint(vm.GetId(), vm.GetCreateIndex())
		if vm.GetStatus().GetEpoch() < epochs[key] {
			t.Fatalf("the epoch of %s went from %d to %d", vm.GetName(), epochs[key], vm.GetStatus().GetEpoch())
		}
		epochs[key] = vm.GetStatus().GetEpoch()
	}
}

func sample(t testing.TB) []byte {
	st := newStory()
	for _, c := range []string{registerN1, `key: "k" ` + createA, placeA, report("running", 1), `key: "r" label_vm {name: "nobody"}`} {
		st.do(command(t, c))
	}
	var b bytes.Buffer
	if err := st.s.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDamagedSnapshots: cut anywhere or with any byte changed, a snapshot is
// refused and the state stays as it was.
func TestDamagedSnapshots(t *testing.T) {
	whole := sample(t)
	s := New(DefaultLimits())
	hash := s.View().Hash()
	check := func(what string, b []byte) {
		err := s.Restore(bytes.NewReader(b))
		if !problem.HasCode(err, "snapshot.damaged") && !problem.HasCode(err, "data.newer") {
			t.Fatalf("%s: %v", what, err)
		}
		if s.View().Hash() != hash {
			t.Fatalf("%s changed the state", what)
		}
	}
	for i := range whole {
		check(fmt.Sprintf("cut at %d", i), whole[:i])
		for _, flip := range []byte{1, 0x80} {
			b := bytes.Clone(whole)
			b[i] ^= flip
			check(fmt.Sprintf("byte %d changed", i), b)
		}
	}
	if err := s.Restore(bytes.NewReader(whole)); err != nil || s.View().VM("a") == nil {
		t.Fatal(err)
	}
	if err := s.Restore(failingReader{}); err == nil || s.View().VM("a") == nil {
		t.Errorf("%v", err)
	}
	if err := s.View().WriteSnapshot(failingWriter{}); err == nil {
		t.Error("a snapshot that nobody took")
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("read") }

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("write") }

// TestSnapshotsThatLie: every record is whole and the digest holds, and yet they
// can't all be true.
func TestSnapshotsThatLie(t *testing.T) {
	st := newStory()
	for _, c := range []string{registerN1, createA, placeA} {
		st.must(t, c)
	}
	for name, lie := range map[string]func(v *View){
		"reservations": func(v *View) { v.Node("n1").Allocated.MemoryMib++ },
		"epochs":       func(v *View) { v.Allocation("al-1").Epoch += 5 },
	} {
		v := ownCopy(t, st.s).View()
		lie(v)
		var b bytes.Buffer
		if err := v.WriteSnapshot(&b); err != nil {
			t.Fatal(err)
		}
		if err := New(DefaultLimits()).Restore(&b); !problem.HasCode(err, "snapshot.damaged") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ownCopy gives a state of its own objects.
func ownCopy(t testing.TB, s *State) *State {
	var b bytes.Buffer
	if err := s.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	next := New(DefaultLimits())
	if err := next.Restore(&b); err != nil {
		t.Fatal(err)
	}
	return next
}

// FuzzRestore: nothing that a file or a peer holds makes Restore panic or use
// memory without bound, and what it takes it gives back.
func FuzzRestore(f *testing.F) {
	whole := sample(f)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(DefaultLimits())
		if err := s.Restore(bytes.NewReader(b)); err != nil {
			return
		}
		if ownCopy(t, s).View().Hash() != s.View().Hash() {
			t.Error("a restored state is not what its own snapshot gives")
		}
	})
}

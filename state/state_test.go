package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// story feeds commands written as text to a state.
type story struct {
	s     *State
	index uint64
	clock time.Time
}

func newStory() *story { return newStoryWith(DefaultLimits()) }

func newStoryWith(l Limits) *story {
	return &story{s: New(l), clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
}

// do applies one command at the next index, a second after the last.
func (st *story) do(cmd *blixardv1.Command) Result {
	st.index++
	st.clock = st.clock.Add(time.Second)
	if cmd.Time == nil {
		cmd.Time = timestamppb.New(st.clock)
	}
	if cmd.Actor == "" {
		cmd.Actor = "user:0"
	}
	if cmd.Key != "" && cmd.Digest == nil {
		cmd.Digest = Digest(cmd)
	}
	return st.s.Apply([]Entry{{Index: st.index, Command: cmd}})[0]
}

// must applies a command that is not refused.
func (st *story) must(t testing.TB, text string) Result {
	t.Helper()
	r := st.do(command(t, text))
	if r.Problem != nil {
		t.Fatalf("%s: %v", text, r.Problem)
	}
	return r
}

// command reads a command in the text form of protobuf.
func command(t testing.TB, text string) *blixardv1.Command {
	t.Helper()
	cmd := &blixardv1.Command{}
	if err := prototext.Unmarshal([]byte(text), cmd); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return cmd
}

const (
	registerN1 = `register_node {node_id: "n1" name: "one" incarnation: 1 fingerprint {capacity {vcpus: 2 memory_mib: 1000 disk_bytes: 100}}}`
	createA    = `create_vm {id: "id-a" name: "a" spec {image: "busybox" vcpus: 1 memory_mib: 64 disk_bytes: 10}}`
	// placeA follows createA as the entry of index 2.
	placeA = `place {placements {vm_id: "id-a" allocation_id: "al-1" node_id: "n1" vm_modify_index: 2}}`
)

// report is the report of one state of allocation al-1.
func report(state string, epoch int) string {
	return fmt.Sprintf(`report {node_id: "n1" reports {allocation_id: "al-1" epoch: %d status {state: %s reason: "r"}}}`, epoch, state)
}

func describeVM(vm *blixardv1.VM) string {
	st := vm.GetStatus()
	s := fmt.Sprintf("vm %s id=%s gen=%d index=%d desired=%s state=%s", vm.GetName(), vm.GetId(), vm.GetGeneration(), vm.GetModifyIndex(),
		vm.GetSpec().GetDesired(), st.GetState())
	if st.GetNode() != "" {
		s += " node=" + st.GetNode()
	}
	if st.GetEpoch() != 0 {
		s += fmt.Sprintf(" epoch=%d", st.GetEpoch())
	}
	if st.ExitCode != nil {
		s += fmt.Sprintf(" exit=%d", st.GetExitCode())
	}
	if vm.GetDeleting() {
		s += " deleting"
	}
	if r := vm.GetReplica(); r != nil {
		s += fmt.Sprintf(" version=%d", r.GetVersion())
	}
	for _, k := range slices.Sorted(mapKeys(vm.GetLabels())) {
		s += fmt.Sprintf(" %s=%s", k, vm.GetLabels()[k])
	}
	for _, i := range vm.GetInterfaces() {
		s += fmt.Sprintf(" %s:%s/%s/%s", i.GetNetwork(), i.GetIpv4(), i.GetIpv6(), i.GetMac())
	}
	for _, p := range vm.GetSpec().GetPorts() {
		s += " port=" + PortKey(p)
	}
	return s
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (st *story) describe() string {
	var b strings.Builder
	v := st.s.View()
	for _, vm := range v.VMs("", 0) {
		fmt.Fprintln(&b, describeVM(vm))
	}
	for _, a := range v.Allocations() {
		fmt.Fprintf(&b, "allocation %s vm=%s node=%s epoch=%d desired=%s starts=%d state=%s", a.GetId(), a.GetVmName(), a.GetNodeId(),
			a.GetEpoch(), a.GetDesired(), a.GetStartCount(), a.GetStatus().GetState())
		if a.GetForceStop() {
			b.WriteString(" force")
		}
		if a.GetStopTimeout() != nil {
			fmt.Fprintf(&b, " timeout=%v", a.GetStopTimeout().AsDuration())
		}
		b.WriteString("\n")
	}
	for _, n := range v.Nodes() {
		fmt.Fprintf(&b, "node %s id=%s state=%s incarnation=%d allocated=%d/%d/%d of %d/%d/%d", n.GetName(), n.GetId(), n.GetState(), n.GetIncarnation(),
			n.GetAllocated().GetVcpus(), n.GetAllocated().GetMemoryMib(), n.GetAllocated().GetDiskBytes(),
			n.GetAllocatable().GetVcpus(), n.GetAllocatable().GetMemoryMib(), n.GetAllocatable().GetDiskBytes())
		if n.GetVolumeBytes() != 0 {
			fmt.Fprintf(&b, " volumes=%d", n.GetVolumeBytes())
		}
		if n.GetBusy() {
			b.WriteString(" busy")
		}
		b.WriteString("\n")
	}
	for _, i := range v.Images() {
		fmt.Fprintf(&b, "image %s %s nodes=%v\n", i.GetName(), i.GetDigest(), i.GetNodeIds())
	}
	for _, o := range v.Volumes() {
		fmt.Fprintf(&b, "volume %s size=%d node=%s epoch=%d vms=%v snapshots=%d", o.GetName(), o.GetSizeBytes(), o.GetNode(), o.GetEpoch(), o.GetVmIds(), len(o.GetSnapshots()))
		if o.GetMade() {
			b.WriteString(" made")
		}
		if o.GetDeleting() {
			b.WriteString(" deleting")
		}
		b.WriteString("\n")
	}
	for _, n := range v.Networks() {
		fmt.Fprintf(&b, "network %s %s %s %s vni=%d\n", n.GetName(), n.GetType(), n.GetIpv4Subnet(), n.GetIpv6Subnet(), n.GetVni())
	}
	for _, t := range v.Tasks("", 0) {
		st := t.GetStatus()
		fmt.Fprintf(&b, "task %s id=%s index=%d %s reason=%s attempt=%d tries=%d", t.GetName(), t.GetId(), t.GetModifyIndex(), st.GetState(), st.GetReason(), st.GetAttempt(), st.GetTries())
		if st.GetVmId() != "" {
			fmt.Fprintf(&b, " vm=%s", st.GetVmId())
		}
		if st.GetAllocationId() != "" {
			fmt.Fprintf(&b, " on=%s/%s/%s", st.GetNode(), st.GetNodeId(), st.GetAllocationId())
		}
		if st.ExitCode != nil {
			fmt.Fprintf(&b, " exit=%d", st.GetExitCode())
		}
		for _, at := range []struct {
			word string
			time *timestamppb.Timestamp
		}{{"started", st.GetStartedAt()}, {"finished", st.GetFinishedAt()}, {"next", st.GetNextTryAt()}} {
			if at.time != nil {
				fmt.Fprintf(&b, " %s=%s", at.word, at.time.AsTime().Format(time.TimeOnly))
			}
		}
		b.WriteString("\n")
	}
	for _, s := range v.Schedules("", 0) {
		st := s.GetStatus()
		fmt.Fprintf(&b, "schedule %s id=%s index=%d until=%s runs=%d skipped=%d missed=%d reason=%s", s.GetName(), s.GetId(), s.GetModifyIndex(),
			st.GetDecidedUntil().AsTime().Format(time.TimeOnly), st.GetRuns(), st.GetSkipped(), st.GetMissed(), st.GetReason())
		if st.GetPaused() {
			b.WriteString(" paused")
		}
		if st.GetQueued() {
			b.WriteString(" queued")
		}
		b.WriteString("\n")
	}
	for _, g := range v.Groups("", 0) {
		b.WriteString(describeGroup(g))
	}
	for _, o := range v.Secrets() {
		fmt.Fprintf(&b, "secret %s %d bytes\n", o.GetName(), o.GetSizeBytes())
	}
	for _, o := range v.Quotas() {
		fmt.Fprintf(&b, "quota %s %s\n", o.GetProject(), limitsText(o.GetLimits()))
	}
	return b.String()
}

// describeGroup tells of a group and of the versions that it remembers.
func describeGroup(g *blixardv1.Group) string {
	st := g.GetStatus()
	s := fmt.Sprintf("group %s id=%s gen=%d index=%d replicas=%d seen=%d/%d/%d/%d/%d version=%d good=%d failures=%d", g.GetName(), g.GetId(), g.GetGeneration(), g.GetModifyIndex(),
		g.GetSpec().GetReplicas(), st.GetReplicas(), st.GetReady(), st.GetAvailable(), st.GetUpdated(), st.GetUpdatedAvailable(), st.GetVersion(), st.GetGoodVersion(), st.GetFailures())
	if g.GetSpec().GetPaused() {
		s += " paused"
	}
	if g.GetDeleting() {
		s += " deleting"
	}
	if st.GetReason() != "" {
		s += " reason=" + st.GetReason()
	}
	s += "\n"
	for _, v := range g.GetVersions() {
		s += fmt.Sprintf("  version %d template=%d image=%s %s", v.GetNumber(), v.GetTemplate(), v.GetVm().GetImage(), v.GetState())
		if v.GetPromoted() {
			s += " promoted"
		}
		if v.GetRollback() {
			s += " rollback"
		}
		s += fmt.Sprintf(" (%s)", v.GetCause())
		if v.GetMessage() != "" {
			s += " " + v.GetMessage()
		}
		s += "\n"
	}
	return s
}

func limitsText(l *blixardv1.QuotaLimits) string {
	var words []string
	for _, r := range everyBounded {
		if limit := *r.limit(l); limit != nil {
			words = append(words, fmt.Sprintf("%s=%d", r.field, *limit))
		}
	}
	return strings.Join(words, " ")
}

// usages tells what each project has.
func (st *story) usages() string {
	var b strings.Builder
	for _, u := range st.s.View().ProjectUsages("", 0) {
		fmt.Fprintf(&b, "project %s:", u.GetProject())
		for _, r := range everyBounded {
			fmt.Fprintf(&b, " %s=%d", r.field, *r.used(u))
		}
		if len(u.GetOver()) > 0 {
			fmt.Fprintf(&b, " over=%v", u.GetOver())
		}
		b.WriteString("\n")
	}
	return b.String()
}

// outcome tells a result and what watchers are told of it.
func (st *story) outcome(r Result, before uint64) string {
	var b strings.Builder
	switch {
	case r.Problem != nil:
		fmt.Fprintf(&b, "refused: %s: %s\n", r.Problem.Code, r.Problem.Message)
	case r.Repeated:
		fmt.Fprintf(&b, "repeated, as of %d\n", r.Index)
	default:
		fmt.Fprintf(&b, "done at %d\n", r.Index)
	}
	if r.VM != nil {
		fmt.Fprintf(&b, "gives %s\n", describeVM(r.VM))
	}
	for _, f := range r.Refused {
		fmt.Fprintf(&b, "part %s%s%s%s refused: %s\n", f.AllocationID, f.TaskID, f.ScheduleID, f.GroupID, f.Problem.Code)
	}
	changes, err := st.s.View().ChangesAfter(before)
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, c := range changes {
		if c.Kind == KindEvent {
			fmt.Fprintf(&b, "event %s %s %s\n", c.Event.GetKind(), c.Event.GetObjectName(), c.Event.GetReason())
		}
	}
	return b.String()
}

// TestStories runs the scenario files: each command, its result, the events it
// causes, and the state when asked.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		st := newStory()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "apply":
				var out strings.Builder
				for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
					before := st.index
					r := st.do(command(t, line))
					out.WriteString(st.outcome(r, before))
				}
				return out.String()
			case "state":
				return st.describe()
			case "usage":
				return st.usages()
			case "restart":
				var b bytes.Buffer
				if err := st.s.View().WriteSnapshot(&b); err != nil {
					t.Fatal(err)
				}
				hash := st.s.View().Hash()
				st.s = New(DefaultLimits())
				if err := st.s.Restore(&b); err != nil {
					t.Fatal(err)
				}
				if st.s.View().Hash() != hash {
					return "another state\n"
				}
				return "the same state\n"
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}

// TestLegalMoves is the whole table, as it is promised.
func TestLegalMoves(t *testing.T) {
	legal := map[string]string{
		"pending":   "pending preparing starting running stopping stopped failed unknown",
		"preparing": "preparing starting running stopping stopped failed unknown",
		"starting":  "starting running stopping stopped failed unknown",
		"running":   "starting running stopping stopped failed unknown",
		"stopping":  "stopping stopped failed unknown",
		"stopped":   "preparing starting running stopping stopped failed unknown",
		"failed":    "preparing starting running stopping stopped failed unknown",
		"lost":      "",
		"unknown":   "preparing starting running stopping stopped failed unknown",
	}
	for from, f := range blixardv1.AllocationState_Enum_value {
		for next, n := range blixardv1.AllocationState_Enum_value {
			want := slices.Contains(strings.Fields(legal[from]), next)
			if got := LegalMove(blixardv1.AllocationState_Enum(f), blixardv1.AllocationState_Enum(n)); got != want {
				t.Errorf("%s to %s is %v", from, next, got)
			}
		}
	}
	if LegalMove(-1, stRunning) || LegalMove(stRunning, 99) {
		t.Error("states that are none")
	}
}

// TestIllegalMovesAreCounted: a report that the table refuses changes nothing.
func TestIllegalMovesAreCounted(t *testing.T) {
	st := newStory()
	for _, c := range []string{registerN1, createA, placeA, report("running", 1), report("stopping", 1)} {
		st.must(t, c)
	}
	before := st.describe()
	if r := st.do(command(t, report("running", 1))); !problem.HasCode(r.Problem, "allocation.illegal_move") {
		t.Errorf("%+v", r)
	}
	if r := st.do(command(t, report("stopped", 9))); !problem.HasCode(r.Problem, "allocation.fenced") {
		t.Errorf("%+v", r)
	}
	if after := st.describe(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if got := st.s.Stats(); got != (Stats{IllegalMoves: 1, FencedReports: 1}) {
		t.Errorf("%+v", got)
	}
}

// TestLaterLifeIsTaken: a node whose daemon lost the end of a life with its memory is
// heard again with the next life, however that is told.
func TestLaterLifeIsTaken(t *testing.T) {
	for name, later := range map[string]func(*blixardv1.VMStatus){
		"asked for":    func(s *blixardv1.VMStatus) { s.StartCount++ },
		"by policy":    func(s *blixardv1.VMStatus) { s.Restarts++ },
		"by the clock": func(s *blixardv1.VMStatus) { s.StartedAt = timestamppb.New(time.Unix(200, 0)) },
	} {
		st := newStory()
		for _, c := range []string{registerN1, createA, placeA, report("running", 1)} {
			st.must(t, c)
		}
		stopping := command(t, report("stopping", 1))
		stopping.GetReport().Reports[0].Status.StartedAt = timestamppb.New(time.Unix(100, 0))
		if r := st.do(stopping); r.Problem != nil {
			t.Fatal(r.Problem)
		}
		next := command(t, report("running", 1))
		next.GetReport().Reports[0].Status.StartedAt = timestamppb.New(time.Unix(100, 0))
		later(next.GetReport().Reports[0].Status)
		if r := st.do(next); r.Problem != nil {
			t.Errorf("%s: %v", name, r.Problem)
		}
		next.GetReport().Reports[0].Status.State = stPending
		if r := st.do(next); !problem.HasCode(r.Problem, "allocation.illegal_move") {
			t.Errorf("%s: pending again: %v", name, r.Problem)
		}
	}
}

func TestIdempotencyKeys(t *testing.T) {
	st := newStory()
	first := st.must(t, `key: "k" `+createA)
	again := st.must(t, `key: "k" create_vm {id: "id-other" name: "a" spec {image: "busybox" vcpus: 1 memory_mib: 64 disk_bytes: 10}}`)
	if !again.Repeated || again.VM.GetId() != first.VM.GetId() || again.Index != first.Index {
		t.Errorf("the repeat gave %+v", again)
	}
	if r := st.do(command(t, `key: "k" label_vm {name: "a"}`)); !problem.HasCode(r.Problem, "idempotency.mismatch") {
		t.Errorf("another change with the key gave %+v", r)
	}
	// A key belongs to its caller.
	if r := st.do(command(t, `key: "k" actor: "user:1" label_vm {name: "a" labels {key: "l" value: "1"}}`)); r.Problem != nil || r.Repeated {
		t.Errorf("another caller's key gave %+v", r)
	}
	// Refusals are remembered too.
	refused := `key: "r" label_vm {name: "nobody"}`
	if r := st.do(command(t, refused)); !problem.HasCode(r.Problem, "vm.not_found") || r.Repeated {
		t.Errorf("%+v", r)
	}
	st.must(t, `create_vm {id: "id-n" name: "nobody" spec {image: "busybox"}}`)
	if r := st.do(command(t, refused)); !problem.HasCode(r.Problem, "vm.not_found") || !r.Repeated {
		t.Errorf("%+v", r)
	}
	// An answer about what is gone names it.
	st.must(t, `delete_vm {name: "a"}`)
	if r := st.must(t, `key: "k" `+createA); !r.Repeated || r.VM.GetName() != "a" || !r.VM.GetDeleting() {
		t.Errorf("%+v", r)
	}
	node := st.must(t, `key: "n" `+registerN1)
	if r := st.must(t, `key: "n" `+registerN1); !r.Repeated || r.Node.GetId() != "n1" || r.Node.GetModifyIndex() != node.Node.GetModifyIndex() {
		t.Errorf("%+v", r)
	}
}

// A refusal names its field when it comes, and not when it is given again: what is kept of it
// is what members keep that know of no fields.
func TestFieldsAreNotKept(t *testing.T) {
	st := newStory()
	st.must(t, createA)
	const taken = `key: "k" create_vm {id: "vm-2" name: "a" spec {image: "busybox"}}`
	for _, want := range []int{1, 0} {
		r := st.do(command(t, taken))
		if !problem.HasCode(r.Problem, "vm.name_taken") || r.Problem.Hint == "" || len(r.Problem.Violations) != want {
			t.Errorf("%+v, want %d fields", r.Problem, want)
		}
	}
	if kept := st.s.answers[len(st.s.answers)-1].problem.Proto(); len(kept.GetViolations()) != 0 {
		t.Errorf("kept: %v", kept)
	}
}

func TestAnswersAreForgotten(t *testing.T) {
	limits := DefaultLimits()
	limits.Answers = 3
	st := newStoryWith(limits)
	st.must(t, createA)
	label := func(key string) Result {
		return st.must(t, fmt.Sprintf(`key: "%s" label_vm {name: "a"}`, key))
	}
	for _, k := range []string{"1", "2", "3"} {
		label(k)
	}
	if !label("1").Repeated {
		t.Error("one of three was forgotten")
	}
	label("4")
	if label("1").Repeated {
		t.Error("four are kept")
	}
	st.clock = st.clock.Add(limits.AnswersWindow + time.Minute)
	label("5")
	if label("4").Repeated {
		t.Error("an old answer is kept")
	}
}

func TestWatchFromAnIndex(t *testing.T) {
	limits := DefaultLimits()
	limits.Changes, limits.Events = 4, 2
	st := newStoryWith(limits)
	st.must(t, createA)
	for i := range 5 {
		st.must(t, fmt.Sprintf(`label_vm {name: "a" labels {key: "l" value: "%d"}}`, i))
	}
	v := st.s.View()
	changes, err := v.ChangesAfter(st.index - 2) // two commands, each with an event
	if err != nil || len(changes) != 4 {
		t.Fatalf("%d changes, %v", len(changes), err)
	}
	for i, c := range changes {
		if want := st.index - 1 + uint64(i/2); c.Index != want {
			t.Errorf("change %d is of index %d, not %d", i, c.Index, want)
		}
	}
	for _, index := range []uint64{0, st.index - 3, st.index + 1} {
		if _, err := v.ChangesAfter(index); !problem.HasCode(err, "watch.compacted") {
			t.Errorf("from %d: %v", index, err)
		}
	}
	if changes, err := v.ChangesAfter(st.index); err != nil || len(changes) != 0 {
		t.Errorf("%v, %v", changes, err)
	}
	if all, one := v.Events(nil, 0), v.Events(&blixardv1.EventFilter{Object: "a"}, 1); len(all) != 2 || len(one) != 1 || one[0].GetIndex() != st.index {
		t.Errorf("%d events, %v", len(all), one)
	}
	if none := v.Events(&blixardv1.EventFilter{Object: "b"}, 0); len(none) != 0 {
		t.Errorf("%v", none)
	}
}

func TestViewsDoNotChange(t *testing.T) {
	st := newStory()
	for _, c := range []string{registerN1, createA, placeA} {
		st.must(t, c)
	}
	v := st.s.View()
	hash := v.Hash()
	for _, c := range []string{report("running", 1), `delete_vm {name: "a"}`, `create_vm {id: "id-b" name: "b" spec {image: "busybox"}}`} {
		st.must(t, c)
	}
	if v.Hash() != hash || v.VM("b") != nil || v.VM("id-a").GetDeleting() {
		t.Error("a view changed")
	}
	if n := v.Node("one"); n != v.Node("n1") || n.GetAllocated().GetMemoryMib() != 64+v.Limits().OverheadMiB {
		t.Errorf("%v", n)
	}
	if len(v.AllocationsOfVM("id-a")) != 1 || len(v.AllocationsOfNode("n1")) != 1 || len(v.AllocationsOfNode("n2")) != 0 || v.Allocation("al-1") == nil {
		t.Error("allocations are not found")
	}
	if vms := st.s.View().VMs("a", 1); len(vms) != 1 || vms[0].GetName() != "b" {
		t.Errorf("the page after a is %v", vms)
	}
}

// TestReportsOfAnEarlierStart: what an agent had on its way when it died comes behind the
// reports of its next start, and changes nothing (seed 1995744028228 of the simulator).
func TestReportsOfAnEarlierStart(t *testing.T) {
	s, index := New(DefaultLimits()), uint64(0)
	apply := func(cmd *blixardv1.Command) Result {
		index++
		return s.Apply([]Entry{{Index: index, Command: cmd}})[0]
	}
	register := func(incarnation uint64) {
		if r := apply(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
			NodeId: "n", Name: "n", Incarnation: incarnation, Fingerprint: &blixardv1.NodeFingerprint{Capacity: &blixardv1.Resources{Vcpus: 1, MemoryMib: 1024}},
		}}}); r.Problem != nil {
			t.Fatal(r.Problem)
		}
	}
	report := func(incarnation uint64, state blixardv1.AllocationState_Enum) Result {
		return apply(&blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{NodeId: "n", Incarnation: incarnation, Reports: []*blixardv1.AllocationReport{{
			AllocationId: "al", Epoch: 1, Status: &blixardv1.VMStatus{State: state, StartCount: 1},
		}}}}})
	}
	register(1)
	apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{Id: "id-a", Name: "a", Spec: &blixardv1.VMSpec{MemoryMib: 64}}}})
	if r := apply(&blixardv1.Command{Change: &blixardv1.Command_Place{Place: &blixardv1.PlaceCommand{Placements: []*blixardv1.Placement{{
		VmId: "id-a", AllocationId: "al", NodeId: "n", VmModifyIndex: index,
	}}}}}); r.Problem != nil {
		t.Fatal(r.Problem)
	}
	register(2)
	if r := report(2, blixardv1.AllocationState_failed); r.Problem != nil {
		t.Fatal(r.Problem)
	}
	if r := report(1, blixardv1.AllocationState_starting); r.Problem == nil || r.Problem.Code != "report.incarnation" {
		t.Errorf("a report of the earlier start was taken: %v", r.Problem)
	}
	if got := s.View().VM("a").GetStatus().GetState(); got != blixardv1.AllocationState_failed {
		t.Errorf("the VM is %v", got)
	}
	for _, incarnation := range []uint64{0, 2, 3} { // of an older build, of this start, of one that registers soon
		if r := report(incarnation, blixardv1.AllocationState_starting); r.Problem != nil {
			t.Errorf("a report of start %d: %v", incarnation, r.Problem)
		}
	}
}

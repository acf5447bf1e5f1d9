package state

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// crowded is VM big, of priority 70, that waits for the room of those on node n1.
func crowded(t *testing.T) *story {
	st := newStory()
	st.must(t, registerN1)
	for name, spec := range map[string]string{
		"low": "scheduling {priority: 10}", "zero": "scheduling {priority: 0}", "plain": "", "even": "scheduling {priority: 70}",
		"high": "scheduling {priority: 80}", "kept": "scheduling {priority: 0} on_node_loss: keep", "exclusive": "scheduling {priority: 0} on_node_loss: failover",
	} {
		r := st.must(t, fmt.Sprintf(`create_vm {id: "id-%s" name: "%[1]s" spec {image: "busybox" vcpus: 1 memory_mib: 20 disk_bytes: 1 %s}}`, name, spec))
		st.must(t, fmt.Sprintf(`place {placements {vm_id: "id-%s" allocation_id: "al-%[1]s" node_id: "n1" vm_modify_index: %d}}`, name, r.VM.GetModifyIndex()))
	}
	st.must(t, `create_vm {id: "id-big" name: "big" spec {image: "busybox" vcpus: 1 memory_mib: 600 disk_bytes: 1 scheduling {priority: 70}}}`)
	return st
}

// Preemption takes what is of lower priority at that moment and may go, or changes
// nothing.
func TestPreempt(t *testing.T) {
	for _, tc := range []struct {
		name    string
		victims []string
		waiting string
		code    string
		before  string // a command that comes between the decision and this one
	}{
		{name: "lower", victims: []string{"low", "zero"}},
		{name: "the default is 50", victims: []string{"plain"}},
		{name: "exclusive ones stop as ever", victims: []string{"exclusive"}},
		{name: "named twice", victims: []string{"low", "low"}},
		{name: "equal", victims: []string{"low", "even"}, code: "preempt.priority"},
		{name: "higher", victims: []string{"low", "high"}, code: "preempt.priority"},
		{name: "kept", victims: []string{"low", "kept"}, code: "preempt.stays"},
		{name: "nobody waits", waiting: "id-nobody", victims: []string{"low"}, code: "preempt.unwanted"},
		{name: "it runs", waiting: "id-high", victims: []string{"low"}, code: "preempt.unwanted"},
		{name: "it shall stop", victims: []string{"low"}, before: `set_vm_desired {name: "big" desired: stop}`, code: "preempt.unwanted"},
		{
			name: "raised meanwhile", victims: []string{"low"}, code: "preempt.priority",
			before: `update_vm {name: "low" spec {image: "busybox" vcpus: 1 memory_mib: 20 disk_bytes: 1 scheduling {priority: 70}}}`,
		},
		{
			name: "lowered meanwhile", victims: []string{"high"},
			before: `update_vm {name: "high" spec {image: "busybox" vcpus: 1 memory_mib: 20 disk_bytes: 1 scheduling {priority: 69}}}`,
		},
		{name: "gone meanwhile", victims: []string{"low", "zero"}, before: `delete_vm {name: "low"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := crowded(t)
			if tc.before != "" {
				st.must(t, tc.before)
			}
			if tc.waiting == "" {
				tc.waiting = "id-big"
			}
			cmd := &blixardv1.PreemptCommand{VmId: tc.waiting}
			for _, name := range tc.victims {
				cmd.AllocationIds = append(cmd.AllocationIds, "al-"+name)
			}
			before := content(st.s.View())
			r := st.do(&blixardv1.Command{Change: &blixardv1.Command_Preempt{Preempt: cmd}})
			if tc.code != "" {
				if !problem.HasCode(problemOf(r), tc.code) || content(st.s.View()) != before || len(r.Refused) != 1 || r.Refused[0].VMID != tc.waiting {
					t.Fatalf("%v, %v", r.Problem, r.Refused)
				}
				return
			}
			if r.Problem != nil {
				t.Fatal(r.Problem)
			}
			told := map[string]int{}
			for _, e := range st.s.View().Events(&blixardv1.EventFilter{Kinds: []string{"vm.preempted"}}, 0) {
				told[e.GetObjectName()]++
				t.Log(e.GetMessage())
			}
			for _, a := range st.s.View().Allocations() {
				name := a.GetVmName()
				if taken := slices.Contains(tc.victims, name); taken != Going(a) {
					t.Errorf("%s is taken: %v", name, Going(a))
				}
				if gone := tc.name == "gone meanwhile" && name == "low"; (told[name] == 1) != (slices.Contains(tc.victims, name) && !gone) {
					t.Errorf("%d events tell of %s", told[name], name)
				}
			}
		})
	}
}

// A VM with volumes stays where they are.
func TestVolumesAreNotPreempted(t *testing.T) {
	st := newStory()
	st.must(t, registerN1)
	st.must(t, `create_volume {id: "vol-1" name: "data" size_bytes: 10}`)
	r := st.must(t, `create_vm {id: "id-a" name: "a" spec {image: "busybox" vcpus: 1 memory_mib: 64 volumes {volume: "data" path: "/data"} scheduling {priority: 0}}}`)
	st.must(t, fmt.Sprintf(`place {placements {vm_id: "id-a" allocation_id: "al-1" node_id: "n1" vm_modify_index: %d}}`, r.VM.GetModifyIndex()))
	st.must(t, `create_vm {id: "id-b" name: "b" spec {image: "busybox" vcpus: 1 memory_mib: 900 scheduling {priority: 100}}}`)
	got := st.do(command(t, `preempt {vm_id: "id-b" allocation_ids: "al-1"}`))
	if !problem.HasCode(problemOf(got), "preempt.stays") || Yields(st.s.View().Allocation("al-1"), st.s.View().VM("b").GetSpec()) {
		t.Errorf("%v", got.Problem)
	}
}

// A node has one taint of each key, ordered; and one that a VM does not tolerate refuses
// it, whatever was planned before.
func TestTaints(t *testing.T) {
	st := newStory()
	st.must(t, registerN1)
	taints := func() string { return taintsText(st.s.View().Node("one").GetTaints()) }
	for _, tc := range []struct{ change, code, taints string }{
		{change: `set_taints {key: "gpu" value: "yes" effect: no_schedule} set_taints {key: "a" effect: evict}`, taints: "a:evict, gpu=yes:no-schedule"},
		{change: `set_taints {key: "gpu" effect: evict}`, taints: "a:evict, gpu:evict"},
		{change: `drop_taints: "a"`, taints: "gpu:evict"},
		{change: `drop_taints: "a"`, code: "taint.not_found"},
		{change: `set_taints {key: "gpu"}`, code: "taint.text"},
		{change: `set_taints {key: "-" effect: evict}`, code: "taint.text"},
		{change: `set_taints {key: "b" effect: evict} set_taints {key: "b" effect: no_schedule}`, code: "taint.twice"},
		{change: `set_taints {key: "gpu" effect: no_schedule} drop_taints: "gpu"`, code: "taint.twice"},
		{change: `cordoned: true set_taints {key: "x"}`, code: "taint.text"},
	} {
		before := content(st.s.View())
		r := st.do(command(t, `update_node {node: "one" `+tc.change+`}`))
		if tc.code != "" {
			if !problem.HasCode(problemOf(r), tc.code) || content(st.s.View()) != before {
				t.Errorf("%s: %v", tc.change, r.Problem)
			}
			continue
		}
		if r.Problem != nil || taints() != tc.taints {
			t.Errorf("%s: %v; it has %s", tc.change, r.Problem, taints())
		}
	}
	events := st.s.View().Events(&blixardv1.EventFilter{Kinds: []string{"node.tainted"}}, 0)
	if len(events) != 3 || events[2].GetMessage() != "its taints are now gpu:evict" {
		t.Errorf("%v", events)
	}
	many := &blixardv1.UpdateNodeCommand{Node: "one"}
	for k := range nodeTaintsMax {
		many.SetTaints = append(many.SetTaints, &blixardv1.Taint{Key: fmt.Sprint("k", k), Effect: blixardv1.TaintEffect_evict})
	}
	if r := st.do(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: many}}); !problem.HasCode(problemOf(r), "taint.too_many") {
		t.Errorf("%v", r.Problem)
	}
	for name, tc := range map[string]struct{ scheduling, code string }{
		"plain":     {``, "node.tainted"},
		"tolerates": {`scheduling {tolerations {key: "gpu"}}`, ""},
		"other":     {`scheduling {tolerations {key: "gpu" effect: no_schedule}}`, "node.tainted"},
	} {
		r := st.must(t, fmt.Sprintf(`create_vm {id: "id-%s" name: "%[1]s" spec {image: "busybox" vcpus: 1 memory_mib: 64 %s}}`, name, tc.scheduling))
		r = st.do(command(t, fmt.Sprintf(`place {placements {vm_id: "id-%s" allocation_id: "al-%[1]s" node_id: "n1" vm_modify_index: %d}}`, name, r.VM.GetModifyIndex())))
		if (tc.code == "") != (r.Problem == nil) || tc.code != "" && !problem.HasCode(problemOf(r), tc.code) {
			t.Errorf("%s: %v", name, r.Problem)
		}
	}
	// A new start of its agent leaves them.
	if r := st.must(t, `register_node {node_id: "n1" name: "one" incarnation: 2 fingerprint {capacity {vcpus: 2 memory_mib: 1000}}}`); taintsText(r.Node.GetTaints()) != "gpu:evict" {
		t.Errorf("%v", r.Node)
	}
}

// Older members know neither taints nor priorities.
func TestLevelOfPriorities(t *testing.T) {
	for text, want := range map[string]uint32{
		`create_vm {spec {scheduling {priority: 0}}}`:              12,
		`create_vm {spec {scheduling {tolerations {key: "gpu"}}}}`: 12,
		`update_vm {spec {scheduling {strategy: pack}}}`:           5,
		`update_node {set_taints {key: "gpu"}}`:                    12,
		`update_node {drop_taints: "gpu"}`:                         12,
		`update_node {cordoned: true}`:                             5,
		`preempt {}`:                                               12,
	} {
		if got := Level(command(t, text)); got != want {
			t.Errorf("%s is of level %d, want %d", text, got, want)
		}
	}
	if Priority(nil) != PriorityDefault || Priority(&blixardv1.VMSpec{Scheduling: &blixardv1.Scheduling{Priority: proto.Uint32(0)}}) != 0 {
		t.Error("a priority that is not set is not 50, or 0 is taken for none")
	}
}

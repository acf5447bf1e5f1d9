package state

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// groupsLife draws commands about groups and their replicas, with few names, so that they
// meet.
func groupsLife(t *rapid.T, st *story) string {
	v := st.s.View()
	pick := func(name string, of ...string) string { return rapid.SampledFrom(of).Draw(t, name) }
	name := pick("group", "g", "h")
	spec := func() string {
		s := fmt.Sprintf(`replicas: %d vm {image: "busybox" vcpus: 1 memory_mib: %d}`, rapid.IntRange(0, 3).Draw(t, "replicas"), rapid.IntRange(64, 66).Draw(t, "memory"))
		if name == "h" {
			s += " stable: true"
			if rapid.Bool().Draw(t, "own volume") {
				s += ` volumes {name: "d" path: "/d" size_bytes: 5}`
			}
		}
		return s + pick("rules", "", " update {auto_rollback: true}", " update {max_unavailable: 1}", " update {canary: 1}")
	}
	switch rapid.IntRange(0, 10).Draw(t, "op") {
	case 0:
		return fmt.Sprintf("create_group {id: \"group-%s%d\" name: %q spec {%s}}", name, st.index, name, spec())
	case 1:
		return fmt.Sprintf("update_group {name: %q expected_generation: %d spec {%s}}", name, rapid.SampledFrom([]uint64{0, v.Group(name).GetGeneration()}).Draw(t, "generation"), spec())
	case 2:
		return fmt.Sprintf("change_group {name: %q change: %s replicas: %d}", name, pick("change", "scale", "scale", "pause", "resume", "promote", "restart", "undo"), rapid.IntRange(0, 3).Draw(t, "replicas"))
	case 3:
		if rapid.IntRange(0, 2).Draw(t, "spare it") > 0 {
			return fmt.Sprintf("delete_vm {name: %q}", pick("vm", "h-0", "h-1", "one"))
		}
		return fmt.Sprintf("delete_group {name: %q}", name)
	case 4:
		return pick("alone", `create_vm {id: "id-one" name: "one" spec {image: "busybox" vcpus: 1 memory_mib: 64}}`,
			`create_vm {id: "id-two" name: "h-1" spec {image: "busybox" vcpus: 1 memory_mib: 64}}`, `rename_vm {name: "h-0" new_name: "x"}`, `update_vm {name: "h-0" spec {image: "other"}}`)
	case 5, 6, 7:
		return stepOfGroup(t, v, v.Group(name))
	}
	for _, vm := range v.Replicas(v.Group(name).GetId()) {
		if rapid.Bool().Draw(t, "pass over") {
			continue
		}
		a := v.Allocation(vm.GetStatus().GetAllocationId())
		switch {
		case a == nil:
			return fmt.Sprintf("place {placements {vm_id: %q allocation_id: \"al-%d\" node_id: \"n1\" vm_modify_index: %d}}", vm.GetId(), st.index, vm.GetModifyIndex())
		case rapid.IntRange(0, 3).Draw(t, "gone") == 0:
			return fmt.Sprintf("report {node_id: \"n1\" reports {allocation_id: %q epoch: %d removed: true}}", a.GetId(), a.GetEpoch())
		}
		return fmt.Sprintf("report {node_id: \"n1\" reports {allocation_id: %q epoch: %d status {state: %s}}}", a.GetId(), a.GetEpoch(), pick("state", "running", "running", "stopped"))
	}
	return fmt.Sprintf("delete_group {name: %q}", pick("nobody", "k", "l"))
}

// stepOfGroup draws a step that a leader might take, or might not.
func stepOfGroup(t *rapid.T, v *View, g *blixardv1.Group) string {
	var s strings.Builder
	fmt.Fprintf(&s, "step_groups {steps {group_id: %q group_modify_index: %d", g.GetId(), g.GetModifyIndex()-uint64(rapid.IntRange(0, 5).Draw(t, "stale")/5))
	for range rapid.IntRange(0, 3).Draw(t, "create") {
		fmt.Fprintf(&s, " create {group_id: %q version: %d ordinal: %d}", g.GetId(), rapid.Uint64Range(1, max(1, g.GetStatus().GetVersion())).Draw(t, "version"), rapid.IntRange(0, 2).Draw(t, "ordinal"))
	}
	for _, vm := range v.Replicas(g.GetId()) {
		if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
			fmt.Fprintf(&s, " remove: %q", vm.GetId())
		}
	}
	fmt.Fprintf(&s, " remove_reason: \"r\" failures: %d status {replicas: %d updated_available: %d}", rapid.IntRange(0, 1).Draw(t, "failures"), rapid.IntRange(0, 3).Draw(t, "seen"), rapid.IntRange(0, 3).Draw(t, "available"))
	if end := rapid.SampledFrom([]string{"", "", "rolling", "canary", "complete", "failed", "superseded"}).Draw(t, "end"); end != "" {
		fmt.Fprintf(&s, " end: %s message: \"m\"", end)
	}
	return s.String() + "}}"
}

// readyOf counts the ready replicas of a group that it wants.
func readyOf(v *View, g *blixardv1.Group) (n int) {
	for _, vm := range v.Replicas(g.GetId()) {
		if Ready(vm) && (!g.GetSpec().GetStable() || vm.GetReplica().GetOrdinal() < g.GetSpec().GetReplicas()) {
			n++
		}
	}
	return n
}

// checkGroups holds what is promised of groups in every state.
func checkGroups(t *rapid.T, v *View) {
	of := map[string]int{}
	for _, g := range v.Groups("", 0) {
		of[g.GetId()] = len(v.Replicas(g.GetId()))
		newest := NewestVersion(g)
		if newest == nil || newest != g.GetVersions()[len(g.GetVersions())-1] || len(g.GetVersions()) > versionsMax {
			t.Fatalf("%v is of version %d", g, g.GetStatus().GetVersion())
		}
		for k, one := range g.GetVersions() {
			if k > 0 && one.GetNumber() <= g.GetVersions()[k-1].GetNumber() || one != newest && Rolling(one.GetState()) {
				t.Fatalf("version %d of %v is %v", one.GetNumber(), g, one.GetState())
			}
		}
		if why := CheckGroup(g.GetSpec()); why != nil {
			t.Fatalf("%v: %v", g, why)
		}
		if g.GetDeleting() && of[g.GetId()] == 0 {
			t.Fatalf("%v is deleted, and has no VM that it waits for", g)
		}
	}
	for _, vm := range v.VMs("", 0) {
		id := GroupOf(vm)
		if id == "" {
			continue
		}
		g := v.Group(id)
		if of[id]--; g == nil || of[id] < 0 || g.GetDeleting() && !vm.GetDeleting() {
			t.Fatalf("%v is a replica of %v", vm, g)
		}
		if ordinal := vm.GetReplica().GetOrdinal(); g.GetSpec().GetStable() && vm.GetName() != fmt.Sprintf("%s-%d", g.GetName(), ordinal) {
			t.Fatalf("replica %d is called %s", ordinal, vm.GetName())
		}
	}
}

// stepKeeps holds what a step promises: no more replicas than the group allows, and no fewer
// ready ones by its own doing.
func stepKeeps(t *rapid.T, before *View, cmd *blixardv1.Command, r Result, v *View) {
	for _, s := range cmd.GetStepGroups().GetSteps() {
		old := before.Group(s.GetGroupId())
		if r.Problem != nil || old == nil {
			continue
		}
		live := 0
		for _, vm := range v.Replicas(old.GetId()) {
			if !vm.GetDeleting() {
				live++
			}
		}
		spec := old.GetSpec()
		if most := int(spec.GetReplicas()) + Surge(spec); len(s.GetCreate()) > 0 && live > most {
			t.Fatalf("%v gives %d replicas, and %d are allowed", cmd, live, most)
		}
		least := int(spec.GetReplicas()) - Unavailable(spec)
		if ready := readyOf(v, old); ready < readyOf(before, old) && ready < least {
			t.Fatalf("%v leaves %d ready replicas, and %d are wanted", cmd, ready, least)
		}
	}
}

// TestGroupsKeepTheirRules: whatever is asked of groups in whatever order, their replicas
// are theirs alone and as many as they allow, and three replicas of the log agree.
func TestGroupsKeepTheirRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		st, batched := newStory(), New(DefaultLimits())
		restored := New(DefaultLimits())
		var batch []Entry
		for n := range rapid.IntRange(5, 80).Draw(t, "commands") {
			cmd := parse(t, registerN1)
			if n > 0 {
				cmd = parse(t, groupsLife(t, st))
			}
			before, text := st.s.View(), st.describe()
			r := st.do(cmd)
			if r.Problem != nil && st.describe() != text {
				t.Fatalf("%v, and yet\n%s became\n%s", r.Problem, text, st.describe())
			}
			checkGroups(t, st.s.View())
			checkGiven(t, st.s.View())
			stepKeeps(t, before, cmd, r, st.s.View())
			batch = append(batch, Entry{Index: st.index, Command: cmd})
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				restored.Apply(batch[restored.View().Index():])
				restored = again(t, restored)
			}
		}
		batched.Apply(batch)
		restored.Apply(batch[restored.View().Index():])
		if hash := st.s.View().Hash(); batched.View().Hash() != hash || restored.View().Hash() != hash {
			t.Fatal("the replicas have come to different states")
		}
	})
}

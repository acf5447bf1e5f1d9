package state

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// checkUsage counts all VMs, volumes and tasks again, and compares.
func checkUsage(t *rapid.T, v *View) {
	counted := map[string]*blixardv1.ProjectUsage{}
	of := func(o interface{ GetProject() string }) *blixardv1.ProjectUsage {
		project := projectNamed(o.GetProject())
		if counted[project] == nil {
			counted[project] = &blixardv1.ProjectUsage{Project: project}
		}
		return counted[project]
	}
	for _, vm := range v.VMs("", 0) {
		u := of(vm)
		u.Vms++
		u.Vcpus += uint64(vm.GetSpec().GetVcpus())
		u.MemoryMib += uint64(vm.GetSpec().GetMemoryMib())
		u.DiskBytes += vm.GetSpec().GetDiskBytes()
		for _, i := range vm.GetInterfaces() {
			if i.GetIpv4() != "" {
				u.Addresses++
			}
		}
	}
	for _, o := range v.Volumes() {
		of(o).DiskBytes += o.GetSizeBytes()
	}
	for _, task := range v.Tasks("", 0) {
		if !Finished(task.GetStatus().GetState()) {
			of(task).Tasks++
		}
	}
	for _, u := range every[blixardv1.ProjectUsage](v.db, tableUsage, indexID) {
		if !proto.Equal(u, counted[u.GetProject()]) {
			t.Fatalf("project %s is said to have %v, they say %v", u.GetProject(), u, counted[u.GetProject()])
		}
		delete(counted, u.GetProject())
	}
	if len(counted) > 0 {
		t.Fatalf("nobody counts %v", counted)
	}
}

// checkQuotas: of what a project has more than its limit, it has no more than before.
func checkQuotas(t *rapid.T, before, after *View) {
	for _, q := range after.Quotas() {
		was, is := before.ProjectUsage(q.GetProject()), after.ProjectUsage(q.GetProject())
		for _, r := range everyBounded {
			limit := *r.limit(q.GetLimits())
			if limit != nil && *r.used(is) > *limit && *r.used(is) > *r.used(was) {
				t.Fatalf("project %s went from %d to %d %s, and its limit is %d", q.GetProject(), *r.used(was), *r.used(is), r.word, *limit)
			}
		}
	}
}

// quotaLife is guestsLife with quotas that often refuse something.
func quotaLife(t *rapid.T, st *story) string {
	project := rapid.SampledFrom([]string{"default", "p"}).Draw(t, "project of a quota")
	switch rapid.IntRange(0, 14).Draw(t, "about quotas") {
	case 0:
		return fmt.Sprintf("set_quota {project: %q limits {vms: %d memory_mib: %d}}", project, rapid.IntRange(0, 4).Draw(t, "vms"), rapid.IntRange(0, 260).Draw(t, "memory of a quota"))
	case 1:
		return fmt.Sprintf("set_quota {project: %q limits {vcpus: %d disk_bytes: %d addresses: %d}}", project, rapid.IntRange(0, 6).Draw(t, "vcpus of a quota"),
			rapid.IntRange(0, 40).Draw(t, "disk of a quota"), rapid.IntRange(0, 3).Draw(t, "addresses"))
	case 3:
		return fmt.Sprintf("set_quota {project: %q limits {tasks: %d}}", project, rapid.IntRange(0, 4).Draw(t, "tasks"))
	case 4:
		return fmt.Sprintf(`submit_task {id: "task-%d" name: "t%d" project: %q count: %d spec {vm {image: "busybox" memory_mib: 1}}}`, st.index,
			rapid.IntRange(0, 5).Draw(t, "task"), project, rapid.IntRange(0, 3).Draw(t, "count"))
	case 5:
		return fmt.Sprintf(`change_tasks {name: "t%d" change: %s}`, rapid.IntRange(0, 5).Draw(t, "task"), rapid.SampledFrom([]string{"cancel", "retry", "remove"}).Draw(t, "change"))
	case 6:
		return fmt.Sprintf(`change_schedule {name: "s" change: %s}`, rapid.SampledFrom([]string{"run", "pause", "resume"}).Draw(t, "change"))
	case 2:
		return fmt.Sprintf("remove_quota {project: %q}", project)
	}
	return guestsLife(t, st)
}

// TestUsageIsARecount: whatever is asked in whatever order, one by one or in batches,
// what a project is said to have is what its VMs, volumes and tasks have, also after a restore, and no
// quota is exceeded by anything that came after it.
func TestUsageIsARecount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		st := newStory()
		var batch []Entry
		do := func(text string) Result {
			cmd := parse(t, text)
			r := st.do(cmd)
			batch = append(batch, Entry{Index: st.index, Command: proto.CloneOf(cmd)})
			return r
		}
		for _, text := range []string{
			`create_schedule {id: "schedule-s" name: "s" project: "p" spec {cron: "@daily" overlap: replace task {vm {image: "busybox" memory_mib: 1}}}}`, registerN1, `create_network {network {id: "net-a" name: "na" type: nat ipv4_subnet: "10.64.0.0/29"}}`,
			`create_network {network {id: "net-u" name: "user" type: user}}`,
		} {
			if r := do(text); r.Problem != nil {
				t.Fatal(r.Problem)
			}
		}
		for range rapid.IntRange(10, 80).Draw(t, "commands") {
			before := st.s.View()
			if r := do(quotaLife(t, st)); r.Problem != nil && r.Problem.Code == "quota.exceeded" && r.Problem.Hint == "" {
				t.Fatalf("%v has no hint", r.Problem)
			}
			checkUsage(t, st.s.View())
			checkQuotas(t, before, st.s.View())
		}
		next := again(t, st.s)
		checkUsage(t, next.View())
		if next.View().Hash() != st.s.View().Hash() {
			t.Fatal("the snapshot gives another state")
		}
		batched := New(DefaultLimits())
		batched.Apply(batch)
		checkUsage(t, batched.View())
		if batched.View().Hash() != st.s.View().Hash() {
			t.Fatal("all in one batch give another state")
		}
	})
}

package daemon_test

import (
	"strings"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestTasksOfALostHost: a host loses its power while it runs tasks. One that may run
// again does so elsewhere and comes to its end; one that may not is never begun again,
// and fails when the host is back and nobody can know how it ended.
func TestTasksOfALostHost(t *testing.T) {
	c, _ := startSite(t, 3, "--lease-ttl", "2s")
	first, lost := c.nodes[0], c.nodes[2]
	name := func(n *node) string {
		for i, o := range c.nodes {
			if o == n {
				return []string{"n1", "n2", "n3"}[i]
			}
		}
		return ""
	}
	submit := func(task string, delivery blixardv1.Delivery_Enum, command string) {
		t.Helper()
		if _, err := first.client.Tasks().SubmitTask(t.Context(), &blixardv1.SubmitTaskRequest{Name: task, Spec: &blixardv1.TaskSpec{
			Delivery: delivery,
			Vm: &blixardv1.VMSpec{
				Image: "busybox", MemoryMib: 64, DiskBytes: 16 << 20, NoNetwork: true, Command: []string{"sh", "-c", command},
				Scheduling: &blixardv1.Scheduling{Preferences: []*blixardv1.Preference{{Weight: 100, Constraint: &blixardv1.Constraint{
					Key: "node.name", Operator: blixardv1.Operator_equal, Values: []string{name(lost)},
				}}}},
			},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	get := func(task string) *blixardv1.TaskStatus {
		resp, err := first.client.Tasks().GetTask(t.Context(), &blixardv1.GetTaskRequest{Name: task})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetTask().GetStatus()
	}
	submit("again", blixardv1.Delivery_at_least_once, "echo begun; sleep 5; echo ended")
	submit("once", blixardv1.Delivery_at_most_once, "echo begun; sleep 5; echo ended")
	for _, task := range []string{"again", "once"} {
		eventually(t, task+" runs", failoverLimit, func() bool {
			st := get(task)
			return st.GetState() == blixardv1.TaskState_running && st.GetNode() == name(lost)
		})
	}
	lost.powerLoss()
	eventually(t, "what may run again does", failoverLimit, func() bool { return get("again").GetState() == blixardv1.TaskState_succeeded })
	if st := get("again"); st.GetNode() == name(lost) {
		t.Errorf("it ended on the lost host: %v", st)
	}
	if out := first.blixard("task", "logs", "again"); !strings.Contains(out, "begun") || !strings.Contains(out, "ended") {
		t.Errorf("its output is %q", out)
	}
	if st := get("once"); st.GetState() != blixardv1.TaskState_running || st.GetReason() != "node_down" {
		t.Errorf("what may run once does not wait for its host: %v", st)
	}
	lost.start()
	eventually(t, "what may run once has failed", failoverLimit, func() bool { return get("once").GetState() == blixardv1.TaskState_failed })
	if out := first.blixard("task", "logs", "once"); strings.Contains(out, "ended") || strings.Count(out, "begun") > 1 {
		t.Errorf("its output is %q", out)
	}
	eventually(t, "nothing of the tasks is left", failoverLimit, func() bool {
		for _, n := range c.nodes {
			if len(n.qemus()) > 0 {
				return false
			}
		}
		return strings.TrimSpace(first.blixard("vm", "list", "-q")) == ""
	})
}

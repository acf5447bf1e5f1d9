package leader

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

func (c *cluster) submit(name string, count uint32, change func(*blixardv1.TaskSpec)) {
	c.t.Helper()
	spec := &blixardv1.TaskSpec{Vm: &blixardv1.VMSpec{Image: "busybox", MemoryMib: 64, DiskBytes: 1 << 20}}
	if change != nil {
		change(spec)
	}
	r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_SubmitTask{SubmitTask: &blixardv1.SubmitTaskCommand{
		Id: fmt.Sprintf("task-%016d", c.index), Name: name, Spec: spec, Count: count,
	}}})
	if r.Problem != nil {
		c.t.Fatal(r.Problem)
	}
	c.settle()
}

func (c *cluster) task(name string) *blixardv1.TaskStatus {
	return c.state.View().Task(name).GetStatus()
}

// ends tells that the command of a task's attempt ended.
func (c *cluster) ends(task string, code int32) {
	c.t.Helper()
	vm := c.state.View().VM(c.task(task).GetVmId())
	a := c.state.View().Allocation(vm.GetStatus().GetAllocationId())
	for _, st := range []*blixardv1.VMStatus{{State: blixardv1.AllocationState_running}, {State: blixardv1.AllocationState_failed, ExitCode: &code}} {
		r := c.apply(&blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{
			NodeId: a.GetNodeId(), Reports: []*blixardv1.AllocationReport{{AllocationId: a.GetId(), Epoch: a.GetEpoch(), Status: st}},
		}}})
		if r.Problem != nil {
			c.t.Fatal(r.Problem)
		}
	}
	c.settle()
}

// due carries out what is due so long after the newest command, and tells how much.
func (c *cluster) due(after time.Duration) int {
	c.t.Helper()
	n := 0
	for _, cmd := range c.core.TasksDue(c.state.View(), time.Unix(int64(c.index), 0).Add(after)) {
		n += len(cmd.GetStepTasks().GetSteps())
		if r := c.apply(cmd); r.Problem != nil {
			c.t.Fatal(r.Problem)
		}
	}
	c.settle()
	return n
}

func (c *cluster) wantTask(name string, state blixardv1.TaskState_Enum, reason string) {
	c.t.Helper()
	if st := c.task(name); st.GetState() != state || reason != "" && st.GetReason() != reason {
		c.t.Errorf("task %s is %v, want %v (%s)", name, st, state, reason)
	}
}

// Tasks begin in the order in which they were submitted, and no more of them than could
// soon find a node have a VM.
func TestTasksBeginInOrder(t *testing.T) {
	c := newCluster(t)
	c.submit("part", beginMax+44, nil)
	if n := len(c.state.View().VMs("", 0)); n != beginMax {
		t.Fatalf("%d attempts wait for a node, want %d", n, beginMax)
	}
	c.submit("late", 0, nil)
	c.submit("urgent", 0, func(s *blixardv1.TaskSpec) { s.Vm.Scheduling = &blixardv1.Scheduling{Priority: proto.Uint32(60)} })
	c.submit("idle", 0, func(s *blixardv1.TaskSpec) { s.Vm.Scheduling = &blixardv1.Scheduling{Priority: proto.Uint32(0)} })
	for k := range beginMax {
		c.wantTask(fmt.Sprint("part-", k), blixardv1.TaskState_pending, "no_nodes")
	}
	c.wantTask("late", blixardv1.TaskState_pending, "submitted")
	// Of another priority they do not wait for those.
	c.wantTask("urgent", blixardv1.TaskState_pending, "no_nodes")
	c.wantTask("idle", blixardv1.TaskState_pending, "no_nodes")
	// Another leader goes on where this one stopped.
	c.core.Reset(c.state.View())
	if c.settle(); len(c.state.View().VMs("", 0)) != beginMax+2 {
		t.Error("a new leader begins more")
	}
	c.node("a", 144*(beginMax+47))
	c.settle()
	for _, task := range c.state.View().Tasks("", 0) {
		if task.GetStatus().GetNode() != "a" {
			t.Fatalf("%s has no node: %v", task.GetName(), task.GetStatus())
		}
	}
}

// What comes after others begins when all of them succeeded, and fails when one did not
// or is not known any more.
func TestTasksComeAfterOthers(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	after := func(names ...string) func(*blixardv1.TaskSpec) {
		return func(s *blixardv1.TaskSpec) { s.After = names }
	}
	c.submit("one", 0, nil)
	c.submit("part", 2, nil)
	c.submit("both", 0, after("one", "part"))
	c.submit("last", 0, after("both"))
	c.ends("one", 0)
	c.ends("part-0", 0)
	c.wantTask("both", blixardv1.TaskState_waiting, "")
	c.core.Reset(c.state.View())
	c.settle()
	c.ends("part-1", 0)
	c.wantTask("both", blixardv1.TaskState_pending, "placed")
	c.ends("both", 1)
	c.wantTask("last", blixardv1.TaskState_failed, "after-failed")
	c.submit("again", 0, after("one"))
	c.wantTask("again", blixardv1.TaskState_pending, "placed")
	c.submit("gone", 0, after("again"))
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_ChangeTasks{ChangeTasks: &blixardv1.ChangeTasksCommand{Name: "again", Change: blixardv1.ChangeTasksCommand_cancel}}})
	c.settle()
	c.wantTask("gone", blixardv1.TaskState_failed, "after-failed")
}

// Time ends attempts, begins the next ones and forgets what is finished; and a clock
// that is behind the one of the leader before makes nobody wait for longer.
func TestTasksHaveTheirTime(t *testing.T) {
	c := newCluster(t)
	c.node("a", 4096)
	c.submit("slow", 0, func(s *blixardv1.TaskSpec) {
		s.Timeout, s.Retries, s.Backoff = durationpb.New(time.Minute), 1, durationpb.New(10*time.Second)
		s.Keep = durationpb.New(time.Hour)
	})
	run := func() {
		vm := c.state.View().VM(c.task("slow").GetVmId())
		c.running(vm.GetName())
		c.settle()
	}
	run()
	if c.due(59*time.Second) != 0 || c.due(61*time.Second) != 1 {
		t.Fatal("the attempt did not end after a minute")
	}
	c.wantTask("slow", blixardv1.TaskState_pending, "timeout")
	if c.due(9*time.Second) != 0 || c.due(11*time.Second) != 1 {
		t.Fatal("the next attempt did not begin after 10 s")
	}
	run()
	// The next leader's clock is an hour behind.
	c.core.Reset(c.state.View())
	behind := -time.Hour
	if c.due(behind) != 0 || c.due(behind+59*time.Second) != 0 || c.due(behind+61*time.Second) != 1 {
		t.Fatal("the attempt did not end after a minute")
	}
	c.wantTask("slow", blixardv1.TaskState_failed, "timeout")
	if c.due(59*time.Minute) != 0 || c.due(61*time.Minute) != 1 || c.state.View().Task("slow") != nil {
		t.Fatal("the task was not forgotten after an hour")
	}
}

package sim

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/state"
)

// taskNames are those of tasks; what begins with o runs at most once.
var taskNames = []string{"t0", "t1", "t2", "o0", "o1"}

// tasks submits tasks, cancels, retries and removes them.
func (w *world) tasks() {
	kinds := []string{"submit", "submit", "submit", "cancel", "retry", "remove", "remove"}
	var next func()
	next = func() {
		if w.quiet {
			return
		}
		cmd := w.taskChange(taskNames[w.IntN(len(taskNames))], kinds[w.IntN(len(kinds))])
		w.request(&request{cmd: cmd, tries: 3, done: func(_ state.Result, err error, _ bool) {
			if err == nil {
				w.count("operations on tasks")
			}
			w.after(w.tail(4*w.faults.think), next)
		}})
	}
	w.after(time.Second, next)
}

func (w *world) taskChange(name, kind string) *blixardv1.Command {
	w.keys++
	cmd := &blixardv1.Command{Key: fmt.Sprintf("key-%d", w.keys), Actor: "client", Time: timestamppb.New(epoch.Add(w.now))}
	once := name[0] == 'o'
	change := blixardv1.ChangeTasksCommand_cancel
	switch {
	case kind == "submit":
		spec := &blixardv1.TaskSpec{Delivery: blixardv1.Delivery_at_least_once, Vm: &blixardv1.VMSpec{MemoryMib: 64, Vcpus: 1, OnNodeLoss: blixardv1.NodeLossPolicy_replace}}
		if w.chance(0.3) {
			spec.Timeout = durationpb.New(w.between(time.Second, 20*time.Second))
		}
		if w.chance(0.3) {
			spec.After = []string{taskNames[w.IntN(len(taskNames))]}
		}
		if once {
			spec.Delivery = blixardv1.Delivery_at_most_once
		} else {
			spec.Retries, spec.Backoff = uint32(w.IntN(3)), durationpb.New(w.between(100*time.Millisecond, 3*time.Second))
			if w.chance(w.faults.exclusive) {
				spec.Vm.OnNodeLoss = blixardv1.NodeLossPolicy_failover
			}
		}
		c := &blixardv1.SubmitTaskCommand{Id: fmt.Sprintf("task-%d", w.keys), Name: name, Spec: spec}
		if w.chance(0.2) {
			c.Count = uint32(1 + w.IntN(3))
		}
		for n := range max(1, c.GetCount()) {
			id := c.GetId()
			if c.GetCount() > 0 {
				id += fmt.Sprintf("-%d", n)
			}
			w.checks.once[id] = once
		}
		cmd.Change = &blixardv1.Command_SubmitTask{SubmitTask: c}
		return cmd
	case kind == "retry" && !once:
		change = blixardv1.ChangeTasksCommand_retry
	case kind == "remove":
		change = blixardv1.ChangeTasksCommand_remove
	}
	cmd.Change = &blixardv1.Command_ChangeTasks{ChangeTasks: &blixardv1.ChangeTasksCommand{Change: change, Name: name}}
	return cmd
}

// begun: the command of a task that is to run at most once begins once.
func (c *checks) begun(v *vmm) {
	name := objectname.Own(v.rec.GetAllocation().GetVmName())
	if !strings.HasPrefix(name, "task-") {
		return
	}
	c.w.count("attempts")
	id := name[:strings.LastIndexByte(name, '-')]
	if !c.once[id] {
		return
	}
	if other := c.commands[id]; other != "" {
		c.w.fail("task %s, which is to run at most once, begins as %s after %s", id, v.id, other)
	}
	c.commands[id] = v.id
}

// task: no more attempts than its owner allows, since it was submitted or retried.
func (c *checks) task(t *blixardv1.Task) {
	st := t.GetStatus()
	switch {
	case st.GetTries() == 0:
		c.attempts[t.GetId()] = st.GetAttempt()
	case st.GetState() == blixardv1.TaskState_pending && st.GetReason() == "supervisor_lost" && c.excused[t.GetId()] < st.GetAttempt():
		c.excused[t.GetId()] = st.GetAttempt() // it ended with its host, and was no try
		c.attempts[t.GetId()]++
	}
	if before, known := c.attempts[t.GetId()]; known && st.GetAttempt()-before > t.GetSpec().GetRetries()+1 {
		c.w.fail("task %s begins attempt %d after %d, and has %d retries", t.GetName(), st.GetAttempt(), before, t.GetSpec().GetRetries())
	}
	if state.Finished(st.GetState()) {
		c.w.count("tasks " + st.GetState().String())
	}
}

// tasksUnknown: changes of tasks were missed, and a retry may be among them.
func (c *checks) tasksUnknown() { clear(c.attempts) }

// unsettledTask tells what of a task is not as it shall be once nothing happens any more.
func (w *world) unsettledTask(view *state.View, t *blixardv1.Task) string {
	st := t.GetStatus()
	vm := view.VM(st.GetVmId())
	switch {
	case state.Finished(st.GetState()):
		return ""
	case st.GetState() == blixardv1.TaskState_waiting:
		for _, ref := range t.GetSpec().GetAfter() {
			for _, o := range view.TasksNamed(ref) {
				if !state.Finished(o.GetStatus().GetState()) {
					return ""
				}
			}
		}
		return "it waits for what has come to its end"
	case st.GetVmId() == "":
		return fmt.Sprintf("it has not begun its next attempt: %v", st)
	case vm == nil:
		return "its attempt has no VM"
	case state.Ended(vm.GetStatus().GetState()) && vm.GetStatus().GetNextStartAt() == nil:
		return fmt.Sprintf("its attempt is %v", vm.GetStatus().GetState())
	}
	return ""
}

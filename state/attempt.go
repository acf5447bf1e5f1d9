package state

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/planted"
)

// Waits before the next attempt of a task.
const (
	taskBackoffDefault = 5 * time.Second
	// taskClaimWait before an attempt that could not get what it needs is begun again.
	taskClaimWait  = 5 * time.Second
	taskBackoffMax = 10 * time.Minute
)

// reasonSupervisorLost is what agents say of a VM that ended with its host, or with the
// supervisor there. levelOfHostLosses is the first that does not count it as a try.
const (
	reasonSupervisorLost = "supervisor_lost"
	levelOfHostLosses    = 17
)

// outcome of an attempt.
type outcome struct {
	exitCode        *int32
	reason, message string
}

// attemptVMID is the id of an attempt's VM: the same wherever it is made.
func attemptVMID(t *blixardv1.Task) string {
	sum := sha256.Sum256([]byte(t.GetId() + " " + strconv.FormatUint(uint64(t.GetStatus().GetAttempt()), 10)))
	return "vm-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

func atMostOnce(t *blixardv1.Task) bool {
	return t.GetSpec().GetDelivery() == blixardv1.Delivery_at_most_once && !planted.Is(planted.OnceIsReplaced)
}

// attemptSpec is the VM of an attempt. The cluster, and not its node, decides whether
// its command is begun again.
func attemptSpec(t *blixardv1.Task) *blixardv1.VMSpec {
	spec := proto.CloneOf(t.GetSpec().GetVm())
	spec.Desired = blixardv1.DesiredState_run
	spec.Restart = &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_never, MaxRestarts: 1, Backoff: durationpb.New(time.Second)}
	spec.RemoveOnExit, spec.HoldOutput, spec.Stdin, spec.Paused = false, false, false, false
	if atMostOnce(t) {
		spec.OnNodeLoss = blixardv1.NodeLossPolicy_keep
	}
	if spec.GetHostname() == "" {
		spec.Hostname = objectname.Own(t.GetName())
	}
	env := []*blixardv1.EnvVar{
		{Name: "BLIXARD_TASK", Value: t.GetName()},
		{Name: "BLIXARD_TASK_ATTEMPT", Value: strconv.FormatUint(uint64(t.GetStatus().GetAttempt()), 10)},
	}
	if t.GetArray() != "" {
		env = append(env, &blixardv1.EnvVar{Name: "BLIXARD_TASK_NUMBER", Value: strconv.FormatUint(uint64(t.GetNumber()), 10)})
	}
	if t.GetScheduledAt() != nil {
		env = append(env, &blixardv1.EnvVar{Name: "BLIXARD_SCHEDULED_AT", Value: t.GetScheduledAt().AsTime().Format(time.RFC3339)})
	}
	spec.Env = append(env, spec.Env...) // what the owner says wins
	return spec
}

// beginAttempt makes the VM of a task's next attempt. One that can't have what it needs,
// such as a volume that another VM has, waits and is not counted.
func (b *batch) beginAttempt(t *blixardv1.Task) {
	t.Status = &blixardv1.TaskStatus{State: taskPending, Attempt: t.GetStatus().GetAttempt() + 1, Tries: t.GetStatus().GetTries() + 1}
	if planted.Is(planted.RetriesNotCounted) {
		t.Status.Tries = 1
	}
	vm := &blixardv1.VM{
		Id: attemptVMID(t), Name: objectname.Beside(t.GetName(), t.GetId()+"-"+strconv.FormatUint(uint64(t.Status.Attempt), 10)), Spec: attemptSpec(t), Generation: 1,
		CreateIndex: b.index, CreatedAt: b.time, Labels: t.GetLabels(), Task: t.GetId(), Project: t.GetProject(),
		Status: &blixardv1.VMStatus{State: stPending, Reason: reasonDeclared},
	}
	why := b.claimAll(vm, nil)
	if why != nil {
		t.Status.Attempt--
		t.Status.Tries--
		t.Status.Reason, t.Status.Message = why.Code, why.Message
		t.Status.NextTryAt = b.later(taskClaimWait)
		b.putTask(t)
		return
	}
	t.Status.VmId, t.Status.Reason = vm.GetId(), "begun"
	t.Status.Message = fmt.Sprintf("attempt %d waits for a node", t.Status.Attempt)
	b.putTask(t)
	b.putVM(vm)
	b.taskEvent(t, "task.begun", "", fmt.Sprintf("attempt %d is VM %s", t.Status.Attempt, vm.GetName()))
}

// later is the time of the present entry and d more.
func (b *batch) later(d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(b.time.AsTime().Add(d))
}

// followAttempt takes over what became of the VM of an attempt.
func (b *batch) followAttempt(vm *blixardv1.VM, dropped bool) {
	old := first[blixardv1.Task](b.db, tableTask, indexID, vm.GetTask())
	if old.GetStatus().GetVmId() != vm.GetId() || vm.GetStatus().GetReason() == reasonDeclared && !dropped {
		return // the attempt is over and this what is left of it, or it only begins
	}
	t, st := copyTask(old), vm.GetStatus()
	switch {
	case dropped:
		b.endAttempt(t, outcome{reason: "vm-deleted", message: "its VM was deleted"})
		return
	case vm.GetDeleting():
		return
	case atMostOnce(t) && t.Status.GetAllocationId() != "" && st.GetAllocationId() == "":
		b.endAttempt(t, outcome{reason: "taken-away", message: "it was taken off node " + t.Status.GetNode() + ", where it may have begun"})
		return
	case planted.Is(planted.TaskEndIsLost) && Ended(st.GetState()) && t.GetSpec().GetRetries() == 0:
	case Ended(st.GetState()) && st.GetNextStartAt() == nil:
		if st.GetStartedAt() != nil && t.Status.StartedAt == nil {
			t.Status.StartedAt = st.GetStartedAt()
		}
		b.locate(t, st)
		b.endAttempt(t, outcome{exitCode: st.ExitCode, reason: st.GetReason(), message: st.GetMessage()})
		return
	}
	if st.GetState() == stRunning && t.Status.State != taskRunning {
		t.Status.State, t.Status.StartedAt = taskRunning, b.time
		b.taskEvent(t, "task.running", "", fmt.Sprintf("attempt %d runs on node %s", t.Status.Attempt, st.GetNode()))
	}
	t.Status.Reason, t.Status.Message = st.GetReason(), st.GetMessage()
	b.locate(t, st)
	if !proto.Equal(t.Status, old.GetStatus()) {
		b.putTask(t)
	}
}

// locate notes where the output is.
func (b *batch) locate(t *blixardv1.Task, st *blixardv1.VMStatus) {
	if id := st.GetAllocationId(); id != "" {
		t.Status.Node, t.Status.AllocationId, t.Status.NodeId = st.GetNode(), id, b.allocation(id).GetNodeId()
	}
}

// endAttempt decides what comes after an attempt, of which t is a fresh copy.
func (b *batch) endAttempt(t *blixardv1.Task, o outcome) {
	st := t.Status
	st.ExitCode = o.exitCode
	if o.exitCode != nil && *o.exitCode == 0 {
		b.finish(t, taskSucceeded, "done", "its command ended with 0")
		return
	}
	if o.reason == reasonSupervisorLost && !atMostOnce(t) && featureLevel(b.db) >= levelOfHostLosses {
		st.Tries-- // as one whose node is lost for longer, it is no try of the command
	} else if atMostOnce(t) || st.GetTries() > t.GetSpec().GetRetries() {
		b.finish(t, taskFailed, o.reason, o.message)
		return
	}
	vmID := st.GetVmId()
	wait := taskBackoff(t.GetSpec(), st.GetTries())
	st.State, st.VmId, st.StartedAt = taskPending, "", nil
	st.Reason, st.Message = o.reason, fmt.Sprintf("attempt %d failed (%s); the next begins in %v", st.GetAttempt(), o.message, wait)
	st.NextTryAt = b.later(wait)
	b.putTask(t)
	b.taskEvent(t, "task.retry", o.reason, st.Message)
	b.deleteAttempt(vmID)
}

// taskBackoff is the wait after that many tries.
func taskBackoff(spec *blixardv1.TaskSpec, tries uint32) time.Duration {
	wait := taskBackoffDefault
	if spec.GetBackoff() != nil {
		wait = spec.GetBackoff().AsDuration()
	}
	for ; tries > 1 && wait < taskBackoffMax; tries-- {
		wait *= 2
	}
	return min(wait, taskBackoffMax)
}

// TaskWait is how long a task waits at most for its next attempt.
func TaskWait(t *blixardv1.Task) time.Duration {
	return max(taskClaimWait, taskBackoff(t.GetSpec(), t.GetStatus().GetTries()))
}

// finish ends a task, of which t is a fresh copy.
func (b *batch) finish(t *blixardv1.Task, state blixardv1.TaskState_Enum, reason, message string) {
	st := t.Status
	vmID := st.GetVmId()
	st.State, st.Reason, st.Message = state, reason, message
	st.VmId, st.NextTryAt, st.FinishedAt = "", nil, b.time
	b.putTask(t)
	b.taskEvent(t, "task."+state.String(), reason, message)
	b.deleteAttempt(vmID)
	b.runEnded(t)
}

// deleteAttempt removes the VM of an attempt that is over, if it is there still.
func (b *batch) deleteAttempt(vmID string) {
	if vmID != "" && b.vm(vmID) != nil {
		b.deleteVM(&blixardv1.DeleteVMCommand{Name: vmID})
	}
}

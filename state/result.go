package state

import (
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Entry is a log entry for Apply. Command is nil for entries that carry none,
// such as the first one of a leader; they only move the index. State keeps parts
// of Command: it must not be changed afterwards.
type Entry struct {
	Index   uint64
	Command *blixardv1.Command
}

// Result is the answer to one command. At most one object is set; objects are
// shared and read-only.
type Result struct {
	// Index of the entry that made the change; for a repeated idempotency key the
	// index of the first one.
	Index uint64
	// VM after CreateVM, SetVMDesired, UpdateVM, RenameVM, DeleteVM, LabelVM and
	// SetVMReason; its last form when it was dropped.
	VM *blixardv1.VM
	// Node after RegisterNode, SetNodeState, DrainNode, AdvanceDrain and UpdateNode.
	Node *blixardv1.Node
	// Member after FormCluster and those that change members.
	Member *blixardv1.Member
	// Token after CreateToken, and its last form after RevokeToken.
	Token *blixardv1.Token
	// Image after PutImage; Images after DropImage.
	Image  *blixardv1.Image
	Images []*blixardv1.Image
	// Volume, Network and Secret after what changes one, and their last form after
	// what drops one.
	Volume  *blixardv1.Volume
	Network *blixardv1.Network
	Secret  *blixardv1.Secret
	// Tasks after SubmitTask and ChangeTasks, at most 1000 of them.
	Tasks []*blixardv1.Task
	// Schedule after CreateSchedule, UpdateSchedule and ChangeSchedule, which gives the
	// task of a run that began in Tasks.
	Schedule *blixardv1.Schedule
	// Quota after SetQuota, and its last form after RemoveQuota.
	Quota *blixardv1.Quota
	// Settings after SetSettings.
	Settings *blixardv1.Settings
	// Group after what changes one, and its last form after what drops it.
	Group *blixardv1.Group
	// Problem is why the command changed nothing; nil when it was carried out.
	Problem *problem.Error
	// Refused are the placements, reports or steps of tasks and groups that were refused by themselves while
	// the others of the command were carried out. When all were refused, Problem
	// is that of the first.
	Refused []Refusal
	// Repeated is set when the idempotency key was seen before: nothing was done
	// again.
	Repeated bool
}

// Refusal of one part of a Place, Report, StepTasks, StepSchedules or StepGroups command.
type Refusal struct {
	// AllocationID of the placement or report, and its VM where known.
	AllocationID string
	VMID         string
	// TaskID of the step.
	TaskID string
	// ScheduleID of the step.
	ScheduleID string
	// GroupID of the step.
	GroupID string
	Problem *problem.Error
}

// Kind of what a Change is about.
type Kind uint8

// The kinds. They are not stored.
const (
	KindVM         Kind = 1
	KindAllocation Kind = 2
	KindNode       Kind = 3
	KindEvent      Kind = 4
	KindCluster    Kind = 5
	KindMember     Kind = 6
	KindImage      Kind = 7
	KindVolume     Kind = 8
	KindNetwork    Kind = 9
	KindSecret     Kind = 10
	KindTask       Kind = 11
	KindQuota      Kind = 12
	KindSchedule   Kind = 15
	KindGroup      Kind = 13
)

// Change is one object as an entry left it. Exactly the field that Kind names is
// set; it is shared and read-only.
type Change struct {
	Index      uint64
	Kind       Kind
	Deleted    bool // the object is its last form
	VM         *blixardv1.VM
	Allocation *blixardv1.Allocation
	Node       *blixardv1.Node
	Event      *blixardv1.Event
	Cluster    *blixardv1.Cluster
	Member     *blixardv1.Member
	Image      *blixardv1.Image
	Volume     *blixardv1.Volume
	Network    *blixardv1.Network
	Secret     *blixardv1.Secret
	Task       *blixardv1.Task
	Quota      *blixardv1.Quota
	Schedule   *blixardv1.Schedule
	Group      *blixardv1.Group
}

package state

import (
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
)

// The defaults of [Limits].
const (
	// eventsKept: some 300 bytes each, so 5 MB.
	eventsKept = 16384
	// changesKept: 72 bytes each and the replaced objects they hold, some 700
	// bytes for a VM, so 12 MB while many VMs change and next to nothing before.
	changesKept = 16384
	// vmsPerChange: where there are many VMs, one change is kept for so many of them if
	// that is more. Who falls behind looks at all VMs again, so the more there are the
	// further behind one may be; a million keep some three seconds of what a leader can
	// decide, in 60 MB.
	vmsPerChange = 8
	// answersKept: some 250 bytes each, so 32 MB after a burst. At 40,000 changes
	// a second it covers 3 s of repeats, at 100 a second 20 minutes.
	answersKept = 131072
	// answersWindow is longer than any client repeats a call.
	answersWindow = 15 * time.Minute
	// overheadMiB is what a VMM, its share of the supervisor and its page tables
	// take beside the guest's RAM: QEMU without KVM takes some 70 MiB.
	overheadMiB = 80
	// vcpuOvercommit: most VMs idle most of the time.
	vcpuOvercommit = 32
)

// Limits are part of what every replica must agree on: two replicas with
// different limits would apply the same entry differently.
type Limits struct {
	// Events, Changes and Answers bound what is kept of each, in numbers; of changes more
	// are kept where there are many VMs.
	Events, Changes, Answers int
	// AnswersWindow bounds the age of remembered answers, in the time of commands.
	AnswersWindow time.Duration
	// OverheadMiB of memory is reserved for each VM beside its guest's RAM.
	OverheadMiB uint64
	// VCPUOvercommit is how many virtual CPUs may be reserved for each real one, where
	// the settings say nothing else.
	VCPUOvercommit uint32
}

// DefaultLimits gives the limits of this version.
func DefaultLimits() Limits {
	return Limits{
		Events:         eventsKept,
		Changes:        changesKept,
		Answers:        answersKept,
		AnswersWindow:  answersWindow,
		OverheadMiB:    overheadMiB,
		VCPUOvercommit: vcpuOvercommit,
	}
}

// Reservation is what a VM of that spec takes from a node's allocatable
// resources.
func (l Limits) Reservation(spec *blixardv1.VMSpec) *blixardv1.Resources {
	return &blixardv1.Resources{
		Vcpus:     spec.GetVcpus(),
		MemoryMib: uint64(spec.GetMemoryMib()) + l.OverheadMiB,
		DiskBytes: spec.GetDiskBytes(),
	}
}

// TaskFits reports whether a node of that fingerprint on which so many attempts of tasks
// have their place takes another.
func TaskFits(fp *blixardv1.NodeFingerprint, there int) bool {
	limit := int(fp.GetTasksMax())
	return limit == 0 || there < limit || planted.Is(planted.TasksMaxIgnored)
}

// Fits reports whether more fits into allocatable beside allocated, and if not,
// the resource that is short: "memory", "vcpus" or "disk".
func Fits(allocatable, allocated, more *blixardv1.Resources) (short string, ok bool) {
	switch {
	case planted.Is(planted.RoomNotCounted):
	case allocated.GetMemoryMib()+more.GetMemoryMib() > allocatable.GetMemoryMib():
		return "memory", false
	case uint64(allocated.GetVcpus())+uint64(more.GetVcpus()) > uint64(allocatable.GetVcpus()):
		return "vcpus", false
	case allocatable.GetDiskBytes() != 0 &&
		allocated.GetDiskBytes()+more.GetDiskBytes() > allocatable.GetDiskBytes():
		return "disk", false
	}
	return "", true
}

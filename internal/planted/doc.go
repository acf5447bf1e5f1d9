// Package planted builds known bugs into the product, to show that the simulator
// finds them: one at a time, each where a real one would be.
//
// Without the build tag planted, Is is a constant false that the compiler removes:
// the product's binary has none of them. It is not a means of injecting faults:
// disks, networks and crashes fail in the simulator's own models.
package planted

// Bug names one.
type Bug string

// The bugs, by what the code does wrong.
const (
	// Replica.
	ReadsWithoutRound    Bug = "reads are answered without a quorum round"
	ReadsByLease         Bug = "reads are answered by the leader's lease"
	RoundsAlike          Bug = "an answer to a read of an earlier start is taken for one of this"
	AnswersWithoutTerm   Bug = "a change is acknowledged by its index alone"
	NoSync               Bug = "entries are acknowledged before they are on the disk"
	VoteNotKept          Bug = "a vote is not written"
	TermNotKept          Bug = "the hard state is not written"
	OldTailKept          Bug = "a follower keeps entries that a new leader replaced"
	RestartLosesLast     Bug = "a restart leaves the newest entry out"
	RestartForgetsVote   Bug = "a restart forgets the hard state"
	SnapshotIndexLow     Bug = "a snapshot says an index one too low"
	SnapshotMembersOld   Bug = "a snapshot says who the first members were"
	SnapshotNotTaken     Bug = "a snapshot of the leader is taken over and left unread"
	SecondOfBatchSkipped Bug = "the second entry of a batch is not applied"
	ReplacedIsMade       Bug = "a change whose entry was replaced is acknowledged"
	ReplacedStay         Bug = "a former leader waits on for entries that were replaced"
	// State.
	KeysIgnored         Bug = "idempotency keys are not looked up"
	KeysForgottenEarly  Bug = "only the newest three idempotency keys are remembered"
	SnapshotWithoutKeys Bug = "a snapshot leaves the idempotency keys out"
	RoomNotCounted      Bug = "capacity is given out without looking"
	TasksMaxIgnored     Bug = "a node is given more tasks at a time than it takes"
	EpochNotRaised      Bug = "a VM's next life has the epoch of the last"
	NamesTakenTwice     Bug = "a name is given twice"
	// Tasks.
	OnceIsReplaced      Bug = "a task to run at most once is begun again when its node is lost"
	TaskEndIsLost       Bug = "the end of a task's attempt is not noted"
	RetriesNotCounted   Bug = "the attempts of a task are not counted"
	QuotaNotChecked     Bug = "VMs are declared without looking at the quota"
	TaskQuotaNotChecked Bug = "tasks are submitted without looking at the quota"
	EqualsPreempted     Bug = "a VM takes the room of one of equal priority"
	KeptPreempted       Bug = "a VM that is kept on its node is preempted"
	KeptDrained         Bug = "a drain takes off a VM that is kept on its node"
	DrainGrows          Bug = "a new leader gives a drain its whole deadline again"
	DrainDoneEarly      Bug = "a drain is said to be done while VMs are still leaving"
	RatioNotChecked     Bug = "a lower ratio of overcommitment is taken although more is given to VMs"
	// Schedules.
	ScheduleForgetsTime Bug = "a schedule does not note of which times it is decided"
	ScheduleZoneIgnored Bug = "a schedule's times are counted in UTC, whatever its zone"
	OverlapIgnored      Bug = "a run of a schedule begins although the one before is not finished"
	// Groups.
	AvailabilityNotChecked Bug = "a replica is removed without looking whether enough are left"
	SurgeNotChecked        Bug = "a replica is made without looking how many there are"
	RolloutStalls          Bug = "a rollout ends when its first replica is available"
	ReplicaNotReplaced     Bug = "a replica that is deleted is not replaced"
	// Leases.
	NewLeaderDoesNotWait Bug = "a new leader does not wait for the leases of the last one"
	LeaseWhileDown       Bug = "a lease is granted while the node is said to be down"
	RenewedWhileDown     Bug = "a lease is renewed as if nothing had said that the node is down"
	LongLeaseForgotten   Bug = "a short lease of an agent's next start takes the place of a long one"
	FenceNotMoved        Bug = "a renewed lease does not move the fence"
	FenceNotArmed        Bug = "exclusive VMs run without an armed fence"
	LeaseWithoutRound    Bug = "a lease is granted without a quorum round"
	LeaseOfDeposed       Bug = "a leader that was deposed meanwhile grants the lease"
	DownAtOnce           Bug = "a node is down as soon as its lease ends by the leader's clock"
	StartUnasked         Bug = "an exclusive VM starts without asking whether it was given up"
	// Agent.
	LeaseFromReceipt   Bug = "a lease is counted from its receipt"
	StartsInsteadAdopt Bug = "an agent starts its VMs anew after its own restart"
	ReportOvertakes    Bug = "a report may overtake an earlier one"
	KeptIsNotTold      Bug = "a status that was kept before a crash is never reported"
	RecordKeptLate     Bug = "a step is begun before its record is kept"
	// Disks.
	DamageIsCut       Bug = "a damaged log is opened without its damaged half"
	SnapshotUnchecked Bug = "the digest of a snapshot is not compared"
)

//go:build planted

package sim

import (
	"flag"
	"testing"

	"github.com/blixard/blixard/internal/planted"
)

// found says within how many seeds the simulator must find each bug.
//
// Two that suggest themselves could not show. An allocation leaves the state only by
// the report that its node has nothing of it any more, so no node ever has a VM that
// the cluster does not know; and a driver leaves nothing behind of a start that failed,
// so no hypervisor runs without the newest boot of a record.
var found = []struct {
	bug   planted.Bug
	seeds uint64
	// first seed; 0 means 1. A bug that is rarer is looked for around the seed that
	// once found it.
	first uint64
}{
	{planted.ReadsWithoutRound, 100, 0},
	{planted.ReadsByLease, 200, 0},
	{planted.RoundsAlike, 200, 0},
	{planted.AnswersWithoutTerm, 100, 0},
	{planted.NoSync, 100, 0},
	{planted.VoteNotKept, 200, 0},
	{planted.TermNotKept, 100, 0},
	{planted.OldTailKept, 100, 0},
	{planted.RestartLosesLast, 100, 0},
	{planted.RestartForgetsVote, 200, 0},
	{planted.SnapshotIndexLow, 100, 0},
	{planted.SnapshotMembersOld, 100, 0},
	{planted.SnapshotNotTaken, 100, 0},
	{planted.SecondOfBatchSkipped, 100, 0},
	{planted.ReplacedIsMade, 100, 0},
	{planted.ReplacedStay, 200, 0},
	{planted.KeysIgnored, 100, 0},
	{planted.KeysForgottenEarly, 100, 0},
	{planted.SnapshotWithoutKeys, 200, 0},
	{planted.RoomNotCounted, 100, 0},
	{planted.TasksMaxIgnored, 100, 0},
	{planted.EpochNotRaised, 100, 0},
	{planted.NamesTakenTwice, 100, 0},
	{planted.OnceIsReplaced, 200, 0},
	{planted.TaskEndIsLost, 100, 0},
	{planted.RetriesNotCounted, 200, 0},
	{planted.ScheduleForgetsTime, 100, 0},
	{planted.ScheduleZoneIgnored, 200, 0},
	{planted.OverlapIgnored, 100, 0},
	{planted.AvailabilityNotChecked, 200, 0},
	{planted.SurgeNotChecked, 200, 0},
	{planted.RolloutStalls, 200, 0},
	{planted.ReplicaNotReplaced, 200, 0},
	{planted.QuotaNotChecked, 100, 0},
	{planted.TaskQuotaNotChecked, 400, 0},
	{planted.EqualsPreempted, 100, 0},
	{planted.KeptPreempted, 100, 0},
	{planted.KeptDrained, 100, 0},
	{planted.DrainGrows, 200, 0},
	{planted.DrainDoneEarly, 100, 0},
	{planted.RatioNotChecked, 100, 0},
	{planted.NewLeaderDoesNotWait, 200, 0},
	{planted.LeaseWhileDown, 200, 0},
	{planted.RenewedWhileDown, 600, 0},
	{planted.LongLeaseForgotten, 500, 0},
	{planted.FenceNotMoved, 200, 0},
	{planted.FenceNotArmed, 200, 0},
	{planted.LeaseFromReceipt, 200, 0},
	{planted.LeaseWithoutRound, 600, 0},
	{planted.LeaseOfDeposed, 700, 700},
	{planted.DownAtOnce, 600, 0},
	{planted.StartUnasked, 600, 0},
	{planted.StartsInsteadAdopt, 200, 0},
	{planted.ReportOvertakes, 200, 0},
	{planted.KeptIsNotTold, 200, 0},
	{planted.RecordKeptLate, 200, 0},
	{planted.DamageIsCut, 200, 0},
	{planted.SnapshotUnchecked, 200, 0},
}

var bugFlag = flag.String("bug", "", "the only bug that TestPlantedBugsAreFound plants")

// TestPlantedBugsAreFound: the simulator can fail.
func TestPlantedBugsAreFound(t *testing.T) {
	t.Cleanup(func() { planted.Plant("") })
	for _, f := range found {
		if *bugFlag != "" && string(f.bug) != *bugFlag {
			continue
		}
		planted.Plant(f.bug)
		var err error
		first := max(f.first, 1)
		seed := first
		for ; seed < first+f.seeds && err == nil; seed++ {
			t.Run("", func(t *testing.T) { err = run(t, Options{Seed: seed}).Err })
		}
		if err == nil {
			t.Errorf("not found in %d seeds: %s", f.seeds, f.bug)
			continue
		}
		t.Logf("seed %3d finds: %s: %.150v", seed-1, f.bug, err)
	}
}

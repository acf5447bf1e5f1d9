//go:build planted

package sim

import (
	"testing"

	"github.com/blixard/blixard/internal/planted"
)

// found says within how many seeds the simulator must find each bug.
var found = []struct {
	bug   planted.Bug
	seeds uint64
}{
	{planted.ReadsWithoutRound, 100},
	{planted.ReadsByLease, 200},
	{planted.AnswersWithoutTerm, 100},
	{planted.NoSync, 100},
	{planted.VoteNotKept, 200},
	{planted.TermNotKept, 100},
	{planted.OldTailKept, 100},
	{planted.RestartLosesLast, 100},
	{planted.RestartForgetsVote, 200},
	{planted.SnapshotIndexLow, 100},
	{planted.SnapshotMembersOld, 100},
	{planted.SnapshotNotTaken, 100},
	{planted.SecondOfBatchSkipped, 100},
	{planted.ReplacedIsMade, 100},
	{planted.KeysIgnored, 100},
	{planted.KeysForgottenEarly, 100},
	{planted.SnapshotWithoutKeys, 200},
	{planted.RoomNotCounted, 100},
	{planted.EpochNotRaised, 100},
	{planted.NamesTakenTwice, 100},
}

// TestPlantedBugsAreFound: the simulator can fail.
func TestPlantedBugsAreFound(t *testing.T) {
	t.Cleanup(func() { planted.Plant("") })
	for _, f := range found {
		planted.Plant(f.bug)
		var err error
		seed := uint64(1)
		for ; seed <= f.seeds && err == nil; seed++ {
			t.Run("", func(t *testing.T) { err = run(t, Options{Seed: seed}).Err })
		}
		if err == nil {
			t.Errorf("not found in %d seeds: %s", f.seeds, f.bug)
			continue
		}
		t.Logf("seed %3d finds: %s: %.150v", seed-1, f.bug, err)
	}
}

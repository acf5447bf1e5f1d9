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
	// first seed; 0 means 1. A bug that is rarer is looked for around the seed that
	// once found it.
	first uint64
}{
	{planted.ReadsWithoutRound, 100, 0},
	{planted.ReadsByLease, 200, 0},
	{planted.RoundsAlike, 20, 1895539951200},
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
	{planted.ReplacedStay, 20, 3000860},
	{planted.KeysIgnored, 100, 0},
	{planted.KeysForgottenEarly, 100, 0},
	{planted.SnapshotWithoutKeys, 200, 0},
	{planted.RoomNotCounted, 100, 0},
	{planted.EpochNotRaised, 100, 0},
	{planted.NamesTakenTwice, 100, 0},
}

// TestPlantedBugsAreFound: the simulator can fail.
func TestPlantedBugsAreFound(t *testing.T) {
	t.Cleanup(func() { planted.Plant("") })
	for _, f := range found {
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

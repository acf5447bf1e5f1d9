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
	{planted.ReadsWithoutRound, 50},
	{planted.ReadsByLease, 200},
	{planted.AnswersWithoutTerm, 200},
	{planted.NoSync, 50},
	{planted.VoteNotKept, 200},
	{planted.TermNotKept, 50},
	{planted.OldTailKept, 50},
	{planted.RestartLosesLast, 200},
	{planted.RestartForgetsVote, 200},
	{planted.SnapshotIndexLow, 50},
	{planted.SnapshotMembersOld, 50},
	{planted.SnapshotNotTaken, 50},
	{planted.SecondOfBatchSkipped, 50},
	{planted.ReplacedIsMade, 200},
	{planted.KeysIgnored, 50},
	{planted.KeysForgottenEarly, 50},
	{planted.SnapshotWithoutKeys, 50},
	{planted.RoomNotCounted, 50},
	{planted.EpochNotRaised, 50},
	{planted.NamesTakenTwice, 50},
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

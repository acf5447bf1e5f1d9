package replica

import (
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// TestSkippedChangeIsUnknown: an entry that a snapshot of the leader takes the place
// of may have been committed, so nobody is told that it was not.
func TestSkippedChangeIsUnknown(t *testing.T) {
	told := map[uint64]error{}
	c := &core{id: 1, lead: 2}
	for _, index := range []uint64{5, 7, 8} {
		c.pending = append(c.pending, &proposal{index: index, term: 3, done: func(_ state.Result, err error) { told[index] = err }})
	}
	var e effects
	index, term := uint64(7), uint64(4)
	c.skipTo(&raftpb.SnapshotMetadata{Index: &index, Term: &term, ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}}, &e)
	for _, answer := range e.answers {
		answer()
	}
	if len(told) != 2 || !problem.HasCode(told[5], "change.unknown") || !problem.HasCode(told[7], "change.unknown") {
		t.Errorf("told %v", told)
	}
	if len(c.pending) != 1 || c.pending[0].index != 8 {
		t.Errorf("%d proposals wait on", len(c.pending))
	}
}

// TestReplacedChangesAreGivenUp: entries that a later term puts in the place of
// others leave only proposals that the log still holds, in the order of their index.
func TestReplacedChangesAreGivenUp(t *testing.T) {
	refused := map[uint64]bool{}
	c := &core{id: 1, lead: 1}
	for _, index := range []uint64{5, 6, 7, 8, 9} {
		c.pending = append(c.pending, &proposal{index: index, term: 2, done: func(_ state.Result, err error) {
			refused[index] = problem.HasCode(err, "replica.not_leader")
		}})
	}
	entry := func(index, term uint64) *raftpb.Entry { return &raftpb.Entry{Index: &index, Term: &term} }
	var e effects
	c.giveUpReplaced([]*raftpb.Entry{entry(6, 2), entry(7, 3), entry(8, 3)}, &e)
	for _, answer := range e.answers {
		answer()
	}
	if len(refused) != 3 || !refused[7] || !refused[8] || !refused[9] {
		t.Errorf("refused %v", refused)
	}
	if len(c.pending) != 2 || c.pending[0].index != 5 || c.pending[1].index != 6 {
		t.Errorf("%d proposals wait on", len(c.pending))
	}
}

// TestReadAnswersOfAnEarlierStart: a round's answer that was on its way while the
// replica started anew says nothing of reads that began after it.
func TestReadAnswersOfAnEarlierStart(t *testing.T) {
	before := &core{id: 1, round: 3, life: [lifeBytes]byte{1}}
	answered := 0
	c := &core{id: 1, round: 3, life: [lifeBytes]byte{2}, asked: []read{{func(uint64, error) { answered++ }}}}
	answer := func(id []byte) {
		var e effects
		c.answerReads(raft.ReadState{Index: 7, RequestCtx: id}, &e)
		for _, tell := range e.answers {
			tell()
		}
	}
	if answer(before.roundID()); answered != 0 {
		t.Error("an answer to an earlier start was taken")
	}
	if answer(c.roundID()); answered != 1 {
		t.Error("the own answer was not taken")
	}
}

package state

import (
	"sync"
	"sync/atomic"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/invariant"
	"github.com/blixard/blixard/internal/problem"
)

// State is the replicated state machine. Apply and Restore must be called by
// one goroutine at a time; View and Stats are safe for concurrent use.
type State struct {
	limits Limits
	view   atomic.Pointer[View]

	illegalMoves  atomic.Uint64
	fencedReports atomic.Uint64

	// The rest belongs to the goroutine that applies.

	// Invariant: index of the newest applied entry, equal to the view's between
	// batches.
	index uint64
	db    *database
	// tasks is how many there are in db.
	tasks int
	// The queues share their memory with the views: elements are appended and
	// dropped at the front, never changed in place.
	events  []*blixardv1.Event
	changes []Change
	floor   uint64
	answers []*answer
	// Invariant: byKey holds exactly the elements of answers.
	byKey      map[answerKey]*answer
	vocabulary *vocabulary
}

// Stats counts what was refused since the process started.
type Stats struct {
	// IllegalMoves are reports that the table of moves refused.
	IllegalMoves uint64
	// FencedReports are reports of an epoch older than the VM's.
	FencedReports uint64
}

// New gives an empty state at index 0.
func New(limits Limits) *State {
	s := &State{limits: limits}
	s.reset()
	s.publish()
	return s
}

func (s *State) reset() {
	s.index, s.floor, s.db = 0, 0, newDatabase()
	s.events, s.changes, s.answers, s.tasks = nil, nil, nil, 0
	s.byKey, s.vocabulary = map[answerKey]*answer{}, newVocabulary()
}

// View gives the state after the newest applied batch.
func (s *State) View() *View { return s.view.Load() }

// Stats gives the counters.
func (s *State) Stats() Stats {
	return Stats{IllegalMoves: s.illegalMoves.Load(), FencedReports: s.fencedReports.Load()}
}

// Apply carries out the commands of entries, whose indexes must go up from the
// newest applied one, and gives the result of each. A command is carried out
// wholly or not at all; a refused one changes nothing but what is remembered for
// its idempotency key. Views see all of the batch or nothing of it.
//
// A command that this version does not know stops the process: to leave it out
// would part this replica from the others.
func (s *State) Apply(entries []Entry) []Result {
	if len(entries) == 0 {
		return nil
	}
	b := newBatch(s)
	results := make([]Result, len(entries))
	for i := range entries {
		e := &entries[i]
		if e.Index <= s.index {
			invariant.Fail("apply index %d after %d: was the log cut or replayed twice?", e.Index, s.index)
		}
		s.index = e.Index
		if e.Command == nil {
			results[i] = Result{Index: e.Index}
			continue
		}
		b.begin(e.Index, e.Command)
		results[i] = b.once(e.Command)
	}
	b.commit()
	s.publish()
	return results
}

func (s *State) publish() {
	db := s.db.freeze()
	s.view.Store(&View{
		index:   s.index,
		limits:  s.limits,
		db:      db,
		nodes:   sync.OnceValue(func() []*blixardv1.Node { return every[blixardv1.Node](db, tableNode, indexName) }),
		level:   sync.OnceValue(func() uint32 { return featureLevel(db) }),
		events:  s.events,
		changes: s.changes,
		floor:   s.floor,
		answers: s.answers,
	})
}

// run carries out one command.
func (b *batch) run(cmd *blixardv1.Command) Result {
	switch c := cmd.GetChange().(type) {
	case *blixardv1.Command_LabelVm:
		return b.labelVM(c.LabelVm)
	case *blixardv1.Command_CreateVm:
		return b.createVM(c.CreateVm)
	case *blixardv1.Command_SetVmDesired:
		return b.setVMDesired(c.SetVmDesired)
	case *blixardv1.Command_DeleteVm:
		return b.deleteVM(c.DeleteVm)
	case *blixardv1.Command_Place:
		return b.place(c.Place)
	case *blixardv1.Command_Report:
		return b.report(c.Report)
	case *blixardv1.Command_RegisterNode:
		return b.registerNode(c.RegisterNode)
	case *blixardv1.Command_SetVmReason:
		return b.setVMReason(c.SetVmReason)
	case *blixardv1.Command_SetNodeState:
		return b.setNodeState(c.SetNodeState)
	case *blixardv1.Command_DrainNode:
		return b.drainNode(c.DrainNode)
	case *blixardv1.Command_MoveVm:
		return b.moveVM(c.MoveVm)
	case *blixardv1.Command_Reschedule:
		return b.reschedule(c.Reschedule)
	case *blixardv1.Command_UpdateNode:
		return b.updateNode(c.UpdateNode)
	case *blixardv1.Command_Evict:
		return b.evict(c.Evict)
	case *blixardv1.Command_Lose:
		return b.lose(c.Lose)
	case *blixardv1.Command_Preempt:
		return b.preempt(c.Preempt)
	case *blixardv1.Command_AdvanceDrain:
		return b.advanceDrain(c.AdvanceDrain)
	case *blixardv1.Command_SetBusy:
		return b.setBusy(c.SetBusy)
	}
	return b.runGuests(cmd)
}

// runGuests carries out one command about what VMs are made of.
func (b *batch) runGuests(cmd *blixardv1.Command) Result {
	switch c := cmd.GetChange().(type) {
	case *blixardv1.Command_UpdateVm:
		return b.updateVM(c.UpdateVm)
	case *blixardv1.Command_RenameVm:
		return b.renameVM(c.RenameVm)
	case *blixardv1.Command_PutImage:
		return b.putImage(c.PutImage)
	case *blixardv1.Command_DropImage:
		return b.dropImages(c.DropImage)
	case *blixardv1.Command_CreateVolume:
		return b.createVolume(c.CreateVolume)
	case *blixardv1.Command_ResizeVolume:
		return b.resizeVolume(c.ResizeVolume)
	case *blixardv1.Command_DeleteVolume:
		return b.deleteVolume(c.DeleteVolume)
	case *blixardv1.Command_ReleaseVolume:
		return b.releaseVolume(c.ReleaseVolume)
	case *blixardv1.Command_MoveVolume:
		return b.moveVolume(c.MoveVolume)
	case *blixardv1.Command_SnapshotVolume:
		return b.snapshotVolume(c.SnapshotVolume)
	case *blixardv1.Command_CreateNetwork:
		return b.createNetwork(c.CreateNetwork)
	case *blixardv1.Command_UpdateNetwork:
		return b.updateNetwork(c.UpdateNetwork)
	case *blixardv1.Command_DeleteNetwork:
		return b.deleteNetwork(c.DeleteNetwork)
	case *blixardv1.Command_SetSecret:
		return b.setSecret(c.SetSecret)
	case *blixardv1.Command_DeleteSecret:
		return b.deleteSecret(c.DeleteSecret)
	case *blixardv1.Command_SubmitTask:
		return b.submitTask(c.SubmitTask)
	case *blixardv1.Command_StepTasks:
		return b.stepTasks(c.StepTasks)
	case *blixardv1.Command_ChangeTasks:
		return b.changeTasks(c.ChangeTasks)
	case *blixardv1.Command_CreateSchedule:
		return b.createSchedule(c.CreateSchedule)
	case *blixardv1.Command_UpdateSchedule:
		return b.updateSchedule(c.UpdateSchedule)
	case *blixardv1.Command_ChangeSchedule:
		return b.changeSchedule(c.ChangeSchedule)
	case *blixardv1.Command_StepSchedules:
		return b.stepSchedules(c.StepSchedules)
	case *blixardv1.Command_SetQuota:
		return b.setQuota(c.SetQuota)
	case *blixardv1.Command_RemoveQuota:
		return b.removeQuota(c.RemoveQuota)
	case *blixardv1.Command_CreateGroup:
		return b.createGroup(c.CreateGroup)
	case *blixardv1.Command_UpdateGroup:
		return b.updateGroup(c.UpdateGroup)
	case *blixardv1.Command_ChangeGroup:
		return b.changeGroup(c.ChangeGroup)
	case *blixardv1.Command_StepGroups:
		return b.stepGroups(c.StepGroups)
	case *blixardv1.Command_DeleteGroup:
		return b.deleteGroup(c.DeleteGroup)
	}
	return b.runCluster(cmd)
}

// runCluster carries out one command about the cluster and its members.
func (b *batch) runCluster(cmd *blixardv1.Command) Result {
	switch c := cmd.GetChange().(type) {
	case *blixardv1.Command_FormCluster:
		return b.formCluster(c.FormCluster)
	case *blixardv1.Command_CreateToken:
		return b.createToken(c.CreateToken)
	case *blixardv1.Command_RevokeToken:
		return b.revokeToken(c.RevokeToken)
	case *blixardv1.Command_EnrollMember:
		return b.enrollMember(c.EnrollMember)
	case *blixardv1.Command_ChangeMember:
		return b.changeMember(c.ChangeMember)
	case *blixardv1.Command_RemoveMember:
		return b.removeMember(c.RemoveMember)
	case *blixardv1.Command_RecoverCluster:
		return b.recoverCluster(c.RecoverCluster)
	case *blixardv1.Command_RotateAuthority:
		return b.rotateAuthority(c.RotateAuthority)
	case *blixardv1.Command_DropAuthorities:
		return b.dropAuthorities()
	case *blixardv1.Command_SetSettings:
		return b.setSettings(c.SetSettings)
	case *blixardv1.Command_PruneEvents:
		return b.pruneEvents(c.PruneEvents)
	}
	invariant.Fail("entry %d holds a command this version does not know: was it written by a newer one?", b.index)
	return Result{}
}

func refused(index uint64, p *problem.Error) Result { return Result{Index: index, Problem: p} }

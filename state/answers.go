package state

import (
	"bytes"
	"crypto/sha256"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// digestBytes is the length of a digest: enough that no two requests of one
// caller meet by chance.
const digestBytes = 16

// Digest gives the digest of a command's request: of its change without the ids
// that the proposer chose. A proposer that chooses more than ids, such as names
// or defaults, must digest the request itself.
func Digest(cmd *blixardv1.Command) []byte {
	c := &blixardv1.Command{Change: cmd.GetChange()}
	if create, ok := cmd.GetChange().(*blixardv1.Command_CreateVm); ok {
		c.Change = &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
			Name: create.CreateVm.GetName(), Spec: create.CreateVm.GetSpec(), Labels: create.CreateVm.GetLabels(),
			Project: create.CreateVm.GetProject(),
		}}
	}
	switch change := cmd.GetChange().(type) {
	case *blixardv1.Command_CreateVolume:
		v := proto.CloneOf(change.CreateVolume)
		v.Id = ""
		c.Change = &blixardv1.Command_CreateVolume{CreateVolume: v}
	case *blixardv1.Command_CreateNetwork:
		// Subnets are the proposer's choice where the request leaves them out.
		c.Change = &blixardv1.Command_CreateNetwork{CreateNetwork: &blixardv1.CreateNetworkCommand{Network: &blixardv1.Network{
			Name: change.CreateNetwork.GetNetwork().GetName(), Rules: change.CreateNetwork.GetNetwork().GetRules(),
		}}}
	case *blixardv1.Command_SubmitTask:
		t := proto.CloneOf(change.SubmitTask)
		t.Id = ""
		c.Change = &blixardv1.Command_SubmitTask{SubmitTask: t}
	case *blixardv1.Command_CreateSchedule:
		s := proto.CloneOf(change.CreateSchedule)
		s.Id = ""
		c.Change = &blixardv1.Command_CreateSchedule{CreateSchedule: s}
	case *blixardv1.Command_CreateGroup:
		g := proto.CloneOf(change.CreateGroup)
		g.Id = ""
		c.Change = &blixardv1.Command_CreateGroup{CreateGroup: g}
	case *blixardv1.Command_SetSecret:
		// Sealing the same value twice gives other bytes.
		c.Change = &blixardv1.Command_SetSecret{SetSecret: &blixardv1.SetSecretCommand{
			Name: change.SetSecret.GetName(), SizeBytes: change.SetSecret.GetSizeBytes(), CreateOnly: change.SetSecret.GetCreateOnly(),
		}}
	}
	var space [512]byte
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(space[:0], c)
	if err != nil {
		return nil // the proposal fails on the same error
	}
	sum := sha256.Sum256(b)
	return sum[:digestBytes]
}

// answerKey: a key belongs to its caller.
type answerKey struct{ actor, key string }

// answer is a remembered Result, kept small because there are many; on disk it
// is an IdempotencyRecord.
type answer struct {
	key         answerKey
	digest      []byte
	index       uint64
	unixNano    int64
	objectID    string
	objectName  string
	modifyIndex uint64
	problem     *problem.Error
}

// once runs a command unless its key was seen before.
func (b *batch) once(cmd *blixardv1.Command) Result {
	if cmd.GetKey() == "" {
		return b.run(cmd)
	}
	k := answerKey{cmd.GetActor(), cmd.GetKey()}
	if a, ok := b.s.byKey[k]; ok && !planted.Is(planted.KeysIgnored) {
		return b.repeat(a, cmd)
	}
	r := b.run(cmd)
	a := &answer{
		key: k, digest: cmd.GetDigest(), index: b.index, unixNano: cmd.GetTime().AsTime().UnixNano(),
	}
	if r.Problem != nil {
		// Older members know of no fields, and must come to the same bytes.
		a.problem = r.Problem.WithViolations(nil)
	}
	switch {
	case r.VM != nil:
		a.objectID, a.objectName, a.modifyIndex = r.VM.GetId(), r.VM.GetName(), r.VM.GetModifyIndex()
	case r.Member != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Member.GetNodeId(), r.Member.GetName(), r.Member.GetModifyIndex()
	case r.Token != nil:
		a.objectID, a.objectName = r.Token.GetId(), r.Token.GetId()
	case r.Node != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Node.GetId(), r.Node.GetName(), r.Node.GetModifyIndex()
	case r.Image != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Image.GetName(), r.Image.GetName(), r.Image.GetModifyIndex()
	case r.Volume != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Volume.GetId(), r.Volume.GetName(), r.Volume.GetModifyIndex()
	case r.Network != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Network.GetId(), r.Network.GetName(), r.Network.GetModifyIndex()
	case r.Schedule != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Schedule.GetId(), r.Schedule.GetName(), r.Schedule.GetModifyIndex()
	case len(r.Tasks) > 0:
		a.objectID, a.objectName, a.modifyIndex = r.Tasks[0].GetId(), r.Tasks[0].GetName(), r.Tasks[0].GetModifyIndex()
	case r.Group != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Group.GetId(), r.Group.GetName(), r.Group.GetModifyIndex()
	case r.Secret != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Secret.GetName(), r.Secret.GetName(), r.Secret.GetModifyIndex()
	case r.Settings != nil:
		a.objectID, a.modifyIndex = settingsID, r.Settings.GetModifyIndex()
	case r.Quota != nil:
		a.objectID, a.objectName, a.modifyIndex = r.Quota.GetProject(), r.Quota.GetProject(), r.Quota.GetModifyIndex()
	}
	b.s.remember(a)
	return r
}

// repeat gives the first answer again. The object is as it is now, with the
// modify_index of the first answer; one that is gone is given by id and name.
func (b *batch) repeat(a *answer, cmd *blixardv1.Command) Result {
	if !bytes.Equal(a.digest, cmd.GetDigest()) {
		return Result{Index: b.index, Problem: problem.New(problem.Conflict, "idempotency.mismatch",
			"idempotency key %q was used for another change at index %d", a.key.key, a.index).
			WithHint("use a fresh key for each change; repeat a key only with the same request")}
	}
	r := Result{Index: a.index, Problem: a.problem, Repeated: true}
	if a.objectID == "" || b.repeatGuests(a, cmd, &r) {
		return r
	}
	switch cmd.GetChange().(type) {
	case *blixardv1.Command_RegisterNode, *blixardv1.Command_SetNodeState, *blixardv1.Command_DrainNode,
		*blixardv1.Command_UpdateNode:
		if n := b.node(a.objectID); n != nil {
			r.Node = copyNode(n)
			r.Node.ModifyIndex = a.modifyIndex
		}
		return r
	case *blixardv1.Command_FormCluster, *blixardv1.Command_EnrollMember, *blixardv1.Command_ChangeMember, *blixardv1.Command_RemoveMember:
		if m := b.member(a.objectID); m != nil {
			r.Member = proto.CloneOf(m)
			r.Member.ModifyIndex = a.modifyIndex
		}
		return r
	case *blixardv1.Command_SetSettings:
		if s := settings(b.db); s != nil {
			r.Settings = proto.CloneOf(s)
			r.Settings.ModifyIndex = a.modifyIndex
		}
		return r
	case *blixardv1.Command_CreateToken, *blixardv1.Command_RevokeToken:
		if r.Token = first[blixardv1.Token](b.db, tableToken, indexID, a.objectID); r.Token == nil {
			r.Token = &blixardv1.Token{Id: a.objectID}
		}
		return r
	}
	if vm := b.vm(a.objectID); vm != nil {
		r.VM = copyVM(vm)
	} else {
		r.VM = &blixardv1.VM{Id: a.objectID, Name: a.objectName, Deleting: true}
	}
	r.VM.ModifyIndex = a.modifyIndex
	return r
}

// repeatGuests is repeat for what VMs are made of; it reports whether cmd is about
// that.
func (b *batch) repeatGuests(a *answer, cmd *blixardv1.Command, r *Result) bool {
	switch cmd.GetChange().(type) {
	case *blixardv1.Command_PutImage:
		if r.Image = b.image(a.objectID); r.Image == nil {
			r.Image = &blixardv1.Image{Name: a.objectID}
		}
	case *blixardv1.Command_CreateVolume, *blixardv1.Command_ResizeVolume, *blixardv1.Command_DeleteVolume,
		*blixardv1.Command_ReleaseVolume, *blixardv1.Command_MoveVolume, *blixardv1.Command_SnapshotVolume:
		if r.Volume = b.volume(a.objectID); r.Volume == nil {
			r.Volume = &blixardv1.Volume{Id: a.objectID, Name: a.objectName, Deleting: true}
		}
	case *blixardv1.Command_CreateNetwork, *blixardv1.Command_UpdateNetwork, *blixardv1.Command_DeleteNetwork:
		if r.Network = b.network(a.objectID); r.Network == nil {
			r.Network = &blixardv1.Network{Id: a.objectID, Name: a.objectName}
		}
	case *blixardv1.Command_SetSecret, *blixardv1.Command_DeleteSecret:
		if r.Secret = first[blixardv1.Secret](b.db, tableSecret, indexID, a.objectID); r.Secret == nil {
			r.Secret = &blixardv1.Secret{Name: a.objectID}
		}
	case *blixardv1.Command_SubmitTask, *blixardv1.Command_ChangeTasks:
		t := b.task(a.objectID)
		if t == nil {
			t = &blixardv1.Task{Id: a.objectID, Name: a.objectName}
		}
		r.Tasks = []*blixardv1.Task{t}
	case *blixardv1.Command_CreateSchedule, *blixardv1.Command_UpdateSchedule, *blixardv1.Command_ChangeSchedule:
		if r.Schedule = b.schedule(a.objectID); r.Schedule == nil {
			r.Schedule = &blixardv1.Schedule{Id: a.objectID, Name: a.objectName}
		}
	case *blixardv1.Command_SetQuota, *blixardv1.Command_RemoveQuota:
		if r.Quota = b.Quota(a.objectID); r.Quota == nil {
			r.Quota = &blixardv1.Quota{Project: a.objectID}
		}
	case *blixardv1.Command_CreateGroup, *blixardv1.Command_UpdateGroup, *blixardv1.Command_ChangeGroup, *blixardv1.Command_DeleteGroup:
		if r.Group = b.group(a.objectID); r.Group == nil {
			r.Group = &blixardv1.Group{Id: a.objectID, Name: a.objectName, Deleting: true}
		}
	default:
		return false
	}
	return true
}

// remember keeps a and forgets what is too old or too many. Age is counted in
// the time of commands, so a proposer's clock that jumps forward makes the
// replicas forget early, all of them alike.
func (s *State) remember(a *answer) {
	s.answers = append(s.answers, a)
	s.byKey[a.key] = a
	if planted.Is(planted.KeysForgottenEarly) && len(s.answers) > 3 {
		delete(s.byKey, s.answers[0].key)
		s.answers = s.answers[1:]
	}
	oldest := a.unixNano - int64(s.limits.AnswersWindow)
	drop := 0
	for drop < len(s.answers)-1 &&
		(len(s.answers)-drop > s.limits.Answers || s.answers[drop].unixNano < oldest) {
		delete(s.byKey, s.answers[drop].key)
		drop++
	}
	s.answers = s.answers[drop:]
}

// record writes a into r, whose time is there already.
func (a *answer) record(r *blixardv1.IdempotencyRecord) {
	r.Key, r.Actor, r.Index, r.Digest = a.key.key, a.key.actor, a.index, a.digest
	r.Time.Seconds, r.Time.Nanos = a.unixNano/1e9, int32(a.unixNano%1e9)
	r.ObjectId, r.ObjectName, r.ModifyIndex = a.objectID, a.objectName, a.modifyIndex
	r.Problem = nil
	if a.problem != nil {
		r.Problem = a.problem.Proto()
	}
}

func answerOf(r *blixardv1.IdempotencyRecord) *answer {
	return &answer{
		key: answerKey{r.GetActor(), r.GetKey()}, digest: r.GetDigest(), index: r.GetIndex(),
		unixNano: r.GetTime().AsTime().UnixNano(), objectID: r.GetObjectId(), objectName: r.GetObjectName(),
		modifyIndex: r.GetModifyIndex(), problem: problem.FromProto(r.GetProblem()),
	}
}

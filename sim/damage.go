package sim

import (
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

const (
	tokenID = "token"
	// operatorPause between looks of the person who replaces a damaged host.
	operatorPause = 200 * time.Millisecond
	// operatorTries of one change, which is more than a run has time for.
	operatorTries = 10_000
)

var tokenSecret = []byte("secret")

// open is that of the log: it gives what was synced, or tells of damage. It never
// gives a log with a hole.
func (d *disk) open() error {
	if !d.damaged {
		return nil
	}
	if planted.Is(planted.DamageIsCut) {
		d.damaged = false
		d.entries = d.entries[:len(d.entries)/2]
		return nil
	}
	return problem.New(problem.Internal, "wal.damaged", "the log or a snapshot is damaged")
}

// rot damages one host's disk while its machine is off: a flipped bit or a lost
// sector in the log or a snapshot. The others' disks stay good until that host has
// been replaced, so that one good copy of each committed entry is left. Enough of them
// must know that they vote: the first of a cluster alone made them voters, and nobody
// could lead after it.
func (w *world) rot() {
	h := w.any()
	m, err := w.membership()
	if w.damaged != nil || err != nil || len(m.Voters) < 3 || len(m.Outgoing) > 0 || len(h.disk.entries) == 0 {
		return
	}
	know := 0
	for _, o := range w.hosts {
		if o != h && slices.Contains(m.Voters, o.raftID) && max(o.disk.hard.GetCommit(), o.disk.SnapshotIndex()) >= w.checks.members {
			know++
		}
	}
	if know <= len(m.Voters)/2 {
		return
	}
	w.count("damaged disks")
	w.damaged = h
	h.powerOff("its disk is damaged")
	h.disk.damaged = true
	w.forAWhile(h.restart)
}

// membership as the leader of the newest term knows it.
func (w *world) membership() (m memberView, err error) {
	lead := w.leader()
	if lead == nil || lead.paused {
		return m, errNotLeading
	}
	got, err := lead.steps.Membership(w.ctx)
	return memberView{got.Voters, got.Outgoing, slices.Concat(got.Voters, got.Outgoing, got.Learners)}, err
}

type memberView struct{ Voters, Outgoing, all []uint64 }

// replace is what a person does about a host that refuses to start for damage: the
// member is removed, its vote first, and the host joins with an empty disk, as
// another node with another Raft id.
func (w *world) replace(h *host) {
	w.count("refused starts")
	w.note("host %d refuses to start: its disk is damaged", h.n)
	h.replacing = true
	old, oldID := h.nodeID, h.raftID
	h.machine.powerOff()
	h.machine.journal = map[string]*blixardv1.AllocationRecord{}
	worker := &blixardv1.ChangeMemberCommand{Node: old, Role: blixardv1.MemberRole_worker}
	w.operator(&blixardv1.Command{Change: &blixardv1.Command_ChangeMember{ChangeMember: worker}}, func(state.Result) {
		w.until(func() bool {
			m, err := w.membership()
			return err == nil && !slices.Contains(m.Voters, oldID) && !slices.Contains(m.Outgoing, oldID)
		}, func() {
			remove := &blixardv1.RemoveMemberCommand{Node: old, Force: true}
			w.operator(&blixardv1.Command{Change: &blixardv1.Command_RemoveMember{RemoveMember: remove}}, func(state.Result) { w.join(h) })
		})
	})
}

// join lets a host with an empty disk join.
func (w *world) join(h *host) {
	w.joins++
	h.nodeID = fmt.Sprintf("node-%d-%d", h.n+1, w.joins)
	h.machine.incarnation = 0
	w.operator(&blixardv1.Command{Change: &blixardv1.Command_EnrollMember{EnrollMember: &blixardv1.EnrollMemberCommand{
		TokenId: tokenID, SecretDigest: tokenSecret, Member: h.member(),
	}}}, func(r state.Result) {
		h.disk, h.join, h.raftID = newDisk(cluster), true, r.Member.GetRaftId()
		w.note("host %d joins as %s with Raft id %d", h.n, h.nodeID, h.raftID)
		h.replacing = false
		h.start()
		w.until(func() bool {
			m, err := w.membership()
			return err == nil && slices.Contains(m.all, h.raftID) && h.applied+100 > w.checks.newest
		}, func() {
			w.count("replaced hosts")
			w.damaged = nil
		})
	})
}

// operator makes a change however often it must be asked for, also when it has to
// wait until a node is down.
func (w *world) operator(cmd *blixardv1.Command, done func(state.Result)) {
	w.keys++
	cmd.Key, cmd.Actor, cmd.Time = fmt.Sprintf("key-%d", w.keys), "admin", timestamppb.New(epoch.Add(w.now))
	w.request(&request{cmd: cmd, tries: operatorTries, done: func(r state.Result, err error, _ bool) {
		if err == nil && r.Problem != nil && r.Problem.Code == "member.may_run" {
			w.count("removals that waited")
			w.after(operatorPause, func() { w.operator(&blixardv1.Command{Change: cmd.GetChange()}, done) })
			return
		}
		if err == nil && r.Problem != nil {
			err = r.Problem
		}
		if err != nil {
			w.fail("%v: %v", cmd, err)
			return
		}
		done(r)
	}})
}

// until calls then once that is so.
func (w *world) until(so func() bool, then func()) {
	w.after(operatorPause, func() {
		if so() {
			then()
			return
		}
		w.until(so, then)
	})
}

// flipped is the body of a snapshot that is damaged on its way.
type flipped struct {
	in   io.Reader
	at   int
	read int
}

func (f *flipped) Read(b []byte) (int, error) {
	n, err := f.in.Read(b)
	if f.at >= f.read && f.at < f.read+n {
		b[f.at-f.read] ^= 1
	}
	f.read += n
	return n, err
}

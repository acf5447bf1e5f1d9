package replica

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"log/slog"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/invariant"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

const (
	// messageBytesMax bounds one message of entries to a peer.
	messageBytesMax = 1 << 20
	// applyBytesMax bounds the entries of one apply batch that Raft gives out.
	applyBytesMax = 8 << 20
	// inflightMessagesMax to a peer that has not answered.
	inflightMessagesMax = 256
	// readRetryTicks: a quorum round that got no answer in that time is begun
	// again; one second.
	readRetryTicks = 10
	// lifeBytes of chance never meet twice.
	lifeBytes = 12
)

// proposal is a change between its proposer and the state.
type proposal struct {
	cmd  *blixardv1.Command
	data []byte
	// done is called once, and must not block.
	done func(state.Result, error)
	// decided is the term in which it may become an entry; 0 means any.
	decided uint64
	// index and term are set once the entry is in the log.
	index, term uint64
}

// read waits for an index from which a read is linearizable. done is called
// once, and must not block.
type read struct{ done func(uint64, error) }

// applyTask is a run of committed entries for the applier, in order.
type applyTask struct {
	entries []*raftpb.Entry
	// proposals has one element for each entry: the proposal of this process, or
	// nil.
	proposals []*proposal
	// confs gives the membership as it is after entries that change it, by their
	// place in entries.
	confs     map[int]*raftpb.ConfState
	responses []*raftpb.Message
	// restore, when set, replaces the whole state by a snapshot; there are no
	// entries then, and restored is closed when it is done.
	restore  *raftpb.SnapshotMetadata
	restored chan struct{}
	// compact, when set, asks for a snapshot of what is applied, and is told how it
	// ended.
	compact chan error
	// due asks for a snapshot of whatever was applied since the last.
	due bool
	// again asks for one in the place of one that found no space.
	again bool
}

// effects is what the core wants done. Appends and applies are carried out in
// order, and the responses they carry are given back to Step when they are.
type effects struct {
	appends []*raftpb.Message
	applies []applyTask
	send    []*raftpb.Message
	// answers are calls that tell waiting proposers and readers.
	answers []func()
}

// core is the replica without goroutines, clock or disk: calls go in, effects
// come out.
type core struct {
	id uint64
	rn *raft.RawNode

	// fresh proposals were given to Raft and have no index yet.
	fresh []*proposal
	// Invariant: pending is in the order of index, and of nothing that the log gave
	// up.
	pending []*proposal

	// waiting reads have no round yet; asked ones share the round of that number.
	waiting, asked []read
	round          uint64
	sinceAsked     int
	// life sets the rounds of this start apart from those of every other start and
	// replica: an answer to one of them may still be on its way.
	life [lifeBytes]byte

	// eager: the only voter asks for its own vote as soon as it has applied what
	// it knows to be committed.
	eager bool
	// conf is the membership after the newest entry that was given out.
	conf *raftpb.ConfState

	term, commit, lead uint64
	// ownTerm is the newest term in which an entry was committed: before that, a
	// leader does not know which entries were committed before it.
	ownTerm uint64
}

type coreConfig struct {
	id      uint64
	storage raft.Storage
	applied uint64
	life    [lifeBytes]byte
	logger  *slog.Logger
}

func newCore(c coreConfig) (*core, error) {
	readOnly := raft.ReadOnlySafe
	if planted.Is(planted.ReadsByLease) {
		readOnly = raft.ReadOnlyLeaseBased
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ReadOnlyOption:            readOnly,
		ID:                        c.id,
		ElectionTick:              electionTicks,
		HeartbeatTick:             heartbeatTicks,
		Storage:                   c.storage,
		Applied:                   c.applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             messageBytesMax,
		MaxCommittedSizePerReady:  applyBytesMax,
		MaxUncommittedEntriesSize: 2 * underWayBytesMax,
		MaxInflightMsgs:           inflightMessagesMax,
		CheckQuorum:               true,
		PreVote:                   true,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{c.logger},
	})
	if err != nil {
		return nil, err
	}
	hs, conf, err := c.storage.InitialState()
	if err != nil {
		return nil, err
	}
	return &core{id: c.id, rn: rn, term: hs.GetTerm(), commit: hs.GetCommit(), conf: conf, eager: true, life: c.life}, nil
}

func notLeader(lead uint64) error {
	if lead == raft.None {
		return problem.New(problem.Unavailable, "replica.no_leader", "the cluster has no leader now").
			WithHint("try again in a few seconds; without a majority of its voters the cluster changes nothing")
	}
	return problem.New(problem.NotLeader, "replica.not_leader", "replica %d leads", lead)
}

// sole tells whether this replica is the only voter.
func (c *core) sole() bool {
	return len(c.conf.GetVoters()) == 1 && c.conf.GetVoters()[0] == c.id && len(c.conf.GetVotersOutgoing()) == 0
}

// maybeCampaign lets the only voter lead without waiting for an election timeout.
func (c *core) maybeCampaign() {
	if !c.eager {
		return
	}
	st := c.rn.BasicStatus()
	if st.Applied < st.GetCommit() {
		return
	}
	if c.eager = false; c.sole() {
		// An error would say no more than that the timeout decides.
		_ = c.rn.Campaign()
	}
}

// tick moves Raft's clock.
func (c *core) tick() {
	c.rn.Tick()
	if len(c.asked) == 0 {
		return
	}
	if c.sinceAsked++; c.sinceAsked >= readRetryTicks {
		c.askAgain()
	}
}

// askAgain lets the reads of a round that is under way wait for another.
func (c *core) askAgain() {
	c.waiting = append(c.asked, c.waiting...)
	c.asked = nil
}

// step takes messages of peers and the responses of the own appender and
// applier.
func (c *core) step(messages []*raftpb.Message) {
	for _, m := range messages {
		// What Raft does not want (a message of a former peer, a late answer) it
		// drops.
		_ = c.rn.Step(m)
	}
}

// proposeConf gives a change of the members to Raft, which carries it out, or
// leaves it out while an earlier one is under way.
func (c *core) proposeConf(change *raftpb.ConfChangeV2) error {
	if c.lead != c.id {
		return notLeader(c.lead)
	}
	if err := c.rn.ProposeConfChange(change); err != nil {
		return overloaded()
	}
	return nil
}

// propose gives proposals to Raft. ready must follow.
func (c *core) propose(proposals []*proposal, e *effects) {
	if proposals = c.refuseLate(proposals, e); len(proposals) == 0 {
		return
	}
	invariant.That(len(c.fresh) == 0, "%d proposals were given to Raft without a Ready", len(c.fresh))
	err := raft.ErrProposalDropped
	if c.lead == c.id {
		entries := make([]*raftpb.Entry, len(proposals))
		for i, p := range proposals {
			entries[i] = &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Data: p.data}
		}
		err = c.rn.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: &c.id, Entries: entries})
	}
	if err == nil {
		c.fresh = proposals
		return
	}
	refusal := notLeader(c.lead)
	if c.lead == c.id {
		refusal = overloaded()
	}
	for _, p := range proposals {
		e.answers = append(e.answers, func() { p.done(state.Result{}, refusal) })
	}
}

// refuseLate answers what was decided in another term than this one, and gives the
// rest. Raft may have left the term that the last Ready told of.
func (c *core) refuseLate(proposals []*proposal, e *effects) []*proposal {
	var now raft.BasicStatus
	kept := proposals[:0]
	for _, p := range proposals {
		if p.decided != 0 && now.ID == 0 {
			now = c.rn.BasicStatus()
		}
		if p.decided != 0 && (p.decided != now.GetTerm() || now.RaftState != raft.StateLeader) {
			refusal := notLeader(c.lead)
			e.answers = append(e.answers, func() { p.done(state.Result{}, refusal) })
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// read adds readers. All that wait when a round begins share it; at most one
// round is on its way.
func (c *core) read(reads []read) {
	if planted.Is(planted.ReadsWithoutRound) {
		for _, r := range reads {
			r.done(c.commit, nil)
		}
		return
	}
	c.waiting = append(c.waiting, reads...)
}

// askRead begins a round for the reads that wait.
func (c *core) askRead() {
	if len(c.waiting) == 0 || len(c.asked) > 0 {
		return
	}
	if c.lead == raft.None || c.lead == c.id && c.ownTerm != c.term {
		return // a later tick tries again
	}
	c.asked, c.waiting = c.waiting, nil
	c.sinceAsked = 0
	c.round++
	c.rn.ReadIndex(c.roundID())
}

// roundID names the round under way.
func (c *core) roundID() []byte {
	if planted.Is(planted.RoundsAlike) {
		return binary.LittleEndian.AppendUint64(nil, c.round)
	}
	return binary.LittleEndian.AppendUint64(c.life[:], c.round)
}

// ready collects what Raft wants done until it wants nothing more.
func (c *core) ready(e *effects) {
	c.maybeCampaign()
	c.askRead()
	for c.rn.HasReady() {
		rd := c.rn.Ready()
		if rd.SoftState != nil {
			if c.lead != rd.SoftState.Lead {
				c.askAgain() // a round at the former leader gets no answer
			}
			c.lead = rd.SoftState.Lead
		}
		if !raft.IsEmptyHardState(rd.HardState) {
			c.term, c.commit = rd.HardState.GetTerm(), rd.HardState.GetCommit()
		}
		if !raft.IsEmptySnap(rd.Snapshot) {
			c.skipTo(rd.Snapshot.GetMetadata(), e)
		}
		c.giveUpReplaced(rd.Entries, e)
		c.index(rd.Entries)
		for _, s := range rd.ReadStates {
			c.answerReads(s, e)
		}
		for _, m := range rd.Messages {
			switch m.GetTo() {
			case raft.LocalAppendThread:
				e.appends = append(e.appends, m)
			case raft.LocalApplyThread:
				e.applies = append(e.applies, c.applyTask(m, e))
			default:
				e.send = append(e.send, m)
			}
		}
		c.askRead()
	}
	invariant.That(len(c.fresh) == 0, "%d proposals were taken by Raft and are not in its log", len(c.fresh))
}

// giveUpReplaced answers the proposers of entries in whose place others now come:
// a log gives up only what was not committed and never will be.
func (c *core) giveUpReplaced(entries []*raftpb.Entry, e *effects) {
	if len(entries) == 0 || len(c.pending) == 0 || planted.Is(planted.ReplacedStay) {
		return
	}
	first := entries[0].GetIndex()
	at, _ := slices.BinarySearchFunc(c.pending, first, func(p *proposal, index uint64) int { return cmp.Compare(p.index, index) })
	kept := c.pending[:at]
	for _, p := range c.pending[at:] {
		if n := p.index - first; n < uint64(len(entries)) && (entries[n].GetTerm() == p.term || planted.Is(planted.AnswersWithoutTerm)) {
			kept = append(kept, p)
			continue
		}
		refusal := notLeader(c.lead)
		e.answers = append(e.answers, func() {
			if planted.Is(planted.ReplacedIsMade) {
				p.done(state.Result{Index: p.index}, nil)
				return
			}
			p.done(state.Result{}, refusal)
		})
	}
	clear(c.pending[len(kept):])
	c.pending = kept
}

// index notes where in the log the fresh proposals are: they are the newest
// entries.
func (c *core) index(entries []*raftpb.Entry) {
	if len(c.fresh) == 0 || len(entries) == 0 {
		return
	}
	n := len(entries) - len(c.fresh)
	invariant.That(n >= 0, "%d proposals were taken by Raft and %d entries came out", len(c.fresh), len(entries))
	for i, p := range c.fresh {
		p.index, p.term = entries[n+i].GetIndex(), entries[n+i].GetTerm()
		p.data = nil
	}
	c.pending = append(c.pending, c.fresh...)
	c.fresh = nil
}

// skipTo notes that a snapshot takes the place of entries which were never seen
// here. What became of proposals among them is not known.
func (c *core) skipTo(meta *raftpb.SnapshotMetadata, e *effects) {
	c.conf = meta.GetConfState()
	kept := c.pending[:0]
	for _, p := range c.pending {
		if p.index > meta.GetIndex() {
			kept = append(kept, p)
			continue
		}
		answer := mayBeMade(notLeader(c.lead))
		e.answers = append(e.answers, func() { p.done(state.Result{}, answer) })
	}
	c.pending = kept
}

func (c *core) answerReads(s raft.ReadState, e *effects) {
	if !bytes.Equal(s.RequestCtx, c.roundID()) {
		return // of a round that was begun again, or of an earlier start
	}
	index := s.Index
	for _, r := range c.asked {
		e.answers = append(e.answers, func() { r.done(index, nil) })
	}
	c.asked = nil
}

// applyTask finds the proposers of committed entries. A proposal whose place in
// the log was taken by another leader's entry was certainly not carried out.
func (c *core) applyTask(m *raftpb.Message, e *effects) applyTask {
	entries := m.GetEntries()
	t := applyTask{entries: entries, proposals: make([]*proposal, len(entries)), responses: m.GetResponses()}
	done := 0
	for i, entry := range entries {
		c.ownTerm = entry.GetTerm()
		if entry.GetType() != raftpb.EntryNormal {
			if t.confs == nil {
				t.confs = map[int]*raftpb.ConfState{}
			}
			t.confs[i] = c.applyConf(entry)
		}
		for done < len(c.pending) && c.pending[done].index <= entry.GetIndex() {
			p := c.pending[done]
			done++
			if p.index == entry.GetIndex() && (p.term == entry.GetTerm() || planted.Is(planted.AnswersWithoutTerm)) {
				t.proposals[i] = p
				continue
			}
			lead := c.lead
			e.answers = append(e.answers, func() { p.done(state.Result{}, notLeader(lead)) })
		}
	}
	clear(c.pending[:done])
	if c.pending = c.pending[done:]; len(c.pending) == 0 {
		c.pending = nil
	}
	return t
}

// applyConf changes the membership. It is done when the entry is given out, which
// is after it was committed.
func (c *core) applyConf(entry *raftpb.Entry) *raftpb.ConfState {
	change := &raftpb.ConfChangeV2{}
	if err := proto.Unmarshal(entry.GetData(), change); err != nil || entry.GetType() != raftpb.EntryConfChangeV2 {
		invariant.Fail("entry %d of type %v is no change of members: %v: was it written by a newer version?", entry.GetIndex(), entry.GetType(), err)
	}
	c.conf = c.rn.ApplyConfChange(change)
	return c.conf
}

// stop gives up everything that waits.
func (c *core) stop(err error, e *effects) {
	for _, p := range append(c.pending, c.fresh...) {
		e.answers = append(e.answers, func() { p.done(state.Result{}, unknown(err)) })
	}
	for _, r := range append(c.waiting, c.asked...) {
		e.answers = append(e.answers, func() { r.done(0, err) })
	}
	c.pending, c.fresh, c.waiting, c.asked = nil, nil, nil, nil
}

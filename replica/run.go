package replica

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/invariant"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/wal"
)

const (
	// syncBytesMax bounds what is joined into one frame and fsync, well below what
	// a frame may hold.
	syncBytesMax = 16 << 20
	// fullRetryInterval between looks whether a full disk has space again.
	fullRetryInterval = 250 * time.Millisecond
	// snapshotRetryInterval before a snapshot that found no space is written again:
	// it takes far more writing than a look.
	snapshotRetryInterval = time.Second
	// snapshotGrowth: the log grows to that many times the last snapshot's size
	// before the next, so that writing snapshots stays a small part of all writing.
	snapshotGrowth = 4
	// growthBytesMax: but no further, since the log is in memory too.
	growthBytesMax = 256 << 20
)

// loop owns the core.
func (r *Replica) loop() {
	defer r.running.Done()
	ticker := time.NewTicker(r.config.Tick)
	defer ticker.Stop()
	var reads []read
	var messages []*raftpb.Message
	for {
		select {
		case <-r.stopping:
			r.stopCore()
			return
		case <-ticker.C:
			r.tick()
		case <-r.proposals.wake:
		case <-r.reads.wake:
		case <-r.messages.wake:
		case <-r.calls.wake:
		}
		messages, reads = r.turn(messages, reads)
	}
}

// tick moves Raft's clock, and asks for a snapshot when one is due by time.
func (r *Replica) tick() {
	r.core.tick()
	if r.noSpace.Load() {
		if r.sinceNoSpace += r.config.Tick; r.sinceNoSpace >= snapshotRetryInterval {
			r.sinceNoSpace = 0
			r.noSpace.Store(false)
			r.applies.put(applyTask{again: true})
		}
	}
	if r.config.SnapshotInterval == 0 {
		return
	}
	if r.sinceDue += r.config.Tick; r.sinceDue >= r.config.SnapshotInterval {
		r.sinceDue = 0
		r.applies.put(applyTask{due: true})
	}
}

// turn gives the core everything that waits for it, and hands on what it wants
// done. The slices are those of the turn before, used again.
func (r *Replica) turn(messages []*raftpb.Message, reads []read) ([]*raftpb.Message, []read) {
	var e effects
	messages = r.messages.take(messages)
	r.core.step(messages)
	for _, call := range r.calls.take(nil) {
		call(r.core)
	}
	if reads = r.reads.take(reads); len(reads) > 0 {
		r.core.read(reads)
	}
	r.core.propose(r.proposals.take(nil), &e)
	r.core.ready(&e)
	r.carryOut(&e)
	return messages, reads
}

// carryOut hands effects to those who do them.
func (r *Replica) carryOut(e *effects) {
	r.term.Store(r.core.term)
	r.commit.Store(r.core.commit)
	r.lead.Store(r.core.lead)
	if r.core.lead == r.core.id {
		r.leads.Store(r.core.term)
	} else {
		r.leads.Store(0)
	}
	if len(e.appends) > 0 {
		r.appends.put(e.appends...)
	}
	if len(e.applies) > 0 && !r.applies.put(e.applies...) {
		r.refuse(e.applies)
	}
	if len(e.send) > 0 && r.config.Sender != nil {
		r.config.Sender.Send(e.send)
	}
	for _, answer := range e.answers {
		answer()
	}
}

// stopCore answers everything that waits in the loop.
func (r *Replica) stopCore() {
	err := r.stopError()
	var e effects
	for _, p := range r.proposals.close() {
		p.done(state.Result{}, err)
	}
	for _, rd := range r.reads.close() {
		rd.done(0, err)
	}
	r.messages.close()
	r.calls.close()
	r.core.stop(err, &e)
	for _, answer := range e.answers {
		answer()
	}
}

// appender owns the appending half of the log: it joins all waiting batches into
// one fsync.
func (r *Replica) appender() {
	defer r.running.Done()
	var batches []*raftpb.Message
	for {
		var retry <-chan time.Time
		var timer *time.Timer
		if r.log.Full() {
			timer = time.NewTimer(fullRetryInterval)
			retry = timer.C
		}
		select {
		case <-r.stopping:
			r.appends.close()
			if timer != nil {
				timer.Stop()
			}
			return
		case <-retry:
			r.log.Reserve()
		case <-r.appends.wake:
			if timer != nil {
				timer.Stop()
			}
			batches = r.appends.take(batches)
			if !r.append(batches) {
				r.appends.close()
				return
			}
		}
	}
}

// append makes batches durable, in frames of a bounded size, and answers Raft.
// It gives false when the replica stops.
func (r *Replica) append(batches []*raftpb.Message) bool {
	for len(batches) > 0 {
		n, due, ok := r.stage(batches)
		if !ok || due && !r.sync() || !r.finish(batches[:n]) {
			return false
		}
		batches = batches[n:]
	}
	return true
}

// stage gives the first n batches to the log, and tells whether a sync is due:
// somebody is to be answered who relies on what the log has not made durable yet.
// Without an answer nobody relies on it, and nobody ever does on a commit index
// alone: it goes with the next frame. ok is false when the replica stops.
func (r *Replica) stage(batches []*raftpb.Message) (n int, due, ok bool) {
	size, answers := 0, false
	for n < len(batches) && (n == 0 || size < syncBytesMax) {
		m := batches[n]
		if s := m.GetSnapshot(); s != nil {
			if err := r.log.InstallSnapshot(s.GetMetadata()); err != nil {
				r.fail(err)
				return n, false, false
			}
			r.unsynced = true
		}
		for _, e := range m.GetEntries() {
			size += len(e.GetData())
		}
		if planted.Is(planted.OldTailKept) {
			last, _ := r.storage.LastIndex()
			m.Entries = slices.DeleteFunc(m.GetEntries(), func(e *raftpb.Entry) bool { return e.GetIndex() <= last })
		}
		hs := hardState(m)
		if hs != nil && (hs.GetTerm() != r.stagedTerm || hs.GetVote() != r.stagedVote) {
			r.stagedTerm, r.stagedVote, r.unsynced = hs.GetTerm(), hs.GetVote(), true
		}
		r.unsynced = r.unsynced || len(m.GetEntries()) > 0
		r.log.Append(hs, m.GetEntries())
		answers = answers || len(m.GetResponses()) > 0
		n++
	}
	return n, answers && r.unsynced && !planted.Is(planted.NoSync), true
}

// finish makes batches that are durable known to Raft. It gives false when the
// replica stops.
func (r *Replica) finish(batches []*raftpb.Message) bool {
	for _, m := range batches {
		if s := m.GetSnapshot(); s != nil && !r.follow(s.GetMetadata()) {
			return false
		}
		if err := r.storage.Append(m.GetEntries()); err != nil {
			invariant.Fail("keep appended entries: %v", err)
		}
	}
	for _, m := range batches {
		r.respond(m.GetResponses())
	}
	return true
}

// hardState of an append message, nil when it has none.
func hardState(m *raftpb.Message) *raftpb.HardState {
	if m.Term == nil && m.Vote == nil && m.Commit == nil || planted.Is(planted.TermNotKept) {
		return nil
	}
	if planted.Is(planted.VoteNotKept) {
		return &raftpb.HardState{Term: m.Term, Commit: m.Commit}
	}
	return &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
}

// sync waits until the appended batches are durable, however long the disk is
// full. It gives false when the replica stops.
func (r *Replica) sync() bool {
	for {
		err := r.log.Sync()
		if err == nil {
			r.unsynced = false
			return true
		}
		if !errors.Is(err, wal.ErrFull) {
			r.fail(err)
			return false
		}
		timer := time.NewTimer(fullRetryInterval)
		select {
		case <-timer.C:
			r.log.Reserve()
		case <-r.stopping:
			timer.Stop()
			return false
		}
	}
}

// respond gives responses to the loop, and those for peers to the sender.
func (r *Replica) respond(responses []*raftpb.Message) {
	own := responses[:0:0]
	var others []*raftpb.Message
	for _, m := range responses {
		if m.GetTo() == r.core.id {
			own = append(own, m)
		} else {
			others = append(others, m)
		}
	}
	if len(others) > 0 && r.config.Sender != nil {
		r.config.Sender.Send(others)
	}
	r.messages.put(own...)
}

// applier owns the state.
func (r *Replica) applier() {
	defer r.running.Done()
	var tasks []applyTask
	for {
		select {
		case <-r.stopping:
			r.refuse(r.applies.close())
			return
		case <-r.applies.wake:
		}
		tasks = r.applies.take(tasks)
		if !r.carry(tasks) {
			return
		}
	}
}

// carry carries out tasks in their order. It gives false when the replica stops.
func (r *Replica) carry(tasks []applyTask) bool {
	begin := 0
	for i, t := range tasks {
		if t.restore == nil {
			continue
		}
		r.apply(tasks[begin:i])
		begin = i + 1
		if !r.adopt(t) {
			return false
		}
	}
	r.apply(tasks[begin:])
	for _, t := range tasks {
		r.messages.put(t.responses...)
		r.due = r.due || t.due && r.sinceSnapshot > 0 || t.again
		if t.compact != nil {
			r.compact(t.compact)
		}
	}
	r.maybeSnapshot()
	return true
}

func (r *Replica) refuse(tasks []applyTask) {
	err := r.stopError()
	for _, t := range tasks {
		for _, p := range t.proposals {
			if p != nil {
				p.done(state.Result{}, unknown(err))
			}
		}
	}
}

// apply carries out committed entries as one batch and answers their proposers.
func (r *Replica) apply(tasks []applyTask) {
	n := 0
	for _, t := range tasks {
		n += len(t.entries)
	}
	if n == 0 {
		return
	}
	entries := make([]state.Entry, 0, n)
	for _, t := range tasks {
		for i, e := range t.entries {
			entries = append(entries, decode(e, t.proposals[i]))
			r.appliedTerm = e.GetTerm()
			r.bytesSinceSnapshot += int64(len(e.GetData()))
			if conf := t.confs[i]; conf != nil {
				// A snapshot that does not name a new member is of no use to it.
				r.confMoved = r.confMoved || grows(r.conf, conf)
				r.conf = conf
			}
		}
	}
	if planted.Is(planted.SecondOfBatchSkipped) && len(entries) > 1 {
		entries[1].Command = nil
	}
	before := r.state.View().Index()
	results := r.state.Apply(entries)
	r.observed(before)
	if r.applied != nil {
		r.applied(tasks)
	}
	r.sinceSnapshot += uint64(n)
	r.changed.broadcast()
	i := 0
	for _, t := range tasks {
		for _, p := range t.proposals {
			if p != nil {
				p.done(results[i], nil)
			}
			i++
		}
	}
}

// decode gives the command of an entry. That of an own proposal is still here:
// it is what the entry's bytes were made of.
func decode(e *raftpb.Entry, p *proposal) state.Entry {
	if p != nil {
		return state.Entry{Index: e.GetIndex(), Command: p.cmd}
	}
	if len(e.GetData()) == 0 || e.GetType() != raftpb.EntryNormal {
		return state.Entry{Index: e.GetIndex()}
	}
	cmd := &blixardv1.Command{}
	if err := proto.Unmarshal(e.GetData(), cmd); err != nil {
		invariant.Fail("entry %d is no command: %v: was it written by a newer version?", e.GetIndex(), err)
	}
	return state.Entry{Index: e.GetIndex(), Command: cmd}
}

// grows tells whether next names a member that now does not.
func grows(now, next *raftpb.ConfState) bool {
	known := slices.Concat(now.GetVoters(), now.GetVotersOutgoing(), now.GetLearners(), now.GetLearnersNext())
	return slices.ContainsFunc(slices.Concat(next.GetVoters(), next.GetLearners(), next.GetLearnersNext()), func(id uint64) bool {
		return !slices.Contains(known, id)
	})
}

// maybeSnapshot asks for a snapshot when the log has grown enough since the last
// and none is being written.
func (r *Replica) maybeSnapshot() {
	growth := min(snapshotGrowth*r.snapshotBytes.Load(), growthBytesMax)
	enough := r.sinceSnapshot >= r.config.SnapshotEntries && r.log.Bytes() >= growth ||
		r.bytesSinceSnapshot >= max(r.config.SnapshotBytes, growth)
	if !enough && !r.confMoved && !r.due {
		return
	}
	if r.request(&snapshotRequest{r.state.View(), r.appliedTerm, r.conf, nil}) {
		r.sinceSnapshot, r.bytesSinceSnapshot, r.confMoved, r.due = 0, 0, false, false
	}
}

// request gives the snapshotter something to do, unless it is busy.
func (r *Replica) request(req *snapshotRequest) bool {
	if !r.snapshotting.CompareAndSwap(false, true) {
		return false
	}
	r.snapshots <- req // has room for the one
	return true
}

// compact asks for a snapshot however little the log has grown.
func (r *Replica) compact(done chan error) {
	view := r.state.View()
	if view.Index() <= r.log.SnapshotIndex() {
		done <- nil
		return
	}
	if r.request(&snapshotRequest{view, r.appliedTerm, r.conf, done}) {
		r.sinceSnapshot, r.bytesSinceSnapshot = 0, 0
	} else {
		done <- problem.New(problem.Unavailable, "snapshot.busy", "a snapshot is being written").WithHint("try again in a moment")
	}
}

type snapshotRequest struct {
	view *state.View
	term uint64
	conf *raftpb.ConfState
	done chan error // nil when nobody waits; has room for the answer
}

// snapshotter writes snapshots, one at a time, beside everything else.
func (r *Replica) snapshotter() {
	defer r.running.Done()
	for {
		select {
		case <-r.stopping:
			return
		case req := <-r.snapshots:
			ok := r.fulfil(req)
			// What a select received stays where it was received until the next comes: with
			// the view, all that was replaced since.
			*req = snapshotRequest{}
			if !ok {
				return
			}
		}
	}
}

// fulfil writes the snapshot that was asked for. It gives false when the replica
// stops.
func (r *Replica) fulfil(req *snapshotRequest) bool {
	err := r.snapshot(req)
	if req.done != nil {
		req.done <- err
	}
	r.snapshotting.Store(false)
	r.applies.put(applyTask{}) // the next one may be due already
	switch {
	case errors.Is(err, wal.ErrFull):
		// A new member may wait for it, and the log grows until then.
		r.noSpace.Store(true)
		r.logger.Warn("no space for a snapshot: the log is kept", "index", req.view.Index(), "err", err)
	case err != nil:
		r.fail(err)
		return false
	}
	return true
}

func (r *Replica) snapshot(req *snapshotRequest) error {
	index := req.view.Index()
	meta := &raftpb.SnapshotMetadata{Index: &index, Term: &req.term, ConfState: req.conf}
	if low := index - 1; planted.Is(planted.SnapshotIndexLow) {
		meta.Index = &low
	}
	if planted.Is(planted.SnapshotMembersOld) {
		meta.ConfState = &raftpb.ConfState{Voters: []uint64{FirstID}}
	}
	var bytes int64
	err := r.log.SaveSnapshot(meta, func(w io.Writer) error {
		n, err := writeState(w, req.view)
		bytes = n
		return err
	})
	if err != nil {
		return err
	}
	r.snapshotBytes.Store(bytes)
	// A snapshot of the leader may have come in between: then this one is of no use.
	if _, err := r.storage.CreateSnapshot(index, req.conf, nil); err != nil && !errors.Is(err, raft.ErrSnapOutOfDate) {
		return fmt.Errorf("note snapshot of index %d: %w", index, err)
	}
	kept := r.config.TrailingEntries
	if first, err := r.storage.FirstIndex(); err == nil && index > first+kept {
		if err := r.storage.Compact(index - kept); err != nil && !errors.Is(err, raft.ErrCompacted) {
			return fmt.Errorf("compact entries to %d: %w", index-kept, err)
		}
	}
	r.logger.Debug("snapshot", "index", index, "bytes", bytes)
	return nil
}

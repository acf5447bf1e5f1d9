package replica

import (
	"context"
	"errors"
	"slices"
	"sync"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/wal"
)

func overloaded() error {
	return problem.New(problem.Unavailable, "replica.overloaded", "too many changes are under way").
		WithHint("try again after a second")
}

// unknown is the answer to a change that was under way when its answer was given
// up.
func unknown(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || problem.HasCode(err, "replica.stopped") {
		return mayBeMade(err)
	}
	return err
}

// mayBeMade is the answer to a change whose entry was lost sight of.
func mayBeMade(cause error) error {
	return problem.New(problem.Unavailable, "change.unknown", "the change may or may not have been made").
		WithHint("repeat it with the same idempotency key, which makes it once").WithCause(cause)
}

// ProposeAsync puts a change into the log and calls done, exactly once, with its
// result when it is durable and applied, or with a problem:
//
//	change.too_large     it is larger than 1 MiB
//	storage.full         the disk of the log is full; nothing was changed
//	replica.overloaded   too much is under way; nothing was changed
//	replica.not_leader   another replica leads; nothing was changed
//	replica.no_leader    there is no leader; nothing was changed
//	replica.stopped      nothing was changed
//	change.unknown       it may or may not have been made
//
// A Result may hold a problem of the state itself. done may be called before
// ProposeAsync returns, and must not block. The replica takes cmd over: it fills
// what is empty of time and digest, and cmd must not be changed afterwards.
func (r *Replica) ProposeAsync(cmd *blixardv1.Command, done func(state.Result, error)) {
	r.ProposeInTermAsync(0, cmd, done)
}

// ProposeInTermAsync is ProposeAsync of a change that was decided by the leader of
// that term: in any other term it is refused with "replica.not_leader". Term 0 means
// any.
func (r *Replica) ProposeInTermAsync(term uint64, cmd *blixardv1.Command, done func(state.Result, error)) {
	data, err := r.encode(cmd)
	if err != nil {
		done(state.Result{}, err)
		return
	}
	if r.log.Full() {
		done(state.Result{}, wal.ErrFull)
		return
	}
	size := int64(len(data))
	if r.underWay.Add(size) > underWayBytesMax {
		r.underWay.Add(-size)
		done(state.Result{}, overloaded())
		return
	}
	p := &proposal{cmd: cmd, data: data, decided: term, done: func(res state.Result, err error) {
		r.underWay.Add(-size)
		done(res, err)
	}}
	if !r.proposals.put(p) {
		p.done(state.Result{}, r.stopError())
	}
}

func (r *Replica) encode(cmd *blixardv1.Command) ([]byte, error) {
	if cmd.GetChange() == nil {
		return nil, problem.New(problem.Internal, "change.empty", "a command without a change")
	}
	if cmd.Time == nil {
		now := r.config.Now()
		cmd.Time = &timestamppb.Timestamp{Seconds: now.Unix(), Nanos: int32(now.Nanosecond())}
	}
	if cmd.Key != "" && len(cmd.Digest) == 0 {
		cmd.Digest = state.Digest(cmd)
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(cmd)
	if err != nil {
		return nil, problem.New(problem.Invalid, "change.encoding", "the change cannot be encoded").WithCause(err)
	}
	if len(data) > commandBytesMax {
		return nil, problem.New(problem.Invalid, "change.too_large", "the change has %d bytes, at most %d are taken", len(data), commandBytesMax).
			WithHint("make it smaller: fewer or shorter labels, arguments and variables")
	}
	return data, nil
}

type answer struct {
	result state.Result
	err    error
}

// answers are reused: a channel that was given up is left to the collector.
var answers = sync.Pool{New: func() any { return make(chan answer, 1) }}

// Propose is ProposeAsync that waits. When ctx ends first the problem is
// change.unknown.
func (r *Replica) Propose(ctx context.Context, cmd *blixardv1.Command) (state.Result, error) {
	return r.ProposeInTerm(ctx, 0, cmd)
}

// ProposeInTerm is ProposeInTermAsync that waits, as Propose does.
func (r *Replica) ProposeInTerm(ctx context.Context, term uint64, cmd *blixardv1.Command) (state.Result, error) {
	if err := ctx.Err(); err != nil {
		return state.Result{}, problem.From(err)
	}
	ch := answers.Get().(chan answer)
	r.ProposeInTermAsync(term, cmd, func(res state.Result, err error) { ch <- answer{res, err} })
	select {
	case a := <-ch:
		answers.Put(ch)
		return a.result, a.err
	case <-ctx.Done():
		return state.Result{}, unknown(ctx.Err())
	}
}

// ReadIndex gives an index such that a view of it or later holds everything that
// was acknowledged before the call. It takes a quorum round that began after the
// call, and so also proves that no other leader was chosen before it began.
func (r *Replica) ReadIndex(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, problem.From(err)
	}
	type result struct {
		index uint64
		err   error
	}
	ch := make(chan result, 1)
	r.readIndexAsync(func(index uint64, err error) { ch <- result{index, err} })
	select {
	case res := <-ch:
		return res.index, res.err
	case <-ctx.Done():
		return 0, problem.New(problem.Unavailable, "replica.no_quorum", "no majority of the voters answered in time").
			WithHint("try again; `blixard node status` tells what the node knows").WithCause(ctx.Err())
	}
}

// readIndexAsync calls done, exactly once, with the index of ReadIndex.
func (r *Replica) readIndexAsync(done func(uint64, error)) {
	if !r.reads.put(read{done: done}) {
		done(0, r.stopError())
	}
}

// WaitApplied waits until the state here has come to index.
func (r *Replica) WaitApplied(ctx context.Context, index uint64) error {
	for {
		if r.View().Index() >= index {
			return nil
		}
		ch := r.changed.wait()
		if r.View().Index() >= index {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return problem.From(ctx.Err())
		case <-r.stopping:
			return r.stopError()
		}
	}
}

// Read gives a linearizable view: it holds everything that was acknowledged
// before the call.
func (r *Replica) Read(ctx context.Context) (*state.View, error) {
	index, err := r.ReadIndex(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.WaitApplied(ctx, index); err != nil {
		return nil, err
	}
	return r.View(), nil
}

// Step takes a message of a peer. It is dropped when the replica stops.
func (r *Replica) Step(m *raftpb.Message) { r.messages.put(m) }

// Observer is told of the changes of each batch that is applied, in the order of the log;
// nil means that the state was replaced as a whole.
type Observer func([]state.Change)

// Observe calls f after every batch, until the function that it gives is called: nothing
// passes f by, however busy the process is. All that is applied waits for f, which must
// not wait for anything itself and must not call the replica.
func (r *Replica) Observe(f Observer) (end func()) {
	r.observing.Lock()
	defer r.observing.Unlock()
	at := &f
	r.observers = append(r.observers, at)
	return func() {
		r.observing.Lock()
		defer r.observing.Unlock()
		r.observers = slices.DeleteFunc(r.observers, func(o *Observer) bool { return o == at })
	}
}

// observed tells the observers what came after the index before.
func (r *Replica) observed(before uint64) {
	r.observing.Lock()
	defer r.observing.Unlock()
	if len(r.observers) == 0 {
		return
	}
	changes, err := r.state.View().ChangesAfter(before)
	if err != nil {
		changes = nil // the state keeps the newest batch whole, so it was replaced
	} else if len(changes) == 0 {
		return
	}
	for _, f := range r.observers {
		(*f)(changes)
	}
}

// Subscription follows the changes of the state. It belongs to one goroutine.
type Subscription struct {
	r     *Replica
	index uint64
}

// Subscribe follows all changes after index. Nothing is kept for the subscriber:
// one that falls behind what the state keeps for all is told so by Next.
func (r *Replica) Subscribe(after uint64) *Subscription {
	return &Subscription{r: r, index: after}
}

// Next waits for changes and gives them in the order of the log, with the index
// up to which they are complete. It gives a Conflict "watch.compacted" when the
// subscriber was too slow, or began from an index that is not known: list the
// objects again and subscribe from the index of the list.
func (s *Subscription) Next(ctx context.Context) ([]state.Change, uint64, error) {
	for {
		ch := s.r.changed.wait()
		view := s.r.View()
		changes, err := view.ChangesAfter(s.index)
		if err != nil {
			return nil, 0, err
		}
		s.index = view.Index()
		if len(changes) > 0 {
			return changes, s.index, nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, 0, problem.From(ctx.Err())
		case <-s.r.stopping:
			return nil, 0, s.r.stopError()
		}
	}
}

// Close ends the subscription. It holds nothing, so this is for the shape of
// callers only.
func (s *Subscription) Close() {}

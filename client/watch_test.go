package client_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// lost is what breaks a stream in these tests.
var lost = problem.New(problem.Unavailable, "node.stopping", "the node stops")

// script is what a node sends on each stream of a watch, one after the other, and
// the index that each was asked to begin behind.
type script struct {
	streams [][]*blixardv1.WatchVMsResponse
	last    error // ends the last stream; the others are lost
	asked   []uint64
}

func (s *script) node() *fakeNode {
	return &fakeNode{watch: func(r *blixardv1.WatchVMsRequest, stream blixardv1.VMService_WatchVMsServer) error {
		s.asked = append(s.asked, r.GetAfterIndex())
		n := len(s.asked) - 1
		if n >= len(s.streams) {
			return problem.New(problem.Internal, "test.too_many", "stream %d was not expected", n)
		}
		for _, m := range s.streams[n] {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if n == len(s.streams)-1 {
			return s.last
		}
		return lost
	}}
}

func at(index uint64, id string) *blixardv1.WatchVMsResponse {
	return &blixardv1.WatchVMsResponse{Index: index, Vm: &blixardv1.VM{Id: id}}
}

func gone(index uint64, id string) *blixardv1.WatchVMsResponse {
	m := at(index, id)
	m.Deleted = true
	return m
}

func synced(index uint64) *blixardv1.WatchVMsResponse {
	return &blixardv1.WatchVMsResponse{Index: index, Synced: true}
}

func told[M any](t *testing.T, watch iter.Seq2[*M, error], word func(*M) string) ([]string, error) {
	t.Helper()
	var words []string
	for m, err := range watch {
		if err != nil {
			return words, err
		}
		words = append(words, word(m))
	}
	return words, nil
}

func vmWord(m *blixardv1.WatchVMsResponse) string {
	switch {
	case m.GetSynced():
		return "synced"
	case m.GetDeleted():
		return fmt.Sprintf("%d-%s", m.GetIndex(), m.GetVm().GetId())
	}
	return fmt.Sprintf("%d+%s", m.GetIndex(), m.GetVm().GetId())
}

// TestWatchResumes: over the breaks of its streams a watch leaves nothing out and
// repeats nothing; only a break before it was synced starts over.
func TestWatchResumes(t *testing.T) {
	end := problem.New(problem.Invalid, "test.end", "that was all")
	type stream = []*blixardv1.WatchVMsResponse
	for _, tc := range []struct {
		name    string
		streams []stream
		want    []string
		asked   []uint64
	}{
		{
			"a break between two changes of one index",
			[]stream{
				{at(3, "a"), at(2, "b"), synced(5), at(6, "a")},
				{at(6, "a"), at(6, "b"), synced(7), gone(8, "b")},
				{gone(8, "b"), synced(8), at(9, "c")},
			},
			[]string{"3+a", "2+b", "synced", "6+a", "6+b", "8-b", "9+c"},
			[]uint64{0, 5, 7},
		},
		{
			"a break before it was synced",
			[]stream{{at(3, "a")}, {at(3, "a"), at(4, "b"), synced(4)}},
			[]string{"3+a", "3+a", "4+b", "synced"},
			[]uint64{0, 0},
		},
		{
			"a change and the deletion at one index",
			[]stream{{synced(1), at(2, "a")}, {at(2, "a"), gone(2, "a")}},
			[]string{"synced", "2+a", "2-a"},
			[]uint64{0, 1},
		},
		{
			"a stream that brings nothing",
			[]stream{{synced(4)}, {}, {at(5, "a")}},
			[]string{"synced", "5+a"},
			[]uint64{0, 3, 3},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &script{streams: tc.streams, last: end}
			words, err := told(t, s.node().dial(t).WatchVMs(t.Context(), ""), vmWord)
			if !problem.HasCode(err, "test.end") {
				t.Errorf("it ended with %v", err)
			}
			if !slices.Equal(words, tc.want) || !slices.Equal(s.asked, tc.asked) {
				t.Errorf("told %v, wanted %v; asked behind %v, wanted %v", words, tc.want, s.asked, tc.asked)
			}
		})
	}
}

// TestWatchSurvivesAnOrderlyEnd: a node that shuts down ends its streams without
// an error, and the watch goes on with the next.
func TestWatchSurvivesAnOrderlyEnd(t *testing.T) {
	calls := 0
	n := &fakeNode{watch: func(_ *blixardv1.WatchVMsRequest, stream blixardv1.VMService_WatchVMsServer) error {
		calls++
		if calls == 1 {
			return stream.Send(synced(1))
		}
		if err := stream.Send(at(2, "a")); err != nil {
			return err
		}
		return problem.New(problem.Denied, "test.end", "that was all")
	}}
	words, err := told(t, n.dial(t).WatchVMs(t.Context(), ""), vmWord)
	if !problem.HasCode(err, "test.end") || !slices.Equal(words, []string{"synced", "2+a"}) {
		t.Errorf("told %v, %v", words, err)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	n := &fakeNode{watch: func(_ *blixardv1.WatchVMsRequest, stream blixardv1.VMService_WatchVMsServer) error {
		if err := stream.Send(synced(1)); err != nil {
			return err
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var last error
	for _, err := range n.dial(t).WatchVMs(ctx, "") {
		last = err
		cancel(errStopped)
	}
	if last == nil || last.Error() != errStopped.Error() {
		t.Errorf("it ended with %v", last)
	}
	// A consumer that wants no more ends the stream, too.
	for m, err := range n.dial(t).WatchVMs(t.Context(), "") {
		if err != nil || !m.GetSynced() {
			t.Errorf("%v, %v", m, err)
		}
		break
	}
}

func event(index uint64, number uint32) *blixardv1.WatchEventsResponse {
	return &blixardv1.WatchEventsResponse{Event: &blixardv1.Event{Index: index, Number: number}}
}

// TestEventsResume: an event is told once, though several carry one index.
func TestEventsResume(t *testing.T) {
	streams := [][]*blixardv1.WatchEventsResponse{
		{event(1, 0), event(2, 0), {Synced: true}, event(3, 0)},
		{event(3, 0), event(3, 1), {Synced: true}, event(4, 0)},
	}
	var asked []uint64
	n := &fakeNode{events: func(r *blixardv1.WatchEventsRequest, stream blixardv1.EventService_WatchEventsServer) error {
		asked = append(asked, r.GetAfterIndex())
		if len(asked) > len(streams) {
			return problem.New(problem.NotFound, "test.end", "that was all")
		}
		for _, m := range streams[len(asked)-1] {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		return lost
	}}
	words, err := told(t, n.dial(t).WatchEvents(t.Context(), &blixardv1.EventFilter{Object: "web"}), func(m *blixardv1.WatchEventsResponse) string {
		if m.GetSynced() {
			return "synced"
		}
		return fmt.Sprintf("%d.%d", m.GetEvent().GetIndex(), m.GetEvent().GetNumber())
	})
	if want := []string{"1.0", "2.0", "synced", "3.0", "3.1", "4.0"}; !slices.Equal(words, want) || !problem.HasCode(err, "test.end") {
		t.Errorf("told %v, %v", words, err)
	}
	if want := []uint64{0, 2, 3}; !slices.Equal(asked, want) {
		t.Errorf("asked behind %v, wanted %v", asked, want)
	}
}

func TestWaitVM(t *testing.T) {
	boom := errors.New("boom")
	messages := []*blixardv1.WatchVMsResponse{at(1, "a"), synced(1), at(2, "a"), gone(3, "a")}
	for _, tc := range []struct {
		name     string
		messages []*blixardv1.WatchVMsResponse
		done     func(calls int, deleted bool) (bool, error)
		calls    int
		wrong    func(error) bool
	}{
		{"until it is as wanted", messages, func(calls int, _ bool) (bool, error) { return calls == 2, nil }, 2, func(err error) bool { return err == nil }},
		{"until it is gone", messages, func(_ int, deleted bool) (bool, error) { return deleted, nil }, 3, func(err error) bool { return err == nil }},
		{"gone while waited for", messages, func(int, bool) (bool, error) { return false, nil }, 3, func(err error) bool { return problem.Is(err, problem.NotFound) }},
		{"given up", messages, func(int, bool) (bool, error) { return false, boom }, 1, func(err error) bool { return errors.Is(err, boom) }},
		{"never there", []*blixardv1.WatchVMsResponse{synced(7)}, nil, 0, func(err error) bool { return problem.HasCode(err, "vm.not_found") }},
		{"refused", nil, nil, 0, func(err error) bool { return problem.HasCode(err, "test.end") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &script{streams: [][]*blixardv1.WatchVMsResponse{tc.messages}, last: problem.New(problem.Denied, "test.end", "no more")}
			calls := 0
			vm, err := s.node().dial(t).WaitVM(t.Context(), "a", func(_ *blixardv1.VM, deleted bool) (bool, error) {
				calls++
				return tc.done(calls, deleted)
			})
			if !tc.wrong(err) || calls != tc.calls || (vm.GetId() == "a") != (calls > 0) {
				t.Errorf("after %d calls: %v, %v", calls, vm, err)
			}
		})
	}
}

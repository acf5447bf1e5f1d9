package state

import (
	"maps"
	"reflect"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/blixard/blixard/internal/problem"
)

// TestChangesKept: the changes of the newest batch are whole however many they are, and
// where there are many VMs, more are kept.
func TestChangesKept(t *testing.T) {
	limits := DefaultLimits()
	limits.Changes = 4
	s := New(limits)
	index := uint64(0)
	create := func(vms int) (before uint64) {
		before = index
		var entries []Entry
		for range vms {
			index++
			cmd := manyVM(int(index))
			cmd.Time = timestamppb.New(time.Unix(1_800_000_000, 0))
			entries = append(entries, Entry{Index: index, Command: cmd})
		}
		for _, r := range s.Apply(entries) {
			if r.Problem != nil {
				t.Fatal(r.Problem)
			}
		}
		return before
	}
	kept := func(after uint64) int {
		changes, err := s.View().ChangesAfter(after)
		if err != nil {
			t.Fatalf("after index %d: %v", after, err)
		}
		return len(changes)
	}
	const perVM = 2 // the VM and its event
	const many = 100 * vmsPerChange
	if before := create(many); kept(before) != many*perVM {
		t.Errorf("%d changes of a batch of %d", kept(before), many*perVM)
	}
	create(1)
	if n := kept(index - 100/perVM); n != 100 {
		t.Errorf("%d changes, wanted one for each %d of %d VMs", n, vmsPerChange, many)
	}
	if _, err := s.View().ChangesAfter(index - 100/perVM - 1); !problem.HasCode(err, "watch.compacted") {
		t.Errorf("one more: %v", err)
	}
}

// TestVocabulary: equal words and sets of labels are one, others stay what they are, and
// there are never more than so many.
func TestVocabulary(t *testing.T) {
	v := newVocabulary()
	one := v.labelSet(map[string]string{"app": "web", "tier": "1"})
	same := func(a, b map[string]string) bool {
		return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
	}
	if again := v.labelSet(map[string]string{"tier": "1", "app": "web"}); !same(one, again) {
		t.Error("equal labels are two")
	}
	for _, other := range []map[string]string{{"app": "web"}, {"app": "web", "tier": "2"}, {"app": `web""tier`, "": "1"}, {`app""web`: "tier", "1": ""}} {
		if got := v.labelSet(maps.Clone(other)); !maps.Equal(got, other) {
			t.Errorf("%v became %v", other, got)
		}
	}
	if got := v.labelSet(map[string]string{}); got != nil {
		t.Errorf("no labels are %v", got)
	}
	for n := range max(labelSetsMax, wordsMax) + 10 {
		word := strconv.Itoa(n)
		v.labelSet(map[string]string{"n": word})
		v.word(&word)
	}
	if len(v.labels) > labelSetsMax || len(v.words) > wordsMax {
		t.Errorf("%d sets of labels and %d words are kept", len(v.labels), len(v.words))
	}
}

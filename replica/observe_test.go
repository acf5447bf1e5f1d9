package replica

import (
	"fmt"
	"sync"
	"testing"

	"github.com/blixard/blixard/state"
)

// TestObserversMissNothing: an observer hears of every change, in order, however few the
// state keeps, and of nothing after its end.
func TestObserversMissNothing(t *testing.T) {
	c := testConfig(t.TempDir())
	c.Limits = state.DefaultLimits()
	c.Limits.Changes = 1
	r := mustOpen(t, c)
	mustPropose(t, r, create("a"))
	var mu sync.Mutex
	var heard []string
	end := r.Observe(func(changes []state.Change) {
		mu.Lock()
		defer mu.Unlock()
		if changes == nil {
			heard = append(heard, "all")
		}
		for _, c := range changes {
			if c.Kind == state.KindVM {
				heard = append(heard, fmt.Sprint(c.Index))
			}
		}
	})
	const callers, each = 8, 50
	made := make(chan uint64, callers*each)
	var calls sync.WaitGroup
	for n := range callers {
		calls.Go(func() {
			for i := range each {
				res, err := r.Propose(t.Context(), label("a", fmt.Sprintf("%d-%d", n, i)))
				if err != nil || res.Problem != nil {
					t.Error(err, res.Problem)
					return
				}
				made <- res.Index
			}
		})
	}
	calls.Wait()
	end()
	mustPropose(t, r, label("a", "last"))
	close(made)
	want := map[string]bool{}
	for index := range made {
		want[fmt.Sprint(index)] = true
	}
	if len(heard) != callers*each || len(want) != callers*each {
		t.Fatalf("%d changes heard of %d", len(heard), len(want))
	}
	for i, index := range heard {
		if !want[index] || i > 0 && len(index) == len(heard[i-1]) && index <= heard[i-1] {
			t.Errorf("heard of %s after %s", index, heard[max(i-1, 0)])
		}
	}
}

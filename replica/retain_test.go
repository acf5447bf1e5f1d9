package replica

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"
)

// The state that a snapshot was written of is not held once it is written: until the next
// one all that was replaced since would stay in memory.
func TestSnapshotsHoldNoOldState(t *testing.T) {
	r := mustOpen(t, testConfig(t.TempDir()))
	mustPropose(t, r, create("a"))
	written := weak.Make(r.View())
	if err := r.Compact(testContext(t)); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(deadline)
	for n := 0; written.Value() != nil; n++ {
		if time.Now().After(until) {
			t.Fatalf("the view of index %d is held after %d changes", written.Value().Index(), n)
		}
		mustPropose(t, r, label("a", fmt.Sprint(n))) // the present view has an owner: the state
		runtime.GC()
	}
}

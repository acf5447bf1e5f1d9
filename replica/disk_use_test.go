package replica

import (
	"strconv"
	"testing"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

const (
	// dayOfChanges is more than three changes a second for a day.
	dayOfChanges = 300_000
	// diskUseMax that a node of one VM may take meanwhile: a handful of segments of
	// 1 MiB, where the changes alone are more than 25 MiB.
	diskUseMax = 12 << 20
	// batchOfChanges is under way at once.
	batchOfChanges = 1000
)

// A day's worth of changes leaves no more on the disk than a few segments and two
// snapshots.
func TestDiskUseStaysBounded(t *testing.T) {
	c := testConfig(t.TempDir())
	c.SnapshotEntries, c.SegmentBytes = 2000, 1<<20
	r := mustOpen(t, c)
	mustPropose(t, r, create("a"))
	most, snapshots, last := int64(0), 0, uint64(0)
	for sent := 0; sent < dayOfChanges; sent += batchOfChanges {
		answers := make(chan error, batchOfChanges)
		for k := range batchOfChanges {
			r.ProposeAsync(label("a", strconv.Itoa(sent+k)), func(res state.Result, err error) {
				if err == nil && res.Problem != nil {
					err = res.Problem
				}
				answers <- err
			})
		}
		for range batchOfChanges {
			if err := <-answers; err != nil {
				t.Fatal(problem.From(err))
			}
		}
		st := r.Status()
		most = max(most, st.LogBytes)
		if st.SnapshotIndex != last {
			snapshots, last = snapshots+1, st.SnapshotIndex
		}
	}
	if most > diskUseMax {
		t.Errorf("%d bytes on the disk", most)
	}
	if snapshots < 3 {
		t.Errorf("only %d snapshots were seen", snapshots)
	}
	t.Logf("at most %d bytes on the disk, %d snapshots seen", most, snapshots)
}

package replica

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/wal"
)

// TestSnapshotTriggers: entries, bytes and time each bring a snapshot.
func TestSnapshotTriggers(t *testing.T) {
	for name, config := range map[string]Config{
		"entries": {SnapshotEntries: 20},
		"bytes":   {SnapshotBytes: 2000},
		"time":    {SnapshotInterval: time.Second},
		"none":    {},
	} {
		t.Run(name, func(t *testing.T) {
			config.Dir, config.NodeID = t.TempDir(), "node"
			log, rec, err := wal.Open(wal.Config{Dir: config.Dir, NodeID: config.NodeID})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = log.Close() }()
			s, err := OpenSteps(config, log, rec, func(uint64, []*raftpb.Entry) {})
			if err != nil {
				t.Fatal(err)
			}
			step := func() {
				s.Tick()
				for more := true; more; {
					s.Turn()
					turn, apply, appends, snapshot := s.Waiting()
					if more = turn || apply || appends || snapshot; appends && s.BeginAppend() {
						if _, ok := s.EndAppend(); !ok {
							t.Fatal(s.Err())
						}
					}
					if !s.Apply() || !s.Snapshot() {
						t.Fatal(s.Err())
					}
				}
			}
			for range 30 {
				step()
				s.ProposeAsync(create("vm"), func(state.Result, error) {})
			}
			step()
			if got := s.Status().SnapshotIndex; (got > firstIndex) != (name != "none") {
				t.Errorf("the newest snapshot is of index %d", got)
			}
		})
	}
}

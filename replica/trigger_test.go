package replica

import (
	"io"
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
			for range 30 {
				stepOnce(t, s)
				s.ProposeAsync(create("vm"), func(state.Result, error) {})
			}
			stepOnce(t, s)
			if got := s.Status().SnapshotIndex; (got > firstIndex) != (name != "none") {
				t.Errorf("the newest snapshot is of index %d", got)
			}
		})
	}
}

// stepOnce lets a tick pass, and then everything happen that it brings.
func stepOnce(t *testing.T, s *Steps) {
	t.Helper()
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

// noRoom is a log that has no space for snapshots while full is set.
type noRoom struct {
	*wal.Log
	full bool
}

func (n *noRoom) SaveSnapshot(meta *raftpb.SnapshotMetadata, write func(io.Writer) error) error {
	if n.full {
		return wal.ErrFull
	}
	return n.Log.SaveSnapshot(meta, write)
}

// TestSnapshotAfterFullDisk: a snapshot that found no space is written once there is
// some, even if nothing changes any more: a new member may need it.
func TestSnapshotAfterFullDisk(t *testing.T) {
	config := Config{Dir: t.TempDir(), NodeID: "node", SnapshotEntries: 20}
	log, rec, err := wal.Open(wal.Config{Dir: config.Dir, NodeID: config.NodeID})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	disk := &noRoom{Log: log}
	s, err := OpenSteps(config, disk, rec, func(uint64, []*raftpb.Entry) {})
	if err != nil {
		t.Fatal(err)
	}
	disk.full = true
	for range 25 {
		stepOnce(t, s)
		s.ProposeAsync(create("vm"), func(state.Result, error) {})
	}
	stepOnce(t, s)
	if got := s.Status().SnapshotIndex; got > firstIndex {
		t.Fatalf("a full disk took a snapshot of index %d", got)
	}
	disk.full = false
	for range snapshotRetryInterval/tickInterval + 1 {
		stepOnce(t, s)
	}
	if got := s.Status().SnapshotIndex; got <= firstIndex {
		t.Errorf("the newest snapshot is of index %d", got)
	}
}

// TestTurnWithinATurn: an answer may let the core take what waits, and no read is lost or
// answered twice by that (seed 135 of the simulator).
func TestTurnWithinATurn(t *testing.T) {
	config := Config{Dir: t.TempDir(), NodeID: "node"}
	log, rec, err := wal.Open(wal.Config{Dir: config.Dir, NodeID: config.NodeID})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s, err := OpenSteps(config, log, rec, func(uint64, []*raftpb.Entry) {})
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		stepOnce(t, s)
	}
	const reads = 40
	answers := 0
	for range reads {
		s.ReadIndexAsync(func(_ uint64, err error) {
			if err != nil {
				t.Error(err)
			}
			answers++
			s.ReadIndexAsync(func(uint64, error) { answers++ })
			s.Turn()
		})
		stepOnce(t, s)
	}
	stepOnce(t, s)
	if answers != 2*reads {
		t.Errorf("%d reads were answered %d times", 2*reads, answers)
	}
}

package wal

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/problem"
)

// digest of all files of a directory and their names.
func digest(t *testing.T, dir string) [sha256.Size]byte {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		h.Write([]byte(path))
		h.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// TestInspectChangesNothing: what Inspect says of a whole and of every kind of
// damaged directory is what Open would do, and no byte changes.
func TestInspectChangesNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := Inspect(dir, nil); !problem.HasCode(err, "data.not_found") {
		t.Errorf("an empty directory: %v", err)
	}
	l, _, err := Open(Config{Dir: dir, NodeID: "node", ClusterID: "cluster", SegmentBytes: segmentBytesMin})
	if err != nil {
		t.Fatal(err)
	}
	term, vote, commit := uint64(2), uint64(1), uint64(3)
	for i := uint64(1); i <= 5; i++ {
		l.Append(&raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}, []*raftpb.Entry{{Index: &i, Term: &term, Data: []byte("data")}})
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Inspect(dir, nil); !problem.HasCode(err, "data.in_use") {
		t.Errorf("a directory in use: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	before := digest(t, dir)
	var seen []uint64
	c, err := Inspect(dir, func(e *raftpb.Entry) { seen = append(seen, e.GetIndex()) })
	if err != nil || c.Damaged() != nil {
		t.Fatal(err, c.Damaged())
	}
	if len(seen) != 5 || c.NodeID != "node" || c.ClusterID != "cluster" || c.HardState.GetVote() != 1 ||
		c.Segments[0].First != 1 || c.Segments[0].Last != 5 || c.Segments[0].Entries != 5 {
		t.Errorf("entries %v of %+v", seen, c)
	}
	if digest(t, dir) != before {
		t.Error("it changed the directory")
	}
	path := c.Segments[0].Path
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[framesOffset+frameHeaderBytes+2] ^= 1
	if err := os.WriteFile(path, b, fileMode); err != nil {
		t.Fatal(err)
	}
	before = digest(t, dir)
	if c, err = Inspect(dir, nil); err != nil || !problem.HasCode(c.Damaged(), "data.damaged") {
		t.Errorf("a flipped bit: %v, %v", err, c.Damaged())
	}
	if digest(t, dir) != before {
		t.Error("it changed the damaged directory")
	}
}

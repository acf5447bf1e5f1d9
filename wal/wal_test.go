package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// entry makes an entry whose data tells its place.
func entry(term, index uint64, size int) *raftpb.Entry {
	data := bytes.Repeat([]byte{byte(index)}, size)
	copy(data, fmt.Sprintf("%d/%d", term, index))
	return &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: &term, Index: &index, Data: data}
}

func entries(term, from, to uint64, size int) []*raftpb.Entry {
	var es []*raftpb.Entry
	for i := from; i <= to; i++ {
		es = append(es, entry(term, i, size))
	}
	return es
}

func hard(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
}

func config(dir string) Config {
	return Config{Dir: dir, NodeID: "node-1", SegmentBytes: 64 << 10, Logger: slog.New(slog.DiscardHandler)}
}

func mustOpen(t *testing.T, c Config) (*Log, *Recovered) {
	t.Helper()
	l, r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil && l.failed == nil {
			t.Error(err)
		}
	})
	return l, r
}

func mustSave(t *testing.T, l *Log, hs *raftpb.HardState, es []*raftpb.Entry) {
	t.Helper()
	l.Append(hs, es)
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
}

func text(r *Recovered) string {
	var b bytes.Buffer
	if r.Snapshot != nil {
		fmt.Fprintf(&b, "snapshot %d@%d ", r.Snapshot.GetIndex(), r.Snapshot.GetTerm())
	}
	if r.HardState != nil {
		fmt.Fprintf(&b, "hard %d/%d/%d ", r.HardState.GetTerm(), r.HardState.GetVote(), r.HardState.GetCommit())
	}
	for _, e := range r.Entries {
		fmt.Fprintf(&b, "%d/%d:%d ", e.GetTerm(), e.GetIndex(), len(e.GetData()))
	}
	return b.String()
}

func TestWhatWasSyncedComesBack(t *testing.T) {
	c := config(t.TempDir())
	l, r := mustOpen(t, c)
	if text(r) != "" || r.ClusterID == "" {
		t.Fatalf("new directory gave %q of cluster %q", text(r), r.ClusterID)
	}
	mustSave(t, l, hard(1, 1, 0), entries(1, 1, 3, 10))
	mustSave(t, l, nil, entries(1, 4, 5, 600))
	mustSave(t, l, hard(2, 1, 3), entries(2, 4, 4, 20)) // replaces 4 and 5
	l.Append(hard(2, 1, 4), nil)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l2, r2 := mustOpen(t, c)
	if got, want := text(r2), "hard 2/1/4 1/1:10 1/2:10 1/3:10 2/4:20 "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if r2.ClusterID != r.ClusterID || l2.ClusterID() != r.ClusterID {
		t.Error("the cluster id changed")
	}
	if !bytes.HasPrefix(r2.Entries[3].GetData(), []byte("2/4")) {
		t.Errorf("data %q", r2.Entries[3].GetData())
	}
}

func TestManySegments(t *testing.T) {
	c := config(t.TempDir())
	l, _ := mustOpen(t, c)
	const last = 400
	for i := uint64(1); i <= last; i++ {
		mustSave(t, l, hard(1, 1, i-1), entries(1, i, i, 1000))
	}
	big := entry(1, last+1, 300<<10) // more than a segment
	mustSave(t, l, nil, []*raftpb.Entry{big})
	mustSave(t, l, nil, entries(1, last+2, last+2, 10))
	if n := len(l.segments); n < 7 {
		t.Errorf("%d segments", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, r := mustOpen(t, c)
	if len(r.Entries) != last+2 || r.HardState.GetCommit() != last-1 || len(r.Entries[last].GetData()) != 300<<10 {
		t.Errorf("%d entries, %v", len(r.Entries), r.HardState)
	}
}

func body(s string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

func meta(index, term uint64) *raftpb.SnapshotMetadata {
	return &raftpb.SnapshotMetadata{Index: &index, Term: &term, ConfState: &raftpb.ConfState{Voters: []uint64{1}}}
}

func TestSnapshotsReleaseTheLog(t *testing.T) {
	c := config(t.TempDir())
	l, _ := mustOpen(t, c)
	var before int64
	for i := uint64(1); i <= 600; i++ {
		mustSave(t, l, hard(1, 1, i), entries(1, i, i, 1000))
		if i%200 == 0 {
			if err := l.SaveSnapshot(meta(i, 1), body(fmt.Sprintf("state at %d", i))); err != nil {
				t.Fatal(err)
			}
			before = l.Bytes()
		}
	}
	if before > 400<<10 {
		t.Errorf("%d bytes of log kept", before)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, r := mustOpen(t, c)
	if got := text(r); got != "snapshot 600@1 hard 1/1/600 " {
		t.Errorf("got %q", got)
	}
	in, err := l.OpenSnapshot(600)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(in)
	if err = errors.Join(err, in.Close()); err != nil || string(b) != "state at 600" {
		t.Errorf("%q, %v", b, err)
	}
	if l.SnapshotIndex() != 600 || len(l.snapshots) != snapshotsKept {
		t.Errorf("%d snapshots, newest %d", len(l.snapshots), l.SnapshotIndex())
	}
	mustSave(t, l, nil, entries(1, 601, 601, 10))
}

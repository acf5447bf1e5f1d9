package wal

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

// diverged gives a log with a branch that the cluster did not keep: entries 1 to
// 3 of term 1 and 4 to 9 of term 2, of which none is known to be committed behind 3.
func diverged(t *testing.T, c Config) *Log {
	t.Helper()
	l, _ := mustOpen(t, c)
	mustSave(t, l, hard(1, 1, 0), entries(1, 1, 3, 10))
	mustSave(t, l, hard(2, 1, 3), entries(2, 4, 9, 10))
	return l
}

func reopened(t *testing.T, l *Log, c Config) string {
	t.Helper()
	_ = l.Close()
	c.Hook = nil
	l2, r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	first := text(r)
	if err := l2.Close(); err != nil {
		t.Fatal(err)
	}
	// What one Open mended, the next one finds in order.
	l3, r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if again := text(r); again != first {
		t.Errorf("opened once it is %q, twice %q", first, again)
	}
	if err := l3.Close(); err != nil {
		t.Fatal(err)
	}
	return first
}

func TestInstalledSnapshotRestartsTheLog(t *testing.T) {
	for name, last := range map[string]uint64{"behind the log": 20, "within the log": 6} {
		t.Run(name, func(t *testing.T) {
			c := config(t.TempDir())
			l := diverged(t, c)
			if err := l.ReceiveSnapshot(meta(last, 3), strings.NewReader("state")); err != nil {
				t.Fatal(err)
			}
			if err := l.InstallSnapshot(meta(last, 3)); err != nil {
				t.Fatal(err)
			}
			mustSave(t, l, hard(4, 2, last), entries(4, last+1, last+2, 10))
			if err := l.Release(); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"behind the log": "snapshot 20@3 hard 4/2/20 4/21:10 4/22:10 ",
				"within the log": "snapshot 6@3 hard 4/2/6 4/7:10 4/8:10 ",
			}[name]
			if got := reopened(t, l, c); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// TestCrashWhileInstalling: at each point the log is either as before, or it goes
// on behind the snapshot without the branch that was given up.
func TestCrashWhileInstalling(t *testing.T) {
	crash := errors.New("crash")
	before := "hard 2/1/3 1/1:10 1/2:10 1/3:10 2/4:10 2/5:10 2/6:10 2/7:10 2/8:10 2/9:10 "
	for _, tc := range []struct {
		point string
		last  uint64
		want  string
	}{
		{PointInstallRename, 6, before},
		{PointInstallRenamed, 6, "snapshot 6@3 hard 2/1/6 "},
		{PointAppendWrite, 6, "snapshot 6@3 hard 2/1/6 "},
		{PointAppendWrite, 20, "snapshot 20@3 hard 2/1/20 "},
		{PointAppendSynced, 20, "snapshot 20@3 hard 4/2/20 4/21:10 "},
	} {
		t.Run(tc.point, func(t *testing.T) {
			c := config(t.TempDir())
			armed := false
			c.Hook = func(point string) error {
				if armed && point == tc.point {
					return crash
				}
				return nil
			}
			l := diverged(t, c)
			if err := l.ReceiveSnapshot(meta(tc.last, 3), strings.NewReader("state")); err != nil {
				t.Fatal(err)
			}
			armed = true
			err := l.InstallSnapshot(meta(tc.last, 3))
			if err == nil {
				l.Append(hard(4, 2, tc.last), entries(4, tc.last+1, tc.last+1, 10))
				err = l.Sync()
			}
			if !errors.Is(err, crash) {
				t.Fatal(err)
			}
			if got := reopened(t, l, c); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestLostInstalledSnapshot: the log alone has a hole then, and is refused.
func TestLostInstalledSnapshot(t *testing.T) {
	c := config(t.TempDir())
	l := diverged(t, c)
	if err := l.SaveSnapshot(meta(3, 1), body("old")); err != nil {
		t.Fatal(err)
	}
	if err := l.ReceiveSnapshot(meta(20, 3), strings.NewReader("state")); err != nil {
		t.Fatal(err)
	}
	if err := l.InstallSnapshot(meta(20, 3)); err != nil {
		t.Fatal(err)
	}
	mustSave(t, l, hard(4, 2, 20), entries(4, 21, 21, 10))
	path := l.snapshotPath(20)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(c); !problem.HasCode(err, "data.damaged") || !strings.Contains(err.Error(), "index 20") {
		t.Errorf("opened with %v", err)
	}
}

func TestReceivedSnapshots(t *testing.T) {
	c := config(t.TempDir())
	l := diverged(t, c)
	if err := l.ReceiveSnapshot(meta(20, 3), failingReader{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := l.OpenReceived(20); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a broken transfer left %v", err)
	}
	if err := l.ReceiveSnapshot(meta(20, 3), strings.NewReader("state")); err != nil {
		t.Fatal(err)
	}
	in, err := l.OpenReceived(20)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	path := l.receivedPath(20)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l2, _ := mustOpen(t, c)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a snapshot that was not installed outlived the process: %v", err)
	}
	l2.DropReceived(20)
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

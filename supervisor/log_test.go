package supervisor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/problem"
)

// testLog is a log with a clock of its own.
type testLog struct {
	*logFile
	path string
	now  time.Time
}

func newTestLog(t *testing.T, bytesMax uint64, files uint32) *testLog {
	t.Helper()
	l := &testLog{path: filepath.Join(t.TempDir(), "console.log"), now: time.Unix(1000, 0)}
	l.open(t, bytesMax, files)
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *testLog) open(t *testing.T, bytesMax uint64, files uint32) {
	t.Helper()
	f, err := openLog(l.path, bytesMax, files, func() time.Time { return l.now })
	if err != nil {
		t.Fatal(err)
	}
	l.logFile = f
}

func (l *testLog) say(t *testing.T, s string) {
	t.Helper()
	if err := l.write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func (l *testLog) read(t *testing.T, o LogOptions) string {
	t.Helper()
	var b bytes.Buffer
	if err := ReadLogs(t.Context(), l.path, o, func(p []byte) error { b.Write(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func tail(n uint32) *uint32 { return &n }

func TestLogTailAndSince(t *testing.T) {
	l := newTestLog(t, 0, 0)
	for i := range 10 {
		l.say(t, fmt.Sprintf("line %d\n", i))
		l.now = l.now.Add(2 * time.Second)
	}
	l.say(t, "open")
	for _, tc := range []struct {
		name string
		o    LogOptions
		want string
	}{
		{"none", LogOptions{TailLines: tail(0)}, ""},
		{"the open line", LogOptions{TailLines: tail(1)}, "open"},
		{"two", LogOptions{TailLines: tail(2)}, "line 9\nopen"},
		{"since", LogOptions{Since: time.Unix(1016, 0)}, "line 8\nline 9\nopen"},
		{"since between", LogOptions{Since: time.Unix(1015, 0)}, "line 8\nline 9\nopen"},
		{"since the same second", LogOptions{Since: time.Unix(1016, 500e6)}, "line 8\nline 9\nopen"},
		{"since later", LogOptions{Since: time.Unix(3000, 0)}, ""},
		{"since and tail", LogOptions{Since: time.Unix(1014, 0), TailLines: tail(2)}, "line 9\nopen"},
		{"tail beyond since", LogOptions{Since: time.Unix(1018, 0), TailLines: tail(100)}, "line 9\nopen"},
	} {
		if got := l.read(t, tc.o); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := l.read(t, LogOptions{TailLines: tail(100)}); got != l.read(t, LogOptions{}) || !strings.HasPrefix(got, "line 0\n") {
		t.Errorf("all: %q", got)
	}
}

// TestLogRotation: sizes are bounded, the newest bytes are kept and read in order.
func TestLogRotation(t *testing.T) {
	const files = 3
	l := newTestLog(t, logBytesMin, files)
	var all strings.Builder
	for i := 0; all.Len() < 5*logBytesMin; i++ {
		line := fmt.Sprintf("%06d %s\n", i, strings.Repeat("x", i%100))
		l.say(t, line)
		all.WriteString(line)
		l.now = l.now.Add(100 * time.Millisecond)
	}
	got := l.read(t, LogOptions{})
	if !strings.HasSuffix(all.String(), got) || len(got) < (files-1)*logBytesMin*9/10 || len(got) > files*logBytesMin {
		t.Fatalf("%d bytes of %d kept", len(got), all.Len())
	}
	found, err := os.ReadDir(filepath.Dir(l.path))
	if err != nil || len(found) != 2*files {
		t.Fatalf("%v, %v", found, err)
	}
	for _, f := range found {
		st, err := f.Info()
		if err != nil || st.Mode().Perm() != fileMode || st.Size() > logBytesMin {
			t.Errorf("%v, %v", st, err)
		}
	}
	lines := strings.SplitAfter(all.String(), "\n")
	if got, want := l.read(t, LogOptions{TailLines: tail(1500)}), strings.Join(lines[len(lines)-1501:], ""); got != want {
		t.Errorf("tail over a rotation: %d bytes, want %d", len(got), len(want))
	}
	since := l.now.Add(-150 * time.Second)
	if got, want := l.read(t, LogOptions{Since: since}), strings.Join(lines[len(lines)-1501:], ""); !strings.HasSuffix(got, want) ||
		len(got) > len(want)+20*120 {
		t.Errorf("since over a rotation: %d bytes, want %d", len(got), len(want))
	}
}

func TestLogKeepsOneFile(t *testing.T) {
	l := newTestLog(t, logBytesMin, 1)
	for range 3 * logBytesMin / 1000 {
		l.say(t, strings.Repeat("y", 999)+"\n")
	}
	if found, err := os.ReadDir(filepath.Dir(l.path)); err != nil || len(found) != 2 {
		t.Fatalf("%v, %v", found, err)
	}
}

func TestLogIndexIsBounded(t *testing.T) {
	l := newTestLog(t, logBytesMin, 2)
	for range 3 * logBytesMin / indexShare / indexEntryBytes {
		l.say(t, "z")
		l.now = l.now.Add(time.Second)
	}
	for _, name := range []string{".idx", ".1.idx"} {
		st, err := os.Stat(l.path + name)
		if err != nil || st.Size() > logBytesMin/indexShare {
			t.Fatalf("%v, %v", st, err)
		}
	}
}

// TestLogGoesOn: the next process of a VM appends, also behind a torn index.
func TestLogGoesOn(t *testing.T) {
	l := newTestLog(t, 0, 0)
	l.say(t, "first\n")
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(l.path+".idx", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("torn")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	l.now = l.now.Add(time.Hour)
	l.open(t, 0, 0)
	l.say(t, "second\n")
	if got := l.read(t, LogOptions{}); got != "first\nsecond\n" {
		t.Fatalf("%q", got)
	}
	if got := l.read(t, LogOptions{Since: l.now}); got != "second\n" {
		t.Fatalf("%q", got)
	}
}

func TestLogRefusesWhatIsNotItsFile(t *testing.T) {
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	if err := os.WriteFile(canary, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"symlink":   func(p string) error { return os.Symlink(canary, p) },
		"hard link": func(p string) error { return os.Link(canary, p) },
		"fifo":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		path := filepath.Join(dir, "log "+name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if l, err := openLog(path, 0, 0, time.Now); err == nil {
			t.Errorf("%s was opened: %v", name, l.close())
		}
		if name != "hard link" {
			err := ReadLogs(t.Context(), path, LogOptions{}, func([]byte) error { return nil })
			if err == nil {
				t.Errorf("%s was read", name)
			}
		}
	}
	linked := filepath.Join(dir, "linked")
	if err := os.Symlink(t.TempDir(), linked); err != nil {
		t.Fatal(err)
	}
	if l, err := openLog(filepath.Join(linked, "log"), 0, 0, time.Now); err == nil {
		t.Errorf("a linked directory was used: %v", l.close())
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "untouched" {
		t.Fatalf("canary %q, %v", b, err)
	}
}

// TestLogRacesWithASymlink: whoever swaps the file meanwhile gets nothing written
// elsewhere.
func TestLogRacesWithASymlink(t *testing.T) {
	l := newTestLog(t, logBytesMin, 2)
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			name := l.path
			if i%2 == 0 {
				name += ".idx"
			}
			_ = os.Remove(name)
			_ = os.Symlink(canary, name)
		}
	})
	for range 500 {
		_ = l.write(bytes.Repeat([]byte("w"), 4096)) // may well fail
		l.now = l.now.Add(time.Second)
	}
	cancel()
	wg.Wait()
	if b, err := os.ReadFile(canary); err != nil || string(b) != "untouched" {
		t.Fatalf("canary has %d bytes, %v", len(b), err)
	}
}

func TestReadLogsWithout(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none"), filepath.Join(dir, "no", "log")} {
		err := ReadLogs(t.Context(), path, LogOptions{}, func([]byte) error { return nil })
		if !problem.Is(err, problem.NotFound) {
			t.Errorf("%v", err)
		}
	}
	// A log without an index is as old as its file.
	path := filepath.Join(dir, "log")
	if err := os.WriteFile(path, []byte("a\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for since, want := range map[time.Time]string{time.Now().Add(-time.Hour): "a\nb\n", time.Now().Add(time.Hour): ""} {
		var b strings.Builder
		err := ReadLogs(t.Context(), path, LogOptions{Since: since}, func(p []byte) error { b.Write(p); return nil })
		if err != nil || b.String() != want {
			t.Errorf("%q, %v", b.String(), err)
		}
	}
	stop := errors.New("stop")
	if err := ReadLogs(t.Context(), path, LogOptions{}, func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// TestFollow: a follower gets every byte once, over rotations, and ends with the
// log.
func TestFollow(t *testing.T) {
	l := newTestLog(t, logBytesMin, 4)
	l.say(t, "begin\n")
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	var got strings.Builder
	done := make(chan error, 1)
	go func() {
		defer pw.Close()
		done <- ReadLogs(t.Context(), l.path, LogOptions{Follow: true}, func(p []byte) error {
			got.Write(p)
			_, err := fmt.Fprintln(pw, got.Len())
			return err
		})
	}()
	want := "begin\n"
	// The writer never runs ahead by more than two files, so nothing is lost.
	awaitBytes := func(n int) {
		for {
			var have int
			if _, err := fmt.Fscanln(pr, &have); err != nil {
				t.Fatal(err)
			}
			if have >= n {
				return
			}
		}
	}
	awaitBytes(len(want))
	for i := range 4 {
		var chunk strings.Builder
		for chunk.Len() < logBytesMin*3/2 {
			line := fmt.Sprintf("%d %d %s\n", i, chunk.Len(), strings.Repeat("x", 100))
			l.say(t, line)
			chunk.WriteString(line)
		}
		want += chunk.String()
		awaitBytes(len(want))
	}
	if err := os.RemoveAll(filepath.Dir(l.path)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Fatalf("%d bytes, want %d", got.Len(), len(want))
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	l := newTestLog(t, 0, 0)
	l.say(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	err := ReadLogs(ctx, l.path, LogOptions{Follow: true}, func([]byte) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestLogDiskFull: output is dropped while there is no room and written again when
// there is.
func TestLogDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l := &testLog{path: filepath.Join(dir, "log"), now: time.Unix(0, 0)}
	l.open(t, 0, 0)
	defer func() { _ = l.close() }()
	var err error
	for range 10 {
		l.now = l.now.Add(time.Second)
		err = errors.Join(err, l.write(bytes.Repeat([]byte("a"), 4096)))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a full disk took it all: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.now = l.now.Add(time.Second)
	l.say(t, "\nagain\n")
	if got := l.read(t, LogOptions{TailLines: tail(1)}); got != "again\n" {
		t.Fatalf("%q", got)
	}
}

// TestLogHostileIndex: whatever an index holds, reading ends and gives bytes of
// the log only.
func TestLogHostileIndex(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	text := strings.Repeat("0123456789\n", 1000)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		idx := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "index")
		if rapid.Bool().Draw(t, "plausible") {
			idx = nil
			for range rapid.IntRange(0, 20).Draw(t, "entries") {
				idx = binary.BigEndian.AppendUint64(idx, uint64(rapid.IntRange(0, 2*len(text)).Draw(t, "offset")))
				idx = binary.BigEndian.AppendUint64(idx, uint64(rapid.IntRange(0, 100_000).Draw(t, "time")))
			}
		}
		if err := os.WriteFile(path+".idx", idx, 0o600); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		since := time.UnixMilli(rapid.Int64Range(0, 100_000).Draw(t, "since"))
		err := ReadLogs(context.Background(), path, LogOptions{Since: since}, func(p []byte) error { b.Write(p); return nil })
		if err != nil || !strings.HasSuffix(text, b.String()) {
			t.Fatalf("%d bytes, %v", b.Len(), err)
		}
	})
}

func FuzzScanIndex(f *testing.F) {
	f.Add([]byte{}, int64(0), int64(0))
	f.Add(bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, 1}, 4), int64(100), int64(1))
	f.Fuzz(func(t *testing.T, idx []byte, size, ms int64) {
		if size < 0 {
			size = -(size + 1)
		}
		at, err := scanIndex(bytes.NewReader(idx), size, time.UnixMilli(ms))
		if err != nil || at < 0 || at > size {
			t.Fatalf("%d of %d, %v", at, size, err)
		}
	})
}

package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/pid1"
	"github.com/blixard/blixard/internal/problem"
)

// entry is a file of a tree in an archive.
type entry struct {
	kind byte
	body string
	link string
	mode int64
}

var tree = map[string]entry{
	"top":             {kind: tar.TypeDir, mode: 0o750},
	"top/a":           {kind: tar.TypeReg, body: "first", mode: 0o640},
	"top/b":           {kind: tar.TypeLink, link: "top/a"},
	"top/c":           {kind: tar.TypeSymlink, link: "a", mode: 0o777},
	"top/dir":         {kind: tar.TypeDir, mode: 0o700},
	"top/dir/large":   {kind: tar.TypeReg, body: strings.Repeat("0123456789abcdef", 20_000), mode: 0o4755},
	"top/dir/holes":   {kind: tar.TypeReg, body: strings.Repeat("\x00", 300_000) + "end", mode: 0o600},
	"top/dir/nothing": {kind: tar.TypeReg, mode: 0o444},
	"top/fifo":        {kind: tar.TypeFifo, mode: 0o622},
}

var changed = time.Unix(1_700_000_000, 0)

// pack makes an archive of a tree, or of entries in the order given.
func pack(t *testing.T, entries map[string]entry, order ...string) *bytes.Buffer {
	t.Helper()
	if len(order) == 0 {
		order = slices.Sorted(maps.Keys(entries))
	}
	buf := new(bytes.Buffer)
	w := tar.NewWriter(buf)
	for _, name := range order {
		e := entries[name]
		if e.kind == tar.TypeDir {
			name += "/"
		}
		h := &tar.Header{
			Typeflag: e.kind, Name: name, Linkname: e.link, Mode: e.mode, Size: int64(len(e.body)), ModTime: changed,
			Uid: os.Getuid(), Gid: os.Getgid(),
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf
}

// unpack reads an archive's entries.
func unpack(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	got := map[string]entry{}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if !h.ModTime.Equal(changed) {
			t.Errorf("%s was changed at %v", name, h.ModTime)
		}
		e := entry{kind: h.Typeflag, body: string(body), link: h.Linkname, mode: h.Mode}
		if e.kind == tar.TypeLink {
			e.mode = 0
		}
		got[name] = e
	}
}

func TestCopyBothWays(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	dir := t.TempDir() + "/new/place"
	for round := range 2 { // the second replaces what the first made
		if err := s.CopyTo(testContext(t), dir, pack(t, tree)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		r, err := s.CopyFrom(testContext(t), dir+"/top")
		if err != nil {
			t.Fatal(err)
		}
		if got := unpack(t, r); !maps.Equal(got, tree) {
			for name := range tree {
				if got[name] != tree[name] {
					t.Errorf("round %d: %s: %.60v, want %.60v", round, name, got[name], tree[name])
				}
			}
		}
		if n, err := r.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("after the end: %d, %v", n, err)
		}
		_ = r.Close()
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/top/dir/holes", &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("the file with holes takes %d bytes, %v", st.Blocks*512, err)
	}
	file, err := s.CopyFrom(testContext(t), dir+"/top/a")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := unpack(t, file); len(got) != 1 || got["a"] != (entry{kind: tar.TypeReg, body: "first", mode: 0o640}) {
		t.Errorf("a single file: %v", got)
	}
}

// No archive leads out of its directory.
func TestCopyStaysInside(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	outside := t.TempDir()
	reg := entry{kind: tar.TypeReg, body: "x", mode: 0o644}
	for name, c := range map[string]struct {
		entries map[string]entry
		order   []string
		says    string
	}{
		"dots":          {map[string]entry{"a/../../x": reg}, nil, "leads out"},
		"dots of links": {map[string]entry{"a": reg, "b": {kind: tar.TypeLink, link: "../x"}}, nil, "leads out"},
		"absolute link": {map[string]entry{"l": {kind: tar.TypeSymlink, link: outside}, "l/x": reg}, nil, ""},
		"climbing link": {map[string]entry{"l": {kind: tar.TypeSymlink, link: "../../../../../../../../../.." + outside}, "l/x": reg}, nil, ""},
		"absolute name": {map[string]entry{outside + "/x": reg}, nil, ""},
		"over a link":   {map[string]entry{"l": {kind: tar.TypeSymlink, link: outside + "/x"}, "l ": reg}, []string{"l", "l "}, ""},
	} {
		dir := t.TempDir()
		err := s.CopyTo(testContext(t), dir, pack(t, c.entries, c.order...))
		if c.says != "" && (!problem.HasCode(err, "guest.copy") || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
		if names, _ := os.ReadDir(outside); len(names) != 0 {
			t.Fatalf("%s: %v is outside", name, names)
		}
	}
	// What was there stays a link's target, and is not followed.
	dir := t.TempDir()
	check(t, os.Symlink(outside+"/x", dir+"/f"))
	check(t, s.CopyTo(testContext(t), dir, pack(t, map[string]entry{"f": reg})))
	if b, err := os.ReadFile(dir + "/f"); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	// A directory by way of a link within is one.
	check(t, os.Mkdir(dir+"/real", 0o755))
	check(t, os.Symlink("/real", dir+"/alias"))
	check(t, s.CopyTo(testContext(t), dir, pack(t, map[string]entry{"alias": {kind: tar.TypeDir, mode: 0o700}, "alias/g": reg})))
	if b, err := os.ReadFile(dir + "/real/g"); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestCopyRefuses(t *testing.T) {
	dir := t.TempDir() // is removed after the guest has ended
	w := newWorld(t, pid1.LocalConfig{})
	early := w.session(t)
	if err := early.CopyTo(testContext(t), "/tmp", pack(t, tree)); !problem.HasCode(err, "guest.not_running") {
		t.Errorf("CopyTo before the command: %v", err)
	}
	if _, err := early.CopyFrom(testContext(t), "/tmp"); !problem.HasCode(err, "guest.not_running") {
		t.Errorf("CopyFrom before the command: %v", err)
	}
	_, s := running(t, guest.BootConfig{Argv: sleep})
	check(t, os.WriteFile(dir+"/file", nil, 0o600))
	check(t, os.Mkdir(dir+"/f", 0o755))
	check(t, os.Mkdir(dir+"/half", 0o755))
	reg := map[string]entry{"f": {kind: tar.TypeReg, body: strings.Repeat("x", 4<<20), mode: 0o644}}
	for name, c := range map[string]struct {
		dir, says string
		archive   io.Reader
	}{
		"relative":         {"tmp", "no absolute path", pack(t, reg)},
		"a file":           {dir + "/file", "file", pack(t, reg)},
		"below a file":     {dir + "/file/x", "file", pack(t, reg)},
		"over a directory": {dir, "f: is a directory", pack(t, reg)},
		"no archive":       {dir, "read the archive", strings.NewReader(strings.Repeat("rubbish ", 1000))},
		"cut archive":      {dir + "/half", "f: unexpected EOF", io.LimitReader(pack(t, reg), 9000)},
		"odd entry":        {dir, "can't be made", pack(t, map[string]entry{"odd": {kind: 'Z'}})},
	} {
		if err := s.CopyTo(testContext(t), c.dir, c.archive); !problem.HasCode(err, "guest.copy") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names, err := os.ReadDir(dir + "/half"); len(names) != 0 {
		t.Errorf("half a file was left: %v, %v", names, err)
	}
	broken := errors.New("broken pipe of the caller")
	if err := s.CopyTo(testContext(t), dir, io.MultiReader(pack(t, tree), errorReader{broken})); !errors.Is(err, broken) {
		t.Errorf("a reader's error: %v", err)
	}
	if _, err := s.CopyFrom(testContext(t), dir+"/none"); !problem.HasCode(err, "guest.copy") || !problem.Is(err, problem.NotFound) {
		t.Errorf("CopyFrom of nothing: %v", err)
	}
	if _, err := s.CopyFrom(testContext(t), "none"); !problem.HasCode(err, "guest.copy") {
		t.Errorf("CopyFrom of a relative path: %v", err)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// A copy whose caller goes away ends on both sides.
func TestCopyEndsWithItsCaller(t *testing.T) {
	dir := t.TempDir() // is removed after the guest has ended
	w, s := running(t, guest.BootConfig{Argv: sleep})
	check(t, os.WriteFile(dir+"/large", make([]byte, 8<<20), 0o600))
	r, err := s.CopyFrom(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	check(t, r.Close())
	for err == nil {
		_, err = r.Read(make([]byte, 100))
	}
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut archive reads as a whole one")
	}
	ctx, cancel := context.WithCancel(testContext(t))
	pr, pw := io.Pipe()
	done := make(chan error)
	go func() { done <- s.CopyTo(ctx, dir, pr) }()
	_, err = io.Copy(pw, io.LimitReader(pack(t, tree), 4096))
	check(t, err)
	cancel()
	_ = pw.CloseWithError(io.ErrClosedPipe)
	if err := <-done; err == nil {
		t.Error("a copy whose context ended says nothing")
	}
	if _, err := s.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
	// The end of the machine ends a copy that waits.
	pr, pw = io.Pipe()
	defer pw.Close()
	go func() { done <- s.CopyTo(testContext(t), dir, pr) }()
	_, err = io.Copy(pw, io.LimitReader(pack(t, tree), 4096))
	check(t, err)
	check(t, s.Stop(testContext(t), 0))
	awaitEvent(t, s, guest.EventExited)
	_ = pw.Close()
	if err := <-done; err == nil {
		t.Error("a copy outlived its machine")
	}
	_ = w.local.Close()
}

func TestStat(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/file", []byte("12345"), 0o640))
	check(t, os.Chtimes(dir+"/file", changed, changed))
	check(t, os.Symlink("file", dir+"/link"))
	check(t, os.Symlink("none", dir+"/dangling"))
	file := guest.FileInfo{Mode: unix.S_IFREG | 0o640, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Size: 5, MTimeUS: changed.UnixMicro()}
	link := file
	link.Link = "file"
	for name, want := range map[string]guest.FileInfo{"file": file, "link": link} {
		if got, err := s.Stat(testContext(t), filepath.Join(dir, name)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if got, err := s.Stat(testContext(t), dir+"/dangling"); err != nil || got.Mode&unix.S_IFMT != unix.S_IFLNK || got.Link != "none" {
		t.Errorf("dangling: %+v, %v", got, err)
	}
	if _, err := s.Stat(testContext(t), dir+"/none"); !problem.HasCode(err, "guest.file") || !problem.Is(err, problem.NotFound) {
		t.Errorf("none: %v", err)
	}
}

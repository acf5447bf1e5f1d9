package disk

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

func openDir(t *testing.T) *Dir {
	t.Helper()
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// An entry has one name, and no step takes more.
func TestDirTakesOneName(t *testing.T) {
	d := openDir(t)
	if err := os.WriteFile(d.Path("f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "/", "a/b", "../f", "/etc/passwd"} {
		_, subErr := d.Sub(name)
		_, createErr := d.Create(name)
		_, openErr := d.Open(name, os.O_RDONLY)
		_, statErr := d.Stat(name)
		_, readErr := d.ReadFile(name, 1)
		for i, err := range []error{
			subErr, createErr, openErr, statErr, readErr, d.Mkdir(name), d.Rename("f", name), d.Rename(name, "f"),
			d.RenameNew("f", name), d.Remove(name), d.WriteFile(name+"/", nil),
		} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%q, step %d: %v", name, i, err)
			}
		}
	}
}

func TestDirFollowsNoLink(t *testing.T) {
	d := openDir(t)
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"file": secret, "dir": outside, "w.new": secret} {
		if err := os.Symlink(to, d.Path(link)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Open("file", os.O_RDWR); !problem.HasCode(err, "disk.not_regular") {
		t.Error(err)
	}
	if _, err := d.Sub("dir"); !problem.HasCode(err, "disk.not_directory") {
		t.Error(err)
	}
	if _, err := OpenDir(d.Path("dir")); err == nil {
		t.Error("opened a link")
	}
	if _, err := d.Create("file"); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if st, err := d.Stat("file"); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("%o, %v", st.Mode, err)
	}
	if err := d.WriteFile("w", []byte("w")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(d.WriteFile("file", []byte("w")), d.Remove("dir")); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(secret); string(b) != "secret" {
		t.Fatalf("%q, %v", b, err)
	}
	if b, err := d.ReadFile("file", 9); string(b) != "w" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := d.RenameNew("w", "file"); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if err := errors.Join(d.Mkdir("sub"), d.Mkdir("sub"), d.RenameNew("w", "x"), d.Remove("sub"), d.Remove("sub"), d.Sync()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if names, err := d.Names(); err != nil || len(names) != 2 {
			t.Fatalf("%v, %v", names, err)
		}
	}
}

// A program gets the file, cannot make it larger, and says little.
func TestRunOn(t *testing.T) {
	d := openDir(t)
	f, err := d.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("content")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.Path("f"), d.Path("g")); err != nil { // where it is does not matter
		t.Fatal(err)
	}
	for _, tc := range []struct {
		script string
		code   int
		words  string
	}{
		{"cat " + FileArg, 0, "content"},
		{"printf ' a \n b ' >&2; exit 7", 7, "a b"},
		{"kill -9 $$", -1, ""},
		{"yes | head -c 100000", 0, strings.Repeat("y ", 511) + "y"},
	} {
		code, words, err := RunOn(t.Context(), f, "/bin/sh", "-c", tc.script)
		if code != tc.code || words != tc.words || (err == nil) != (code == 0) {
			t.Errorf("%s: %d, %q, %v", tc.script, code, words, err)
		}
	}
	for range 100 { // at once, however busy the machine is
		if _, _, err := RunOn(t.Context(), f, "/usr/bin/truncate", "-s", "+100", FileArg); err == nil {
			t.Fatal("it made the file larger")
		}
	}
	if st, err := f.Stat(); err != nil || st.Size() != 7 {
		t.Errorf("%v, %v", st.Size(), err)
	}
	if _, _, err := RunOn(t.Context(), f, "/nonexistent"); err == nil {
		t.Error("ran nothing")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := RunOn(ctx, f, "/bin/sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := FindTool("no-such-program"); !problem.HasCode(err, "disk.no_tool") {
		t.Error(err)
	}
}

func TestCopy(t *testing.T) {
	d := openDir(t)
	from, err := d.Create("from")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if err := from.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 5 << 20, 1<<30 - 4096} {
		if _, err := from.WriteAt(bytes.Repeat([]byte("x"), 4096), at); err != nil {
			t.Fatal(err)
		}
	}
	to, err := d.Create("to")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := Copy(t.Context(), to, from, nil); err != nil {
		t.Fatal(err)
	}
	extents := 0
	err = EachExtent(to, 0, 1<<30, func(begin, end int64) error {
		extents++
		a, b := make([]byte, end-begin), make([]byte, end-begin)
		_, errA := from.ReadAt(a, begin)
		_, errB := to.ReadAt(b, begin)
		if !bytes.Equal(a, b) {
			t.Errorf("other bytes at %d", begin)
		}
		return errors.Join(errA, errB)
	})
	if st, _ := StatFile(to); err != nil || extents != 3 || st.Blocks*blockBytes > 1<<20 || st.Size != 1<<30 {
		t.Fatalf("%d extents, %+v, %v", extents, st, err)
	}
	for err, code := range map[error]string{unix.ENOSPC: "disk.full", unix.EDQUOT: "disk.full", unix.EFBIG: "disk.too_large", unix.EEXIST: "disk.exists"} {
		if p := Problem("x", err); !problem.HasCode(p, code) || problem.From(p).Hint == "" {
			t.Errorf("%v: %v", err, p)
		}
	}
	if Problem("x", nil) != nil || !errors.Is(Problem("x", context.Canceled), context.Canceled) {
		t.Error("Problem")
	}
}

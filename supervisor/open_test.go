package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/driver/drivertest"
	"github.com/blixard/blixard/internal/problem"
)

// TestFilesAreNotSymlinks: whoever swaps a disk for a symlink to another file does
// not have that file opened.
func TestFilesAreNotSymlinks(t *testing.T) {
	dir := t.TempDir()
	disk, canary := filepath.Join(dir, "disk"), filepath.Join(dir, "canary")
	for _, p := range []string{disk, canary} {
		if err := os.WriteFile(p, []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(canary, &st); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(canary, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	const swaps = 10_000
	stop := make(chan error, 1)
	go func() {
		var err error
		for range swaps {
			// The two names change their files, in one step.
			err = unix.Renameat2(unix.AT_FDCWD, disk, unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
			if err != nil {
				break
			}
		}
		stop <- err
	}()
	opened, refused := 0, 0
	for swapping := true; swapping; {
		select {
		case err := <-stop:
			if err != nil {
				t.Fatal(err)
			}
			swapping = false
		default:
		}
		fd, its, err := openFile(&blixardv1.SpawnFile{Path: disk})
		if err != nil {
			refused++
			continue
		}
		opened++
		if its.Ino == st.Ino {
			t.Fatal("the canary was opened")
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d swaps: %d opened, %d refused", swaps, opened, refused)
}

func TestOddFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{fifo, dir, "/dev/null", filepath.Join(dir, "missing")} {
		for _, readOnly := range []bool{false, true} {
			if fd, _, err := openFile(&blixardv1.SpawnFile{Path: p, ReadOnly: readOnly}); err == nil {
				t.Errorf("%s was opened: %v", p, unix.Close(fd))
			}
		}
	}
}

// TestTaps are only such as are there and stay.
func TestTaps(t *testing.T) {
	c, _ := testClient(t)
	r := jailedRequest(t, "a.1", "/bin/sleep", "1000")
	r.Taps = []string{"blixno0"}
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); !problem.HasCode(err, "supervisor.tap") {
		t.Fatalf("%v", err)
	}
	r.Taps = []string{"lo"}
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); !problem.HasCode(err, "supervisor.spawn_failed") {
		t.Fatalf("%v", err)
	}
	name := drivertest.Tap(t)
	r.Taps = []string{name}
	resp, err := c.Spawn(t.Context(), driver.LaneShared, r)
	if err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", resp.GetProcess().GetPid())); err != nil || !strings.HasSuffix(to, "net/tun") {
		t.Errorf("%s, %v", to, err)
	}
	other := jailedRequest(t, "b.1", "/bin/sleep", "1000")
	other.Taps = r.Taps
	if _, err := c.Spawn(t.Context(), driver.LaneShared, other); !problem.HasCode(err, "supervisor.tap_busy") {
		t.Errorf("a tap of another process: %v", err)
	}
	if err := c.Signal(t.Context(), driver.LaneShared, "a.1", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
	if fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", os.Getpid())); err != nil || slices.ContainsFunc(fds, isTun) {
		t.Errorf("the supervisor still has the tap open: %v", err)
	}
}

func isTun(path string) bool {
	to, err := os.Readlink(path)
	return err == nil && strings.HasSuffix(to, "net/tun")
}

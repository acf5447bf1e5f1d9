package filelock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "lock")
	var wg sync.WaitGroup
	var inside, total atomic.Int64 // the kernel's lock is none that the race detector knows
	for range 8 {
		wg.Go(func() {
			for range 5 {
				release, err := Acquire(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d holders at once", n)
				}
				total.Add(1)
				inside.Add(-1)
				release()
			}
		})
	}
	wg.Wait()
	if n := total.Load(); n != 40 {
		t.Errorf("%d turns, want 40", n)
	}
}

func TestGivesUpWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Acquire(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Acquire(ctx, path)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "held by another process") {
		t.Errorf("error %v", err)
	}
}

func TestRefusesLinksAndMissingRights(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.Symlink(target, filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(t.Context(), filepath.Join(dir, "lock")); err == nil {
		t.Error("a symbolic link was followed")
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("the link's target was made")
	}
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(t.Context(), filepath.Join(target, "lock")); err == nil {
		t.Error("a file was taken for a directory")
	}
}

package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

// pretend puts a script in the place of a program of e2fsprogs.
func pretend(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// Whatever the programs say, a volume stays as it was.
func TestTroubleWithTheTools(t *testing.T) {
	for _, tc := range []struct {
		name, tool, script string
		size               uint64
		code               string
	}{
		{"full", "resize2fs", "echo No space left on device >&2; exit 1", 128 * mib, "disk.full"},
		{"odd", "resize2fs", "echo odd >&2; exit 1", 128 * mib, "volume.resize"},
		{"no least size", "resize2fs", "echo well", 32 * mib, "volume.resize"},
		{"trouble with the least size", "resize2fs", "exit 1", 32 * mib, "volume.resize"},
		{"not as small as it said", "resize2fs", `[ "$1" = -P ] && echo minimum size of the filesystem: 9 && exit; echo New size smaller than minimum; exit 1`, 32 * mib, "volume.too_small"},
		{"does nothing", "resize2fs", `[ "$1" = -P ] && echo minimum size of the filesystem: 9; exit 0`, 32 * mib, "volume.resize"},
		{"killed", "resize2fs", "kill -9 $$", 128 * mib, "volume.resize"},
		{"too large", "resize2fs", "exec dd if=/dev/zero of=/proc/self/fd/3 bs=1M seek=4096 count=1", 128 * mib, "volume.resize"},
		{"damaged", "e2fsck", "echo run it by hand; exit 4", 128 * mib, "volume.damaged"},
		{"ruined", "e2fsck", "exec dd if=/dev/zero of=/proc/self/fd/3 bs=1M count=1 conv=notrunc", 128 * mib, "volume.damaged"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			path := ensure(t, s, "a", 64*mib)
			put(t, path, "f", []byte("kept"))
			before, err := s.Stat(t.Context(), "a")
			must(t, err)
			pretend(t, tc.tool, tc.script)
			wantCode(t, s.Resize(t.Context(), "a", tc.size), tc.code)
			after, err := s.Stat(t.Context(), "a")
			if err != nil || after.Inode != before.Inode || after.SizeBytes != before.SizeBytes {
				t.Fatalf("%+v, %v", after, err)
			}
			fsck(t, path)
			if got := entries(t, s.dir.Path("a")); !slices.Equal(got, []string{"disk.img"}) {
				t.Fatalf("left: %v", got)
			}
		})
	}
}

func TestTroubleWithClones(t *testing.T) {
	s := newStore(t)
	path := ensure(t, s, "a", 64*mib)
	pretend(t, "tune2fs", "echo odd; exit 1")
	_, err := s.Clone(t.Context(), "a", "", "b", nil)
	wantCode(t, err, "volume.damaged")
	// One that can't be checked is cloned as it is.
	pretend(t, "e2fsck", "exit 4")
	_, err = s.Clone(t.Context(), "a", "", "b", nil)
	must(t, err)
	if uuid(t, s.dir.Path("b/disk.img")) != uuid(t, path) {
		t.Fatal("another UUID")
	}
	pretend(t, "e2fsck", "echo No space left on device; exit 8")
	_, err = s.Clone(t.Context(), "a", "", "c", nil)
	wantCode(t, err, "disk.full")
	pretend(t, "mkfs.ext4", "exit 1")
	_, _, err = s.Ensure(t.Context(), "c", MinBytes, false)
	wantCode(t, err, "disk.mkfs")
	if got := entries(t, s.dir.File().Name()); !slices.Equal(got, []string{"a", "a/disk.img", "b", "b/disk.img"}) {
		t.Fatalf("left: %v", got)
	}
}

// A program that takes long ends with the context.
func TestToolsEndWithTheContext(t *testing.T) {
	s := newStore(t)
	ensure(t, s, "a", 64*mib)
	pretend(t, "resize2fs", "exec sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := s.Resize(ctx, "a", 128*mib); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Fatalf("it took %v", took)
	}
	if problem.From(s.Resize(ctx, "a", 128*mib)).Kind != problem.Unavailable {
		t.Fatal("another kind")
	}
}

// A step on two volumes waits for either.
func TestCloneWaits(t *testing.T) {
	s := newStore(t)
	ensure(t, s, "a", MinBytes)
	for _, id := range []string{"a", "b"} {
		release, err := s.acquire(t.Context(), id, exclusive)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err = s.Clone(ctx, "a", "", "b", nil)
		wantCode(t, err, "volume.busy")
		cancel()
		release()
	}
	// In both directions at once.
	must(t, s.Snapshot(t.Context(), "a", "s", nil))
	done := make(chan error)
	for range 8 {
		go func() { _, err := s.Clone(context.Background(), "a", "s", "b", nil); done <- err }()
		go func() { _, err := s.Clone(context.Background(), "b", "", "a", nil); done <- err }()
	}
	for range 16 {
		if err := <-done; err != nil && !problem.HasCode(err, "volume.not_found") {
			t.Error(err)
		}
	}
}

// A snapshot that two make is made once.
func TestSnapshotsAtOnce(t *testing.T) {
	s := newStore(t)
	path := ensure(t, s, "a", 64*mib)
	put(t, path, "f", make([]byte, mib))
	inside, goOn := make(chan bool), make(chan bool)
	s.hook = func(point string) {
		if point == "volume.snapshot.copied" {
			inside <- true
			<-goOn
		}
	}
	done := make(chan error)
	go func() { done <- s.Snapshot(context.Background(), "a", "s", nil) }()
	<-inside
	wantCode(t, s.Snapshot(t.Context(), "a", "s", nil), "volume.busy")
	must(t, s.Attach(t.Context(), "a", 1)) // a VM may start meanwhile
	goOn <- true
	must(t, <-done)
}

// A disk that a VM opens while its copy is resized is not replaced.
func TestAVMThatComesMeanwhile(t *testing.T) {
	for _, point := range []string{"volume.resize.resized", "volume.restore.copied"} {
		s := newStore(t)
		ensure(t, s, "a", 64*mib)
		must(t, s.Snapshot(t.Context(), "a", "s", nil))
		s.hook = func(at string) {
			if at == point {
				lockAsQEMU(t, s.dir.Path("a/disk.img"))
			}
		}
		err := s.Resize(t.Context(), "a", 128*mib)
		if point == "volume.restore.copied" {
			must(t, err)
			err = s.Restore(t.Context(), "a", "s")
		}
		wantCode(t, err, "volume.in_use")
		if got := entries(t, s.dir.Path("a")); !slices.Equal(got, []string{"disk.img", "snap-s.img"}) {
			t.Fatalf("left: %v", got)
		}
	}
}

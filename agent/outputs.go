package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

const (
	// outputsMax of VMs that are gone are kept; the one that would go first goes.
	outputsMax = 20_000
	// sweepInterval of looks at what was kept long enough.
	sweepInterval = time.Minute
	// untilFile in the directory of an output says until when it is kept.
	untilFile = "until"
	// untilBytesMax is more than a time has.
	untilBytesMax = 64
)

// outputs keeps the logs of VMs that are gone, one directory an allocation. It is safe
// for concurrent use for different ids.
type outputs struct{ dir string }

func openOutputs(dir string) (*outputs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("agent: make %s: %w", dir, err)
	}
	return &outputs{dir: dir}, nil
}

// keep takes the console's log over from an allocation's directory. It is idempotent,
// and after a crash in the middle takes the rest.
func (o *outputs) keep(id, from string, until time.Time) error {
	found, err := filepath.Glob(filepath.Join(from, consoleLog+"*"))
	if err != nil {
		return fmt.Errorf("agent: find the output of %s: %w", id, err)
	}
	logs := slices.DeleteFunc(found, func(path string) bool {
		rest := strings.TrimPrefix(filepath.Base(path), consoleLog)
		return strings.Trim(rest, ".0123456789") != ""
	})
	for _, name := range []string{artifactsFile, artifactNotes} {
		if path := filepath.Join(from, name); exists(path) {
			logs = append(logs, path)
		}
	}
	if len(logs) == 0 {
		return nil
	}
	dir := filepath.Join(o.dir, id)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("agent: keep the output of %s: %w", id, err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, untilFile), []byte(until.UTC().Format(time.RFC3339)), 0o600); err != nil {
		return fmt.Errorf("agent: keep the output of %s: %w", id, err)
	}
	// Whole before anything goes from where it was, the newest part last: a log that
	// is found in either place is complete there.
	slices.Reverse(logs)
	for _, path := range logs {
		if err := os.Link(path, filepath.Join(dir, filepath.Base(path))); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("agent: keep the output of %s: %w", id, err)
		}
	}
	for _, path := range logs {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("agent: keep the output of %s: %w", id, err)
		}
	}
	return nil
}

// sweep removes what was kept long enough, and the first of what is too many.
func (o *outputs) sweep(now time.Time) error {
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		return fmt.Errorf("agent: read %s: %w", o.dir, err)
	}
	type output struct {
		path  string
		until time.Time
	}
	var kept []output
	var errs []error
	for _, e := range entries {
		out := output{path: filepath.Join(o.dir, e.Name())}
		// What says nothing is what a crash left: it is over.
		if raw, err := readBounded(filepath.Join(out.path, untilFile), untilBytesMax); err == nil {
			out.until, _ = time.Parse(time.RFC3339, strings.TrimSpace(string(raw)))
		}
		if now.Before(out.until) {
			kept = append(kept, out)
			continue
		}
		errs = append(errs, os.RemoveAll(out.path))
	}
	slices.SortFunc(kept, func(a, b output) int { return cmp.Or(a.until.Compare(b.until), cmp.Compare(a.path, b.path)) })
	for _, out := range kept[:max(0, len(kept)-outputsMax)] {
		errs = append(errs, os.RemoveAll(out.path))
	}
	return errors.Join(errs...)
}

// openRegular opens a file that is one itself, and no link or pipe that somebody put there.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readBounded reads a file that is no longer than it should be.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	if err != nil {
		return nil, err
	}
	return raw, nil
}

// sweepOutputs sweeps now and then until ctx ends.
func (a *Agent) sweepOutputs(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		if err := a.outputs.sweep(time.Now()); err != nil {
			a.log.Warn("outputs that were kept long enough can't be removed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Output gives the path of the log of an allocation, and whether it is the kept one of a
// VM that is gone, to which nothing is added any more. A problem of kind NotFound says
// that there is none. It may be called concurrently with everything.
func (a *Agent) Output(allocID string) (path string, kept bool, err error) {
	dir, err := a.journal.path(allocID)
	if err != nil {
		return "", false, err
	}
	if path := filepath.Join(a.outputs.dir, allocID, consoleLog); exists(path) {
		return path, true, nil
	}
	if path := filepath.Join(dir, consoleLog); exists(path) {
		return path, false, nil
	}
	return "", false, problem.New(problem.NotFound, "output.none", "there is no output of allocation %s on this node", allocID)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

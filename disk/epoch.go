package disk

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/blixard/blixard/internal/problem"
)

// epochFile in a directory of disks holds the newest epoch that used them, in
// decimal.
const epochFile = "epoch"

// epochBytesMax: 2^64 has 20 digits.
const epochBytesMax = 32

// Attach allows the placement of that epoch to use the disks in dir. An epoch
// older than the newest seen is refused with a problem of kind Fenced: its
// placement was given up, and another one may be writing. The newest epoch is
// durable when Attach returns. Calls for one dir must not overlap.
func (r *Roots) Attach(dir string, epoch uint64) error {
	path := filepath.Join(dir, epochFile)
	seen, err := readEpoch(path)
	if err != nil {
		return err
	}
	if epoch < seen {
		return problem.New(problem.Fenced, "disk.fenced", "the disks in %s were used by epoch %d: epoch %d is too old", dir, seen, epoch).
			WithHint("the VM was placed anew; this placement must not run")
	}
	if epoch == seen {
		return nil
	}
	if err := renameio.WriteFile(path, []byte(strconv.FormatUint(epoch, 10)+"\n"), 0o600); err != nil {
		return diskError(path, err)
	}
	return nil
}

func readEpoch(path string) (uint64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, diskError(path, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, epochBytesMax))
	if err != nil {
		return 0, diskError(path, err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		// An unreadable fence must not open the gate.
		return 0, problem.New(problem.Fenced, "disk.epoch_damaged", "%s is damaged", path).WithCause(err).
			WithHint("if no other placement of the VM runs, remove that file")
	}
	return n, nil
}

package disk

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// epochFile in a directory of disks holds the newest epoch that used them, in
// decimal.
const epochFile = "epoch"

// epochBytesMax: 2^64 has 20 digits.
const epochBytesMax = 32

// Attach is [Attach] for the disks of an allocation.
func (r *Roots) Attach(dir string, epoch uint64) error {
	d, err := OpenDir(dir)
	if err != nil {
		return Problem(dir, err)
	}
	defer func() { _ = d.Close() }()
	return Attach(d, epoch)
}

// Attach allows the placement of that epoch to use the disks in dir. An epoch
// older than the newest seen is refused with a problem of kind Fenced: its
// placement was given up, and another one may be writing. The newest epoch is
// durable when Attach returns. Calls for one dir must not overlap.
func Attach(dir *Dir, epoch uint64) error {
	seen, err := Epoch(dir)
	if err != nil {
		return err
	}
	if epoch < seen {
		return problem.New(problem.Fenced, "disk.fenced", "the disks in %s were used by epoch %d: epoch %d is too old", dir.f.Name(), seen, epoch).
			WithHint("the VM was placed anew; this placement must not run")
	}
	if epoch == seen {
		return nil
	}
	if err := dir.WriteFile(epochFile, []byte(strconv.FormatUint(epoch, 10)+"\n")); err != nil {
		return Problem(dir.Path(epochFile), err)
	}
	return nil
}

// Epoch is the newest that used the disks in dir, 0 for none. Problem: Fenced
// disk.epoch_damaged.
func Epoch(dir *Dir) (uint64, error) {
	b, err := dir.ReadFile(epochFile, epochBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, Problem(dir.Path(epochFile), err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		// An unreadable fence must not open the gate.
		return 0, problem.New(problem.Fenced, "disk.epoch_damaged", "%s is damaged", dir.Path(epochFile)).WithCause(err).
			WithHint("if no other placement of the VM runs, remove that file")
	}
	return n, nil
}

package wal

import (
	"errors"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/blixard/blixard/internal/problem"
)

// ErrFull is the problem of a Sync that found no space.
var ErrFull = problem.New(problem.Unavailable, "storage.full", "the disk that holds the log is full").
	WithHint("free space on it: changes are accepted again by themselves; running VMs are not touched")

func damaged(path string, offset int64, format string, args ...any) error {
	p := problem.New(problem.Internal, "data.damaged", format, args...)
	p.Message = path + ": offset " + strconv.FormatInt(offset, 10) + ": " + p.Message
	return p.WithHint("the replica does not start on a log that may lack acknowledged changes: put %s back from a copy of the "+
		"directory made while the node was stopped, or move the directory away and let the node join again; "+
		"check the disk and the memory of this host", filepath.Base(path))
}

func newer(path string, format uint64) error {
	return problem.New(problem.Conflict, "data.newer", "%s has format %d, this version knows %d at most",
		path, format, dirFormat).WithHint("run the newer version of blixard that wrote it")
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

package process

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// ErrStat says that a line is not one of /proc/PID/stat.
var ErrStat = errors.New("process: malformed stat line")

// statBytesMax bounds /proc/PID/stat: 52 numbers of at most 20 digits, a name of
// at most 64 bytes, and the blanks.
const statBytesMax = 2048

// Places of fields behind the name, counted from the state (field 3 of proc(5)).
const (
	statState     = 0
	statParent    = 1
	statGroup     = 2
	statSession   = 3
	statStartTime = 19
)

// Stat is what this package reads of /proc/PID/stat.
type Stat struct {
	PID     int
	Name    string
	State   byte
	Parent  int
	Group   int
	Session int
	// StartTime in clock ticks since the host's boot (field 22).
	StartTime uint64
}

// Ended reports whether the process has ended and only waits to be reaped.
func (s Stat) Ended() bool { return s.State == 'Z' || s.State == 'X' || s.State == 'x' }

// ParseStat reads a line of /proc/PID/stat. The name may hold anything, ')' and
// newlines included: it ends at the last ')'.
func ParseStat(line []byte) (Stat, error) {
	if len(line) > statBytesMax {
		return Stat{}, fmt.Errorf("%w: %d bytes", ErrStat, len(line))
	}
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 2 || end < open || line[open-1] != ' ' {
		return Stat{}, fmt.Errorf("%w: no name", ErrStat)
	}
	pid, err := parsePID(line[:open-1])
	if err != nil {
		return Stat{}, err
	}
	f := bytes.Fields(line[end+1:])
	if len(f) <= statStartTime || len(f[statState]) != 1 {
		return Stat{}, fmt.Errorf("%w: %d fields", ErrStat, len(f))
	}
	s := Stat{PID: pid, Name: string(line[open+1 : end]), State: f[statState][0]}
	for _, n := range []struct {
		to *int
		at int
	}{{&s.Parent, statParent}, {&s.Group, statGroup}, {&s.Session, statSession}} {
		v, err := strconv.ParseInt(string(f[n.at]), 10, 32)
		if err != nil {
			return Stat{}, fmt.Errorf("%w: %w", ErrStat, err)
		}
		*n.to = int(v)
	}
	if s.StartTime, err = strconv.ParseUint(string(f[statStartTime]), 10, 64); err != nil {
		return Stat{}, fmt.Errorf("%w: %w", ErrStat, err)
	}
	return s, nil
}

func parsePID(b []byte) (int, error) {
	pid, err := strconv.ParseInt(string(b), 10, 32)
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%w: pid %q", ErrStat, b)
	}
	return int(pid), nil
}

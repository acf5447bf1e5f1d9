package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process of an identity is not there any more: it ended,
// or its pid belongs to another one now.
var ErrGone = errors.New("process: gone")

// Identity names one process of one boot of this host, and no other.
type Identity struct {
	PID int
	// StartTime in clock ticks since boot.
	StartTime uint64
	// BootID of the host, as /proc/sys/kernel/random/boot_id says.
	BootID string
}

// String gives the form for logs.
func (i Identity) String() string {
	return fmt.Sprintf("pid %d started at tick %d of boot %s", i.PID, i.StartTime, i.BootID)
}

// bootIDBytes is the length of a UUID as text.
const bootIDBytes = 36

// BootID reads the id that the kernel drew when this host booted.
var BootID = sync.OnceValues(func() (string, error) {
	b, err := readBounded("/proc/sys/kernel/random/boot_id", bootIDBytes+1)
	if err != nil {
		return "", fmt.Errorf("process: boot id: %w", err)
	}
	b = bytes.TrimSpace(b)
	if len(b) != bootIDBytes {
		return "", fmt.Errorf("process: boot id of %d bytes", len(b))
	}
	return string(b), nil
})

// ReadStat reads /proc/PID/stat. It fails with ErrGone when there is no such
// process.
func ReadStat(pid int) (Stat, error) {
	if pid <= 0 {
		return Stat{}, fmt.Errorf("%w: pid %d", ErrGone, pid)
	}
	b, err := readBounded("/proc/"+strconv.Itoa(pid)+"/stat", statBytesMax)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Stat{}, fmt.Errorf("%w: pid %d", ErrGone, pid)
	}
	if err != nil {
		return Stat{}, err
	}
	return ParseStat(b)
}

// Identify names the process that has pid now. The caller must know that it is
// the right one: its own, or its child not yet reaped. A process that has ended
// but is not reaped can still be named.
func Identify(pid int) (Identity, error) {
	boot, err := BootID()
	if err != nil {
		return Identity{}, err
	}
	s, err := ReadStat(pid)
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, StartTime: s.StartTime, BootID: boot}, nil
}

// Check returns nil when the process is there and has not ended, ErrGone when it
// is not.
func (i Identity) Check() error {
	boot, err := BootID()
	if err != nil {
		return err
	}
	if i.BootID != boot {
		return fmt.Errorf("%w: %v, and this is boot %s", ErrGone, i, boot)
	}
	s, err := ReadStat(i.PID)
	switch {
	case err != nil:
		return err
	case s.StartTime != i.StartTime:
		return fmt.Errorf("%w: %v, and that pid now started at tick %d", ErrGone, i, s.StartTime)
	case s.Ended():
		return fmt.Errorf("%w: %v has ended", ErrGone, i)
	}
	return nil
}

// readBounded reads a file of procfs of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	return b, errors.Join(err, f.Close())
}

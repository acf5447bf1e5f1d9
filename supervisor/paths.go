package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
)

// Modes of what the supervisor makes: it is nobody else's business.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// recordFormat is written into each record; a reader refuses a newer one.
const recordFormat = 1

// recordBytesMax bounds a record, which has about 200 bytes.
const recordBytesMax = 4 << 10

// paths are the files of a lane.
type paths struct{ dir, socket, lock, record, log string }

func lanePaths(dir string, lane driver.Lane) paths {
	d := filepath.Join(dir, string(lane))
	return paths{
		dir:    d,
		socket: filepath.Join(d, "socket"),
		lock:   filepath.Join(d, "lock"),
		record: filepath.Join(d, "record"),
		log:    filepath.Join(d, "log"),
	}
}

func checkLane(lane driver.Lane) error {
	if lane != driver.LaneShared && lane != driver.LaneExclusive {
		return problem.New(problem.Invalid, "supervisor.lane", "no lane %q", lane).
			WithHint("the lanes are %s and %s", driver.LaneShared, driver.LaneExclusive)
	}
	return nil
}

// Record says which process is the supervisor of a lane.
type Record struct {
	Format int         `json:"format"`
	Lane   driver.Lane `json:"lane"`
	// PID, StartTime and BootID name the process; see package process.
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
	BootID    string `json:"boot_id"`
	// Version of the program.
	Version string `json:"version"`
}

// Identity gives the process of the record.
func (r Record) Identity() process.Identity {
	return process.Identity{PID: r.PID, StartTime: r.StartTime, BootID: r.BootID}
}

// ReadRecord reads the record of a lane below dir. It fails with a problem of
// kind NotFound when there is none. That one is there does not mean that the
// process still is: ask Identity().Check().
func ReadRecord(dir string, lane driver.Lane) (Record, error) {
	path := lanePaths(dir, lane).record
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, absent(lane)
	}
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, recordBytesMax+1))
	if err != nil {
		return Record{}, err
	}
	return parseRecord(path, lane, b)
}

func parseRecord(path string, lane driver.Lane, b []byte) (Record, error) {
	bad := problem.New(problem.Internal, "supervisor.record_damaged", "supervisor record %s can't be read", path).
		WithHint("stop the supervisor of that directory, if one runs, and remove the file")
	if len(b) > recordBytesMax {
		return Record{}, bad.WithCause(fmt.Errorf("it has more than %d bytes", recordBytesMax))
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, bad.WithCause(err)
	}
	switch {
	case r.Format > recordFormat:
		return Record{}, problem.New(problem.Conflict, "supervisor.record_newer",
			"supervisor record %s has format %d, this program knows up to %d", path, r.Format, recordFormat).
			WithHint("run a version of blixard at least as new as %s", r.Version)
	case r.Format < 1 || r.PID <= 0 || r.StartTime == 0 || r.BootID == "" || r.Lane != lane:
		return Record{}, bad.WithCause(errors.New("a field is missing or wrong"))
	}
	return r, nil
}

func writeRecord(p paths, r Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(p.record, append(b, '\n'), fileMode)
}

// absent is the answer when a lane has no supervisor.
func absent(lane driver.Lane) error {
	return problem.New(problem.NotFound, "supervisor.absent", "the %s lane has no supervisor", lane)
}

// lockLane takes the lane's lock for this process's life. It is a problem of
// kind Conflict when another one holds it.
func lockLane(p paths, lane driver.Lane) (*os.File, error) {
	f, err := os.OpenFile(p.lock, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		err = errors.Join(err, f.Close())
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, problem.New(problem.Conflict, "supervisor.running",
				"a supervisor of the %s lane runs already in %s", lane, p.dir).
				WithHint("use that one; it ends by itself when it is told to and has no VM")
		}
		return nil, err
	}
	return f, nil
}

func flock(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	if err := rc.Control(func(fd uintptr) { lerr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return err
	}
	return lerr
}

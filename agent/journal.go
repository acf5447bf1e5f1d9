package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/google/renameio/v2"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/problem"
)

// Names inside an allocation's directory.
const (
	recordFile = "allocation.binpb"
	rootDisk   = "root.img"
	consoleLog = "console.log"
)

// recordBytesMax bounds a record read back: a spec of 256 arguments and 512
// variables of 32 KiB each is refused long before by the size of a request.
const recordBytesMax = 8 << 20

// idPattern is what an allocation's id must be to become a directory's name.
var idPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// journal keeps the records, one directory an allocation. It is not safe for
// concurrent use for one id.
type journal struct {
	dir string
}

func openJournal(dir string) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("agent: make %s: %w", dir, err)
	}
	return &journal{dir: dir}, nil
}

// path of an allocation's directory.
func (j *journal) path(id string) (string, error) {
	if !idPattern.MatchString(id) {
		return "", problem.New(problem.Invalid, "allocation.bad_id", "allocation id %q is not usable as a name", id)
	}
	return filepath.Join(j.dir, id), nil
}

// put makes a record durable before it returns, and its directory too.
func (j *journal) put(r *blixardv1.AllocationRecord) error {
	dir, err := j.path(r.GetAllocation().GetId())
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("agent: make %s: %w", dir, err)
	}
	b, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("agent: encode the record of %s: %w", r.GetAllocation().GetId(), err)
	}
	failpoint.Hit("agent.record.before")
	if err := renameio.WriteFile(filepath.Join(dir, recordFile), b, 0o600); err != nil {
		return fmt.Errorf("agent: keep the record of %s: %w", r.GetAllocation().GetId(), err)
	}
	failpoint.Hit("agent.record.after")
	return nil
}

// remove deletes an allocation's directory. The record goes last, so that a
// crash in the middle is finished after the restart.
func (j *journal) remove(id string) error {
	dir, err := j.path(id)
	if err != nil {
		return err
	}
	failpoint.Hit("agent.remove.before")
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("agent: remove %s: %w", dir, err)
	}
	defer func() { _ = root.Close() }()
	d, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("agent: remove %s: %w", dir, err)
	}
	names, err := d.Readdirnames(-1)
	_ = d.Close()
	if err != nil {
		return fmt.Errorf("agent: remove %s: %w", dir, err)
	}
	for _, n := range names {
		if n == recordFile {
			continue
		}
		if err := root.RemoveAll(n); err != nil {
			return fmt.Errorf("agent: remove %s: %w", filepath.Join(dir, n), err)
		}
	}
	failpoint.Hit("agent.remove.half")
	if err := root.Remove(recordFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("agent: remove %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("agent: remove %s: %w", dir, err)
	}
	failpoint.Hit("agent.remove.after")
	return nil
}

// load reads every record. Directories without one are what a crash left of an
// allocation that was never announced or was all but removed: they are deleted.
// A record that can't be read stops the agent, since its VM may be running.
func (j *journal) load() ([]*blixardv1.AllocationRecord, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("agent: read %s: %w", j.dir, err)
	}
	var out []*blixardv1.AllocationRecord
	for _, e := range entries {
		if !e.IsDir() || !idPattern.MatchString(e.Name()) {
			continue
		}
		r, err := j.read(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			if err := j.remove(e.Name()); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func (j *journal) read(id string) (*blixardv1.AllocationRecord, error) {
	path := filepath.Join(j.dir, id, recordFile)
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	bad := func(cause error) error {
		return problem.New(problem.Internal, "agent.record_damaged", "the record %s is damaged", path).WithCause(cause).
			WithHint("if its VM does not run, move the directory %s away and start the node again", filepath.Dir(path))
	}
	if !st.Mode().IsRegular() || st.Size() > recordBytesMax {
		return nil, bad(fmt.Errorf("mode %v, %d bytes", st.Mode(), st.Size()))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return nil, bad(err)
	}
	if r.GetAllocation().GetId() != id {
		return nil, bad(fmt.Errorf("it is of allocation %q", r.GetAllocation().GetId()))
	}
	return r, nil
}

// decodeRecord checks what later code relies on.
func decodeRecord(b []byte) (*blixardv1.AllocationRecord, error) {
	r := &blixardv1.AllocationRecord{}
	if err := proto.Unmarshal(b, r); err != nil {
		return nil, err
	}
	switch {
	case r.GetFormat() > recordFormat:
		return nil, fmt.Errorf("it has format %d, this blixard knows %d", r.GetFormat(), recordFormat)
	case r.GetFormat() == 0 || r.GetAllocation() == nil || r.GetStatus() == nil || r.GetAllocation().GetSpec() == nil:
		return nil, errors.New("it is incomplete")
	case r.GetBoots() > 0 && len(r.GetChannel()) != channelBytes:
		return nil, fmt.Errorf("its channel secret has %d bytes", len(r.GetChannel()))
	}
	return r, nil
}

// channelBytes is the length of the secret of a guest's channel.
const channelBytes = 16

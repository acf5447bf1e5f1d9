package daemon

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// dataFormat is the version of the data directory's layout.
const dataFormat = 1

// Names inside the data directory.
const (
	identityFile  = "node.json"
	lockFile      = "lock"
	raftDir       = "raft"
	vmsDir        = "vms"
	outputsDir    = "outputs"
	supervisorDir = "supervisor"
	templatesDir  = "disks"
)

// identityBytesMax of node.json.
const identityBytesMax = 64 << 10

// identity is who the node is. It is made once, with the data directory.
type identity struct {
	Format int    `json:"format"`
	NodeID string `json:"node_id"`
	// Incarnation counts the starts of the daemon.
	Incarnation uint64 `json:"incarnation"`
}

// dataDir is a data directory that this process has for itself.
type dataDir struct {
	path string
	id   identity
	lock *os.File
}

// openDataDir makes or opens the directory and takes its lock. Nothing is changed
// in a directory that is in use, newer or damaged.
func openDataDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, problem.New(problem.Invalid, "data.unusable", "the data directory %s can't be made", path).WithCause(err).
			WithHint("choose another with --data-dir, or mend its permissions")
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, problem.New(problem.Invalid, "data.unusable", "the data directory %s can't be written", path).WithCause(err).
			WithHint("choose another with --data-dir, or mend its permissions")
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(lock, 32))
		_ = lock.Close()
		return nil, problem.New(problem.Conflict, "data.in_use", "the data directory %s is in use by another daemon (pid %s)", path, pidText(holder)).
			WithHint("stop that daemon with `blixard node stop`, or choose another --data-dir and --socket")
	}
	if err := settle(path); err != nil {
		_ = lock.Close()
		return nil, err
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.identify(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	if err := lock.Truncate(0); err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			_ = lock.Close()
			return nil, fmt.Errorf("data directory %s: %w", path, err)
		}
	}
	return d, nil
}

func pidText(b []byte) string {
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
		return strconv.Itoa(n)
	}
	return "unknown"
}

// identify reads or makes node.json and counts the start.
func (d *dataDir) identify() error {
	file := filepath.Join(d.path, identityFile)
	f, err := os.Open(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.id = identity{Format: dataFormat, NodeID: "node-" + strings.ToLower(rand.Text()[:16])}
	case err != nil:
		return fmt.Errorf("data directory: %w", err)
	default:
		b, err := io.ReadAll(io.LimitReader(f, identityBytesMax))
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("data directory: read %s: %w", file, err)
		}
		if d.id, err = parseIdentity(file, b); err != nil {
			return err
		}
	}
	d.id.Incarnation++
	b, err := json.MarshalIndent(d.id, "", "  ")
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := renameio.WriteFile(file, append(b, '\n'), 0o600); err != nil {
		return problem.New(problem.Unavailable, "data.unwritable", "the data directory %s can't be written", d.path).WithCause(err).
			WithHint("make room on its disk, or mend its permissions")
	}
	return nil
}

func parseIdentity(file string, b []byte) (identity, error) {
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return id, problem.New(problem.Internal, "data.damaged", "%s is damaged", file).WithCause(err).
			WithHint("restore the file from a backup; its node_id is also in the log of the daemon")
	}
	if id.Format > dataFormat {
		return id, problem.New(problem.Conflict, "data.newer", "%s was written by a newer blixard (format %d, this one knows %d)", file, id.Format, dataFormat).
			WithHint("install the newer blixard again; nothing was changed")
	}
	if id.Format < 1 || !strings.HasPrefix(id.NodeID, "node-") || len(id.NodeID) > 64 {
		return id, problem.New(problem.Internal, "data.damaged", "%s is damaged: format %d, node id %q", file, id.Format, id.NodeID).
			WithHint("restore the file from a backup")
	}
	return id, nil
}

func (d *dataDir) join(name string) string { return filepath.Join(d.path, name) }

// close gives the directory free for another daemon.
func (d *dataDir) close() error { return d.lock.Close() }

package wal

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

const (
	// dirFormat is the newest format of a directory that this version knows.
	dirFormat    = 1
	identityName = "identity"
	lockName     = "lock"
	// identityBytesMax bounds what is read of an identity file.
	identityBytesMax = 4096
	identityTitle    = "blixard replica, format "
)

// nonce gives 8 random bytes.
func nonce() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: the program ends instead
	return binary.LittleEndian.Uint64(b[:])
}

// identity says whose directory it is. It is text, for people.
type identity struct {
	format    uint64
	clusterID string
	nodeID    string
}

func (id identity) encode() []byte {
	text := fmt.Sprintf("%s%d\ncluster %s\nnode %s\n", identityTitle, id.format, id.clusterID, id.nodeID)
	return fmt.Appendf(nil, "%scrc32c %08x\n", text, crc32.Checksum([]byte(text), castagnoli))
}

// decodeIdentity reads an identity file. The first line keeps its form in every
// version, so that a newer format is told from damage.
func decodeIdentity(path string, b []byte) (identity, error) {
	first, rest, _ := bytes.Cut(b, []byte("\n"))
	text, ok := strings.CutPrefix(string(first), identityTitle)
	format, err := strconv.ParseUint(text, 10, 32)
	if !ok || err != nil {
		return identity{}, damaged(path, 0, "its first line is not of blixard")
	}
	if format > dirFormat {
		return identity{}, newer(path, format)
	}
	id := identity{format: format}
	var sum uint32
	if n, err := fmt.Sscanf(string(rest), "cluster %s\nnode %s\ncrc32c %x\n", &id.clusterID, &id.nodeID, &sum); n != 3 || err != nil ||
		!bytes.Equal(id.encode(), b) {
		return identity{}, damaged(path, int64(len(first)), "its checksum does not hold")
	}
	return id, nil
}

// checkIdentity reads the identity of the directory and holds it against the
// configuration; found is false in a directory that has none.
func checkIdentity(c *Config) (id identity, found bool, err error) {
	if id, found, err = readIdentity(c.Dir); err != nil || !found {
		return identity{}, false, err
	}
	if id.nodeID != c.NodeID {
		return identity{}, false, problem.New(problem.Conflict, "data.other_node", "%s belongs to node %q, this is %q", c.Dir, id.nodeID, c.NodeID).
			WithHint("a directory is never moved between nodes: give this node an empty one")
	}
	if c.ClusterID != "" && id.clusterID != c.ClusterID {
		return identity{}, false, problem.New(problem.Conflict, "data.other_cluster", "%s belongs to cluster %q, not %q", c.Dir, id.clusterID, c.ClusterID).
			WithHint("give this node the data directory of that cluster, or an empty one")
	}
	return id, true, nil
}

// readIdentity gives whose directory it is; a new one has none.
func readIdentity(dir string) (id identity, found bool, err error) {
	path := filepath.Join(dir, identityName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return identity{}, false, nil
	}
	if err != nil {
		return identity{}, false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, identityBytesMax))
	if err != nil {
		return identity{}, false, err
	}
	id, err = decodeIdentity(path, b)
	return id, err == nil, err
}

func (l *Log) writeIdentity(id identity) error {
	path := filepath.Join(l.config.Dir, identityName)
	err := l.hook(PointIdentity)
	if err == nil {
		err = writeFile(path, id.encode())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writeFile replaces path durably and at once.
func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir takes the directory for this process. The kernel gives it back when
// the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, err
	}
	if err := flock(f, dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil && !isFull(err) { // the pid is only for people
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// flock takes the lock of an open file, or says which process has it.
func flock(f *os.File, dir string) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	who := "another process"
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		who = fmt.Sprintf("process %d", pid)
	}
	return problem.New(problem.Conflict, "data.in_use", "%s is in use by %s", dir, who).
		WithHint("one daemon runs on a data directory at a time: stop that one, or give this one another --data-dir")
}

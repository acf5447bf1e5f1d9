package wal

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/blixard/blixard/internal/invariant"
)

// receivedPath is where a snapshot of another replica waits until Raft wants it.
// Open removes what was not installed.
func (l *Log) receivedPath(index uint64) string {
	return filepath.Join(l.config.Dir, snapDirName, fmt.Sprintf("%016x.received%s.tmp", index, snapshotSuffix))
}

// ReceiveSnapshot keeps the snapshot that another replica sent, synced and read
// back, until InstallSnapshot. It may be called beside everything else, by one
// goroutine for an index at a time. On an error nothing of it is left.
func (l *Log) ReceiveSnapshot(meta *raftpb.SnapshotMetadata, body io.Reader) error {
	path := l.receivedPath(meta.GetIndex())
	err := l.writeSnapshot(path, meta, func(w io.Writer) error {
		_, err := io.Copy(w, body)
		return err
	})
	if err == nil {
		_, err = verifySnapshot(path)
	}
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("receive snapshot of index %d: %w", meta.GetIndex(), fullOr(err))
	}
	return nil
}

// OpenReceived gives the body of a received snapshot that is not installed yet.
// The caller closes it.
func (l *Log) OpenReceived(index uint64) (io.ReadCloser, error) {
	return openSnapshot(l.receivedPath(index), index)
}

// DropReceived removes a received snapshot that will not be installed.
func (l *Log) DropReceived(index uint64) { _ = os.Remove(l.receivedPath(index)) }

// InstallSnapshot makes a received snapshot the beginning of the log, which goes
// on behind it: everything that was appended before, later indexes included, is
// given up with the next Sync. It belongs to the goroutine that appends.
func (l *Log) InstallSnapshot(meta *raftpb.SnapshotMetadata) error {
	if l.failed != nil {
		return l.failed
	}
	invariant.That(meta.GetIndex() > l.SnapshotIndex(), "a snapshot of index %d is older than that of %d", meta.GetIndex(), l.SnapshotIndex())
	err := l.hook(PointInstallRename)
	if err == nil {
		err = os.Rename(l.receivedPath(meta.GetIndex()), l.snapshotPath(meta.GetIndex()))
	}
	if err == nil {
		err = l.snapDir.Sync()
	}
	if err == nil {
		err = l.hook(PointInstallRenamed)
	}
	if err != nil {
		return l.fail(&syncError{fmt.Errorf("install snapshot of index %d: %w", meta.GetIndex(), err)})
	}
	l.addSnapshot(meta)
	l.restart(meta)
	return nil
}

// restart appends that the log goes on behind a snapshot.
func (l *Log) restart(meta *raftpb.SnapshotMetadata) {
	l.Append(nil, nil) // begins the frame
	l.buf = appendRestart(l.buf, meta.GetIndex(), meta.GetTerm())
	l.next = meta.GetIndex() + 1
}

// Release drops snapshots and segments that are not needed any more, as
// SaveSnapshot does. Call it after the Sync that follows InstallSnapshot.
func (l *Log) Release() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	return l.drop()
}

func (l *Log) addSnapshot(meta *raftpb.SnapshotMetadata) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, _ := slices.BinarySearchFunc(l.snapshots, meta, newestFirst)
	l.snapshots = slices.Insert(l.snapshots, at, meta)
}

package wal

import (
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"
)

const (
	// segmentBytes of a new segment: the reserve is one more, so a node takes at
	// least twice that.
	segmentBytes = 16 << 20
	// segmentBytesMin and fileSystemShare: on a small file system a segment is at
	// most that share of it.
	segmentBytesMin = 1 << 20
	fileSystemShare = 32
	// snapshotsKept: the newest, and the one before in case the newest is damaged.
	snapshotsKept = 2

	fileMode = 0o600
	dirMode  = 0o700
)

// Config of a log. Dir and NodeID are needed.
type Config struct {
	// Dir is the log's own directory; Open makes it, and removes nothing in it that
	// it did not make.
	Dir string
	// NodeID must be the one that the directory was made for.
	NodeID string
	// ClusterID must be the one that the directory was made for; empty takes any,
	// and a random one for a new directory.
	ClusterID string
	// SegmentBytes; 0 means 16 MiB, less on a small file system.
	SegmentBytes int64
	// Logger; nil means slog.Default().
	Logger *slog.Logger
	// Hook, when set, is called before each step that reaches the disk, with one
	// of [Points]; an error it gives is taken for the step's own. It is for tests
	// of crashes and failing disks.
	Hook func(point string) error
}

// The steps that reach the disk, in no order.
const (
	PointIdentity        = "identity.write"
	PointAppendWrite     = "append.write"
	PointAppendSync      = "append.sync"
	PointAppendSynced    = "append.synced"
	PointSpareAllocate   = "spare.allocate"
	PointSegmentHeader   = "segment.header"
	PointSegmentRename   = "segment.rename"
	PointSegmentSeal     = "segment.seal"
	PointSegmentState    = "segment.state"
	PointSnapshotWrite   = "snapshot.write"
	PointSnapshotSync    = "snapshot.sync"
	PointSnapshotRename  = "snapshot.rename"
	PointSnapshotRenamed = "snapshot.renamed"
	PointReleaseSegment  = "release.segment"
	PointReleaseSnapshot = "release.snapshot"
	PointInstallRename   = "install.rename"
	PointInstallRenamed  = "install.renamed"
)

// Points lists every step that reaches the disk.
func Points() []string {
	return []string{
		PointIdentity, PointAppendWrite, PointAppendSync, PointAppendSynced, PointSpareAllocate,
		PointSegmentHeader, PointSegmentRename, PointSegmentSeal, PointSegmentState, PointSnapshotWrite,
		PointSnapshotSync, PointSnapshotRename, PointSnapshotRenamed, PointReleaseSegment, PointReleaseSnapshot,
		PointInstallRename, PointInstallRenamed,
	}
}

// Recovered is what a directory held.
type Recovered struct {
	ClusterID string
	// Entries behind the snapshot, without gaps, in the order of their indexes.
	Entries   []*raftpb.Entry
	HardState *raftpb.HardState // nil when none was ever saved
	// Snapshot is the newest whole one; nil in a new directory.
	Snapshot *raftpb.SnapshotMetadata
}

// segment is one file of the log.
type segment struct {
	sequence uint64
	first    uint64 // index of the entry that was next when it was made
	path     string
	bytes    int64
}

// Log is an open directory. Append, Sync, Reserve and InstallSnapshot belong to
// one goroutine; the other methods are safe for concurrent use.
type Log struct {
	config    Config
	logger    *slog.Logger
	clusterID string
	lock      *os.File
	logDir    *os.File
	snapDir   *os.File

	// Of the goroutine that appends.

	file   *os.File // the newest segment
	header segmentHeader
	seed   uint32
	// Invariant: everything before offset is synced, and zeros follow it on disk
	// unless a Sync failed.
	offset int64
	size   int64
	// Invariant: number of the next frame; frames of the log have no gap.
	number uint64
	buf    []byte // the frame being built
	// hard is the newest hard state that is synced, pending the one in buf.
	hard, pending *raftpb.HardState
	// next is the index of the entry that would come next, 0 in an empty log;
	// synced is the same without buf.
	next, synced uint64
	// failed is the error that ended all writing.
	failed error

	// saving is held while the set of snapshots and segments on disk changes.
	saving sync.Mutex

	mu sync.Mutex
	// segments on disk, oldest first; the last is the one being written.
	segments  []segment
	snapshots []*raftpb.SnapshotMetadata // whole ones, newest first
	closed    bool

	full atomic.Bool
}

// hook announces a step.
func (l *Log) hook(point string) error {
	if l.config.Hook == nil {
		return nil
	}
	return l.config.Hook(point)
}

// ClusterID of the directory.
func (l *Log) ClusterID() string { return l.clusterID }

// Bytes that the segments take on disk, without the reserve.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, s := range l.segments {
		n += s.bytes
	}
	return n
}

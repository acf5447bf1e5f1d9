package sim

import (
	"bytes"
	"errors"
	"io"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/wal"
)

// snapshot is one file of a disk.
type snapshot struct {
	meta *raftpb.SnapshotMetadata
	body []byte
}

// write is what one Append or InstallSnapshot gave to a disk.
type write struct {
	hard    *raftpb.HardState
	entries []*raftpb.Entry
	install *raftpb.SnapshotMetadata
}

// disk is a model of what [wal.Log] promises: what was synced is there after a
// crash, what was not is there as a whole frame or not at all, and damage is told.
// The files beneath are wal's own matter and its own tests'.
type disk struct {
	cluster string
	// Durable.
	hard      *raftpb.HardState
	entries   []*raftpb.Entry
	snapshots []snapshot // at most two, the newest last
	// Lost in a crash.
	staged   []write
	received map[uint64]snapshot

	full   bool // no write succeeds
	broken bool // the next sync fails for good
	// damaged: it does not open any more.
	damaged bool
}

var errSync = errors.New("sync: input/output error")

func newDisk(cluster string) *disk {
	return &disk{cluster: cluster, received: map[uint64]snapshot{}}
}

// recovered is what Open of the log would give.
func (d *disk) recovered() *wal.Recovered {
	r := &wal.Recovered{ClusterID: d.cluster, HardState: d.hard}
	if n := len(d.snapshots); n > 0 {
		r.Snapshot = d.snapshots[n-1].meta
	}
	for _, e := range d.entries {
		if e.GetIndex() > r.Snapshot.GetIndex() {
			r.Entries = append(r.Entries, e)
		}
	}
	if base := r.Snapshot.GetIndex(); d.hard != nil && d.hard.GetCommit() < base {
		r.HardState = proto.CloneOf(d.hard)
		r.HardState.Commit = &base // a snapshot holds only what was committed
	}
	return r
}

// crash forgets what was not synced, or keeps it when the disk had just written
// it.
func (d *disk) crash(keep bool) {
	if keep && !d.full && !d.broken {
		d.commit()
	}
	d.staged, d.broken = nil, false
	clear(d.received)
}

// commit makes what is staged durable.
func (d *disk) commit() {
	for _, w := range d.staged {
		if w.install != nil {
			d.entries = nil
		}
		if len(w.entries) > 0 {
			first := w.entries[0].GetIndex()
			cut := slices.IndexFunc(d.entries, func(e *raftpb.Entry) bool { return e.GetIndex() >= first })
			if cut >= 0 {
				d.entries = slices.Clip(d.entries[:cut])
			}
			d.entries = append(d.entries, w.entries...)
		}
		if w.hard != nil {
			d.hard = w.hard
		}
	}
	d.staged = nil
}

// Append is that of [wal.Log], as all the following are.
func (d *disk) Append(hs *raftpb.HardState, entries []*raftpb.Entry) {
	if hs != nil && raft.IsEmptyHardState(hs) {
		hs = nil
	}
	d.staged = append(d.staged, write{hard: hs, entries: entries})
}

func (d *disk) Sync() error {
	switch {
	case d.broken:
		return errSync
	case d.full && len(d.staged) > 0:
		return wal.ErrFull
	}
	d.commit()
	return nil
}

func (d *disk) Full() bool        { return d.full }
func (d *disk) Reserve() bool     { return !d.full }
func (d *disk) ClusterID() string { return d.cluster }
func (d *disk) Close() error      { return nil }

// Bytes grows with the entries, so that the replica's rule for snapshots acts.
func (d *disk) Bytes() int64 {
	n := 0
	for _, e := range d.entries {
		n += 64 + len(e.GetData())
	}
	return int64(n)
}

func (d *disk) SnapshotIndex() uint64 {
	if len(d.snapshots) == 0 {
		return 0
	}
	return d.snapshots[len(d.snapshots)-1].meta.GetIndex()
}

func (d *disk) SaveSnapshot(meta *raftpb.SnapshotMetadata, body func(io.Writer) error) error {
	var b bytes.Buffer
	if err := body(&b); err != nil {
		return err
	}
	if d.full {
		return wal.ErrFull
	}
	if meta.GetIndex() <= d.SnapshotIndex() {
		return nil // one of the leader came in between
	}
	d.snapshots = append(d.snapshots, snapshot{proto.CloneOf(meta), b.Bytes()})
	return d.Release()
}

func (d *disk) OpenSnapshot(index uint64) (io.ReadCloser, error) {
	for _, s := range d.snapshots {
		if s.meta.GetIndex() == index {
			return io.NopCloser(bytes.NewReader(s.body)), nil
		}
	}
	return nil, problem.New(problem.NotFound, "snapshot.not_found", "there is no snapshot of index %d", index)
}

func (d *disk) ReceiveSnapshot(meta *raftpb.SnapshotMetadata, body io.Reader) error {
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if d.full {
		return wal.ErrFull
	}
	d.received[meta.GetIndex()] = snapshot{proto.CloneOf(meta), b}
	return nil
}

func (d *disk) OpenReceived(index uint64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.received[index].body)), nil
}

func (d *disk) DropReceived(index uint64) { delete(d.received, index) }

func (d *disk) InstallSnapshot(meta *raftpb.SnapshotMetadata) error {
	// The file is there before the log says that it begins anew behind it.
	d.snapshots = append(d.snapshots, d.received[meta.GetIndex()])
	d.staged = append(d.staged, write{install: meta})
	return nil
}

// Release drops what is older than the newest two snapshots.
func (d *disk) Release() error {
	if n := len(d.snapshots); n > 2 {
		d.snapshots = slices.Clone(d.snapshots[n-2:])
	}
	oldest := d.snapshots[0].meta.GetIndex()
	d.entries = slices.DeleteFunc(slices.Clone(d.entries), func(e *raftpb.Entry) bool { return e.GetIndex() <= oldest })
	return nil
}

package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A snapshot file: magic, length of the metadata, metadata, CRC of these; then
// the body; then the length of the body, the CRC of everything before it, and
// the end's magic.
const (
	snapshotSuffix   = ".snap"
	snapshotMagic    = "BLXSNAP1"
	snapshotEnd      = "BLXE"
	snapshotMetaMax  = 64 << 10
	snapshotTailSize = 8 + 4 + len(snapshotEnd)
	snapshotBuffer   = 256 << 10
)

// SaveSnapshot writes a snapshot whose body write gives, reads it back, makes it
// durable, and drops snapshots and segments that are not needed any more: the
// newest two snapshots stay, and the log behind the older of them. On an error
// the directory is as it was, or has the new snapshot and more than it needs.
func (l *Log) SaveSnapshot(meta *raftpb.SnapshotMetadata, write func(io.Writer) error) error {
	l.saving.Lock()
	defer l.saving.Unlock()
	path := l.snapshotPath(meta.GetIndex())
	tmp := path + ".tmp"
	err := l.writeSnapshot(tmp, meta, write)
	if err == nil {
		err = l.hook(PointSnapshotRename)
	}
	if err == nil {
		_, err = verifySnapshot(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		if rmErr := os.Remove(tmp); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
		return fmt.Errorf("save snapshot of index %d: %w", meta.GetIndex(), fullOr(err))
	}
	if err = l.snapDir.Sync(); err == nil {
		err = l.hook(PointSnapshotRenamed)
	}
	if err != nil {
		return fmt.Errorf("save snapshot of index %d: %w", meta.GetIndex(), err)
	}
	l.addSnapshot(meta)
	return l.drop()
}

func (l *Log) writeSnapshot(tmp string, meta *raftpb.SnapshotMetadata, write func(io.Writer) error) error {
	if err := l.hook(PointSnapshotWrite); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return err
	}
	sum := crc32.New(castagnoli)
	out := bufio.NewWriterSize(f, snapshotBuffer)
	body := &countingWriter{w: io.MultiWriter(out, sum)}
	err = writeSnapshotHeader(body.w, meta)
	if err == nil {
		err = write(body)
	}
	if err == nil {
		tail := binary.LittleEndian.AppendUint64(nil, uint64(body.n))
		sum.Write(tail)
		tail = binary.LittleEndian.AppendUint32(tail, sum.Sum32())
		_, err = out.Write(append(tail, snapshotEnd...))
	}
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		if err = l.hook(PointSnapshotSync); err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}

func writeSnapshotHeader(w io.Writer, meta *raftpb.SnapshotMetadata) error {
	m, err := proto.MarshalOptions{Deterministic: true}.Marshal(meta)
	if err != nil {
		return err
	}
	b := append([]byte(snapshotMagic), binary.LittleEndian.AppendUint32(nil, uint32(len(m)))...)
	b = append(b, m...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	_, err = w.Write(b)
	return err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// readSnapshotHeader reads the header through in and gives its length.
func readSnapshotHeader(path string, in io.Reader) (*raftpb.SnapshotMetadata, int64, error) {
	head := make([]byte, len(snapshotMagic)+4)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, 0, damaged(path, 0, "it is no snapshot of this format")
	}
	n := binary.LittleEndian.Uint32(head[len(snapshotMagic):])
	if n > snapshotMetaMax {
		return nil, 0, damaged(path, int64(len(snapshotMagic)), "its metadata has %d bytes", n)
	}
	rest := make([]byte, n+4)
	if _, err := io.ReadFull(in, rest); err != nil {
		return nil, 0, damaged(path, int64(len(head)), "it ends within its metadata")
	}
	if crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, rest[:n]) != binary.LittleEndian.Uint32(rest[n:]) {
		return nil, 0, damaged(path, int64(len(head)), "the checksum of its metadata does not hold")
	}
	meta := &raftpb.SnapshotMetadata{}
	if err := proto.Unmarshal(rest[:n], meta); err != nil {
		return nil, 0, damaged(path, int64(len(head)), "its metadata: %v", err)
	}
	return meta, int64(len(head)) + int64(n) + 4, nil
}

// verifySnapshot reads a whole snapshot file and gives its metadata.
func verifySnapshot(path string) (*raftpb.SnapshotMetadata, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var sum hash.Hash32 = crc32.New(castagnoli)
	in := io.TeeReader(bufio.NewReaderSize(f, snapshotBuffer), sum)
	meta, header, err := readSnapshotHeader(path, in)
	if err != nil {
		return nil, err
	}
	body := st.Size() - header - int64(snapshotTailSize)
	if body < 0 {
		return nil, damaged(path, st.Size(), "it ends too early")
	}
	if _, err := io.CopyN(io.Discard, in, body); err != nil {
		return nil, err
	}
	var length [8]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return nil, err
	}
	want := sum.Sum32()
	tail := make([]byte, 4+len(snapshotEnd))
	if _, err := io.ReadFull(in, tail); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint64(length[:]) != uint64(body) || binary.LittleEndian.Uint32(tail) != want ||
		string(tail[4:]) != snapshotEnd {
		return nil, damaged(path, st.Size()-int64(snapshotTailSize), "its checksum does not hold")
	}
	return meta, nil
}

// OpenSnapshot gives the body of the snapshot of that index. The caller closes
// it.
func (l *Log) OpenSnapshot(index uint64) (io.ReadCloser, error) {
	return openSnapshot(l.snapshotPath(index), index)
}

func openSnapshot(path string, index uint64) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open snapshot of index %d: %w", index, err)
	}
	st, err := f.Stat()
	if err == nil {
		var header int64
		if _, header, err = readSnapshotHeader(path, f); err == nil {
			return &snapshotBody{io.LimitReader(f, st.Size()-header-int64(snapshotTailSize)), f}, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("open snapshot of index %d: %w", index, err), f.Close())
}

type snapshotBody struct {
	io.Reader
	io.Closer
}

// SnapshotIndex of the newest snapshot; 0 when there is none.
func (l *Log) SnapshotIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.snapshots) == 0 {
		return 0
	}
	return l.snapshots[0].GetIndex()
}

func (l *Log) snapshotPath(index uint64) string {
	return filepath.Join(l.config.Dir, snapDirName, fmt.Sprintf("%016x%s", index, snapshotSuffix))
}

// listSnapshots finds the whole snapshots. Damaged ones are passed over with a
// warning and given as an error of their own: whether the log reaches back to an
// older one shows when it is read.
func (l *Log) listSnapshots() (passedOver, err error) {
	files, err := os.ReadDir(l.snapDir.Name())
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(l.snapDir.Name(), f.Name())
		if strings.HasSuffix(path, snapshotSuffix+".tmp") { // of a write that did not end
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			continue
		}
		if !strings.HasSuffix(path, snapshotSuffix) {
			continue
		}
		meta, err := verifySnapshot(path)
		if err == nil && l.snapshotPath(meta.GetIndex()) != path {
			err = damaged(path, 0, "it is of index %d, by another name", meta.GetIndex())
		}
		if err != nil {
			l.logger.Warn("passed over a damaged snapshot", "file", path, "err", err)
			passedOver = errors.Join(passedOver, err)
			continue
		}
		l.snapshots = append(l.snapshots, meta)
	}
	slices.SortFunc(l.snapshots, newestFirst)
	return passedOver, nil
}

// drop removes what the two newest snapshots do not need.
func (l *Log) drop() error {
	l.mu.Lock()
	var files, segments []string
	for i := range l.snapshots {
		if i >= snapshotsKept {
			files = append(files, l.snapshotPath(l.snapshots[i].GetIndex()))
		}
	}
	l.snapshots = l.snapshots[:min(len(l.snapshots), snapshotsKept)]
	keep := l.snapshots[len(l.snapshots)-1].GetIndex()
	if len(l.snapshots) < snapshotsKept {
		keep = 0
	}
	n := 0
	for n < len(l.segments)-1 && l.segments[n+1].first <= keep {
		segments = append(segments, l.segments[n].path)
		n++
	}
	l.segments = l.segments[n:]
	l.mu.Unlock()
	for _, path := range files {
		if err := l.remove(path, PointReleaseSnapshot); err != nil {
			return err
		}
	}
	for _, path := range segments { // oldest first: a crash between leaves no gap
		if err := l.remove(path, PointReleaseSegment); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) remove(path, point string) error {
	err := l.hook(point)
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", path, err)
	}
	return nil
}

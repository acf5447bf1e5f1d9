package volume

import (
	"context"
	"errors"
	"strings"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// PieceBytes bounds a piece of a file on its way: what a message of the API takes.
const PieceBytes = 1 << 20

// Files names the files that a move brings to another node, each to be given to
// [Store.Send]: its snapshots, "snap-<id>", and last its disk, "disk", since a volume
// is there as soon as its disk is.
func (s *Store) Files(ctx context.Context, id string) ([]string, error) {
	info, err := s.Stat(ctx, id)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, snapshot := range info.Snapshots {
		files = append(files, snapshotPrefix+snapshot.ID)
	}
	return append(files, DiskFile), nil
}

// snapshotFile gives the snapshot of a name among a volume's files, "" for its disk.
func snapshotFile(file string) (snapshot string, err error) {
	if file == DiskFile {
		return "", nil
	}
	snapshot, is := strings.CutPrefix(file, snapshotPrefix)
	if !is || !idPattern.MatchString(snapshot) {
		return "", problem.New(problem.Invalid, "volume.bad_file", "%.80q is no file of a volume", file).
			WithHint(`its files are "disk" and "snap-<id>"`)
	}
	return snapshot, nil
}

// Size of one of a volume's files, in bytes.
func (s *Store) Size(ctx context.Context, id, file string) (uint64, error) {
	snapshot, err := snapshotFile(file)
	if err != nil {
		return 0, err
	}
	info, err := s.Stat(ctx, id)
	if err != nil || snapshot == "" {
		return info.SizeBytes, err
	}
	for _, i := range info.Snapshots {
		if i.ID == snapshot {
			return i.SizeBytes, nil
		}
	}
	return 0, snapshotNotFound(id, snapshot)
}

// Send reads a file of a volume and gives w what is in it from an offset on, which is
// taken down to whole chunks of 64 KiB: pieces of at most PieceBytes, in order, without
// chunks of zeros. data is valid until w returns, and an error of w ends it. digest is
// that of the whole content, for [Incoming.Finish]. No VM may have the disk. It keeps
// the volume from being changed, not from being attached.
// Problems: Invalid volume.bad_file; NotFound volume.not_found,
// volume.snapshot_not_found; Conflict volume.in_use; Unavailable volume.busy.
func (s *Store) Send(ctx context.Context, id, file string, from uint64, w func(offset uint64, data []byte) error) (size uint64, digest []byte, err error) {
	snapshot, err := snapshotFile(file)
	if err != nil {
		return 0, nil, err
	}
	d, done, err := s.hold(ctx, id, shared)
	if err != nil {
		return 0, nil, err
	}
	defer done()
	f, err := s.source(id, d, snapshot)
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := disk.StatFile(f)
	if err != nil {
		return 0, nil, err
	}
	p := pieces{w: w, data: make([]byte, 0, PieceBytes)}
	sum := newDigester(st.Size)
	from &^= chunkBytes - 1
	err = eachChunk(ctx, f, st.Size, func(at int64, data []byte) error {
		sum.chunk(at, data)
		if uint64(at) < from {
			return nil
		}
		return p.add(uint64(at), data)
	})
	if err == nil {
		err = p.flush()
	}
	if err != nil {
		return 0, nil, err
	}
	return uint64(st.Size), sum.sum(), nil
}

// pieces joins chunks that follow each other.
type pieces struct {
	w    func(offset uint64, data []byte) error
	at   uint64
	data []byte
}

func (p *pieces) add(at uint64, data []byte) error {
	if len(p.data) > 0 && (at != p.at+uint64(len(p.data)) || len(p.data)+len(data) > cap(p.data)) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	if len(p.data) == 0 {
		p.at = at
	}
	p.data = append(p.data, data...)
	return nil
}

func (p *pieces) flush() error {
	if len(p.data) == 0 {
		return nil
	}
	err := p.w(p.at, p.data)
	p.data = p.data[:0]
	return err
}

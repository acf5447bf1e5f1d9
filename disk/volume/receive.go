package volume

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// markEveryBytes of data are made durable together: what a crash makes to be sent
	// again, 64 MiB, takes half a second at 1 Gbit/s.
	markEveryBytes = 64 << 20
	// markBytesMax of a mark: three numbers of 20 digits and their names.
	markBytesMax = 256
	// zeroBytes is the least hole that is left in what arrives.
	zeroBytes = 4 << 10
)

// mark says how much of an incoming file is durable.
type mark struct {
	SizeBytes uint64 `json:"size_bytes"`
	// Inode of the file that it speaks of.
	Inode uint64 `json:"inode"`
	// HaveBytes from its beginning on are as they were sent, whole chunks.
	HaveBytes uint64 `json:"have_bytes"`
}

// parseMark refuses what this package did not write.
func parseMark(b []byte) (mark, bool) {
	var m mark
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return mark{}, false
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return mark{}, false
	}
	if m.SizeBytes > MaxBytes || m.HaveBytes > m.SizeBytes || m.HaveBytes%chunkBytes != 0 {
		return mark{}, false
	}
	return m, true
}

func incomingImage(file string) string { return incomingPrefix + file + imageSuffix }
func incomingMark(file string) string  { return incomingPrefix + file + markSuffix }

// imageOf is the name under which a file of a volume is kept.
func imageOf(file string) string { return file + imageSuffix }

// Incoming is a file of a volume on its way to this node. It is not safe for concurrent
// use. The caller ends it with Finish, Suspend or Abort; each of them may be called again,
// and then does nothing.
type Incoming struct {
	s        *Store
	id, file string
	size     uint64
	d        *disk.Dir
	f        *os.File
	// there: the whole file was here before.
	there bool
	// next is where the next piece may begin; all before it is written.
	// Invariant: marked <= next <= size.
	next, marked uint64
	release      func()
	ended        bool
}

// Receive takes a file of a volume, of that size, from another node. have is how much
// of it is here and durable, from a try that ended early, even by a crash: the pieces
// from there on are wanted. A file that is here whole has it all, and is compared in
// Finish. It keeps the volume from being changed until the Incoming ends.
// Problems: Invalid volume.size, volume.bad_file; Conflict volume.exists when there is
// one of another size; NoCapacity volume.quota; Unavailable volume.busy when somebody
// else receives it.
func (s *Store) Receive(ctx context.Context, id, file string, size uint64) (in *Incoming, have uint64, err error) {
	if _, err := snapshotFile(file); err != nil {
		return nil, 0, err
	}
	if whole, err := checkSize(size); err != nil || whole != size {
		return nil, 0, errors.Join(err, badPiece("a size of %d bytes", size))
	}
	release, err := s.acquire(ctx, id, shared)
	if err != nil {
		return nil, 0, err
	}
	if !s.claim(id, file) {
		release()
		return nil, 0, problem.New(problem.Unavailable, "volume.busy", "%s of volume %s is being received", file, id).
			WithHint("try again when it is done")
	}
	in = &Incoming{s: s, id: id, file: file, size: size, release: func() { s.disclaim(id, file); release() }}
	if err := in.open(); err != nil {
		return nil, 0, errors.Join(err, in.end())
	}
	s.at("volume.receive.opened")
	return in, in.next, nil
}

func (s *Store) claim(id, file string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.receiving[id+"/"+file] {
		return false
	}
	s.receiving[id+"/"+file] = true
	return true
}

func (s *Store) disclaim(id, file string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.receiving, id+"/"+file)
}

// open finds what there is of the file.
func (in *Incoming) open() (err error) {
	if in.d, err = in.s.mkdir(in.id); err != nil {
		return err
	}
	name := imageOf(in.file)
	in.f, err = in.d.Open(name, os.O_RDONLY)
	if err == nil {
		st, err := disk.StatFile(in.f)
		if err != nil {
			return err
		}
		if uint64(st.Size) != in.size {
			return exists(in, "it has another size")
		}
		in.there, in.next, in.marked = true, in.size, in.size
		// A crash may have left it after it had become of no worth.
		return in.d.Remove(incomingMark(in.file))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return disk.Problem(in.d.Path(name), err)
	}
	if resumed, err := in.resume(); resumed || err != nil {
		return err
	}
	return in.begin()
}

func exists(in *Incoming, why string) error {
	return problem.New(problem.Conflict, "volume.exists", "%s of volume %s is on this node already: %s", in.file, in.id, why).
		WithHint("see which node has the volume that is in use; delete the other one's files")
}

// resume goes on where the mark is, if it speaks of this file.
func (in *Incoming) resume() (bool, error) {
	b, err := in.d.ReadFile(incomingMark(in.file), markBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, disk.Problem(in.d.Path(incomingMark(in.file)), err)
	}
	m, ok := parseMark(b)
	if !ok || m.SizeBytes != in.size {
		return false, nil
	}
	f, err := in.d.Open(incomingImage(in.file), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, disk.Problem(in.d.Path(incomingImage(in.file)), err)
	}
	in.f = f
	st, err := disk.StatFile(f)
	if err != nil {
		return false, err
	}
	if st.Ino != m.Inode {
		in.f = nil
		return false, f.Close()
	}
	// What is beyond the mark may be there or not, and would show through where zeros
	// are not sent.
	if err := errors.Join(f.Truncate(int64(m.HaveBytes)), f.Truncate(int64(in.size))); err != nil {
		return false, disk.Problem(f.Name(), err)
	}
	in.next, in.marked = m.HaveBytes, m.HaveBytes
	return true, nil
}

// begin makes an empty file in place of what there may be.
func (in *Incoming) begin() error {
	if err := in.drop(); err != nil {
		return err
	}
	r, err := in.s.reserve(in.size)
	if err != nil {
		return err
	}
	defer r.release()
	name := incomingImage(in.file)
	if in.f, err = in.d.Create(name); err != nil {
		return disk.Problem(in.d.Path(name), err)
	}
	if err := r.settle(func() error { return in.f.Truncate(int64(in.size)) }); err != nil {
		return errors.Join(disk.Problem(in.f.Name(), err), in.drop())
	}
	return nil
}

// drop removes what came so far.
func (in *Incoming) drop() error {
	// The mark goes first: one without its file is of no worth, but not the other way.
	err := errors.Join(in.d.Remove(incomingMark(in.file)), in.d.Remove(incomingImage(in.file)), in.d.Sync())
	if err != nil {
		return disk.Problem(in.d.Path(incomingImage(in.file)), err)
	}
	return nil
}

func badPiece(format string, args ...any) error {
	return problem.New(problem.Invalid, "volume.bad_piece", "a piece that cannot be: "+format, args...).
		WithHint("the sender runs another version of blixard, or is no node: begin anew")
}

// Write takes the next piece, at most PieceBytes. What lies between it and the one
// before is zeros. Now and then it waits until all is durable. After an error the
// caller ends the Incoming. Problems: Invalid volume.bad_piece, Unavailable disk.full.
func (in *Incoming) Write(offset uint64, data []byte) error {
	switch {
	case in.ended || in.there:
		return badPiece("the file is whole")
	case len(data) == 0 || len(data) > PieceBytes:
		return badPiece("%d bytes", len(data))
	case offset < in.next || offset > in.size || uint64(len(data)) > in.size-offset:
		return badPiece("%d bytes at %d of %d, after %d", len(data), offset, in.size, in.next)
	}
	for at := 0; at < len(data); {
		part := data[at:min(at+zeroBytes, len(data))]
		if !isZero(part) {
			if _, err := in.f.WriteAt(part, int64(offset)+int64(at)); err != nil {
				return disk.Problem(in.f.Name(), err)
			}
		}
		at += len(part)
	}
	in.next = offset + uint64(len(data))
	if in.next-in.marked >= markEveryBytes {
		return in.mark()
	}
	return nil
}

// mark makes what came durable, and then that it came.
func (in *Incoming) mark() error {
	if err := in.f.Sync(); err != nil {
		return disk.Problem(in.f.Name(), err)
	}
	in.s.at("volume.receive.synced")
	st, err := disk.StatFile(in.f)
	if err != nil {
		return err
	}
	m := mark{SizeBytes: in.size, Inode: st.Ino, HaveBytes: in.next &^ (chunkBytes - 1)}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := in.d.WriteFile(incomingMark(in.file), b); err != nil {
		return disk.Problem(in.d.Path(incomingMark(in.file)), err)
	}
	in.marked = m.HaveBytes
	in.s.at("volume.receive.marked")
	return nil
}

// Finish compares the digest that [Store.Send] gave with the content, and only if they
// agree makes the file visible, durably; what differs is removed, and has to be sent
// anew. A file that was here whole stays in any case.
// Problems: Conflict volume.digest_mismatch, volume.exists; Unavailable disk.full.
func (in *Incoming) Finish(ctx context.Context, want []byte) (err error) {
	if in.ended {
		return nil
	}
	defer func() { err = errors.Join(err, in.end()) }()
	if !in.there {
		if err := in.f.Sync(); err != nil {
			return disk.Problem(in.f.Name(), err)
		}
	}
	got, err := digest(ctx, in.f, int64(in.size))
	if err != nil {
		return err
	}
	switch {
	case bytes.Equal(got, want):
	case in.there:
		return exists(in, "it has other content")
	default:
		return errors.Join(problem.New(problem.Conflict, "volume.digest_mismatch", "%s of volume %s arrived with the digest %s, not %s",
			in.file, in.id, hex.EncodeToString(got), hex.EncodeToString(want)).
			WithHint("send it again; if that does not help, the disk of one of the two nodes is at fault"), in.drop())
	}
	if in.there {
		return nil
	}
	in.s.at("volume.receive.verified")
	// The mark goes last: without it a crash here would have the whole file sent again.
	r := reservation{s: in.s}
	if err := r.publish(in.d, incomingImage(in.file), imageOf(in.file), true); err != nil {
		return err
	}
	if err := in.d.Remove(incomingMark(in.file)); err != nil {
		return disk.Problem(in.d.Path(incomingMark(in.file)), err)
	}
	in.s.at("volume.receive.done")
	return nil
}

// Suspend makes what came durable and ends the Incoming; a later Receive goes on there.
func (in *Incoming) Suspend() error {
	if in.ended {
		return nil
	}
	var err error
	if !in.there {
		err = in.mark()
	}
	return errors.Join(err, in.end())
}

// Abort removes what came and ends the Incoming.
func (in *Incoming) Abort() error {
	if in.ended {
		return nil
	}
	var err error
	if !in.there {
		err = in.drop()
	}
	return errors.Join(err, in.end())
}

// end lets all go.
func (in *Incoming) end() error {
	in.ended = true
	var err error
	if in.f != nil {
		err = in.f.Close()
	}
	if in.d != nil {
		err = errors.Join(err, in.d.Close())
	}
	in.release()
	if release, free := in.s.try(in.id); free {
		err = errors.Join(err, in.s.dropEmpty(in.id))
		release()
	}
	return err
}

package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// move sends a file of one store to another, until w says that the connection broke.
func move(ctx context.Context, from, to *Store, id, file string, broken func(offset uint64) error) error {
	size, err := from.Size(ctx, id, file)
	if err != nil {
		return err
	}
	in, have, err := to.Receive(ctx, id, file, size)
	if err != nil {
		return err
	}
	_, sum, err := from.Send(ctx, id, file, have, func(offset uint64, data []byte) error {
		if err := broken(offset); err != nil {
			return err
		}
		return in.Write(offset, data)
	})
	if err != nil {
		return errors.Join(err, in.Suspend())
	}
	return in.Finish(ctx, sum)
}

func never(uint64) error { return nil }

func same(t testing.TB, a, b string) {
	t.Helper()
	if out, err := exec.Command("cmp", a, b).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestMove(t *testing.T) {
	t.Parallel()
	from, to := newStore(t), newStore(t)
	ctx := t.Context()
	path := ensure(t, from, "a", 256*mib)
	put(t, path, "one", bytes.Repeat([]byte("1"), 5*mib))
	must(t, from.Snapshot(ctx, "a", "s", nil))
	put(t, path, "two", bytes.Repeat([]byte("22"), mib))
	files, err := from.Files(ctx, "a")
	if err != nil || !slices.Equal(files, []string{"snap-s", "disk"}) {
		t.Fatalf("%v, %v", files, err)
	}
	for range 2 { // the answer may be lost
		for _, file := range files {
			must(t, move(ctx, from, to, "a", file, never))
		}
	}
	there := to.dir.Path("a/disk.img")
	same(t, path, there)
	same(t, from.dir.Path("a/snap-s.img"), to.dir.Path("a/snap-s.img"))
	fsck(t, there)
	a, _ := from.Stat(ctx, "a")
	b, _ := to.Stat(ctx, "a")
	if b.UsedBytes > a.UsedBytes+4*mib {
		t.Errorf("%d bytes used there, %d here", b.UsedBytes, a.UsedBytes)
	}
	if got := entries(t, to.dir.Path("a")); !slices.Equal(got, []string{"disk.img", "snap-s.img"}) {
		t.Fatalf("files: %v", got)
	}
	// What is there is never replaced.
	put(t, path, "three", []byte("3"))
	wantCode(t, move(ctx, from, to, "a", "disk", never), "volume.exists")
	must(t, from.Resize(ctx, "a", 64*mib))
	wantCode(t, move(ctx, from, to, "a", "disk", never), "volume.exists")
	if b, _ := to.Stat(ctx, "a"); b.SizeBytes != 256*mib {
		t.Fatalf("%+v", b)
	}
}

// scatter writes data all over a disk, which needs no file system for that.
func scatter(t testing.TB, path string, megabytes int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	st, _ := f.Stat()
	rnd := rand.New(rand.NewPCG(1, 2))
	block := make([]byte, 256<<10)
	for range megabytes * 4 {
		for i := 0; i < len(block); i += 8 {
			binary.LittleEndian.PutUint64(block[i:], rnd.Uint64())
		}
		at := rnd.Int64N(st.Size() - int64(len(block)))
		if _, err := f.WriteAt(block, at); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMoveGoesOnWhereItBroke(t *testing.T) {
	t.Parallel()
	from := newStore(t)
	dir := filepath.Join(t.TempDir(), "volumes")
	ctx := t.Context()
	path := ensure(t, from, "a", 512*mib)
	scatter(t, path, 150)
	errBroken := errors.New("the connection broke")
	tries, sent, last := 0, 0, uint64(0)
	for {
		tries++
		if tries > 20 {
			t.Fatal("it does not come to its end")
		}
		to, err := Open(Config{Dir: dir})
		must(t, err)
		n := 0
		first := true
		err = move(ctx, from, to, "a", "disk", func(offset uint64) error {
			if first && offset < last {
				t.Errorf("sent again from %d, it had %d", offset, last)
			}
			if n++; n > 40 {
				return errBroken
			}
			first = false
			sent++
			last = offset
			return nil
		})
		must(t, to.Close())
		if err == nil {
			break
		}
		if !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
	}
	if tries < 3 {
		t.Errorf("only %d tries", tries)
	}
	to := openStore(t, dir, 0)
	same(t, path, to.dir.Path("a/disk.img"))
	if got := entries(t, dir); !slices.Equal(got, []string{"a", "a/disk.img"}) {
		t.Fatalf("files: %v", got)
	}
}

// After a kill the receiver has what its mark says, and nothing of what came after.
func TestReceiverForgetsWhatIsBeyondItsMark(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	ctx := t.Context()
	s := openStore(t, dir, 0)
	const size = 128 * mib
	in, have, err := s.Receive(ctx, "a", "disk", size)
	if err != nil || have != 0 {
		t.Fatalf("%d, %v", have, err)
	}
	data := bytes.Repeat([]byte("x"), PieceBytes)
	for at := uint64(0); at < 70*mib; at += PieceBytes {
		must(t, in.Write(at, data))
	}
	must(t, errors.Join(in.f.Close(), in.d.Close(), s.Close())) // all that a kill does
	in.ended = true
	s = openStore(t, dir, 0)
	in, have, err = s.Receive(ctx, "a", "disk", size)
	if err != nil || have != 64*mib {
		t.Fatalf("%d, %v", have, err)
	}
	// The rest is zeros this time.
	want := filepath.Join(t.TempDir(), "want")
	f, err := os.Create(want)
	must(t, err)
	defer f.Close()
	_, err = f.Write(bytes.Repeat([]byte("x"), 64*mib))
	must(t, errors.Join(err, f.Truncate(size)))
	sum, err := digest(ctx, f, size)
	must(t, err)
	must(t, in.Finish(ctx, sum))
	same(t, want, s.dir.Path("a/disk.img"))
}

func TestWrongDigest(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	in, _, err := s.Receive(ctx, "a", "disk", MinBytes)
	must(t, err)
	must(t, in.Write(0, []byte("x")))
	wantCode(t, in.Finish(ctx, make([]byte, 32)), "volume.digest_mismatch")
	must(t, in.Finish(ctx, nil))
	must(t, in.Abort())
	must(t, in.Suspend())
	if got := entries(t, s.dir.File().Name()); len(got) > 0 {
		t.Fatalf("left: %v", got)
	}
	if len(s.receiving) != 0 || len(s.gates) != 0 {
		t.Fatalf("left: %v, %v", s.receiving, s.gates)
	}
}

func TestReceiveRefuses(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "volumes"), 2*MinBytes)
	ctx := t.Context()
	for _, tc := range []struct {
		id, file string
		size     uint64
		code     string
	}{
		{"../a", "disk", MinBytes, "volume.bad_id"},
		{"a", "", MinBytes, "volume.bad_file"},
		{"a", "snap-", MinBytes, "volume.bad_file"},
		{"a", "snap-../x", MinBytes, "volume.bad_file"},
		{"a", "epoch", MinBytes, "volume.bad_file"},
		{"a", "disk", 0, "volume.size"},
		{"a", "disk", MaxBytes + 1, "volume.size"},
		{"a", "disk", MinBytes + 1, "volume.bad_piece"},
		{"a", "disk", 3 * MinBytes, "volume.quota"},
	} {
		_, _, err := s.Receive(ctx, tc.id, tc.file, tc.size)
		if !problem.HasCode(err, tc.code) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if got := entries(t, s.dir.File().Name()); len(got) > 0 {
		t.Fatalf("left: %v", got)
	}
	in, _, err := s.Receive(ctx, "a", "disk", MinBytes)
	must(t, err)
	_, _, err = s.Receive(ctx, "a", "disk", MinBytes)
	wantCode(t, err, "volume.busy")
	// What is on its way counts.
	_, _, err = s.Ensure(ctx, "b", 2*MinBytes, false)
	wantCode(t, err, "volume.quota")
	must(t, in.Write(2*chunkBytes, []byte("x")))
	for _, tc := range []struct {
		offset uint64
		data   []byte
	}{
		{0, []byte("x")}, // before the last
		{3 * chunkBytes, nil},
		{3 * chunkBytes, make([]byte, PieceBytes+1)},
		{MinBytes, []byte("x")},
		{MinBytes - 1, []byte("xy")},
		{1<<64 - 1, []byte("xy")},
	} {
		wantCode(t, in.Write(tc.offset, tc.data), "volume.bad_piece")
	}
	must(t, in.Abort())
	wantCode(t, in.Write(5*chunkBytes, []byte("x")), "volume.bad_piece")
	for _, file := range []string{"disk", "snap-s"} {
		_, _, err := s.Send(ctx, "a", file, 0, nil)
		wantCode(t, err, "volume.not_found")
	}
	ensure(t, s, "a", MinBytes)
	_, _, err = s.Send(ctx, "a", "snap-s", 0, nil)
	wantCode(t, err, "volume.snapshot_not_found")
	_, _, err = s.Send(ctx, "a", "x", 0, nil)
	wantCode(t, err, "volume.bad_file")
	_, err = s.Size(ctx, "a", "snap-s")
	wantCode(t, err, "volume.snapshot_not_found")
	_, err = s.Size(ctx, "a", "x")
	wantCode(t, err, "volume.bad_file")
	_, err = s.Files(ctx, "b")
	wantCode(t, err, "volume.not_found")
}

// The digest is of what a reader sees: the same for holes and for zeros that are
// written, and the one that its definition gives.
func TestDigestIsOfTheContent(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	for round := range 40 {
		size := int64(rnd.IntN(40)+1)*4096 + int64(rnd.IntN(2)*rnd.IntN(4096))
		content := make([]byte, size)
		for range rnd.IntN(4) {
			content[rnd.Int64N(size)] = 'x'
		}
		h := sha256.New()
		h.Write([]byte(digestDomain))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
		for at := int64(0); at < size; at += chunkBytes {
			part := content[at:min(at+chunkBytes, size)]
			if slices.Max(part) > 0 {
				h.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
				h.Write(part)
			}
		}
		dense, err := os.Create(filepath.Join(dir, "dense"))
		must(t, err)
		sparse, err := os.Create(filepath.Join(dir, "sparse"))
		must(t, errors.Join(err, sparse.Truncate(size)))
		_, err = dense.Write(content)
		must(t, err)
		for at := range content {
			if content[at] != 0 {
				_, err = sparse.WriteAt(content[at:at+1], int64(at))
				must(t, err)
			}
		}
		for _, f := range []*os.File{dense, sparse} {
			got, err := digest(t.Context(), f, size)
			if err != nil || !bytes.Equal(got, h.Sum(nil)) {
				t.Fatalf("round %d, %s: %x, %v", round, f.Name(), got, err)
			}
			must(t, f.Close())
		}
	}
}

func TestCopyThroughThisProcess(t *testing.T) {
	// Between file systems, and from a context that ends.
	from, err := os.CreateTemp("/dev/shm", "volume")
	must(t, err)
	defer func() { _ = os.Remove(from.Name()); _ = from.Close() }()
	must(t, from.Truncate(64*mib))
	_, err = from.WriteAt(bytes.Repeat([]byte("x"), 20*mib), 8*mib)
	must(t, err)
	to, err := os.Create(filepath.Join(t.TempDir(), "to"))
	must(t, err)
	defer to.Close()
	last := uint64(0)
	must(t, disk.Copy(t.Context(), to, from, func(done, total uint64) {
		if done < last || done > total {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last = done
	}))
	same(t, from.Name(), to.Name())
	if last != 20*mib {
		t.Errorf("%d bytes were told", last)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := disk.Copy(ctx, to, from, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func FuzzMark(f *testing.F) {
	f.Add([]byte(`{"size_bytes":16777216,"inode":3,"have_bytes":65536}`))
	f.Add([]byte(`{"size_bytes":1,"inode":3,"have_bytes":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := parseMark(b)
		if !ok && m != (mark{}) {
			t.Fatalf("%+v of a mark that is refused", m)
		}
		if m.HaveBytes > m.SizeBytes || m.SizeBytes > MaxBytes || m.HaveBytes%chunkBytes != 0 {
			t.Fatalf("%+v", m)
		}
	})
}

func FuzzSuper(f *testing.F) {
	f.Add(make([]byte, superBytes))
	b := make([]byte, superBytes)
	b[superMagic], b[superMagic+1], b[superBlocksLow], b[superLogBlock] = 0x53, 0xef, 7, 2
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parseSuper(b); ok && (s.bytes() == 0 || s.bytes()/s.blockBytes != s.blocks) {
			t.Fatalf("%+v", s)
		}
	})
}

func FuzzLeast(f *testing.F) {
	f.Add("resize2fs 1.47.0 (5-Feb-2023) Estimated minimum size of the filesystem: 2076")
	f.Add("minimum size of the filesystem: -1")
	f.Fuzz(func(t *testing.T, words string) {
		if n, ok := parseLeast(words); ok && (n == 0 || n > blockCountsMax) {
			t.Fatalf("%d", n)
		}
	})
}

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// layer is one layer of an image to be applied.
type layer struct {
	// digest of what open gives, as "sha256:..."; empty if nothing says it. What open
	// gives was held against it already.
	digest string
	// diffID is the digest of the archive after decompression.
	diffID string
	open   func(context.Context) (io.ReadCloser, error)
}

// decompress gives the archive in r: of gzip, of zstd, or as it is.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowBytesMax), zstd.WithDecoderMaxMemory(2*windowBytesMax))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// ahead decompresses and digests in a goroutine of its own while the reader works
// on what came before.
type ahead struct {
	pieces chan []byte
	free   chan []byte
	stop   chan struct{}
	done   chan struct{}
	err    error // set before pieces is closed
	sum    hash.Hash
	piece  []byte
	rest   []byte
}

const (
	aheadPieces = 8
	aheadBytes  = 256 << 10
)

func readAhead(r io.Reader) *ahead {
	a := &ahead{
		pieces: make(chan []byte, aheadPieces), free: make(chan []byte, aheadPieces),
		stop: make(chan struct{}), done: make(chan struct{}), sum: sha256.New(),
	}
	for range aheadPieces {
		a.free <- nil
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	defer close(a.pieces)
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.stop:
			return
		}
		if b == nil {
			b = make([]byte, aheadBytes)
		}
		n, err := 0, error(nil)
		for n < aheadBytes && err == nil {
			var k int
			k, err = r.Read(b[n:aheadBytes])
			n += k
		}
		a.sum.Write(b[:n])
		if n > 0 {
			a.pieces <- b[:n] // there is room: free gave one of as many
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				a.err = err
			}
			return
		}
	}
}

// Read gives what was decompressed.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.piece != nil {
			a.free <- a.piece
			a.piece = nil
		}
		b, ok := <-a.pieces
		if !ok {
			if a.err != nil {
				return 0, a.err
			}
			return 0, io.EOF
		}
		a.piece, a.rest = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// wait gives the goroutine the time to finish the digest.
func (a *ahead) wait() { <-a.done }

// close ends the goroutine.
func (a *ahead) close() {
	close(a.stop)
	<-a.done
}

// applier applies layers to a tree, the lowest first.
type applier struct {
	tree     *tree
	contents *contents
	entries  int
	unpacked uint64
}

// apply applies one layer. On an error the tree is of no use any more.
func (a *applier) apply(ctx context.Context, l layer) error {
	src, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	plain, err := decompress(&contextReader{ctx, src})
	if err != nil {
		return layerError(ctx, err)
	}
	defer plain.Close()
	r := readAhead(plain)
	defer r.close()
	a.tree.layer++
	if err := a.applyTar(ctx, tar.NewReader(r)); err != nil {
		return err
	}
	// What follows the archive's end counts for the digest.
	const paddingMax = 64 << 20
	n, err := io.Copy(io.Discard, io.LimitReader(r, paddingMax+1))
	switch {
	case err != nil:
		return layerError(ctx, err)
	case n > paddingMax:
		return badLayer("more than %d bytes follow the end of the archive", paddingMax)
	}
	r.wait()
	if got := "sha256:" + hex.EncodeToString(r.sum.Sum(nil)); l.diffID != "" && got != l.diffID {
		return digestMismatch("the unpacked layer", got, l.diffID)
	}
	return nil
}

func digestMismatch(what, got, want string) *problem.Error {
	return problem.New(problem.Invalid, "image.digest_mismatch", "%s has the digest %.23s and not %.23s", what, got, want).
		WithHint("pull again; if it stays, what holds the image is damaged or lies: push the image anew")
}

// layerError makes a failure to read a layer a problem, but for the end of a context.
func layerError(ctx context.Context, err error) error {
	var p *problem.Error
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.As(err, &p) {
		return err
	}
	return badLayer("the archive is damaged").WithCause(err)
}

// contextReader ends reading with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// tarContent tells errors of the archive from those of the disk.
type tarContent struct {
	ctx context.Context
	r   io.Reader
}

func (t *tarContent) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	switch {
	case errors.Is(err, io.EOF) && n == 0:
		return 0, layerError(t.ctx, io.ErrUnexpectedEOF)
	case err != nil && !errors.Is(err, io.EOF):
		return n, layerError(t.ctx, err)
	}
	return n, nil
}

func (a *applier) applyTar(ctx context.Context, r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // paths are looked at below
			return layerError(ctx, err)
		}
		if a.entries++; a.entries > entriesMax {
			return problem.New(problem.Invalid, "image.too_many_files", "it has more than %d files", entriesMax).
				WithHint("make the image smaller, or keep its files in an archive or on a volume")
		}
		if a.unpacked += uint64(h.Size); a.unpacked > unpackedBytesMax {
			return tooLarge("it unpacks to more than %d GiB", uint64(unpackedBytesMax)>>30)
		}
		if err := a.applyEntry(ctx, h, r); err != nil {
			return hostError(err)
		}
	}
}

var tarTypes = map[byte]uint16{
	tar.TypeReg: unix.S_IFREG, '\x00': unix.S_IFREG, tar.TypeCont: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG,
	tar.TypeSymlink: unix.S_IFLNK, tar.TypeDir: unix.S_IFDIR,
	tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

func (a *applier) applyEntry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := splitPath(h.Name)
	if err != nil {
		return err
	}
	if done, err := a.tree.whiteOut(parts); done || err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		target, err := splitPath(h.Linkname)
		if err != nil {
			return err
		}
		return a.tree.link(parts, target)
	}
	i, err := newInode(h)
	if err != nil {
		return err
	}
	if i.mode&unix.S_IFMT == unix.S_IFREG && h.Size > 0 {
		i.size = uint64(h.Size)
		if err := a.contents.store(ctx, i, &tarContent{ctx, r}, inlineMax(i.xattrs)); err != nil {
			return err
		}
	}
	return a.tree.put(parts, i)
}

// newInode gives what a header says of a file.
func newInode(h *tar.Header) (*inode, error) {
	kind, ok := tarTypes[h.Typeflag]
	if !ok {
		return nil, badLayer("%q is of the type %q, which is none of a file", clip(h.Name), h.Typeflag)
	}
	const idMax = 1<<32 - 2 // the last one means none
	if h.Uid < 0 || h.Uid > idMax || h.Gid < 0 || h.Gid > idMax {
		return nil, badLayer("%q has the owner %d:%d", clip(h.Name), h.Uid, h.Gid)
	}
	i := &inode{
		mode: kind | uint16(h.Mode&0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid),
		mtime: h.ModTime.Unix(), nsec: uint32(h.ModTime.Nanosecond()),
	}
	switch kind {
	case unix.S_IFDIR:
		i.entries = map[string]entry{}
	case unix.S_IFLNK:
		if h.Linkname == "" || len(h.Linkname) >= pathBytesMax || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, badLayer("%q is a symbolic link to %d bytes", clip(h.Name), len(h.Linkname))
		}
		i.mode, i.target = kind|0o777, h.Linkname
	case unix.S_IFCHR, unix.S_IFBLK:
		// 12 bits and 20, as the kernel has them.
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return nil, badLayer("%q is the device %d:%d", clip(h.Name), h.Devmajor, h.Devminor)
		}
		major, minor := uint32(h.Devmajor), uint32(h.Devminor)
		i.rdev = minor&0xff | major<<8 | minor&^0xff<<12
	}
	return i, i.readXattrs(h)
}

// readXattrs takes the extended attributes that Linux keeps in a file system.
func (i *inode) readXattrs(h *tar.Header) error {
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if _, _, ok := erofsXattr(name); !ok {
			continue
		}
		i.xattrs = append(i.xattrs, xattr{name, value})
		total += len(name) + len(value)
	}
	if len(i.xattrs) > xattrsMax || total > xattrBytesMax {
		return badLayer("%q has %d extended attributes of %d bytes", clip(h.Name), len(i.xattrs), total)
	}
	sortXattrs(i.xattrs)
	return nil
}

// describe names a layer in an error.
func (l layer) describe(n, of int) string {
	digest := l.digest
	if digest == "" {
		digest = l.diffID
	}
	return fmt.Sprintf("layer %d of %d (%.19s)", n, of, path.Base(digest))
}

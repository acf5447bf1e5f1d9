package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Names in the directory of an image.
const (
	diskFile = "disk.img"
	metaFile = "image.json"
)

const fsErofs = "erofs"

// disk is a root disk that was made.
type disk struct {
	digest string
	bytes  int64
	fsType string
}

// build applies layers, the lowest first, and writes the disk into the directory,
// which is the caller's to remove. key is the image's digest; it makes the file
// system's UUID.
func build(ctx context.Context, dir, key string, layers []layer, charge func(int64) error, progress func(done int)) (disk, error) {
	f, err := createFile(filepath.Join(dir, diskFile))
	if err != nil {
		return disk{}, hostError(err)
	}
	defer f.Close()
	tails, err := createFile(filepath.Join(dir, "tails"))
	if err != nil {
		return disk{}, hostError(err)
	}
	defer func() {
		_ = tails.Close()
		_ = os.Remove(tails.Name())
	}()
	c := newContents(f, tails, charge)
	a := &applier{tree: newTree(c.drop), contents: c}
	for n, l := range layers {
		if err := a.apply(ctx, l); err != nil {
			if ctx.Err() != nil {
				return disk{}, err // of whatever ended it
			}
			return disk{}, fmt.Errorf("%s: %w", l.describe(n+1, len(layers)), err)
		}
		progress(n + 1)
	}
	a.tree.complete()
	size, err := writeErofs(a.tree, c, diskUUID(key))
	if err != nil {
		return disk{}, hostError(err)
	}
	digest, err := finishDisk(ctx, f)
	return disk{digest: digest, bytes: size, fsType: fsErofs}, err
}

// createFile makes a file that nobody else can have put there.
func createFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
}

// finishDisk makes a disk durable and gives its digest.
func finishDisk(ctx context.Context, f *os.File) (string, error) {
	digest, err := digestOf(ctx, f)
	if err != nil {
		return "", hostError(err)
	}
	return digest, hostError(f.Sync())
}

// digestOf reads a file from its beginning to its end.
func digestOf(ctx context.Context, f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, &contextReader{ctx, io.NewSectionReader(f, 0, st.Size())}, make([]byte, 256<<10)); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// diskUUID derives a UUID (RFC 9562, version 8) from an image's digest, so that it
// is the same on every node.
func diskUUID(key string) (uuid [16]byte) {
	sum := sha256.Sum256([]byte("blixard root disk of " + key))
	copy(uuid[:], sum[:])
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	return uuid
}

package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// toolTimeout bounds a program that works on a file system: one that a guest made to
// take long must not hold its volume for ever. 16 TiB are checked in a fraction.
const toolTimeout = 2 * time.Hour

// Where the superblock is, and what is where in it (ext4(5), little endian).
const (
	superOffset = 1024
	superBytes  = 1024

	superBlocksLow    = 0x04
	superLogBlock     = 0x18
	superMagic        = 0x38
	superIncompatible = 0x60
	superReadOnly     = 0x64
	superBlocksHigh   = 0x150

	magicExt        = 0xef53
	incompat64bit   = 0x80
	incompatSeed    = 0x2000
	readOnlyCsum    = 0x400
	logBlockMax     = 6 // 64 KiB
	blockCountsMax  = 1 << 48
	smallestFSBlock = 1024
)

// super is what this package wants of a superblock. The guest wrote it.
type super struct {
	blocks, blockBytes uint64
	// seedless: the checksums of all metadata depend on the UUID.
	seedless bool
}

func (s super) bytes() uint64 { return s.blocks * s.blockBytes }

// readSuper gives what the superblock says; ok is false when there is no ext file
// system, whatever else there may be.
func readSuper(f io.ReaderAt) (s super, ok bool, err error) {
	b := make([]byte, superBytes)
	if _, err := f.ReadAt(b, superOffset); errors.Is(err, io.EOF) {
		return super{}, false, nil
	} else if err != nil {
		return super{}, false, err
	}
	s, ok = parseSuper(b)
	return s, ok, nil
}

func parseSuper(b []byte) (super, bool) {
	le := binary.LittleEndian
	if len(b) < superBytes || le.Uint16(b[superMagic:]) != magicExt {
		return super{}, false
	}
	logBlock := le.Uint32(b[superLogBlock:])
	blocks := uint64(le.Uint32(b[superBlocksLow:]))
	incompatible := le.Uint32(b[superIncompatible:])
	if incompatible&incompat64bit != 0 {
		blocks |= uint64(le.Uint32(b[superBlocksHigh:])) << 32
	}
	if logBlock > logBlockMax || blocks == 0 || blocks > blockCountsMax {
		return super{}, false
	}
	return super{
		blocks: blocks, blockBytes: smallestFSBlock << logBlock,
		seedless: incompatible&incompatSeed == 0 && le.Uint32(b[superReadOnly:])&readOnlyCsum != 0,
	}, true
}

// tool runs a program of e2fsprogs on f.
func tool(ctx context.Context, f *os.File, name string, args ...string) (code int, words string, err error) {
	path, err := disk.FindTool(name)
	if err != nil {
		return -1, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	code, words, err = disk.RunOn(ctx, f, path, args...)
	if e := ctx.Err(); e != nil {
		return -1, words, e
	}
	return code, words, err
}

// toolProblem of a program that failed; one that is a problem already stays it.
func toolProblem(err error, code, what, words string) error {
	var known *problem.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if strings.Contains(words, "No space left on device") {
		return problem.New(problem.Unavailable, "disk.full", "no space to %s: %s", what, words).WithCause(err).
			WithHint("make room on that disk, or delete VMs, volumes or snapshots that are not needed")
	}
	p := problem.New(problem.Conflict, code, "cannot %s: %s", what, words).
		WithHint("the volume is as it was: attach it to a VM and repair it there, with e2fsck -f")
	if err != nil {
		p = p.WithCause(err)
	}
	return p
}

// repair replays the journal and mends what can be mended without a choice. Problem:
// Conflict volume.damaged.
func repair(ctx context.Context, f *os.File, whole bool) error {
	args := []string{"-p"}
	if whole {
		args = append(args, "-f")
	}
	// 1 and 2 say that something was mended.
	code, words, err := tool(ctx, f, "e2fsck", append(args, disk.FileArg)...)
	if code >= 0 && code <= 3 {
		return nil
	}
	return toolProblem(err, "volume.damaged", "check the file system", words)
}

// leastBytes is the size below which resize2fs does not shrink the file system.
func leastBytes(ctx context.Context, f *os.File, s super) (uint64, error) {
	_, words, err := tool(ctx, f, "resize2fs", "-P", disk.FileArg)
	if err != nil {
		return 0, toolProblem(err, "volume.resize", "tell the least size", words)
	}
	blocks, ok := parseLeast(words)
	if !ok {
		return 0, problem.New(problem.Internal, "volume.resize", "resize2fs does not tell the least size but %q", words)
	}
	return blocks * s.blockBytes, nil
}

// parseLeast finds the number at the end of "Estimated minimum size of the
// filesystem: 2076".
func parseLeast(words string) (uint64, bool) {
	_, after, found := strings.Cut(words, "minimum size of the filesystem: ")
	if !found {
		return 0, false
	}
	number, _, _ := strings.Cut(after, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	return n, err == nil && n > 0 && n <= blockCountsMax
}

// renew gives the file system of a clone a UUID of its own, so that one VM can have it
// and what it is a clone of. One that can't be checked keeps its UUID, and what is not
// ext4 is left alone.
func (s *Store) renew(ctx context.Context, id string, f *os.File) error {
	super, isExt, err := readSuper(f)
	if err != nil || !isExt {
		return err
	}
	if err := repair(ctx, f, super.seedless); problem.HasCode(err, "volume.damaged") {
		s.log.Warn("the clone keeps the UUID of its file system, which needs repair", "volume", id, "err", err)
		return nil
	} else if err != nil {
		return err
	}
	if _, words, err := tool(ctx, f, "tune2fs", "-U", "random", disk.FileArg); err != nil {
		return toolProblem(err, "volume.damaged", "change the file system's UUID", words)
	}
	return nil
}

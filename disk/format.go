package disk

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// mkfsTimeout bounds the making of a file system; 16 TiB take a few seconds.
const mkfsTimeout = time.Minute

// smallDisk is below what mkfs.ext4 gives a journal of its own size.
const smallDisk = 128 << 20

// Format makes an empty ext4 file system of the whole regular file f, which is one
// hole and stays sparse. options go before those that every disk has. It does not
// wait for the disk: Sync f. Problems: Unavailable disk.full, disk.no_mkfs, disk.mkfs.
func Format(ctx context.Context, f *os.File, label string, options ...string) error {
	mkfs, err := findMkfs()
	if err != nil {
		return err
	}
	return format(ctx, mkfs, f, label, options...)
}

func format(ctx context.Context, mkfs string, f *os.File, label string, options ...string) error {
	st, err := StatFile(f)
	if err != nil {
		return err
	}
	// Lazy tables and journal leave the file sparse; the root's own blocks are not
	// reserved, since root is all there is in the guest.
	args := append(slices.Clone(options), "-q", "-F", "-m", "0", "-L", label,
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1")
	if st.Size < smallDisk {
		// A small journal, or nothing would be left for files.
		args = append(args, "-J", "size=4")
	}
	args = append(args, FileArg)
	ctx, cancel := context.WithTimeout(ctx, mkfsTimeout)
	defer cancel()
	_, words, err := RunOn(ctx, f, mkfs, args...)
	if err == nil {
		return nil
	}
	if strings.Contains(words, "No space left") {
		return full(f.Name()).WithCause(unix.ENOSPC)
	}
	return problem.New(problem.Unavailable, "disk.mkfs", "mkfs.ext4 failed: %s", words).WithCause(err).
		WithHint("see whether the disk of %s has room and is writable", f.Name())
}

//go:build linux

package boottest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/blixard/blixard/internal/filelock"
)

const (
	// debianTimeout bounds the making of the root: 15 seconds where packages come fast.
	debianTimeout = 10 * time.Minute
	// debianBytesMax is the largest root file system taken; it has 200 MiB.
	debianBytesMax = 2 << 30
	// debianSteps is raised whenever the way from the inputs to the image changes.
	debianSteps = 1
)

// debianArgs are mmdebstrap's: the smallest Debian that boots by systemd. Masked is what waits for devices
// that a microVM does not have, or writes what nobody reads.
var debianArgs = []string{
	"--variant=minbase", "--include=systemd-sysv,udev", "--format=tar", "--quiet",
	"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
	`--customize-hook=rm -f "$1"/usr/sbin/policy-rc.d`,
	`--customize-hook=echo 0123456789abcdef0123456789abcdef >"$1"/etc/machine-id`,
	`--customize-hook=systemctl --root="$1" mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_reap.service`,
}

// DebianRoot gives the path of an ext4 image of a Debian with systemd. It is made once, by mmdebstrap from
// this machine's package sources, and kept below BLIXARD_CACHE_DIR by the digest of what it is made of.
func DebianRoot(t testing.TB) string {
	t.Helper()
	cache := os.Getenv("BLIXARD_CACHE_DIR")
	if cache == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, "blixard")
	}
	sources, err := debianSources()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sources)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s\x00%s", debianSteps, strings.Join(debianArgs, "\x00"), text))
	path := filepath.Join(cache, "debian-root", hex.EncodeToString(sum[:16])+".ext4")
	ctx, cancel := context.WithTimeout(context.Background(), debianTimeout)
	defer cancel()
	release, err := filelock.Acquire(ctx, path+".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		err = makeDebianRoot(ctx, sources, path)
		if err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

// debianSources finds where this machine has Debian's own packages from.
func debianSources() (string, error) {
	paths := []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"}
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("none of %v is there", paths)
}

func makeDebianRoot(ctx context.Context, sources, path string) error {
	var archive, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(debianArgs, "bookworm", "-", sources)...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &archive, &errs, time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap (apt-get install mmdebstrap): %w\n%s", err, errs.String())
	}
	part := path + ".part"
	out, err := os.Create(part)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(part) }()
	err = tar2ext4.ConvertTarToExt4(&archive, out, tar2ext4.InlineData, tar2ext4.MaximumDiskSize(debianBytesMax))
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(part, path)
}

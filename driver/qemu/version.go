package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

const (
	// versionTimeout bounds "qemu --version": it takes 20 ms.
	versionTimeout = 10 * time.Second
	// oldestMajor and oldestMinor are Debian 12's: what the project is tested with.
	oldestMajor, oldestMinor = 7, 2
	// installHint is the way out when QEMU is missing or too old.
	installHint = "on Debian: apt-get install --no-install-recommends qemu-system-x86"
)

// Version of QEMU.
type Version struct{ Major, Minor, Micro int }

// String gives the form "7.2.22".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

func (v Version) tooOld() bool {
	return v.Major < oldestMajor || v.Major == oldestMajor && v.Minor < oldestMinor
}

var versionPattern = regexp.MustCompile(`^QEMU emulator version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:[^\d.]|$)`)

// parseVersion reads the first line of "qemu-system-x86_64 --version".
func parseVersion(out string) (Version, error) {
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		return Version{}, fmt.Errorf("no version in %.80q", out)
	}
	var v Version
	for i, to := range []*int{&v.Major, &v.Minor, &v.Micro} {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return Version{}, err
		}
		*to = n
	}
	return v, nil
}

// find gives the absolute path of the program.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		missing := problem.New(problem.Unavailable, "driver.qemu_missing", "QEMU is missing (%s)", program)
		if !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
			missing = missing.WithCause(err)
		}
		return "", missing.WithHint(installHint)
	}
	return path, nil
}

// version asks the program for its version and refuses one that is too old.
func version(ctx context.Context, path string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, code, err := runBounded(ctx, command{argv: []string{path, "--version"}})
	odd := problem.New(problem.Unavailable, "driver.qemu_odd", "%s does not tell its version", path).WithHint(installHint)
	if err != nil {
		return Version{}, odd.WithCause(err)
	}
	v, err := parseVersion(out)
	if err != nil {
		return Version{}, odd.WithCause(fmt.Errorf("exit code %d, %w", code, err))
	}
	if v.tooOld() {
		return Version{}, problem.New(problem.Unavailable, "driver.qemu_too_old",
			"QEMU %v is too old, %d.%d or newer is needed (%s)", v, oldestMajor, oldestMinor, path).WithHint(installHint)
	}
	return v, nil
}

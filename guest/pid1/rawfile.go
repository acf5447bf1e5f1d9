//go:build linux

package pid1

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What runs before the command starts reads its few small files by plain system calls: the first use
// of os.ReadFile and os.ReadDir costs an emulated guest some 10 ms, most of it for code it never
// needs again.

// smallFile bounds what readSmall reads; /proc/cmdline is the longest, at most 4 KiB.
const smallFile = 8 << 10

// readSmall reads the begin of a file, or "" when that fails.
func readSmall(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	buf := make([]byte, smallFile)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// writeSmall writes a small file that is there, such as a setting of the kernel's.
func writeSmall(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	_, err = ignoringEINTR(func() (int, error) { return unix.Write(fd, []byte(text)) })
	return err
}

// readLine is the first line of a small file, or "".
func readLine(path string) string {
	line, _, _ := strings.Cut(readSmall(path), "\n")
	return line
}

// listSmall lists the first names of a directory (about 100 of them), or nothing when that fails.
func listSmall(dir string) []string {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	buf := make([]byte, smallFile)
	n, err := unix.Getdents(fd, buf)
	if err != nil || n <= 0 {
		return nil
	}
	_, _, names := unix.ParseDirent(buf[:n], -1, nil)
	return names
}

// exists reports whether there is something at path.
func exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}

// makeDir makes a directory and its parents.
func makeDir(path string) error {
	if exists(path) {
		return nil
	}
	err := unix.Mkdir(path, 0o755)
	if err == unix.ENOENT {
		if i := strings.LastIndexByte(path, '/'); i > 0 {
			if err := makeDir(path[:i]); err != nil {
				return err
			}
			err = unix.Mkdir(path, 0o755)
		}
	}
	if err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}

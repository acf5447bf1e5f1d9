//go:build linux

package boottest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Processes gives the arguments of the processes that have something of a directory,
// by their pids: its name in their arguments, a working directory or an open file in
// it. A jailed hypervisor has only the latter.
func Processes(dir string) map[int]string {
	found := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		args, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))
		if len(args) > 0 && (strings.Contains(string(args), dir) || strings.HasPrefix(cwd, dir) || hasOpen(proc, dir)) {
			found[pid] = strings.ReplaceAll(string(args), "\x00", " ")
		}
	}
	return found
}

func hasOpen(proc, dir string) bool {
	fds, _ := os.ReadDir(filepath.Join(proc, "fd"))
	for _, fd := range fds {
		if path, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil && strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

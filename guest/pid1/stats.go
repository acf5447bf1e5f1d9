//go:build linux

package pid1

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

// userHZ is the unit of /proc/stat, the same on every Linux.
const userHZ = 100

// readStats reads the figures of this machine; what can't be read stays zero.
func readStats(proc string) wire.Stats {
	var s wire.Stats
	meminfo := fields(proc + "/meminfo")
	s.MemTotal = kib(meminfo["MemTotal:"])
	s.MemFree = kib(meminfo["MemFree:"])
	s.MemAvailable = kib(meminfo["MemAvailable:"])
	b, _ := os.ReadFile(proc + "/loadavg")
	if f := strings.Fields(string(b)); len(f) >= 4 {
		for i := range s.Load {
			s.Load[i], _ = strconv.ParseFloat(f[i], 64)
		}
	}
	s.Processes = countProcesses(proc)
	b, _ = os.ReadFile(proc + "/uptime")
	if f := strings.Fields(string(b)); len(f) >= 1 {
		up, _ := strconv.ParseFloat(f[0], 64)
		s.UptimeMS = uint64(up * 1000)
	}
	s.CPUBusyMS, s.CPUs = readCPU(proc + "/stat")
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		s.RootTotal = fs.Blocks * uint64(fs.Bsize)
		s.RootFree = fs.Bavail * uint64(fs.Bsize)
	}
	return s
}

// fields maps the first word of each line to the second.
func fields(path string) map[string]string {
	b, _ := os.ReadFile(path)
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 {
			m[f[0]] = f[1]
		}
	}
	return m
}

func kib(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 54)
	return n << 10
}

func countProcesses(proc string) uint32 {
	d, err := os.Open(proc)
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var n uint32
	for _, name := range names {
		if name[0] >= '1' && name[0] <= '9' {
			n++
		}
	}
	return n
}

// readCPU adds up user, nice, system, irq, softirq and steal; idle and iowait are not busy.
func readCPU(path string) (busyMS uint64, cpus uint32) {
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		for _, i := range []int{1, 2, 3, 6, 7, 8} {
			n, _ := strconv.ParseUint(f[i], 10, 54)
			busyMS += n * (1000 / userHZ)
		}
	}
	return busyMS, cpus
}

//go:build linux

package pid1

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// processesMax bounds the processes that are looked at: 4,096 take an emulated guest about a second.
	processesMax = 4096
	// kthreadd is the parent of the kernel's own threads, where they are to be seen.
	kthreadd = 2
)

// topProcesses lists the processes that used the processor most, the busiest first, without the kernel's own.
func topProcesses(proc, root string) []wire.Process {
	d, err := os.Open(proc)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(processesMax)
	var list []wire.Process
	for _, name := range names {
		if pid, ok := parseID(name); ok {
			if p, ok := readProcess(proc+"/"+name, int(pid)); ok {
				list = append(list, p)
			}
		}
	}
	slices.SortFunc(list, func(a, b wire.Process) int {
		return cmp.Or(cmp.Compare(b.CPUMS, a.CPUMS), cmp.Compare(a.PID, b.PID))
	})
	users := map[uint32]string{}
	top := make([]wire.Process, 0, wire.TopProcesses)
	for _, p := range list[:min(len(list), 2*wire.TopProcesses)] { // some may have ended by now
		if p.User, p.Command = ownerOf(proc, root, p.PID, users), commandOf(proc, &p); p.User != "" && len(top) < cap(top) {
			top = append(top, p)
		}
	}
	return top
}

// readProcess reads a process's figures and, as its Command, its short name.
func readProcess(dir string, pid int) (wire.Process, bool) {
	// PID (NAME) STATE PPID and so on; the name may hold anything.
	line := readLine(dir + "/stat")
	begin, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if begin < 0 || end < begin {
		return wire.Process{}, false
	}
	const ppid, utime, stime, rss = 1, 11, 12, 21
	f := strings.Fields(line[end+1:])
	if len(f) <= rss || f[0] == "Z" || pid == kthreadd && f[ppid] == "0" || f[ppid] == strconv.Itoa(kthreadd) {
		return wire.Process{}, false
	}
	user, _ := strconv.ParseUint(f[utime], 10, 48)
	system, _ := strconv.ParseUint(f[stime], 10, 48)
	pages, _ := strconv.ParseUint(f[rss], 10, 48)
	return wire.Process{
		PID: pid, CPUMS: (user + system) * (1000 / userHZ), RSS: pages * uint64(os.Getpagesize()), Command: line[begin+1 : end],
	}, true
}

// ownerOf names the user that a process runs as; nothing if it has ended.
func ownerOf(proc, root string, pid int, users map[uint32]string) string {
	var st unix.Stat_t
	if unix.Stat(proc+"/"+strconv.Itoa(pid), &st) != nil {
		return ""
	}
	name, known := users[st.Uid]
	if !known {
		number := strconv.Itoa(int(st.Uid))
		if a, err := lookupUser(root, number); err == nil {
			name = a.name
		}
		if name == "" {
			name = number
		}
		users[st.Uid] = name
	}
	return name
}

// commandOf is a process's command line, or its name in brackets if it has none.
func commandOf(proc string, p *wire.Process) string {
	line := strings.TrimRight(readSmall(proc+"/"+strconv.Itoa(p.PID)+"/cmdline"), "\x00")
	if line == "" {
		line = "[" + p.Command + "]"
	}
	return wire.CleanText(strings.ReplaceAll(line, "\x00", " "), wire.MaxCommand)
}

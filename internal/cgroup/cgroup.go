package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The controllers that are used.
const (
	memory = "memory"
	cpu    = "cpu"
	pids   = "pids"
)

var controllers = []string{cpu, memory, pids}

const (
	// own is the directory below which all groups are made.
	own = "blixard"
	// periodMicroseconds of the processor's quota.
	periodMicroseconds = 100_000
	// removeTries and removePause bound how long a group is awaited whose last
	// process has just ended.
	removeTries = 100
	removePause = 10 * time.Millisecond
	// fileBytesMax of a file of the kernel that is read.
	fileBytesMax = 1 << 20
)

// Limits of a group; 0 means no bound.
type Limits struct {
	MemoryBytes     uint64
	PidsMax         uint32
	CPUQuotaPercent uint32
}

// hierarchy is where a controller is.
type hierarchy struct {
	path string // of the mount
	v2   bool
}

// Tree is the host's hierarchies and a scope of groups in them. It is safe for
// concurrent use by different groups.
//
// Invariant: as long as it may have groups, its scope is locked, so that nobody
// takes them for strays.
type Tree struct {
	scope string
	of    map[string]hierarchy

	mu   sync.Mutex
	lock *os.File // nil before the first group
}

// Open looks at the host. A host without control groups is no error: its groups
// bound nothing and say so. scope is a plain file name.
func Open(scope string) (*Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	of, err := parseMounts(f)
	if err != nil {
		return nil, err
	}
	return &Tree{scope: scope, of: of}, nil
}

// parseMounts finds the hierarchies in a mountinfo.
func parseMounts(r io.Reader) (map[string]hierarchy, error) {
	of, v2 := map[string]hierarchy{}, ""
	s := bufio.NewScanner(r)
	for s.Scan() {
		// "36 25 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
		before, after, found := strings.Cut(s.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !found || len(head) < 5 || len(tail) < 3 {
			continue
		}
		switch tail[0] {
		case "cgroup":
			for o := range strings.SplitSeq(tail[2], ",") {
				if _, known := of[o]; slices.Contains(controllers, o) && !known {
					of[o] = hierarchy{path: head[4]}
				}
			}
		case "cgroup2":
			if v2 == "" {
				v2 = head[4]
			}
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if v2 == "" {
		return of, nil
	}
	has, err := readFile(filepath.Join(v2, "cgroup.controllers"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, c := range strings.Fields(has) {
		if _, known := of[c]; slices.Contains(controllers, c) && !known {
			of[c] = hierarchy{path: v2, v2: true}
		}
	}
	return of, nil
}

// Group is a control group with limits, one directory in each hierarchy.
type Group struct{ dirs []string }

// Make makes a group, or takes over one of that name that has no process. name is
// a plain file name. It gives what of the limits the host can't hold. On an error
// nothing is left.
func (t *Tree) Make(name string, l Limits) (*Group, []string, error) {
	if err := t.hold(); err != nil {
		return nil, nil, err
	}
	g := &Group{}
	var notices []string
	for _, c := range controllers {
		files := settings(c, t.of[c].v2, l)
		if len(files) == 0 {
			continue
		}
		h, found := t.of[c]
		if !found {
			notices = append(notices, "no controller "+c)
			continue
		}
		dir, err := t.enter(h, c, name)
		if unavailable(err) {
			notices = append(notices, fmt.Sprintf("controller %s: %v", c, err))
			continue
		}
		if err != nil {
			return nil, nil, errors.Join(err, g.Remove())
		}
		if !slices.Contains(g.dirs, dir) {
			g.dirs = append(g.dirs, dir)
		}
		if err := set(dir, files); err != nil {
			return nil, nil, errors.Join(err, g.Remove())
		}
	}
	return g, notices, nil
}

// unavailable tells whether a controller can't be used here: for want of rights,
// or because the parent group does not hand it on (one of version 2 in a
// container, which has processes of its own).
func unavailable(err error) bool {
	for _, e := range []error{fs.ErrPermission, unix.EROFS, unix.EBUSY, unix.EOPNOTSUPP, unix.ENOENT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// enter makes the directories of a group in one hierarchy.
func (t *Tree) enter(h hierarchy, controller, name string) (string, error) {
	dir := h.path
	for _, step := range []string{own, t.scope, name} {
		if h.v2 {
			// A controller works in a group when its parent says so.
			if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller); err != nil {
				return "", err
			}
		}
		dir = filepath.Join(dir, step)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return dir, nil
}

// setting is a file of a group and its content.
type setting struct {
	file, value string
	// optional files are there on some hosts only.
	optional bool
}

// settings of one controller, in the order of writing.
func settings(controller string, v2 bool, l Limits) []setting {
	bytes := strconv.FormatUint(l.MemoryBytes, 10)
	quota := strconv.FormatUint(uint64(l.CPUQuotaPercent)*periodMicroseconds/100, 10)
	period := strconv.Itoa(periodMicroseconds)
	switch {
	case controller == memory && l.MemoryBytes == 0, controller == pids && l.PidsMax == 0, controller == cpu && l.CPUQuotaPercent == 0:
		return nil
	case controller == memory && v2:
		return []setting{{"memory.max", bytes, false}, {"memory.swap.max", "0", true}, {"memory.oom.group", "1", true}}
	case controller == memory:
		return []setting{
			{"memory.limit_in_bytes", bytes, false}, {"memory.memsw.limit_in_bytes", bytes, true}, {"memory.swappiness", "0", true},
		}
	case controller == pids:
		return []setting{{"pids.max", strconv.FormatUint(uint64(l.PidsMax), 10), false}}
	case v2:
		return []setting{{"cpu.max", quota + " " + period, false}}
	}
	return []setting{{"cpu.cfs_period_us", period, false}, {"cpu.cfs_quota_us", quota, false}}
}

func set(dir string, files []setting) error {
	for _, s := range files {
		err := write(filepath.Join(dir, s.file), s.value)
		if s.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Add moves a process and all its threads into the group. What it has forked
// before stays outside, as does the memory it has by then. It is no error when the
// process has ended.
func (g *Group) Add(pid int) error {
	for _, dir := range g.dirs {
		if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// OOMKills tells how many processes the kernel killed because the group had no
// memory left.
func (g *Group) OOMKills() uint64 {
	for _, dir := range g.dirs {
		for _, name := range []string{"memory.oom_control", "memory.events"} {
			text, err := readFile(filepath.Join(dir, name))
			if err != nil {
				continue // of another controller or version
			}
			for line := range strings.Lines(text) {
				if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" {
					n, _ := strconv.ParseUint(f[1], 10, 64)
					return n
				}
			}
		}
	}
	return 0
}

// Paths gives the directories of the group.
func (g *Group) Paths() []string { return slices.Clone(g.dirs) }

// Remove removes the group. A process in it is killed. It is no error when the
// group is gone.
func (g *Group) Remove() error {
	var errs []error
	for _, dir := range g.dirs {
		errs = append(errs, remove(dir))
	}
	return errors.Join(errs...)
}

// lockPlace gives the directory of the scopes that are locked; "" without any
// hierarchy.
func (t *Tree) lockPlace() string {
	for _, c := range controllers {
		if h, found := t.of[c]; found {
			return filepath.Join(h.path, own)
		}
	}
	return ""
}

// hold locks the scope, once. Where it can't be made there will be no groups
// either.
func (t *Tree) hold() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	place := t.lockPlace()
	if t.lock != nil || place == "" {
		return nil
	}
	dir := filepath.Join(place, t.scope)
	for {
		err := os.MkdirAll(dir, 0o755)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
			return nil
		}
		if err != nil {
			return err
		}
		f, err := lockDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was swept just now
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", dir, err)
		}
		t.lock = f
		return nil
	}
}

// lockDir locks a directory until it is closed. It fails with fs.ErrNotExist when
// it was removed meanwhile.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var had, has os.FileInfo
		if had, err = f.Stat(); err == nil {
			if has, err = os.Stat(dir); err == nil && !os.SameFile(had, has) {
				err = fs.ErrNotExist
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Sweep removes the groups of the scope that an earlier life left, and those of
// other scopes that nobody holds, and kills what is in them.
func (t *Tree) Sweep() error {
	errs := []error{t.sweep(t.scope)}
	place := t.lockPlace()
	if place == "" {
		return nil
	}
	scopes, err := os.ReadDir(place)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, s := range scopes {
		if !s.IsDir() || s.Name() == t.scope {
			continue
		}
		f, err := lockDir(filepath.Join(place, s.Name()))
		if err != nil {
			continue // another one's, or it is gone
		}
		errs = append(errs, t.sweep(s.Name()), f.Close())
	}
	return errors.Join(errs...)
}

// sweep removes a scope with all its groups.
func (t *Tree) sweep(scope string) error {
	var errs []error
	for _, h := range t.of {
		dir := filepath.Join(h.path, own, scope)
		groups, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		for _, g := range groups {
			if g.IsDir() {
				errs = append(errs, remove(filepath.Join(dir, g.Name())))
			}
		}
		errs = append(errs, remove(dir))
	}
	return errors.Join(errs...)
}

// Close gives the scope free and removes its own directories, if no group is left
// in them.
func (t *Tree) Close() error {
	for _, h := range t.of {
		// Other scopes may be beside it.
		_ = unix.Rmdir(filepath.Join(h.path, own, t.scope))
		_ = unix.Rmdir(filepath.Join(h.path, own))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock == nil {
		return nil
	}
	return t.lock.Close()
}

func remove(dir string) error {
	for try := 0; ; try++ {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || try == removeTries {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
		if err := kill(dir); err != nil {
			return err
		}
		t := time.NewTimer(removePause)
		<-t.C
	}
}

// kill ends the processes of a group.
func kill(dir string) error {
	list, err := readFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range strings.Fields(list) {
		pid, err := strconv.Atoi(s)
		if err != nil || pid <= 1 || pid == os.Getpid() { // 0 is a process of another namespace
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %d of %s: %w", pid, dir, err)
		}
	}
	return nil
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, fileBytesMax))
	return string(b), err
}

// write writes to a file that must be there; the kernel takes a value by one call.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMounts(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte("cpuset cpu io memory hugetlb pids\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v2 := "40 25 0:31 / " + dir + " rw - cgroup2 cgroup2 rw\n"
	v1 := "36 25 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n" +
		"37 25 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup none rw,cpuacct,cpu\n"
	other := "1 0 8:1 / / rw - ext4 /dev/sda1 rw,memory\nnonsense\n\n1 2 3\n"
	for name, tc := range map[string]struct {
		mounts string
		want   map[string]hierarchy
	}{
		"none":    {other, map[string]hierarchy{}},
		"1":       {other + v1, map[string]hierarchy{memory: {path: "/sys/fs/cgroup/memory"}, cpu: {path: "/sys/fs/cgroup/cpu,cpuacct"}}},
		"2":       {v2, map[string]hierarchy{memory: {dir, true}, cpu: {dir, true}, pids: {dir, true}}},
		"1 and 2": {v2 + v1, map[string]hierarchy{memory: {path: "/sys/fs/cgroup/memory"}, cpu: {path: "/sys/fs/cgroup/cpu,cpuacct"}, pids: {dir, true}}},
		"empty 2": {strings.ReplaceAll(v2, dir, filepath.Join(dir, "none")), map[string]hierarchy{}},
	} {
		got, err := parseMounts(strings.NewReader(tc.mounts))
		if err != nil || fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestSettings(t *testing.T) {
	l := Limits{MemoryBytes: 5 << 20, PidsMax: 7, CPUQuotaPercent: 150}
	var got []string
	for _, v2 := range []bool{false, true} {
		for _, c := range controllers {
			for _, s := range settings(c, v2, l) {
				got = append(got, s.file+"="+s.value)
			}
			if s := settings(c, v2, Limits{}); s != nil {
				t.Errorf("%s without a bound: %v", c, s)
			}
		}
	}
	want := []string{
		"cpu.cfs_period_us=100000", "cpu.cfs_quota_us=150000",
		"memory.limit_in_bytes=5242880", "memory.memsw.limit_in_bytes=5242880", "memory.swappiness=0", "pids.max=7",
		"cpu.max=150000 100000", "memory.max=5242880", "memory.swap.max=0", "memory.oom.group=1", "pids.max=7",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nnot\n%q", got, want)
	}
}

// TestVersion2 over files that stand for the kernel's.
func TestVersion2(t *testing.T) {
	root := t.TempDir()
	dir := root
	for _, name := range []string{own, "scope", "a"} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"cpu.max": "50000 100000", "memory.max": "1048576", "memory.oom.group": "1", "pids.max": "3", "cgroup.procs": "123",
		"memory.events": "low 0\noom 2\noom_kill 2\n",
	}
	for f := range files {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(map[bool]string{true: files[f]}[f == "memory.events"]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := hierarchy{root, true}
	tree := &Tree{scope: "scope", of: map[string]hierarchy{memory: h, cpu: h, pids: h}}
	g, notices, err := tree.Make("a", Limits{1 << 20, 3, 50})
	if err != nil || len(notices) != 0 || !slices.Equal(g.Paths(), []string{dir}) {
		t.Fatalf("%v, %v, %v", g, notices, err)
	}
	if err := g.Add(123); err != nil {
		t.Fatal(err)
	}
	for f, want := range files {
		if got, err := readFile(filepath.Join(dir, f)); err != nil || got != want {
			t.Errorf("%s: %q, %v", f, got, err)
		}
	}
	if got, err := readFile(filepath.Join(root, own, "scope", "cgroup.subtree_control")); err != nil || !strings.HasPrefix(got, "+pids") {
		t.Errorf("%q, %v", got, err)
	}
	if n := g.OOMKills(); n != 2 {
		t.Errorf("%d kills", n)
	}
	if err := os.Remove(filepath.Join(dir, "pids.max")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tree.Make("a", Limits{PidsMax: 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestMissing is told and is no failure.
func TestMissing(t *testing.T) {
	tree := &Tree{scope: "scope", of: map[string]hierarchy{}}
	g, notices, err := tree.Make("a", Limits{1 << 20, 3, 50})
	if err != nil || len(notices) != 3 || len(g.Paths()) != 0 {
		t.Errorf("%v, %v, %v", g, notices, err)
	}
	if err := errors.Join(g.Add(os.Getpid()), g.Remove(), tree.Sweep()); err != nil || g.OOMKills() != 0 {
		t.Error(err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
}

// TestRealGroups on a host that has some.
func TestRealGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root can make control groups: run the tests as root")
	}
	tree, err := Open(fmt.Sprintf("test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}()
	if len(tree.of) == 0 {
		t.Fatal("the host has no control groups")
	}
	sleep := func() *exec.Cmd {
		cmd := exec.Command("/bin/sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	var groups []*Group
	var sleeps []*exec.Cmd
	for _, name := range []string{"a", "b"} {
		g, notices, err := tree.Make(name, Limits{64 << 20, 10, 100})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v, %v", g.Paths(), notices)
		s := sleep()
		if err := g.Add(s.Process.Pid); err != nil {
			t.Fatal(err)
		}
		groups, sleeps = append(groups, g), append(sleeps, s)
		go func() { _ = s.Wait() }() // so that its group can be removed
	}
	// One is removed as its own, the other as a stray.
	if err := errors.Join(groups[0].Remove(), groups[0].Remove(), tree.Sweep()); err != nil {
		t.Fatal(err)
	}
	for i, g := range groups {
		for _, dir := range g.Paths() {
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left: %v", dir, err)
			}
		}
		if err := unix.Kill(sleeps[i].Process.Pid, 0); err == nil {
			if s, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", sleeps[i].Process.Pid)); err == nil && !strings.Contains(string(s), " Z ") {
				t.Errorf("process %d is left: %s", sleeps[i].Process.Pid, s)
			}
		}
	}
	if err := groups[0].Add(1 << 22); err == nil {
		t.Error("a group that is gone took a process")
	}
}

// TestScopes: what another one holds is left alone, what nobody holds is removed.
func TestScopes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root can make control groups: run the tests as root")
	}
	open := func(name string) *Tree {
		tree, err := Open(fmt.Sprintf("test-%d-%s", os.Getpid(), name))
		if err != nil {
			t.Fatal(err)
		}
		if len(tree.of) == 0 {
			t.Fatal("the host has no control groups")
		}
		return tree
	}
	held, left, next := open("held"), open("left"), open("next")
	var dirs []string
	for _, tree := range []*Tree{held, left} {
		g, _, err := tree.Make("a", Limits{PidsMax: 3})
		if err != nil || len(g.Paths()) != 1 {
			t.Fatalf("%v, %v", g, err)
		}
		dirs = append(dirs, g.Paths()...)
	}
	// As the end of a process does.
	if err := left.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.Sweep(); err != nil {
		t.Fatal(err)
	}
	for i, there := range []bool{true, false} {
		for _, dir := range []string{dirs[i], filepath.Dir(dirs[i])} {
			if _, err := os.Stat(dir); (err == nil) != there {
				t.Errorf("%s: %v", dir, err)
			}
		}
	}
	if err := errors.Join(held.Sweep(), held.Close(), next.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(dirs[0])); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the scope is left: %v", err)
	}
}

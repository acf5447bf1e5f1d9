package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
)

// users counts the users of jails in the tests.
var users atomic.Uint32

const firstUser = 600_000

// jailedRequest is for a process in a jail of its own.
func jailedRequest(t *testing.T, id string, argv ...string) *blixardv1.SpawnRequest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("only root can give a process another user: run the tests as root")
	}
	r := request(t, id, argv...)
	uid := firstUser + users.Add(1)
	r.Jail = &blixardv1.Jail{Uid: uid, Gid: uid}
	return r
}

// consoleOf runs a request to its end and gives what it wrote to the console.
func consoleOf(t *testing.T, c *Client, r *blixardv1.SpawnRequest) (string, *blixardv1.SupervisedProcess) {
	t.Helper()
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
	p, err := c.Wait(t.Context(), driver.LaneShared, r.GetProcessId())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(r.GetLogPath())
	if err != nil {
		t.Fatal(err)
	}
	return string(b), p
}

// TestJailedProcessSeesNothing but its program, its libraries and what it was
// given.
func TestJailedProcessSeesNothing(t *testing.T) {
	c, _ := testClient(t)
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := jailedRequest(t, "a.1", "/bin/sh", "-c", `
		echo dir=$PWD root=$(echo /*) dev=$(echo /dev/*) etc=$(echo /etc/*)
		for f in /etc/passwd `+canary+` /bin/ls /proc/1/environ /sys/kernel; do
			if [ -e $f ]; then echo seen $f; fi
		done
		echo x >/dev/null && echo null
		read line </proc/self/fd/3 && echo given $line
		(echo x >/proc/self/fd/3) 2>/dev/null || echo not written
		(: >/new) 2>/dev/null || echo not made
		(: >/dev/kvm) 2>/dev/null || echo no kvm`)
	given := filepath.Join(r.WorkingDir, "given")
	if err := os.WriteFile(given, []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Files = []*blixardv1.SpawnFile{{Path: given, ReadOnly: true}}
	got, p := consoleOf(t, c, r)
	want := "null\ngiven text\nnot written\nnot made\nno kvm\n"
	first, rest, _ := strings.Cut(got, "\n")
	if rest != want || !regexp.MustCompile(`^dir=/ root=(/(bin|dev|etc|lib|lib64|proc|usr) ?)+ dev=/dev/null /dev/urandom etc=/etc/(ld.so.cache|\*)$`).MatchString(first) {
		t.Errorf("%s; %v", got, p)
	}
	var st unix.Stat_t
	if err := unix.Stat(given, &st); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%d:%d", st.Dev, st.Ino); p.GetMetadata()[driver.MetadataFiles] != want || p.GetMetadata()["k"] != "v" {
		t.Errorf("files %q, not %q", p.GetMetadata()[driver.MetadataFiles], want)
	}
	if notice, set := p.GetMetadata()[driver.MetadataJail]; !set || notice != "" {
		t.Errorf("notice %q", notice)
	}
}

func TestJailedProcessMayReadMore(t *testing.T) {
	c, _ := testClient(t)
	r := jailedRequest(t, "a.1", "/bin/sh", "-c", `cd "$0" && read x <dir/file && echo $x; (exec 3<>/dev/kvm) 2>/dev/null && echo kvm`)
	dir := t.TempDir()
	r.Argv = append(r.Argv, dir)
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dir", "file"), []byte("more\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.Jail.ReadPaths = []string{filepath.Join(dir, "dir", "file"), dir, "/bin/sh"}
	want := "more\n"
	if fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		r.Jail.ReadPaths = append(r.Jail.ReadPaths, "/dev/kvm")
		want += "kvm\n"
	}
	if got, p := consoleOf(t, c, r); got != want {
		t.Errorf("%q; %v", got, p)
	}
}

// proc reads a file of a process below /proc.
func procFile(t *testing.T, pid uint32, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// field finds a line of a status file.
func field(t *testing.T, status, name string) string {
	t.Helper()
	for line := range strings.Lines(status) {
		if v, found := strings.CutPrefix(line, name+":"); found {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	t.Fatalf("no %s in %s", name, status)
	return ""
}

func TestJailCensus(t *testing.T) {
	c, dir := launchingClient(t)
	r := jailedRequest(t, "a.1", "/bin/sleep", "1000")
	r.Jail.MemoryBytes, r.Jail.PidsMax, r.Jail.CpuQuotaPercent = 64<<20, 9, 150
	r.Listeners = []string{"s"}
	resp, err := c.Spawn(t.Context(), driver.LaneShared, r)
	if err != nil {
		t.Fatal(err)
	}
	pid, uid := resp.GetProcess().GetPid(), fmt.Sprint(r.GetJail().GetUid())
	status := procFile(t, pid, "status")
	for name, want := range map[string]string{
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{uid, uid, uid, uid}, " "), "Groups": "",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
	} {
		if got := field(t, status, name); got != want {
			t.Errorf("%s: %s, not %s", name, got, want)
		}
	}
	for _, ns := range []string{"mnt", "ipc", "uts", "net"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns)); err != nil || its == own {
			t.Errorf("namespace %s: %s, %v", ns, its, err)
		}
	}
	if adj := strings.TrimSpace(procFile(t, pid, "oom_score_adj")); adj != "500" {
		t.Errorf("oom_score_adj %s", adj)
	}
	limits := procFile(t, pid, "limits")
	for _, want := range []string{`Max core file size +0 +0 `, `Max open files +4096 +4096 `, `Max locked memory +0 +0 `, `Max processes +9 +9 `} {
		if !regexp.MustCompile(want).MatchString(limits) {
			t.Errorf("no %q in %s", want, limits)
		}
	}
	scope := "/blixard/" + groupScope(driver.LaneShared, lanePaths(dir, driver.LaneShared).dir) + "/vm-a.1"
	groups := procFile(t, pid, "cgroup")
	var paths []string
	for file, want := range map[string]string{
		"memory/memory.limit_in_bytes": fmt.Sprint(64 << 20), "pids/pids.max": "9", "cpu/cpu.cfs_quota_us": "150000",
	} {
		controller, name, _ := strings.Cut(file, "/")
		path := filepath.Join("/sys/fs/cgroup", controller, scope)
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", controller)); err != nil {
			continue // a host of version 2 or without
		}
		paths = append(paths, path)
		if b, err := os.ReadFile(filepath.Join(path, name)); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %s, %v", file, b, err)
		}
		if !regexp.MustCompile(`(?m):([a-z,]+,)?` + controller + `(,[a-z,]+)?:.*` + regexp.QuoteMeta(scope) + `$`).MatchString(groups) {
			t.Errorf("not in the group of %s: %s", controller, groups)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || len(fds) != 5 {
		t.Errorf("descriptors %v, %v", fds, err)
	}
	if err := c.Signal(t.Context(), driver.LaneShared, "a.1", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
	for _, p := range append(paths, filepath.Join(r.WorkingDir, "s")) {
		if _, err := os.Stat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
}

// groupsOf finds the control groups of a lane's processes, of either version.
func groupsOf(t *testing.T, lane driver.Lane, dir, name string) []string {
	t.Helper()
	var all []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, err := filepath.Glob(filepath.Join(root, "blixard", groupScope(lane, lanePaths(dir, lane).dir), name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// TestHostNetwork is for those that ask for it.
func TestHostNetwork(t *testing.T) {
	c, _ := testClient(t)
	r := jailedRequest(t, "a.1", "/bin/sleep", "1000")
	r.Jail.HostNetwork = true
	resp, err := c.Spawn(t.Context(), driver.LaneShared, r)
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", resp.GetProcess().GetPid())); err != nil || its != own {
		t.Errorf("%s, %v", its, err)
	}
}

func TestUserIsOfOneProcess(t *testing.T) {
	c, _ := testClient(t)
	r := jailedRequest(t, "a.1", "/bin/sleep", "1000")
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
	other := jailedRequest(t, "b.1", "/bin/true")
	other.Jail.Uid = r.GetJail().GetUid()
	if _, err := c.Spawn(t.Context(), driver.LaneShared, other); !problem.HasCode(err, "supervisor.uid_taken") {
		t.Fatalf("%v", err)
	}
	if err := c.Signal(t.Context(), driver.LaneShared, "a.1", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Spawn(t.Context(), driver.LaneShared, other); err != nil {
		t.Fatal(err)
	}
}

// TestJailedProcessesDieWithTheirSupervisor: the change of the user takes nothing
// from PDEATHSIG, on either lane, killed or stopped beyond its lease.
func TestJailedProcessesDieWithTheirSupervisor(t *testing.T) {
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		for _, how := range []string{"killed", "stopped"} {
			if lane == driver.LaneShared && how == "stopped" {
				continue // that lane has no deadline
			}
			t.Run(string(lane)+" "+how, func(t *testing.T) {
				c, dir := launchingClient(t)
				r := jailedRequest(t, "a.1", "/bin/sleep", "1000")
				deadline := boottime.Now().Add(2 * time.Second)
				if lane == driver.LaneExclusive {
					if _, err := c.Renew(t.Context(), deadline); err != nil {
						t.Fatal(err)
					}
				}
				resp, err := c.Spawn(t.Context(), lane, r)
				if err != nil {
					t.Fatal(err)
				}
				h, err := process.Open(identity(resp.GetProcess()))
				if err != nil {
					t.Fatal(err)
				}
				defer h.Close()
				if how == "killed" {
					endSupervisor(t, dir, lane)
					awaitEnd(t, h)
				} else {
					rec, err := ReadRecord(dir, lane)
					if err != nil {
						t.Fatal(err)
					}
					sup, err := process.Open(rec.Identity())
					if err != nil {
						t.Fatal(err)
					}
					defer sup.Close()
					if err := sup.Signal(unix.SIGSTOP); err != nil {
						t.Fatal(err)
					}
					awaitEnd(t, h)
					awaitEnd(t, sup)
					if late := boottime.Now().Sub(deadline); late < 0 || late > time.Second {
						t.Errorf("it ended %v after the deadline", late)
					}
				}
				if left := groupsOf(t, lane, dir, "vm-a.1"); len(left) != 0 {
					t.Errorf("groups without limits were made: %v", left)
				}
			})
		}
	}
}

// TestStrayGroupsAreSwept at the start of the next supervisor.
func TestStrayGroupsAreSwept(t *testing.T) {
	c, dir := launchingClient(t)
	r := jailedRequest(t, "a.1", "/bin/sleep", "1000")
	r.Jail.PidsMax = 5
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
	if made := groupsOf(t, driver.LaneShared, dir, "vm-a.1"); len(made) != 1 {
		t.Fatalf("%v", made)
	}
	endSupervisor(t, dir, driver.LaneShared)
	if left := groupsOf(t, driver.LaneShared, dir, "vm-a.1"); len(left) != 1 {
		t.Fatalf("%v", left)
	}
	if _, err := c.Spawn(t.Context(), driver.LaneShared, request(t, "b.1", "/bin/true")); err != nil {
		t.Fatal(err)
	}
	if left := groupsOf(t, driver.LaneShared, dir, "vm-a.1"); len(left) != 0 {
		t.Fatalf("%v", left)
	}
}

// TestOutOfMemory: what is beyond its own limit dies, and nobody else.
func TestOutOfMemory(t *testing.T) {
	c, _ := testClient(t)
	other := jailedRequest(t, "other.1", "/bin/sleep", "1000")
	if _, err := c.Spawn(t.Context(), driver.LaneShared, other); err != nil {
		t.Fatal(err)
	}
	r := jailedRequest(t, "greedy.1", "/usr/bin/sort", "-S", "600M", "/dev/urandom")
	r.Jail.MemoryBytes = 32 << 20
	if _, err := c.Spawn(t.Context(), driver.LaneShared, r); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	p, err := c.Wait(ctx, driver.LaneShared, "greedy.1")
	if err != nil {
		t.Fatal(err)
	}
	if p.GetExit().GetSignal() != uint32(unix.SIGKILL) || !strings.Contains(p.GetExit().GetStderr(), "more memory than its jail allows") {
		t.Errorf("%v", p)
	}
	ps, err := c.List(t.Context(), driver.LaneShared)
	if err != nil || len(ps) != 2 || ps[1].GetExited() {
		t.Errorf("%v, %v", ps, err)
	}
}

// TestForkBomb stays in its jail.
func TestForkBomb(t *testing.T) {
	c, _ := testClient(t)
	r := jailedRequest(t, "a.1", "/bin/sh", "-c", `f() { f | f & }; read go; f; echo full; while :; do :; done`)
	r.Jail.PidsMax, r.Jail.CpuQuotaPercent = 20, 50
	resp, err := c.Spawn(t.Context(), driver.LaneShared, r)
	if err != nil {
		t.Fatal(err)
	}
	sh := openConsole(t, c, "a.1", true, false)
	sh.seat(t)
	sh.write(t, "\n")
	sh.expect(t, "full\n")
	uid := fmt.Sprint(r.GetJail().GetUid())
	if n := countOf(t, uid); n > 20 {
		t.Errorf("%d processes", n)
	}
	if err := c.Signal(t.Context(), driver.LaneShared, "a.1", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), driver.LaneShared, "a.1"); err != nil {
		t.Fatal(err)
	}
	if n := countOf(t, uid); n != 0 {
		t.Errorf("%d processes are left of %v", n, resp)
	}
}

// countOf counts the processes of a user that are not yet dead.
func countOf(t *testing.T, uid string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && bytes.Contains(b, []byte("\nUid:\t"+uid+"\t")) && !bytes.Contains(b, []byte("State:\tZ")) {
			n++
		}
	}
	return n
}

// TestJailFails names the step and leaves nothing.
func TestJailFails(t *testing.T) {
	c, _ := testClient(t)
	for name, tc := range map[string]struct {
		change func(*blixardv1.SpawnRequest)
		step   string
	}{
		"program is a script":   {func(r *blixardv1.SpawnRequest) { r.Argv[0] = filepath.Join(r.WorkingDir, "file") }, "libraries"},
		"no program":            {func(r *blixardv1.SpawnRequest) { r.Argv[0] = "/nonexistent" }, "libraries"},
		"path is missing":       {func(r *blixardv1.SpawnRequest) { r.Jail.ReadPaths = []string{"/nonexistent"} }, "read-paths"},
		"path is a device":      {func(r *blixardv1.SpawnRequest) { r.Jail.ReadPaths = []string{"/dev/zero"} }, "read-paths"},
		"less than it has used": {func(r *blixardv1.SpawnRequest) { r.Jail.PidsMax = 1; r.Jail.MemoryBytes = 1 << 20 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := jailedRequest(t, fmt.Sprintf("a.%d", users.Load()), "/bin/true")
			if err := os.WriteFile(filepath.Join(r.WorkingDir, "file"), []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			r.Listeners = []string{"s"}
			tc.change(r)
			_, err := c.Spawn(t.Context(), driver.LaneShared, r)
			if tc.step == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !problem.HasCode(err, "supervisor.jail") || !strings.Contains(err.Error(), "step "+tc.step) {
				t.Fatalf("%v", err)
			}
			left, err := os.ReadDir(r.WorkingDir)
			if err != nil || len(left) != 1 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// TestManyJailsLeaveNothing: no thread, no descriptor, no group and no mount.
func TestManyJailsLeaveNothing(t *testing.T) {
	c, dir := launchingClient(t)
	round := func(i int) {
		r := jailedRequest(t, fmt.Sprintf("a.%d", i), "/bin/true")
		r.Jail.MemoryBytes, r.Jail.PidsMax, r.Listeners = 64<<20, 5, []string{"s"}
		if i%10 == 9 {
			r.Jail.ReadPaths = []string{"/nonexistent"}
			if _, err := c.Spawn(t.Context(), driver.LaneShared, r); !problem.HasCode(err, "supervisor.jail") {
				t.Fatal(err)
			}
			return
		}
		if _, p := consoleOf(t, c, r); p.GetExit().GetCode() != 0 {
			t.Fatal(p)
		}
		if err := c.Forget(t.Context(), driver.LaneShared, r.GetProcessId()); err != nil {
			t.Fatal(err)
		}
	}
	count := func(pid int, what string) int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, what))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	const warm, rounds = 10, 100
	for i := range warm {
		round(i)
	}
	rec, err := ReadRecord(dir, driver.LaneShared)
	if err != nil {
		t.Fatal(err)
	}
	fds := count(rec.PID, "fd")
	for i := range rounds {
		round(warm + i)
	}
	if n := count(rec.PID, "fd"); n > fds+2 {
		t.Errorf("%d descriptors, %d before", n, fds)
	}
	// Go keeps some threads for later.
	if n := count(rec.PID, "task"); n > 40 {
		t.Errorf("%d threads", n)
	}
	// Where a jail's root directory is built.
	if m := regexp.MustCompile(`(?m)^.* /sys .* tmpfs .*$`).FindString(procFile(t, uint32(rec.PID), "mountinfo")); m != "" {
		t.Errorf("mount %s", m)
	}
	if left := groupsOf(t, driver.LaneShared, dir, "vm-*"); len(left) != 0 {
		t.Errorf("groups %v", left)
	}
}

package daemon_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// A jailed VM of TestVMMsAreJailed.
type inmate struct {
	name string
	// user is whether its network is the hypervisor's own.
	user bool
	// volume it has, or "".
	volume string

	pid, uid string
	// own are patterns of the files that only its hypervisor may have open.
	own []string
	// groups are the directories of its control groups.
	groups []string
}

// TestVMMsAreJailed counts what the hypervisors of a node with VMs of every kind can
// do and see, before and after the daemon was killed; and what is left of their jails
// when they are gone.
func TestVMMsAreJailed(t *testing.T) {
	c, _ := startSite(t, 1)
	n := c.nodes[0]
	n.blixard("network", "create", "alone", "--type", "user")
	n.blixard("volume", "create", "d1", "--size", "64MiB")
	n.blixard("volume", "create", "d2", "--size", "64MiB")
	inmates := []*inmate{{name: "nat"}, {name: "user", user: true}, {name: "disk", volume: "d1"}, {name: "exclusive", volume: "d2"}, {name: "alone", user: true}}
	for _, i := range inmates {
		n.create(i.name, func(s *blixardv1.VMSpec) {
			if i.user {
				s.Networks = []*blixardv1.NetworkAttachment{{Network: "alone"}}
				s.Ports = []*blixardv1.PublishedPort{{HostPort: uint32(8000 + len(i.name)), GuestPort: 80, Protocol: blixardv1.Protocol_tcp}}
			}
			if i.volume != "" {
				s.Volumes = []*blixardv1.VolumeAttachment{{Volume: i.volume, Path: "/data"}}
			}
			if i.name == "exclusive" {
				s.OnNodeLoss = blixardv1.NodeLossPolicy_failover
			}
		})
	}
	for _, i := range inmates {
		n.identify(i)
	}
	n.censusOf(inmates)
	pids := n.qemus()
	n.kill9()
	n.censusOf(inmates)
	n.start()
	for _, i := range inmates {
		n.identify(i)
	}
	if got := n.qemus(); !slices.Equal(got, pids) {
		t.Errorf("hypervisors %v before the restart, %v after", pids, got)
	}
	n.censusOf(inmates)
	for _, i := range inmates {
		n.delete(i.name)
	}
	n.noTrace(inmates)
}

// identify finds a running VM's hypervisor and files.
func (n *node) identify(i *inmate) {
	n.t.Helper()
	vm := n.awaitRunning(i.name)
	i.pid = fmt.Sprint(n.qemuOf(i.name))
	i.own = []string{filepath.Join(n.data, "vms", vm.GetStatus().GetAllocationId(), "*")}
	if i.volume != "" {
		resp, err := n.client.Volumes().GetVolume(n.t.Context(), &blixardv1.GetVolumeRequest{Name: i.volume})
		if err != nil {
			n.t.Fatal(err)
		}
		i.own = append(i.own, filepath.Join(n.data, "volumes", resp.GetVolume().GetId(), "*"))
	}
}

// censusOf looks at each hypervisor from outside and by its root directory.
func (n *node) censusOf(inmates []*inmate) {
	n.t.Helper()
	if got := len(n.qemus()); got != len(inmates) {
		n.t.Fatalf("%d hypervisors of %d VMs", got, len(inmates))
	}
	seen := map[string]string{}
	// alone is that no other VM has the same.
	alone := func(i *inmate, what string) {
		if other := seen[what]; other != "" && other != i.name {
			n.t.Errorf("VMs %s and %s share %s", i.name, other, what)
		}
		seen[what] = i.name
	}
	for _, i := range inmates {
		n.censusOfRights(i)
		alone(i, "user "+i.uid)
		for _, ns := range []string{"mnt", "ipc", "uts", "net"} {
			its, err := os.Readlink(filepath.Join("/proc", i.pid, "ns", ns))
			host, herr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", n.supervisorOf(i), ns))
			shared := ns == "net" && i.user
			if err != nil || herr != nil || (its == host) != shared {
				n.t.Errorf("VM %s: its namespace %s is %s, its supervisor's %s; %v, %v", i.name, ns, its, host, err, herr)
			}
			if !shared {
				alone(i, its)
			}
		}
		n.censusOfDescriptors(i, func(what string) { alone(i, what) })
		n.censusOfRoot(i)
		n.censusOfGroups(i)
		for _, dir := range i.groups {
			alone(i, dir)
		}
	}
}

// supervisorOf gives the process that started the VM's hypervisor.
func (n *node) supervisorOf(i *inmate) int {
	if i.name == "exclusive" {
		return n.supervisor("exclusive")
	}
	return n.supervisor("shared")
}

func (n *node) proc(i *inmate, name string) string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", i.pid, name))
	if err != nil {
		n.t.Fatalf("VM %s: %v", i.name, err)
	}
	return string(b)
}

func (n *node) censusOfRights(i *inmate) {
	n.t.Helper()
	status, limits := n.proc(i, "status"), n.proc(i, "limits")
	uid := regexp.MustCompile(`(?m)^Uid:\t(\d+)\t(\d+)\t(\d+)\t(\d+)$`).FindStringSubmatch(status)
	if uid == nil || uid[1] == "0" || uid[2] != uid[1] || uid[3] != uid[1] || uid[4] != uid[1] {
		n.t.Fatalf("VM %s: users %v", i.name, uid)
	}
	i.uid = uid[1]
	for _, line := range []string{
		"Gid:" + strings.Repeat("\t"+i.uid, 4), `Groups:\t ?`, "CapInh:\t0+", "CapPrm:\t0+", "CapEff:\t0+", "CapBnd:\t0+", "CapAmb:\t0+",
		"NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(status) {
			n.t.Errorf("VM %s: no %q in\n%s", i.name, line, status)
		}
	}
	for _, line := range []string{"Max core file size +0 +0 ", "Max msgqueue size +0 +0 ", "Max nice priority +0 +0 ", "Max realtime priority +0 +0 ", `Max open files +\d+ +\d+ `} {
		if !regexp.MustCompile(`(?m)^` + line).MatchString(limits) {
			n.t.Errorf("VM %s: no %q in\n%s", i.name, line, limits)
		}
	}
	if adj := n.proc(i, "oom_score_adj"); adj != "500\n" {
		n.t.Errorf("VM %s: oom_score_adj %s", i.name, adj)
	}
	if env := n.proc(i, "environ"); strings.Count(env, "\x00") > 2 || strings.Contains(env, "BLIXARD") {
		n.t.Errorf("VM %s: environment %q", i.name, env)
	}
}

// censusOfDescriptors: a hypervisor has open what is its VM's, and of what others have
// open, too, only the bundle's files, for reading.
func (n *node) censusOfDescriptors(i *inmate, alone func(string)) {
	n.t.Helper()
	shared := files(n.t, filepath.Join(n.bundle, "*"))
	private := map[inode]string{}
	for _, pattern := range i.own {
		for k, v := range files(n.t, pattern) {
			private[k] = v
		}
	}
	dir := filepath.Join("/proc", i.pid, "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	opened := map[string]bool{}
	for _, fd := range fds {
		path := filepath.Join(dir, fd.Name())
		to, err := os.Readlink(path)
		if err != nil {
			n.t.Fatal(err)
		}
		info := n.proc(i, "fdinfo/"+fd.Name())
		if to == "/dev/net/tun" {
			alone("tap " + regexp.MustCompile(`(?m)^iff:\t(\S+)`).FindString(info))
			if i.user {
				n.t.Errorf("VM %s has a tap", i.name)
			}
			continue
		}
		if regexp.MustCompile(`^(anon_inode:.*|socket:.*|pipe:.*|/dev/pts/\d+|/dev/null|/memfd:.*)$`).MatchString(to) {
			continue
		}
		id, err := inodeOf(path)
		if err != nil {
			n.t.Fatal(err)
		}
		var flags int
		if _, err := fmt.Sscanf(info[strings.Index(info, "flags:"):], "flags: %o", &flags); err != nil {
			n.t.Fatal(err)
		}
		if name := shared[id]; name != "" && flags&unix.O_ACCMODE == unix.O_RDONLY {
			opened["bundle"] = true
		} else if name := private[id]; name != "" {
			opened[name] = true
			alone(name)
		} else {
			n.t.Errorf("VM %s: descriptor %s is %s with flags %o", i.name, fd.Name(), to, flags)
		}
	}
	want := 2 // the bundle's files and the root disk
	if i.volume != "" {
		want++
	}
	if len(opened) != want {
		n.t.Errorf("VM %s has %v open", i.name, opened)
	}
}

// inode names a file, whatever its path is.
type inode struct{ device, number uint64 }

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return inode{st.Dev, st.Ino}, err
}

// files that a pattern matches.
func files(t testing.TB, pattern string) map[inode]string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	all := map[inode]string{}
	for _, p := range paths {
		if id, err := inodeOf(p); err == nil {
			all[id] = p
		}
	}
	return all
}

// censusOfRoot: of the host's files a hypervisor sees what is its program's.
func (n *node) censusOfRoot(i *inmate) {
	n.t.Helper()
	root := filepath.Join("/proc", i.pid, "root")
	expected := `^/(dev/null|dev/urandom|dev/kvm|etc/ld\.so\.cache|proc/self/fd/\d+|usr/bin/qemu-system-x86_64` +
		`|(usr/)?lib(64)?/([a-z0-9_-]+/)?[^/]+\.so[.0-9]*|usr/lib/ipxe/qemu/.*|usr/lib/[a-z0-9_-]+/qemu/.*|usr/share/(qemu|seabios)/.*)$`
	if i.user {
		expected = strings.Replace(expected, "dev/null", `dev/null|etc/resolv\.conf`, 1)
	}
	pattern, count := regexp.MustCompile(expected), 0
	err := filepath.WalkDir(root+"/", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		count++
		if name := strings.TrimPrefix(path, root); !pattern.MatchString(name) {
			n.t.Errorf("VM %s sees %s", i.name, name)
		}
		return nil
	})
	if err != nil || count < 20 {
		n.t.Errorf("VM %s: %d files, %v", i.name, count, err)
	}
	for line := range strings.Lines(n.proc(i, "mountinfo")) {
		if f := strings.Fields(line); !strings.HasPrefix(f[5], "ro,nosuid") {
			n.t.Errorf("VM %s: mount %s", i.name, line)
		}
	}
}

// censusOfGroups: where the host has control groups, each hypervisor is alone in one
// that bounds it.
func (n *node) censusOfGroups(i *inmate) {
	n.t.Helper()
	i.groups = nil
	for line := range strings.Lines(n.proc(i, "cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		limits := map[string][]string{
			"memory": {"memory.limit_in_bytes"}, "pids": {"pids.max"}, "cpu": {"cpu.cfs_quota_us"}, "": {"memory.max", "pids.max", "cpu.max"},
		}[f[1]]
		mount := filepath.Join("/sys/fs/cgroup", f[1])
		for _, name := range limits {
			if st, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err != nil || !st.Mode().IsRegular() {
				continue
			}
			dir := filepath.Join(mount, f[2])
			limit, err := os.ReadFile(filepath.Join(dir, name))
			if f[1] == "" && os.IsNotExist(err) {
				continue // the controller is another hierarchy's
			}
			text := strings.TrimSpace(string(limit))
			if err != nil || strings.HasPrefix(text, "max") || text == "-1" || len(text) > 15 || !strings.Contains(f[2], "/blixard/") {
				n.t.Errorf("VM %s: %s of %s is %q, %v", i.name, name, dir, text, err)
			}
			members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil || string(members) != i.pid+"\n" {
				n.t.Errorf("VM %s: in its group are %q, %v", i.name, members, err)
			}
			i.groups = append(i.groups, dir+"/"+name)
		}
	}
}

// noTrace: nothing is left of jails and users.
func (n *node) noTrace(inmates []*inmate) {
	n.t.Helper()
	for _, i := range inmates {
		for _, dir := range i.groups {
			eventually(n.t, "the group "+dir+" is gone", 10*time.Second, func() bool {
				_, err := os.Stat(dir)
				return os.IsNotExist(err)
			})
		}
	}
	if left := n.qemus(); len(left) > 0 {
		n.t.Errorf("hypervisors %v are left", left)
	}
	err := filepath.WalkDir(n.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if err == nil && st.Sys().(*syscall.Stat_t).Uid != uint32(os.Getuid()) {
			n.t.Errorf("%s belongs to user %d", path, st.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	})
	if err != nil {
		n.t.Error(err)
	}
}

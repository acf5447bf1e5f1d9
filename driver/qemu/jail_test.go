package qemu

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/driver/drivertest"
	"github.com/blixard/blixard/internal/problem"
)

// rig is a driver on a host of its own.
type rig struct {
	h drivertest.Harness
	d driver.Driver
	s driver.Spawner
}

func newRig(t *testing.T, jailed bool) *rig {
	t.Helper()
	r := &rig{h: tinyHarness(false, jailed)}
	r.d, r.s = r.h.New(t)
	return r
}

// boot starts a VM and waits until its guest runs.
func (r *rig) boot(t *testing.T, cfg driver.Config) driver.VM {
	t.Helper()
	vm, err := r.d.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	r.h.Up(t, cfg, r.s, vm)
	return vm
}

func end(t *testing.T, vm driver.VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), drivertest.Timeout)
	defer cancel()
	if err := vm.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

func procFile(t *testing.T, pid uint32, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCensus looks at a VMM whose guest runs, from outside and by its root
// directory.
func TestCensus(t *testing.T) {
	r := newRig(t, true)
	cfg := r.h.Config(t)
	cfg.NICs = []driver.NIC{{MAC: "02:00:00:00:00:01", Tap: drivertest.Tap(t), MTU: 1400}}
	cfg.Initramfs = filepath.Join(cfg.Dir, "initramfs")
	if err := os.WriteFile(cfg.Initramfs, make([]byte, 512), 0o644); err != nil {
		t.Fatal(err)
	}
	vm := r.boot(t, cfg)
	defer end(t, vm)
	pid := vm.Process().GetPid()
	if notice, set := vm.Process().GetMetadata()[driver.MetadataJail]; !set || notice != "" {
		t.Errorf("not confined in full: %s", notice)
	}
	id := fmt.Sprint(cfg.Jail.GetUid())
	status := procFile(t, pid, "status")
	for _, line := range []string{
		"Uid:\t" + strings.Join([]string{id, id, id, id}, "\t"), "Gid:\t" + strings.Join([]string{id, id, id, id}, "\t"), `Groups:\t ?`,
		"CapInh:\t0+", "CapPrm:\t0+", "CapEff:\t0+", "CapBnd:\t0+", "CapAmb:\t0+", "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(status) {
			t.Errorf("no %q in\n%s", line, status)
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
	if devices := procFile(t, pid, "net/dev"); regexp.MustCompile(`(?m)^ *[^ :|]+:`).FindAllString(devices, -1)[0] != "    lo:" || strings.Count(devices, ":") != 1 {
		t.Errorf("devices of its network: %s", devices)
	}
	censusOfGroups(t, pid)
	censusOfDescriptors(t, pid, cfg)
	censusOfFiles(t, pid)
	if n := strings.Count(procFile(t, pid, "environ"), "\x00"); n != 2 {
		t.Errorf("environment %q", procFile(t, pid, "environ"))
	}
	if limits := procFile(t, pid, "limits"); !regexp.MustCompile(`Max core file size +0 +0 `).MatchString(limits) {
		t.Error(limits)
	}
	if adj := procFile(t, pid, "oom_score_adj"); adj != "500\n" {
		t.Errorf("oom_score_adj %s", adj)
	}
}

// censusOfGroups: what the configuration leaves out is bounded all the same.
func censusOfGroups(t *testing.T, pid uint32) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(procFile(t, pid, "cgroup")), "\n") {
		f := strings.SplitN(line, ":", 3)
		for file, want := range map[string]string{
			"memory/memory.limit_in_bytes": fmt.Sprint((32 + overheadTCGMiB + slackMiB) << 20), "pids/pids.max": "129", "cpu/cpu.cfs_quota_us": "200000",
		} {
			controller, name, _ := strings.Cut(file, "/")
			if f[1] != controller {
				continue
			}
			b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, f[2], name))
			if err != nil || strings.TrimSpace(string(b)) != want {
				t.Errorf("%s of %s: %s, %v", name, f[2], b, err)
			}
		}
	}
}

func censusOfDescriptors(t *testing.T, pid uint32, cfg driver.Config) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	given := []string{cfg.Kernel, cfg.Initramfs, cfg.Drives[0].Path, cfg.Drives[1].Path}
	seen := map[string]bool{}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`^(anon_inode:.*|socket:.*|pipe:.*|/dev/net/tun|/dev/pts/\d+|/memfd:.*)$`).MatchString(to) {
			continue
		}
		// The link is shown from the VMM's root, where the name means nothing.
		i := slices.IndexFunc(given, func(g string) bool { return filepath.Base(g) == filepath.Base(to) })
		if i < 0 {
			t.Errorf("descriptor %s is %s", fd.Name(), to)
			continue
		}
		seen[given[i]] = true
		info := procFile(t, pid, "fdinfo/"+fd.Name())
		var flags int
		if _, err := fmt.Sscanf(info[strings.Index(info, "flags:"):], "flags: %o", &flags); err != nil {
			t.Fatal(err)
		}
		if writes := flags&unix.O_ACCMODE != unix.O_RDONLY; writes != (given[i] == cfg.Drives[0].Path) {
			t.Errorf("%s is opened with flags %o", to, flags)
		}
	}
	if len(seen) != len(given) {
		t.Errorf("descriptors of %v, not of %v", seen, given)
	}
}

// censusOfFiles: nothing of the host is in the VMM's root directory but what is
// QEMU's.
func censusOfFiles(t *testing.T, pid uint32) {
	t.Helper()
	root := fmt.Sprintf("/proc/%d/root", pid)
	if _, err := os.Stat(root + "/etc/shadow"); !os.IsNotExist(err) {
		t.Errorf("/etc/shadow: %v", err)
	}
	expected := regexp.MustCompile(`^/(dev/null|dev/urandom|etc/ld\.so\.cache|proc/self/fd/\d+|usr/bin/qemu-system-x86_64` +
		`|(usr/)?lib(64)?/([a-z0-9_-]+/)?[^/]+\.so[.0-9]*|usr/lib/ipxe/qemu/.*|usr/lib/[a-z0-9_-]+/qemu/.*|usr/share/(qemu|seabios)/.*)$`)
	n := 0
	err := filepath.WalkDir(root+"/", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		n++
		if name := strings.TrimPrefix(path, root); !expected.MatchString(name) {
			t.Errorf("the VMM sees %s", name)
		}
		return nil
	})
	if err != nil || n < 20 {
		t.Errorf("%d files, %v", n, err)
	}
	for _, line := range strings.Split(strings.TrimSpace(procFile(t, pid, "mountinfo")), "\n") {
		if f := strings.Fields(line); !strings.HasPrefix(f[5], "ro,nosuid") {
			t.Errorf("mount %s", line)
		}
	}
	if err := os.WriteFile(root+"/new", nil, 0o600); err == nil {
		t.Error("the root directory can be written")
	}
}

// TestRawStaysRaw: a disk whose first sector says that it is a qcow2 with
// /etc/shadow behind it is what it was.
func TestRawStaysRaw(t *testing.T) {
	r := newRig(t, false)
	cfg := r.h.Config(t)
	const backing = "/etc/shadow"
	head := make([]byte, 1<<20)
	copy(head, "QFI\xfb")
	binary.BigEndian.PutUint32(head[4:], 3)
	binary.BigEndian.PutUint64(head[8:], 512) // of the name
	binary.BigEndian.PutUint32(head[16:], uint32(len(backing)))
	binary.BigEndian.PutUint32(head[20:], 16) // bits of a cluster
	binary.BigEndian.PutUint64(head[24:], 1<<30)
	copy(head[512:], backing)
	if err := os.WriteFile(cfg.Drives[0].Path, head, 0o600); err != nil {
		t.Fatal(err)
	}
	v := r.boot(t, cfg)
	defer end(t, v)
	var nodes []struct {
		NodeName string `json:"node-name"`
		Driver   string `json:"drv"`
		Backing  string `json:"backing_file"`
		Depth    int    `json:"backing_file_depth"`
		Image    struct {
			VirtualSize int64  `json:"virtual-size"`
			Format      string `json:"format"`
		} `json:"image"`
	}
	if err := v.(*vm).execute(t.Context(), "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Driver != "raw" && n.Driver != "file" || n.Backing != "" || n.Depth != 0 || n.Image.VirtualSize != 1<<20 {
			t.Errorf("%+v", n)
		}
	}
	if len(nodes) != 4 {
		t.Errorf("%d nodes: %+v", len(nodes), nodes)
	}
}

// TestDiskIsOfOneVMM: a lock of the opened file keeps a second writer off, and
// readers of an image don't mind each other.
func TestDiskIsOfOneVMM(t *testing.T) {
	r := newRig(t, false)
	first, second, third := r.h.Config(t), r.h.Config(t), r.h.Config(t)
	second.Drives[0].Path = first.Drives[0].Path
	third.Drives[1].Path = first.Drives[1].Path
	v := r.boot(t, first)
	other, err := r.d.Start(t.Context(), second)
	if err == nil {
		t.Fatalf("two VMMs write to one disk: %v", other.Close())
	}
	if !problem.Is(err, problem.Unavailable) || !strings.Contains(err.Error(), `Failed to get "write" lock`) {
		t.Errorf("%v", err)
	}
	end(t, r.boot(t, third))
	end(t, v)
	second.ProcessID += "1"
	end(t, r.boot(t, second))
}

// TestUserNetwork: a forward is there, also in a jail; a port that is taken is
// told.
func TestUserNetwork(t *testing.T) {
	for _, jailed := range []bool{false, true} {
		t.Run(fmt.Sprintf("jailed=%v", jailed), func(t *testing.T) {
			r := newRig(t, jailed)
			cfg := r.h.Config(t)
			port := freePort(t)
			cfg.NICs = []driver.NIC{{MAC: "02:00:00:00:00:02", User: &driver.UserNet{
				Network: netip.MustParsePrefix("10.9.8.0/24"), Isolated: true,
				Forwards: []driver.Forward{{Protocol: "tcp", HostPort: port, GuestPort: 80}},
			}}}
			vm := r.boot(t, cfg)
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			other := r.h.Config(t)
			other.NICs = cfg.NICs
			if v, err := r.d.Start(t.Context(), other); err == nil {
				t.Fatalf("two VMs have one port: %v", v.Close())
			} else if !problem.Is(err, problem.Unavailable) || !strings.Contains(err.Error(), "host forwarding") {
				t.Errorf("%v", err)
			}
			end(t, vm)
		})
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// TestFullMachine has a device in every place that there is.
func TestFullMachine(t *testing.T) {
	for _, acpi := range []bool{false, true} {
		t.Run(fmt.Sprintf("acpi=%v", acpi), func(t *testing.T) {
			r := newRig(t, false)
			cfg := r.h.Config(t)
			cfg.ACPI = acpi
			for i := range nicsMax {
				cfg.NICs = append(cfg.NICs, driver.NIC{MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), User: &driver.UserNet{}})
			}
			most := devicesMax
			if acpi {
				most = devicesMaxACPI
			}
			for 1+len(cfg.Drives)+len(cfg.NICs) < most {
				path := filepath.Join(cfg.Dir, fmt.Sprintf("disk%d", len(cfg.Drives)))
				if err := os.WriteFile(path, make([]byte, 512), 0o600); err != nil {
					t.Fatal(err)
				}
				cfg.Drives = append(cfg.Drives, driver.Drive{Path: path, Serial: fmt.Sprintf("volume-%d", len(cfg.Drives))})
			}
			v := r.boot(t, cfg)
			if s, err := v.Statistics(t.Context()); err != nil || len(s.Drives) != len(cfg.Drives) {
				t.Errorf("%+v, %v", s, err)
			}
			end(t, v)
			cfg.ProcessID += "1"
			cfg.Drives = append(cfg.Drives, driver.Drive{Path: "/one/more"})
			if v, err := r.d.Start(t.Context(), cfg); err == nil {
				t.Errorf("it started: %v", v.Close())
			} else if !problem.HasCode(err, "driver.devices") || !strings.Contains(err.Error(), fmt.Sprintf("room for %d", most)) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestOldSupervisor(t *testing.T) {
	for name, tc := range map[string]struct {
		jail *blixardv1.Jail
		meta map[string]string
		ok   bool
	}{
		"none":              {nil, nil, false},
		"no jail asked":     {nil, map[string]string{driver.MetadataFiles: "1:2"}, true},
		"jail passed over":  {&blixardv1.Jail{}, map[string]string{driver.MetadataFiles: "1:2"}, false},
		"files passed over": {&blixardv1.Jail{}, map[string]string{driver.MetadataJail: ""}, false},
		"all":               {&blixardv1.Jail{}, map[string]string{driver.MetadataFiles: "1:2", driver.MetadataJail: ""}, true},
	} {
		err := obeyed(driver.Config{Jail: tc.jail}, &blixardv1.SupervisedProcess{Metadata: tc.meta})
		if tc.ok && err != nil || !tc.ok && !problem.HasCode(err, "driver.supervisor_old") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfine(t *testing.T) {
	p := &probed{dataPaths: []string{"/usr/share/qemu"}, info: driver.Info{Accelerator: driver.AcceleratorKVM, OverheadMiB: overheadKVMMiB}}
	cfg := driver.Config{VCPUs: 2, MemoryMiB: 1024, NICs: []driver.NIC{{User: &driver.UserNet{}}}}
	if j := confine(cfg, p); j != nil {
		t.Errorf("a jail that nobody asked for: %v", j)
	}
	cfg.Jail = &blixardv1.Jail{Uid: 7, Gid: 8, ReadPaths: []string{"/a"}}
	got := confine(cfg, p)
	if got.GetUid() != 7 || got.GetGid() != 8 || got.GetMemoryBytes() != (1024+16+48+64)<<20 || got.GetPidsMax() != 130 ||
		got.GetCpuQuotaPercent() != 300 || !got.GetHostNetwork() ||
		!slices.Equal(got.GetReadPaths(), []string{"/a", "/usr/share/qemu", "/dev/kvm", "/etc/resolv.conf"}) {
		t.Errorf("%v", got)
	}
	if len(cfg.Jail.GetReadPaths()) != 1 || cfg.Jail.GetHostNetwork() {
		t.Errorf("the caller's jail was changed: %v", cfg.Jail)
	}
	cfg.Jail.MemoryBytes, cfg.Jail.PidsMax, cfg.Jail.CpuQuotaPercent = 2<<30, 70, 50
	if got := confine(cfg, p); got.GetMemoryBytes() != 2<<30 || got.GetPidsMax() != 70 || got.GetCpuQuotaPercent() != 50 {
		t.Errorf("%v", got)
	}
	cfg.Jail.MemoryBytes = 1 << 30
	if err := checkJail(cfg); !problem.HasCode(err, "driver.jail") {
		t.Errorf("no room for the guest: %v", err)
	}
}

//go:build linux

package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/boottest"
)

// rounds of a benchmark of this file. Each round measures the product and the bare hypervisor one after the
// other, so that what else the host does hits both alike.
const rounds = 15

// defaultDiskBytes is the size of a root disk where nobody names one.
const defaultDiskBytes = 1 << 30

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// byHand starts QEMU as the product does, by hand: the same arguments on a root disk of its own.
type byHand struct {
	argv  []string
	disk  string // the root disk in argv
	roots *disk.Roots
	dir   string
	n     int
}

// fdSetPattern is the name of a set of descriptors.
var fdSetPattern = regexp.MustCompile(`/dev/fdset/[0-9]+`)

// likeVM takes the arguments of the only VM that runs on the node, with paths for
// the descriptors that the product hands over.
func likeVM(b *testing.B, n *node) *byHand {
	b.Helper()
	pids := n.qemus()
	if len(pids) != 1 {
		b.Fatalf("%d hypervisors", len(pids))
	}
	proc := "/proc/" + strconv.Itoa(pids[0])
	raw, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	disks, err := filepath.Glob(filepath.Join(n.data, "vms", "*", "root.img"))
	if err != nil || len(disks) != 1 {
		b.Fatalf("root disks %q, %v", disks, err)
	}
	argv := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
	h := &byHand{dir: b.TempDir(), disk: disks[0]}
	h.roots = disk.NewRoots(filepath.Join(h.dir, "templates"))
	boots := map[string]bool{}
	for i := 0; i < len(argv); i++ {
		if argv[i] == "-add-fd" {
			i++
			continue
		}
		if strings.HasPrefix(argv[i], "/proc/self/fd/") {
			if argv[i], err = os.Readlink(proc + "/fd/" + filepath.Base(argv[i])); err != nil {
				b.Fatal(err)
			}
			boots[argv[i]] = true
		}
		switch {
		case strings.HasPrefix(argv[i], "pipe,id=console"):
			argv[i] = fdSetPattern.ReplaceAllString(argv[i], "/proc/self/fd/0")
		case strings.Contains(argv[i], "node-name=disk0"):
			argv[i] = fdSetPattern.ReplaceAllString(argv[i], imageOf(b, proc, func(p string) bool { return boots[p] || p == h.disk }))
		case strings.Contains(argv[i], "node-name=disk1"):
			argv[i] = fdSetPattern.ReplaceAllString(argv[i], h.disk)
		}
		h.argv = append(h.argv, argv[i])
	}
	return h
}

// imageOf gives the one file that a hypervisor has open beside those of which other
// tells.
func imageOf(b *testing.B, proc string, other func(string) bool) string {
	b.Helper()
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		b.Fatal(err)
	}
	for _, fd := range fds {
		path, err := os.Readlink(proc + "/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "/dev/") && !other(path) {
			return path
		}
	}
	b.Fatal("the hypervisor has no image")
	return ""
}

// boot starts the machine; making its disk is not in its time.
func (h *byHand) boot(b *testing.B) *boottest.Machine {
	b.Helper()
	h.n++
	root := filepath.Join(h.dir, strconv.Itoa(h.n))
	if err := h.roots.CreateRoot(b.Context(), root, defaultDiskBytes); err != nil {
		b.Fatal(err)
	}
	token := guest.NewToken()
	argv := slices.Clone(h.argv)
	for i, a := range argv {
		words := strings.Fields(a)
		for j, w := range words {
			if strings.HasPrefix(w, "blixard.channel=") {
				words[j] = token.KernelArg()
				argv[i] = strings.Join(words, " ")
			}
		}
		argv[i] = strings.Replace(argv[i], h.disk, root, 1)
	}
	return boottest.Run(b, argv, token)
}

func bareConfig(argv ...string) guest.BootConfig {
	return guest.BootConfig{
		Hostname: "bare", Argv: argv, WorkDir: "/", Env: []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin"},
		Image: guest.Disk{Device: "/dev/vda", FSType: "ext4"}, Writable: &guest.Disk{Device: "/dev/vdb", FSType: "ext4"},
	}
}

// plain is a VM with all defaults.
func plain(s *blixardv1.VMSpec) { s.MemoryMib, s.DiskBytes = 0, 0 }

// BenchmarkCreateToReady compares the time from the request for a VM to its ready state, seen by a watching
// client, with QEMU run by hand with the same arguments up to the guest's ready event.
func BenchmarkCreateToReady(b *testing.B) {
	n := startNode(b)
	n.create("first", plain)
	n.awaitRunning("first")
	bare := likeVM(b, n)
	n.delete("first")
	for b.Loop() {
		var product, hand []time.Duration
		for i := range rounds {
			name := "vm" + strconv.Itoa(i)
			begin := time.Now()
			n.create(name, plain)
			n.awaitRunning(name)
			product = append(product, time.Since(begin))
			n.delete(name)
			m := bare.boot(b)
			m.Ready(m.Connect(), bareConfig("sleep", "1000000"))
			hand = append(hand, time.Since(m.Started))
			m.Kill()
		}
		report(b, product, hand)
	}
}

// BenchmarkRun compares the whole of `blixard run busybox -- true` with QEMU run by hand with the same
// arguments from its start to its own end.
func BenchmarkRun(b *testing.B) {
	n := startNode(b)
	n.create("first", plain)
	n.awaitRunning("first")
	bare := likeVM(b, n)
	n.delete("first")
	for b.Loop() {
		var product, hand []time.Duration
		for i := range rounds {
			name := "vm" + strconv.Itoa(i)
			cmd := n.command("run", "--name", name, "busybox", "--", "true")
			begin := time.Now()
			out, err := cmd.CombinedOutput()
			product = append(product, time.Since(begin))
			if err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			n.delete(name)
			m := bare.boot(b)
			s := m.Connect()
			if _, err := s.Configure(b.Context(), bareConfig("true")); err != nil {
				b.Fatal(err)
			}
			m.AwaitEvent(s, guest.EventExited)
			m.PowerOff(s)
			hand = append(hand, time.Since(m.Started))
		}
		report(b, product, hand)
	}
}

// BenchmarkTask compares the time from the submission of a task to its first output with QEMU run by hand with the
// same arguments up to the same output.
func BenchmarkTask(b *testing.B) {
	n := startNode(b)
	n.create("first", plain)
	n.awaitRunning("first")
	bare := likeVM(b, n)
	n.delete("first")
	for b.Loop() {
		var product, hand []time.Duration
		for range rounds {
			cmd := n.command("task", "submit", "--wait", "busybox", "--", "echo", "out")
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			begin := time.Now()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 1)); err != nil {
				b.Fatal(err)
			}
			product = append(product, time.Since(begin))
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
			m := bare.boot(b)
			s := m.Connect()
			if _, err := s.Configure(b.Context(), bareConfig("echo", "out")); err != nil {
				b.Fatal(err)
			}
			m.AwaitConsole("out")
			hand = append(hand, time.Since(m.Started))
			m.Kill()
		}
		report(b, product, hand)
	}
}

func report(b *testing.B, product, hand []time.Duration) {
	p, h := median(product), median(hand)
	b.ReportMetric(milliseconds(p), "product-ms")
	b.ReportMetric(milliseconds(h), "by-hand-ms")
	b.ReportMetric(float64(p)/float64(h), "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkMemory measures what daemon and supervisor need: at rest, and for each running VM.
func BenchmarkMemory(b *testing.B) {
	const few, many = 4, 24
	for b.Loop() {
		n := startNode(b)
		idle := resident(b, n.cmd.Process.Pid)
		var at [2]uint64
		created := 0
		for i, upTo := range []int{few, many} {
			for ; created < upTo; created++ {
				name := fmt.Sprint("vm", created)
				n.create(name, func(s *blixardv1.VMSpec) { s.MemoryMib = 64 })
				n.awaitRunning(name)
			}
			at[i] = resident(b, n.cmd.Process.Pid) + resident(b, n.supervisor("shared"))
		}
		b.ReportMetric(mebibytes(idle), "idle-MiB")
		b.ReportMetric(mebibytes(at[0]), "4-VMs-MiB")
		b.ReportMetric(mebibytes(at[1]), "24-VMs-MiB")
		b.ReportMetric((mebibytes(at[1])-mebibytes(at[0]))/(many-few), "MiB/VM")
		b.ReportMetric(0, "ns/op")
	}
}

// resident is what a process holds in memory, in bytes.
func resident(b *testing.B, pid int) uint64 {
	b.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseUint(strings.Fields(v)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatalf("process %d has no VmRSS", pid)
	return 0
}

func mebibytes(n uint64) float64 { return float64(n) / (1 << 20) }

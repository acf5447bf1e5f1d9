//go:build linux

package daemon_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/guest"
)

// importDebian imports the Debian as an image of that name.
func importDebian(b *testing.B, n *node, image string) {
	b.Helper()
	tag, err := name.NewTag(image)
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "image.tar")
	if err := tarball.WriteToFile(path, tag, debianImage(b)); err != nil {
		b.Fatal(err)
	}
	n.blixard("image", "import", path)
}

const debianName = "debian:bench"

// debianVM is a VM of the imported Debian that only sleeps.
func debianVM(s *blixardv1.VMSpec) {
	s.Image, s.MemoryMib, s.DiskBytes, s.Command = debianName, 128, 0, []string{"sleep", "1000000"}
}

// BenchmarkSecondVM compares a VM of an image that the node has, as BenchmarkCreateToReady
// does with the built-in one, with QEMU run by hand with the same disk.
func BenchmarkSecondVM(b *testing.B) {
	n := startNode(b)
	importDebian(b, n, debianName)
	n.create("first", debianVM)
	n.awaitRunning("first")
	bare := likeVM(b, n)
	n.delete("first")
	cfg := bareConfig("sleep", "1000000")
	cfg.Image.FSType = "erofs"
	for b.Loop() {
		var product, hand []time.Duration
		for i := range rounds {
			name := "vm" + strconv.Itoa(i)
			begin := time.Now()
			n.create(name, debianVM)
			n.awaitRunning(name)
			product = append(product, time.Since(begin))
			n.delete(name)
			m := bare.boot(b)
			m.Ready(m.Connect(), cfg)
			hand = append(hand, time.Since(m.Started))
			m.Kill()
		}
		report(b, product, hand)
	}
}

// cached is what the host's page cache holds, in bytes.
func cached(b *testing.B) uint64 {
	b.Helper()
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "Cached:"); ok {
			kib, err := strconv.ParseUint(strings.Fields(v)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no page cache")
	return 0
}

// BenchmarkSharedImage lets VMs of one image read the same 100 MiB and more of it, and
// tells how much the page cache grows by the first and by all others together.
func BenchmarkSharedImage(b *testing.B) {
	const vms = 50
	n := startNode(b)
	importDebian(b, n, debianName)
	read := func(name string) {
		n.create(name, func(s *blixardv1.VMSpec) { debianVM(s); s.MemoryMib = 64 })
		n.awaitRunning(name)
		n.blixard("vm", "exec", name, "--", "sh", "-c", "cat /usr/lib/x86_64-linux-gnu/*.so* /usr/bin/* >/dev/null 2>&1")
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		before := cached(b)
		read("vm0")
		first := cached(b)
		for i := range vms - 1 {
			read(fmt.Sprint("vm", i+1))
		}
		all := cached(b)
		b.ReportMetric(mebibytes(first-before), "first-MiB")
		b.ReportMetric((mebibytes(all)-mebibytes(first))/(vms-1), "MiB/further-VM")
		b.ReportMetric(0, "ns/op")
	}
}

// Of the measurements of networks.
const (
	streamPort = 5001
	streamMiB  = 128
)

// sink takes connections and throws away what they bring. It never ends its own side
// first: that would be the end of one that sends with nc.
var sink = []string{"sh", "-c", fmt.Sprintf("mkfifo /silent; sleep 1000000 >/silent & while :; do nc -l -p %d </silent >/dev/null; done", streamPort)}

// stream sends to a guest from a host's namespace and gives MiB a second.
func stream(b *testing.B, h *hosts, to string) float64 {
	b.Helper()
	var conn net.Conn
	eventually(b, "the guest listens", time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		c, err := h.dial(ctx, 0, "tcp", net.JoinHostPort(to, strconv.Itoa(streamPort)))
		if err == nil {
			conn = c
		}
		return err == nil
	})
	buf := make([]byte, 1<<20)
	begin := time.Now()
	for range streamMiB {
		if _, err := conn.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	_, _ = conn.Read(buf) // until the guest has had it all
	took := time.Since(begin)
	_ = conn.Close()
	return streamMiB / took.Seconds()
}

// netdevPattern is a tap that is handed over.
var netdevPattern = regexp.MustCompile(`^tap,id=net0,fd=[0-9]+,vhost=off$`)

// BenchmarkThroughput compares what the host sends to a guest with the same QEMU on a
// bridge and a tap made by hand, without any rules.
func BenchmarkThroughput(b *testing.B) {
	c, h := startSite(b, 1)
	n := c.nodes[0]
	n.create("vm", func(s *blixardv1.VMSpec) { s.Command = sink })
	vm := n.awaitRunning("vm")
	bare := likeVM(b, n)
	const gateway, address = "10.98.0.1/24", "10.98.0.2"
	run(b, "", "nsenter", "--net="+h.path(0), "sh", "-c", `ip link add hand type bridge && ip addr add `+gateway+` dev hand && ip link set hand up &&
		ip tuntap add handtap mode tap vnet_hdr && ip link set handtap mtu 1450 master hand up && ip link set hand mtu 1450`)
	for i, a := range bare.argv {
		if netdevPattern.MatchString(a) {
			bare.argv[i] = "tap,id=net0,ifname=handtap,script=no,downscript=no,vhost=off"
		}
	}
	bare.argv = slices.Concat([]string{"nsenter", "--net=" + h.path(0)}, bare.argv)
	m := bare.boot(b)
	s := m.Connect()
	cfg := bareConfig(sink...)
	cfg.Interfaces = []guest.Interface{{MAC: vm.GetInterfaces()[0].GetMac(), MTU: 1450, Addresses: []string{address + "/24"}}}
	m.Ready(s, cfg)
	for b.Loop() {
		var product, hand []float64
		for range rounds {
			product = append(product, stream(b, h, vm.GetInterfaces()[0].GetIpv4()))
			hand = append(hand, stream(b, h, address))
		}
		slices.Sort(product)
		slices.Sort(hand)
		p, q := product[len(product)/2], hand[len(hand)/2]
		b.ReportMetric(p, "product-MiB/s")
		b.ReportMetric(q, "by-hand-MiB/s")
		b.ReportMetric(p/q, "ratio")
		b.ReportMetric(0, "ns/op")
	}
	m.Kill()
}

// handNetwork is a network namespace with a bridge, taps and nothing else.
func handNetwork(b *testing.B, frames string, taps ...string) (path string) {
	b.Helper()
	const name = "by-hand"
	run(b, "", "ip", "netns", "add", name)
	b.Cleanup(func() { run(b, "", "ip", "netns", "del", name) })
	path = filepath.Join("/run/netns", name)
	run(b, "", "nsenter", "--net="+path, "sh", "-c", "ip link add hand mtu 1450 type bridge && ip link set hand up && "+showFrames(frames))
	for _, tap := range taps {
		run(b, "", "nsenter", "--net="+path, "sh", "-c", "ip tuntap add "+tap+" mode tap vnet_hdr && ip link set "+tap+" mtu 1450 master hand up")
	}
	return path
}

// showFrames says whether the rules for IP see what is bridged.
func showFrames(frames string) string {
	return "for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do echo " + frames + " >$f; done"
}

// macPattern is the MAC of a NIC among the arguments.
var macPattern = regexp.MustCompile(`mac=[0-9a-f:]{17}`)

// BenchmarkGuestThroughput compares what a VM sends to another of its network with the
// same QEMU twice on a bridge and taps made by hand, without any rules.
func BenchmarkGuestThroughput(b *testing.B) {
	for _, frames := range []string{"0", "1"} {
		b.Run("frames shown to the IP rules="+frames, func(b *testing.B) { guestThroughput(b, frames) })
	}
}

func guestThroughput(b *testing.B, frames string) {
	c, h := startSite(b, 1)
	n := c.nodes[0]
	run(b, "", "nsenter", "--net="+h.path(0), "sh", "-c", showFrames(frames))
	n.create("to", func(s *blixardv1.VMSpec) { s.Command = sink })
	to := n.awaitRunning("to").GetInterfaces()[0].GetIpv4()
	bare := likeVM(b, n)
	n.create("from", nil)
	n.awaitRunning("from")
	network := handNetwork(b, frames, "hand0", "hand1")
	const subnet = "10.98.0."
	like := slices.Clone(bare.argv)
	byHand := func(k int, command ...string) func(argv ...string) (string, error) {
		mac := fmt.Sprintf("52:54:00:98:00:%02x", k)
		bare.argv = slices.Concat([]string{"nsenter", "--net=" + network}, like)
		for i, a := range bare.argv {
			if netdevPattern.MatchString(a) {
				a = fmt.Sprintf("tap,id=net0,ifname=hand%d,script=no,downscript=no,vhost=off", k)
			}
			bare.argv[i] = macPattern.ReplaceAllString(a, "mac="+mac)
		}
		m := bare.boot(b)
		s := m.Connect()
		cfg := bareConfig(command...)
		cfg.Interfaces = []guest.Interface{{MAC: mac, MTU: 1450, Addresses: []string{fmt.Sprint(subnet, k+1, "/24")}}}
		m.Ready(s, cfg)
		b.Cleanup(m.Kill)
		return func(argv ...string) (string, error) {
			out, code := m.Exec(s, argv...)
			if code != 0 {
				return out, fmt.Errorf("exit code %d", code)
			}
			return out, nil
		}
	}
	byHand(0, sink...)
	ways := []func() float64{
		func() float64 {
			return sent(b, to, func(argv ...string) (string, error) { return n.exec("from", argv...) })
		},
		nil,
	}
	exec := byHand(1, "sleep", "1000000")
	ways[1] = func() float64 { return sent(b, subnet+"1", exec) }
	for b.Loop() {
		var speeds [2][]float64
		for range rounds {
			for i, way := range ways {
				speeds[i] = append(speeds[i], way())
			}
		}
		p, q := middle(speeds[0]), middle(speeds[1])
		b.ReportMetric(p, "product-MiB/s")
		b.ReportMetric(q, "by-hand-MiB/s")
		b.ReportMetric(p/q, "ratio")
		b.ReportMetric(0, "ns/op")
	}
}

// sent gives the MiB a second that a guest sends to another, by the clock of the guest.
func sent(b *testing.B, to string, exec func(argv ...string) (string, error)) float64 {
	b.Helper()
	script := fmt.Sprintf("read a x </proc/uptime; nc %s %d -e dd if=/dev/zero bs=1M count=%d 2>/dev/null; read b x </proc/uptime; echo $a $b", to, streamPort, streamMiB)
	var begin, end float64
	eventually(b, "the guest is sent to", time.Minute, func() bool {
		out, err := exec("sh", "-c", script)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(out, &begin, &end)
		return err == nil && end-begin > 0.05 // less was a refusal
	})
	return streamMiB / (end - begin)
}

func middle(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

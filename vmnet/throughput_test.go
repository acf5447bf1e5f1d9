package vmnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// speed of a stream: in gigabits a second, and in gigabits for a second of processor
// time of this process, which other programs disturb less.
type speed struct{ wall, cpu float64 }

// stream measures one TCP connection between two namespaces.
func stream(b testing.TB, from, to, address string, span time.Duration) speed {
	b.Helper()
	var listener net.Listener
	within(b, to, func() error {
		var err error
		listener, err = net.Listen("tcp", address)
		return err
	})
	defer listener.Close()
	received := make(chan int64, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			received <- 0
			return
		}
		defer c.Close()
		// Plain reads: no splice between sockets.
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
		received <- n
	}()
	var took time.Duration
	before := spent(b, unix.RUSAGE_SELF)
	within(b, from, func() error {
		c, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		buf := make([]byte, 1<<18)
		begin := time.Now()
		_ = c.SetWriteDeadline(begin.Add(span))
		for {
			if _, err := c.Write(buf); err != nil {
				took = time.Since(begin)
				return nil
			}
		}
	})
	gigabits := float64(<-received) * 8 / 1e9
	return speed{gigabits / took.Seconds(), gigabits / (spent(b, unix.RUSAGE_SELF) - before).Seconds()}
}

// spent is the processor time of this process or thread so far.
func spent(b testing.TB, who int) time.Duration {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(who, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// compare measures ours and a plain one in turn, so that what else the machine does
// hits both, and takes the middle of each.
func compare(b *testing.B, ours, plain func() speed) {
	var wall, cpu [2][]float64
	ours()
	plain()
	for b.Loop() {
		for i, measure := range []func() speed{ours, plain} {
			got := measure()
			wall[i], cpu[i] = append(wall[i], got.wall), append(cpu[i], got.cpu)
		}
	}
	b.ReportMetric(middle(wall[0]), "ours-Gbit/s")
	b.ReportMetric(middle(wall[1]), "plain-Gbit/s")
	b.ReportMetric(middle(wall[0])/middle(wall[1]), "ratio")
	b.ReportMetric(middle(cpu[0])/middle(cpu[1]), "cpu-ratio")
	b.ReportMetric(0, "ns/op")
}

func middle(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

const streamSpan = time.Second

// BenchmarkGuestToGuest compares two guests on our bridge with two on a bridge that
// was made by hand and has no rules.
func BenchmarkGuestToGuest(b *testing.B) {
	for _, frames := range []string{"0", "1"} {
		b.Run("frames shown to the IP rules="+frames, func(b *testing.B) {
			guestPairs(b, frames)
			compare(
				b,
				func() speed { return stream(b, "x", "y", "10.1.0.3:5001", streamSpan) },
				func() speed { return stream(b, "px", "py", "10.9.0.3:5001", streamSpan) },
			)
		})
	}
}

// plainHost makes a namespace with a bridge and nothing else.
func plainHost(b testing.TB, name, frames string) {
	b.Helper()
	newNamespace(b, name)
	within(b, name, func() error {
		for _, what := range []string{"iptables", "ip6tables"} {
			if path := "net/bridge/bridge-nf-call-" + what; readSysctl(path) != "" {
				if err := writeSysctl(path, frames); err != nil {
					return err
				}
			}
		}
		return nil
	})
	ip(b, name, "link", "add", "br0", "type", "bridge")
	ip(b, name, "link", "set", "br0", "up")
}

func plainGuest(b testing.TB, host, name, address string, mtu int) {
	b.Helper()
	newNamespace(b, name)
	ip(b, host, "link", "add", "to-"+name, "type", "veth", "peer", "name", "eth0", "netns", name)
	ip(b, host, "link", "set", "to-"+name, "master", "br0", "up", "mtu", strconv.Itoa(mtu))
	ip(b, name, "addr", "add", address, "dev", "eth0")
	ip(b, name, "link", "set", "eth0", "up", "mtu", strconv.Itoa(mtu))
}

// BenchmarkNodeToNode compares guests on two nodes over our overlay with guests on
// two bridges that were joined by a VXLAN by hand.
func BenchmarkNodeToNode(b *testing.B) {
	setBridgeCalls(b, "0")
	newOutside(b)
	f := newFabric(b)
	other := newRemoteHost(b, "outside", Config{StateDir: b.TempDir(), Owner: "node-2", ResolvConf: os.DevNull})
	x, y := nic(1, 2), nic(1, 3)
	apply(b, f, Desired{
		Underlay: netip.MustParseAddr("192.0.2.1"),
		Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{x}, Remote: []Endpoint{on(y, "192.0.2.2")}}},
	})
	within(b, "outside", func() error {
		for _, what := range []string{"iptables", "ip6tables"} {
			if err := writeSysctl("net/bridge/bridge-nf-call-"+what, "0"); err != nil {
				return err
			}
		}
		return nil
	})
	if p := other.ask(order{Do: "apply", Desired: Desired{
		Underlay: netip.MustParseAddr("192.0.2.2"),
		Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{y}, Remote: []Endpoint{on(x, "192.0.2.1")}}},
	}}).Problems; len(p) > 0 {
		b.Fatal(p)
	}
	addGuest(b, f, "x", x)
	newNamespace(b, "y")
	configureGuest(b, "y", y, other.ask(order{Do: "tap", Guest: "y", Endpoint: y}).MTU)
	for i, host := range []string{"plain1", "plain2"} {
		plainHost(b, host, "0")
		plainGuest(b, host, "p"+strconv.Itoa(i+1), "10.9.0."+strconv.Itoa(i+2)+"/24", 1450)
	}
	ip(b, "plain1", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", "plain2")
	for i, host := range []string{"plain1", "plain2"} {
		ip(b, host, "addr", "add", "198.51.100."+strconv.Itoa(i+1)+"/24", "dev", "up0")
		ip(b, host, "link", "set", "up0", "up")
		ip(b, host, "link", "add", "vx", "mtu", "1450", "type", "vxlan", "id", "5", "dstport", "4789", "local", "198.51.100."+strconv.Itoa(i+1), "remote", "198.51.100."+strconv.Itoa(2-i))
		ip(b, host, "link", "set", "vx", "master", "br0", "up")
	}
	compare(
		b,
		func() speed { return stream(b, "x", "y", "10.1.0.3:5001", streamSpan) },
		func() speed { return stream(b, "p1", "p2", "10.9.0.3:5001", streamSpan) },
	)
	other.ask(order{Do: "destroy"})
}

// BenchmarkGuestToOutside compares what a guest sends to the outside with a host
// that routes and translates by one rule.
func BenchmarkGuestToOutside(b *testing.B) {
	setBridgeCalls(b, "0")
	newOutside(b)
	f := newFabric(b)
	x := nic(1, 2)
	apply(b, f, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{x}}}})
	addGuest(b, f, "x", x)
	plainHost(b, "plain", "0")
	plainGuest(b, "plain", "px", "10.9.0.2/24", 1500)
	newNamespace(b, "pout")
	ip(b, "plain", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", "pout")
	for i, ns := range []string{"plain", "pout"} {
		ip(b, ns, "addr", "add", "198.51.100."+strconv.Itoa(i+1)+"/24", "dev", "up0")
		ip(b, ns, "link", "set", "up0", "up")
	}
	ip(b, "plain", "addr", "add", "10.9.0.1/24", "dev", "br0")
	ip(b, "px", "route", "add", "default", "via", "10.9.0.1")
	run(b, "ip", "netns", "exec", "plain", "nft", "add table ip n; add chain ip n p { type nat hook postrouting priority 100; }; add rule ip n p oifname up0 masquerade")
	within(b, "plain", func() error { return writeSysctl("net/ipv4/ip_forward", "1") })
	compare(
		b,
		func() speed { return stream(b, "x", "outside", "192.0.2.2:5001", streamSpan) },
		func() speed { return stream(b, "px", "pout", "198.51.100.2:5001", streamSpan) },
	)
}

// cost is the processor time of sending one small packet from one namespace to
// another, in nanoseconds: the way through the bridge is part of the sending.
func cost(b *testing.B, from, to string) float64 {
	b.Helper()
	const packets = 100_000
	var each float64
	within(b, from, func() error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		before := spent(b, unix.RUSAGE_THREAD)
		packet := make([]byte, 64)
		for range packets {
			_, _ = c.Write(packet) // refused now and then: nobody listens
		}
		each = float64(spent(b, unix.RUSAGE_THREAD)-before) / packets
		return nil
	})
	return each
}

// BenchmarkPacketCost compares the processor time of a small packet between guests
// on our bridge and on a plain one.
func BenchmarkPacketCost(b *testing.B) {
	for _, frames := range []string{"0", "1"} {
		b.Run("frames shown to the IP rules="+frames, func(b *testing.B) {
			guestPairs(b, frames)
			var ours, plain []float64
			for b.Loop() {
				ours, plain = append(ours, cost(b, "x", "10.1.0.3:9")), append(plain, cost(b, "px", "10.9.0.3:9"))
			}
			b.ReportMetric(middle(ours), "ours-ns")
			b.ReportMetric(middle(plain), "plain-ns")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// guestPairs makes two guests on our bridge, x and y, and two on a plain one.
func guestPairs(b *testing.B, frames string) {
	b.Helper()
	setBridgeCalls(b, frames)
	f := newFabric(b)
	x, y := nic(1, 2), nic(1, 3)
	apply(b, f, Desired{Networks: []Network{{Spec: newNetwork(1), Local: []Endpoint{x, y}}}})
	addGuest(b, f, "x", x)
	addGuest(b, f, "y", y)
	plainHost(b, "plain", frames)
	plainGuest(b, "plain", "px", "10.9.0.2/24", 1500)
	plainGuest(b, "plain", "py", "10.9.0.3/24", 1500)
}

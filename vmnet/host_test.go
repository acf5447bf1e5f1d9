package vmnet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/vishvananda/netns"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// patience bounds each wait of a test.
const patience = 20 * time.Second

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip runs `ip` in a namespace; "" is the tests' own.
func ip(t testing.TB, ns string, args ...string) string {
	t.Helper()
	if ns != "" {
		args = append([]string{"-n", ns}, args...)
	}
	return run(t, append([]string{"ip"}, args...)...)
}

// newNamespace makes a namespace that ends with the test.
func newNamespace(t testing.TB, name string) {
	t.Helper()
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	ip(t, name, "link", "set", "lo", "up")
}

// within calls do on a thread that is in a namespace; sockets that do makes stay
// there. "" is the tests' own, without a thread, and "self" with one.
func within(t testing.TB, ns string, do func() error) {
	t.Helper()
	if err := withinErr(ns, do); err != nil {
		t.Fatalf("in %q: %v", ns, err)
	}
}

func withinErr(ns string, do func() error) error {
	if ns == "" {
		return do()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		if ns != "self" {
			var handle netns.NsHandle
			if handle, err = netns.GetFromName(ns); err == nil {
				err = netns.Set(handle)
				_ = handle.Close()
			}
		}
		if err == nil {
			err = do()
		}
		result <- err
	}()
	return <-result
}

// ping sends one echo request of a size that must not be cut into fragments.
func ping(t testing.TB, ns, to string, size int) bool {
	t.Helper()
	args := []string{"netns", "exec", ns, "ping", "-M", "do", "-c1", "-W1", "-s", fmt.Sprint(size), to}
	if ns == "" {
		args = []string{"netns", "exec"}
		t.Fatal("ping from the tests' own namespace")
	}
	return exec.Command("ip", args...).Run() == nil
}

// echo serves TCP and UDP in a namespace: it answers with its name and the address
// of who asked.
func echo(t testing.TB, ns, name string, address string) {
	t.Helper()
	within(t, ns, func() error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
				_ = c.Close()
			}
		}()
		p, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = p.Close() })
		go func() {
			buf := make([]byte, 1500)
			for {
				_, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = p.WriteTo(fmt.Appendf(nil, "%s %s\n", name, from), from)
			}
		}()
		return nil
	})
}

// ask gives what an echo answered; "" for none.
func ask(t testing.TB, ns, protocol, to string) string {
	t.Helper()
	var line string
	err := withinErr(ns, func() error {
		c, err := net.DialTimeout(protocol, to, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if protocol[:3] == "udp" {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		line, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	if err != nil {
		t.Logf("ask %s %s from %q: %v", protocol, to, ns, err)
	}
	return strings.TrimSpace(line)
}

// newFabric opens a Fabric on the tests' own host; everything of it is destroyed
// with the test.
func newFabric(t testing.TB, change ...func(*Config)) *Fabric {
	t.Helper()
	c := Config{StateDir: t.TempDir(), Owner: "node-1", ResolvConf: os.DevNull, Logger: testLog(t)}
	for _, do := range change {
		do(&c)
	}
	f, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Destroy(context.Background()); err != nil {
			t.Errorf("destroy: %v", err)
		}
	})
	return f
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// apply applies and wants no problem.
func apply(t testing.TB, f *Fabric, want Desired) {
	t.Helper()
	if err := f.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	for name, err := range f.Problems() {
		t.Errorf("%s: %v", name, err)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// newNetwork is network number n: 10.n.0.0/24 and fd00:n::/64.
func newNetwork(n int, change ...func(*blixardv1.Network)) *blixardv1.Network {
	spec := &blixardv1.Network{
		Id: fmt.Sprintf("net-%016d", n), Name: fmt.Sprintf("net%d", n), Type: blixardv1.NetworkType_nat,
		Ipv4Subnet: fmt.Sprintf("10.%d.0.0/24", n), Ipv6Subnet: fmt.Sprintf("fd00:%d::/64", n), Vni: uint32(n),
	}
	for _, do := range change {
		do(spec)
	}
	return spec
}

func withRules(r *blixardv1.NetworkRules) func(*blixardv1.Network) {
	return func(n *blixardv1.Network) { n.Rules = r }
}

// nic is the endpoint of VM k (from 2) in network n.
func nic(n, k int) Endpoint {
	return Endpoint{
		AllocationID: fmt.Sprintf("alloc-%d-%d", n, k), VMName: fmt.Sprintf("vm%d", k),
		MAC:  fmt.Sprintf("52:54:00:00:%02x:%02x", n, k),
		IPv4: netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", n, k)),
		IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", n, k)),
	}
}

func on(e Endpoint, node string) Endpoint {
	e.Node = netip.MustParseAddr(node)
	return e
}

// vethTap attaches the namespace of a guest instead of a tap.
func vethTap(guest string, e Endpoint) func(name, alias string, _ TapOptions) error {
	return func(name, alias string, _ TapOptions) error {
		for _, args := range [][]string{
			{"link", "add", name, "type", "veth", "peer", "name", "eth0", "address", e.MAC, "netns", guest},
			{"link", "set", name, "alias", alias},
		} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %v: %w: %s", args, err, out)
			}
		}
		return nil
	}
}

// addGuest makes the namespace of a guest, attaches it and gives it its addresses.
func addGuest(t testing.TB, f *Fabric, name string, e Endpoint) {
	t.Helper()
	newNamespace(t, name)
	f.makeTap = vethTap(name, e)
	_, mtu, err := f.Tap(t.Context(), e.AllocationID, e.Index, TapOptions{})
	if err != nil {
		t.Fatal(err)
	}
	configureGuest(t, name, e, mtu)
}

// configureGuest sets what the guest's own software would.
func configureGuest(t testing.TB, name string, e Endpoint, mtu int) {
	t.Helper()
	ip(t, name, "link", "set", "eth0", "up", "mtu", fmt.Sprint(mtu))
	if e.IPv4.IsValid() {
		ip(t, name, "addr", "add", e.IPv4.String()+"/24", "dev", "eth0")
		ip(t, name, "route", "add", "default", "via", gatewayOf(netip.PrefixFrom(e.IPv4, 24)).String())
	}
	if e.IPv6.IsValid() {
		ip(t, name, "addr", "add", e.IPv6.String()+"/64", "dev", "eth0", "nodad")
		ip(t, name, "route", "add", "default", "via", gatewayOf(netip.PrefixFrom(e.IPv6, 64)).String())
	}
}

// newOutside makes a namespace that the tests' host reaches by the link "up0", with
// 192.0.2.1 and 2001:db8::1 on the host's side.
func newOutside(t testing.TB) {
	t.Helper()
	newNamespace(t, "outside")
	ip(t, "", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "up0").Run() })
	ip(t, "", "addr", "add", "192.0.2.1/24", "dev", "up0")
	ip(t, "", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	if err := writeSysctl("net/ipv6/conf/up0/accept_dad", "0"); err != nil {
		t.Fatal(err)
	}
	ip(t, "", "link", "set", "up0", "up")
	ip(t, "outside", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	ip(t, "outside", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	ip(t, "outside", "link", "set", "eth0", "up")
}

// order is what the tests ask of a host in another process.
type order struct {
	Do       string // open, apply, tap, close, destroy, problems
	Config   Config
	Desired  Desired
	Specs    []json.RawMessage // of Desired's networks
	Guest    string            // namespace to attach
	Endpoint Endpoint
}

type answer struct {
	Name     string
	MTU      int
	Problems []string
	Err      string
}

// remoteHost is a Fabric in another process and namespace.
type remoteHost struct {
	t   testing.TB
	cmd *exec.Cmd
	mu  sync.Mutex
	in  *json.Encoder
	out *json.Decoder
}

// newRemoteHost starts one in a namespace that is there.
func newRemoteHost(t testing.TB, ns string, c Config) *remoteHost {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, "/proc/self/exe")
	if self, err := os.Executable(); err == nil {
		cmd.Args[len(cmd.Args)-1] = self
	}
	cmd.Env = append(os.Environ(), roleEnv+"=host")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &remoteHost{t: t, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out)}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	c.Logger = nil
	h.ask(order{Do: "open", Config: c})
	return h
}

// ask gives an order and wants it done.
func (h *remoteHost) ask(o order) answer {
	h.t.Helper()
	a, err := h.try(o)
	if err != nil {
		h.t.Fatalf("%s: %v", o.Do, err)
	}
	return a
}

func (h *remoteHost) try(o order) (answer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, n := range o.Desired.Networks {
		spec, err := protojson.Marshal(n.Spec)
		if err != nil {
			return answer{}, err
		}
		o.Specs = append(o.Specs, spec)
		o.Desired.Networks[i].Spec = nil
		defer func() { o.Desired.Networks[i].Spec = n.Spec }()
	}
	var a answer
	if err := h.in.Encode(o); err != nil {
		return a, err
	}
	if err := h.out.Decode(&a); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

// serveHost is the other process's side.
func serveHost(in io.Reader, out io.Writer) {
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	var f *Fabric
	for {
		var o order
		if dec.Decode(&o) != nil {
			return
		}
		var a answer
		var err error
		switch o.Do {
		case "open":
			f, err = Open(o.Config)
		case "apply":
			for i, text := range o.Specs {
				o.Desired.Networks[i].Spec = &blixardv1.Network{}
				err = errors.Join(err, protojson.Unmarshal(text, o.Desired.Networks[i].Spec))
			}
			err = errors.Join(err, f.Apply(context.Background(), o.Desired))
			for name, p := range f.Problems() {
				a.Problems = append(a.Problems, name+": "+p.Error())
			}
		case "tap":
			f.makeTap = vethTap(o.Guest, o.Endpoint)
			a.Name, a.MTU, err = f.Tap(context.Background(), o.Endpoint.AllocationID, o.Endpoint.Index, TapOptions{})
		case "close":
			err = f.Close()
		case "destroy":
			err = f.Destroy(context.Background())
		}
		if err != nil {
			a.Err = err.Error()
		}
		_ = enc.Encode(a)
	}
}

// lines gives what a command says, for comparing.
func lines(t testing.TB, args ...string) []string {
	t.Helper()
	var out []string
	for _, l := range bytes.Split([]byte(run(t, args...)), []byte("\n")) {
		out = append(out, string(l))
	}
	return out
}

package vmnet

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// census is all that the host has of what a Fabric makes.
func census(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, args := range [][]string{
		{"ip", "-br", "link"},
		{"ip", "-o", "addr"},
		{"ip", "neigh", "show", "nud", "permanent"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"bridge", "fdb"},
		{"nft", "list", "ruleset"},
	} {
		for _, l := range lines(t, args...) {
			all = append(all, args[0]+": "+strings.TrimSpace(l))
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw6", "packet"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			t.Fatal(err)
		}
		for scan := bufio.NewScanner(strings.NewReader(string(text))); scan.Scan(); {
			// The local address and port.
			if fields := strings.Fields(scan.Text()); len(fields) > 3 && fields[3] != "06" {
				all = append(all, table+": "+fields[1])
			}
		}
	}
	paths, err := filepath.Glob("/proc/sys/net/ipv[46]/conf/*/*forward*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(paths, "/proc/sys/net/ipv4/ip_forward") {
		text, err := os.ReadFile(p)
		if err == nil {
			all = append(all, p+" "+strings.TrimSpace(string(text)))
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return append(all, fmt.Sprint("files: ", len(fds)))
}

// sameCensus wants nothing more and nothing less than before.
func sameCensus(t testing.TB, before, after []string) {
	t.Helper()
	for _, l := range after {
		if !slices.Contains(before, l) {
			t.Errorf("left: %s", l)
		}
	}
	for _, l := range before {
		if !slices.Contains(after, l) {
			t.Errorf("lost: %s", l)
		}
	}
}

// randomDesired is a node's whole network by chance.
func randomDesired(r *rand.Rand) Desired {
	want := Desired{}
	if r.IntN(2) == 0 {
		want.Underlay = netip.MustParseAddr("192.0.2.1")
	}
	for n := 1; n <= 4; n++ {
		if r.IntN(2) == 0 {
			continue
		}
		spec := newNetwork(n, withRules(&blixardv1.NetworkRules{Isolated: r.IntN(3) == 0, Internal: r.IntN(3) == 0, RateMbit: uint32(r.IntN(2) * 100)}))
		if r.IntN(4) == 0 {
			spec.Ipv6Subnet = ""
		}
		if r.IntN(3) == 0 {
			spec.Rules.Egress = []*blixardv1.NetworkRule{{Action: "deny", Cidr: "198.51.100.0/24", Protocol: blixardv1.Protocol_tcp, PortFirst: 25}, {Action: "allow"}}
		}
		network := Network{Spec: spec}
		for k := 2; k < 6; k++ {
			e := nic(n, k)
			if spec.Ipv6Subnet == "" {
				e.IPv6 = netip.Addr{}
			}
			switch r.IntN(3) {
			case 0:
				network.Local = append(network.Local, e)
				if r.IntN(2) == 0 {
					want.Ports = append(want.Ports, Port{HostPort: uint16(8000 + 10*n + k), GuestPort: 80, IPv4: e.IPv4, IPv6: e.IPv6})
				}
			case 1:
				network.Remote = append(network.Remote, on(e, "192.0.2.2"))
				if r.IntN(2) == 0 {
					want.Ports = append(want.Ports, Port{HostPort: uint16(8000 + 10*n + k), Node: netip.MustParseAddr("192.0.2.2"), Protocol: blixardv1.Protocol_udp})
				}
			}
		}
		want.Networks = append(want.Networks, network)
	}
	return want
}

// leakRounds of making and removing.
const leakRounds = 320

// TestNothingIsLeft: whatever came and went, in the end the host has what it had.
func TestNothingIsLeft(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	newOutside(t)
	f, err := Open(Config{StateDir: t.TempDir(), Owner: "node-1", ResolvConf: os.DevNull})
	if err != nil {
		t.Fatal(err)
	}
	before := census(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for round := range leakRounds {
		want := randomDesired(random)
		apply(t, f, want)
		for _, n := range want.Networks {
			for _, e := range n.Local {
				if random.IntN(2) == 0 {
					continue
				}
				if _, _, err := f.Tap(t.Context(), e.AllocationID, e.Index, TapOptions{UID: 1 + random.IntN(2)}); err != nil {
					t.Fatal(err)
				}
				if random.IntN(4) == 0 {
					if err := f.Untap(e.AllocationID); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if round%10 == 0 {
			noDrift(t, f)
		}
		if round%40 == 39 {
			apply(t, f, Desired{})
			sameCensus(t, before, census(t))
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	if err := f.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameCensus(t, before, census(t))
}

func noDrift(t testing.TB, f *Fabric) {
	t.Helper()
	drifts, err := f.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drifts {
		t.Errorf("drift: %s", d.What)
	}
}

// TestKilledInTheMiddle: a daemon that is killed while it changes the kernel is
// followed by one that finishes, and nothing is left that nobody knows of.
func TestKilledInTheMiddle(t *testing.T) {
	newOutside(t)
	state := t.TempDir()
	before := census(t)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 2))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for round := range 40 {
		cmd := exec.Command(self, "-test.run", "^$")
		cmd.Env = append(os.Environ(), roleEnv+"=victim", "BLIXARD_TEST_STATE="+state, fmt.Sprint("BLIXARD_TEST_SEED=", round))
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(20+random.IntN(180)) * time.Millisecond)
		_ = cmd.Process.Signal(syscall.SIGKILL)
		if cmd.Wait() != nil {
			killed++
		}
		// What it had started goes on for a moment, with what it inherited.
		for begin := time.Now(); syscall.Kill(-cmd.Process.Pid, 0) == nil; <-time.After(time.Millisecond) {
			if time.Since(begin) > patience {
				t.Fatal("what the victim started does not end")
			}
		}
		f, err := Open(Config{StateDir: state, Owner: "node-1", ResolvConf: os.DevNull})
		if err != nil {
			t.Fatal(err)
		}
		apply(t, f, randomDesired(random))
		noDrift(t, f)
		if round%4 == 3 {
			apply(t, f, Desired{})
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if round%4 == 3 {
			sameCensus(t, before, census(t))
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("killed %d times", killed)
}

// beVictim changes the kernel until it is killed.
func beVictim() {
	var seed uint64
	_, _ = fmt.Sscan(os.Getenv("BLIXARD_TEST_SEED"), &seed)
	random := rand.New(rand.NewPCG(seed, 3))
	f, err := Open(Config{StateDir: os.Getenv("BLIXARD_TEST_STATE"), Owner: "node-1", ResolvConf: os.DevNull})
	for err == nil {
		want := randomDesired(random)
		if err = f.Apply(context.Background(), want); err != nil {
			break
		}
		for _, n := range want.Networks {
			for _, e := range n.Local {
				if _, _, err = f.Tap(context.Background(), e.AllocationID, e.Index, TapOptions{}); err != nil {
					break
				}
			}
		}
	}
	fmt.Fprintln(os.Stderr, "victim:", err)
}

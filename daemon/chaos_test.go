package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/wal"
)

const (
	// chaosDefault is how long faults happen in `make test`; `make chaos` has more.
	chaosDefault = 45 * time.Second
	// chaosEnv names another time.
	chaosEnv = "BLIXARD_TEST_CHAOS"
	// faultMin and faultMax are how long one fault lasts, and what comes after it.
	faultMin, faultMax = 500 * time.Millisecond, 4 * time.Second
	// registersEvery so long others are written.
	registersEvery = 20 * time.Second
	// lossPercent of packets that a lossy host hears.
	lossPercent = 30
	// slowSync of a slow disk.
	slowSync = 700 * time.Millisecond
)

// hosts are network namespaces that are joined by a bridge in another.
type hosts struct {
	t    testing.TB
	hub  string
	name []string
}

func run(t testing.TB, input string, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

func address(k int) string { return fmt.Sprintf("10.99.0.%d", k+1) }

// newHosts makes so many hosts on a network of their own. They end with the test.
func newHosts(t testing.TB, count int) *hosts {
	t.Helper()
	h := &hosts{t: t, hub: fmt.Sprintf("blixard%d-hub", os.Getpid())}
	add := func(name string) {
		run(t, "", "ip", "netns", "add", name)
		t.Cleanup(func() { run(t, "", "ip", "netns", "del", name) })
		run(t, "", "ip", "-n", name, "link", "set", "lo", "up")
	}
	add(h.hub)
	run(t, "", "ip", "-n", h.hub, "link", "add", "bridge", "type", "bridge")
	run(t, "", "ip", "-n", h.hub, "link", "set", "bridge", "up")
	for k := range count {
		name, port := fmt.Sprintf("blixard%d-%d", os.Getpid(), k+1), fmt.Sprintf("port%d", k+1)
		add(name)
		h.name = append(h.name, name)
		run(t, "", "ip", "-n", h.hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
		run(t, "", "ip", "-n", h.hub, "link", "set", port, "master", "bridge", "up")
		run(t, "", "ip", "-n", name, "addr", "add", address(k)+"/24", "dev", "eth0")
		run(t, "", "ip", "-n", name, "link", "set", "eth0", "up")
	}
	return h
}

// rules replaces what a host does to packets that come in.
func (h *hosts) rules(k int, rules ...string) {
	h.t.Helper()
	// The table is gone after the host lost its power.
	script := "add table inet chaos\nadd chain inet chaos in { type filter hook input priority 0; }\nflush chain inet chaos in\n"
	for _, r := range rules {
		script += "add rule inet chaos in " + r + "\n"
	}
	run(h.t, script, "ip", "netns", "exec", h.name[k], "nft", "-f", "-")
}

// deaf lets a host hear nothing of another.
func deaf(to int) string { return "ip saddr " + address(to) + " drop" }

// chaos is a cluster on hosts and what happens to it.
type chaos struct {
	*cluster
	hosts  *hosts
	random *rand.Rand
	counts map[string]int
}

// startChaos forms a cluster of three hosts whose clocks differ.
func startChaos(t testing.TB) *chaos {
	t.Helper()
	c := &chaos{cluster: &cluster{t: t}, hosts: newHosts(t, 3), random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), counts: map[string]int{}}
	for k := range 3 {
		n := newNode(t, "--id", fmt.Sprint("n", k+1))
		n.host = c.hosts.name[k]
		n.env = []string{"BLIXARD_NODE_BIND=" + address(k) + ":7700", failpoint.DiskEnv + "=" + n.diskFault()}
		n.start()
		c.nodes = append(c.nodes, n)
	}
	c.join()
	for k, offset := range []string{"0", "1h", "-3m"} {
		n := c.nodes[k]
		n.env = append(n.env, "CLOCK_OFFSET_BLIXARD="+offset)
		n.stop()
		n.start()
	}
	return c
}

// diskFault is the file that says what the node's disk does.
func (n *node) diskFault() string { return filepath.Join(n.dir, "disk-fault") }

func (c *chaos) pause() {
	<-time.After(faultMin + time.Duration(c.random.Int64N(int64(faultMax-faultMin))))
}

// fault lets one thing go wrong for a while.
func (c *chaos) fault() {
	k := c.random.IntN(len(c.nodes))
	if lead := c.leader(); lead != nil && c.random.IntN(2) == 0 {
		k = slices.Index(c.nodes, lead)
	}
	n, other := c.nodes[k], (k+1+c.random.IntN(2))%3
	kinds := slices.Sorted(maps.Keys(chaosFaults))
	kind := kinds[c.random.IntN(len(kinds))]
	c.counts[kind]++
	chaosFaults[kind](c, n, k, other)
}

// chaosFaults are what can go wrong with node n on host k; other is another host.
var chaosFaults = map[string]func(c *chaos, n *node, k, other int){
	"kill -9": func(c *chaos, n *node, _, _ int) {
		n.kill9()
		c.pause()
		n.start()
	},
	"kill -9 of all": func(c *chaos, _ *node, _, _ int) {
		for _, n := range c.nodes {
			n.kill9()
		}
		for _, n := range c.nodes {
			n.launch()
		}
		for _, n := range c.nodes {
			if !n.answers() {
				c.t.Fatalf("the daemon ended:\n%s", n.log())
			}
		}
	},
	"SIGSTOP": func(c *chaos, n *node, _, _ int) {
		_ = n.cmd.Process.Signal(syscall.SIGSTOP)
		c.pause()
		_ = n.cmd.Process.Signal(syscall.SIGCONT)
	},
	"one host cut off": func(c *chaos, _ *node, k, _ int) {
		c.hosts.rules(k, deaf((k+1)%3), deaf((k+2)%3))
		c.hosts.rules((k+1)%3, deaf(k))
		c.hosts.rules((k+2)%3, deaf(k))
		c.pause()
		c.heal()
	},
	"one path cut": func(c *chaos, _ *node, k, other int) {
		c.hosts.rules(k, deaf(other))
		c.hosts.rules(other, deaf(k))
		c.pause()
		c.heal()
	},
	"one direction cut": func(c *chaos, _ *node, k, other int) {
		c.hosts.rules(k, deaf(other))
		c.pause()
		c.heal()
	},
	"a host hears nothing": func(c *chaos, _ *node, k, _ int) {
		c.hosts.rules(k, deaf((k+1)%3), deaf((k+2)%3))
		c.pause()
		c.heal()
	},
	"flapping": func(c *chaos, _ *node, k, _ int) {
		for range 5 {
			c.hosts.rules(k, deaf((k+1)%3), deaf((k+2)%3))
			<-time.After(faultMin)
			c.heal()
			<-time.After(faultMin)
		}
	},
	"loss": func(c *chaos, _ *node, k, _ int) {
		c.hosts.rules(k, fmt.Sprintf("ip saddr 10.99.0.0/24 numgen random mod 100 < %d drop", lossPercent))
		c.pause()
		c.heal()
	},
	"slow disk": func(c *chaos, n *node, _, _ int) {
		c.setDisk(n, wal.PointAppendSync+" "+slowSync.String())
		c.pause()
		c.setDisk(n, "")
	},
	"suspended leader": func(c *chaos, n *node, k, _ int) {
		// It goes on before it can hear that another leads.
		_ = n.cmd.Process.Signal(syscall.SIGSTOP)
		c.hosts.rules(k, deaf((k+1)%3), deaf((k+2)%3))
		c.pause()
		_ = n.cmd.Process.Signal(syscall.SIGCONT)
		c.pause()
		c.heal()
	},
}

func (c *chaos) setDisk(n *node, what string) {
	if err := os.WriteFile(n.diskFault(), []byte(what), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chaos) heal() {
	for k := range c.nodes {
		c.hosts.rules(k)
	}
}

// Promises 1 and 2: three daemons on hosts of their own, with clocks that are off,
// under kill -9, pauses, partitions of every kind, loss and slow disks, keep every
// change that was acknowledged, and no read tells of an older state.
func TestClusterUnderChaosIsLinearizable(t *testing.T) {
	last := chaosDefault
	if text := os.Getenv(chaosEnv); text != "" {
		var err error
		if last, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	c := startChaos(t)
	h := newHistory(t)
	h.renew(c.nodes)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for id := range 6 {
		wg.Go(func() { h.work(ctx, id, c.nodes[id%3]) })
	}
	renewed := time.Now()
	for begun := time.Now(); time.Since(begun) < last; {
		c.fault()
		before := h.acked.Load()
		eventually(t, "changes are acknowledged again", healLimit, func() bool { return h.acked.Load() > before+int64(c.random.IntN(100)) })
		if time.Since(renewed) > registersEvery {
			h.renew(c.nodes)
			renewed = time.Now()
		}
	}
	cancel()
	wg.Wait()
	if done := h.acked.Load(); done < int64(last/time.Second) {
		t.Fatalf("only %d changes were acknowledged in %v: it proves nothing", done, last)
	}
	h.check(c.nodes)
	t.Logf("faults: %v", c.counts)
}

// A node whose clock is far off does not join, and the refusal says so.
func TestJoinWithAWrongClock(t *testing.T) {
	first, off := startNode(t, "--id", "n1"), newNode(t, "--id", "n2")
	off.env = []string{"CLOCK_OFFSET_BLIXARD=2h"}
	off.start()
	token, err := first.client.Cluster().CreateToken(t.Context(), &blixardv1.CreateTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = off.client.Cluster().Join(t.Context(), &blixardv1.JoinRequest{Peer: token.GetAddress(), Token: token.GetText()})
	if !problem.HasCode(err, "member.clock") {
		t.Errorf("joined with a clock that is two hours off: %v", err)
	}
}

// strangers connect to a node and say nothing.
const strangers = 3000

// Strangers that connect by the thousand and say nothing disturb nobody: most are sent
// away at once, the rest after a while, and the node goes on to lead.
func TestHalfOpenConnections(t *testing.T) {
	n := startNode(t, "--id", "n1")
	n.create("a", idle)
	st, err := n.client.Cluster().GetCluster(t.Context(), &blixardv1.GetClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	address := st.GetMembers()[0].GetMember().GetAddress()
	var all []net.Conn
	for range strangers {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		all = append(all, c)
	}
	if err := n.label("a", "during"); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		_ = c.SetReadDeadline(time.Now().Add(healLimit))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a stranger that says nothing is kept")
		}
	}
	after, err := n.client.Cluster().GetCluster(t.Context(), &blixardv1.GetClusterRequest{})
	if err != nil || after.GetTerm() != st.GetTerm() || !after.GetHealthy() {
		t.Errorf("term %d before, %d after: %v", st.GetTerm(), after.GetTerm(), err)
	}
}

// Certificates renew themselves, without a restart and without a call that fails;
// and a cluster that was without power until all of them had ended goes on, too.
func TestCertificatesRenew(t *testing.T) {
	c := startCluster(t)
	ends := func(n *node) time.Time {
		keys, err := auth.LoadKeypair(filepath.Join(n.data, "tls"))
		if err != nil {
			t.Fatal(err)
		}
		return keys.NotAfter()
	}
	c.nodes[0].create("a", idle)
	// Two thirds of the life are over, then all of it and as much again.
	for _, offset := range []string{"504h", "1440h"} {
		before := map[*node]time.Time{}
		for _, n := range c.nodes {
			before[n] = ends(n)
			n.env = []string{"CLOCK_OFFSET_BLIXARD=" + offset}
			n.kill9()
		}
		for _, n := range c.nodes {
			n.launch()
		}
		for k, n := range c.nodes {
			if !n.answers() {
				t.Fatalf("the daemon ended:\n%s", n.log())
			}
			eventually(t, "a new certificate", healLimit, func() bool { return ends(n).After(before[n]) })
			eventually(t, "a change is made through the node", healLimit, func() bool { return n.label("a", fmt.Sprint(offset, k)) == nil })
		}
	}
}

// A disk that fails once ends the process: what the kernel kept of a failed sync
// is not known, so nothing is acknowledged on it.
func TestFailedSyncEndsTheDaemon(t *testing.T) {
	n := newNode(t)
	n.env = []string{failpoint.DiskEnv + "=" + n.diskFault()}
	n.start()
	n.create("a", idle)
	if err := n.label("a", "before"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.diskFault(), []byte(wal.PointAppendSync+" fail"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.label("a", "lost"); err == nil {
		t.Fatal("a change was acknowledged that is not on the disk")
	}
	<-n.exited
	if code := n.cmd.ProcessState.ExitCode(); code == 0 {
		t.Error("the daemon ended as if nothing were wrong")
	}
	if err := os.Remove(n.diskFault()); err != nil {
		t.Fatal(err)
	}
	n.start()
	if got := n.get("a").GetLabels()["l"]; got != "before" && got != "lost" {
		t.Errorf("the label is %q", got)
	}
}

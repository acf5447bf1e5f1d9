package daemon_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

const (
	// chaosRounds of a fault and a pause; `make soak` has more.
	chaosRounds = 8
	// faultLast and calmLast are how long a fault and what comes after it last.
	faultLast = 1500 * time.Millisecond
	calmLast  = 1500 * time.Millisecond
	// healLimit bounds the wait until a healed cluster answers again.
	healLimit = 60 * time.Second
	// registers are independent VMs whose labels are written and read.
	registers = 4
	// checkLimit bounds the search for a linearization.
	checkLimit = 2 * time.Minute
)

// cluster is three daemons that are members of one cluster.
type cluster struct {
	t     testing.TB
	nodes []*node
}

func startCluster(t testing.TB, flags ...string) *cluster {
	t.Helper()
	c := &cluster{t: t}
	for k := range 3 {
		c.nodes = append(c.nodes, startNode(t, append([]string{"--id", fmt.Sprint("n", k+1)}, flags...)...))
	}
	token, err := c.nodes[0].client.Cluster().CreateToken(t.Context(), &blixardv1.CreateTokenRequest{Uses: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes[1:] {
		if _, err := n.client.Cluster().Join(t.Context(), &blixardv1.JoinRequest{Peer: token.GetAddress(), Token: token.GetText()}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "three voters", healLimit, func() bool { return c.voters(c.nodes[0]) == 3 })
	return c
}

// voters counts those that Raft counts, as a node tells.
func (c *cluster) voters(n *node) int {
	st, err := n.client.Cluster().GetCluster(c.t.Context(), &blixardv1.GetClusterRequest{})
	voters := 0
	for _, m := range st.GetMembers() {
		if err == nil && m.GetRaftRole() == "voter" {
			voters++
		}
	}
	return voters
}

// leader is the node that leads, as far as one of the nodes knows.
func (c *cluster) leader() *node {
	for _, n := range c.nodes {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		st, err := n.client.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{})
		cancel()
		if err == nil && st.GetLeader() {
			return n
		}
	}
	return nil
}

// registerModel is one register: a write of n, or a read of what was there.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, registers)
		for _, op := range history {
			k := op.Input.(registerInput).register
			parts[k] = append(parts[k], op)
		}
		return parts
	},
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		in := input.(registerInput)
		if in.write {
			return true, in.value
		}
		return output.(int) == state.(int), state
	},
}

type registerInput struct {
	register int
	write    bool
	value    int
}

// history of what clients did and saw.
type history struct {
	mu    sync.Mutex
	begun time.Time
	ops   []porcupine.Operation
	acked atomic.Int64
}

func (h *history) now() int64 { return int64(time.Since(h.begun)) }

func (h *history) add(client int, in registerInput, call, end int64, out int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

// forever is when an operation ends whose answer was lost.
const forever = int64(time.Hour)

// work writes and reads through one node until ctx ends.
func (h *history) work(ctx context.Context, id int, n *node, value *atomic.Int64) {
	c, err := client.Dial(ctx, client.Config{Addr: "unix:" + n.socket, Timeout: 5 * time.Second})
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	random := rand.New(rand.NewPCG(uint64(id), 1))
	for ctx.Err() == nil {
		in := registerInput{register: random.IntN(registers), write: random.IntN(2) == 0}
		name := fmt.Sprint("r", in.register)
		call := h.now()
		if in.write {
			in.value = int(value.Add(1))
			_, err := c.VMs().LabelVM(ctx, &blixardv1.LabelVMRequest{Name: name, Labels: map[string]string{"v": strconv.Itoa(in.value)}})
			if err != nil {
				h.add(id, in, call, forever, 0)
				id += 100 // a client whose answer was lost goes on as another
				continue
			}
			h.acked.Add(1)
			h.add(id, in, call, h.now(), 0)
			continue
		}
		resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: name})
		if err == nil {
			seen, _ := strconv.Atoi(resp.GetVm().GetLabels()["v"])
			h.add(id, in, call, h.now(), seen)
		}
	}
}

// Promises 1 and 2: three daemons under kill -9 and pauses keep every change that
// was acknowledged, and no read tells of an older state.
func TestClusterUnderChaosIsLinearizable(t *testing.T) {
	c := startCluster(t)
	for k := range registers {
		if _, err := c.nodes[0].client.VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{
			Name: fmt.Sprint("r", k), Spec: &blixardv1.VMSpec{Image: "busybox", Desired: blixardv1.DesiredState_stop},
		}); err != nil {
			t.Fatal(err)
		}
	}
	h := &history{begun: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var value atomic.Int64
	for id := range 6 {
		wg.Go(func() { h.work(ctx, id, c.nodes[id%3], &value) })
	}
	random := rand.New(rand.NewPCG(7, 7))
	for round := range chaosRounds {
		victim := c.nodes[random.IntN(3)]
		if l := c.leader(); round%2 == 0 && l != nil {
			victim = l
		}
		if round%3 == 2 {
			_ = victim.cmd.Process.Signal(syscall.SIGSTOP)
			<-time.After(faultLast)
			_ = victim.cmd.Process.Signal(syscall.SIGCONT)
		} else {
			victim.kill9()
			<-time.After(faultLast)
			victim.start()
		}
		before := h.acked.Load()
		<-time.After(calmLast)
		eventually(t, "changes are acknowledged again", healLimit, func() bool { return h.acked.Load() > before })
	}
	cancel()
	wg.Wait()
	if h.acked.Load() < 100 {
		t.Fatalf("only %d changes were acknowledged", h.acked.Load())
	}
	// What is there at the end is read once more, by every node.
	for k := range registers {
		for id, n := range c.nodes {
			call := h.now()
			resp, err := n.client.VMs().GetVM(t.Context(), &blixardv1.GetVMRequest{Name: fmt.Sprint("r", k)})
			if err != nil {
				t.Fatal(err)
			}
			seen, _ := strconv.Atoi(resp.GetVm().GetLabels()["v"])
			h.add(1_000_000+id, registerInput{register: k}, call, h.now(), seen)
		}
	}
	if got := porcupine.CheckOperationsTimeout(registerModel, h.ops, checkLimit); got != porcupine.Ok {
		t.Fatalf("%d operations are %s", len(h.ops), got)
	}
	t.Logf("%d operations, %d changes acknowledged", len(h.ops), h.acked.Load())
}

// A leader that is killed has a successor, which acknowledges changes and has
// every one that was acknowledged before.
func TestLeaderKilled(t *testing.T) {
	c := startCluster(t)
	if _, err := c.nodes[0].client.VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{
		Name: "a", Spec: &blixardv1.VMSpec{Image: "busybox", Desired: blixardv1.DesiredState_stop},
	}); err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	for round := range 3 {
		var old *node
		eventually(t, "there is a leader", healLimit, func() bool { old = c.leader(); return old != nil })
		other := c.nodes[0]
		if other == old {
			other = c.nodes[1]
		}
		label := func(key string) error {
			_, err := other.client.VMs().LabelVM(t.Context(), &blixardv1.LabelVMRequest{Name: "a", Labels: map[string]string{"k": key}})
			return err
		}
		if err := label(fmt.Sprint("before", round)); err != nil {
			t.Fatal(err)
		}
		old.kill9()
		begun := time.Now()
		resp, err := other.client.VMs().GetVM(t.Context(), &blixardv1.GetVMRequest{Name: "a"})
		if err != nil || resp.GetVm().GetLabels()["k"] != fmt.Sprint("before", round) {
			t.Fatalf("%v, %v", resp, err)
		}
		if err := label(fmt.Sprint("after", round)); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begun))
		old.start()
		eventually(t, "the killed node follows", healLimit, func() bool {
			resp, err := old.client.VMs().GetVM(t.Context(), &blixardv1.GetVMRequest{Name: "a"})
			return err == nil && resp.GetVm().GetLabels()["k"] == fmt.Sprint("after", round)
		})
	}
	t.Logf("acknowledged again after %v", took)
}

package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

const (
	// healLimit bounds the wait until a healed cluster answers again.
	healLimit = 60 * time.Second
)

// cluster is daemons that are members of one cluster.
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
	c.join()
	return c
}

// join lets all nodes join the first, and waits until three vote, or all have joined
// that there are.
func (c *cluster) join() {
	c.t.Helper()
	token, err := c.nodes[0].client.Cluster().CreateToken(c.t.Context(), &blixardv1.CreateTokenRequest{Uses: uint32(len(c.nodes) - 1)})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes[1:] {
		if _, err := n.client.Cluster().Join(c.t.Context(), &blixardv1.JoinRequest{Peer: token.GetAddress(), Token: token.GetText()}); err != nil {
			c.t.Fatal(err)
		}
	}
	if len(c.nodes) < 3 {
		eventually(c.t, "all nodes are there", healLimit, func() bool {
			resp, err := c.nodes[0].client.Nodes().ListNodes(c.t.Context(), &blixardv1.ListNodesRequest{})
			return err == nil && len(resp.GetNodes()) == len(c.nodes)
		})
		return
	}
	eventually(c.t, "three voters", healLimit, func() bool { return c.voters(c.nodes[0]) == 3 })
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

// killLeader kills the node that leads and gives how long it took until a read and a
// change were answered by another. Every change that was acknowledged is there.
func (c *cluster) killLeader(round int) time.Duration {
	t := c.t
	t.Helper()
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
	took := time.Since(begun)
	old.start()
	eventually(t, "the killed node follows", healLimit, func() bool {
		resp, err := old.client.VMs().GetVM(t.Context(), &blixardv1.GetVMRequest{Name: "a"})
		return err == nil && resp.GetVm().GetLabels()["k"] == fmt.Sprint("after", round)
	})
	return took
}

// leaderKills of TestLeaderKilled.
const leaderKills = 3

// A leader that is killed has a successor, which acknowledges changes and has
// every one that was acknowledged before.
func TestLeaderKilled(t *testing.T) {
	c := startCluster(t)
	c.nodes[0].create("a", idle)
	var took []time.Duration
	for round := range leaderKills {
		took = append(took, c.killLeader(round))
	}
	t.Logf("acknowledged again after %v", took)
}

// BenchmarkLeaderKilled gives the median and the longest time until a read and a
// change are answered again after the leader was killed, at default settings.
func BenchmarkLeaderKilled(b *testing.B) {
	c := startCluster(b)
	c.nodes[0].create("a", idle)
	var took []time.Duration
	for round := 0; b.Loop(); round++ {
		took = append(took, c.killLeader(round))
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds(), "median-s")
	b.ReportMetric(took[len(took)-1].Seconds(), "longest-s")
	b.ReportMetric(0, "ns/op")
}

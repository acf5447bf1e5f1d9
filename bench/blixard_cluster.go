package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

// pollInterval between looks whether a cluster is whole.
const pollInterval = 50 * time.Millisecond

// blixardCluster is three nodes, formed and joined as people do it.
type blixardCluster struct {
	nodes       []*daemonChild
	credentials string
	// addresses of the members, the leader's first.
	addresses []string
}

func startBlixardCluster(ctx context.Context, out io.Writer, program, dir string) (*blixardCluster, error) {
	c := &blixardCluster{credentials: filepath.Join(dir, "operator.pem")}
	for i := range members {
		d := &daemonChild{program: program, socket: filepath.Join(dir, fmt.Sprintf("s%d", i))}
		if err := d.run(ctx, out, "node", "start", "--detach", "--id", fmt.Sprintf("n%d", i+1),
			"--data-dir", filepath.Join(dir, fmt.Sprintf("data%d", i)), "--socket", d.socket, "--bind", "127.0.0.1:0"); err != nil {
			return nil, errors.Join(err, c.stop())
		}
		c.nodes = append(c.nodes, d)
	}
	if err := c.form(ctx, out); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// joinLine is what `cluster init` tells people to run.
var joinLine = regexp.MustCompile(`--peer (\S+) --token (\S+)`)

// form joins the nodes to the first and waits until all of them vote.
func (c *blixardCluster) form(ctx context.Context, out io.Writer) error {
	first := c.nodes[0]
	cmd := exec.CommandContext(ctx, first.program, "--addr", "unix:"+first.socket, "cluster", "init")
	cmd.Stderr = out
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("cluster init: %w", err)
	}
	words := joinLine.FindSubmatch(text)
	if words == nil {
		return fmt.Errorf("cluster init names no peer and token: %s", text)
	}
	for _, n := range c.nodes[1:] {
		if err := n.run(ctx, out, "--addr", "unix:"+n.socket, "cluster", "join", "--peer", string(words[1]), "--token", string(words[2])); err != nil {
			return err
		}
	}
	if err := first.run(ctx, out, "--addr", "unix:"+first.socket, "cluster", "credentials", "bench", "--file", c.credentials); err != nil {
		return err
	}
	return c.awaitVoters(ctx)
}

func (c *blixardCluster) awaitVoters(ctx context.Context) error {
	conn, err := client.Dial(ctx, client.Config{Addr: "unix:" + c.nodes[0].socket})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		got, err := conn.Cluster().GetCluster(ctx, &blixardv1.GetClusterRequest{})
		if err == nil && c.whole(got) {
			return nil
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return errors.Join(errors.New("the cluster did not get three voters in time"), err)
		}
	}
}

// whole tells whether all members vote and one leads, and notes their addresses.
func (c *blixardCluster) whole(got *blixardv1.GetClusterResponse) bool {
	c.addresses = nil
	for _, m := range got.GetMembers() {
		if m.GetRaftRole() != "voter" || got.GetLeaderNodeId() == "" {
			return false
		}
		at := len(c.addresses)
		if m.GetMember().GetNodeId() == got.GetLeaderNodeId() {
			at = 0
		}
		c.addresses = slices.Insert(c.addresses, at, m.GetMember().GetAddress())
	}
	return len(c.addresses) == members
}

func (c *blixardCluster) dial(ctx context.Context, ends []int, unary bool) (*blixardTarget, error) {
	var configs []client.Config
	for _, i := range ends {
		configs = append(configs, client.Config{Addr: "https://" + c.addresses[i], Credentials: c.credentials})
	}
	return dialBlixard(ctx, configs, unary)
}

// prepare declares the VMs, each with a label as large as those to come.
func (c *blixardCluster) prepare(ctx context.Context) error {
	t, err := c.dial(ctx, []int{0}, true)
	if err != nil {
		return err
	}
	if err = t.prepare(ctx); err == nil {
		err = fill(ctx, t)
	}
	return errors.Join(err, t.close())
}

func (c *blixardCluster) stop() (err error) {
	if c == nil {
		return nil
	}
	for _, n := range c.nodes {
		err = errors.Join(err, n.run(context.Background(), os.Stderr, "--addr", "unix:"+n.socket, "node", "stop"))
	}
	return err
}

// readClient reads VMs, labels and all, after everything that was acknowledged.
func (t *blixardTarget) readClient(i int) change {
	vms := t.conns[i%len(t.conns)].VMs()
	return func(ctx context.Context, key int, _ string) error {
		got, err := vms.GetVM(ctx, &blixardv1.GetVMRequest{Name: keyName(key)})
		if err == nil && len(got.GetVm().GetLabels()["value"]) != valueBytes {
			err = fmt.Errorf("VM %s has no whole label", keyName(key))
		}
		return err
	}
}

package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// path of a host's network namespace.
func (h *hosts) path(k int) string { return filepath.Join("/run/netns", h.name[k]) }

// inside calls a function on a thread that is in a network namespace: sockets that it
// makes stay there.
func inside(path string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		done <- func() error {
			ns, err := os.Open(path)
			if err != nil {
				return err
			}
			defer func() { _ = ns.Close() }()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// dial connects from a host.
func (h *hosts) dial(ctx context.Context, k int, network, address string) (conn net.Conn, err error) {
	err = inside(h.path(k), func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// transport speaks HTTP from a host.
func (h *hosts) transport(k int) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return h.dial(ctx, k, network, address)
	}}
}

// requestTimeout of a request that may come too early.
const requestTimeout = 5 * time.Second

// get asks for a page from a host.
func (h *hosts) get(k int, url string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), requestTimeout)
	defer cancel()
	t := h.transport(k)
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

// wipe takes from a host's kernel what a reboot would.
func (h *hosts) wipe(k int) {
	h.t.Helper()
	run(h.t, "", "nsenter", "--net="+h.path(k), "sh", "-c", `
		nft flush ruleset
		ip -o link | sed -n 's/^[0-9]*: \(blx[^:@]*\).*/\1/p' | while read link; do ip link del "$link" || true; done`)
}

// startSite forms a cluster of hosts whose VMs have a network.
func startSite(t testing.TB, count int, flags ...string) (*cluster, *hosts) {
	t.Helper()
	h, c := newHosts(t, count), &cluster{t: t}
	for k := range count {
		n := newNode(t, append([]string{"--id", fmt.Sprint("n", k+1)}, flags...)...)
		n.host = h.name[k]
		n.env = []string{"BLIXARD_NODE_BIND=" + address(k) + ":7700", "BLIXARD_NETWORK_DEFAULT=default"}
		n.start()
		c.nodes = append(c.nodes, n)
	}
	if count > 1 {
		c.join()
	}
	return c, h
}

// blixard runs a command of the command line and gives its output.
func (n *node) blixard(args ...string) string {
	n.t.Helper()
	cmd := n.command(args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("blixard %s: %v\n%s%s\n%s", strings.Join(args, " "), err, out, errs.String(), n.log())
	}
	return string(out)
}

// powerLoss ends all processes of the node at once.
func (n *node) powerLoss() {
	n.t.Helper()
	for len(n.processes()) > 0 {
		for pid := range n.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	<-n.exited
	_ = n.client.Close()
}

package daemon

import (
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// Connections to other nodes.
const (
	connectFirst     = 50 * time.Millisecond
	connectMost      = 2 * time.Second
	connectFactor    = 1.6
	connectJitter    = 0.2
	connectTimeout   = 2 * time.Second
	keepaliveAfter   = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// messageBytesMax of what another node answers: a page of the largest VMs.
	messageBytesMax = 64 << 20
	// streamWindowBytes and connWindowBytes are those of the server, for the same
	// reason.
	streamWindowBytes = 2 << 20
	connWindowBytes   = 8 << 20
)

// dial connects to a node of that id; it does not wait for the connection, which
// the caller closes.
func dial(trust *auth.Trust, nodeID, address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(trust.ClientTLS(nodeID))),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: connectFirst, Multiplier: connectFactor, Jitter: connectJitter, MaxDelay: connectMost},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveAfter, Timeout: keepaliveTimeout}),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)),
	)
}

// nodes holds a connection to each member that was asked for. It is safe for
// concurrent use.
type nodes struct {
	trust *auth.Trust
	view  func() *state.View

	mu    sync.Mutex
	conns map[string]nodeConn
	// retired connections showed an older certificate; what goes on over them goes on.
	retired []*grpc.ClientConn
	closed  bool
}

type nodeConn struct {
	address string
	conn    *grpc.ClientConn
}

func newNodes(trust *auth.Trust, view func() *state.View) *nodes {
	return &nodes{trust: trust, view: view, conns: map[string]nodeConn{}}
}

// Conn gives the connection to a member, which belongs to n.
func (n *nodes) Conn(nodeID string) (*grpc.ClientConn, error) {
	m := n.view().Member(nodeID)
	if m == nil || m.GetRemoved() {
		return nil, problem.New(problem.Unavailable, "node.unreachable", "node %s is no member", nodeID)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, problem.New(problem.Unavailable, "node.stopping", "the node is stopping")
	}
	old, ok := n.conns[nodeID]
	if ok && old.address == m.GetAddress() {
		return old.conn, nil
	}
	conn, err := dial(n.trust, nodeID, m.GetAddress())
	if err != nil {
		return nil, problem.New(problem.Unavailable, "node.unreachable", "node %s has an address that can't be used, %s", m.GetName(), m.GetAddress()).WithCause(err)
	}
	if ok {
		_ = old.conn.Close()
	}
	n.conns[nodeID] = nodeConn{m.GetAddress(), conn}
	return conn, nil
}

// Reachable tells whether there is a working connection to a member.
func (n *nodes) Reachable(nodeID string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, ok := n.conns[nodeID]
	return ok && c.conn.GetState() == connectivity.Ready
}

// renewed lets connections be made anew for the next calls, since those that there
// are showed the certificate of before, which will be worth nothing some day. Those
// of the renewal before, many days ago or dropped by the others, are closed.
func (n *nodes) renewed() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, c := range n.retired {
		errs = append(errs, c.Close())
	}
	n.retired = nil
	for _, c := range n.conns {
		n.retired = append(n.retired, c.conn)
	}
	clear(n.conns)
	return errors.Join(errs...)
}

func (n *nodes) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	var errs []error
	for _, c := range n.retired {
		errs = append(errs, c.Close())
	}
	for _, c := range n.conns {
		errs = append(errs, c.conn.Close())
	}
	return errors.Join(errs...)
}

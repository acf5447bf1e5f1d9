package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/peer"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// Limits of what the daemon does for the cluster.
const (
	// enrollTimeout of the request to join, the peer's call back included.
	enrollTimeout = 30 * time.Second
	// drainTimeout of a node that leaves: each VM has its own grace time.
	drainTimeout = 10 * time.Minute
)

// errAgain ends a node that begins anew at once, as another one.
var errAgain = errors.New("the node begins anew")

// openReplica opens the log and joins it to the peers.
func (n *node) openReplica(ctx context.Context) error {
	n.nodes = newNodes(n.trust, func() *state.View { return n.replica.View() })
	n.peers = peer.New(peer.Config{
		ClusterID: n.member.ClusterID, RaftID: n.member.RaftID, Logger: n.log,
		Dial: func(raftID uint64, address string) (*grpc.ClientConn, error) {
			return dial(n.trust, n.nodeOfReplica(raftID), address)
		},
		Incarnation: n.data.id.Incarnation, Allow: n.allowPeer, Refused: n.wasRefused,
	})
	var err error
	n.replica, err = replica.Open(ctx, replica.Config{
		Dir: n.data.join(raftDir), NodeID: n.data.id.NodeID, ClusterID: n.member.ClusterID, RaftID: n.member.RaftID,
		Join: n.member.Joined, Sender: n.peers, Logger: n.log, SnapshotEntries: uint64(n.cfg.Cluster.SnapshotEntries),
		SnapshotBytes: int64(n.cfg.Cluster.SnapshotMiB) << 20, SnapshotInterval: n.cfg.Cluster.SnapshotInterval,
		TrailingEntries: uint64(n.cfg.Cluster.TrailingEntries), Now: wallclock.Now, Hook: failpoint.Disk,
	})
	if err != nil {
		return err
	}
	if err := n.outlive(); err != nil {
		return err
	}
	n.peers.SetReplica(n.replica)
	n.setPeers()
	n.member.Began, n.member.Address = true, n.network.address
	if err := writeJSON(n.data.join(memberFile), n.member); err != nil {
		return err
	}
	return n.form(ctx)
}

// wasRefused notes that another member has nothing more to do with this node. It may
// be heard when the node's own state, which it follows no more, does not know. A copy
// of another node's directory ends.
func (n *node) wasRefused(err *problem.Error) {
	switch {
	case n.changing.Load():
	case err.Code != "auth.removed":
		n.fail(err)
	case n.removed.CompareAndSwap(false, true):
		n.log.Error("the other members say that this node is one no more", "err", err)
	}
}

// nodeOfReplica finds whose replica it is; empty lets any node of the cluster be
// at its address, which is so only before the first state has come.
func (n *node) nodeOfReplica(raftID uint64) string {
	if n.replica != nil {
		if m := n.replica.View().MemberOfReplica(raftID); m != nil {
			return m.GetNodeId()
		}
	}
	for _, p := range n.member.Peers {
		if p.RaftID == raftID {
			return p.NodeID
		}
	}
	return ""
}

// allowPeer refuses a node that speaks as another one's replica, or is an older start
// than the cluster has registered.
func (n *node) allowPeer(ctx context.Context, from, incarnation uint64) error {
	caller := n.server.CallerNode(ctx)
	if want := n.nodeOfReplica(from); want != caller {
		return problem.New(problem.Denied, "auth.other_node", "node %s can't speak for replica %d", caller, from)
	}
	if newest := n.replica.View().Node(n.nodeOfReplica(from)).GetIncarnation(); incarnation < newest {
		return peer.OlderStart(from, incarnation, newest)
	}
	return nil
}

// setPeers tells the transport who is a member.
func (n *node) setPeers() {
	addresses := map[uint64]string{}
	members := n.replica.View().Members()
	for _, m := range members {
		if !m.GetRemoved() && m.GetNodeId() != n.data.id.NodeID {
			addresses[m.GetRaftId()] = m.GetAddress()
		}
	}
	if len(members) == 0 {
		for _, p := range n.member.Peers {
			addresses[p.RaftID] = p.Address
		}
	}
	n.peers.SetPeers(addresses)
}

// followMembers keeps the transport's peers as the state has them, until ctx ends.
func (n *node) followMembers(ctx context.Context) error {
	for ctx.Err() == nil {
		view := n.replica.View()
		n.setPeers()
		if err := n.keepAuthorities(view.Cluster()); err != nil {
			n.log.Warn("the cluster's authorities can't be written down", "err", err)
		}
		if err := n.untilMembersChange(ctx, view.Index()); err != nil {
			return err
		}
	}
	return nil
}

// keepAuthorities writes down who is trusted, if the state knows something newer.
func (n *node) keepAuthorities(c *blixardv1.Cluster) error {
	if c.GetModifyIndex() <= n.trusted.Load().index {
		return nil
	}
	n.member.Authorities, n.member.AuthoritiesIndex = nil, c.GetModifyIndex()
	for _, a := range c.GetCaCertificates() {
		n.member.Authorities = append(n.member.Authorities, string(a))
	}
	if err := writeJSON(n.data.join(memberFile), n.member); err != nil {
		return err
	}
	n.trusted.Store(n.member.trusted())
	return nil
}

// untilMembersChange returns when a member changed, when all is to be looked at
// again, or when ctx ended.
func (n *node) untilMembersChange(ctx context.Context, after uint64) error {
	sub := n.replica.Subscribe(after)
	defer sub.Close()
	for {
		changes, _, err := sub.Next(ctx)
		if problem.HasCode(err, "replica.stopped") {
			return err
		}
		if err != nil {
			return nil //nolint:nilerr // ctx ended, or it is too far behind, and then the view has it all
		}
		for _, c := range changes {
			if c.Kind == state.KindMember || c.Kind == state.KindCluster {
				return nil
			}
		}
	}
}

// membership is server.Membership.
type membership struct{ *node }

func (m membership) Secret() []byte { return m.secret }

func (m membership) Address() string { return m.network.address }

func (m membership) Removed() bool { return m.removed.Load() }

// Probe makes sure that the node of that id answers at an address. Its
// certificate is of another cluster yet, so that only its name is looked at.
func (m membership) Probe(ctx context.Context, nodeID, address string) error {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // nothing is said but hello
		NextProtos:         []string{"h2"},
	}
	refused := func(err error) error {
		return problem.New(problem.Unavailable, "member.unreachable", "the cluster can't reach the node at %s", address).WithCause(err).
			WithHint("give an address by which the other nodes reach it with --local-addr, and open its port in firewalls")
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return refused(err)
	}
	defer func() { _ = conn.Close() }()
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	if len(chain) == 0 || len(chain[0].URIs) != 1 {
		return refused(errors.New("no node of blixard answers there"))
	}
	id, err := auth.ParseIdentity(chain[0].URIs[0])
	if err != nil {
		return refused(err)
	}
	if id.Name != nodeID {
		return problem.New(problem.Conflict, "member.other_node", "another node, %s, answers at %s", id.Name, address).
			WithHint("give this node's own address with --local-addr")
	}
	return nil
}

// Join asks for a membership and stages it; the node then begins anew as a member.
func (m membership) Join(ctx context.Context, req *blixardv1.JoinRequest) (*blixardv1.JoinResponse, error) {
	if !m.changing.CompareAndSwap(false, true) {
		return nil, problem.New(problem.Conflict, "cluster.changing", "the node is joining or leaving already").WithHint("wait until it is done")
	}
	resp, err := m.join(ctx, req)
	if err != nil {
		m.changing.Store(false)
		return nil, err
	}
	m.again()
	return resp, nil
}

func (m membership) join(ctx context.Context, req *blixardv1.JoinRequest) (*blixardv1.JoinResponse, error) {
	token, err := auth.ParseToken(req.GetToken())
	if err != nil {
		return nil, err
	}
	if _, _, err := splitAddress(req.GetPeer()); err != nil {
		return nil, err
	}
	address := req.GetLocalAddress()
	if address == "" {
		address = m.network.address
	}
	if _, _, err := splitAddress(address); err != nil {
		return nil, err
	}
	if samePlace(req.GetPeer(), m.network.address) || samePlace(req.GetPeer(), address) || samePlace(req.GetPeer(), m.network.grpc.Addr().String()) {
		return nil, problem.New(problem.Invalid, "cluster.self", "%s is this node itself", req.GetPeer()).WithHint("name a node of the other cluster with --peer")
	}
	if err := m.joinable(); err != nil {
		return nil, err
	}
	keys, err := auth.NewKeypair()
	if err != nil {
		return nil, err
	}
	resp, err := m.enroll(ctx, req.GetPeer(), address, token, keys)
	if err != nil {
		return nil, err
	}
	if keys, err = keys.Certify(resp.GetCertificate()); err != nil {
		return nil, err
	}
	if err := m.stage(resp, keys, address); err != nil {
		return nil, err
	}
	m.log.Info("the node joins a cluster", "cluster", resp.GetClusterId(), "peer", req.GetPeer(), "role", resp.GetMember().GetRole())
	return &blixardv1.JoinResponse{ClusterId: resp.GetClusterId(), Member: resp.GetMember()}, nil
}

// joinable refuses a node that would lose something of its own.
func (m membership) joinable() error {
	view := m.replica.View()
	live := 0
	for _, one := range view.Members() {
		if !one.GetRemoved() {
			live++
		}
	}
	if live > 1 || m.member.Joined {
		return problem.New(problem.Conflict, "cluster.member", "this node is a member of cluster %s", m.member.ClusterID).
			WithHint("let it leave first: `blixard cluster leave`")
	}
	if n := len(view.VMs("", 0)); n > 0 {
		return problem.New(problem.Conflict, "cluster.not_empty", "this node has %d VMs of its own, which would be lost", n).
			WithHint("delete them first (`blixard vm delete`), or let the others join this node instead")
	}
	return nil
}

func (m membership) enroll(ctx context.Context, peerAddress, address string, token auth.Token, keys *auth.Keypair) (*blixardv1.EnrollResponse, error) {
	csr, err := keys.SigningRequest()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+peerAddress,
		grpc.WithTransportCredentials(credentials.NewTLS(pinned(token.CAPin))),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}))
	if err != nil {
		return nil, problem.New(problem.Invalid, "address.malformed", "%q is no address", peerAddress).WithCause(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, enrollTimeout)
	defer cancel()
	resp, err := blixardv1.NewEnrollServiceClient(conn).Enroll(ctx, &blixardv1.EnrollRequest{
		TokenId: token.ID, TokenSecret: token.Secret, SigningRequest: csr,
		NodeId: m.data.id.NodeID, Name: m.cfg.Node.Name, Address: address,
		FeatureLevel: state.FeatureLevel, Version: m.opts.Version, Time: timestamppb.New(wallclock.Now()), IdempotencyKey: "join-" + m.data.id.NodeID,
	})
	if err == nil {
		return resp, nil
	}
	if st, ok := status.FromError(err); ok && st.Code() == codes.Unavailable && len(st.Details()) == 0 {
		return nil, problem.New(problem.Unavailable, "peer.unreachable", "no node of the token's cluster answers at %s", peerAddress).WithCause(err).
			WithHint("check the address, the token's cluster, and that the port is open")
	}
	return nil, problem.From(err)
}

func pinned(pin [sha256.Size]byte) *tls.Config { return auth.PinnedTLS(pin, wallclock.Now) }

// stage writes what the join gave, whole or not at all.
func (m membership) stage(resp *blixardv1.EnrollResponse, keys *auth.Keypair, address string) error {
	staged, making := m.data.join(joiningDir), m.data.join(joiningDir+".new")
	next := member{
		Format: dataFormat, ClusterID: resp.GetClusterId(), RaftID: resp.GetMember().GetRaftId(), Joined: true, Address: address,
		Role: resp.GetMember().GetRole().String(), AuthoritiesIndex: resp.GetClusterIndex(),
	}
	for _, a := range resp.GetCaCertificates() {
		next.Authorities = append(next.Authorities, string(a))
	}
	for _, p := range resp.GetMembers() {
		if p.GetNodeId() != m.data.id.NodeID {
			next.Peers = append(next.Peers, peerAddress{p.GetNodeId(), p.GetRaftId(), p.GetAddress()})
		}
	}
	if err := os.RemoveAll(making); err != nil {
		return err
	}
	if err := keys.Save(filepath.Join(making, tlsDir)); err != nil {
		return err
	}
	if s := resp.GetClusterSecret(); len(s) > 0 {
		if err := renameio.WriteFile(filepath.Join(making, secretFile), s, 0o600); err != nil {
			return err
		}
	}
	if err := writeJSON(filepath.Join(making, memberFile), next); err != nil {
		return err
	}
	return os.Rename(making, staged)
}

// Leave empties the node, takes it out and lets it begin anew, alone.
func (m membership) Leave(ctx context.Context) error {
	if !m.changing.CompareAndSwap(false, true) {
		return problem.New(problem.Conflict, "cluster.changing", "the node is joining or leaving already").WithHint("wait until it is done")
	}
	if err := m.leave(ctx); err != nil {
		m.changing.Store(false)
		return err
	}
	m.again()
	return nil
}

func (m membership) leave(ctx context.Context) error {
	live, votes := 0, 0
	for _, one := range m.replica.View().Members() {
		if one.GetRemoved() || one.GetNodeId() == m.data.id.NodeID {
			continue
		}
		live++
		if r := one.GetRole(); r == blixardv1.MemberRole_voter || r == blixardv1.MemberRole_witness {
			votes++
		}
	}
	own := m.replica.View().Member(m.data.id.NodeID)
	switch {
	case live == 0:
		return problem.New(problem.Conflict, "member.last", "this node is the only one of its cluster").
			WithHint("to give up its VMs as well, stop it and remove its data directory")
	case votes == 0 && (own.GetRole() == blixardv1.MemberRole_voter || own.GetRole() == blixardv1.MemberRole_witness):
		return problem.New(problem.Conflict, "member.last_voter", "node %q is the last one with a vote: without it nobody could decide anything", own.GetName()).
			WithHint("promote another member first: `blixard cluster promote NODE`")
	}
	for _, v := range m.replica.View().Volumes() {
		if v.GetNodeId() == m.data.id.NodeID {
			return problem.New(problem.Conflict, "volume.on_node", "volume %q is on this node, and would be lost with it", v.GetName()).
				WithHint("move it (blixard volume move %s NODE), or delete it; a VM that has it must give it up first", v.GetName())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	cluster := m.client.Cluster()
	if m.replica.View().Node(m.data.id.NodeID) != nil {
		if _, err := cluster.DrainNode(ctx, &blixardv1.DrainNodeRequest{Node: m.data.id.NodeID, Drain: true}); err != nil {
			return problem.From(err)
		}
	}
	if err := m.untilEmpty(ctx); err != nil {
		_, undo := cluster.DrainNode(context.WithoutCancel(ctx), &blixardv1.DrainNodeRequest{Node: m.data.id.NodeID, Drain: false})
		return errors.Join(err, undo)
	}
	if _, err := cluster.RemoveMember(ctx, &blixardv1.RemoveMemberRequest{Node: m.data.id.NodeID}); err != nil {
		return problem.From(err)
	}
	m.log.Info("the node left its cluster", "cluster", m.member.ClusterID)
	return renameio.WriteFile(m.data.join(leftFile), nil, 0o600)
}

// untilEmpty waits until the node has no VMs.
func (m membership) untilEmpty(ctx context.Context) error {
	for {
		view := m.replica.View()
		left := view.AllocationsOfNode(m.data.id.NodeID)
		if len(left) == 0 {
			return nil
		}
		err := m.replica.WaitApplied(ctx, view.Index()+1)
		if ctx.Err() != nil {
			return problem.New(problem.Unavailable, "node.not_empty", "%d VMs are still on the node, such as %q", len(left), left[0].GetVmName()).
				WithHint("the node stays a member; delete or stop those VMs, and try again")
		}
		if err != nil {
			return err
		}
	}
}

package daemon

import (
	"context"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/state"
)

// Limits of what the daemon does for its certificate.
const (
	// renewInterval between looks whether the certificate is to be renewed.
	renewInterval = time.Minute
	// renewRetry after a renewal that failed.
	renewRetry = 2 * time.Second
	// renewTimeout of one renewal, and renewAskTimeout of what each member is asked.
	renewTimeout    = 10 * time.Second
	renewAskTimeout = 3 * time.Second
)

// keepCertificate renews the certificate when it is due or another authority signs,
// and tells the cluster of a changed address, version or certificate, until ctx ends.
func (n *node) keepCertificate(ctx context.Context) error {
	for {
		wait := renewInterval
		view := n.replica.View()
		if m := view.Member(n.data.id.NodeID); m == nil {
			wait = renewRetry
		} else if n.renewDue(view, m) {
			wait = renewRetry
			if err := n.renew(ctx); err != nil && ctx.Err() == nil {
				n.log.Warn("the certificate could not be renewed yet", "ends", n.keys.Load().NotAfter(), "err", err)
			}
		}
		look, cancel := context.WithTimeout(ctx, wait)
		err := n.untilMembersChange(look, view.Index())
		cancel()
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// renewDue tells whether the cluster has to hear of this node, or the node needs
// another certificate.
func (n *node) renewDue(view *state.View, m *blixardv1.Member) bool {
	moved := m.GetAddress() != n.network.address || m.GetVersion() != n.opts.Version ||
		m.GetFeatureLevel() != state.FeatureLevel || m.GetAuthority() != n.ownAuthority()
	return moved || n.keys.Load().RenewDue(wallclock.Now()) || !n.keys.Load().SignedBy(view.Cluster().GetCaCertificates()[0])
}

// outlive signs a certificate for this node by itself when the one it has has ended,
// as after a long time without power, when nobody could renew it. Voters and
// stand-bys can, since they have what opens the authority's key.
func (n *node) outlive() error {
	cluster := n.replica.View().Cluster()
	if wallclock.Now().Before(n.keys.Load().NotAfter()) || n.secret == nil || cluster == nil {
		return nil
	}
	ca, err := auth.OpenAuthority(cluster.GetId(), cluster.GetCaCertificates()[0], cluster.GetSealedCaKey(), n.secret)
	if err != nil {
		return err
	}
	keys, err := ca.Issue(auth.Identity{ClusterID: cluster.GetId(), Role: auth.RoleNode, Name: n.data.id.NodeID}, wallclock.Now())
	if err != nil {
		return err
	}
	n.log.Warn("the node's certificate had ended: it signed itself another", "ended", n.keys.Load().NotAfter())
	return n.take(keys)
}

// take makes a signed key the node's own.
func (n *node) take(keys *auth.Keypair) error {
	if err := keys.Save(n.data.join(tlsDir)); err != nil {
		return err
	}
	n.keys.Store(keys)
	n.log.Info("the certificate was renewed", "ends", keys.NotAfter())
	return n.nodes.renewed()
}

// renew asks any member that answers, since each passes it on to the leader.
func (n *node) renew(ctx context.Context) error {
	keys, err := auth.NewKeypair()
	if err != nil {
		return err
	}
	csr, err := keys.SigningRequest()
	if err != nil {
		return err
	}
	req := &blixardv1.RenewCertificateRequest{
		SigningRequest: csr, Address: n.network.address, Version: n.opts.Version, FeatureLevel: state.FeatureLevel,
		Authority: n.ownAuthority(),
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	resp, err := n.askRenewal(ctx, n.data.id.NodeID, n.network.grpc.Addr().String(), req)
	// Under a new address the leader does not find this node, so that it knows none:
	// the others pass it on.
	for _, m := range n.replica.View().Members() {
		if err == nil || ctx.Err() != nil {
			break
		}
		if !m.GetRemoved() && m.GetNodeId() != n.data.id.NodeID {
			resp, err = n.askRenewal(ctx, m.GetNodeId(), m.GetAddress(), req)
		}
	}
	if err != nil {
		return err
	}
	if keys, err = keys.Certify(resp.GetCertificate()); err != nil {
		return err
	}
	return n.take(keys)
}

// askRenewal asks one member.
func (n *node) askRenewal(ctx context.Context, nodeID, address string, req *blixardv1.RenewCertificateRequest) (*blixardv1.RenewCertificateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, renewAskTimeout)
	defer cancel()
	conn, err := dial(n.trust, nodeID, address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := blixardv1.NewEnrollServiceClient(conn).RenewCertificate(ctx, req)
	if err != nil {
		return nil, problem.From(err)
	}
	return resp, nil
}

package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// authoritiesMax that are trusted at once: more rotations without the end of the
// old ones are a mistake.
const authoritiesMax = 3

// AuthorityID is the digest of an authority's certificate, SHA-256 in hex, as
// openssl shows it; empty for what is no certificate in PEM.
func AuthorityID(certificatePEM []byte) string {
	block, _ := pem.Decode(certificatePEM)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

func (b *batch) clusterEvent(c *blixardv1.Cluster, kind, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "cluster", ObjectId: c.GetId(), ObjectName: c.GetId(), Message: message})
}

// recoverCluster makes the state one of a new cluster with one member: the old one
// can't come back into it, whoever of it still runs.
func (b *batch) recoverCluster(c *blixardv1.RecoverClusterCommand) Result {
	old := b.cluster()
	if old == nil {
		return refused(b.index, errNoCluster)
	}
	m := b.member(c.GetNodeId())
	if old.GetId() == c.GetClusterId() {
		return Result{Index: b.index, Member: m} // done before
	}
	if c.GetClusterId() == "" || len(c.GetCaCertificate()) == 0 || m == nil || m.GetRemoved() {
		return refused(b.index, problem.New(problem.Invalid, "cluster.incomplete", "a cluster is recovered with an id, an authority and one of its members"))
	}
	for _, other := range every[blixardv1.Member](b.db, tableMember, indexID) {
		if !other.GetRemoved() && other.GetNodeId() != m.GetNodeId() {
			b.expel(other)
		}
	}
	for _, t := range every[blixardv1.Token](b.db, tableToken, indexID) {
		remove(b.db, tableToken, t)
	}
	remove(b.db, tableCluster, old) // the new one has another id
	next := proto.CloneOf(old)
	next.Id, next.CaCertificates, next.SealedCaKey, next.CrossCertificates = c.GetClusterId(), [][]byte{c.GetCaCertificate()}, c.GetSealedCaKey(), nil
	b.putCluster(next)
	m = proto.CloneOf(m)
	m.Authority = AuthorityID(c.GetCaCertificate())
	if !votes(m.GetRole()) {
		m.Role = blixardv1.MemberRole_voter
	}
	b.putMember(m)
	b.clusterEvent(next, "cluster.recovered", fmt.Sprintf("it goes on from node %s alone; it was cluster %s", m.GetName(), old.GetId()))
	return Result{Index: b.index, Member: m}
}

// rotateAuthority lets another authority sign; the old ones stay trusted.
func (b *batch) rotateAuthority(c *blixardv1.RotateAuthorityCommand) Result {
	old := b.cluster()
	switch {
	case old == nil:
		return refused(b.index, errNoCluster)
	case len(c.GetCaCertificate()) == 0 || len(c.GetSealedCaKey()) == 0 || len(c.GetCrossCertificate()) == 0:
		return refused(b.index, problem.New(problem.Invalid, "authority.incomplete", "an authority needs a certificate, a sealed key and a cross certificate"))
	case !bytes.Equal(old.GetCaCertificates()[0], c.GetExpectedCaCertificate()):
		return refused(b.index, problem.New(problem.Conflict, "authority.changed", "the authority was changed meanwhile").WithHint("see `blixard cluster ca show`"))
	case len(old.GetCaCertificates()) >= authoritiesMax:
		return refused(b.index, problem.New(problem.Conflict, "authority.too_many", "%d authorities are trusted already", len(old.GetCaCertificates())).
			WithHint("end the trust in the old ones first: `blixard cluster ca drop`"))
	}
	next := proto.CloneOf(old)
	next.CaCertificates = append([][]byte{c.GetCaCertificate()}, old.GetCaCertificates()...)
	next.CrossCertificates = append([][]byte{c.GetCrossCertificate()}, old.GetCrossCertificates()...)
	next.SealedCaKey = c.GetSealedCaKey()
	b.putCluster(next)
	b.clusterEvent(next, "authority.rotated", "another authority signs certificates; the old one is trusted until it is dropped")
	return Result{Index: b.index}
}

// dropAuthorities ends the trust in all authorities but the one that signs.
func (b *batch) dropAuthorities() Result {
	old := b.cluster()
	if old == nil {
		return refused(b.index, errNoCluster)
	}
	if len(old.GetCaCertificates()) == 1 {
		return Result{Index: b.index}
	}
	signs := AuthorityID(old.GetCaCertificates()[0])
	for _, m := range every[blixardv1.Member](b.db, tableMember, indexID) {
		if !m.GetRemoved() && m.GetAuthority() != signs {
			return refused(b.index, problem.New(problem.Conflict, "authority.in_use", "node %q has no certificate of the new authority yet", m.GetName()).
				WithHint("it renews by itself within a minute once it runs; remove it from the cluster if it will not come back"))
		}
	}
	next := proto.CloneOf(old)
	next.CaCertificates, next.CrossCertificates = old.GetCaCertificates()[:1], nil
	b.putCluster(next)
	b.clusterEvent(next, "authority.dropped", "certificates of older authorities are worth nothing any more")
	return Result{Index: b.index}
}

package auth

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

// Trust is what a TLS connection of the cluster needs. The functions are asked at
// every handshake, so that renewed certificates need no restart; they must be
// safe for concurrent use.
type Trust struct {
	ClusterID string
	// Keypair of this end, with its certificate.
	Keypair func() *Keypair
	// Authorities of the cluster, each in PEM.
	Authorities func() [][]byte
	// Crosses, when set, gives keys of newer authorities signed by older ones, each in
	// PEM: the other end may know only an old one.
	Crosses func() [][]byte
	// Refused gives the reason why a name is not taken although its certificate is
	// good, such as a removed node's; nil takes all.
	Refused func(Identity) error
	// Now is the time that certificates are held against.
	Now func() time.Time
}

func (t *Trust) authorities() []*x509.Certificate { return parseAll(t.Authorities()) }

func parseAll(pems [][]byte) []*x509.Certificate {
	var all []*x509.Certificate
	for _, b := range pems {
		if c, err := parseCertificate(b); err == nil {
			all = append(all, c)
		}
	}
	return all
}

// chainMax certificates of the other end are looked at: its own, and twice what
// may be trusted at once.
const chainMax = 8

// verify gives the identity of a chain's first certificate.
func (t *Trust) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	roots := x509.NewCertPool()
	for _, a := range t.authorities() {
		roots.AddCert(a)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:min(len(chain), chainMax)] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: t.Now(), KeyUsages: []x509.ExtKeyUsage{usage},
	}); err != nil {
		return Identity{}, problem.New(problem.Denied, "auth.certificate", "the certificate is not one of this cluster's, or not valid now").WithCause(err).
			WithHint("is it another cluster's node, or is a clock far off?")
	}
	id, err := identityOf(chain[0])
	if err != nil {
		return id, err
	}
	if id.ClusterID != t.ClusterID {
		return id, problem.New(problem.Denied, "auth.other_cluster", "%s is of another cluster", id.URI())
	}
	if t.Refused != nil {
		return id, t.Refused(id)
	}
	return id, nil
}

func identityOf(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 {
		return Identity{}, problem.New(problem.Denied, "auth.identity", "the certificate has %d names, not one", len(c.URIs))
	}
	return ParseIdentity(c.URIs[0])
}

func (t *Trust) own() *tls.Certificate {
	behind := t.authorities()
	if t.Crosses != nil {
		behind = append(behind, parseAll(t.Crosses())...)
	}
	return t.Keypair().tls(behind)
}

// ServerTLS is for listeners. A caller without a certificate is let in as nobody:
// who wants to join has none yet, and rights refuse it everything else.
func (t *Trust) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // every connection is checked anew
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.own(), nil },
		ClientAuth:             tls.RequestClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil
			}
			_, err := t.verify(s.PeerCertificates, x509.ExtKeyUsageClientAuth)
			return err
		},
		NextProtos: []string{"h2", "http/1.1"},
	}
}

// Caller gives who is at the other end of a connection by ServerTLS; ok is false
// for one without a certificate.
func (t *Trust) Caller(s tls.ConnectionState) (id Identity, ok bool, err error) {
	if len(s.PeerCertificates) == 0 {
		return Identity{}, false, nil
	}
	id, err = t.verify(s.PeerCertificates, x509.ExtKeyUsageClientAuth)
	return id, err == nil, err
}

// ClientTLS is for connections to members: the other end must be a node of the
// cluster, and of that id unless it is empty. Its address does not matter.
func (t *Trust) ClientTLS(nodeID string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.own(), nil },
		// What is checked is the cluster's authority and the node's name, in
		// VerifyConnection, not a host name.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := t.verify(s.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if id.Role != RoleNode || nodeID != "" && id.Name != nodeID {
				return problem.New(problem.Denied, "auth.other_node", "the other end is %s, not node %q", id.Actor(), nodeID).
					WithHint("was the address given to another node?")
			}
			return nil
		},
		NextProtos: []string{"h2"},
	}
}

// PinnedTLS is for one who has a token and nothing else: the other end must be a
// node whose chain ends in the authority of that digest. now is as in Trust.
func PinnedTLS(pin [sha256.Size]byte, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the pin takes the place of the system's roots and of host names
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, c := range s.PeerCertificates[1:min(len(s.PeerCertificates), chainMax)] {
				if sha256.Sum256(c.Raw) != pin {
					continue
				}
				t := Trust{Authorities: func() [][]byte { return [][]byte{encodeCertificate(c.Raw)} }, Now: now}
				id, err := identityOf(s.PeerCertificates[0])
				if err != nil {
					return err
				}
				t.ClusterID = id.ClusterID
				if id, err = t.verify(s.PeerCertificates, x509.ExtKeyUsageServerAuth); err == nil && id.Role != RoleNode {
					err = errors.New("auth: the other end is no node")
				}
				return err
			}
			return problem.New(problem.Denied, "auth.other_cluster", "the node at this address is not of the token's cluster").
				WithHint("is the address right, and the token of this cluster?")
		},
		NextProtos: []string{"h2"},
	}
}

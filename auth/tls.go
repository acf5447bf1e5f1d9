package auth

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"
	"weak"

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

	mu sync.RWMutex
	// checked holds certificates whose signatures were checked, for as long as anybody has
	// them: every call over a connection asks for its caller, and checking takes longer than
	// most calls do.
	checked map[checkedKey]checkedChain
}

// checkedMax certificates are kept, some 200 bytes each and twice as many as a node
// has connections; of more some are checked again and again.
const checkedMax = 32768

type checkedKey struct {
	leaf  weak.Pointer[x509.Certificate] // never changed after it was parsed
	usage x509.ExtKeyUsage
}

// checkedChain holds while the authorities are the same and the time is within.
type checkedChain struct {
	id          Identity
	authorities [][]byte
	from, until time.Time
}

func (c checkedChain) holds(authorities [][]byte, now time.Time) bool {
	return !now.Before(c.from) && !now.After(c.until) && slices.EqualFunc(c.authorities, authorities, bytes.Equal)
}

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

// verify gives the identity of a chain's first certificate. Its time is looked at in
// every call.
func (t *Trust) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	key, authorities, now := checkedKey{weak.Make(chain[0]), usage}, t.Authorities(), t.Now()
	t.mu.RLock()
	c, ok := t.checked[key]
	t.mu.RUnlock()
	if !ok || !c.holds(authorities, now) {
		var err error
		if c, err = check(chain, usage, authorities, now); err != nil {
			return c.id, err
		}
		t.keep(chain[0], key, c)
	}
	if c.id.ClusterID != t.ClusterID {
		return c.id, problem.New(problem.Denied, "auth.other_cluster", "%s is of another cluster", c.id.URI())
	}
	return c.id, nil
}

// known is verify of one that is not refused for its name either.
func (t *Trust) known(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	id, err := t.verify(chain, usage)
	if err == nil && t.Refused != nil {
		err = t.Refused(id)
	}
	return id, err
}

// keep notes what was checked until leaf, of the key, is collected as garbage.
func (t *Trust) keep(leaf *x509.Certificate, key checkedKey, c checkedChain) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.checked == nil {
		t.checked = map[checkedKey]checkedChain{}
	}
	if _, known := t.checked[key]; !known {
		for other := range t.checked {
			if len(t.checked) < checkedMax {
				break
			}
			delete(t.checked, other)
		}
		runtime.AddCleanup(leaf, t.forget, key)
	}
	t.checked[key] = c
}

func (t *Trust) forget(key checkedKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.checked, key)
}

// check holds the first certificate of a chain against the authorities; those behind
// it may vouch for its own.
func check(chain []*x509.Certificate, usage x509.ExtKeyUsage, authorities [][]byte, now time.Time) (checkedChain, error) {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, a := range parseAll(authorities) {
		roots.AddCert(a)
	}
	for _, c := range chain[1:min(len(chain), chainMax)] {
		between.AddCert(c)
	}
	leaf := chain[0]
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return checkedChain{}, problem.New(problem.Denied, "auth.certificate", "the certificate is not one of this cluster's, or not valid now").WithCause(err).
			WithHint("is it another cluster's node, or is a clock far off?")
	}
	c := checkedChain{authorities: authorities, from: leaf.NotBefore, until: leaf.NotAfter}
	for _, a := range chains[0] {
		if a.NotBefore.After(c.from) {
			c.from = a.NotBefore
		}
		if a.NotAfter.Before(c.until) {
			c.until = a.NotAfter
		}
	}
	c.id, err = identityOf(leaf)
	return c, err
}

func identityOf(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 {
		return Identity{}, problem.New(problem.Denied, "auth.identity", "the certificate has %d names, not one", len(c.URIs))
	}
	return ParseIdentity(c.URIs[0])
}

func (t *Trust) own() *tls.Certificate {
	behind := parseAll(t.Authorities())
	if t.Crosses != nil {
		behind = append(behind, parseAll(t.Crosses())...)
	}
	return t.Keypair().tls(behind)
}

// ServerTLS is for listeners. A caller without a certificate is let in as nobody:
// who wants to join has none yet, and rights refuse it everything else. One whose
// name is refused is let in too, so that Caller can tell it why: a refusal of the
// handshake has no words.
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
	id, err = t.known(s.PeerCertificates, x509.ExtKeyUsageClientAuth)
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
			id, err := t.known(s.PeerCertificates, x509.ExtKeyUsageServerAuth)
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

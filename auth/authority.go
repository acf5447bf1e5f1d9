package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/blixard/blixard/internal/problem"
)

// The lives of certificates.
const (
	// authorityLife of a cluster's authority.
	authorityLife = 10 * 365 * 24 * time.Hour
	// certificateLife of a node or a person; it is renewed after two thirds.
	certificateLife = 30 * 24 * time.Hour
	// backdate covers clocks that are a little behind.
	backdate = 5 * time.Minute
	// secretBytes of the secret that seals an authority's key.
	secretBytes = 32
	// pathLenMax authorities may stand between one that is trusted and a node's
	// certificate: as many as may be trusted beside the newest.
	pathLenMax = 2
	// serialBits of a certificate's number: as random as RFC 5280 allows.
	serialBits = 159
)

const certificateBlock = "CERTIFICATE"

// Authority signs the certificates of one cluster. It is safe for concurrent use.
type Authority struct {
	clusterID   string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes a cluster's authority.
func NewAuthority(clusterID string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("auth: make the key of the authority: %w", err)
	}
	template := authorityTemplate(clusterID, now, now.Add(authorityLife))
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("auth: make the authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("auth: make the authority: %w", err)
	}
	return &Authority{clusterID: clusterID, certificate: certificate, key: key}, nil
}

func authorityTemplate(clusterID string, now, end time.Time) *x509.Certificate {
	number := serial()
	return &x509.Certificate{
		// The number sets the names of a cluster's authorities apart.
		SerialNumber: number, Subject: pkix.Name{CommonName: "blixard " + clusterID, SerialNumber: number.Text(16)},
		NotBefore: now.Add(-backdate), NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLenMax, KeyUsage: x509.KeyUsageCertSign,
	}
}

// Cross gives, in PEM, the key of another authority of the same cluster signed by
// this one: who trusts only this one trusts what the other signs.
func (a *Authority) Cross(other *Authority, now time.Time) ([]byte, error) {
	template := authorityTemplate(a.clusterID, now, a.certificate.NotAfter)
	template.Subject, template.SubjectKeyId = other.certificate.Subject, other.certificate.SubjectKeyId
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, other.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("auth: sign another authority: %w", err)
	}
	return encodeCertificate(der), nil
}

// Life is when an authority's certificate, in PEM, begins and ends.
func Life(certificatePEM []byte) (begin, end time.Time, err error) {
	c, err := parseCertificate(certificatePEM)
	if err != nil {
		return begin, end, err
	}
	return c.NotBefore, c.NotAfter, nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n.Add(n, big.NewInt(1))
}

// Certificate of the authority, in PEM.
func (a *Authority) Certificate() []byte { return encodeCertificate(a.certificate.Raw) }

// NewSecret makes a secret for Seal.
func NewSecret() []byte {
	b := make([]byte, secretBytes)
	rand.Read(b) // never fails: the program ends instead
	return b
}

func sealer(secret []byte) (cipher.AEAD, error) {
	if len(secret) != secretBytes {
		return nil, problem.New(problem.Invalid, "auth.secret", "the cluster's secret has %d bytes, not %d", len(secret), secretBytes)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Seal encrypts the authority's key with the cluster's secret (AES-256-GCM), so
// that it may be kept where the secret is not.
func (a *Authority) Seal(secret []byte) ([]byte, error) {
	gcm, err := sealer(secret)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("auth: seal the authority's key: %w", err)
	}
	return gcm.Seal(nil, nil, der, []byte(a.clusterID)), nil
}

// OpenAuthority gives the authority whose key was sealed. A wrong secret, or the
// certificate of another key, is a problem of code auth.sealed.
func OpenAuthority(clusterID string, certificatePEM, sealed, secret []byte) (*Authority, error) {
	gcm, err := sealer(secret)
	if err != nil {
		return nil, err
	}
	fail := problem.New(problem.Internal, "auth.sealed", "the key of the cluster's authority can't be opened").
		WithHint("the file with the cluster's secret is not this cluster's: restore it from another voter")
	der, err := gcm.Open(nil, nil, sealed, []byte(clusterID))
	if err != nil {
		return nil, fail.WithCause(err)
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, fail.WithCause(err)
	}
	certificate, err := parseCertificate(certificatePEM)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(certificate.PublicKey) {
		return nil, fail
	}
	return &Authority{clusterID: clusterID, certificate: certificate, key: key}, nil
}

// Sign gives the certificate, in PEM, for the key of a signing request in DER.
// All names in the request are ignored: the certificate says id and nothing else.
func (a *Authority) Sign(request []byte, id Identity, now time.Time) ([]byte, error) {
	if id.ClusterID != a.clusterID {
		return nil, problem.New(problem.Invalid, "auth.identity", "%q is not of cluster %q", id.URI(), a.clusterID)
	}
	if err := id.check(); err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, problem.New(problem.Invalid, "auth.signing_request", "the signing request is damaged").WithCause(err)
	}
	switch key := csr.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, errWeakKey
		}
	default:
		return nil, errWeakKey
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: id.Actor()}, URIs: []*url.URL{id.URI()},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(certificateLife),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, csr.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("auth: sign for %s: %w", id.Actor(), err)
	}
	return encodeCertificate(der), nil
}

// Issue makes a keypair and signs for it.
func (a *Authority) Issue(id Identity, now time.Time) (*Keypair, error) {
	k, err := NewKeypair()
	if err != nil {
		return nil, err
	}
	request, err := k.SigningRequest()
	if err != nil {
		return nil, err
	}
	certificate, err := a.Sign(request, id, now)
	if err != nil {
		return nil, err
	}
	return k.Certify(certificate)
}

var errWeakKey = problem.New(problem.Invalid, "auth.key", "keys are ECDSA on P-256 or Ed25519").WithHint("make another signing request")

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der})
}

// parseCertificate reads one certificate in PEM and nothing behind it.
func parseCertificate(b []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != certificateBlock || len(rest) > 0 {
		return nil, problem.New(problem.Invalid, "auth.certificate", "this is not one certificate in PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, problem.New(problem.Invalid, "auth.certificate", "the certificate is damaged").WithCause(err)
	}
	return c, nil
}

// Pin is the digest of a certificate by which a token names its cluster's
// authority.
func Pin(certificatePEM []byte) ([sha256.Size]byte, error) {
	c, err := parseCertificate(certificatePEM)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(c.Raw), nil
}

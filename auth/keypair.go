package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

const (
	// keypairFile in the directory of a keypair holds both, so that neither is ever
	// there without the other.
	keypairFile = "node.pem"
	keyBlock    = "EC PRIVATE KEY"
	// keypairBytesMax bounds what is read of a file.
	keypairBytesMax = 64 << 10
)

// Keypair is a key and, once signed, its certificate.
type Keypair struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

// NewKeypair makes a key that has no certificate yet.
func NewKeypair() (*Keypair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("auth: make a key: %w", err)
	}
	return &Keypair{key: key}, nil
}

// SigningRequest for the key, in DER.
func (k *Keypair) SigningRequest() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "blixard"}}, k.key)
}

// Certify gives the keypair with its certificate, which must be for its key.
func (k *Keypair) Certify(certificatePEM []byte) (*Keypair, error) {
	c, err := parseCertificate(certificatePEM)
	if err != nil {
		return nil, err
	}
	if !k.key.PublicKey.Equal(c.PublicKey) {
		return nil, problem.New(problem.Invalid, "auth.certificate", "the certificate is for another key")
	}
	return &Keypair{key: k.key, certificate: c}, nil
}

// Identity in the certificate.
func (k *Keypair) Identity() (Identity, error) { return identityOf(k.certificate) }

// NotAfter is the end of the certificate.
func (k *Keypair) NotAfter() time.Time { return k.certificate.NotAfter }

// RenewDue tells whether two thirds of the certificate's life are over.
func (k *Keypair) RenewDue(now time.Time) bool {
	life := k.certificate.NotAfter.Sub(k.certificate.NotBefore)
	return now.After(k.certificate.NotBefore.Add(life * 2 / 3))
}

// SignedBy tells whether an authority, in PEM, signed the certificate.
func (k *Keypair) SignedBy(authorityPEM []byte) bool {
	a, err := parseCertificate(authorityPEM)
	return err == nil && k.certificate.CheckSignatureFrom(a) == nil
}

// tls gives the form that crypto/tls wants, with the authorities behind, so that
// one who only knows their digest can check them.
func (k *Keypair) tls(authorities []*x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{Certificate: [][]byte{k.certificate.Raw}, PrivateKey: k.key, Leaf: k.certificate}
	for _, a := range authorities {
		c.Certificate = append(c.Certificate, a.Raw)
	}
	return c
}

// pem gives the key and its certificate.
func (k *Keypair) pem() ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(k.key)
	if err != nil {
		return nil, fmt.Errorf("auth: encode the key: %w", err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), encodeCertificate(k.certificate.Raw)...), nil
}

// Save writes both into one file for the owner only, which replaces an older one at
// once.
func (k *Keypair) Save(dir string) error {
	b, err := k.pem()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("auth: save the key: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, keypairFile), b, 0o600); err != nil {
		return fmt.Errorf("auth: save %s: %w", keypairFile, err)
	}
	return nil
}

// LoadKeypair reads what Save wrote. A file that others may read is refused.
func LoadKeypair(dir string) (*Keypair, error) {
	path := filepath.Join(dir, keypairFile)
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	damaged := problem.New(problem.Internal, "auth.key_damaged", "%s is damaged", path).
		WithHint("restore it from a backup, or remove the node from the cluster and let it join again")
	block, rest := pem.Decode(b)
	if block == nil || block.Type != keyBlock {
		return nil, damaged
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, damaged.WithCause(err)
	}
	return (&Keypair{key: key}).Certify(rest)
}

// readPrivate reads a small file that only its owner may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, problem.New(problem.Denied, "auth.key_open", "%s may be read by others (mode %04o)", path, st.Mode().Perm()).
			WithHint("run `chmod 600 %s`, and have the node renew its certificate if others were on the host", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, keypairBytesMax+1))
	if err == nil && len(b) > keypairBytesMax {
		err = errors.New("it is too long")
	}
	if err != nil {
		return nil, fmt.Errorf("auth: read %s: %w", path, err)
	}
	return b, nil
}

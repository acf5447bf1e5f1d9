package auth

import (
	"crypto/x509"
	"encoding/pem"
	"time"

	"github.com/google/renameio/v2"

	"github.com/blixard/blixard/internal/problem"
)

// credentialsHint says where credentials come from.
const credentialsHint = "make another with `blixard cluster credentials` on a node"

// SaveCredentials writes one PEM file for a person or a program: the key, its
// certificate and the cluster's authorities. Only its owner may read it.
func SaveCredentials(path string, k *Keypair, authorities [][]byte) error {
	b, err := k.pem()
	if err != nil {
		return err
	}
	for _, a := range authorities {
		b = append(b, a...)
	}
	if err := renameio.WriteFile(path, b, 0o600); err != nil {
		return problem.New(problem.Invalid, "credentials.unwritable", "the credentials can't be written to %s", path).WithCause(err).
			WithHint("choose another file with --file")
	}
	return nil
}

// LoadCredentials reads what SaveCredentials wrote, and gives the trust of its
// holder. A file that others may read is refused.
func LoadCredentials(path string) (*Trust, error) {
	b, err := readPrivate(path)
	if err != nil {
		if problem.HasCode(err, "auth.key_open") {
			return nil, err
		}
		return nil, problem.New(problem.Invalid, "credentials.unreadable", "the credentials in %s can't be read", path).WithCause(err).
			WithHint("name the file with --credentials or BLIXARD_CREDENTIALS; %s", credentialsHint)
	}
	damaged := problem.New(problem.Invalid, "credentials.damaged", "%s holds no credentials of blixard", path).WithHint("%s", credentialsHint)
	var keys *Keypair
	var authorities [][]byte
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		switch {
		case block.Type == keyBlock && keys == nil:
			key, err := x509.ParseECPrivateKey(block.Bytes)
			if err != nil {
				return nil, damaged.WithCause(err)
			}
			keys = &Keypair{key: key}
		case block.Type == certificateBlock && keys != nil && keys.certificate == nil:
			if keys, err = keys.Certify(encodeCertificate(block.Bytes)); err != nil {
				return nil, damaged.WithCause(err)
			}
		case block.Type == certificateBlock:
			authorities = append(authorities, encodeCertificate(block.Bytes))
		default:
			return nil, damaged
		}
	}
	if keys == nil || keys.certificate == nil || len(authorities) == 0 {
		return nil, damaged
	}
	id, err := keys.Identity()
	if err != nil {
		return nil, damaged.WithCause(err)
	}
	if time.Now().After(keys.NotAfter()) {
		return nil, problem.New(problem.Denied, "credentials.expired", "the credentials in %s ended at %s", path, keys.NotAfter().Format(time.DateTime)).WithHint("%s", credentialsHint)
	}
	return &Trust{
		ClusterID: id.ClusterID, Keypair: func() *Keypair { return keys }, Authorities: func() [][]byte { return authorities }, Now: time.Now,
	}, nil
}

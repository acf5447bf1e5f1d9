package auth

import "github.com/blixard/blixard/internal/problem"

// SealValue encrypts a value of the cluster's, such as a secret of that name, with
// the cluster's secret (AES-256-GCM with a random nonce). It is bound to cluster and
// name: under another it does not open.
func SealValue(secret []byte, clusterID, name string, value []byte) ([]byte, error) {
	gcm, err := sealer(secret)
	if err != nil {
		return nil, err
	}
	return gcm.Seal(nil, nil, value, sealedName(clusterID, name)), nil
}

// OpenValue gives what SealValue sealed. Anything else is a problem of code
// auth.sealed.
func OpenValue(secret []byte, clusterID, name string, sealed []byte) ([]byte, error) {
	gcm, err := sealer(secret)
	if err != nil {
		return nil, err
	}
	value, err := gcm.Open(nil, nil, sealed, sealedName(clusterID, name))
	if err != nil {
		return nil, problem.New(problem.Internal, "auth.sealed", "the value of %q can't be opened", name).WithCause(err).
			WithHint("the file with the cluster's secret is not this cluster's: restore it from another voter")
	}
	return value, nil
}

// sealedName can't be an authority's, which is sealed under the bare id.
func sealedName(clusterID, name string) []byte {
	return []byte(clusterID + "\x00secret\x00" + name)
}

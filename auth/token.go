package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"hash/crc32"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// The text of a token: a prefix with its format, then in base 32 the id, the
// secret, the pin and a checksum that tells a slip of the hand from a wrong token.
const (
	tokenPrefix      = "blixard1-"
	tokenIDBytes     = 6
	tokenSecretBytes = 20
	tokenSumBytes    = 4
	tokenBytes       = tokenIDBytes + tokenSecretBytes + sha256.Size + tokenSumBytes
)

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token lets a node into a cluster, which it also names.
type Token struct {
	// ID is public, Secret is not.
	ID     string
	Secret []byte
	// CAPin is the digest of the authority that the cluster must show.
	CAPin [sha256.Size]byte
}

// NewToken makes a token for the cluster of that authority.
func NewToken(caCertificatePEM []byte) (Token, error) {
	pin, err := Pin(caCertificatePEM)
	if err != nil {
		return Token{}, err
	}
	id := make([]byte, tokenIDBytes)
	t := Token{Secret: make([]byte, tokenSecretBytes), CAPin: pin}
	rand.Read(id) // never fails: the program ends instead
	rand.Read(t.Secret)
	t.ID = base32Lower.EncodeToString(id)
	return t, nil
}

// String gives the whole token, secret included.
func (t Token) String() string {
	id, _ := base32Lower.DecodeString(t.ID)
	b := append(append(id, t.Secret...), t.CAPin[:]...)
	sum := crc32.ChecksumIEEE(b)
	b = append(b, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
	return tokenPrefix + base32Lower.EncodeToString(b)
}

// SecretDigest is what the cluster keeps of the secret.
func (t Token) SecretDigest() []byte { return SecretDigest(t.Secret) }

// SecretDigest of a token's secret: it has 160 random bits, so a plain hash is
// enough.
func SecretDigest(secret []byte) []byte {
	d := sha256.Sum256(secret)
	return d[:]
}

// ParseToken reads the text of a token.
func ParseToken(text string) (Token, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	hint := "copy the whole token from `blixard cluster token create`"
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		if strings.HasPrefix(text, "blixard") {
			return Token{}, problem.New(problem.Invalid, "token.newer", "the token has a form this version does not know").
				WithHint("install the version of blixard that the cluster has")
		}
		return Token{}, problem.New(problem.Invalid, "token.malformed", "this is not a join token").WithHint("%s", hint)
	}
	if want := base32Lower.EncodedLen(tokenBytes); len(body) != want {
		return Token{}, problem.New(problem.Invalid, "token.truncated", "the token has %d characters, not %d", len(text), len(tokenPrefix)+want).
			WithHint("%s", hint)
	}
	b, err := base32Lower.DecodeString(body)
	if err != nil || base32Lower.EncodeToString(b) != body { // the last character has bits to spare
		return Token{}, problem.New(problem.Invalid, "token.malformed", "the token has characters that no token has").WithHint("%s", hint)
	}
	rest, sum := b[:tokenBytes-tokenSumBytes], b[tokenBytes-tokenSumBytes:]
	c := crc32.ChecksumIEEE(rest)
	if !bytes.Equal(sum, []byte{byte(c >> 24), byte(c >> 16), byte(c >> 8), byte(c)}) {
		return Token{}, problem.New(problem.Invalid, "token.malformed", "a character of the token is wrong").WithHint("%s", hint)
	}
	t := Token{ID: base32Lower.EncodeToString(rest[:tokenIDBytes]), Secret: rest[tokenIDBytes : tokenIDBytes+tokenSecretBytes]}
	copy(t.CAPin[:], rest[tokenIDBytes+tokenSecretBytes:])
	return t, nil
}

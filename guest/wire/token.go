package wire

import (
	"encoding/hex"
	"errors"
	"strings"
)

// CmdlineKey is the kernel argument that carries the token.
const CmdlineKey = "blixard.channel"

// Token is the secret of one boot: the marker that starts a session contains it, so a host that
// reached the wrong guest's socket gets no answer. Its zero value is not valid.
type Token [16]byte

// ErrToken is returned for text that is not 32 lower-case hex digits.
var ErrToken = errors.New("wire: a channel token is 32 hex digits and not all zero")

// ParseToken reads what String wrote.
func ParseToken(s string) (Token, error) {
	var t Token
	if len(s) != hex.EncodedLen(len(t)) {
		return Token{}, ErrToken
	}
	if _, err := hex.Decode(t[:], []byte(s)); err != nil || t == (Token{}) {
		return Token{}, ErrToken
	}
	return t, nil
}

// String is the token as 32 hex digits. It is a secret: not for logs.
func (t Token) String() string { return hex.EncodeToString(t[:]) }

// KernelArg is the argument that tells the guest its token.
func (t Token) KernelArg() string { return CmdlineKey + "=" + t.String() }

// TokenFromCmdline finds the token on a kernel command line; the last one given counts.
func TokenFromCmdline(cmdline string) (Token, error) {
	var found string
	for _, arg := range strings.Fields(cmdline) {
		if v, ok := strings.CutPrefix(arg, CmdlineKey+"="); ok {
			found = v
		}
	}
	return ParseToken(found)
}

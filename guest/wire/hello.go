package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
)

// Bytes that begin something other than data in the host's direction. In a host's stream an Escape
// that is data is always followed by escapedByte, so Escape+helloByte can be nothing but the
// beginning of a hello.
const (
	Escape      byte = 0xFB
	escapedByte byte = 0x00
	helloByte   byte = 0x01
	replyByte   byte = 0x02
	byeByte     byte = 0x03
)

// MaxHello bounds the line of a hello or reply: about 100 bytes are used.
const MaxHello = 256

const (
	helloWord = "blixard"
	replyWord = "blixard-guest"
)

// Nonce ties a reply to one hello, whatever an earlier session left in the pipe.
type Nonce [16]byte

// Hello is what a host says first on every connection.
type Hello struct {
	Major, Minor int
	Token        Token
	Nonce        Nonce
}

// Reply is the guest's answer.
type Reply struct {
	Major, Minor int
	Nonce        Nonce
	BootID       string
}

// errHello is every way a hello or reply can be malformed: both ends only drop it.
var errHello = errors.New("wire: malformed hello")

// Append adds the bytes to send to dst.
func (h Hello) Append(dst []byte) []byte {
	dst = append(dst, Escape, helloByte)
	dst = append(dst, helloWord...)
	dst = appendVersion(append(dst, ' '), h.Major, h.Minor)
	dst = hex.AppendEncode(append(dst, ' '), h.Token[:])
	dst = hex.AppendEncode(append(dst, ' '), h.Nonce[:])
	return append(dst, '\n')
}

// Append adds the bytes to send to dst. BootID must be without spaces.
func (r Reply) Append(dst []byte) []byte {
	dst = append(dst, Escape, replyByte)
	dst = append(dst, replyWord...)
	dst = appendVersion(append(dst, ' '), r.Major, r.Minor)
	dst = hex.AppendEncode(append(dst, ' '), r.Nonce[:])
	dst = append(append(dst, ' '), r.BootID...)
	return append(dst, '\n')
}

// appendVersion is without fmt, whose first use costs an emulated guest some milliseconds.
func appendVersion(dst []byte, major, minor int) []byte {
	dst = strconv.AppendInt(dst, int64(major), 10)
	return strconv.AppendInt(append(dst, '.'), int64(minor), 10)
}

// Bye is what a guest writes between two frames when it ends a session on its own.
func Bye() []byte { return []byte{Escape, byeByte} }

// IsBye reports whether a frame boundary begins with a Bye.
func IsBye(b []byte) bool { return len(b) >= 2 && b[0] == Escape && b[1] == byeByte }

func parseHello(line []byte) (Hello, error) {
	f := strings.Split(string(line), " ")
	if len(f) != 4 || f[0] != helloWord {
		return Hello{}, errHello
	}
	var h Hello
	var err error
	if h.Major, h.Minor, err = parseVersion(f[1]); err != nil {
		return Hello{}, err
	}
	if h.Token, err = ParseToken(f[2]); err != nil {
		return Hello{}, err
	}
	if h.Nonce, err = parseNonce(f[3]); err != nil {
		return Hello{}, err
	}
	return h, nil
}

func parseReply(line []byte) (Reply, error) {
	f := strings.Split(string(line), " ")
	if len(f) != 4 || f[0] != replyWord || len(f[3]) > MaxIDLen {
		return Reply{}, errHello
	}
	var r Reply
	var err error
	if r.Major, r.Minor, err = parseVersion(f[1]); err != nil {
		return Reply{}, err
	}
	if r.Nonce, err = parseNonce(f[2]); err != nil {
		return Reply{}, err
	}
	r.BootID = CleanText(f[3], MaxIDLen)
	return r, nil
}

func parseVersion(s string) (major, minor int, err error) {
	a, b, ok := strings.Cut(s, ".")
	x, err1 := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	if !ok || err1 != nil || err2 != nil {
		return 0, 0, errHello
	}
	return int(x), int(y), nil
}

func parseNonce(s string) (Nonce, error) {
	var n Nonce
	if len(s) != hex.EncodedLen(len(n)) {
		return n, errHello
	}
	_, err := hex.Decode(n[:], []byte(s))
	return n, err
}

// AppendEscaped adds p to dst as data of a host's stream.
func AppendEscaped(dst, p []byte) []byte {
	for {
		i := bytes.IndexByte(p, Escape)
		if i < 0 {
			return append(dst, p...)
		}
		dst = append(dst, p[:i]...)
		dst = append(dst, Escape, escapedByte)
		p = p[i+1:]
	}
}

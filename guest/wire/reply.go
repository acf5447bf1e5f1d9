package wire

import (
	"bufio"
	"errors"
)

// MaxStale bounds the bytes of older sessions that a host discards before the reply to its hello: the
// guest's queue, QEMU's and the socket's hold under 2 MiB, the rest is room for other hypervisors.
const MaxStale = 16 << 20

// ErrNoReply is returned by ReadReply when MaxStale bytes held no reply.
var ErrNoReply = errors.New("wire: the guest sends data but no answer to the hello")

// ReadReply discards bytes until the reply to the hello with this nonce and returns that; what
// follows it stays in r. Deadlines are the caller's, on the connection under r.
func ReadReply(r *bufio.Reader, nonce Nonce) (Reply, error) {
	line := make([]byte, 0, MaxHello)
	state := scanClosed
	for range MaxStale {
		b, err := r.ReadByte()
		if err != nil {
			return Reply{}, err
		}
		switch {
		case b == Escape:
			state = scanEscape
		case state == scanEscape && b == replyByte:
			state, line = scanHello, line[:0]
		case state != scanHello:
			state = scanClosed
		case b == '\n':
			if reply, err := parseReply(line); err == nil && reply.Nonce == nonce {
				return reply, nil
			}
			state = scanClosed
		case len(line) >= MaxHello:
			state = scanClosed
		default:
			line = append(line, b)
		}
	}
	return Reply{}, ErrNoReply
}

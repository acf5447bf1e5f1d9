package daemon

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// autoJoinFirst and autoJoinMost are between two tries at joining by itself: the
	// others may start later.
	autoJoinFirst = 500 * time.Millisecond
	autoJoinMost  = 15 * time.Second
	// tokenBytesMax of a token's file.
	tokenBytesMax = 1024
)

// autoJoin joins the configured peers if the node is alone, and ends when that is
// done, is refused for good, or ctx ended.
func (n *node) autoJoin(ctx context.Context) {
	peers := n.cfg.Cluster.PeerList()
	if len(peers) == 0 || n.member.Joined {
		return
	}
	wait := &backoff.ExponentialBackOff{
		InitialInterval: autoJoinFirst, MaxInterval: autoJoinMost,
		RandomizationFactor: backoff.DefaultRandomizationFactor, Multiplier: backoff.DefaultMultiplier,
	}
	wait.Reset()
	for {
		for _, peer := range peers {
			err := n.joinPeer(ctx, peer)
			if err == nil || ctx.Err() != nil {
				return
			}
			told := problem.From(err)
			n.log.Warn("the node could not join a peer", "peer", peer, "err", err, "hint", told.Hint)
			if told.Code == "cluster.not_empty" || told.Code == "cluster.member" {
				return // it is something already that it must not lose
			}
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
			return
		}
	}
}

func (n *node) joinPeer(ctx context.Context, peer string) error {
	token, err := readToken(n.cfg.Cluster.JoinTokenFile)
	if err != nil {
		return err
	}
	_, err = membership{n}.Join(ctx, &blixardv1.JoinRequest{Peer: peer, Token: token})
	return err
}

// readToken reads a token from a file that only its owner may read.
func readToken(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", problem.New(problem.Invalid, "token.unreadable", "the token in %s can't be read", path).WithCause(err).
			WithHint("write one there: `blixard cluster token create` on a member makes it")
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err == nil && st.Mode().Perm()&0o077 != 0 {
		return "", problem.New(problem.Denied, "token.open", "%s may be read by others (mode %04o)", path, st.Mode().Perm()).WithHint("run `chmod 600 %s`", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, tokenBytesMax))
	if err != nil {
		return "", problem.New(problem.Invalid, "token.unreadable", "the token in %s can't be read", path).WithCause(err).WithHint("is it a file?")
	}
	return strings.TrimSpace(string(b)), nil
}

package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// Names inside the data directory that have to do with the cluster.
const (
	memberFile  = "member.json"
	tlsDir      = "tls"
	secretFile  = "cluster.secret"
	formingFile = "forming.json"
	// joiningDir holds all that a join or a recovery gives; it appears whole or not
	// at all, and the next start takes it over.
	joiningDir = "joining"
	// survivedDir is the log as it was before a recovery.
	survivedDir = "raft.survived"
	// leftFile says that the node left its cluster: the next start begins anew.
	leftFile = "left"
)

// memberBytesMax of member.json: addresses of 1,000 peers and more.
const memberBytesMax = 1 << 20

// member is what the node knows of its part in the cluster before it has any
// state.
type member struct {
	Format    int    `json:"format"`
	ClusterID string `json:"cluster_id"`
	RaftID    uint64 `json:"raft_id"`
	// Joined: its log began with what the cluster sent.
	Joined bool `json:"joined,omitempty"`
	// Began: the replica's log was begun, and must be there from then on.
	Began bool `json:"began,omitempty"`
	// Role with which it joined; a witness runs no VMs as long as it is a member.
	Role string `json:"role,omitempty"`
	// Address that was last told to the others.
	Address string `json:"address,omitempty"`
	// Peers by which a node that has joined is reached first.
	Peers []peerAddress `json:"peers,omitempty"`
	// Authorities of the cluster, in PEM, as the change of that index left them. The
	// state may be older: it begins with a snapshot of the leader.
	Authorities      []string `json:"authorities"`
	AuthoritiesIndex uint64   `json:"authorities_index,omitempty"`
}

type peerAddress struct {
	NodeID  string `json:"node_id"`
	RaftID  uint64 `json:"raft_id"`
	Address string `json:"address"`
}

// forming is the authority of a cluster that is not in the state yet.
type forming struct {
	Certificate []byte `json:"certificate"`
	SealedKey   []byte `json:"sealed_key"`
}

// readJSON reads a small file of ours. A file that is not there is no error: ok
// is false.
func readJSON(file string, into any) (ok bool, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("data directory: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, memberBytesMax))
	if err != nil {
		return false, fmt.Errorf("data directory: read %s: %w", file, err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return false, problem.New(problem.Internal, "data.damaged", "%s is damaged", file).WithCause(err).
			WithHint("restore the file from a backup, or remove the node from the cluster and start it with an empty --data-dir")
	}
	return true, nil
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := renameio.WriteFile(file, append(b, '\n'), 0o600); err != nil {
		return problem.New(problem.Unavailable, "data.unwritable", "%s can't be written", file).WithCause(err).
			WithHint("make room on its disk, or mend its permissions")
	}
	return nil
}

// openMember reads what the node is in its cluster; a new node makes itself the
// first of a new one.
func (n *node) openMember() error {
	ok, err := readJSON(n.data.join(memberFile), &n.member)
	if err != nil {
		return err
	}
	if !ok {
		if err := n.beginCluster(); err != nil {
			return err
		}
	}
	if n.member.ClusterID == "" || n.member.RaftID == 0 || len(n.member.Authorities) == 0 || n.member.Format > dataFormat {
		return problem.New(problem.Internal, "data.damaged", "%s is damaged or newer than this blixard", n.data.join(memberFile)).
			WithHint("restore the file from a backup")
	}
	if _, err := os.Stat(n.data.join(raftDir)); errors.Is(err, fs.ErrNotExist) && n.member.Began {
		return problem.New(problem.Internal, "data.log_missing", "%s is gone: a node that has lost its log must not vote again", n.data.join(raftDir)).
			WithHint("restore it, or remove the node from the cluster (`blixard cluster remove`), and start it with an empty --data-dir")
	}
	keys, err := auth.LoadKeypair(n.data.join(tlsDir))
	if err != nil {
		return err
	}
	n.keys.Store(keys)
	n.trusted.Store(n.member.trusted())
	n.secret, err = os.ReadFile(n.data.join(secretFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data directory: %w", err)
	}
	n.trust = &auth.Trust{ClusterID: n.member.ClusterID, Keypair: n.keys.Load, Authorities: n.authorities, Crosses: n.crosses, Refused: n.refused, Now: wallclock.Now}
	return nil
}

// beginCluster makes what a cluster of one needs. member.json comes last: before
// it, another start makes all anew.
func (n *node) beginCluster() error {
	if _, err := os.Stat(n.data.join(raftDir)); err == nil {
		return problem.New(problem.Internal, "data.damaged", "there is a log but no %s", n.data.join(memberFile)).
			WithHint("restore the file from a backup")
	}
	m, f, err := foundCluster(n.data.path, n.data.id.NodeID)
	if err != nil {
		return err
	}
	if err := writeJSON(n.data.join(formingFile), f); err != nil {
		return err
	}
	m.RaftID = replica.FirstID
	n.member = m
	return writeJSON(n.data.join(memberFile), m)
}

// foundCluster makes a new cluster's authority, and writes its secret and the node's
// certificate into dir.
func foundCluster(dir, nodeID string) (m member, f forming, err error) {
	id, now := "cluster-"+strings.ToLower(rand.Text()[:16]), wallclock.Now()
	ca, err := auth.NewAuthority(id, now)
	if err != nil {
		return m, f, err
	}
	secret := auth.NewSecret()
	sealed, err := ca.Seal(secret)
	if err != nil {
		return m, f, err
	}
	keys, err := ca.Issue(auth.Identity{ClusterID: id, Role: auth.RoleNode, Name: nodeID}, now)
	if err != nil {
		return m, f, err
	}
	if err := keys.Save(filepath.Join(dir, tlsDir)); err != nil {
		return m, f, err
	}
	if err := renameio.WriteFile(filepath.Join(dir, secretFile), secret, 0o600); err != nil {
		return m, f, fmt.Errorf("data directory: %w", err)
	}
	return member{Format: dataFormat, ClusterID: id, Authorities: []string{string(ca.Certificate())}}, forming{ca.Certificate(), sealed}, nil
}

// authorities gives those of the state or of the file, whichever is newer.
func (n *node) authorities() [][]byte {
	known := n.trusted.Load()
	if n.replica != nil {
		if c := n.replica.View().Cluster(); c.GetModifyIndex() > known.index {
			return c.GetCaCertificates()
		}
	}
	return known.authorities
}

// trusted is what member.json says of the authorities.
type trusted struct {
	authorities [][]byte
	index       uint64
}

func (m member) trusted() *trusted {
	t := &trusted{index: m.AuthoritiesIndex}
	for _, a := range m.Authorities {
		t.authorities = append(t.authorities, []byte(a))
	}
	return t
}

// crosses gives the keys of newer authorities signed by older ones.
func (n *node) crosses() [][]byte {
	if n.replica == nil {
		return nil
	}
	return n.replica.View().Cluster().GetCrossCertificates()
}

// ownAuthority is the id of the authority that signed the node's certificate; empty
// when it is none of those trusted.
func (n *node) ownAuthority() string {
	for _, a := range n.authorities() {
		if n.keys.Load().SignedBy(a) {
			return state.AuthorityID(a)
		}
	}
	return ""
}

// refused says why a node is not taken whose certificate is good.
func (n *node) refused(id auth.Identity) error {
	if id.Role != auth.RoleNode || n.replica == nil {
		return nil
	}
	if m := n.replica.View().Member(id.Name); m != nil && m.GetRemoved() {
		return problem.New(problem.Denied, "auth.removed", "node %s was removed from the cluster", m.GetName()).
			WithHint("start it with an empty --data-dir and let it join again")
	}
	return nil
}

// form puts the new cluster into the state; a cluster that is there already is
// left as it is.
func (n *node) form(ctx context.Context) error {
	var f forming
	ok, err := readJSON(n.data.join(formingFile), &f)
	if !ok || err != nil {
		return err
	}
	r, err := n.replica.Propose(ctx, &blixardv1.Command{
		Actor: "node:" + n.cfg.Node.Name, Time: timestamppb.New(wallclock.Now()),
		Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
			ClusterId: n.member.ClusterID, CaCertificate: f.Certificate, SealedCaKey: f.SealedKey,
			Member: &blixardv1.Member{
				NodeId: n.data.id.NodeID, Name: n.cfg.Node.Name, RaftId: n.member.RaftID, Address: n.network.address,
				Version: n.opts.Version, FeatureLevel: state.FeatureLevel, Authority: state.AuthorityID(f.Certificate),
			},
		}},
	})
	if err != nil {
		return err
	}
	if r.Problem != nil && !problem.HasCode(r.Problem, "cluster.formed") {
		return r.Problem
	}
	return ignoreAbsent(os.Remove(n.data.join(formingFile)))
}

// settle finishes, before anything else, what was staged: a join or the end of a
// membership. Every step may be done again.
func settle(dir string) error {
	staged := filepath.Join(dir, joiningDir)
	if _, err := os.Stat(staged); err == nil {
		if err := takeOver(dir, staged); err != nil {
			return fmt.Errorf("finish the join: %w", err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, leftFile)); err == nil {
		for _, name := range []string{raftDir, tlsDir, secretFile, formingFile, memberFile, identityFile, leftFile} {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("begin anew after leaving: %w", err)
			}
		}
	}
	return os.RemoveAll(staged + ".done")
}

// takeOver puts what a join or a recovery gave in the place of what the node had.
func takeOver(dir, staged string) error {
	keys, err := auth.LoadKeypair(filepath.Join(staged, tlsDir))
	if err != nil {
		return err
	}
	for _, name := range []string{formingFile, memberFile, secretFile} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := takeLog(dir, staged); err != nil {
		return err
	}
	if err := keys.Save(filepath.Join(dir, tlsDir)); err != nil {
		return err
	}
	for _, name := range []string{secretFile, memberFile} {
		b, err := os.ReadFile(filepath.Join(staged, name))
		if errors.Is(err, fs.ErrNotExist) && name == secretFile {
			continue // a worker has none
		}
		if err != nil {
			return err
		}
		if err := renameio.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return os.Rename(staged, staged+".done")
}

// takeLog puts the staged log of a recovery in the place of the old one, which is
// kept beside it; a join has none, and the old one goes. It may be done again after
// a crash at any point.
func takeLog(dir, staged string) error {
	own, next := filepath.Join(dir, raftDir), filepath.Join(staged, raftDir)
	var m member
	if _, err := readJSON(filepath.Join(staged, memberFile), &m); err != nil {
		return err
	}
	if _, err := os.Stat(next); errors.Is(err, fs.ErrNotExist) {
		if m.Began {
			return nil // taken before
		}
		return os.RemoveAll(own)
	}
	if _, err := os.Stat(own); err == nil {
		kept := filepath.Join(dir, survivedDir)
		if err := os.RemoveAll(kept); err != nil {
			return err
		}
		if err := os.Rename(own, kept); err != nil {
			return err
		}
	}
	return os.Rename(next, own)
}

// rememberedAddress is the one that the node told the others last; empty when
// there is none. It is only read, so that it may be asked before the directory is
// this process's.
func rememberedAddress(dir string) string {
	var m member
	for _, file := range []string{filepath.Join(dir, joiningDir, memberFile), filepath.Join(dir, memberFile)} {
		if ok, err := readJSON(file, &m); ok && err == nil {
			return m.Address
		}
	}
	return ""
}

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/daemon/config"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/leader"
	"github.com/blixard/blixard/replica"
)

const (
	// recoverProbeTimeout of the question to each other member.
	recoverProbeTimeout = 3 * time.Second
	// recoverProbes go on at once.
	recoverProbes = 32
)

// RecoverOptions say how a cluster is recovered. Config and Logger are needed.
type RecoverOptions struct {
	Config config.Config
	Logger *slog.Logger
	// Commit makes the change; without it the plan is only told.
	Commit bool
	// Progress is told what is waited for; nil for nobody.
	Progress func(what string)
}

// RecoverPlan is what a recovery does, or did.
type RecoverPlan struct {
	Node      string `json:"node"`
	ClusterID string `json:"cluster"`
	// Index of the newest change that the survivor has.
	Index uint64 `json:"index"`
	// VMs that are given up by the other members, to be placed again.
	VMs int `json:"vms_given_up"`
	// Lost members do not answer.
	Lost []LostMember `json:"lost"`
	// NewClusterID is empty while nothing was changed.
	NewClusterID string `json:"new_cluster,omitempty"`
}

// LostMember is another member of the old cluster.
type LostMember struct {
	Name    string `json:"name"`
	NodeID  string `json:"node_id"`
	Address string `json:"address"`
	Role    string `json:"role"`
	// Answers tells that something answers at its address.
	Answers bool `json:"answers"`

	raftID  uint64
	applied uint64
	leader  string
}

// Recover makes a new cluster of one of what a stopped node has of a cluster whose
// majority is lost. It refuses, and changes nothing, while a majority of the voters
// could exist ("recover.quorum", "recover.leader"), when another member that answers
// has more of the log ("recover.older"), and when the node runs ("data.in_use").
func Recover(ctx context.Context, opts RecoverOptions) (*RecoverPlan, error) {
	if _, err := os.Stat(filepath.Join(opts.Config.DataDir, memberFile)); err != nil {
		return nil, problem.New(problem.NotFound, "recover.no_member", "there is no member's data in %s", opts.Config.DataDir).WithCause(err).
			WithHint("name the directory of the stopped node with --data-dir")
	}
	data, err := openDataDir(opts.Config.DataDir)
	if err != nil {
		return nil, err
	}
	r := &recovery{RecoverOptions: opts, data: data}
	plan, err := r.run(ctx)
	return plan, errors.Join(err, data.close())
}

// recovery is one under way.
type recovery struct {
	RecoverOptions
	data     *dataDir
	member   member
	survivor *replica.Survivor
	own      *blixardv1.Member
}

func (r *recovery) run(ctx context.Context) (*RecoverPlan, error) {
	if _, err := readJSON(r.data.join(memberFile), &r.member); err != nil {
		return nil, err
	}
	var err error
	r.survivor, err = replica.Survive(replica.Config{
		Dir: r.data.join(raftDir), NodeID: r.data.id.NodeID, ClusterID: r.member.ClusterID, RaftID: r.member.RaftID, Logger: r.Logger,
	})
	if err != nil {
		return nil, err
	}
	view := r.survivor.View
	r.own = view.Member(r.data.id.NodeID)
	if r.own == nil || r.own.GetRemoved() {
		return nil, problem.New(problem.Conflict, "recover.no_member", "node %s is no member of cluster %s any more", r.data.id.NodeID, r.member.ClusterID).
			WithHint("recover from another node")
	}
	plan := &RecoverPlan{Node: r.own.GetName(), ClusterID: r.member.ClusterID, Index: view.Index()}
	if plan.Lost, err = r.ask(ctx); err != nil {
		return nil, err
	}
	for _, m := range plan.Lost {
		plan.VMs += len(view.AllocationsOfNode(m.NodeID))
	}
	if err := r.refuse(plan.Lost); err != nil || !r.Commit {
		return plan, err
	}
	if err := r.outlastLeases(ctx, plan.Lost); err != nil {
		return nil, err
	}
	plan.NewClusterID, err = r.stage()
	if err != nil {
		return nil, err
	}
	return plan, settle(r.data.path)
}

// ask asks every other member whether it is there.
func (r *recovery) ask(ctx context.Context) ([]LostMember, error) {
	keys, err := auth.LoadKeypair(r.data.join(tlsDir))
	if err != nil {
		return nil, err
	}
	cluster := r.survivor.View.Cluster()
	trust := &auth.Trust{
		ClusterID: r.member.ClusterID, Keypair: func() *auth.Keypair { return keys }, Now: wallclock.Now,
		Authorities: cluster.GetCaCertificates, Crosses: cluster.GetCrossCertificates,
	}
	var all []LostMember
	for _, m := range r.survivor.View.Members() {
		if !m.GetRemoved() && m.GetNodeId() != r.own.GetNodeId() {
			all = append(all, LostMember{Name: m.GetName(), NodeID: m.GetNodeId(), Address: m.GetAddress(), Role: m.GetRole().String(), raftID: m.GetRaftId()})
		}
	}
	for some := range slices.Chunk(all, recoverProbes) {
		done := make(chan struct{}, len(some))
		for i := range some {
			go func() {
				some[i].ask(ctx, trust)
				done <- struct{}{}
			}()
		}
		for range some {
			<-done
		}
	}
	return all, nil
}

// ask tells whether a member answers, or anything in its place.
func (m *LostMember) ask(ctx context.Context, trust *auth.Trust) {
	ctx, cancel := context.WithTimeout(ctx, recoverProbeTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.Address)
	if err != nil {
		return
	}
	_ = c.Close()
	// Something is there: it counts even when it is not understood.
	m.Answers = true
	conn, err := dial(trust, m.NodeID, m.Address)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	if st, err := blixardv1.NewClusterServiceClient(conn).GetCluster(ctx, &blixardv1.GetClusterRequest{}); err == nil {
		m.applied, m.leader = st.GetAppliedIndex(), st.GetLeaderNodeId()
	}
}

// refuse tells why the cluster must not be recovered from here.
func (r *recovery) refuse(others []LostMember) error {
	for _, m := range others {
		if m.leader != "" {
			return problem.New(problem.Conflict, "recover.leader", "node %q answers and says that the cluster has a leader", m.Name).
				WithHint("start this node again: it takes part by itself. If the leader was lost just now, wait some seconds and try again")
		}
	}
	conf := r.survivor.Members
	if r.mayDecide(conf.GetVoters(), others) && (len(conf.GetVotersOutgoing()) == 0 || r.mayDecide(conf.GetVotersOutgoing(), others)) {
		return problem.New(problem.Conflict, "recover.quorum", "a majority of the voters can still be had: %s", r.votersText(conf, others)).
			WithHint("start this node and the others that are left; recover only when a majority is lost for ever")
	}
	for _, m := range others {
		if m.applied > r.survivor.View.Index() {
			return problem.New(problem.Conflict, "recover.older", "node %q has more of the log: up to change %d, and this one up to %d", m.Name, m.applied, r.survivor.View.Index()).
				WithHint("stop that node and recover from it")
		}
	}
	if r.own.GetRole() == blixardv1.MemberRole_worker {
		return problem.New(problem.Conflict, "recover.worker", "node %q is a worker, which has not the cluster's secret", r.own.GetName()).
			WithHint("recover from a voter or a stand-by")
	}
	return nil
}

// mayDecide tells whether this node and those that answer are a majority of voters.
func (r *recovery) mayDecide(voters []uint64, others []LostMember) bool {
	left := 0
	for _, id := range voters {
		if id == r.own.GetRaftId() || slices.ContainsFunc(others, func(m LostMember) bool { return m.raftID == id && m.Answers }) {
			left++
		}
	}
	return left > len(voters)/2
}

func (r *recovery) votersText(conf *raftpb.ConfState, others []LostMember) string {
	text := ""
	for _, id := range conf.GetVoters() {
		name, what := r.own.GetName(), "is here"
		for _, m := range others {
			if m.raftID != id {
				continue
			}
			if name, what = m.Name, "does not answer"; m.Answers {
				what = "answers"
			}
		}
		if text != "" {
			text += ", "
		}
		text += name + " " + what
	}
	return text
}

// outlastLeases waits until no lost node can run an exclusive VM any more: nobody
// renews their leases since there is no majority.
func (r *recovery) outlastLeases(ctx context.Context, lost []LostMember) error {
	table := leader.Table{TTL: r.Config.Lease.TTL, Margin: r.Config.Lease.Margin}
	begin := time.Now()
	table.Begin(0, begin)
	end := begin
	for _, m := range lost {
		for _, a := range r.survivor.View.AllocationsOfNode(m.NodeID) {
			if a.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_failover {
				_, certain := table.End(r.survivor.View.Node(m.NodeID))
				end = latest(end, certain)
			}
		}
	}
	if end == begin {
		return nil
	}
	if r.Progress != nil {
		r.Progress("waiting until no lost node can run an exclusive VM any more")
	}
	select {
	case <-time.After(time.Until(end)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// stage writes the new cluster, whole or not at all.
func (r *recovery) stage() (clusterID string, err error) {
	staged, making := r.data.join(joiningDir), r.data.join(joiningDir+".new")
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	if err := os.MkdirAll(making, 0o700); err != nil {
		return "", err
	}
	m, f, err := foundCluster(making, r.data.id.NodeID)
	if err != nil {
		return "", err
	}
	m.RaftID, m.Address, m.Role, m.Began = r.member.RaftID, r.member.Address, r.member.Role, true
	change := &blixardv1.Command{Actor: "admin", Time: timestamppb.New(wallclock.Now()), Change: &blixardv1.Command_RecoverCluster{RecoverCluster: &blixardv1.RecoverClusterCommand{
		ClusterId: m.ClusterID, CaCertificate: f.Certificate, SealedCaKey: f.SealedKey, NodeId: r.data.id.NodeID,
	}}}
	if err := r.survivor.Found(replica.Config{
		Dir: filepath.Join(making, raftDir), NodeID: r.data.id.NodeID, ClusterID: m.ClusterID, RaftID: m.RaftID, Logger: r.Logger,
	}, change); err != nil {
		return "", err
	}
	if err := writeJSON(filepath.Join(making, memberFile), m); err != nil {
		return "", err
	}
	return m.ClusterID, os.Rename(making, staged)
}

package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// crowdEnv makes the test binary the process of a crowd.
const crowdEnv = "BLIXARD_TEST_CROWD"

func TestMain(m *testing.M) {
	if of := os.Getenv(crowdEnv); of != "" {
		var c crowd
		err := json.Unmarshal([]byte(of), &c)
		if err == nil {
			err = c.run()
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// crowd is very many agents in a process of their own, each with a connection of its own:
// to the socket of the leader, or, where that has an address, over the network with a
// certificate of its own. Then its leases come by a stream, as a daemon passes them on.
type crowd struct {
	Agents  int
	Socket  string
	Address string
	// Certificate of the authority, and its key, sealed with the secret.
	Certificate, Sealed, Secret []byte
}

const (
	crowdCluster = "c1"
	// perAddress connections come from one address, fewer than a node takes.
	perAddress = 1000
)

// run goes on until its input ends. It says how many VMs run whenever that changed.
func (c crowd) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	seen := &tally{}
	var agents sync.WaitGroup
	for n := range c.Agents {
		api, end, err := c.connect(ctx, n)
		if err != nil {
			return err
		}
		m := &machines{
			id: nodeID(n), api: api, tally: seen,
			core: agent.NewCore(agent.Limits{}, driver.AcceleratorTCG, func() []byte { return make([]byte, 16) }),
		}
		agents.Go(func() {
			defer func() { _ = end() }()
			for ctx.Err() == nil {
				if err := m.run(ctx); ctx.Err() == nil {
					fmt.Fprintln(os.Stderr, m.id, err)
					<-time.After(time.Second)
				}
			}
		})
	}
	for last := int64(-1); ctx.Err() == nil; {
		if now := seen.running.Load(); now != last {
			fmt.Println(now)
			last = now
		}
		<-time.After(500 * time.Millisecond)
	}
	agents.Wait()
	return nil
}

func nodeID(n int) string { return fmt.Sprintf("node-%05d", n) }

// connect gives one agent its way to the leader.
func (c crowd) connect(ctx context.Context, n int) (api blixardv1.AgentServiceClient, end func() error, err error) {
	if c.Address == "" {
		local, err := client.Dial(ctx, client.Config{Addr: "unix:" + c.Socket})
		if err != nil {
			return nil, nil, err
		}
		return local.Agents(), local.Close, nil
	}
	authority, err := auth.OpenAuthority(crowdCluster, c.Certificate, c.Sealed, c.Secret)
	if err != nil {
		return nil, nil, err
	}
	trust, err := trustOf(authority, nodeID(n))
	if err != nil {
		return nil, nil, err
	}
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n/perAddress))}}
	conn, err := grpc.NewClient("passthrough:///"+c.Address, grpc.WithTransportCredentials(credentials.NewTLS(trust.ClientTLS("node-a"))),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return from.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return nil, nil, err
	}
	return &byStream{AgentServiceClient: blixardv1.NewAgentServiceClient(conn), conn: conn, ctx: ctx}, conn.Close, nil
}

// trustOf a node of the crowd's cluster.
func trustOf(authority *auth.Authority, name string) (*auth.Trust, error) {
	keys, err := authority.Issue(auth.Identity{ClusterID: crowdCluster, Role: auth.RoleNode, Name: name}, time.Now())
	if err != nil {
		return nil, err
	}
	authorities := [][]byte{authority.Certificate()}
	return &auth.Trust{
		ClusterID: crowdCluster, Now: time.Now, Keypair: func() *auth.Keypair { return keys },
		Authorities: func() [][]byte { return authorities },
	}, nil
}

// byStream asks for leases by one stream, as the daemon of a node that does not lead
// passes its agent's calls on. One is asked for at a time. Allocations are watched at the
// node's own daemon, and so not here.
type byStream struct {
	blixardv1.AgentServiceClient
	conn   *grpc.ClientConn
	ctx    context.Context
	stream blixardv1.ForwardService_CallsClient
	lastID uint64
}

// WatchAllocations tells of none.
func (b *byStream) WatchAllocations(context.Context, *blixardv1.WatchAllocationsRequest, ...grpc.CallOption) (blixardv1.AgentService_WatchAllocationsClient, error) {
	return noAllocations{ctx: b.ctx}, nil
}

type noAllocations struct {
	grpc.ClientStream
	ctx context.Context
}

func (n noAllocations) Recv() (*blixardv1.WatchAllocationsResponse, error) {
	<-n.ctx.Done()
	return nil, n.ctx.Err()
}

func (b *byStream) RenewLease(_ context.Context, req *blixardv1.RenewLeaseRequest, _ ...grpc.CallOption) (*blixardv1.RenewLeaseResponse, error) {
	resp, err := b.renew(req)
	if err != nil {
		b.stream = nil
	}
	return resp, err
}

func (b *byStream) renew(req *blixardv1.RenewLeaseRequest) (*blixardv1.RenewLeaseResponse, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	if b.stream == nil {
		if b.stream, err = blixardv1.NewForwardServiceClient(b.conn).Calls(b.ctx); err != nil {
			return nil, err
		}
	}
	b.lastID++
	if err := b.stream.Send(&blixardv1.CallsRequest{Calls: []*blixardv1.ForwardedCall{{
		Id: b.lastID, Method: "/blixard.v1.AgentService/RenewLease", Request: body, TimeoutNs: int64(5 * time.Second),
	}}}); err != nil {
		return nil, err
	}
	m, err := b.stream.Recv()
	if err != nil {
		return nil, err
	}
	answer := m.GetAnswers()[0]
	if p := problem.FromProto(answer.GetProblem()); p != nil {
		return nil, p
	}
	resp := &blixardv1.RenewLeaseResponse{}
	return resp, proto.Unmarshal(answer.GetResponse(), resp)
}

// crowd begins agents in a process of their own and waits until the cluster knows them all.
// What it gives says how many VMs run; end ends them.
func (w *world) crowd(b *testing.B, of crowd) (stdout io.Reader, end func()) {
	b.Helper()
	env, err := json.Marshal(of)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crowdEnv+"="+string(env), "GOMEMLIMIT=off") // its memory is not what is measured
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for len(w.replica.View().Nodes()) < of.Agents {
		<-time.After(100 * time.Millisecond)
	}
	return out, func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	}
}

// BenchmarkLeases has ten thousand agents that do nothing but keep their leases: what that
// takes of one processor in the process of the leader, when they call it at its socket,
// and when their daemons pass the calls on over the network.
func BenchmarkLeases(b *testing.B) {
	const agents, quiet = 10_000, 30 * time.Second
	for _, way := range []string{"socket", "streams"} {
		for _, ttl := range []time.Duration{10 * time.Second, 30 * time.Second} {
			b.Run(fmt.Sprintf("%s/ttl=%v", way, ttl), func(b *testing.B) {
				for range b.N {
					of := crowd{Agents: agents}
					var w *world
					if way == "socket" {
						w = newWorldOf(b, ttl, &auth.Trust{}, nil)
						of.Socket = w.socket
					} else {
						w = newNetwork(b, ttl, &of)
					}
					stdout, end := w.crowd(b, of)
					go func() { _, _ = io.Copy(io.Discard, stdout) }()
					settle(w)
					before, from := used(b), time.Now()
					<-time.After(quiet)
					b.ReportMetric(100*float64(used(b)-before)/float64(time.Since(from)), "%core")
					end()
					w.end()
				}
			})
		}
	}
}

// newNetwork is a world that a crowd reaches by network.
func newNetwork(b *testing.B, ttl time.Duration, of *crowd) *world {
	b.Helper()
	authority, err := auth.NewAuthority(crowdCluster, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	trust, err := trustOf(authority, "node-a")
	if err != nil {
		b.Fatal(err)
	}
	secret := auth.NewSecret()
	sealed, err := authority.Seal(secret)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	of.Address, of.Certificate, of.Sealed, of.Secret = l.Addr().String(), bytes.TrimSpace(authority.Certificate()), sealed, secret
	w := newWorldOf(b, ttl, trust, l)
	trust.Refused = func(id auth.Identity) error {
		if m := w.replica.View().Member(id.Name); m != nil && m.GetRemoved() {
			return problem.New(problem.Denied, "auth.removed", "node %s was removed", id.Name)
		}
		return nil
	}
	return w
}

package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/supervisor"
)

// Limits of the server.
const (
	// requestBytesMax: a spec of 256 arguments and 512 variables fits well below,
	// and a proposal is refused far above what a log entry may hold.
	requestBytesMax = 4 << 20
	// streamsMax of one connection: watches, consoles and logs of a busy client.
	streamsMax = 1024
	// streamWindowBytes and connWindowBytes may be on their way to a handler that is
	// slow. They are fixed, since gRPC otherwise measures the path by a ping for
	// almost every message, which costs a single small call a third of its time; they
	// fill 1 Gbit/s over a path of 16 ms.
	streamWindowBytes = 2 << 20
	connWindowBytes   = 8 << 20
	// readBufferBytes of a connection: nearly all requests fit, what is larger is read
	// into its own place, and ten thousand connections of agents have one each.
	readBufferBytes = 8 << 10
	// writeBufferBytes of a connection that is written to: ten thousand may be at once.
	writeBufferBytes = 8 << 10
	// connectionTimeout bounds the handshake and the first byte of a connection.
	connectionTimeout = 10 * time.Second
	// httpHeaderTimeout and httpIdleTimeout bound idle HTTP clients.
	httpHeaderTimeout = 10 * time.Second
	httpIdleTimeout   = 2 * time.Minute
	httpHeaderBytes   = 64 << 10
)

// Leases grants the leases of nodes.
type Leases interface {
	// Grant gives the time granted to that start of the node's agent, after a quorum
	// round that began after the call.
	Grant(ctx context.Context, nodeID string, incarnation uint64, asked time.Duration, allocationID string) (time.Duration, error)
	// Loaded takes the load that a node told with a lease that it got; nil when it told none.
	Loaded(nodeID string, percent *uint32)
}

// Local is the node's own agent, for input and output of its VMs.
type Local interface {
	Session(ctx context.Context, allocID string, wait bool) (*guest.Session, error)
	Locate(allocID string) (agent.Place, error)
	// Output gives the path of the log of an allocation that is here or was.
	Output(allocID string) (path string, kept bool, err error)
	// Artifacts as in [agent.Agent.Artifacts].
	Artifacts(allocID string) (archive *os.File, notes []string, err error)
	Drained(allocID string)
	LeaseLeft() time.Duration
	// Load as in [agent.Agent.Load].
	Load() *uint32
}

// Guests is what the node keeps for its VMs.
type Guests struct {
	Images   Images
	Volumes  Volumes
	Networks Networks
	// Notices are sentences about what a person should know of all that; may be nil.
	Notices func(ctx context.Context) []string
}

// Consoles reaches the consoles that the supervisors hold.
type Consoles interface {
	Console(ctx context.Context, lane driver.Lane, processID string, write, steal bool) (*supervisor.Console, error)
	Info(ctx context.Context, lane driver.Lane) (*blixardv1.GetInfoResponse, error)
}

// Config of a server. All fields are needed but where it says otherwise.
type Config struct {
	NodeID   string
	Version  string
	DataDir  string
	Socket   string
	Replica  *replica.Replica
	Leases   Leases
	Consoles Consoles
	Policy   *auth.Policy
	// Trust of the cluster, for what comes over the network; nil takes calls on the
	// socket only.
	Trust *auth.Trust
	// Nodes reaches the other members; nil answers everything here.
	Nodes Nodes
	// Membership is needed where Trust is.
	Membership Membership
	// Peer takes the messages of other replicas; nil takes none.
	Peer blixardv1.PeerServiceServer
	// BundledImages are the names of the images of this node's guest bundle: they are
	// no names of a registry's.
	BundledImages []string
	// Strategy of VMs that name none, as this node would use it when it leads.
	Strategy blixardv1.Strategy_Enum
	// Preemption says whether this node would preempt when it leads.
	Preemption bool
	// DefaultNetwork is what VMs get that name no network: its name, or "none".
	DefaultNetwork string
	// Metrics are shown to those who may look; nil shows none.
	Metrics http.Handler
	Logger  *slog.Logger
}

// Server answers clients. Make it with New; Serve may be called once.
type Server struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	grpc    *grpc.Server
	// http is for the socket, https for the network.
	http, https *http.Server
	check       protovalidate.Validator
	metrics     *callMetrics
	// forwardables are the methods that other nodes pass on by their streams, and
	// relays this node's streams to others.
	forwardables map[string]forwardable
	relays       *relays
	dispatcher   *dispatcher
	recheck      *recheck
	// quit is closed when the server stops, so that streams end.
	quit     chan struct{}
	quitOnce sync.Once

	// fresh: the state holds all that was acknowledged before that time, in
	// nanoseconds since the start; 0 when that is not known.
	fresh atomic.Int64

	// known is what the nodes had at some time.
	known atomic.Pointer[known]

	mu     sync.Mutex
	local  Local
	guests Guests
	// streams are the cancel functions of the streams in flight.
	streams      map[uint64]context.CancelFunc
	streamNumber uint64
}

// New makes a server that is not yet listening.
func New(cfg Config) (*Server, error) {
	check, err := protovalidate.New()
	if err != nil {
		return nil, problem.New(problem.Internal, "server.rules", "the rules of the API can't be compiled").WithCause(err)
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, started: time.Now(), check: check, metrics: newCallMetrics(),
		forwardables: map[string]forwardable{}, relays: newRelays(), dispatcher: newDispatcher(), recheck: newRecheck(),
		quit: make(chan struct{}), streams: map[uint64]context.CancelFunc{},
	}
	peerCreds := auth.Credentials{}
	if cfg.Trust != nil {
		peerCreds.Network = credentials.NewTLS(cfg.Trust.ServerTLS())
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCreds),
		grpc.MaxRecvMsgSize(requestBytesMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.StaticConnWindowSize(connWindowBytes),
		grpc.ReadBufferSize(readBufferBytes),
		grpc.WriteBufferSize(writeBufferBytes),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	s.register(&blixardv1.VMService_ServiceDesc, vmService{Server: s})
	s.register(&blixardv1.NodeService_ServiceDesc, nodeService{Server: s})
	s.register(&blixardv1.AgentService_ServiceDesc, agentService{Server: s})
	s.register(&blixardv1.EventService_ServiceDesc, eventService{Server: s})
	s.register(&blixardv1.ImageService_ServiceDesc, imageService{Server: s})
	s.register(&blixardv1.VolumeService_ServiceDesc, volumeService{Server: s})
	s.register(&blixardv1.NetworkService_ServiceDesc, networkService{Server: s})
	s.register(&blixardv1.SecretService_ServiceDesc, secretService{Server: s})
	s.register(&blixardv1.TaskService_ServiceDesc, taskService{Server: s})
	s.register(&blixardv1.ScheduleService_ServiceDesc, scheduleService{Server: s})
	s.register(&blixardv1.QuotaService_ServiceDesc, quotaService{Server: s})
	s.register(&blixardv1.GroupService_ServiceDesc, groupService{Server: s})
	if cfg.Trust != nil {
		s.register(&blixardv1.ClusterService_ServiceDesc, clusterService{Server: s})
		s.register(&blixardv1.EnrollService_ServiceDesc, enrollService{Server: s})
		s.register(&blixardv1.ForwardService_ServiceDesc, forwardService{Server: s})
	}
	if cfg.Peer != nil {
		blixardv1.RegisterPeerServiceServer(s.grpc, cfg.Peer)
	}
	if s.http, s.https, err = s.newHTTP(); err != nil {
		return nil, err
	}
	return s, nil
}

// SetLocal tells of the node's agent, which needs the server to begin.
func (s *Server) SetLocal(l Local) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.local = l
}

// SetGuests tells of what the node keeps for its VMs.
func (s *Server) SetGuests(g Guests) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guests = g
}

func (s *Server) kept() (Guests, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guests.Images == nil {
		return Guests{}, problem.New(problem.Unavailable, "node.no_guests", "this node runs no VMs, or is not up yet").
			WithHint("ask another node, or try again in a moment")
	}
	return s.guests, nil
}

func (s *Server) agent() (Local, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.local == nil {
		return nil, problem.New(problem.Unavailable, "node.starting", "the node's agent is not up yet").WithHint("try again in a moment")
	}
	return s.local, nil
}

// Listeners of a server, which it owns. Those of the network may be nil.
type Listeners struct {
	// Socket takes gRPC and HTTP of local callers.
	Socket net.Listener
	// GRPC takes gRPC and the cluster's traffic, HTTPS takes JSON; both want TLS.
	GRPC, HTTPS net.Listener
}

// Serve answers until Stop.
func (s *Server) Serve(l Listeners) error {
	split := newSplit(auth.Listener(l.Socket))
	parts := []func() error{split.run, func() error { return s.grpc.Serve(split.grpc) }, func() error { return s.http.Serve(split.http) }}
	if l.GRPC != nil {
		parts = append(parts, func() error { return s.grpc.Serve(newCrowd(l.GRPC)) })
	}
	if l.HTTPS != nil {
		parts = append(parts, func() error { return s.https.ServeTLS(newCrowd(l.HTTPS), "", "") })
	}
	ctx, cancel := context.WithCancel(context.Background())
	var given sync.WaitGroup
	given.Go(func() { s.dispatcher.run(ctx, s.cfg.Replica) })
	given.Go(func() { s.recheck.run(ctx, s.cfg.Replica) })
	defer given.Wait()
	defer cancel()
	errs := make(chan error, len(parts))
	for _, part := range parts {
		go func() { errs <- part() }()
	}
	var all error
	for range parts {
		if err := <-errs; err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
			all = errors.Join(all, err)
		}
		split.close()
		for _, one := range []net.Listener{l.GRPC, l.HTTPS} {
			if one != nil {
				_ = one.Close()
			}
		}
	}
	split.wait()
	return all
}

// Stop ends the streams, waits for calls in flight at most until ctx ends, and
// then cuts them off.
func (s *Server) Stop(ctx context.Context) {
	s.quitOnce.Do(func() { close(s.quit) })
	s.mu.Lock()
	for _, cancel := range s.streams {
		cancel()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		_ = errors.Join(s.http.Shutdown(ctx), s.https.Shutdown(ctx))
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		_ = errors.Join(s.http.Close(), s.https.Close())
		<-done
	}
	s.relays.close() // last: what it carries is of calls that were just waited for
}

// streamContext ends with the stream or the server.
func (s *Server) streamContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streamNumber++
	n := s.streamNumber
	s.streams[n] = cancel
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.streams, n)
	}
}

package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
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
	// connectionTimeout bounds the handshake and the first byte of a connection.
	connectionTimeout = 10 * time.Second
	// httpHeaderTimeout and httpIdleTimeout bound idle HTTP clients.
	httpHeaderTimeout = 10 * time.Second
	httpIdleTimeout   = 2 * time.Minute
	httpHeaderBytes   = 64 << 10
)

// Leases grants the leases of nodes.
type Leases interface {
	// Grant gives the time granted to the node, after a quorum round that began
	// after the call.
	Grant(ctx context.Context, nodeID string, asked time.Duration) (time.Duration, error)
}

// Local is the node's own agent, for input and output of its VMs.
type Local interface {
	Session(ctx context.Context, allocID string, wait bool) (*guest.Session, error)
	Locate(allocID string) (agent.Place, error)
	Drained(allocID string)
	LeaseLeft() time.Duration
}

// Consoles reaches the consoles that the supervisors hold.
type Consoles interface {
	Console(ctx context.Context, lane driver.Lane, processID string, write, steal bool) (*supervisor.Console, error)
	Info(ctx context.Context, lane driver.Lane) (*blixardv1.GetInfoResponse, error)
}

// Config of a server. All fields are needed.
type Config struct {
	NodeID   string
	Version  string
	DataDir  string
	Socket   string
	Replica  *replica.Replica
	Leases   Leases
	Consoles Consoles
	Policy   *auth.Policy
	Logger   *slog.Logger
}

// Server answers clients. Make it with New; Serve may be called once.
type Server struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	grpc    *grpc.Server
	http    *http.Server
	check   protovalidate.Validator
	// quit is closed when the server stops, so that streams end.
	quit     chan struct{}
	quitOnce sync.Once

	mu    sync.Mutex
	local Local
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
	s := &Server{cfg: cfg, log: cfg.Logger, started: time.Now(), check: check, quit: make(chan struct{}), streams: map[uint64]context.CancelFunc{}}
	s.grpc = grpc.NewServer(
		grpc.Creds(auth.Credentials{}),
		grpc.MaxRecvMsgSize(requestBytesMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	blixardv1.RegisterVMServiceServer(s.grpc, vmService{Server: s})
	blixardv1.RegisterNodeServiceServer(s.grpc, nodeService{Server: s})
	blixardv1.RegisterAgentServiceServer(s.grpc, agentService{Server: s})
	blixardv1.RegisterEventServiceServer(s.grpc, eventService{Server: s})
	if s.http, err = s.newHTTP(); err != nil {
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

func (s *Server) agent() (Local, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.local == nil {
		return nil, problem.New(problem.Unavailable, "node.starting", "the node's agent is not up yet").WithHint("try again in a moment")
	}
	return s.local, nil
}

// Serve answers on l until Stop; it owns l.
func (s *Server) Serve(l net.Listener) error {
	split := newSplit(auth.Listener(l))
	errs := make(chan error, 3)
	go func() { errs <- split.run() }()
	go func() { errs <- s.grpc.Serve(split.grpc) }()
	go func() { errs <- s.http.Serve(split.http) }()
	var all error
	for range 3 {
		if err := <-errs; err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
			all = errors.Join(all, err)
		}
		split.close()
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
		_ = s.http.Shutdown(ctx)
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		_ = s.http.Close()
		<-done
	}
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

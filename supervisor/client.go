package supervisor

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
	"github.com/blixard/blixard/internal/unixsocket"
)

const (
	// callTimeout bounds a call whose context has no nearer deadline. A supervisor
	// answers within a millisecond; one that does not for so long is hung.
	callTimeout = 10 * time.Second
	// attemptsMax of a call whose supervisor went away meanwhile.
	attemptsMax = 3
	// Waits between attempts to connect.
	backoffBase = 20 * time.Millisecond
	backoffMax  = 500 * time.Millisecond
	// answerBytesMax of one message: a list of processesMax with their metadata.
	answerBytesMax = 256 << 20
)

// ClientConfig of a client.
type ClientConfig struct {
	// Executable and Dir as in LaunchConfig.
	Executable string
	Dir        string
	// Env of the supervisors; nil means empty.
	Env []string
}

// Client talks to the supervisors of a node and starts one when a process is to
// be spawned on a lane that has none. It is safe for concurrent use. Close it to
// free its connections; the supervisors stay.
type Client struct {
	lanes map[driver.Lane]*laneClient
	// ctx ends with Close.
	ctx    context.Context
	cancel context.CancelFunc
	// reapers wait for supervisors that this process launched.
	reapers sync.WaitGroup
}

// laneClient is the part of a client for one lane.
type laneClient struct {
	owner *Client
	cfg   LaunchConfig
	paths paths

	// launching is held while a supervisor is started.
	launching sync.Mutex

	mu   sync.Mutex
	conn *grpc.ClientConn
	// deadline is the newest that Renew was asked for.
	deadline boottime.Instant
}

var _ driver.Spawner = (*Client)(nil)

// NewClient makes a client. It connects when it is used.
func NewClient(cfg ClientConfig) *Client {
	c := &Client{lanes: make(map[driver.Lane]*laneClient)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		c.lanes[lane] = &laneClient{
			owner: c, paths: lanePaths(cfg.Dir, lane),
			cfg: LaunchConfig{Executable: cfg.Executable, Dir: cfg.Dir, Lane: lane, Env: cfg.Env},
		}
	}
	return c
}

// Close frees the connections. Calls in progress fail.
func (c *Client) Close() error {
	c.cancel()
	var errs []error
	for _, l := range c.lanes {
		errs = append(errs, l.drop(l.current()))
	}
	c.reapers.Wait()
	return errors.Join(errs...)
}

func (c *Client) lane(lane driver.Lane) (*laneClient, error) {
	if err := checkLane(lane); err != nil {
		return nil, err
	}
	return c.lanes[lane], nil
}

// Start makes sure that a lane has a supervisor and gives what it tells of
// itself.
func (c *Client) Start(ctx context.Context, lane driver.Lane) (*blixardv1.GetInfoResponse, error) {
	return call(ctx, c, lane, true, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.GetInfoResponse, error) {
		return s.GetInfo(ctx, &blixardv1.GetInfoRequest{})
	})
}

// Info asks a lane's supervisor about itself. It fails with a problem of kind
// NotFound when the lane has none.
func (c *Client) Info(ctx context.Context, lane driver.Lane) (*blixardv1.GetInfoResponse, error) {
	return call(ctx, c, lane, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.GetInfoResponse, error) {
		return s.GetInfo(ctx, &blixardv1.GetInfoRequest{})
	})
}

// Spawn implements driver.Spawner. It starts the lane's supervisor when it has
// none. On the exclusive lane it hands over the newest deadline first.
func (c *Client) Spawn(ctx context.Context, lane driver.Lane, req *blixardv1.SpawnRequest) (*blixardv1.SpawnResponse, error) {
	return call(ctx, c, lane, true, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.SpawnResponse, error) {
		if at := c.lanes[lane].newest(); at > boottime.Now() {
			if _, err := s.Renew(ctx, &blixardv1.RenewRequest{BoottimeDeadline: int64(at)}); err != nil {
				return nil, err
			}
		}
		return s.Spawn(ctx, req)
	})
}

// List implements driver.Spawner. A lane without a supervisor has no process.
func (c *Client) List(ctx context.Context, lane driver.Lane) ([]*blixardv1.SupervisedProcess, error) {
	r, err := call(ctx, c, lane, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.ListProcessesResponse, error) {
		return s.ListProcesses(ctx, &blixardv1.ListProcessesRequest{})
	})
	if problem.HasCode(err, "supervisor.absent") {
		return nil, nil
	}
	return r.GetProcesses(), err
}

// Wait implements driver.Spawner. It has no deadline but that of the context.
func (c *Client) Wait(ctx context.Context, lane driver.Lane, processID string) (*blixardv1.SupervisedProcess, error) {
	l, err := c.lane(lane)
	if err != nil {
		return nil, err
	}
	r, err := attempt(ctx, l, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.WaitResponse, error) {
		return s.Wait(ctx, &blixardv1.WaitRequest{ProcessId: processID})
	})
	return r.GetProcess(), err
}

// Signal implements driver.Spawner.
func (c *Client) Signal(ctx context.Context, lane driver.Lane, processID string, signal int) error {
	_, err := call(ctx, c, lane, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.SignalProcessResponse, error) {
		return s.SignalProcess(ctx, &blixardv1.SignalProcessRequest{ProcessId: processID, Signal: uint32(signal)})
	})
	return err
}

// Forget implements driver.Spawner. A lane without a supervisor has forgotten
// everything.
func (c *Client) Forget(ctx context.Context, lane driver.Lane, processID string) error {
	_, err := call(ctx, c, lane, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.ForgetResponse, error) {
		return s.Forget(ctx, &blixardv1.ForgetRequest{ProcessId: processID})
	})
	if problem.HasCode(err, "supervisor.absent") {
		return nil
	}
	return err
}

// Renew pushes the deadline of the exclusive lane forward and gives the one that
// holds. Without a supervisor the deadline is kept for the next one.
func (c *Client) Renew(ctx context.Context, deadline boottime.Instant) (boottime.Instant, error) {
	c.lanes[driver.LaneExclusive].renew(deadline)
	r, err := call(ctx, c, driver.LaneExclusive, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.RenewResponse, error) {
		return s.Renew(ctx, &blixardv1.RenewRequest{BoottimeDeadline: int64(deadline)})
	})
	if problem.HasCode(err, "supervisor.absent") {
		return c.lanes[driver.LaneExclusive].newest(), nil
	}
	return boottime.Instant(r.GetBoottimeDeadline()), err
}

// Shutdown ends a lane's supervisor if no process of it runs; otherwise it fails
// with a problem of kind Conflict. Without a supervisor it does nothing.
func (c *Client) Shutdown(ctx context.Context, lane driver.Lane) error {
	_, err := call(ctx, c, lane, false, func(ctx context.Context, s blixardv1.SupervisorServiceClient) (*blixardv1.ShutdownResponse, error) {
		return s.Shutdown(ctx, &blixardv1.ShutdownRequest{})
	})
	if problem.HasCode(err, "supervisor.absent") {
		return nil
	}
	return err
}

// call makes a call under a deadline. start is whether a supervisor is started
// when the lane has none; otherwise that is a problem of code supervisor.absent.
func call[R any](ctx context.Context, c *Client, lane driver.Lane, start bool,
	do func(context.Context, blixardv1.SupervisorServiceClient) (*R, error),
) (*R, error) {
	l, err := c.lane(lane)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return attempt(ctx, l, start, do)
}

// attempt tries again when the supervisor went away: every call of the service
// can be repeated.
func attempt[R any](ctx context.Context, l *laneClient, start bool,
	do func(context.Context, blixardv1.SupervisorServiceClient) (*R, error),
) (*R, error) {
	for n := 1; ; n++ {
		conn, err := l.connect(ctx, start)
		if err != nil {
			return nil, err
		}
		r, err := do(ctx, blixardv1.NewSupervisorServiceClient(conn))
		if err == nil {
			return r, nil
		}
		if !wentAway(err) || ctx.Err() != nil || n == attemptsMax {
			return nil, problem.From(err)
		}
		if derr := l.drop(conn); derr != nil {
			return nil, errors.Join(problem.From(err), derr)
		}
	}
}

// wentAway reports whether the connection failed, and not the call. Canceled is
// what a call gets whose connection was dropped by another one.
func wentAway(err error) bool {
	if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
		return false
	}
	for _, d := range status.Convert(err).Details() {
		if _, ok := d.(*blixardv1.Problem); ok {
			return false
		}
	}
	return true
}

func (l *laneClient) current() *grpc.ClientConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn
}

// drop closes a connection, unless another call did already.
func (l *laneClient) drop(conn *grpc.ClientConn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn == nil || l.conn != conn {
		return nil
	}
	l.conn = nil
	return conn.Close()
}

func (l *laneClient) renew(at boottime.Instant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = max(l.deadline, at)
}

func (l *laneClient) newest() boottime.Instant {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline
}

// connect gives the connection to the lane's supervisor.
func (l *laneClient) connect(ctx context.Context, start bool) (*grpc.ClientConn, error) {
	if err := l.owner.ctx.Err(); err != nil {
		return nil, problem.New(problem.Unavailable, "supervisor.client_closed", "the supervisor's client is closed")
	}
	if conn := l.current(); conn != nil {
		return conn, nil
	}
	l.launching.Lock()
	defer l.launching.Unlock()
	if conn := l.current(); conn != nil {
		return conn, nil
	}
	c, err := l.dial(ctx)
	if err != nil && unixsocket.Absent(err) {
		if !start {
			return nil, absent(l.cfg.Lane)
		}
		if err := l.launch(ctx); err != nil {
			return nil, err
		}
		c, err = l.dial(ctx)
	}
	if err != nil {
		return nil, problem.New(problem.Unavailable, "supervisor.unreachable", "supervisor of the %s lane", l.cfg.Lane).WithCause(err)
	}
	if err := c.Close(); err != nil {
		return nil, err
	}
	return l.open()
}

func (l *laneClient) open() (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+string(l.cfg.Lane),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: backoffBase, Multiplier: 2, MaxDelay: backoffMax},
			MinConnectTimeout: callTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(answerBytesMax)),
		grpc.WithReadBufferSize(ioBytes), grpc.WithWriteBufferSize(ioBytes),
		grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	return conn, nil
}

// dial connects and makes sure that the peer is this process's user or root.
func (l *laneClient) dial(ctx context.Context) (net.Conn, error) {
	c, err := unixsocket.Dial(ctx, l.paths.socket)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// launch starts the supervisor; l.launching is held.
func (l *laneClient) launch(ctx context.Context) error {
	r, h, err := launch(ctx, l.cfg)
	if err != nil || h == nil {
		return err
	}
	l.owner.reapers.Go(func() { reap(l.owner.ctx, r.PID, h) })
	return nil
}

// reap waits for a supervisor that this process launched, so that no zombie
// stays; it ends early with the client.
func reap(ctx context.Context, pid int, h *process.Handle) {
	defer h.Close()
	if h.Wait(ctx) != nil {
		return
	}
	for {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

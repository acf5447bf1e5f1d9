package client

import (
	"context"
	"crypto/rand"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/localpath"
	"github.com/blixard/blixard/internal/problem"
)

// The limits of calls.
const (
	// DefaultTimeout bounds a call whose context has no deadline, its retries
	// included.
	DefaultTimeout = 30 * time.Second
	// dialTimeout bounds the first connection to a local socket; a daemon that
	// is stopped accepts none.
	dialTimeout = 5 * time.Second
	// receiveBytesMax holds a page of 10,000 VMs of up to 6 KiB each.
	receiveBytesMax = 64 << 20
	// streamWindowBytes and connWindowBytes may be on their way to a caller that is
	// slow. They are fixed, since gRPC otherwise measures the path by a ping for
	// almost every answer.
	streamWindowBytes = 2 << 20
	connWindowBytes   = 8 << 20
	// retryTriesMax and the backoff below make retries last about 5 s, enough
	// for a daemon to restart.
	retryTriesMax   = 12
	retryWaitFirst  = 50 * time.Millisecond
	retryWaitMax    = time.Second
	reconnectDelays = time.Second
)

// Config says which node to speak to, and how.
type Config struct {
	// Addr is unix:PATH or https://HOST:PORT. Empty means BLIXARD_ADDR, and
	// without it the node on this host.
	Addr string
	// Credentials is the file for addresses of the network. Empty means
	// BLIXARD_CREDENTIALS, and without it the user's own.
	Credentials string
	// Timeout of each call whose context has no deadline; 0 means
	// DefaultTimeout. Streams have none.
	Timeout time.Duration
}

// Client is a connection to one node. It is safe for concurrent use; the caller
// must Close it.
type Client struct {
	conn *grpc.ClientConn
	to   target
	// timeout of unary calls.
	timeout time.Duration
	// given is the first connection until gRPC took it.
	given atomic.Pointer[net.Conn]
	// dialed is how the newest connection attempt ended.
	dialed atomic.Pointer[dialResult]
}

// dialResult keeps why a connection failed, since gRPC passes on the text only.
type dialResult struct{ problem *problem.Error }

// Dial connects to a node. It fails at once when none listens: a problem of kind
// Unavailable and code node.not_running.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	to, err := resolve(cfg.Addr, cfg.Credentials, localpath.Current())
	if err != nil {
		return nil, err
	}
	c := &Client{to: to, timeout: cfg.Timeout}
	if c.timeout <= 0 {
		c.timeout = DefaultTimeout
	}
	first, err := c.first(ctx)
	if err != nil {
		return nil, err
	}
	// The connection that proved that somebody listens is the one gRPC uses.
	c.given.Store(&first)
	c.conn, err = grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if first := c.given.Swap(nil); first != nil {
				return *first, nil
			}
			return c.dial(ctx)
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(receiveBytesMax)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: retryWaitFirst, Multiplier: 1.5, Jitter: 0.2, MaxDelay: reconnectDelays},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithUnaryInterceptor(c.unary),
		grpc.WithStreamInterceptor(c.stream),
	)
	if err != nil {
		_ = first.Close()
		return nil, problem.New(problem.Internal, "client.setup", "the connection can't be set up").WithCause(err)
	}
	c.conn.Connect()
	return c, nil
}

func (c *Client) first(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return c.dial(ctx)
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var conn net.Conn
	var err error
	if c.to.trust != nil {
		conn, err = dialTLS(ctx, c.to)
	} else {
		conn, err = dialSocket(ctx, c.to.path)
	}
	c.dialed.Store(&dialResult{problem.From(err)})
	return conn, err
}

// Close ends the connection and all calls on it.
func (c *Client) Close() error {
	err := c.conn.Close()
	if first := c.given.Swap(nil); first != nil {
		_ = (*first).Close()
	}
	return err
}

// Addr is the address of the node in the form that Dial takes.
func (c *Client) Addr() string { return c.to.String() }

// VMs declares, changes and reaches VMs.
func (c *Client) VMs() blixardv1.VMServiceClient { return blixardv1.NewVMServiceClient(c.conn) }

// Nodes tells of nodes.
func (c *Client) Nodes() blixardv1.NodeServiceClient { return blixardv1.NewNodeServiceClient(c.conn) }

// Agents is what the agent of a node asks of the cluster.
func (c *Client) Agents() blixardv1.AgentServiceClient {
	return blixardv1.NewAgentServiceClient(c.conn)
}

// Images brings images into the cluster.
func (c *Client) Images() blixardv1.ImageServiceClient {
	return blixardv1.NewImageServiceClient(c.conn)
}

// Volumes keeps disks that outlive VMs.
func (c *Client) Volumes() blixardv1.VolumeServiceClient {
	return blixardv1.NewVolumeServiceClient(c.conn)
}

// Networks keeps networks.
func (c *Client) Networks() blixardv1.NetworkServiceClient {
	return blixardv1.NewNetworkServiceClient(c.conn)
}

// Secrets keeps what must not be read.
func (c *Client) Secrets() blixardv1.SecretServiceClient {
	return blixardv1.NewSecretServiceClient(c.conn)
}

// Schedules gives ScheduleService.
func (c *Client) Schedules() blixardv1.ScheduleServiceClient {
	return blixardv1.NewScheduleServiceClient(c.conn)
}

// Groups gives GroupService.
func (c *Client) Groups() blixardv1.GroupServiceClient {
	return blixardv1.NewGroupServiceClient(c.conn)
}

// Tasks gives TaskService.
func (c *Client) Tasks() blixardv1.TaskServiceClient { return blixardv1.NewTaskServiceClient(c.conn) }

// Quotas bound what projects may have.
func (c *Client) Quotas() blixardv1.QuotaServiceClient {
	return blixardv1.NewQuotaServiceClient(c.conn)
}

// Cluster forms the cluster and changes its members.
func (c *Client) Cluster() blixardv1.ClusterServiceClient {
	return blixardv1.NewClusterServiceClient(c.conn)
}

// Enroll issues certificates.
func (c *Client) Enroll() blixardv1.EnrollServiceClient {
	return blixardv1.NewEnrollServiceClient(c.conn)
}

// Events tells what happened.
func (c *Client) Events() blixardv1.EventServiceClient {
	return blixardv1.NewEventServiceClient(c.conn)
}

// NewKey makes an idempotency key. Calls without one get their own; a caller
// that repeats a change by itself gives all its calls the same.
func NewKey() string { return rand.Text() }

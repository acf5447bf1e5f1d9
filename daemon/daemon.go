package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/blixard/blixard/agent"
	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/daemon/config"
	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/driver/qemu"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/guest/kernel"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/unixsocket"
	"github.com/blixard/blixard/leader"
	"github.com/blixard/blixard/peer"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/server"
	"github.com/blixard/blixard/supervisor"
)

// Options of a daemon. All fields but Ready are needed.
type Options struct {
	Config  config.Config
	Version string
	// Executable is this program, which the supervisors run too.
	Executable string
	Logger     *slog.Logger
	// Ready, when set, is called once the node answers.
	Ready func()
}

// node is the parts of a running daemon.
type node struct {
	opts Options
	cfg  config.Config
	log  *slog.Logger
	data *dataDir
	// listener of the socket and network; the server owns them once there is one.
	listener net.Listener
	network  *network
	// member is what was known of the cluster when the node began.
	member  member
	secret  []byte
	keys    atomic.Pointer[auth.Keypair]
	trusted atomic.Pointer[trusted]
	trust   *auth.Trust
	nodes   *nodes
	peers   *peer.Transport
	replica *replica.Replica
	// removed is set when another member says that this node is none.
	removed atomic.Bool
	// failed holds the first reason for which the node can't go on, told to fail.
	failed chan error
	// changing is set while the node joins or leaves; again then ends this life.
	changing atomic.Bool
	again    func()
	super    *supervisor.Client
	server   *server.Server
	client   *client.Client
	agent    *agent.Agent
	guests   *guests
}

// Run runs a node until ctx ends or the node can't go on. VMs go on running
// either way, and the next Run takes them up again. Errors that a person can mend
// carry a problem.
func Run(ctx context.Context, opts Options) error {
	for {
		err := runOnce(ctx, opts)
		if !errors.Is(err, errAgain) || ctx.Err() != nil {
			return err
		}
		opts.Ready = nil
	}
}

// runOnce is Run until the node becomes another cluster's, which is errAgain.
func runOnce(ctx context.Context, opts Options) (err error) {
	n := &node{opts: opts, cfg: opts.Config, log: opts.Logger, failed: make(chan error, 1)}
	defer func() { err = errors.Join(err, n.close()) }()
	// What may be refused comes before anything is made. Who connects early waits.
	if n.listener, err = n.listen(); err != nil {
		return err
	}
	b, err := openBundle(ctx, n.cfg, opts.Executable)
	if err != nil {
		return err
	}
	if n.network, err = listenNetwork(n.cfg.Node.Bind, n.cfg.Node.HTTPSBind, n.cfg.Node.Advertise, rememberedAddress(n.cfg.DataDir)); err != nil {
		return err
	}
	if n.data, err = openDataDir(n.cfg.DataDir); err != nil {
		return err
	}
	drv, info, err := n.probe(ctx)
	if err != nil {
		return err
	}
	n.log.Info("hypervisor found", "driver", info.Name, "version", info.Version, "accelerator", info.Accelerator, "why", info.AcceleratorReason)
	if err := n.openMember(); err != nil {
		return err
	}
	if err := n.openReplica(ctx); err != nil {
		return err
	}
	return n.serve(ctx, drv, info, b)
}

// probe asks QEMU who it is and finds the accelerator.
func (n *node) probe(ctx context.Context) (driver.Driver, driver.Info, error) {
	n.super = supervisor.NewClient(supervisor.ClientConfig{Executable: n.opts.Executable, Dir: n.data.join(supervisorDir), Env: supervisorEnv()})
	drv := qemu.New(qemu.Config{Program: n.cfg.QEMU.Path, Spawner: n.super, Log: n.log})
	info, err := drv.Probe(ctx)
	return drv, info, err
}

// supervisorEnv is all that supervisors inherit: where a program built with
// -cover puts what of it ran, if that is set.
func supervisorEnv() []string {
	if dir := os.Getenv("GOCOVERDIR"); dir != "" {
		return []string{"GOCOVERDIR=" + dir}
	}
	return nil
}

// strategy of VMs that name none, when this node leads.
func (n *node) strategy() blixardv1.Strategy_Enum {
	return blixardv1.Strategy_Enum(blixardv1.Strategy_Enum_value[n.cfg.Scheduler.Strategy])
}

// preemption says whether this node preempts when it leads.
func (n *node) preemption() bool { return n.cfg.Scheduler.Preemption == "on" }

func (n *node) listen() (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(n.cfg.Socket), 0o755); err != nil {
		return nil, problem.New(problem.Invalid, "socket.unusable", "the directory of the socket %s can't be made", n.cfg.Socket).WithCause(err).
			WithHint("choose another with --socket")
	}
	// Everyone may connect; who may ask anything is decided by the peer's
	// credentials, so that others get an answer that says why.
	return unixsocket.Listen(n.cfg.Socket, 0o666)
}

// serve starts what needs the socket, and waits for the end.
func (n *node) serve(ctx context.Context, drv driver.Driver, info driver.Info, b *bundle.Bundle) error {
	leases := leader.NewLeases(n.replica, n.cfg.Lease.TTL, n.cfg.Lease.Margin)
	registry := prometheus.NewRegistry()
	var err error
	n.server, err = server.New(server.Config{
		NodeID: n.data.id.NodeID, Version: n.opts.Version, DataDir: n.cfg.DataDir, Socket: n.cfg.Socket,
		Replica: n.replica, Leases: leases,
		Consoles: n.super, Policy: auth.NewPolicy(n.cfg.AdminGroup), Logger: n.log,
		Trust: n.trust, Nodes: n.nodes, Membership: membership{n}, Peer: n.peers.Service(),
		Metrics: n.metricsHandler(registry), DefaultNetwork: n.cfg.Network.Default, BundledImages: b.ImageNames(),
		Strategy: n.strategy(), Preemption: n.preemption(),
	})
	if err != nil {
		return err
	}
	registry.MustRegister(n.server.Collectors()...)
	life, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	n.again = func() { cancel(errAgain) }
	links, err := announce(n.network, n.cfg.Socket)
	if err != nil {
		n.log.Warn("people on this host can't name the node by its address", "err", err)
	}
	defer withdraw(links, n.cfg.Socket)
	var wg sync.WaitGroup
	defer wg.Wait()
	part := func(name string, run func() error) {
		wg.Go(func() {
			if err := run(); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("server", func() error {
		return n.server.Serve(server.Listeners{Socket: n.listener, GRPC: n.network.grpc, HTTPS: n.network.https})
	})
	part("fresh", func() error { return n.server.KeepFresh(life) })
	part("members", func() error { return n.followMembers(life) })
	part("join", func() error { n.autoJoin(life); return nil })
	part("certificate", func() error { return n.keepCertificate(life) })
	part("leader", func() error {
		return leader.Run(life, leader.Config{
			Name: n.cfg.Node.Name, Replica: n.replica, Leases: leases, Logger: n.log,
			StormPercent: int(n.cfg.Lease.StormPercent), Voters: int(n.cfg.Cluster.Voters), ReplaceAfter: n.cfg.Cluster.ReplaceAfter,
			Strategy: n.strategy(), Preemption: n.preemption(), Load: n.cfg.Scheduler.Load == "on",
		})
	})
	n.client, err = client.Dial(ctx, client.Config{Addr: "unix:" + n.cfg.Socket})
	witness := n.member.Role == blixardv1.MemberRole_witness.String()
	if err == nil && !witness {
		err = n.startAgent(ctx, drv, info, b)
	}
	if err == nil {
		if !witness {
			part("agent", func() error { return n.agent.Run(life) })
			part("guests", func() error { n.guests.run(life, n.replica); return nil })
			n.awaitRegistered(ctx)
		}
		if n.opts.Ready != nil {
			n.opts.Ready()
		}
		n.log.Info("the node is up", "node", n.cfg.Node.Name, "id", n.data.id.NodeID, "socket", n.cfg.Socket, "address", addressText(n.network))
		err = n.wait(ctx, life)
	}
	n.shutDown(ctx.Err() != nil)
	cancel(nil)
	return err
}

// wait returns nil when ctx ended, and else why the node can't go on.
func (n *node) wait(ctx, life context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-n.replica.Done():
		return n.replica.Err()
	case err := <-n.failed:
		return err
	case <-life.Done():
		return context.Cause(life)
	}
}

// fail ends the node for that reason.
func (n *node) fail(err error) {
	select {
	case n.failed <- err:
		n.log.Error("the node can't go on", "err", err)
	default: // another was first
	}
}

// registerWait bounds the wait for the node to be known: it takes some
// milliseconds, and longer only in trouble that the node can be asked about.
const registerWait = 10 * time.Second

// awaitRegistered waits until the node is in the state, so that whoever was told
// that the node is up finds it there.
func (n *node) awaitRegistered(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, registerWait)
	defer cancel()
	for {
		view := n.replica.View()
		if known := view.Node(n.data.id.NodeID); known.GetIncarnation() >= n.data.id.Incarnation {
			return
		}
		if n.replica.WaitApplied(ctx, view.Index()+1) != nil {
			return
		}
	}
}

// shutDown ends the API. Before a planned end the node asks for one long lease,
// so that exclusive VMs outlive the daemon's restart.
func (n *node) shutDown(planned bool) {
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.ShutdownTimeout)
	defer cancel()
	if planned && n.agent != nil && n.hasExclusive() {
		if err := n.agent.ExtendLease(ctx, n.cfg.Lease.Restart); err != nil {
			n.log.Warn("no long lease before the restart; exclusive VMs end with the present one", "left", n.agent.LeaseLeft(), "err", err)
		}
	}
	n.log.Info("the node is stopping; its VMs go on running")
	n.server.Stop(ctx)
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		// One without VMs is not needed any more; one with VMs refuses.
		if err := n.super.Shutdown(ctx, lane); err != nil && !problem.Is(err, problem.Conflict) && !problem.Is(err, problem.NotFound) {
			n.log.Warn("the supervisor does not answer", "lane", lane, "err", err)
		}
	}
}

// hasExclusive tells whether a VM of this node ends with its lease.
func (n *node) hasExclusive() bool {
	for _, a := range n.replica.View().AllocationsOfNode(n.data.id.NodeID) {
		if a.GetSpec().GetOnNodeLoss() == blixardv1.NodeLossPolicy_failover {
			return true
		}
	}
	return false
}

func (n *node) startAgent(ctx context.Context, drv driver.Driver, info driver.Info, b *bundle.Bundle) error {
	fp, err := fingerprint(n.cfg, info, n.opts.Version, b.KernelNames(), b.ImageNames())
	if err != nil {
		return err
	}
	if n.guests, err = n.openGuests(ctx, b); err != nil {
		return err
	}
	fp.NetworkTypes, fp.NetworkReason, fp.Underlay = n.guests.networkTypes(), n.guests.networkReason, n.cfg.Network.Underlay
	n.agent, err = agent.New(ctx, agent.Config{
		NodeID: n.data.id.NodeID, NodeName: n.cfg.Node.Name, Incarnation: n.data.id.Incarnation,
		Dir: n.data.join(vmsDir), OutputDir: n.data.join(outputsDir), Driver: drv, Spawner: n.super, Leases: deadlines{n.super}, Bundle: b,
		Disks: disk.NewRoots(n.data.join(templatesDir)), Images: n.guests.images, Networks: n.guests.networks, Volumes: n.guests.volumes,
		Confine: true, Cluster: n.client.Agents(), Fingerprint: fp, Logger: n.log,
		Limits:      agent.Limits{ReadyTimeout: n.cfg.Boot.ReadyTimeout, BootTries: n.cfg.Boot.Tries, Boots: parallelBoots(n.cfg.Boot.Parallel)},
		TSCKHz:      kernel.HostTSCKHz(),
		LogBytesMax: uint64(n.cfg.Console.LogSize), LogFilesMax: n.cfg.Console.LogFiles, Load: agent.HostLoad,
	})
	if err != nil {
		return err
	}
	n.guests.volumes.setVMs(n.agent)
	n.server.SetLocal(n.agent)
	n.server.SetGuests(n.guests.served())
	// The first VM shall not wait for its supervisor.
	if _, err := n.super.Start(ctx, driver.LaneShared); err != nil {
		return err
	}
	return nil
}

// deadlines of leases go to the exclusive lane's supervisor.
type deadlines struct{ c *supervisor.Client }

// Renew pushes the kernel's deadline forward.
func (l deadlines) Renew(ctx context.Context, deadline boottime.Instant) error {
	_, err := l.c.Renew(ctx, deadline)
	return err
}

// close frees what is held, in the opposite order of its making.
func (n *node) close() error {
	var errs []error
	if n.guests != nil {
		errs = append(errs, n.guests.close())
	}
	if n.client != nil {
		errs = append(errs, n.client.Close())
	}
	if n.super != nil {
		errs = append(errs, n.super.Close())
	}
	if n.peers != nil {
		errs = append(errs, n.peers.Close())
	}
	if n.nodes != nil {
		errs = append(errs, n.nodes.close())
	}
	if n.replica != nil {
		errs = append(errs, n.replica.Close())
	}
	if n.network != nil && n.server == nil {
		errs = append(errs, n.network.close())
	}
	if n.listener != nil {
		if n.server == nil {
			errs = append(errs, n.listener.Close())
		}
		errs = append(errs, ignoreAbsent(os.Remove(n.cfg.Socket)))
	}
	if n.data != nil {
		errs = append(errs, n.data.close())
	}
	return errors.Join(errs...)
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// bundleTimeout bounds the opening and checking of a bundle.
const bundleTimeout = 30 * time.Second

// openBundle finds the guest bundle: the configured one, else one beside the
// program, else the one in the cache.
func openBundle(ctx context.Context, cfg config.Config, executable string) (*bundle.Bundle, error) {
	_, cancel := context.WithTimeout(ctx, bundleTimeout)
	defer cancel()
	dirs := config.BundleDirs(cfg, executable)
	for _, dir := range dirs {
		b, err := bundle.Open(dir)
		if err == nil {
			return b, nil
		}
		if !problem.Is(err, problem.NotFound) {
			return nil, err
		}
	}
	return nil, problem.New(problem.NotFound, "bundle.missing", "no guest bundle in %v", dirs).
		WithHint("make one with `blixard bundle build`, or name one with --bundle-dir")
}

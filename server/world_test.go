package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/unixsocket"
	"github.com/blixard/blixard/leader"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/server"
	"github.com/blixard/blixard/supervisor"
)

// noConsoles is a node whose supervisors do not run.
type noConsoles struct{}

func (noConsoles) Console(context.Context, driver.Lane, string, bool, bool) (*supervisor.Console, error) {
	return nil, problem.New(problem.NotFound, "process.unknown", "no such process")
}

func (noConsoles) Info(context.Context, driver.Lane) (*blixardv1.GetInfoResponse, error) {
	return nil, errors.New("no supervisor")
}

// world is a server on a real replica behind a real socket.
type world struct {
	t       testing.TB
	client  *client.Client
	server  *server.Server
	replica *replica.Replica
	socket  string
	config  replica.Config
	// end stops all of it; the test's cleanup does, too.
	end func()

	// mu guards loads: the first that were heard, there may be very many.
	mu    sync.Mutex
	loads []string
}

const loadsKept = 100

// heardLoads keeps what the leases are told of loads.
type heardLoads struct {
	*leader.Leases
	w *world
}

func (h heardLoads) Loaded(nodeID string, percent *uint32) {
	load := "unknown"
	if percent != nil {
		load = fmt.Sprint(*percent)
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if len(h.w.loads) < loadsKept {
		h.w.loads = append(h.w.loads, nodeID+" "+load)
	}
	h.Leases.Loaded(nodeID, percent)
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOf(t, 10*time.Second, &auth.Trust{}, nil)
}

// newWorldOf has leases of that length; others reach it by network, too, when that is set.
func newWorldOf(t testing.TB, ttl time.Duration, trust *auth.Trust, network net.Listener) *world {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	config := replica.Config{Dir: filepath.Join(dir, "raft"), NodeID: "node-a", Logger: log}
	r, err := replica.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, replica: r, socket: filepath.Join(dir, "s"), config: config}
	leases := leader.NewLeases(r, ttl, time.Second)
	w.server, err = server.New(server.Config{
		NodeID: "node-a", Version: "test", DataDir: dir, Socket: w.socket, Replica: r,
		Leases:   heardLoads{leases, w},
		Consoles: noConsoles{}, Policy: auth.NewPolicy("blixard"), Logger: log, Trust: trust,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := unixsocket.Listen(w.socket, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served, led := make(chan error, 1), make(chan error, 1)
	go func() { served <- w.server.Serve(server.Listeners{Socket: l, GRPC: network}) }()
	go func() {
		led <- leader.Run(ctx, leader.Config{Name: "a", Replica: r, Leases: leases, StormPercent: 50, Voters: 3, ReplaceAfter: time.Minute, Logger: log})
	}()
	if w.client, err = client.Dial(t.Context(), client.Config{Addr: "unix:" + w.socket}); err != nil {
		t.Fatal(err)
	}
	w.end = sync.OnceFunc(func() {
		_ = w.client.Close()
		stop, done := context.WithTimeout(context.Background(), 5*time.Second)
		defer done()
		w.server.Stop(stop)
		cancel()
		if err := errors.Join(<-served, <-led, r.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.end)
	return w
}

func (w *world) register() {
	w.t.Helper()
	_, err := w.client.Agents().Register(w.t.Context(), &blixardv1.RegisterRequest{
		NodeId: "node-a", Name: "a", Incarnation: 1,
		Fingerprint: &blixardv1.NodeFingerprint{
			Capacity: &blixardv1.Resources{Vcpus: 2, MemoryMib: 4096, DiskBytes: 1 << 40},
			Images:   []string{"busybox"}, Kernels: []string{"own", "debian"},
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) create(name string) *blixardv1.VM {
	w.t.Helper()
	resp, err := w.client.VMs().CreateVM(w.t.Context(), &blixardv1.CreateVMRequest{Name: name, Spec: &blixardv1.VMSpec{Image: "busybox"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.GetVm()
}

package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode answers as its fields say; a call whose field is nil is unknown to it.
type fakeNode struct {
	blixardv1.UnimplementedVMServiceServer
	blixardv1.UnimplementedEventServiceServer
	create func(context.Context, *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error)
	list   func(*blixardv1.ListVMsRequest) (*blixardv1.ListVMsResponse, error)
	watch  func(*blixardv1.WatchVMsRequest, blixardv1.VMService_WatchVMsServer) error
	events func(*blixardv1.WatchEventsRequest, blixardv1.EventService_WatchEventsServer) error
}

func (n *fakeNode) CreateVM(ctx context.Context, r *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
	return n.create(ctx, r)
}

func (n *fakeNode) ListVMs(_ context.Context, r *blixardv1.ListVMsRequest) (*blixardv1.ListVMsResponse, error) {
	return n.list(r)
}

func (n *fakeNode) WatchVMs(r *blixardv1.WatchVMsRequest, s blixardv1.VMService_WatchVMsServer) error {
	return n.watch(r, s)
}

func (n *fakeNode) WatchEvents(r *blixardv1.WatchEventsRequest, s blixardv1.EventService_WatchEventsServer) error {
	return n.events(r, s)
}

// serve makes a node listen at socket and gives the function that ends it, which
// may be called more than once.
func (n *fakeNode) serve(t *testing.T, socket string) func() {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	blixardv1.RegisterVMServiceServer(g, n)
	blixardv1.RegisterEventServiceServer(g, n)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	stop := sync.OnceFunc(func() {
		g.Stop()
		// Stop may come before Serve has begun.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, socket string, timeout time.Duration) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Config{Addr: "unix:" + socket, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (n *fakeNode) dial(t *testing.T) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	n.serve(t, socket)
	return dial(t, socket, 0)
}

// TestRetriesKeepTheKey: a change that a passing fault refused is asked for again
// with the same key, so that it is made once; the caller's request stays as it is.
func TestRetriesKeepTheKey(t *testing.T) {
	passing := []*problem.Error{
		problem.New(problem.Unavailable, "node.starting", "not yet"),
		problem.New(problem.NotLeader, "raft.not_leader", "ask another"),
		problem.New(problem.Unavailable, "node.stopping", "no more"),
	}
	for _, own := range []string{"", "mine"} {
		var keys []string
		n := &fakeNode{create: func(_ context.Context, r *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
			keys = append(keys, r.GetIdempotencyKey())
			if len(keys) <= len(passing) {
				return nil, passing[len(keys)-1]
			}
			return &blixardv1.CreateVMResponse{Vm: &blixardv1.VM{Name: r.GetName()}}, nil
		}}
		req := &blixardv1.CreateVMRequest{Name: "a", IdempotencyKey: own}
		resp, err := n.dial(t).VMs().CreateVM(t.Context(), req)
		if err != nil || resp.GetVm().GetName() != "a" {
			t.Fatalf("%v, %v", resp, err)
		}
		if len(keys) != len(passing)+1 || keys[0] == "" || len(slices.Compact(slices.Clone(keys))) != 1 {
			t.Errorf("the keys were %q", keys)
		}
		if own != "" && keys[0] != own || req.GetIdempotencyKey() != own {
			t.Errorf("the caller's key %q became %q, sent as %q", own, req.GetIdempotencyKey(), keys[0])
		}
	}
}

// TestKeysDiffer: two changes are never one.
func TestKeysDiffer(t *testing.T) {
	keys := map[string]bool{}
	n := &fakeNode{create: func(_ context.Context, r *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
		keys[r.GetIdempotencyKey()] = true
		return &blixardv1.CreateVMResponse{}, nil
	}}
	c := n.dial(t)
	req := &blixardv1.CreateVMRequest{Name: "a"}
	for range 3 {
		if _, err := c.VMs().CreateVM(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if len(keys) != 3 {
		t.Errorf("three changes had %d keys", len(keys))
	}
}

// TestErrorsComeThrough: a problem arrives as the node made it, and one that
// another try can't mend is asked for once.
func TestErrorsComeThrough(t *testing.T) {
	for _, kind := range []problem.Kind{
		problem.Invalid, problem.NotFound, problem.Conflict, problem.NoCapacity, problem.Fenced, problem.Denied, problem.Internal,
	} {
		calls := 0
		n := &fakeNode{create: func(context.Context, *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
			calls++
			return nil, problem.New(kind, "some.code", "a sentence").WithHint("a hint")
		}}
		_, err := n.dial(t).VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{})
		p := problem.From(err)
		if p == nil || p.Kind != kind || p.Code != "some.code" || p.Hint != "a hint" || !strings.Contains(p.Error(), "a sentence") {
			t.Errorf("%s arrived as %+v", kind, p)
		}
		if calls != 1 {
			t.Errorf("%s was asked for %d times", kind, calls)
		}
	}
	// A node of another version does not know every call, and says so in gRPC's words.
	calls := 0
	n := &fakeNode{create: func(context.Context, *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
		calls++
		return nil, status.Error(codes.Unimplemented, "unknown method")
	}}
	if _, err := n.dial(t).VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{}); !problem.HasCode(err, "unimplemented") || calls != 1 {
		t.Errorf("after %d calls: %v", calls, err)
	}
}

// TestDeadlines: a node that does not answer, or always puts off, holds nobody
// longer than was said; what it said last is what is told.
func TestDeadlines(t *testing.T) {
	const short = 200 * time.Millisecond
	silent := &fakeNode{create: func(ctx context.Context, _ *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	socket := filepath.Join(t.TempDir(), "s")
	silent.serve(t, socket)
	if _, err := dial(t, socket, short).VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{}); !problem.HasCode(err, "deadline") {
		t.Errorf("with the client's timeout: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	if _, err := dial(t, socket, time.Hour).VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{}); !problem.HasCode(err, "deadline") {
		t.Errorf("with the caller's deadline: %v", err)
	}
	busy := &fakeNode{create: func(context.Context, *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
		return nil, problem.New(problem.Unavailable, "node.starting", "not yet")
	}}
	ctx, cancel = context.WithTimeout(t.Context(), short)
	defer cancel()
	_, err := busy.dial(t).VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{})
	if !problem.HasCode(err, "node.starting") && !problem.HasCode(err, "deadline") {
		t.Errorf("of a busy node: %v", err)
	}
}

// TestNodeComesBack: a call outlives the restart of its node, and one whose node
// stays away says so.
func TestNodeComesBack(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	n := &fakeNode{create: func(context.Context, *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
		return &blixardv1.CreateVMResponse{}, nil
	}}
	stop := n.serve(t, socket)
	c := dial(t, socket, 0)
	if c.Addr() != "unix:"+socket {
		t.Errorf("the address is %s", c.Addr())
	}
	if _, err := c.VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{}); err != nil {
		t.Fatal(err)
	}
	stop()
	again := n.serve(t, socket)
	if _, err := c.VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{}); err != nil {
		t.Fatalf("after the restart: %v", err)
	}
	again()
	_, err := c.VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{})
	if !problem.HasCode(err, "node.not_running") && !problem.HasCode(err, "node.connection_lost") {
		t.Errorf("without a node: %v", err)
	}
	if _, err := client.Dial(t.Context(), client.Config{Addr: "unix:" + socket}); !problem.HasCode(err, "node.not_running") {
		t.Errorf("dialing it: %v", err)
	}
}

func TestDialGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	socket := filepath.Join(t.TempDir(), "s")
	(&fakeNode{}).serve(t, socket)
	if c, err := client.Dial(ctx, client.Config{Addr: "unix:" + socket}); err == nil {
		_ = c.Close()
		t.Error("a canceled context connected")
	} else if !problem.HasCode(err, "canceled") {
		t.Errorf("%v", err)
	}
}

func TestAllPages(t *testing.T) {
	const last = 3
	n := &fakeNode{list: func(r *blixardv1.ListVMsRequest) (*blixardv1.ListVMsResponse, error) {
		var page int
		if r.GetPageToken() != "" {
			if _, err := fmt.Sscan(r.GetPageToken(), &page); err != nil {
				return nil, problem.New(problem.Invalid, "page", "%v", err)
			}
		}
		resp := &blixardv1.ListVMsResponse{Vms: []*blixardv1.VM{{Name: fmt.Sprint("vm", page)}}}
		if page < last {
			resp.NextPageToken = fmt.Sprint(page + 1)
		}
		return resp, nil
	}}
	vms, err := n.dial(t).AllVMs(t.Context())
	var names []string
	for _, vm := range vms {
		names = append(names, vm.GetName())
	}
	if err != nil || strings.Join(names, " ") != "vm0 vm1 vm2 vm3" {
		t.Errorf("%v, %v", names, err)
	}
	n = &fakeNode{list: func(*blixardv1.ListVMsRequest) (*blixardv1.ListVMsResponse, error) {
		return nil, problem.New(problem.Denied, "auth.denied", "no")
	}}
	if _, err := n.dial(t).AllVMs(t.Context()); !problem.Is(err, problem.Denied) {
		t.Errorf("%v", err)
	}
}

// errStopped tells that a consumer saw enough.
var errStopped = errors.New("stopped")

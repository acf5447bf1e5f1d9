package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/unixsocket"
	"github.com/blixard/blixard/state"
)

func TestLifeOfAVMThroughTheAPI(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.register()
	allocs, err := w.client.Agents().WatchAllocations(ctx, &blixardv1.WatchAllocationsRequest{NodeId: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := w.client.VMs().WatchVMs(ctx, &blixardv1.WatchVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || !m.GetSynced() {
		t.Fatalf("first message %v, %v", m, err)
	}
	vm := w.create("web")
	if s := vm.GetSpec(); s.GetVcpus() != 1 || s.GetMemoryMib() != 256 || s.GetDiskBytes() != 1<<30 ||
		s.GetRestart().GetMode() != blixardv1.RestartMode_on_failure || s.GetOnNodeLoss() != blixardv1.NodeLossPolicy_replace {
		t.Fatalf("the spec is not completed: %v", s)
	}
	var a *blixardv1.Allocation
	for a == nil {
		m, err := allocs.Recv()
		if err != nil {
			t.Fatal(err)
		}
		a = m.GetAllocation()
	}
	_, err = w.client.Agents().Report(ctx, &blixardv1.ReportRequest{NodeId: "node-a", Reports: []*blixardv1.AllocationReport{{
		AllocationId: a.GetId(), Epoch: a.GetEpoch(), Status: &blixardv1.VMStatus{State: blixardv1.AllocationState_running, BootId: "b"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetVm().GetStatus().GetState() == blixardv1.AllocationState_running {
			break
		}
	}
	if _, err := w.client.VMs().StopVM(ctx, &blixardv1.StopVMRequest{Name: "web", Force: true}); err != nil {
		t.Fatal(err)
	}
	if m, err := allocs.Recv(); err != nil {
		t.Fatal(err)
	} else if m.GetAllocation().GetDesired() == blixardv1.DesiredAllocation_stop && !m.GetAllocation().GetForceStop() {
		t.Fatal("force got lost")
	}
	got, err := w.client.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: vm.GetId()})
	if err != nil || got.GetVm().GetSpec().GetDesired() != blixardv1.DesiredState_stop {
		t.Fatalf("%v, %v", got, err)
	}
	for _, call := range []func() error{
		func() error {
			_, err := w.client.VMs().StartVM(ctx, &blixardv1.StartVMRequest{Name: "web"})
			return err
		},
		func() error {
			_, err := w.client.VMs().RestartVM(ctx, &blixardv1.RestartVMRequest{Name: "web"})
			return err
		},
		func() error {
			_, err := w.client.VMs().DeleteVM(ctx, &blixardv1.DeleteVMRequest{Name: "web"})
			return err
		},
		func() error {
			_, err := w.client.Agents().Report(ctx, &blixardv1.ReportRequest{NodeId: "node-a", Reports: []*blixardv1.AllocationReport{{
				AllocationId: a.GetId(), Epoch: a.GetEpoch(), Removed: true,
			}}})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.client.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: "web"}); !problem.HasCode(err, "vm.not_found") {
		t.Fatalf("after its removal: %v", err)
	}
	events, err := w.client.Events().ListEvents(ctx, &blixardv1.ListEventsRequest{Object: "web"})
	if err != nil || len(events.GetEvents()) < 5 || events.GetEvents()[0].GetKind() != "vm.created" || !strings.HasPrefix(events.GetEvents()[0].GetActor(), "user:") {
		t.Fatalf("events %v, %v", events, err)
	}
	ew, err := w.client.Events().WatchEvents(ctx, &blixardv1.WatchEventsRequest{Object: "web"})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		m, err := ew.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetSynced() {
			if n != len(events.GetEvents()) {
				t.Fatalf("the watch brought %d events, the list %d", n, len(events.GetEvents()))
			}
			break
		}
	}
}

// Several changes of one VM in one entry of the log are one message: its last form.
// A client that resumes tells what it has had by the index and the VM.
func TestWatchTellsAVMOnceAnIndex(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.register()
	allocs, err := w.client.Agents().WatchAllocations(ctx, &blixardv1.WatchAllocationsRequest{NodeId: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	w.create("web")
	var a *blixardv1.Allocation
	for a == nil {
		m, err := allocs.Recv()
		if err != nil {
			t.Fatal(err)
		}
		a = m.GetAllocation()
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	report := sync.OnceFunc(func() {
		req := &blixardv1.ReportRequest{NodeId: "node-a"}
		for _, s := range []blixardv1.AllocationState_Enum{blixardv1.AllocationState_preparing, blixardv1.AllocationState_stopped} {
			req.Reports = append(req.Reports, &blixardv1.AllocationReport{AllocationId: a.GetId(), Epoch: a.GetEpoch(), Status: &blixardv1.VMStatus{State: s}})
		}
		if _, err := w.client.Agents().Report(ctx, req); err != nil {
			t.Error(err)
		}
	})
	if _, err := w.client.WaitVM(ctx, "web", func(vm *blixardv1.VM, _ bool) (bool, error) {
		report()
		return vm.GetStatus().GetState() == blixardv1.AllocationState_stopped, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestRefusalsChangeNothing(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.register()
	w.create("taken")
	before, err := w.client.VMs().ListVMs(ctx, &blixardv1.ListVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	spec := func(change func(*blixardv1.VMSpec)) *blixardv1.VMSpec {
		s := &blixardv1.VMSpec{Image: "busybox"}
		if change != nil {
			change(s)
		}
		return s
	}
	for _, tc := range []struct {
		name string
		vm   string
		spec *blixardv1.VMSpec
		kind problem.Kind
		code string
		says string
	}{
		{"name taken", "taken", spec(nil), problem.Conflict, "vm.name_taken", "taken"},
		{"odd name", "Web_1", spec(nil), problem.Invalid, "name.invalid", "name"},
		{"path as name", "../x", spec(nil), problem.Invalid, "name.invalid", "name"},
		{"long name", strings.Repeat("a", 64), spec(nil), problem.Invalid, "name.invalid", "name"},
		{"name of no image", "a", spec(func(s *blixardv1.VMSpec) { s.Image = "NO//image" }), problem.Invalid, "image.name", "NO//image"},
		{"image without a name", "a", spec(func(s *blixardv1.VMSpec) { s.Image = "a/b@sha256:zz" }), problem.Invalid, "image.name", "sha256:zz"},
		{"slip of the fingers", "a", spec(func(s *blixardv1.VMSpec) { s.Image = "busbox" }), problem.NotFound, "image.unknown", "busbox"},
		{"unknown network", "a", spec(func(s *blixardv1.VMSpec) { s.Networks = []*blixardv1.NetworkAttachment{{Network: "nope"}} }), problem.NotFound, "network.not_found", "nope"},
		{"unknown volume", "a", spec(func(s *blixardv1.VMSpec) { s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "nope", Path: "/x"}} }), problem.NotFound, "volume.not_found", "nope"},
		{"unknown secret", "a", spec(func(s *blixardv1.VMSpec) { s.Secrets = []*blixardv1.SecretAttachment{{Secret: "nope"}} }), problem.NotFound, "secret.not_found", "nope"},
		{"port without a network", "a", spec(func(s *blixardv1.VMSpec) { s.Ports = []*blixardv1.PublishedPort{{HostPort: 1, GuestPort: 1}} }), problem.Invalid, "port.no_network", "no network"},
		{"path upwards", "a", spec(func(s *blixardv1.VMSpec) { s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "v", Path: "/a/../b"}} }), problem.Invalid, "volume.path", "absolute"},
		{"unknown kernel", "a", spec(func(s *blixardv1.VMSpec) { s.Kernel = "nope" }), problem.NotFound, "kernel.unknown", "nope"},
		{"too many CPUs", "a", spec(func(s *blixardv1.VMSpec) { s.Vcpus = 65 }), problem.Invalid, "request.invalid", "vcpus"},
		{"tiny memory", "a", spec(func(s *blixardv1.VMSpec) { s.MemoryMib = 1 }), problem.Invalid, "vm.memory_range", "64MiB"},
		{"absurd memory", "a", spec(func(s *blixardv1.VMSpec) { s.MemoryMib = 4e9 }), problem.Invalid, "vm.memory_range", "1TiB"},
		{"more memory than the node", "a", spec(func(s *blixardv1.VMSpec) { s.MemoryMib = 100000 }), problem.NoCapacity, "vm.too_large", "memory"},
		{"tiny disk", "a", spec(func(s *blixardv1.VMSpec) { s.DiskBytes = 1 }), problem.Invalid, "vm.disk_range", "16MiB"},
		{"no spec", "a", nil, problem.Invalid, "request.invalid", "spec"},
		{"bad variable", "a", spec(func(s *blixardv1.VMSpec) { s.Env = []*blixardv1.EnvVar{{Name: "A=B"}} }), problem.Invalid, "request.invalid", "env"},
	} {
		_, err := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: tc.vm, Spec: tc.spec})
		p := problem.From(err)
		if p == nil || p.Kind != tc.kind || p.Code != tc.code || !strings.Contains(p.Message, tc.says) || p.Hint == "" {
			t.Errorf("%s: %+v", tc.name, p)
		}
	}
	for name, err := range map[string]error{
		"get":   second(w.client.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: "none"})),
		"start": second(w.client.VMs().StartVM(ctx, &blixardv1.StartVMRequest{Name: "none"})),
		"stop":  second(w.client.VMs().StopVM(ctx, &blixardv1.StopVMRequest{Name: "none"})),
		"label": second(w.client.VMs().LabelVM(ctx, &blixardv1.LabelVMRequest{Name: "none"})),
		"stats": second(w.client.VMs().Stats(ctx, &blixardv1.StatsRequest{Name: "none"})),
	} {
		if err == nil {
			t.Errorf("%s of a VM that is not there: %v", name, err)
		}
	}
	_, err = w.client.VMs().StopVM(ctx, &blixardv1.StopVMRequest{Name: "taken", ExpectedIndex: 1})
	if !problem.HasCode(err, "vm.index_mismatch") {
		t.Errorf("compare and set: %v", err)
	}
	after, err := w.client.VMs().ListVMs(ctx, &blixardv1.ListVMsRequest{})
	if err != nil || len(after.GetVms()) != len(before.GetVms()) || after.GetVms()[0].GetSpec().GetDesired() != blixardv1.DesiredState_run {
		t.Fatalf("something changed: %v, %v", after, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestPagesAndIdempotency(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	key := client.NewKey()
	var first string
	for range 3 {
		resp, err := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{IdempotencyKey: key, Name: "same", Spec: &blixardv1.VMSpec{Image: "x"}})
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = resp.GetVm().GetId()
		}
		if resp.GetVm().GetId() != first {
			t.Fatalf("the same key made %s and %s", first, resp.GetVm().GetId())
		}
	}
	var names []string
	for range 6 {
		resp, err := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Spec: &blixardv1.VMSpec{Image: "busybox"}})
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, resp.GetVm().GetName())
	}
	names = append(names, "same")
	slices.Sort(names)
	var got []string
	for token := ""; ; {
		resp, err := w.client.VMs().ListVMs(ctx, &blixardv1.ListVMsRequest{PageSize: 3, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, vm := range resp.GetVms() {
			got = append(got, vm.GetName())
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(got, names) {
		t.Fatalf("pages gave %v, want %v", got, names)
	}
}

func TestLabelStream(t *testing.T) {
	w := newWorld(t)
	vm := w.create("a")
	stream, err := w.client.VMs().LabelVMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const n = 3000 // more than fit in flight
	go func() {
		for k := range n {
			name := "a"
			if k%100 == 7 {
				name = "none"
			}
			if stream.Send(&blixardv1.LabelVMsRequest{Sequence: uint64(k), Change: &blixardv1.LabelVMRequest{
				Name: name, Labels: map[string]string{"k": strings.Repeat("x", k%50)},
			}}) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	seen, refused := map[uint64]bool{}, 0
	var newest uint64
	for {
		a, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[a.GetSequence()] = true
		if a.GetProblem() != nil {
			refused++
		}
		newest = max(newest, a.GetModifyIndex())
	}
	if len(seen) != n || refused != n/100 {
		t.Fatalf("%d answers, %d refused", len(seen), refused)
	}
	got, err := w.client.VMs().GetVM(t.Context(), &blixardv1.GetVMRequest{Name: vm.GetId()})
	if err != nil || got.GetVm().GetModifyIndex() != newest {
		t.Fatalf("index %d, the last answer said %d, %v", got.GetVm().GetModifyIndex(), newest, err)
	}
	resp, err := w.client.VMs().LabelVM(t.Context(), &blixardv1.LabelVMRequest{Name: "a", ExpectedIndex: newest, Labels: map[string]string{"a": "b"}})
	if err != nil || resp.GetModifyIndex() <= newest {
		t.Fatalf("%v, %v", resp, err)
	}
}

// post is what curl --unix-socket does.
func (w *world) post(path, body, contentType string) (int, map[string]any) {
	w.t.Helper()
	hc := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return unixsocket.Dial(ctx, w.socket)
		},
	}}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "http://x"+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := hc.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(bytes.TrimSpace(b), &m); err != nil {
		w.t.Fatalf("%s: %d %q: %v", path, resp.StatusCode, b, err)
	}
	return resp.StatusCode, m
}

func TestPlainCurl(t *testing.T) {
	w := newWorld(t)
	w.create("web")
	code, m := w.post("/blixard.v1.VMService/ListVMs", "{}", "application/x-www-form-urlencoded")
	vms, _ := m["vms"].([]any)
	if code != 200 || len(vms) != 1 || vms[0].(map[string]any)["name"] != "web" {
		t.Fatalf("%d %v", code, m)
	}
	code, m = w.post("/blixard.v1.VMService/GetVM", `{"name":"none"}`, "application/json")
	if code != 404 || m["code"] != "not_found" {
		t.Fatalf("%d %v", code, m)
	}
	if code, m = w.post("/blixard.v1.VMService/GetVM", `{"nome":"a"}`, "application/json"); code != 400 {
		t.Fatalf("unknown field: %d %v", code, m)
	}
}

func TestStatusAndLease(t *testing.T) {
	w := newWorld(t)
	w.register()
	st, err := w.client.Nodes().GetStatus(t.Context(), &blixardv1.GetStatusRequest{})
	if err != nil || !st.GetLeader() || st.GetNode().GetName() != "a" || st.GetVersion() != "test" {
		t.Fatalf("%v, %v", st, err)
	}
	nodes, err := w.client.Nodes().ListNodes(t.Context(), &blixardv1.ListNodesRequest{})
	if err != nil || len(nodes.GetNodes()) != 1 {
		t.Fatalf("%v, %v", nodes, err)
	}
	// The load comes with a lease, and from none that is refused.
	for _, req := range []*blixardv1.RenewLeaseRequest{
		{NodeId: "node-a"},
		{NodeId: "node-a", LoadPercent: proto.Uint32(93)},
		{NodeId: "node-a", LoadPercent: proto.Uint32(101)},
		{NodeId: "node-a", LoadPercent: proto.Uint32(92), Incarnation: 9},
		{NodeId: "node-a", LoadPercent: proto.Uint32(0)},
	} {
		lease, err := w.client.Agents().RenewLease(t.Context(), req)
		if bad := req.GetLoadPercent() > 100 || req.GetIncarnation() == 9; (err != nil) != bad || !bad && lease.GetTtl().AsDuration() != 10*time.Second {
			t.Errorf("%v: %v, %v", req, lease, err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.loads, ", "); got != "node-a unknown, node-a 93, node-a 0" {
		t.Errorf("the loads are %s", got)
	}
	// What needs the agent says that it is not up.
	w.create("x")
	for err = error(nil); err == nil || problem.HasCode(err, "vm.not_placed"); <-time.After(time.Millisecond) {
		_, err = w.client.VMs().Stats(t.Context(), &blixardv1.StatsRequest{Name: "x"})
	}
	if !problem.HasCode(err, "node.starting") {
		t.Fatalf("without an agent: %v", err)
	}
}

// Streams end when the server stops, with a problem that says so.
func TestStopEndsStreams(t *testing.T) {
	w := newWorld(t)
	watch, err := w.client.VMs().WatchVMs(t.Context(), &blixardv1.WatchVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	w.server.Stop(ctx)
	if _, err := watch.Recv(); !problem.Is(err, problem.Unavailable) {
		t.Fatalf("the stream ended with %v", err)
	}
}

// A command that the oldest member does not know is not proposed, and everything
// else is.
func TestOldMember(t *testing.T) {
	w := newWorld(t)
	w.register()
	if _, err := w.replica.Propose(t.Context(), &blixardv1.Command{Actor: "test", Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
		ClusterId: "cluster-x", CaCertificate: []byte("ca"), SealedCaKey: []byte("key"),
		Member: &blixardv1.Member{NodeId: "node-a", Name: "a", RaftId: 1, Address: "h:1", FeatureLevel: 1},
	}}}); err != nil {
		t.Fatal(err)
	}
	before := w.replica.Status().Commit
	_, err := w.client.Cluster().DropAuthorities(t.Context(), &blixardv1.DropAuthoritiesRequest{})
	if !problem.HasCode(err, "cluster.old_member") || w.replica.Status().Commit != before {
		t.Errorf("%v, %d changes", err, w.replica.Status().Commit-before)
	}
	w.create("a")
	for project, code := range map[string]string{"web": "cluster.old_member", state.DefaultProject: ""} {
		_, err := w.client.VMs().CreateVM(t.Context(), &blixardv1.CreateVMRequest{Project: project, Spec: &blixardv1.VMSpec{Image: "busybox"}})
		if (code != "" || err != nil) && !problem.HasCode(err, code) {
			t.Errorf("a VM of project %s: %v", project, err)
		}
	}
	if _, err := w.replica.Propose(t.Context(), &blixardv1.Command{Actor: "test", Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{
		Node: "a", Version: "new", FeatureLevel: state.FeatureLevel,
	}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.Cluster().DropAuthorities(t.Context(), &blixardv1.DropAuthoritiesRequest{}); problem.HasCode(err, "cluster.old_member") {
		t.Errorf("after the upgrade: %v", err)
	}
}

package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/imageref"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
	"github.com/blixard/blixard/state"
)

// Defaults of a spec; a stored spec is always complete.
const (
	defaultVCPUs       = 1
	defaultMemoryMiB   = 256
	defaultDiskBytes   = 1 << 30
	defaultMaxRestarts = 5
	defaultPageSize    = 1000
)

// vmService is VMService; see the .proto for its contract.
type vmService struct {
	blixardv1.UnimplementedVMServiceServer
	*Server
}

// newID makes an id: 80 bits of randomness never meet twice.
func newID(prefix string) string {
	return prefix + strings.ToLower(rand.Text()[:16])
}

// allKnow refuses a command that a member would not know.
func (s *Server) allKnow(cmd *blixardv1.Command) error {
	want := state.Level(cmd)
	if want == 1 {
		return nil
	}
	if have := s.cfg.Replica.View().FeatureLevel(); want > have {
		return problem.New(problem.Conflict, "cluster.old_member", "this needs feature level %d, and the oldest member knows %d", want, have).
			WithHint("upgrade every member first; `blixard cluster members` shows their versions")
	}
	return nil
}

// propose fills what a command carries beside its change.
func (s *Server) propose(ctx context.Context, key string, cmd *blixardv1.Command) (state.Result, error) {
	if key != "" {
		// Keys of different callers never meet.
		cmd.Key = key
	}
	if err := s.allKnow(cmd); err != nil {
		return state.Result{}, err
	}
	cmd.Actor = actor(ctx)
	cmd.Time = timestamppb.New(wallclock.Now())
	r, err := s.cfg.Replica.Propose(ctx, cmd)
	if err != nil {
		return state.Result{}, err
	}
	if r.Problem != nil {
		return state.Result{}, r.Problem
	}
	return r, nil
}

func (s vmService) CreateVM(ctx context.Context, req *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
	spec := proto.CloneOf(req.GetSpec())
	if err := s.complete(ctx, spec); err != nil {
		return nil, problem.Under("spec", err)
	}
	name, project, err := nameOf(req.GetProject(), cmp.Or(req.GetName(), randomName(spec.GetImage())))
	if err != nil {
		return nil, err
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
		Id: newID("vm-"), Name: name, Spec: spec, Labels: req.GetLabels(), Project: project,
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.CreateVMResponse{Vm: r.VM}, nil
}

// complete makes a spec the one that is stored, and refuses what can't be. Its problems
// name fields of the spec, which callers put below where the request has it.
func (s *Server) complete(ctx context.Context, spec *blixardv1.VMSpec) error {
	fillDefaults(spec)
	view := s.cfg.Replica.View()
	known := s.known.Load()
	if known == nil || checkPossible(known, view, spec) != nil || !slices.Contains(known.images, spec.GetImage()) {
		known = knownOf(view)
		s.known.Store(known)
	}
	// Before a node is known, this one's bundle says which names are its own.
	bundle := append(slices.Clone(s.cfg.BundledImages), known.images...)
	if !slices.Contains(bundle, spec.GetImage()) {
		if near := nearest.Of(spec.GetImage(), bundle); near != "" && !strings.ContainsAny(spec.GetImage(), "/:@") {
			return problem.New(problem.NotFound, "image.unknown", "no node has an image %q of its own", spec.GetImage()).
				WithHint("did you mean %s? An image of a registry with that name is %s:latest", near, spec.GetImage()).WithField("image")
		}
		name, err := imageref.Normalize(spec.GetImage())
		if err != nil {
			return problem.From(err).WithField("image")
		}
		spec.Image = name
	}
	if err := checkPossible(known, view, spec); err != nil {
		return err
	}
	if err := checkScheduling(view, spec.GetScheduling()); err != nil {
		return problem.Under("scheduling", err)
	}
	return s.defaultNetwork(ctx, spec)
}

func (s vmService) UpdateVM(ctx context.Context, req *blixardv1.UpdateVMRequest) (*blixardv1.UpdateVMResponse, error) {
	spec := proto.CloneOf(req.GetSpec())
	if err := s.complete(ctx, spec); err != nil {
		return nil, problem.Under("spec", err)
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_UpdateVm{UpdateVm: &blixardv1.UpdateVMCommand{
		Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Spec: spec,
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.UpdateVMResponse{Vm: r.VM}, nil
}

func (s vmService) RenameVM(ctx context.Context, req *blixardv1.RenameVMRequest) (*blixardv1.RenameVMResponse, error) {
	// A VM that is not there is left to the command, which says so.
	project := ""
	if vm := s.cfg.Replica.View().VM(req.GetName()); vm != nil {
		project = state.ProjectOf(vm)
	}
	name, _, err := nameOf(project, req.GetNewName())
	if err != nil {
		return nil, problem.From(err).WithField("new_name")
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_RenameVm{RenameVm: &blixardv1.RenameVMCommand{
		Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), NewName: name,
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RenameVMResponse{Vm: r.VM}, nil
}

// randomName makes a name from the image's, for VMs whose owner gave none.
func randomName(image string) string {
	// docker.io/library/nginx:1.27 is nginx.
	image = image[strings.LastIndexByte(image, '/')+1:]
	image, _, _ = strings.Cut(image, "@")
	image, _, _ = strings.Cut(image, ":")
	base := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(image))
	if base == "" {
		base = "guest"
	}
	return base[:min(len(base), 24)] + "-" + strings.ToLower(rand.Text()[:5])
}

func fillDefaults(s *blixardv1.VMSpec) {
	if s.Vcpus == 0 {
		s.Vcpus = defaultVCPUs
	}
	if s.MemoryMib == 0 {
		s.MemoryMib = defaultMemoryMiB
	}
	if s.DiskBytes == 0 {
		s.DiskBytes = defaultDiskBytes
	}
	if s.Desired == blixardv1.DesiredState_unspecified {
		s.Desired = blixardv1.DesiredState_run
	}
	if s.OnNodeLoss == blixardv1.NodeLossPolicy_unspecified {
		s.OnNodeLoss = blixardv1.NodeLossPolicy_replace
		if len(s.Volumes) > 0 {
			s.OnNodeLoss = blixardv1.NodeLossPolicy_keep // its volumes are on that node
		}
	}
	for _, p := range s.Ports {
		if p.Protocol == blixardv1.Protocol_unspecified {
			p.Protocol = blixardv1.Protocol_tcp
		}
	}
	if s.Init == blixardv1.InitMode_unspecified {
		s.Init = blixardv1.InitMode_automatic
	}
	if s.Restart == nil {
		s.Restart = &blixardv1.RestartPolicy{}
	}
	if s.Restart.Mode == blixardv1.RestartMode_unspecified {
		s.Restart.Mode = blixardv1.RestartMode_on_failure
	}
	if s.Restart.MaxRestarts == 0 {
		s.Restart.MaxRestarts = defaultMaxRestarts
	}
	if s.Restart.Backoff == nil {
		s.Restart.Backoff = &durationpb.Duration{Seconds: 1}
	}
}

// known is what the nodes have, as far as it says whether a VM could ever run. It is
// gathered anew when it does not allow a VM, not for each of them: one that is old errs
// only by letting a VM wait.
type known struct {
	images, kernels []string
	// allocatable of the nodes, each once.
	allocatable []*blixardv1.Resources
}

func knownOf(view *state.View) *known {
	k := &known{}
	images, kernels := map[string]bool{}, map[string]bool{}
	type size struct{ vcpus, memory, disk uint64 }
	sizes := map[size]bool{}
	for _, n := range view.Nodes() {
		for _, name := range n.GetFingerprint().GetImages() {
			images[name] = true
		}
		for _, name := range n.GetFingerprint().GetKernels() {
			kernels[name] = true
		}
		a := n.GetAllocatable()
		if s := (size{uint64(a.GetVcpus()), a.GetMemoryMib(), a.GetDiskBytes()}); !sizes[s] {
			sizes[s] = true
			k.allocatable = append(k.allocatable, a)
		}
	}
	k.images, k.kernels = slices.Sorted(maps.Keys(images)), slices.Sorted(maps.Keys(kernels))
	return k
}

// fieldOf a spec that says how much of what state.Fits names is wanted.
var fieldOf = map[string]string{"vcpus": "vcpus", "memory": "memory_mib", "disk": "disk_bytes"}

// checkPossible refuses what no known node could ever run, so that a typing
// mistake is an error at once and not a VM that waits. With no node known yet
// nothing can be said.
func checkPossible(k *known, view *state.View, spec *blixardv1.VMSpec) error {
	if len(k.allocatable) == 0 {
		return nil
	}
	more := state.Need(view, spec)
	fits, most := false, uint64(0)
	short := ""
	for _, a := range k.allocatable {
		most = max(most, a.GetMemoryMib())
		s, ok := state.Fits(a, &blixardv1.Resources{}, more)
		if ok {
			fits = true
		} else {
			short = s
		}
	}
	if kernel := spec.GetKernel(); kernel != "" && !slices.Contains(k.kernels, kernel) {
		return problem.New(problem.NotFound, "kernel.unknown", "no node has a kernel %q", kernel).
			WithHint("kernels there are: %s; leave it out for the node's preferred one", strings.Join(k.kernels, ", ")).WithField("kernel")
	}
	if !fits {
		p := problem.New(problem.NoCapacity, "vm.too_large", "no node is large enough for the VM: %s is short", short)
		if short == "disk" && more.GetDiskBytes() > spec.GetDiskBytes() {
			return p.WithHint("give the VM a smaller disk or smaller volumes, or add a larger node")
		}
		if field := fieldOf[short]; field != "" {
			p = p.WithField("%s", field)
		}
		if short == "memory" {
			return p.WithHint("the largest node can give %d MiB to VMs, and this one needs %d MiB with its hypervisor", most, more.GetMemoryMib())
		}
		return p.WithHint("give the VM less, or add a larger node")
	}
	return nil
}

func notFound(name string) error {
	return problem.New(problem.NotFound, "vm.not_found", "there is no VM %q", name).WithHint("see `blixard vm list`")
}

func (s vmService) GetVM(ctx context.Context, req *blixardv1.GetVMRequest) (*blixardv1.GetVMResponse, error) {
	view, age, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	vm := view.VM(req.GetName())
	if vm == nil {
		return nil, notFound(req.GetName())
	}
	return &blixardv1.GetVMResponse{Vm: vm, Index: view.Index(), Age: age}, nil
}

func (s vmService) ListVMs(ctx context.Context, req *blixardv1.ListVMsRequest) (*blixardv1.ListVMsResponse, error) {
	view, age, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.ListVMsResponse{Index: view.Index(), Age: age}
	resp.Vms, resp.NextPageToken = page(req, view.VMs, (*blixardv1.VM).GetName)
	return resp, nil
}

// page gives the page of a list that is asked for, and the token of the next; "" when there
// is none. after gives at most so many objects whose name comes after a token.
func page[T any](req interface {
	GetPageSize() uint32
	GetPageToken() string
}, after func(token string, most int) []T, name func(T) string,
) (objects []T, next string) {
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPageSize
	}
	objects = after(req.GetPageToken(), size+1)
	if len(objects) > size {
		objects = objects[:size]
		next = name(objects[size-1])
	}
	return objects, next
}

// setDesired is the common part of start, stop and restart.
func (s vmService) setDesired(ctx context.Context, key string, c *blixardv1.SetVMDesiredCommand) (*blixardv1.VM, error) {
	r, err := s.propose(ctx, key, &blixardv1.Command{Change: &blixardv1.Command_SetVmDesired{SetVmDesired: c}})
	return r.VM, err
}

func (s vmService) StartVM(ctx context.Context, req *blixardv1.StartVMRequest) (*blixardv1.StartVMResponse, error) {
	vm, err := s.setDesired(ctx, req.GetIdempotencyKey(), &blixardv1.SetVMDesiredCommand{
		Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Desired: blixardv1.DesiredState_run,
	})
	if err != nil {
		return nil, err
	}
	return &blixardv1.StartVMResponse{Vm: vm}, nil
}

func (s vmService) StopVM(ctx context.Context, req *blixardv1.StopVMRequest) (*blixardv1.StopVMResponse, error) {
	vm, err := s.setDesired(ctx, req.GetIdempotencyKey(), &blixardv1.SetVMDesiredCommand{
		Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Desired: blixardv1.DesiredState_stop,
		Force: req.GetForce(), TimeoutMs: req.GetTimeout().AsDuration().Milliseconds(),
	})
	if err != nil {
		return nil, err
	}
	return &blixardv1.StopVMResponse{Vm: vm}, nil
}

func (s vmService) RestartVM(ctx context.Context, req *blixardv1.RestartVMRequest) (*blixardv1.RestartVMResponse, error) {
	vm, err := s.setDesired(ctx, req.GetIdempotencyKey(), &blixardv1.SetVMDesiredCommand{
		Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Desired: blixardv1.DesiredState_run, StartAgain: true,
		Force: req.GetForce(), TimeoutMs: req.GetTimeout().AsDuration().Milliseconds(),
	})
	if err != nil {
		return nil, err
	}
	return &blixardv1.RestartVMResponse{Vm: vm}, nil
}

func (s vmService) DeleteVM(ctx context.Context, req *blixardv1.DeleteVMRequest) (*blixardv1.DeleteVMResponse, error) {
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{
		Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(),
		Force: req.GetForce(), TimeoutMs: req.GetTimeout().AsDuration().Milliseconds(),
	}}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.DeleteVMResponse{Vm: r.VM}, nil
}

func labelCommand(ctx context.Context, req *blixardv1.LabelVMRequest) *blixardv1.Command {
	return &blixardv1.Command{
		Key: req.GetIdempotencyKey(), Actor: actor(ctx), Time: timestamppb.New(wallclock.Now()),
		Change: &blixardv1.Command_LabelVm{LabelVm: &blixardv1.LabelVMCommand{
			Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Labels: req.GetLabels(),
		}},
	}
}

func (s vmService) LabelVM(ctx context.Context, req *blixardv1.LabelVMRequest) (*blixardv1.LabelVMResponse, error) {
	cmd := labelCommand(ctx, req)
	if err := s.allKnow(cmd); err != nil {
		return nil, err
	}
	r, err := s.cfg.Replica.Propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	if r.Problem != nil {
		return nil, r.Problem
	}
	return &blixardv1.LabelVMResponse{ModifyIndex: r.VM.GetModifyIndex()}, nil
}

// labelsInFlight bounds the changes of one stream that wait for their answer; a
// client that sends more waits.
const labelsInFlight = 1024

func (s vmService) LabelVMs(stream blixardv1.VMService_LabelVMsServer) error {
	ctx := stream.Context()
	answers := make(chan *blixardv1.LabelVMsResponse, labelsInFlight)
	slots := make(chan struct{}, labelsInFlight)
	sent := make(chan error, 1)
	go func() {
		var err error
		for a := range answers {
			if err == nil {
				err = stream.Send(a)
			}
			<-slots
		}
		sent <- err
	}()
	recvErr := s.receiveLabels(ctx, stream, slots, answers)
	for range cap(slots) {
		slots <- struct{}{} // every answer is out
	}
	close(answers)
	if err := <-sent; err != nil {
		return err
	}
	return recvErr
}

func (s vmService) receiveLabels(ctx context.Context, stream blixardv1.VMService_LabelVMsServer, slots chan struct{}, answers chan<- *blixardv1.LabelVMsResponse) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return endOfStream(err)
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		seq := req.GetSequence()
		cmd := labelCommand(ctx, req.GetChange())
		if err := s.allKnow(cmd); err != nil {
			answers <- &blixardv1.LabelVMsResponse{Sequence: seq, Problem: problem.From(err).Proto()}
			continue
		}
		s.cfg.Replica.ProposeAsync(cmd, func(r state.Result, err error) {
			a := &blixardv1.LabelVMsResponse{Sequence: seq}
			switch {
			case err != nil:
				a.Problem = problem.From(err).Proto()
			case r.Problem != nil:
				a.Problem = r.Problem.Proto()
			default:
				a.ModifyIndex = r.VM.GetModifyIndex()
			}
			answers <- a // never blocks: it has a place for every slot
		})
	}
}

func waitingText(vm *blixardv1.VM) string {
	if m := vm.GetStatus().GetMessage(); m != "" {
		return m
	}
	return fmt.Sprint(vm.GetStatus().GetState())
}

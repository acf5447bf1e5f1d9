package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// serveBlixard is the child process: a replica and the calls that are measured.
func serveBlixard(ctx context.Context, args []string) error {
	dir := args[0]
	r, err := replica.Open(ctx, replica.Config{Dir: filepath.Join(dir, "raft"), NodeID: "bench"})
	if err != nil {
		return err
	}
	defer r.Close()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	blixardv1.RegisterVMServiceServer(s, &service{r: r})
	go s.Serve(l)
	defer s.Stop()
	fmt.Println("ready")
	return untilStdinEnds(ctx)
}

type service struct {
	blixardv1.UnimplementedVMServiceServer
	r *replica.Replica
}

func (s *service) CreateVM(ctx context.Context, req *blixardv1.CreateVMRequest) (*blixardv1.CreateVMResponse, error) {
	res, err := s.r.Propose(ctx, &blixardv1.Command{Actor: "user:0", Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
		Id: "id-" + req.GetName(), Name: req.GetName(), Spec: req.GetSpec(), Labels: req.GetLabels(),
	}}})
	if err != nil {
		return nil, err
	}
	if res.Problem != nil {
		return nil, res.Problem
	}
	return &blixardv1.CreateVMResponse{Vm: res.VM}, nil
}

func labelCommand(req *blixardv1.LabelVMRequest) *blixardv1.Command {
	return &blixardv1.Command{
		Key: req.GetIdempotencyKey(), Actor: "user:0",
		Change: &blixardv1.Command_LabelVm{LabelVm: &blixardv1.LabelVMCommand{
			Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Labels: req.GetLabels(),
		}},
	}
}

func (s *service) LabelVM(ctx context.Context, req *blixardv1.LabelVMRequest) (*blixardv1.LabelVMResponse, error) {
	res, err := s.r.Propose(ctx, labelCommand(req))
	if err != nil {
		return nil, err
	}
	if res.Problem != nil {
		return nil, res.Problem
	}
	return &blixardv1.LabelVMResponse{ModifyIndex: res.VM.GetModifyIndex()}, nil
}

func (s *service) LabelVMs(stream blixardv1.VMService_LabelVMsServer) error {
	const window = 1024
	answers := make(chan *blixardv1.LabelVMsResponse, window)
	slots := make(chan struct{}, window)
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
	for {
		req, err := stream.Recv()
		if err != nil {
			break
		}
		slots <- struct{}{}
		seq := req.GetSequence()
		s.r.ProposeAsync(labelCommand(req.GetChange()), func(r state.Result, err error) {
			a := &blixardv1.LabelVMsResponse{Sequence: seq}
			switch {
			case err != nil:
				a.Problem = problem.From(err).Proto()
			case r.Problem != nil:
				a.Problem = r.Problem.Proto()
			default:
				a.ModifyIndex = r.VM.GetModifyIndex()
			}
			answers <- a
		})
	}
	for range window {
		slots <- struct{}{}
	}
	close(answers)
	return <-sent
}

// blixardTarget labels VMs over its API.
type blixardTarget struct {
	conns  []*grpc.ClientConn
	unary  bool
	prefix string
}

func dialBlixard(socket string, conns int, unary bool) (*blixardTarget, error) {
	t := &blixardTarget{unary: unary}
	for range conns {
		c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		t.conns = append(t.conns, c)
	}
	return t, nil
}

// prepare declares the VMs whose labels change. They shall not run.
func (t *blixardTarget) prepare(ctx context.Context) error {
	vms := blixardv1.NewVMServiceClient(t.conns[0])
	for i := range keys {
		_, err := vms.CreateVM(ctx, &blixardv1.CreateVMRequest{
			IdempotencyKey: fmt.Sprintf("create-%d", i), Name: keyName(i),
			Spec: &blixardv1.VMSpec{Image: "busybox", Desired: blixardv1.DesiredState_stop},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *blixardTarget) client(ctx context.Context, i int) (change, error) {
	vms := blixardv1.NewVMServiceClient(t.conns[i%len(t.conns)])
	n, session := uint64(0), sessions.Add(1)
	request := func(key int, value string) *blixardv1.LabelVMRequest {
		n++
		return &blixardv1.LabelVMRequest{
			IdempotencyKey: idempotencyKey(session, n), Name: keyName(key), Labels: map[string]string{"value": value},
		}
	}
	if t.unary {
		return func(ctx context.Context, key int, value string) error {
			_, err := vms.LabelVM(ctx, request(key, value))
			return err
		}, nil
	}
	stream, err := vms.LabelVMs(ctx)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, key int, value string) error {
		req := request(key, value)
		if err := stream.Send(&blixardv1.LabelVMsRequest{Sequence: n, Change: req}); err != nil {
			return err
		}
		a, err := stream.Recv()
		if err != nil {
			return err
		}
		if a.GetProblem() != nil {
			return problem.FromProto(a.GetProblem())
		}
		if a.GetSequence() != n {
			return fmt.Errorf("answer %d to change %d", a.GetSequence(), n)
		}
		return nil
	}, nil
}

func (t *blixardTarget) close() error {
	for _, c := range t.conns {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// Two looks fit into the second within which the stream of a removed node ends.
const _ = uint64(time.Second - 2*relayLookInterval)

// What the state says of members or of the cluster lets all streams look again, many changes
// in a row together, and what it says of anything else does not.
func TestRecheckFollowsTheState(t *testing.T) {
	r, rc := openReplica(t), newRecheck()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	next := rc.next()
	go func() {
		defer close(ended)
		rc.run(ctx, r)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	told := func(what string) {
		t.Helper()
		select {
		case <-next:
			next = rc.next()
		case <-time.After(answerLimit):
			t.Fatalf("%s: nobody looks again", what)
		}
	}
	told("the beginning")
	for _, cmd := range []*blixardv1.Command{
		{Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
			ClusterId: "c", CaCertificate: []byte("ca"), Member: &blixardv1.Member{NodeId: "node-a", Name: "a", RaftId: 1, FeatureLevel: state.FeatureLevel},
		}}},
		{Change: &blixardv1.Command_ChangeMember{ChangeMember: &blixardv1.ChangeMemberCommand{Node: "a", Version: "v", FeatureLevel: state.FeatureLevel}}},
	} {
		if res, err := r.Propose(t.Context(), cmd); err != nil || res.Problem != nil {
			t.Fatal(res.Problem, err)
		}
		told(fmt.Sprint(cmd))
	}
	for kind, want := range map[state.Kind]bool{state.KindMember: true, state.KindCluster: true, state.KindNode: false, state.KindVM: false, state.KindAllocation: false} {
		if ofTrust([]state.Change{{Kind: state.KindEvent}, {Kind: kind}}) != want {
			t.Errorf("kind %v says something of who is trusted: %v", kind, !want)
		}
	}
}

// The calls of a removed node are refused one by one, and its stream ends without
// waiting for those that are under way.
func TestRemovedNodesStreamEnds(t *testing.T) {
	begun := make(chan struct{}, 2)
	p := newPair(t, func(ctx context.Context, _ any) (any, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	stream := p.open()
	p.send(stream, &blixardv1.ForwardedCall{Id: 1, Method: labelVM, Request: marshal(t, someLabel), Caller: operatorCaller, TimeoutNs: int64(answerLimit)})
	<-begun
	p.removed.Store(true)
	p.send(stream, &blixardv1.ForwardedCall{Id: 2, Method: labelVM, Request: marshal(t, someLabel), Caller: operatorCaller, TimeoutNs: int64(answerLimit)})
	second, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	p.asked.recheck.tell()
	answers, err := drain(stream)
	for _, a := range second.GetAnswers() {
		answers[a.GetId()] = a
	}
	if !problem.HasCode(problem.From(err), "auth.removed") || answers[2].GetProblem().GetCode() != "auth.removed" || answers[1].GetProblem().GetCode() != "canceled" {
		t.Errorf("%v, %v", answers, err)
	}
}

var operatorCaller = &blixardv1.ForwardedCaller{Actor: "operator:o", Role: "operator", Name: "o"}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open begins a stream by hand.
func (p *pair) open() blixardv1.ForwardService_CallsClient {
	p.t.Helper()
	stream, err := blixardv1.NewForwardServiceClient(p.dial()).Calls(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return stream
}

func (p *pair) send(stream blixardv1.ForwardService_CallsClient, calls ...*blixardv1.ForwardedCall) {
	p.t.Helper()
	if err := stream.Send(&blixardv1.CallsRequest{Calls: calls}); err != nil {
		p.t.Fatal(err)
	}
}

// drain gives all answers and how the stream ended.
func drain(stream blixardv1.ForwardService_CallsClient) (map[uint64]*blixardv1.ForwardedAnswer, error) {
	answers := map[uint64]*blixardv1.ForwardedAnswer{}
	for {
		m, err := stream.Recv()
		if err != nil {
			return answers, err
		}
		for _, a := range m.GetAnswers() {
			answers[a.GetId()] = a
		}
	}
}

// What is malformed is refused: a request alone, an id with the stream.
func TestMalformedCalls(t *testing.T) {
	release := make(chan struct{})
	p := newPair(t, func(ctx context.Context, _ any) (any, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return &blixardv1.LabelVMResponse{ModifyIndex: 7}, ctx.Err()
	})
	good := func(id uint64) *blixardv1.ForwardedCall {
		return &blixardv1.ForwardedCall{Id: id, Method: labelVM, Request: marshal(t, someLabel), Caller: operatorCaller, TimeoutNs: int64(answerLimit)}
	}
	stream := p.open()
	bad, none, late := good(1), good(2), good(3)
	bad.Request, none.Method, late.TimeoutNs = []byte{0xff}, "none", -1
	p.send(stream, bad, none, late, good(4), good(0))
	close(release) // whether before or after the end: call 4 was begun, and is answered
	answers, err := drain(stream)
	if !problem.HasCode(problem.From(err), "forward.id") {
		t.Errorf("the stream ended with %v", err)
	}
	if answers[1].GetProblem().GetCode() != "request.invalid" || answers[2].GetProblem().GetCode() != "unimplemented" ||
		answers[3].GetProblem().GetCode() != "deadline" || len(answers[4].GetResponse()) == 0 {
		t.Errorf("%v", answers)
	}
}

// An id is one call's until its answer.
func TestIDUnderWay(t *testing.T) {
	f := &forwarded{ctx: t.Context(), calls: map[uint64]context.CancelFunc{4: func() {}}}
	if err := f.begin(&blixardv1.CallsRequest{Calls: []*blixardv1.ForwardedCall{{Id: 4, TimeoutNs: int64(answerLimit)}}}); !problem.HasCode(err, "forward.id") {
		t.Errorf("a second call under one id: %v", err)
	}
}

// A node takes so many calls of a stream, refuses more, and answers all it began
// before it stops.
func TestStreamIsBounded(t *testing.T) {
	release := make(chan struct{})
	begun := make(chan struct{}, relayedMax)
	p := newPair(t, func(context.Context, any) (any, error) {
		begun <- struct{}{}
		<-release
		return &blixardv1.LabelVMResponse{ModifyIndex: 1}, nil
	})
	stream := p.open()
	body := marshal(t, someLabel)
	for id := range uint64(relayedMax + 1) {
		p.send(stream, &blixardv1.ForwardedCall{Id: id + 1, Method: labelVM, Request: body, Caller: operatorCaller, TimeoutNs: int64(answerLimit)})
	}
	m, err := stream.Recv()
	if err != nil || m.GetAnswers()[0].GetId() != relayedMax+1 || m.GetAnswers()[0].GetProblem().GetCode() != "node.busy" {
		t.Fatalf("%v, %v", m, err)
	}
	for range relayedMax {
		<-begun
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
		defer cancel()
		p.asked.Stop(ctx)
	}()
	<-p.asked.quit
	close(release)
	answers, err := drain(stream)
	if !problem.HasCode(problem.From(err), "node.stopping") || len(answers) != relayedMax {
		t.Errorf("%d answers, %v", len(answers), err)
	}
	for id, a := range answers {
		if a.GetProblem() != nil {
			t.Errorf("call %d: %v", id, a.GetProblem())
		}
	}
	<-stopped
}

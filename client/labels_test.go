package client_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

// labelServer answers each change from a goroutine of its own, so that answers
// do not come in the order of the changes. One named "never" gets no answer.
type labelServer struct {
	blixardv1.UnimplementedVMServiceServer
	keys sync.Map
}

func (s *labelServer) LabelVMs(stream blixardv1.VMService_LabelVMsServer) error {
	var mu sync.Mutex
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		s.keys.Store(req.GetChange().GetIdempotencyKey(), true)
		switch req.GetChange().GetName() {
		case "cut":
			return status.Error(codes.Unavailable, "the node goes")
		case "never":
		default:
			answering.Go(func() {
				mu.Lock()
				defer mu.Unlock()
				_ = stream.Send(answerTo(req))
			})
		}
	}
}

func answerTo(r *blixardv1.LabelVMsRequest) *blixardv1.LabelVMsResponse {
	a := &blixardv1.LabelVMsResponse{Sequence: r.GetSequence()}
	if r.GetChange().GetName() == "missing" {
		a.Problem = problem.New(problem.NotFound, "vm.not_found", "no such VM").Proto()
		return a
	}
	_, _ = fmt.Sscan(r.GetChange().GetLabels()["n"], &a.ModifyIndex)
	return a
}

func dialLabels(t *testing.T) (*labelServer, *client.Labels) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s, g := &labelServer{}, grpc.NewServer()
	blixardv1.RegisterVMServiceServer(g, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	c, err := client.Dial(t.Context(), client.Config{Addr: "unix:" + socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	labels, err := c.Labels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, labels
}

func labelRequest(name string, n int) *blixardv1.LabelVMRequest {
	return &blixardv1.LabelVMRequest{Name: name, Labels: map[string]string{"n": fmt.Sprint(n)}}
}

// TestLabelsFindTheirCallers: answers that come out of order go to those who
// asked, and each change has a key of its own.
func TestLabelsFindTheirCallers(t *testing.T) {
	s, labels := dialLabels(t)
	const callers, each = 32, 20
	var running sync.WaitGroup
	for i := range callers {
		running.Go(func() {
			for k := range each {
				n := i*each + k + 1
				a, err := labels.Label(t.Context(), labelRequest("a", n))
				if err != nil || a.GetModifyIndex() != uint64(n) {
					t.Errorf("change %d was answered %v, %v", n, a, err)
					return
				}
			}
		})
	}
	running.Wait()
	keys := 0
	s.keys.Range(func(any, any) bool { keys++; return true })
	if keys != callers*each {
		t.Errorf("%d keys for %d changes", keys, callers*each)
	}
	if err := labels.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := labels.Label(t.Context(), labelRequest("a", 1)); !problem.HasCode(err, "labels.closed") && !problem.HasCode(err, "change.unknown") {
		t.Errorf("a change on a closed stream gave %v", err)
	}
}

func TestLabelsTellProblems(t *testing.T) {
	_, labels := dialLabels(t)
	if _, err := labels.Label(t.Context(), labelRequest("missing", 0)); !problem.HasCode(err, "vm.not_found") {
		t.Errorf("%v", err)
	}
	if err := labels.Close(); err != nil {
		t.Error(err)
	}
}

// TestLabelsBreak: when the node goes, every caller is told that its change may
// have been made, and nobody waits for ever.
func TestLabelsBreak(t *testing.T) {
	_, labels := dialLabels(t)
	waiting := make(chan error, 1)
	go func() {
		_, err := labels.Label(t.Context(), labelRequest("never", 1))
		waiting <- err
	}()
	if _, err := labels.Label(t.Context(), labelRequest("cut", 0)); !problem.HasCode(err, "change.unknown") {
		t.Errorf("%v", err)
	}
	if err := <-waiting; err == nil {
		t.Error("a change without an answer succeeded")
	}
	if err := labels.Close(); err == nil {
		t.Error("a broken stream closed without a word")
	}
}

func TestLabelsGiveUpInTime(t *testing.T) {
	_, labels := dialLabels(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := labels.Label(ctx, labelRequest("never", 1)); !problem.HasCode(err, "change.unknown") {
		t.Errorf("%v", err)
	}
	if err := labels.Close(); err != nil {
		t.Error(err)
	}
}

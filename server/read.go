package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// read gives a linearizable view: every change that was acknowledged before the
// call began is in it. Without a leader it fails after leaderWait and tells of the
// voters.
func (s *Server) read(ctx context.Context) (*state.View, error) {
	waiting, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	for {
		begun := time.Since(s.started)
		view, err := s.cfg.Replica.Read(waiting)
		if err == nil {
			s.seen(begun)
			return view, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if waiting.Err() != nil {
			return nil, s.noLeader(err)
		}
		if !again(err) {
			return nil, err
		}
		select {
		case <-time.After(leaderRetry):
		case <-waiting.Done():
		}
	}
}

// readOrStale is read, or what this node knows by itself with the bound of its
// age; the age is nil where the node can't tell.
func (s *Server) readOrStale(ctx context.Context, stale bool) (*state.View, *durationpb.Duration, error) {
	if !stale {
		view, err := s.read(ctx)
		return view, nil, err
	}
	// The age is taken before the view, so that it bounds the view's.
	fresh := s.fresh.Load()
	view := s.cfg.Replica.View()
	if fresh == 0 {
		return view, nil, nil
	}
	return view, durationpb.New(time.Since(s.started) - time.Duration(fresh)), nil
}

// seen notes that the state here holds everything that was acknowledged before
// begun, which counts from the server's start.
func (s *Server) seen(begun time.Duration) {
	for {
		old := s.fresh.Load()
		if int64(begun) <= old || s.fresh.CompareAndSwap(old, int64(begun)) {
			return
		}
	}
}

// KeepFresh reads once a freshInterval until ctx ends, so that stale reads can
// tell a bound of their age. It returns nil.
func (s *Server) KeepFresh(ctx context.Context) error {
	tick := time.NewTicker(freshInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_, _ = s.read(ctx) // a failure shows as an age that grows
		case <-ctx.Done():
			return nil
		}
	}
}

// freshInterval of reads that keep the age of stale ones known.
const freshInterval = time.Second

// votersText tells what is known of those who elect a leader.
func (s *Server) votersText() string {
	var words []string
	for _, m := range s.cfg.Replica.View().Members() {
		if m.GetRemoved() || !votes(m) {
			continue
		}
		words = append(words, fmt.Sprintf("%s at %s %s", m.GetName(), m.GetAddress(), s.reach(m.GetNodeId())))
	}
	if len(words) == 0 {
		return "no voter is known"
	}
	slices.Sort(words)
	return "voters are " + strings.Join(words, ", ")
}

// reach says in a word whether a node can be talked to.
func (s *Server) reach(nodeID string) string {
	if nodeID == s.cfg.NodeID {
		return "(this node)"
	}
	if s.cfg.Nodes == nil {
		return "(unknown)"
	}
	if s.cfg.Nodes.Reachable(nodeID) {
		return "(connected)"
	}
	return "(not connected)"
}

func votes(m *blixardv1.Member) bool {
	return m.GetRole() == blixardv1.MemberRole_voter || m.GetRole() == blixardv1.MemberRole_witness
}

// placed gives a VM and its allocation, wherever it is.
func placed(view *state.View, name string) (*blixardv1.VM, *blixardv1.Allocation, error) {
	vm := view.VM(name)
	if vm == nil {
		return nil, nil, notFound(name)
	}
	a := view.Allocation(vm.GetStatus().GetAllocationId())
	if a == nil {
		return vm, nil, problem.New(problem.Unavailable, "vm.not_placed", "VM %q is on no node: %s", vm.GetName(), waitingText(vm)).
			WithHint("see `blixard vm status %s`", vm.GetName())
	}
	return vm, a, nil
}

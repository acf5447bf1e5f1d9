package server_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// An agent watches for months, and must not hold the state as it was when it began: all that
// was replaced since would stay in memory, for each agent another lot.
func TestWatchesHoldNoOldState(t *testing.T) {
	w := newWorld(t)
	w.register()
	allocations, err := w.client.Agents().WatchAllocations(t.Context(), &blixardv1.WatchAllocationsRequest{NodeId: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	vms, err := w.client.VMs().WatchVMs(t.Context(), &blixardv1.WatchVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	events, err := w.client.Events().WatchEvents(t.Context(), &blixardv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	begun := weak.Make(w.replica.View())
	for synced := false; !synced; {
		msg, err := allocations.Recv()
		if err != nil {
			t.Fatal(err)
		}
		synced = msg.GetSynced()
	}
	for synced := false; !synced; {
		msg, err := vms.Recv()
		if err != nil {
			t.Fatal(err)
		}
		synced = msg.GetSynced()
	}
	for synced := false; !synced; {
		msg, err := events.Recv()
		if err != nil {
			t.Fatal(err)
		}
		synced = msg.GetSynced()
	}
	until := time.Now().Add(30 * time.Second)
	for n := 0; begun.Value() != nil; n++ {
		if time.Now().After(until) {
			t.Fatalf("the view of index %d is held after %d changes", begun.Value().Index(), n)
		}
		w.create(fmt.Sprintf("vm-%d", n)) // the present view has an owner: the state
		runtime.GC()
	}
}

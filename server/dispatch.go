package server

import (
	"context"
	"sync"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// nodeQueueMax of changes wait for one node's agent: more than it has VMs, so one that
// is further behind lists them again.
const nodeQueueMax = 16384

// dispatcher gives the changes of allocations to the node that they are on, as they are
// applied: a thousand agents that each read all changes would cost a thousand times as
// much, and one that read them for all would fall behind when there is most to do, and
// make all agents list again. It is safe for concurrent use.
type dispatcher struct {
	mu    sync.Mutex
	nodes map[string]map[*nodeWatch]bool
}

// nodeWatch is what one agent has still to be told. Its queue belongs to the dispatcher.
type nodeWatch struct {
	nodeID string
	queue  []state.Change
	// lost: changes were dropped.
	lost bool
	wake chan struct{}
}

func newDispatcher() *dispatcher { return &dispatcher{nodes: map[string]map[*nodeWatch]bool{}} }

// watch begins to keep the changes of a node's allocations: all those after an index
// that the state had before. The caller ends it with leave.
func (d *dispatcher) watch(nodeID string) *nodeWatch {
	w := &nodeWatch{nodeID: nodeID, wake: make(chan struct{}, 1)}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes[nodeID] == nil {
		d.nodes[nodeID] = map[*nodeWatch]bool{}
	}
	d.nodes[nodeID][w] = true
	return w
}

func (d *dispatcher) leave(w *nodeWatch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if delete(d.nodes[w.nodeID], w); len(d.nodes[w.nodeID]) == 0 {
		delete(d.nodes, w.nodeID)
	}
}

// next waits for changes and gives them in the order of the log. It fails with the
// Conflict "watch.compacted" when some were dropped.
func (d *dispatcher) next(ctx context.Context, w *nodeWatch) ([]state.Change, error) {
	for {
		d.mu.Lock()
		list, lost := w.queue, w.lost
		w.queue = nil
		d.mu.Unlock()
		if lost {
			return nil, problem.New(problem.Conflict, "watch.compacted", "changes of node %s were dropped before they were read", w.nodeID).
				WithHint("list the allocations again")
		}
		if len(list) > 0 {
			return list, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, problem.From(ctx.Err())
		}
	}
}

// run gives changes out until ctx ends or the replica stops.
func (d *dispatcher) run(ctx context.Context, r *replica.Replica) {
	end := r.Observe(d.give)
	defer end()
	d.loseAll() // those who came before
	select {
	case <-ctx.Done():
	case <-r.Done():
		d.loseAll()
	}
}

// give is the replica's observer.
func (d *dispatcher) give(changes []state.Change) {
	if changes == nil {
		d.loseAll()
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range changes {
		if c.Kind != state.KindAllocation {
			continue
		}
		for w := range d.nodes[c.Allocation.GetNodeId()] {
			if w.queue = append(w.queue, c); len(w.queue) > nodeQueueMax {
				w.lost, w.queue = true, nil
			}
			w.stir()
		}
	}
}

// loseAll makes every agent list again.
func (d *dispatcher) loseAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, watches := range d.nodes {
		for w := range watches {
			w.lost, w.queue = true, nil
			w.stir()
		}
	}
}

func (w *nodeWatch) stir() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

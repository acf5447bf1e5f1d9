package leader

import (
	"cmp"
	"maps"
	"slices"

	"github.com/google/btree"
)

// branching of the tree of a queue.
const branching = 32

// queue is the VMs that are looked at next, in the order in which they get a place: those
// of higher priority first, and of equal ones those that wait longer.
type queue struct {
	turns shrinking[turn]
	order *btree.BTreeG[turn]
}

// turn of a VM in a queue.
type turn struct {
	rank
	id string
}

func newQueue() queue {
	return queue{order: btree.NewG(branching, func(a, b turn) bool {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.since, b.since), cmp.Compare(a.id, b.id)) < 0
	})}
}

// put queues a VM, or gives one that is queued another rank.
func (q *queue) put(id string, r rank) {
	if t, ok := q.turns.of[id]; ok && t.rank == r {
		return
	}
	q.remove(id)
	q.turns.put(id, turn{r, id})
	q.order.ReplaceOrInsert(turn{r, id})
}

func (q *queue) remove(id string) {
	if t, ok := q.turns.of[id]; ok {
		q.order.Delete(t)
		q.turns.remove(id)
	}
}

// each gives the queued VMs in their order to f, until it says stop. f may change the
// queue, and is not given what it puts.
func (q *queue) each(f func(id string) bool) {
	q.order.Clone().Ascend(func(t turn) bool { return f(t.id) })
}

func (q *queue) clear() {
	q.turns.clear()
	q.order.Clear(false)
}

// ids of what is queued, sorted.
func (q *queue) ids() []string { return slices.Sorted(maps.Keys(q.turns.of)) }

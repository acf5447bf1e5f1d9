package state

import (
	"slices"
	"sort"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
)

// View is the state as one log index left it. It never changes, costs nothing
// to keep briefly, and is safe for concurrent use. All objects it gives are
// shared and read-only.
type View struct {
	index   uint64
	limits  Limits
	db      *database
	events  []*blixardv1.Event
	changes []Change
	// floor: the changes of this index and all before it are no longer complete.
	floor   uint64
	answers []*answer
	nodes   func() []*blixardv1.Node
	level   func() uint32
}

// Index of the newest entry that is in the view.
func (v *View) Index() uint64 { return v.index }

// Limits the state was made with.
func (v *View) Limits() Limits { return v.limits }

// VM finds a VM by its id or name; nil when there is none.
func (v *View) VM(ref string) *blixardv1.VM {
	return named[blixardv1.VM](v.db, tableVM, ref)
}

// VMs gives at most limit VMs whose name comes after the given one, in the order
// of names; a limit of 0 or less means all. The name of the last one continues
// the list.
func (v *View) VMs(after string, limit int) []*blixardv1.VM {
	return listAfter[blixardv1.VM](v.db, tableVM, indexName, after, limit)
}

// Allocation finds an allocation by its id; nil when there is none.
func (v *View) Allocation(id string) *blixardv1.Allocation {
	return first[blixardv1.Allocation](v.db, tableAllocation, indexID, id)
}

// Allocations gives all allocations, ordered by id.
func (v *View) Allocations() []*blixardv1.Allocation {
	return every[blixardv1.Allocation](v.db, tableAllocation, indexID)
}

// AllocationsOfVM gives the allocations of a VM, by its id, ordered by their id.
func (v *View) AllocationsOfVM(vmID string) []*blixardv1.Allocation {
	return all[blixardv1.Allocation](v.db, tableAllocation, indexVM, vmID)
}

// AllocationsOfNode gives the allocations on a node, by its id, ordered by their
// id.
func (v *View) AllocationsOfNode(nodeID string) []*blixardv1.Allocation {
	return all[blixardv1.Allocation](v.db, tableAllocation, indexNode, nodeID)
}

// Node finds a node by its id or name; nil when there is none.
func (v *View) Node(ref string) *blixardv1.Node {
	return byRef[blixardv1.Node](v.db, tableNode, ref)
}

// Nodes gives all nodes that have not left, ordered by name. The list is shared too: a
// leader of many nodes looks at all of them several times a second.
func (v *View) Nodes() []*blixardv1.Node { return v.nodes() }

// Cluster gives what all members agree on; nil before the cluster is formed.
func (v *View) Cluster() *blixardv1.Cluster {
	all := every[blixardv1.Cluster](v.db, tableCluster, indexID)
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// Member finds a member by the id of its node, or, if it was not removed, by its
// name; nil when there is none.
func (v *View) Member(ref string) *blixardv1.Member {
	return byRef[blixardv1.Member](v.db, tableMember, ref)
}

// Members gives all members, removed ones too, ordered by the ids of their nodes.
func (v *View) Members() []*blixardv1.Member {
	return every[blixardv1.Member](v.db, tableMember, indexID)
}

// MemberOfReplica finds the member whose replica has that Raft id; nil when there
// is none.
func (v *View) MemberOfReplica(raftID uint64) *blixardv1.Member {
	for _, m := range v.Members() {
		if m.GetRaftId() == raftID {
			return m
		}
	}
	return nil
}

// Tokens gives all tokens, ordered by id.
func (v *View) Tokens() []*blixardv1.Token {
	return every[blixardv1.Token](v.db, tableToken, indexID)
}

// Events gives the newest kept events that fit filter, oldest first; nil fits all. limit
// bounds them; 0 or less means all kept.
func (v *View) Events(filter *blixardv1.EventFilter, limit int) []*blixardv1.Event {
	var found []*blixardv1.Event
	for i := len(v.events) - 1; i >= 0; i-- {
		if !EventFits(v.events[i], filter) {
			continue
		}
		found = append(found, v.events[i])
		if len(found) == limit {
			break
		}
	}
	slices.Reverse(found)
	return found
}

// EventFits reports whether an event is one of those that a filter means.
func EventFits(e *blixardv1.Event, filter *blixardv1.EventFilter) bool {
	if o := filter.GetObject(); o != "" && e.GetObjectId() != o && e.GetObjectName() != o {
		return false
	}
	if n := filter.GetNode(); n != "" && e.GetNode() != n {
		return false
	}
	if a := filter.GetActor(); a != "" && e.GetActor() != a && !strings.HasPrefix(e.GetActor(), a+":") {
		return false
	}
	if p := filter.GetProject(); p != "" && projectOfEvent(e) != p {
		return false
	}
	if s := filter.GetSince(); s != nil && e.GetTime().AsTime().Before(s.AsTime()) {
		return false
	}
	return len(filter.GetKinds()) == 0 || slices.ContainsFunc(filter.GetKinds(), func(k string) bool {
		return e.GetKind() == k || strings.HasPrefix(e.GetKind(), k+".")
	})
}

// projectOfEvent gives the project of what an event is about; empty when it is of none.
func projectOfEvent(e *blixardv1.Event) string {
	switch e.GetObjectKind() {
	case "vm", "allocation", "task", "group", "schedule":
		return objectname.Project(e.GetObjectName())
	case "volume":
		return projectNamed(e.GetProject())
	case "quota":
		return e.GetObjectName()
	}
	return ""
}

// Task finds a task by its id or name; nil when there is none.
func (v *View) Task(ref string) *blixardv1.Task {
	return taskNamed(v.db, ref)
}

// Array gives the id of the array of tasks with that name or id, "" when there is none.
func (v *View) Array(ref string) string { return arrayNamed(v.db, ref) }

// TasksNamed gives the task, or the tasks of the array, with that name or id, ordered by
// their ids.
func (v *View) TasksNamed(ref string) []*blixardv1.Task { return tasksNamed(v.db, ref) }

// Tasks gives at most limit tasks whose name comes after the given one, as VMs does.
func (v *View) Tasks(after string, limit int) []*blixardv1.Task {
	return listAfter[blixardv1.Task](v.db, tableTask, indexName, after, limit)
}

// ChangesAfter gives every change after index, in the order of the log. When
// changes after index are no longer kept, or index is of another history, it
// gives a Conflict "watch.compacted": list again and go on from the list's index.
func (v *View) ChangesAfter(index uint64) ([]Change, error) {
	if index < v.floor || index > v.index {
		return nil, problem.New(problem.Conflict, "watch.compacted",
			"changes after index %d are not kept: they are known from %d to %d", index, v.floor, v.index).
			WithHint("list the objects again and watch from the index of the list")
	}
	i := sort.Search(len(v.changes), func(i int) bool { return v.changes[i].Index > index })
	return v.changes[i:], nil
}

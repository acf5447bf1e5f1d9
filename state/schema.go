package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// The tables and their indexes. The words appear in memory only.
const (
	tableVM         = "vm"
	tableAllocation = "allocation"
	tableNode       = "node"
	tableCluster    = "cluster"
	tableMember     = "member"
	tableToken      = "token"
	tableImage      = "image"
	tableVolume     = "volume"
	tableNetwork    = "network"
	tableSecret     = "secret"
	tableTask       = "task"
	tableQuota      = "quota"
	tableSettings   = "settings"
	tableSchedule   = "schedule"
	tableGroup      = "group"
	// Claims and usages are derived from the VMs and no part of a snapshot.
	tableClaim = "claim"
	tableUsage = "usage"

	indexID   = "id"
	indexName = "name"
	indexVM   = "vm"
	indexNode = "node"
	// indexArray has the tasks of an array, and indexArrayName those by its name.
	indexArray     = "array"
	indexArrayName = "array_name"
	// indexSchedule has the tasks that are runs of a schedule.
	indexSchedule = "schedule"

	// settingsID is the key of the settings, of which there is one object at most.
	settingsID = "settings"
	// indexGroup has the VMs of a group, by its id.
	indexGroup = "group"

	prefixSuffix = "_prefix"
)

// stringIndex indexes an object by one of its strings, without reflection. Keys
// end in a zero byte, so that no key is the beginning of another.
type stringIndex[T any] func(T) string

var _ memdb.SingleIndexer = stringIndex[*blixardv1.VM](nil)

func key(s string) []byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return b
}

func (f stringIndex[T]) FromObject(obj any) (bool, []byte, error) {
	o, ok := obj.(T)
	if !ok {
		return false, nil, fmt.Errorf("state: index over %T given %T", o, obj)
	}
	s := f(o)
	return s != "", key(s), nil
}

func (f stringIndex[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("state: %d index arguments, want 1", len(args))
	}
	s, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("state: index argument %T, want string", args[0])
	}
	return key(s), nil
}

func table(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
	for _, i := range indexes {
		t.Indexes[i.Name] = i
	}
	return t
}

func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableVM: table(tableVM,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.VM]((*blixardv1.VM).GetId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, Indexer: stringIndex[*blixardv1.VM]((*blixardv1.VM).GetName)},
			&memdb.IndexSchema{Name: indexGroup, AllowMissing: true, Indexer: stringIndex[*blixardv1.VM](GroupOf)},
		),
		tableAllocation: table(tableAllocation,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Allocation]((*blixardv1.Allocation).GetId)},
			&memdb.IndexSchema{Name: indexVM, Indexer: stringIndex[*blixardv1.Allocation]((*blixardv1.Allocation).GetVmId)},
			&memdb.IndexSchema{Name: indexNode, Indexer: stringIndex[*blixardv1.Allocation]((*blixardv1.Allocation).GetNodeId)},
		),
		tableNode: table(tableNode,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Node]((*blixardv1.Node).GetId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, AllowMissing: true, Indexer: stringIndex[*blixardv1.Node](nameOfNode)},
		),
		// The cluster is one object, and none before it is formed.
		tableCluster: table(tableCluster,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Cluster]((*blixardv1.Cluster).GetId)},
		),
		tableMember: table(tableMember,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Member]((*blixardv1.Member).GetNodeId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, AllowMissing: true, Indexer: stringIndex[*blixardv1.Member](nameOfMember)},
		),
		tableToken: table(tableToken,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Token]((*blixardv1.Token).GetId)},
		),
		tableImage: table(tableImage,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Image]((*blixardv1.Image).GetName)},
		),
		tableVolume: table(tableVolume,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Volume]((*blixardv1.Volume).GetId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, Indexer: stringIndex[*blixardv1.Volume]((*blixardv1.Volume).GetName)},
		),
		tableNetwork: table(tableNetwork,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Network]((*blixardv1.Network).GetId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, Indexer: stringIndex[*blixardv1.Network]((*blixardv1.Network).GetName)},
		),
		tableSecret: table(tableSecret,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Secret]((*blixardv1.Secret).GetName)},
		),
		tableTask: table(tableTask,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Task]((*blixardv1.Task).GetId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, Indexer: stringIndex[*blixardv1.Task]((*blixardv1.Task).GetName)},
			&memdb.IndexSchema{Name: indexArray, AllowMissing: true, Indexer: stringIndex[*blixardv1.Task]((*blixardv1.Task).GetArray)},
			&memdb.IndexSchema{Name: indexArrayName, AllowMissing: true, Indexer: stringIndex[*blixardv1.Task]((*blixardv1.Task).GetArrayName)},
			&memdb.IndexSchema{Name: indexSchedule, AllowMissing: true, Indexer: stringIndex[*blixardv1.Task]((*blixardv1.Task).GetSchedule)},
		),
		tableQuota: table(tableQuota,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Quota]((*blixardv1.Quota).GetProject)},
		),
		tableSettings: table(tableSettings,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Settings](func(*blixardv1.Settings) string { return settingsID })},
		),
		tableSchedule: table(tableSchedule,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Schedule]((*blixardv1.Schedule).GetId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, Indexer: stringIndex[*blixardv1.Schedule]((*blixardv1.Schedule).GetName)},
		),
		tableGroup: table(tableGroup,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.Group]((*blixardv1.Group).GetId)},
			&memdb.IndexSchema{Name: indexName, Unique: true, Indexer: stringIndex[*blixardv1.Group]((*blixardv1.Group).GetName)},
		),
		tableUsage: table(tableUsage,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*blixardv1.ProjectUsage]((*blixardv1.ProjectUsage).GetProject)},
		),
		tableClaim: table(tableClaim,
			&memdb.IndexSchema{Name: indexID, Unique: true, Indexer: stringIndex[*claim]((*claim).id)},
		),
	}}
}

// nameOfNode and nameOfMember leave out those that left: others may have their
// names.
func nameOfNode(n *blixardv1.Node) string {
	if n.GetState() == blixardv1.NodeState_left {
		return ""
	}
	return n.GetName()
}

func nameOfMember(m *blixardv1.Member) string {
	if m.GetRemoved() {
		return ""
	}
	return m.GetName()
}

// first gives the object of a unique index, or nil. It panics on an unknown
// table, which only a mistake in this package can name.
func first[T any](txn *memdb.Txn, table, index, arg string) *T {
	raw, err := txn.First(table, index, arg)
	if err != nil {
		panic(err)
	}
	if raw == nil {
		return nil
	}
	return raw.(*T)
}

// arrayNamed gives the id of the array with that name or id, "" when there is none.
func arrayNamed(txn *memdb.Txn, ref string) string {
	for _, index := range []string{indexArray, indexArrayName} {
		if t := first[blixardv1.Task](txn, tableTask, index, ref); t != nil {
			return t.GetArray()
		}
	}
	return ""
}

// taskNamed finds a task by its id or name.
func taskNamed(txn *memdb.Txn, ref string) *blixardv1.Task {
	if t := first[blixardv1.Task](txn, tableTask, indexID, ref); t != nil {
		return t
	}
	return first[blixardv1.Task](txn, tableTask, indexName, ref)
}

// groupNamed finds a group by its id or name.
func groupNamed(txn *memdb.Txn, ref string) *blixardv1.Group {
	if g := first[blixardv1.Group](txn, tableGroup, indexID, ref); g != nil {
		return g
	}
	return first[blixardv1.Group](txn, tableGroup, indexName, ref)
}

// tasksNamed gives the task, or the tasks of the array, with that name or id.
func tasksNamed(txn *memdb.Txn, ref string) []*blixardv1.Task {
	if t := taskNamed(txn, ref); t != nil {
		return []*blixardv1.Task{t}
	}
	if array := arrayNamed(txn, ref); array != "" {
		return all[blixardv1.Task](txn, tableTask, indexArray, array)
	}
	return nil
}

// each gives every object of a table to f, ordered by id.
func each[T any](txn *memdb.Txn, table string, f func(*T)) {
	it, err := txn.Get(table, indexID)
	if err != nil {
		panic(err)
	}
	for raw := it.Next(); raw != nil; raw = it.Next() {
		f(raw.(*T))
	}
}

// all gives the objects with that value of an index, ordered by id.
func all[T any](txn *memdb.Txn, table, index string, args ...any) []*T {
	it, err := txn.Get(table, index, args...)
	if err != nil {
		panic(err)
	}
	var objects []*T
	for raw := it.Next(); raw != nil; raw = it.Next() {
		objects = append(objects, raw.(*T))
	}
	return objects
}

func insert(txn *memdb.Txn, table string, obj any) {
	if err := txn.Insert(table, obj); err != nil {
		panic(err)
	}
}

func remove(txn *memdb.Txn, table string, obj any) {
	if err := txn.Delete(table, obj); err != nil {
		panic(err)
	}
}

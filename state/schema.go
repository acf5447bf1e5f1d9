package state

import (
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
)

// newDatabase gives one without objects.
func newDatabase() *database {
	return &database{tables: map[string]storage{
		tableVM: newTable((*blixardv1.VM).GetId,
			index[blixardv1.VM]{indexName, (*blixardv1.VM).GetName},
			index[blixardv1.VM]{indexGroup, GroupOf},
		),
		tableAllocation: newTable((*blixardv1.Allocation).GetId,
			index[blixardv1.Allocation]{indexVM, (*blixardv1.Allocation).GetVmId},
			index[blixardv1.Allocation]{indexNode, (*blixardv1.Allocation).GetNodeId},
		),
		tableNode: newTable((*blixardv1.Node).GetId,
			index[blixardv1.Node]{indexName, nameOfNode},
		),
		// The cluster is one object, and none before it is formed.
		tableCluster: newTable((*blixardv1.Cluster).GetId),
		tableMember: newTable((*blixardv1.Member).GetNodeId,
			index[blixardv1.Member]{indexName, nameOfMember},
		),
		tableToken: newTable((*blixardv1.Token).GetId),
		tableImage: newTable((*blixardv1.Image).GetName),
		tableVolume: newTable((*blixardv1.Volume).GetId,
			index[blixardv1.Volume]{indexName, (*blixardv1.Volume).GetName},
		),
		tableNetwork: newTable((*blixardv1.Network).GetId,
			index[blixardv1.Network]{indexName, (*blixardv1.Network).GetName},
		),
		tableSecret: newTable((*blixardv1.Secret).GetName),
		tableTask: newTable((*blixardv1.Task).GetId,
			index[blixardv1.Task]{indexName, (*blixardv1.Task).GetName},
			index[blixardv1.Task]{indexArray, (*blixardv1.Task).GetArray},
			index[blixardv1.Task]{indexArrayName, (*blixardv1.Task).GetArrayName},
			index[blixardv1.Task]{indexSchedule, (*blixardv1.Task).GetSchedule},
		),
		tableQuota:    newTable((*blixardv1.Quota).GetProject),
		tableSettings: newTable(func(*blixardv1.Settings) string { return settingsID }),
		tableSchedule: newTable((*blixardv1.Schedule).GetId,
			index[blixardv1.Schedule]{indexName, (*blixardv1.Schedule).GetName},
		),
		tableGroup: newTable((*blixardv1.Group).GetId,
			index[blixardv1.Group]{indexName, (*blixardv1.Group).GetName},
		),
		tableUsage: newTable((*blixardv1.ProjectUsage).GetProject),
		tableClaim: newTable((*claim).id),
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

// arrayNamed gives the id of the array with that name or id, "" when there is none.
func arrayNamed(db *database, ref string) string {
	for _, index := range []string{indexArray, indexArrayName} {
		if t := first[blixardv1.Task](db, tableTask, index, ref); t != nil {
			return t.GetArray()
		}
	}
	if own, ok := otherName(ref); ok {
		if t := first[blixardv1.Task](db, tableTask, indexArrayName, own); t != nil && isOf(db, t, ref) {
			return t.GetArray()
		}
	}
	return ""
}

// taskNamed finds a task by its id or name.
func taskNamed(db *database, ref string) *blixardv1.Task {
	return named[blixardv1.Task](db, tableTask, ref)
}

// groupNamed finds a group by its id or name.
func groupNamed(db *database, ref string) *blixardv1.Group {
	return named[blixardv1.Group](db, tableGroup, ref)
}

// tasksNamed gives the task, or the tasks of the array, with that name or id.
func tasksNamed(db *database, ref string) []*blixardv1.Task {
	if t := taskNamed(db, ref); t != nil {
		return []*blixardv1.Task{t}
	}
	if array := arrayNamed(db, ref); array != "" {
		return all[blixardv1.Task](db, tableTask, indexArray, array)
	}
	return nil
}

package state

import (
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
)

// FeatureLevel is the newest that this binary knows. It grows by one with every
// command, or field of a command, that older binaries would apply differently.
//
//	2  recover a cluster, rotate and drop authorities
//	3  images, volumes, networks and secrets, and VMs that name them; update and rename VMs
//	4  give up placements of nodes that are down
//	5  labels of nodes, cordoned nodes, and VMs that say where they may run
//	6  move VMs
//	7  try VMs on other nodes
//	8  dampen nodes
//	9  reports name the start of their agent
//	10 tasks
//	11 projects and quotas
//	12 taints of nodes, priorities of VMs, and preemption
//	13 groups
//	14 schedules, what comes out of tasks, and quotas that bound tasks
//	15 drains in steps, settings of the cluster, events that age, and spreads by shares
//	16 names of projects
//	17 plans that are checked for what nodes take of tasks, and tasks that begin again with
//	   their host
//	18 nodes that are busy
//	19 volumes that count to the disk of their node
//	20 volumes that count to the quota of their project
const FeatureLevel = 20

// levels of the changes of a command that came after level 1, by the name of
// their field.
var levels = map[protoreflect.Name]uint32{
	"recover_cluster": 2, "rotate_authority": 2, "drop_authorities": 2,
	"update_vm": 3, "rename_vm": 3, "put_image": 3, "drop_image": 3,
	"create_volume": 3, "resize_volume": 3, "delete_volume": 3, "release_volume": 3, "move_volume": 3, "snapshot_volume": 3,
	"create_network": 3, "update_network": 3, "delete_network": 3, "set_secret": 3, "delete_secret": 3,
	"lose": 4, "update_node": 5, "move_vm": 6, "reschedule": 7,
	"submit_task": 10, "step_tasks": 10, "change_tasks": 10,
	"set_quota": 11, "remove_quota": 11,
	"preempt":      12,
	"create_group": 13, "update_group": 13, "change_group": 13, "step_groups": 13, "delete_group": 13,
	"create_schedule": 14, "update_schedule": 14, "change_schedule": 14, "step_schedules": 14,
	"advance_drain": 15, "set_settings": 15, "prune_events": 15,
	"set_busy": 18,
}

// levelOfSpec is that of the newest field that a spec uses.
func levelOfSpec(spec *blixardv1.VMSpec) uint32 {
	if len(spec.GetScheduling().GetSpreads()) > 0 {
		return 15
	}
	if s := spec.GetScheduling(); s != nil && s.Priority != nil || len(s.GetTolerations()) > 0 {
		return 12
	}
	if spec != nil && spec.Reschedules != nil {
		return 7
	}
	if spec.GetScheduling() != nil {
		return 5
	}
	if len(spec.GetNetworks()) > 0 || len(spec.GetPorts()) > 0 || len(spec.GetVolumes()) > 0 || len(spec.GetSecrets()) > 0 {
		return 3
	}
	return 1
}

// Level that every member must know before cmd may be proposed.
func Level(cmd *blixardv1.Command) uint32 {
	m := cmd.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("change"))
	if field == nil {
		return 1
	}
	if slices.ContainsFunc(namesIn(cmd), objectname.Qualified) {
		return levelOfNames
	}
	if u := cmd.GetUpdateNode(); len(u.GetSetTaints())+len(u.GetDropTaints()) > 0 {
		return 12
	}
	if cmd.GetDrainNode().GetGradual() {
		return 15
	}
	if cmd.GetUpdateNode() != nil && cmd.GetUpdateNode().Damped != nil {
		return 8
	}
	if cmd.GetReport().GetIncarnation() != 0 {
		return 9
	}
	if cmd.GetPlace().GetBoundsTasks() {
		return 17
	}
	if len(cmd.GetSubmitTask().GetSpec().GetArtifacts()) > 0 {
		return 14
	}
	if cmd.GetSetQuota().GetLimits().GetTasks() != 0 {
		return 14
	}
	if cmd.GetCreateVolume().GetProject() != "" {
		return levelOfVolumeQuota
	}
	if cmd.GetCreateVm().GetProject() != "" {
		return 11
	}
	return max(levels[field.Name()], levelOfSpec(cmd.GetSubmitTask().GetSpec().GetVm()), levelOfSpec(cmd.GetCreateVm().GetSpec()), levelOfSpec(cmd.GetUpdateVm().GetSpec()), 1)
}

// FeatureLevel is the oldest member's; without members it is this binary's.
func (v *View) FeatureLevel() uint32 { return v.level() }

func featureLevel(db *database) uint32 {
	level := uint32(FeatureLevel)
	for _, m := range every[blixardv1.Member](db, tableMember, indexID) {
		if !m.GetRemoved() {
			level = min(level, m.GetFeatureLevel())
		}
	}
	return level
}

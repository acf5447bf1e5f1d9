package state

import (
	"fmt"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of groups.
const (
	// groupsMax of the cluster, and replicasMax of one group: a leader looks at all
	// replicas of a group at once.
	groupsMax   = 10_000
	replicasMax = 1000
	// versionsMax that a group remembers, fewer when they are large: see trimVersions.
	versionsMax = 10
	// groupBytesMax of a group with its versions, but for the newest and the one to go
	// back to: a spec comes in a command, which has at most 1 MiB, and a record of a
	// snapshot has at most 4 MiB.
	groupBytesMax = 3 << 20
)

// Times of groups that name none.
const (
	minHealthyDefault       = 5 * time.Second
	progressDeadlineDefault = 10 * time.Minute
)

// Surge is how many replicas a group may have beyond the number wished for.
func Surge(spec *blixardv1.GroupSpec) int {
	if u := spec.GetUpdate(); u != nil && u.MaxSurge != nil {
		return int(u.GetMaxSurge())
	}
	if spec.GetStable() {
		return 0
	}
	return 1
}

// Unavailable is how many of the number wished for a rollout may leave out.
func Unavailable(spec *blixardv1.GroupSpec) int {
	if u := spec.GetUpdate(); u != nil && u.MaxUnavailable != nil {
		return int(u.GetMaxUnavailable())
	}
	if Surge(spec) == 0 {
		return 1
	}
	return 0
}

// MinHealthy is how long a replica of a group is ready before it counts as available.
func MinHealthy(spec *blixardv1.GroupSpec) time.Duration {
	if d := spec.GetUpdate().GetMinHealthy(); d != nil {
		return d.AsDuration()
	}
	return minHealthyDefault
}

// ProgressDeadline is how long a rollout may go without one more available replica.
func ProgressDeadline(spec *blixardv1.GroupSpec) time.Duration {
	if d := spec.GetUpdate().GetProgressDeadline(); d != nil {
		return d.AsDuration()
	}
	return progressDeadlineDefault
}

// CheckGroup says what of a group's spec contradicts itself, and names the field of the spec;
// nil when nothing does.
func CheckGroup(spec *blixardv1.GroupSpec) *problem.Error {
	vm := spec.GetVm()
	switch {
	case spec.GetReplicas() > replicasMax || Surge(spec) > replicasMax || Unavailable(spec) > replicasMax:
		return problem.New(problem.Invalid, "group.too_many", "a group has at most %d replicas, and its max surge and max unavailable are at most as many", replicasMax).
			WithHint("make several groups").WithField("%s", tooMany(spec))
	case Surge(spec) == 0 && Unavailable(spec) == 0:
		return problem.New(problem.Invalid, "group.no_way", "with a max surge of 0 and a max unavailable of 0 no replica can ever be replaced").
			WithHint("allow one of them: --max-surge 1, or --max-unavailable 1").WithField("update.max_unavailable")
	case spec.GetStable() && Surge(spec) > 0:
		return problem.New(problem.Invalid, "group.stable_surge", "stable replicas are replaced in place, and a max surge of %d needs other names", Surge(spec)).
			WithHint("leave --max-surge out, or --stable").WithField("update.max_surge")
	case !spec.GetStable() && len(spec.GetVolumes()) > 0:
		return problem.New(problem.Invalid, "group.volumes_unstable", "a volume for each replica needs replicas that are stable").
			WithHint("add --stable").WithField("volumes")
	case MinHealthy(spec) >= ProgressDeadline(spec):
		return problem.New(problem.Invalid, "group.never_healthy", "a replica is available after %v, and a rollout has failed after %v without one", MinHealthy(spec), ProgressDeadline(spec)).
			WithHint("choose a longer --progress-deadline, or a shorter --min-healthy").WithField("update.progress_deadline")
	}
	for _, one := range []struct {
		field string
		set   bool
	}{
		{"remove_on_exit", vm.GetRemoveOnExit()},
		{"hold_output", vm.GetHoldOutput()},
		{"paused", vm.GetPaused()},
		{"stdin", vm.GetStdin()},
		{"desired", vm.GetDesired() == blixardv1.DesiredState_stop},
	} {
		if one.set {
			return problem.New(problem.Invalid, "group.of_a_vm", "remove_on_exit, hold_output, stdin, paused and a desired state of stop are of VMs alone, not of groups").
				WithHint("a group keeps its VMs running; scale it to 0 to have none").WithField("vm.%s", one.field)
		}
	}
	if why := checkReplicaVolumes(spec); why != nil {
		return why
	}
	what, field, hint := forOneAlone(vm)
	switch {
	case what == "":
		return nil
	case spec.GetReplicas() > 1:
		return problem.New(problem.Invalid, "group.for_one", "the template has %s, which one VM alone can have, and the group has %d replicas", what, spec.GetReplicas()).
			WithHint("%s", hint).WithField("vm.%s", field)
	case Surge(spec) > 0:
		return problem.New(problem.Invalid, "group.for_one_surge", "the template has %s, which one VM alone can have, and with a max surge of %d two need it during an update", what, Surge(spec)).
			WithHint("add --max-surge 0, so that the old replica goes first; or %s", hint).WithField("vm.%s", field)
	}
	return nil
}

// tooMany names the field of a spec whose number is above replicasMax.
func tooMany(spec *blixardv1.GroupSpec) string {
	switch {
	case spec.GetReplicas() > replicasMax:
		return "replicas"
	case Surge(spec) > replicasMax:
		return "update.max_surge"
	}
	return "update.max_unavailable"
}

// checkReplicaVolumes checks that each has a name and a path of its own.
func checkReplicaVolumes(spec *blixardv1.GroupSpec) *problem.Error {
	names, paths := map[string]bool{}, map[string]bool{}
	for _, v := range spec.GetVm().GetVolumes() {
		paths[v.GetPath()] = true
	}
	for i, v := range spec.GetVolumes() {
		if names[v.GetName()] || paths[v.GetPath()] {
			return problem.New(problem.Invalid, "volume.twice", "volume %q or path %s is named twice", v.GetName(), v.GetPath()).
				WithHint("name each volume and each path once").WithField("volumes[%d]", i)
		}
		names[v.GetName()], paths[v.GetPath()] = true, true
	}
	return nil
}

// forOneAlone names what of a template no two VMs can have at once, its field, and the way
// out.
func forOneAlone(vm *blixardv1.VMSpec) (what, field, hint string) {
	for i, v := range vm.GetVolumes() {
		if !v.GetReadOnly() {
			return "the volume " + v.GetVolume(), fmt.Sprintf("volumes[%d]", i), "give each replica a volume of its own with --stable --replica-volume NAME:PATH:SIZE, or attach this one read-only: -v " +
				v.GetVolume() + ":" + v.GetPath() + ":ro"
		}
	}
	for i, p := range vm.GetPorts() {
		return "the published port " + PortKey(p), fmt.Sprintf("ports[%d]", i), "leave -p out: in a network VMs reach each other's ports without it; or make one VM that publishes the port and passes on"
	}
	for i, n := range vm.GetNetworks() {
		if n.GetIpv4() != "" {
			return "the address " + n.GetIpv4(), fmt.Sprintf("networks[%d].ipv4", i), "leave the address out: each replica gets one of its own"
		}
	}
	return "", "", ""
}

package state

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
)

// levelOfNames is the first that takes names of projects, such as shop/web. Older members
// find no objects by them.
const levelOfNames = 16

// namesIn gives the names of VMs, groups, tasks and schedules that a person's command has.
func namesIn(cmd *blixardv1.Command) []string {
	switch c := cmd.GetChange().(type) {
	case *blixardv1.Command_CreateVm:
		return []string{c.CreateVm.GetName()}
	case *blixardv1.Command_SetVmDesired:
		return []string{c.SetVmDesired.GetName()}
	case *blixardv1.Command_DeleteVm:
		return []string{c.DeleteVm.GetName()}
	case *blixardv1.Command_LabelVm:
		return []string{c.LabelVm.GetName()}
	case *blixardv1.Command_UpdateVm:
		return []string{c.UpdateVm.GetName()}
	case *blixardv1.Command_RenameVm:
		return []string{c.RenameVm.GetName(), c.RenameVm.GetNewName()}
	case *blixardv1.Command_MoveVm:
		return []string{c.MoveVm.GetName()}
	case *blixardv1.Command_SubmitTask:
		return append([]string{c.SubmitTask.GetName()}, c.SubmitTask.GetSpec().GetAfter()...)
	case *blixardv1.Command_ChangeTasks:
		return []string{c.ChangeTasks.GetName()}
	case *blixardv1.Command_CreateGroup:
		return []string{c.CreateGroup.GetName()}
	case *blixardv1.Command_UpdateGroup:
		return []string{c.UpdateGroup.GetName()}
	case *blixardv1.Command_ChangeGroup:
		return []string{c.ChangeGroup.GetName()}
	case *blixardv1.Command_DeleteGroup:
		return []string{c.DeleteGroup.GetName()}
	case *blixardv1.Command_CreateSchedule:
		return []string{c.CreateSchedule.GetName()}
	case *blixardv1.Command_UpdateSchedule:
		return []string{c.UpdateSchedule.GetName()}
	case *blixardv1.Command_ChangeSchedule:
		return []string{c.ChangeSchedule.GetName()}
	}
	return nil
}

// checkName says why a name can't be that of a new object of a project; nil when it can.
// Names without a project are taken whatever the project: older versions stored all so.
//
// Invariant: an object whose name says a project is of that project.
func checkName(name, project string) *problem.Error {
	if !objectname.Qualified(name) {
		return nil
	}
	of, own := objectname.Split(name)
	switch {
	case of == "" || own == "" || of == DefaultProject || objectname.Qualified(own):
		return problem.New(problem.Invalid, "name.invalid", "%q is no full name of an object", name).
			WithHint("a full name is NAME in project %s, and PROJECT/NAME in others", DefaultProject)
	case of != projectNamed(project):
		return problem.New(problem.Invalid, "name.other_project", "the name %q is of project %q, not of %q", name, of, projectNamed(project)).
			WithHint("this is a fault of the proposer: report it")
	case objectname.IsID(own):
		return problem.New(problem.Invalid, "name.is_id", "the name %q looks like an id", own).
			WithHint("choose a name that does not begin with vm-, group-, task- or schedule- and 16 letters or digits").WithField("name")
	}
	return nil
}

// ofProject is what has a name and a project.
type ofProject[T any] interface {
	*T
	GetProject() string
}

// named finds an object by its id, its full name, or the name that an older version gave it:
// shop/web is web of project shop, too, and default/web is web.
func named[T any, P ofProject[T]](db *database, table, ref string) *T {
	if o := byRef[T](db, table, ref); o != nil {
		return o
	}
	own, ok := otherName(ref)
	if !ok {
		return nil
	}
	if o := first[T](db, table, indexName, own); o != nil && isOf(db, P(o), ref) {
		return o
	}
	return nil
}

// otherName gives the name alone under which the object of a name with a project may be
// stored.
func otherName(ref string) (own string, ok bool) {
	if !objectname.Qualified(ref) {
		return "", false
	}
	return objectname.Own(ref), true
}

// isOf reports whether an object that is stored under its own name alone is meant by one
// with a project, once every member looks for it there. That is asked for last: it takes a
// look at all members, and most names with a project find nothing here.
func isOf(db *database, o interface{ GetProject() string }, ref string) bool {
	project := objectname.Project(ref)
	return (project == DefaultProject || project == projectNamed(o.GetProject())) && featureLevel(db) >= levelOfNames
}

// volumeSumLength of the names of replicas' volumes: 50 bits.
const volumeSumLength = 10

// volumeNameMax is the length of the longest name of a volume.
const volumeNameMax = 63

// replicaVolume names the volume of a replica, made of a group's template. Names of volumes
// have no projects, so one of a group of a project ends with a sum over what it is of. It
// begins with a letter, which no ordinal does: so none is that of a group of project default.
func replicaVolume(template, group string, ordinal uint32) string {
	if !objectname.Qualified(group) {
		return fmt.Sprintf("%s-%s-%d", template, group, ordinal)
	}
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s %s %d", template, group, ordinal)))
	end := fmt.Sprintf("-%d-p%s", ordinal, strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:volumeSumLength])
	begin := template + "-" + objectname.Own(group)
	return strings.TrimRight(begin[:min(len(begin), volumeNameMax-len(end))], "-") + end
}

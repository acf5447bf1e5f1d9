package objectname

import (
	"regexp"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// DefaultProject is the project of what names none.
const DefaultProject = "default"

// separator of project and own name. It is in no name of either.
const separator = "/"

// Qualified reports whether a name says its project.
func Qualified(name string) bool { return strings.Contains(name, separator) }

// Split gives the project and the own name of a full name.
func Split(full string) (project, own string) {
	if project, own, found := strings.Cut(full, separator); found {
		return project, own
	}
	return DefaultProject, full
}

// Project gives the project that a full name is of: what a right could be asked of.
func Project(full string) string {
	project, _ := Split(full)
	return project
}

// Own gives the part of a full name that is unique in its project.
func Own(full string) string {
	_, own := Split(full)
	return own
}

// Full gives the full name of an object of a project; no project is the default one.
func Full(project, own string) string {
	if project == "" || project == DefaultProject {
		return own
	}
	return project + separator + own
}

// Canonical gives the full name of what may be spelled with the project default, too.
func Canonical(name string) string { return Full(Split(name)) }

// Beside gives the full name of an object in the project of another.
func Beside(full, own string) string { return Full(Project(full), own) }

// Resolve gives the full name of what is named together with a project: either of both may
// say the project, and they must not contradict each other.
func Resolve(project, name string) (string, error) {
	if !Qualified(name) {
		return Full(project, name), nil
	}
	if of := Project(name); project != "" && project != of {
		return "", problem.New(problem.Invalid, "name.other_project", "the name %q is of project %q, not of %q", name, of, project).
			WithHint("write the name %s for one of project %s, or leave the project out", Own(name), project)
	}
	return Canonical(name), nil
}

// Host gives the name of a VM below the domain of a network: web of project default, and
// web.shop of project shop. Names of hosts have no dots of their own, so no two VMs have
// the same.
func Host(full string) string {
	project, own := Split(full)
	if project == DefaultProject {
		return own
	}
	return own + "." + project
}

// idPattern is what ids of objects look like, with the numbers of what is made of them.
var idPattern = regexp.MustCompile(`^(vm|group|task|schedule)-[a-z0-9]{16}(-[0-9]+)*$`)

// IsID reports whether a text could be the id of an object, which is of no project.
func IsID(text string) bool { return idPattern.MatchString(text) }

package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard/internal/objectname"
)

// projectFlag is for commands about what projects have.
func (a *app) projectFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.project, "project", a.env("BLIXARD_PROJECT"),
		"project of what is made, and of each NAME that is not written PROJECT/NAME; lists show it alone (default: BLIXARD_PROJECT)")
	_ = cmd.RegisterFlagCompletionFunc("project", a.completeProjects)
}

// ofProjects adds that flag to all commands of a noun.
func (a *app) ofProjects(noun *cobra.Command) *cobra.Command {
	for _, cmd := range noun.Commands() {
		if cmd.HasSubCommands() {
			a.ofProjects(cmd)
			continue
		}
		a.projectFlag(cmd)
	}
	return noun
}

// full gives the full name that a word means. An id is of no project.
func (a *app) full(name string) string {
	if name == "" || objectname.Qualified(name) || objectname.IsID(name) {
		return objectname.Canonical(name)
	}
	return objectname.Full(a.project, name)
}

func (a *app) fullNames(names []string) []string {
	var full []string
	for _, name := range names {
		full = append(full, a.full(name))
	}
	return full
}

// ofProject reports whether a list that is asked for shows an object.
func (a *app) ofProject(o interface{ GetProject() string }) bool {
	return a.project == "" || projectOf(o) == a.project
}

// completed gives the word that completes a prefix to the name of an object: of one of the
// project that is named, its own name is enough.
func (a *app) completed(o interface {
	GetName() string
	GetProject() string
}, prefix string,
) (word string, fits bool) {
	word = o.GetName()
	if a.project != "" && !strings.Contains(prefix, "/") {
		if !a.ofProject(o) {
			return "", false
		}
		word = objectname.Own(word)
	}
	return word, strings.HasPrefix(word, prefix)
}

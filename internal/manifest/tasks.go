package manifest

import (
	"slices"

	"github.com/blixard/blixard/internal/problem"
)

// orderTasks puts tasks behind those of the same files that they come after, and leaves
// their order as it is otherwise. It refuses circles.
func orderTasks(tasks []*Object) error {
	named := map[string]*Object{}
	for _, o := range tasks {
		named[o.Name] = o
	}
	var ordered, path []*Object
	done := map[*Object]bool{}
	var visit func(*Object) error
	visit = func(o *Object) error {
		if done[o] {
			return nil
		}
		if slices.Contains(path, o) {
			return problem.New(problem.Invalid, "manifest.circle", "%s: task %q comes after itself, by way of %q", o.Where, o.Name, path[len(path)-1].Name).
				WithHint("take one of the names out of spec.after")
		}
		path = append(path, o)
		for _, ref := range o.Task.GetSpec().GetAfter() {
			if other := named[ref]; other != nil {
				if err := visit(other); err != nil {
					return err
				}
			}
		}
		path = path[:len(path)-1]
		done[o] = true
		ordered = append(ordered, o)
		return nil
	}
	for _, o := range tasks {
		if err := visit(o); err != nil {
			return err
		}
	}
	copy(tasks, ordered)
	return nil
}

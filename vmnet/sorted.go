package vmnet

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
)

// sortedKeys gives the keys of a map in the order of their text, so that the same
// difference is always mended in the same order.
func sortedKeys[K comparable, V any](m map[K]V) iter.Seq[K] {
	type named struct {
		text string
		key  K
	}
	all := make([]named, 0, len(m))
	for k := range m {
		all = append(all, named{fmt.Sprint(k), k})
	}
	slices.SortFunc(all, func(a, b named) int { return cmp.Compare(a.text, b.text) })
	return func(yield func(K) bool) {
		for _, n := range all {
			if !yield(n.key) {
				return
			}
		}
	}
}

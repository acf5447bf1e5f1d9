package vmnet

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
)

// sortedKeys gives the keys of a map in the order of their text, so that the same
// difference is always mended in the same order.
func sortedKeys[K comparable, V any](m map[K]V) iter.Seq[K] {
	return slices.Values(slices.SortedFunc(maps.Keys(m), func(a, b K) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	}))
}

package scheduler

import (
	"cmp"
	"slices"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Elsewhere reports whether a VM could be placed on another node than that. Nothing is
// taken.
func (f *Fleet) Elsewhere(view View, vm *blixardv1.VM, nodeID string) bool {
	q := f.ask(view, vm)
	q.not = nodeID
	return f.best(q) != nil
}

// Explain says of each node why a VM can be placed there and how well, or why not: the
// possible ones first, in the order in which they would be chosen. The reservation that
// a placed VM has counts as used. Nothing is taken.
func (f *Fleet) Explain(view View, vm *blixardv1.VM) (Decision, []*blixardv1.NodeVerdict) {
	q := f.ask(view, vm)
	verdicts := make([]*blixardv1.NodeVerdict, 0, len(f.order))
	for _, s := range f.order {
		v := &blixardv1.NodeVerdict{Node: s.node.GetName()}
		v.Reason, v.Message = judge(q, s, true)
		if v.Reason == "" {
			v.Possible = true
			v.Points = f.score(q, s, func(what string, points float64) {
				v.Parts = append(v.Parts, &blixardv1.NodePoints{What: what, Points: points})
			}).points()
		}
		verdicts = append(verdicts, v)
	}
	slices.SortStableFunc(verdicts, func(a, b *blixardv1.NodeVerdict) int {
		if a.GetPossible() != b.GetPossible() {
			if a.GetPossible() {
				return -1
			}
			return 1
		}
		if c := cmp.Compare(b.GetPoints(), a.GetPoints()); c != 0 || !a.GetPossible() {
			return c
		}
		if q.pack {
			return cmp.Compare(b.GetNode(), a.GetNode())
		}
		return cmp.Compare(a.GetNode(), b.GetNode())
	})
	if s := f.best(q); s != nil {
		return Decision{Node: s.node}, verdicts
	}
	return f.refusal(q), verdicts
}

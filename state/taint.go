package state

import (
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/problem"
)

// nodeTaintsMax of a node.
const nodeTaintsMax = 16

// retaint gives n, a fresh copy, its taints after a change. It has one of each key.
func retaint(n *blixardv1.Node, c *blixardv1.UpdateNodeCommand) *problem.Error {
	if len(c.GetSetTaints())+len(c.GetDropTaints()) == 0 {
		return nil
	}
	taints := slices.Clone(n.GetTaints())
	seen := map[string]bool{}
	once := func(key string) *problem.Error {
		if seen[key] {
			return problem.New(problem.Invalid, "taint.twice", "the taint %q of node %q is changed twice at once", key, n.GetName()).
				WithHint("a node has one taint of each key: name it once")
		}
		seen[key] = true
		return nil
	}
	for _, key := range c.GetDropTaints() {
		if why := once(key); why != nil {
			return why
		}
		at := slices.IndexFunc(taints, func(t *blixardv1.Taint) bool { return t.GetKey() == key })
		if at < 0 {
			return problem.New(problem.NotFound, "taint.not_found", "node %q has no taint %q", n.GetName(), key).
				WithHint("`blixard node list` shows the taints of nodes")
		}
		taints = slices.Delete(taints, at, at+1)
	}
	for _, t := range c.GetSetTaints() {
		if why := once(t.GetKey()); why != nil {
			return why
		}
		if !constraint.IsTaint(t.GetKey(), t.GetValue()) || t.GetEffect() == blixardv1.TaintEffect_unspecified {
			return problem.New(problem.Invalid, "taint.text", "%q is no taint", constraint.TaintText(t)).
				WithHint("a taint has a key, an effect, and perhaps a value, as labels have them")
		}
		taints = slices.DeleteFunc(taints, func(old *blixardv1.Taint) bool { return old.GetKey() == t.GetKey() })
		taints = append(taints, t)
	}
	if len(taints) > nodeTaintsMax {
		return problem.New(problem.Invalid, "taint.too_many", "node %q would have %d taints, at most %d are possible", n.GetName(), len(taints), nodeTaintsMax).
			WithHint("remove some: blixard node taint %s KEY-", n.GetName())
	}
	slices.SortFunc(taints, constraint.CompareTaints)
	n.Taints = taints
	return nil
}

func taintsText(taints []*blixardv1.Taint) string {
	if len(taints) == 0 {
		return "none"
	}
	words := make([]string, len(taints))
	for i, t := range taints {
		words[i] = constraint.TaintText(t)
	}
	return strings.Join(words, ", ")
}

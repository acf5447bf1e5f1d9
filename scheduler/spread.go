package scheduler

import (
	"cmp"
	"maps"
	"slices"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// pointsSpread of a place that is behind another one in its turn, where the shares must be
// kept: more than most wishes together, so that the shares are kept exactly.
const pointsSpread = -1000

// spread is a wish for shares with the VMs that it is about.
type spread struct {
	*blixardv1.Spread
	turns map[string]turn
}

// turn of a place for the next VM.
type turn struct {
	count int
	// full: with one more VM it would be a whole VM or more above its share.
	full bool
	// rank counts the places that are to have the next VM rather.
	rank int
}

// spread looks at the places of a spread: each value that a node has, or that is named. Its
// share is that of the wish, or an even part of what is left.
//
// Which comes next is what the quota method of dividing seats says: of the places that are
// less than a VM above their share the one with the least (count+1)/share. So after any
// number of VMs each place is less than one VM away from its share, if it had room.
func (f *Fleet) spread(wish *blixardv1.Spread, g *group, own member) spread {
	named, sum := map[string]uint64{}, uint64(0)
	for _, one := range wish.GetShares() {
		named[one.GetValue()] += uint64(one.GetPercent())
		sum += uint64(one.GetPercent())
	}
	values := maps.Clone(f.valuesOf(wish.GetOver()))
	others := uint64(0)
	for v := range values {
		if _, has := named[v]; !has {
			others++
		}
	}
	for v := range named {
		values[v] = true
	}
	// Shares are whole numbers of that whole.
	whole := 100 * others
	if others == 0 {
		whole = sum
	}
	share := func(v string) uint64 {
		percent, has := named[v]
		switch {
		case has && others == 0:
			return percent
		case has:
			return percent * others
		}
		return 100 - min(sum, 100)
	}
	var counts map[string]int
	if g != nil {
		counts = g.counts(wish.GetOver())
	}
	count := func(v string) int {
		n := counts[v]
		if own.at != nil && hasLabel(own.labels, label{wish.GetKey(), wish.GetValue()}) {
			if at, has := own.at.fact(wish.GetOver()); has && at == v {
				n-- // it does not count itself
			}
		}
		return n
	}
	total := uint64(0)
	for v := range values {
		total += uint64(count(v))
	}
	type place struct {
		value string
		turn
		share uint64
	}
	places := make([]place, 0, len(values))
	for v := range values {
		p := place{value: v, share: share(v)}
		p.count = count(v)
		p.full = uint64(p.count)*whole >= p.share*(total+1)
		places = append(places, p)
	}
	behind := func(a, b place) int {
		if a.full != b.full {
			if b.full {
				return -1
			}
			return 1
		}
		// (count+1)/share, where a share of 0 is last.
		return cmp.Compare(uint64(a.count+1)*b.share, uint64(b.count+1)*a.share)
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(behind(a, b), cmp.Compare(a.value, b.value)) })
	s := spread{Spread: wish, turns: make(map[string]turn, len(places))}
	for i, p := range places {
		if i > 0 {
			p.rank = places[i-1].rank
			if behind(places[i-1], p) != 0 {
				p.rank++
			}
		}
		places[i].rank = p.rank
		s.turns[p.value] = p.turn
	}
	return s
}

// valuesOf gives the values of a label or fact that nodes have.
func (f *Fleet) valuesOf(key string) map[string]bool {
	if known, has := f.values[key]; has {
		return known
	}
	if f.values == nil || len(f.values) >= partitionsMax {
		f.values = map[string]map[string]bool{}
	}
	values := map[string]bool{}
	for _, s := range f.order {
		if v, has := s.fact(key); has {
			values[v] = true
		}
	}
	f.values[key] = values
	return values
}

// shares looks at the spreads that must be kept.
func shares(q *question, s *slot, tell bool) (reason, message string) {
	for _, one := range q.spreads {
		if one.GetWeight() != 0 {
			continue
		}
		v, has := s.fact(one.GetOver())
		if !has {
			return say(ReasonSpread, tell, "node %s has no %s, over whose values VMs with %s=%s are spread", s.name, one.GetOver(), one.GetKey(), one.GetValue())
		}
		if t := one.turns[v]; t.full {
			return say(ReasonSpread, tell, "node %s is, by its %s %s, where %s with %s=%s are: that is its share", s.name, one.GetOver(), v, vms(t.count), one.GetKey(), one.GetValue())
		}
	}
	return "", ""
}

// points of a node by the turn of its place. A node of no place comes last of those that
// should be spread.
func (one *spread) points(s *slot) int {
	rank := len(one.turns)
	if v, has := s.fact(one.GetOver()); has {
		rank = one.turns[v].rank
	}
	if one.GetWeight() == 0 {
		return pointsSpread * rank
	}
	return -int(one.GetWeight()) * rank
}

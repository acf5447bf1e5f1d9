package leader

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// A map holds what one that is built in does, and none of the room once it is empty.
func TestShrinking(t *testing.T) {
	var m shrinking[int]
	for round := range 2 {
		for n := range roomKept + 1 {
			m.put(fmt.Sprint(n), n+round)
		}
		m.put("7", 70)
		if len(m.of) != roomKept+1 || m.of["7"] != 70 || m.of["8"] != 8+round {
			t.Fatalf("%d are held", len(m.of))
		}
		for n := range roomKept + 1 {
			if m.of == nil {
				t.Fatalf("it is empty before the %dth is out", n)
			}
			m.remove(fmt.Sprint(n))
			m.remove("none")
		}
		if m.of != nil || m.most != 0 {
			t.Errorf("room for %d is kept", m.most)
		}
	}
	m.put("a", 1)
	m.remove("a")
	if m.of == nil {
		t.Error("little room is given back")
	}
	if m.clear(); m.of != nil {
		t.Error("it is not cleared")
	}
}

// A queue gives what it holds by priority, then by how long it waits, and is not confused
// by what is put again or taken out while it is read.
func TestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q, model := newQueue(), map[string]rank{}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				id := rapid.StringMatching(`[a-h]`).Draw(t, "id")
				r := rank{rapid.Uint32Max(2).Draw(t, "priority"), rapid.Uint64Max(3).Draw(t, "since")}
				q.put(id, r)
				model[id] = r
			},
			"remove": func(t *rapid.T) {
				id := rapid.StringMatching(`[a-h]`).Draw(t, "id")
				q.remove(id)
				delete(model, id)
			},
			"take": func(t *rapid.T) {
				most := rapid.IntRange(0, 4).Draw(t, "most")
				var got []string
				q.each(func(id string) bool {
					if len(got) == most {
						return false
					}
					q.remove(id)
					got = append(got, id)
					if id == "a" {
						q.put("a", rank{0, 9}) // again, and not in this turn
					}
					return true
				})
				want := q.sorted(model)[:min(most, len(model))]
				if !slices.Equal(got, want) {
					t.Fatalf("took %v, want %v", got, want)
				}
				for _, id := range got {
					delete(model, id)
				}
				if slices.Contains(got, "a") {
					model["a"] = rank{0, 9}
				}
			},
			"": func(t *rapid.T) {
				if got, want := q.ids(), q.sorted(model); len(got) != len(want) || q.order.Len() != len(want) {
					t.Fatalf("holds %v in a tree of %d, want %v", got, q.order.Len(), want)
				}
			},
		})
	})
}

// sorted is what the order is by definition.
func (q *queue) sorted(model map[string]rank) []string {
	var ids []string
	for id := range model {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Or(cmp.Compare(model[b].priority, model[a].priority), cmp.Compare(model[a].since, model[b].since), cmp.Compare(a, b))
	})
	return ids
}

// BenchmarkDecide makes a plan while very many VMs wait: what it costs must not grow as
// they do.
func BenchmarkDecide(b *testing.B) {
	for _, waiting := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint("waiting=", waiting), func(b *testing.B) {
			c := newCluster(b)
			c.node("a", 1<<20)
			for k := range waiting {
				c.create(fmt.Sprintf("vm-%06d", k), func(s *blixardv1.VMSpec) { s.MemoryMib = 64 })
			}
			view := c.state.View()
			for b.Loop() {
				b.StopTimer()
				for id, r := range c.core.ranks.of {
					if len(c.core.open.turns.of) >= waiting {
						break
					}
					c.core.open.put(id, r)
				}
				b.StartTimer()
				c.core.Decide(view)
			}
		})
	}
}

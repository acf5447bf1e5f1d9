package state

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// A table finds what was put into it by its id and by its other keys, and what was frozen
// stays as it was, whatever is written after that.
func TestTable(t *testing.T) {
	names := rapid.StringMatching(`[a-c]?`)
	ids := rapid.StringMatching(`[1-6]`)
	rapid.Check(t, func(t *rapid.T) {
		type model map[string]string
		d := &database{tables: map[string]storage{tableNode: newTable((*blixardv1.Node).GetId, index[blixardv1.Node]{indexName, (*blixardv1.Node).GetName})}}
		now := model{}
		type moment struct {
			d    *database
			then model
		}
		var moments []moment
		holds := func(t *rapid.T, d *database, m model) {
			var all []string
			each(d, tableNode, func(n *blixardv1.Node) {
				all = append(all, n.GetId())
				if m[n.GetId()] != n.GetName() {
					t.Fatalf("%s has the name %q, want %q", n.GetId(), n.GetName(), m[n.GetId()])
				}
			})
			if want := slices.Sorted(maps.Keys(m)); !slices.Equal(all, want) || count[blixardv1.Node](d, tableNode) != len(want) {
				t.Fatalf("it holds %v, want %v", all, want)
			}
			var named []string
			for _, n := range every[blixardv1.Node](d, tableNode, indexName) {
				named = append(named, n.GetName()+n.GetId())
			}
			var want []string
			for id, name := range m {
				if name != "" {
					want = append(want, name+id)
				}
			}
			slices.Sort(want)
			if !slices.Equal(named, want) {
				t.Fatalf("by name it holds %v, want %v", named, want)
			}
			for _, name := range []string{"a", "b", "c"} {
				of := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return s[:1] != name })
				if got := nodesNamed(d, name); !slices.Equal(got, of) {
					t.Fatalf("of the name %s it has %v, want %v", name, got, of)
				}
				if got := first[blixardv1.Node](d, tableNode, indexName, name); len(of) > 0 && name+got.GetId() != of[0] || len(of) == 0 && got != nil {
					t.Fatalf("the first of the name %s is %v, want that of %v", name, got, of)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				n := &blixardv1.Node{Id: ids.Draw(t, "id"), Name: names.Draw(t, "name")}
				insert(d, tableNode, n)
				now[n.GetId()] = n.GetName()
			},
			"drop": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				remove(d, tableNode, &blixardv1.Node{Id: id})
				delete(now, id)
			},
			"freeze": func(*rapid.T) { moments = append(moments, moment{d.freeze(), maps.Clone(now)}) },
			"": func(t *rapid.T) {
				holds(t, d, now)
				for _, m := range moments {
					holds(t, m.d, m.then)
				}
			},
		})
	})
}

// nodesNamed gives the names with the ids of the nodes of that name.
func nodesNamed(d *database, name string) (found []string) {
	for _, n := range all[blixardv1.Node](d, tableNode, indexName, name) {
		found = append(found, n.GetName()+n.GetId())
	}
	return found
}

func TestWhatHasNoIDIsRefused(t *testing.T) {
	if err := load(newDatabase(), tableVM, &blixardv1.VM{Name: "x"}); err == nil {
		t.Fatal("it was taken")
	}
}

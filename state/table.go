package state

import (
	"cmp"
	"fmt"

	"github.com/google/btree"
)

// branching of the trees: pages of so many entries are copied when one is written that a
// view shares.
const branching = 16

// database is the tables of a state. Its trees share their pages with the copies that
// views hold, and a page is copied when it is first written after that. A database that
// is written belongs to one goroutine; one that freeze gave is never written, and is safe
// for concurrent use.
//
// Trees, and not the radix trees of go-memdb: those take some 400 bytes an entry, half of
// it for channels that wake watchers, and a million VMs have five million entries.
type database struct {
	tables map[string]storage
}

// storage is a table of any type.
type storage interface {
	freeze() storage
}

// index of a table: its name, and what an object's key in it is; an object whose key is
// empty is not in it.
type index[T any] struct {
	name string
	key  func(*T) string
}

// table holds objects by their ids, and the ids by the keys of its other indexes.
type table[T any] struct {
	id      func(*T) string
	objects *btree.BTreeG[row[T]]
	indexes []index[T]
	refs    []*btree.BTreeG[ref]
	// frozen is what views share, until the table is written again.
	frozen *table[T]
}

// row is an object with its id.
type row[T any] struct {
	id  string
	obj *T
}

// ref says that the object with that id has that key. Objects of one key are in the order
// of their ids.
type ref struct{ key, id string }

func lessRow[T any](a, b row[T]) bool { return a.id < b.id }

func lessRef(a, b ref) bool {
	if c := cmp.Compare(a.key, b.key); c != 0 {
		return c < 0
	}
	return a.id < b.id
}

func newTable[T any](id func(*T) string, indexes ...index[T]) *table[T] {
	t := &table[T]{id: id, objects: btree.NewG(branching, lessRow[T]), indexes: indexes}
	for range indexes {
		t.refs = append(t.refs, btree.NewG(branching, lessRef))
	}
	return t
}

// freeze gives the table as it is now.
func (t *table[T]) freeze() storage {
	if t.frozen == nil {
		c := &table[T]{id: t.id, objects: t.objects.Clone(), indexes: t.indexes, refs: make([]*btree.BTreeG[ref], len(t.refs))}
		for i, r := range t.refs {
			c.refs[i] = r.Clone()
		}
		c.frozen = c
		t.frozen = c
	}
	return t.frozen
}

// index gives the ids of a key, and nil for the index of the ids themselves. It panics on
// one that is unknown, which only a mistake in this package can name.
func (t *table[T]) index(name string) *btree.BTreeG[ref] {
	for i := range t.indexes {
		if t.indexes[i].name == name {
			return t.refs[i]
		}
	}
	if name != indexID {
		panic("state: no index " + name)
	}
	return nil
}

func (t *table[T]) get(id string) *T {
	r, _ := t.objects.Get(row[T]{id: id})
	return r.obj
}

// from gives the objects of an index whose key is at least key, in its order, until f says
// stop.
func (t *table[T]) from(index, key string, f func(key string, obj *T) bool) {
	refs := t.index(index)
	if refs == nil {
		t.objects.AscendGreaterOrEqual(row[T]{id: key}, func(r row[T]) bool { return f(r.id, r.obj) })
		return
	}
	refs.AscendGreaterOrEqual(ref{key: key}, func(r ref) bool { return f(r.key, t.get(r.id)) })
}

// put writes an object in place of what has its id.
func (t *table[T]) put(obj *T) {
	t.frozen = nil
	id := t.id(obj)
	old, had := t.objects.ReplaceOrInsert(row[T]{id: id, obj: obj})
	for i := range t.indexes {
		key := t.indexes[i].key
		next, before := key(obj), ""
		if had {
			before = key(old.obj)
		}
		if next == before {
			continue
		}
		if before != "" {
			t.refs[i].Delete(ref{before, id})
		}
		if next != "" {
			t.refs[i].ReplaceOrInsert(ref{next, id})
		}
	}
}

// drop takes out what has the object's id.
func (t *table[T]) drop(obj *T) {
	t.frozen = nil
	old, had := t.objects.Delete(row[T]{id: t.id(obj)})
	if !had {
		return
	}
	for i := range t.indexes {
		if key := t.indexes[i].key(old.obj); key != "" {
			t.refs[i].Delete(ref{key, old.id})
		}
	}
}

// freeze gives the database as it is now, for views.
func (d *database) freeze() *database {
	c := &database{tables: make(map[string]storage, len(d.tables))}
	for name, t := range d.tables {
		c.tables[name] = t.freeze()
	}
	return c
}

func tableOf[T any](d *database, name string) *table[T] { return d.tables[name].(*table[T]) }

// first gives the object with that key of an index, or nil; of several that with the
// least id.
func first[T any](d *database, table, index, key string) *T {
	t := tableOf[T](d, table)
	if index == indexID {
		return t.get(key)
	}
	var found *T
	t.from(index, key, func(k string, obj *T) bool {
		if k == key {
			found = obj
		}
		return false
	})
	return found
}

// byRef gives the object with that id, else that with that name, or nil.
func byRef[T any](db *database, table, ref string) *T {
	if o := first[T](db, table, indexID, ref); o != nil {
		return o
	}
	return first[T](db, table, indexName, ref)
}

// each gives every object of a table to f, ordered by id. f may write.
func each[T any](d *database, name string, f func(*T)) {
	t := tableOf[T](d, name).freeze().(*table[T])
	t.objects.Ascend(func(r row[T]) bool { f(r.obj); return true })
}

// every gives all objects that are in an index, in its order.
func every[T any](d *database, table, index string) []*T {
	var objects []*T
	tableOf[T](d, table).from(index, "", func(_ string, obj *T) bool {
		objects = append(objects, obj)
		return true
	})
	return objects
}

// count gives how many objects a table has.
func count[T any](d *database, table string) int { return tableOf[T](d, table).objects.Len() }

// all gives the objects with that key of an index, ordered by id.
func all[T any](d *database, table, index, key string) []*T {
	var objects []*T
	tableOf[T](d, table).from(index, key, func(k string, obj *T) bool {
		if k == key {
			objects = append(objects, obj)
		}
		return k == key
	})
	return objects
}

// listAfter gives at most limit objects whose key in an index comes after the given one; a
// limit of 0 or less means all.
func listAfter[T any](d *database, table, index, after string, limit int) []*T {
	var list []*T
	tableOf[T](d, table).from(index, after, func(k string, obj *T) bool {
		if k != after {
			list = append(list, obj)
		}
		return limit <= 0 || len(list) < limit
	})
	return list
}

func insert[T any](d *database, table string, obj *T) { tableOf[T](d, table).put(obj) }

// load inserts an object that was read, and refuses one that could not be found again.
func load[T any](d *database, table string, obj *T) error {
	t := tableOf[T](d, table)
	if t.id(obj) == "" {
		return fmt.Errorf("an object of table %s has no id", table)
	}
	t.put(obj)
	return nil
}

func remove[T any](d *database, table string, obj *T) { tableOf[T](d, table).drop(obj) }

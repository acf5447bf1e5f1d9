package volume

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/problem"
)

// content of a disk, as the model has it: its size, and the byte that fills each file.
type content struct {
	size  uint64
	files map[string]byte
}

func (c content) copy() content { return content{c.size, maps.Clone(c.files)} }

// disks of the model, by volume id, or id and snapshot: "a", "a/s".
type disks map[string]content

func (d disks) copy() disks {
	out := disks{}
	for k, c := range d {
		out[k] = c.copy()
	}
	return out
}

const modelFileBytes = 300 << 10

var modelFiles = []string{"f0", "f1", "f2"}

// observe reads what there is, and checks each file system.
func observe(t testing.TB, s *Store) disks {
	t.Helper()
	infos, err := s.List(t.Context())
	must(t, err)
	read := func(image string, size uint64) content {
		fsck(t, image)
		c := content{size: size, files: map[string]byte{}}
		for _, name := range modelFiles {
			b := get(t, image, name)
			if len(b) == 0 {
				continue
			}
			if !bytes.Equal(b, bytes.Repeat(b[:1], modelFileBytes)) {
				t.Fatalf("%s in %s is damaged", name, image)
			}
			c.files[name] = b[0]
		}
		return c
	}
	out := disks{}
	for _, info := range infos {
		out[info.ID] = read(s.dir.Path(info.ID+"/disk.img"), info.SizeBytes)
		for _, i := range info.Snapshots {
			out[info.ID+"/"+i.ID] = read(s.dir.Path(info.ID+"/"+snapshotImage(i.ID)), i.SizeBytes)
		}
	}
	return out
}

// modelStep does a random step on the store and on the model.
func modelStep(t *testing.T, rt *rapid.T, s *Store, m disks) {
	ctx := t.Context()
	ids := rapid.SampledFrom([]string{"a", "b"})
	id, snapshot := ids.Draw(rt, "id"), rapid.SampledFrom([]string{"s", "u"}).Draw(rt, "snapshot")
	size := uint64(rapid.IntRange(MinBytes/mib, 40).Draw(rt, "mib")) * mib
	was, is := m[id]
	kept, isKept := m[id+"/"+snapshot]
	want := "" // the code of its problem
	if !is {
		want = "volume.not_found"
	}
	var err error
	switch rapid.IntRange(0, 8).Draw(rt, "step") {
	case 0, 1:
		_, _, err = s.Ensure(ctx, id, size, false)
		want = ""
		if !is {
			m[id] = content{size, map[string]byte{}}
		}
	case 2:
		if want = ""; !is {
			break
		}
		name, fill := rapid.SampledFrom(modelFiles).Draw(rt, "file"), rapid.Byte().Draw(rt, "fill")|1
		path := s.dir.Path(id + "/disk.img")
		remove(t, path, name)
		put(t, path, name, bytes.Repeat([]byte{fill}, modelFileBytes))
		was.files[name] = fill
	case 3:
		err = s.Resize(ctx, id, size)
		if problem.HasCode(err, "volume.too_small") && size < was.size {
			want = "volume.too_small"
		} else if is {
			m[id] = content{size, was.files}
		}
	case 4:
		err = s.Snapshot(ctx, id, snapshot, nil)
		if is && !isKept {
			m[id+"/"+snapshot] = was.copy()
		}
	case 5:
		err = s.Restore(ctx, id, snapshot)
		if is && !isKept {
			want = "volume.snapshot_not_found"
		} else if is {
			m[id] = kept.copy()
		}
	case 6:
		err = s.DeleteSnapshot(ctx, id, snapshot)
		want = ""
		delete(m, id+"/"+snapshot)
	case 7:
		to := ids.Draw(rt, "to")
		from := kept
		if rapid.Bool().Draw(rt, "of the disk") {
			from, isKept, snapshot = was, is, ""
		}
		_, err = s.Clone(ctx, id, snapshot, to, nil)
		_, isThere := m[to]
		switch {
		case id == to:
			want = "volume.same"
		case isThere:
			want = ""
		case is && !isKept:
			want = "volume.snapshot_not_found"
		case is:
			m[to] = from.copy()
		}
	case 8:
		err = s.Delete(ctx, id)
		want = ""
		for k := range m {
			if k == id || filepath.Dir(k) == id {
				delete(m, k)
			}
		}
	}
	if want == "" && err != nil || want != "" && !problem.HasCode(err, want) {
		rt.Fatalf("want %q: %v", want, err)
	}
}

// Random steps, with deaths at random points of them, do what a map would.
func TestModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	was := checks.Value.String()
	if was == checks.DefValue { // each takes a fifth of a second
		must(t, checks.Value.Set("40"))
		defer func() { must(t, checks.Value.Set(was)) }()
	}
	deaths := 0
	rapid.Check(t, func(rt *rapid.T) {
		base, err := os.MkdirTemp(t.TempDir(), "model")
		must(t, err)
		defer func() { must(t, os.RemoveAll(base)) }()
		lives := 0
		open := func() *Store {
			s, err := Open(Config{Dir: filepath.Join(base, fmt.Sprint(lives))})
			must(t, err)
			return s
		}
		s, m := open(), disks{}
		defer func() { must(t, s.Close()) }()
		for range rapid.IntRange(1, 14).Draw(rt, "steps") {
			dieAt := rapid.IntRange(0, 12).Draw(rt, "point of death")
			visits, died := 0, false
			next := filepath.Join(base, fmt.Sprint(lives+1))
			s.hook = func(string) {
				if visits++; visits == dieAt {
					died = true
					snapshotTree(t, s.dir.File().Name(), next)
				}
			}
			before := m.copy()
			modelStep(t, rt, s, m)
			if died {
				// The next life begins with what was there at the time of death.
				deaths++
				lives++
				must(t, s.Close())
				s = open()
				got := observe(t, s)
				if reflect.DeepEqual(got, before) {
					m = before
				} else if !reflect.DeepEqual(got, m) {
					rt.Fatalf("after a death: %v, neither %v nor %v", got, before, m)
				}
			}
			if got := observe(t, s); !reflect.DeepEqual(got, m) {
				rt.Fatalf("%v, not %v", got, m)
			}
		}
		_, err = s.Sweep(func(id string) bool { _, is := m[id]; return is }, func(id, snapshot string) bool { _, is := m[id+"/"+snapshot]; return is })
		must(t, err)
		if got := observe(t, s); !reflect.DeepEqual(got, m) {
			rt.Fatalf("swept what is wanted: %v, not %v", got, m)
		}
		var want []string
		for k := range m {
			if dir, snapshot := filepath.Split(k); dir != "" {
				want = append(want, dir+snapshotImage(snapshot))
			} else {
				want = append(want, k, k+"/disk.img")
			}
		}
		slices.Sort(want)
		if got := entries(t, s.dir.File().Name()); !slices.Equal(got, want) {
			rt.Fatalf("files %v, not %v", got, want)
		}
	})
	t.Logf("%d deaths", deaths)
}

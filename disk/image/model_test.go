package image

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// modelFile is a file of the reference model: text, or a directory.
type modelFile struct {
	dir  bool
	text string
}

// model is an image as a map from paths to files: slow, and plainly what OCI says.
type model map[string]*modelFile

// below tells whether p is in the directory d.
func below(p, d string) bool { return d == "." || strings.HasPrefix(p, d+"/") }

func (m model) remove(p string) {
	for q := range m {
		if q == p || below(q, p) {
			delete(m, q)
		}
	}
}

// apply gives the image with one more layer: first all that the layer says is gone
// of what was there, then its files in their order. Layers whose files would lie
// below a file of the same layer have no meaning: ok is false.
func (m model) apply(entries []ent) (next model, ok bool) {
	next = model{}
	for p, f := range m {
		next[p] = f
	}
	for _, e := range entries {
		d, base := path.Split(path.Clean(e.Name))
		d = path.Clean("./" + d)
		if base == whiteoutOpaque {
			for q := range m {
				if below(q, d) {
					delete(next, q)
				}
			}
		} else if gone, isGone := strings.CutPrefix(base, whiteout); isGone {
			p := path.Join(d, gone)
			for q := range m {
				if q == p || below(q, p) {
					delete(next, q)
				}
			}
		}
	}
	for _, e := range entries {
		p := path.Clean(e.Name)
		d, base := path.Split(p)
		d = path.Clean("./" + d)
		if base == whiteoutOpaque || !strings.HasPrefix(base, whiteout) {
			for q := d; q != "."; q = path.Dir(q) {
				if f := next[q]; f != nil && !f.dir {
					if f != m[q] { // of the same layer
						return nil, false
					}
					next.remove(q)
				}
			}
			for q := d; q != "."; q = path.Dir(q) {
				if next[q] == nil {
					next[q] = &modelFile{dir: true}
				}
			}
		}
		switch {
		case strings.HasPrefix(base, whiteout):
		case e.Typeflag == 'L':
			target := next[e.Linkname]
			if target == nil || target.dir {
				return nil, false
			}
			if next[p] != target {
				next.remove(p)
				next[p] = target
			}
		case e.Typeflag == '5':
			if f := next[p]; f == nil || !f.dir {
				next.remove(p)
				next[p] = &modelFile{dir: true}
			}
		default:
			next.remove(p)
			next[p] = &modelFile{text: e.body}
		}
	}
	return next, true
}

func (m model) String() string {
	var words []string
	for p, f := range m {
		if f.dir {
			words = append(words, p+"/")
		} else {
			words = append(words, p+"="+f.text)
		}
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// drawLayer makes a layer of a few names that clash often. A builder never says that
// something is gone which it brings itself, nor changes a directory that it hides
// below, so whiteouts come first here; that their order does not matter is another
// test's.
func drawLayer(t *rapid.T, n int) []ent {
	names := rapid.SampledFrom([]string{"a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "b/b/b", "c"})
	var entries, gone, opaque []ent
	for k := range rapid.IntRange(0, 8).Draw(t, "entries") {
		p := names.Draw(t, "name")
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0, 1:
			d, base := path.Split(p)
			gone = append(gone, file(d+whiteout+base, ""))
		case 2:
			opaque = append(opaque, file(path.Join(p, whiteoutOpaque), ""))
		case 3, 4:
			entries = append(entries, dir(p))
		case 5:
			e := hardlink(p, names.Draw(t, "target"))
			entries = append(entries, e)
		default:
			size := rapid.SampledFrom([]int{0, 1, 10, 4096, 5000, 70_000}).Draw(t, "size")
			text := fmt.Sprintf("%d-%d-", n, k)
			entries = append(entries, file(p, text+strings.Repeat("x", size)))
		}
	}
	return slices.Concat(gone, opaque, entries)
}

// Random stacks of layers show what the model says.
func TestLayersEqualTheModel(t *testing.T) {
	mountAt := t.TempDir()
	good := 0
	rapid.Check(t, func(rt *rapid.T) {
		m, ok := model{}, true
		var tars [][]byte
		for n := range rapid.IntRange(1, 4).Draw(rt, "layers") {
			entries := drawLayer(rt, n)
			tars = append(tars, layerTar(t, entries...))
			asModel := slices.Clone(entries)
			for k := range asModel {
				if asModel[k].Typeflag == '1' {
					asModel[k].Typeflag = 'L'
				}
			}
			if m, ok = m.apply(asModel); !ok {
				break
			}
		}
		disk, err := buildTars(t, tars...)
		if !ok {
			if err == nil {
				rt.Fatal("layers without a meaning were taken")
			}
			return
		}
		if err != nil {
			rt.Fatal(err)
		}
		good++
		if got := showAt(rt, disk, mountAt); got != m.String() {
			rt.Fatalf("the disk shows\n%.2000s\nand not\n%.2000s", got, m)
		}
	})
	if good < 20 {
		t.Errorf("only %d stacks had a meaning", good)
	}
}

// showAt is tell for a property, which has no end of its own.
func showAt(t *rapid.T, disk, at string) string {
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", disk, at).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
		_ = os.Remove(disk)
	}()
	var words []string
	var walk func(p string)
	walk = func(p string) {
		entries, err := os.ReadDir(path.Join(at, p))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			q := path.Join(p, e.Name())
			if e.IsDir() {
				if !slices.Contains([]string{"dev", "proc", "sys", "run", "tmp"}, q) {
					words = append(words, q+"/")
				}
				walk(q)
				continue
			}
			b, err := os.ReadFile(path.Join(at, q))
			if err != nil {
				t.Fatal(err)
			}
			words = append(words, q+"="+string(b))
		}
	}
	walk("")
	slices.Sort(words)
	return strings.Join(words, " ")
}

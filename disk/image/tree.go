package image

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// inode is a file of the image while its tree is put together.
type inode struct {
	mode  uint16 // type and permissions, as the kernel has them
	uid   uint32
	gid   uint32
	rdev  uint32
	nlink uint32
	nsec  uint32
	mtime int64
	size  uint64
	// target of a symbolic link.
	target string
	xattrs []xattr
	// entries of a directory, and the directory it is in.
	entries map[string]entry
	up      *inode
	content content
	// nid is the number of the inode in the disk; 0 is none yet.
	nid uint64
}

// entry is a name in a directory, with the layer that brought it, counted from 1.
type entry struct {
	*inode
	layer int
}

type xattr struct{ name, value string }

func (i *inode) isDir() bool { return i.mode&unix.S_IFMT == unix.S_IFDIR }

func newDir(mode uint16) *inode {
	return &inode{mode: unix.S_IFDIR | mode, entries: map[string]entry{}}
}

// names gives the names in a directory in the order of their bytes.
func (i *inode) names() []string { return slices.Sorted(maps.Keys(i.entries)) }

// tree is the root of the image as it is after the layers applied so far.
type tree struct {
	root *inode
	// layer that is being applied, counted from 1.
	layer int
	// drop is told of a file that has no name any more.
	drop func(*inode)
}

func newTree(drop func(*inode)) *tree { return &tree{root: newDir(0o755), drop: drop} }

func badLayer(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "image.layer", format, args...).
		WithHint("build the image anew; a layer is a tar archive of files within its root")
}

// splitPath parts a name of a layer. A leading slash and dots say nothing; a name
// that leads upwards is refused, since no builder makes one.
func splitPath(name string) ([]string, error) {
	if len(name) > pathBytesMax {
		return nil, badLayer("the name %q has %d bytes, %d are possible", clip(name), len(name), pathBytesMax)
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return nil, badLayer("the name %q leads upwards", clip(name))
		case len(p) > nameBytesMax:
			return nil, badLayer("the name %q has a part of %d bytes, %d are possible", clip(name), len(p), nameBytesMax)
		case strings.IndexByte(p, 0) >= 0:
			return nil, badLayer("the name %q has a zero byte", clip(name))
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// walk gives the directory of that path, following symbolic links as a process with
// the image as its root would. It makes what is missing when make is set, else gives
// nil. Names on the way then count as this layer's.
func (t *tree) walk(parts []string, make bool) (*inode, error) {
	todo := slices.Clone(parts)
	slices.Reverse(todo) // the next one is the last
	dir, up := t.root, []*inode{}
	for links := 0; len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if name == ".." { // of a link's target
			if n := len(up); n > 0 {
				dir, up = up[n-1], up[:n-1]
			}
			continue
		}
		e, ok := dir.entries[name]
		if !ok {
			if !make {
				return nil, nil
			}
			e = entry{newDir(0o755), t.layer}
			dir.entries[name] = e
		}
		switch e.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if make && e.layer != t.layer {
				dir.entries[name] = entry{e.inode, t.layer}
			}
			dir, up = e.inode, append(up, dir)
		case unix.S_IFLNK:
			if links++; links > linksMax {
				return nil, badLayer("more than %d symbolic links on the way to %q", linksMax, clip(strings.Join(parts, "/")))
			}
			if strings.HasPrefix(e.target, "/") {
				dir, up = t.root, up[:0]
			}
			words := strings.Split(e.target, "/")
			for _, w := range slices.Backward(words) {
				if w != "" && w != "." {
					todo = append(todo, w)
				}
			}
			if len(todo) > pathBytesMax {
				return nil, badLayer("symbolic links make %q too long", clip(strings.Join(parts, "/")))
			}
		default:
			if !make {
				return nil, nil
			}
			if e.layer == t.layer {
				return nil, badLayer("%q is below a file that is no directory", clip(strings.Join(parts, "/")))
			}
			// What is below it in this layer hides a file of an older one.
			t.remove(dir, name)
			below := newDir(0o755)
			dir.entries[name] = entry{below, t.layer}
			dir, up = below, append(up, dir)
		}
	}
	return dir, nil
}

// parent gives the directory that holds the last part, and that part. The root
// itself has the parent nil.
func (t *tree) parent(parts []string, make bool) (*inode, string, error) {
	if len(parts) == 0 {
		return nil, "", nil
	}
	dir, err := t.walk(parts[:len(parts)-1], make)
	return dir, parts[len(parts)-1], err
}

// put gives a name to a file, in the place of what has it. A directory over a
// directory only changes its attributes.
func (t *tree) put(parts []string, i *inode) error {
	dir, name, err := t.parent(parts, true)
	if err != nil {
		return err
	}
	old := entry{inode: t.root}
	if dir != nil {
		old = dir.entries[name]
	}
	if old.inode != nil && old.isDir() && i.isDir() {
		i.entries = old.entries
		*old.inode = *i
		i = old.inode
	} else if old.inode != nil {
		if dir == nil {
			return badLayer("the root is no directory")
		}
		t.remove(dir, name)
	}
	if dir != nil {
		dir.entries[name] = entry{i, t.layer}
		i.nlink++
	}
	return nil
}

// link gives one more name to the file that has the name target.
func (t *tree) link(parts, target []string) error {
	dir, to, err := t.parent(parts, true)
	if err != nil {
		return err
	}
	if dir == nil {
		return badLayer("the root is no directory")
	}
	from, name, err := t.parent(target, false)
	if err != nil {
		return err
	}
	missing := badLayer("%q is a hard link to %q, which is no file of the image", clip(strings.Join(parts, "/")), clip(strings.Join(target, "/")))
	if from == nil {
		return missing
	}
	e, ok := from.entries[name]
	if !ok || e.isDir() {
		return missing
	}
	if old, ok := dir.entries[to]; ok && old.inode == e.inode {
		dir.entries[to] = entry{e.inode, t.layer}
		return nil
	}
	e.nlink++ // first, or removing what has the name might drop it
	t.remove(dir, to)
	dir.entries[to] = entry{e.inode, t.layer}
	return nil
}

// remove takes a name away, and all that is below it.
func (t *tree) remove(dir *inode, name string) {
	e, ok := dir.entries[name]
	if !ok {
		return
	}
	delete(dir.entries, name)
	if e.isDir() {
		for _, n := range e.names() {
			t.remove(e.inode, n)
		}
		return
	}
	if e.nlink--; e.nlink == 0 {
		t.drop(e.inode)
	}
}

// hide takes away what older layers brought below a directory.
func (t *tree) hide(dir *inode) {
	for _, name := range dir.names() {
		t.hideName(dir, name)
	}
}

func (t *tree) hideName(dir *inode, name string) {
	switch e, ok := dir.entries[name]; {
	case !ok:
	case e.layer != t.layer:
		t.remove(dir, name)
	case e.isDir():
		t.hide(e.inode)
	}
}

// The names by which a layer says what is gone.
const (
	whiteout       = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// whiteOut does what a name that begins with ".wh." says, and tells whether it was
// one. What the same layer brought stays.
func (t *tree) whiteOut(parts []string) (bool, error) {
	if len(parts) == 0 {
		return false, nil
	}
	dirs, last := parts[:len(parts)-1], parts[len(parts)-1]
	if last == whiteoutOpaque {
		dir, err := t.walk(dirs, true)
		if err == nil {
			t.hide(dir)
		}
		return true, err
	}
	for _, p := range parts {
		if strings.HasPrefix(p, whiteoutMeta) { // of a storage driver, not of the image
			return true, nil
		}
	}
	gone, ok := strings.CutPrefix(last, whiteout)
	if !ok {
		return false, nil
	}
	if gone == "" || gone == "." || gone == ".." {
		return true, badLayer("%q says that nothing is gone", clip(strings.Join(parts, "/")))
	}
	dir, err := t.walk(dirs, false)
	if err == nil && dir != nil {
		t.hideName(dir, gone)
	}
	return true, err
}

// mountPoints are what guest init and programs need to be there, with the modes
// they get where the image has none.
var mountPoints = []struct {
	name   string
	mode   uint16
	always bool // whatever else has the name gives way
}{
	{"dev", 0o755, true},
	{"proc", 0o555, true},
	{"sys", 0o555, true},
	{"run", 0o755, false},
	{"tmp", 0o1777, false},
}

// complete adds the mount points that the image lacks.
func (t *tree) complete() {
	for _, m := range mountPoints {
		e, ok := t.root.entries[m.name]
		if ok && (e.isDir() || !m.always) {
			continue
		}
		t.remove(t.root, m.name)
		t.root.entries[m.name] = entry{newDir(m.mode), t.layer}
	}
}

func sortXattrs(x []xattr) {
	slices.SortFunc(x, func(a, b xattr) int { return cmp.Compare(a.name, b.name) })
}

// clip shortens what an error shows of a hostile text.
func clip(s string) string {
	const shown = 120
	if len(s) > shown {
		return s[:shown] + "..."
	}
	return s
}

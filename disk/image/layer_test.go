package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/blixard/blixard/internal/problem"
)

// random gives bytes that are the same in every run and hold no row of zeros.
func random(n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(1 + r.IntN(255))
	}
	return string(b)
}

// withoutMountPoints leaves out what every image gets.
func withoutMountPoints(lines []string) []string {
	return slices.DeleteFunc(lines, func(l string) bool {
		name, _, _ := strings.Cut(l, " ")
		return slices.Contains([]string{"dev", "proc", "sys", "run", "tmp"}, name)
	})
}

// sundry is a layer with all that a layer can hold.
func sundry(t testing.TB) []byte {
	x := func(kv ...string) func(*tar.Header) {
		return func(h *tar.Header) {
			h.PAXRecords = map[string]string{}
			for n := 0; n < len(kv); n += 2 {
				h.PAXRecords["SCHILY.xattr."+kv[n]] = kv[n+1]
			}
		}
	}
	mode := func(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }
	holes := random(70_000) + strings.Repeat("\x00", 300_000) + random(5) + strings.Repeat("\x00", 200_000)
	entries := []ent{
		dir("./").with(mode(0o751)),
		dir("bin/"), file("bin/su", "#!").with(mode(0o4755)), file("bin/wall", "w").with(mode(0o2755)),
		dir("var/spool/").with(mode(0o1777)), dir("deep"), file("deep/a/b/c/file", "made its parents"),
		file("empty", ""), file("one-block", random(4096)), file("two-blocks", random(8192)), file("tail", random(4097)),
		file("long-tail", random(4095)), file("just-fits", random(4032)), file("large", random(1<<20+17)), file("64k", random(1<<16)),
		file("holes", holes), file("zeros", strings.Repeat("\x00", 1<<20)), file("few-zeros", strings.Repeat("\x00", 5000)),
		symlink("sh", "bin/sh"), symlink("absolute", "/etc/passwd"), symlink("up", "../../../x"), symlink("long", strings.Repeat("d/", 2040)),
		symlink("middle", strings.Repeat("m", 4000)),
		hardlink("su2", "bin/su"), hardlink("su3", "./su2"), hardlink("sh2", "sh"),
		device("null", tar.TypeChar, 1, 3), device("disk", tar.TypeBlock, 259, 70_000), device("pipe", tar.TypeFifo, 0, 0),
		file("ping", "caps").with(x("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")),
		file("attributes", random(3000)).with(x("user.note", "hello", "user.empty", "", "trusted.big", random(1500))),
		file("big-attributes", random(4000)).with(x("user.a", random(3000))),
		dir("dir-attributes").with(x("user.d", "1")),
		file("nobody", "n").with(func(h *tar.Header) { h.Uid, h.Gid = 65534, 4_000_000_000 }),
		file(strings.Repeat("n", 255), "long name"), file(strings.Repeat("path/", 60)+"end", "long path"),
		file("ünï\ncode \x7f", "odd name"), file("Case", "upper"), file("case", "lower"),
		file("old", "x").with(func(h *tar.Header) { h.ModTime = noon.AddDate(-55, 0, 0) }),
	}
	for n := range 500 {
		entries = append(entries, file(fmt.Sprintf("many/%03d-%s", n*7919%1000, strings.Repeat("x", n%60)), fmt.Sprint(n)))
	}
	return layerTar(t, entries...)
}

// What the disk shows is what tar unpacks.
func TestDiskEqualsTar(t *testing.T) {
	raw := sundry(t)
	var z bytes.Buffer
	w, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := t.TempDir()
	cmd := exec.Command("tar", "-x", "-p", "-P", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", want)
	cmd.Stdin = bytes.NewReader(raw)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Directories that only a path names get the time of unpacking from tar.
	clock := func(lines []string) []string {
		for k, l := range lines {
			if name, rest, _ := strings.Cut(l, " "); strings.HasPrefix(rest, "mode=40755") && (strings.HasPrefix(name, "path/") || name == "path" || strings.HasPrefix(name, "deep/") || name == "many" || name == "var") {
				lines[k] = name + " directory"
			}
		}
		return lines
	}
	var digests []string
	for what, b := range map[string][]byte{"plain": raw, "gzip": gzipped(t, raw), "two gzips": append(gzipped(t, raw[:5000]), gzipped(t, raw[5000:])...), "zstd": z.Bytes()} {
		disk, err := buildTars(t, b)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		sum, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, sha256Of(sum))
		if what != "plain" {
			continue
		}
		a, b := clock(listing(t, want)), clock(withoutMountPoints(listing(t, mounted(t, disk))))
		for k := range a {
			if k >= len(b) || a[k] != b[k] {
				t.Fatalf("line %d\ntar:  %s\ndisk: %s", k, a[k], b[min(k, len(b)-1)])
			}
		}
		if len(b) != len(a) {
			t.Errorf("%d files, tar has %d", len(b), len(a))
		}
		if out, err := exec.Command("fsck.erofs", disk).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, out)
		}
		st, err := os.Stat(disk)
		if err != nil || st.Size() > 4<<20 { // the holes are none of it
			t.Errorf("%d bytes, %v", st.Size(), err)
		}
	}
	if len(slices.Compact(digests)) != 1 {
		t.Errorf("the same layer made %v", digests)
	}
}

// tell gives the names of an image with what they are, for short tables.
func tell(t testing.TB, disk string) string {
	t.Helper()
	root := mounted(t, disk)
	var words []string
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		switch {
		case rel == ".":
		case d.IsDir():
			words = append(words, rel+"/")
		case d.Type() == os.ModeSymlink:
			to, err := os.Readlink(p)
			words = append(words, rel+">"+to)
			return err
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			words = append(words, rel+"="+string(b))
			return err
		default:
			words = append(words, rel+"!")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	words = slices.DeleteFunc(words, func(w string) bool { return slices.Contains([]string{"dev/", "proc/", "sys/", "run/", "tmp/"}, w) })
	return strings.Join(words, " ")
}

// Layers over each other, as OCI says.
func TestLayersOverEachOther(t *testing.T) {
	base := []ent{dir("d"), file("d/a", "1"), file("d/b", "1"), dir("d/sub"), file("d/sub/x", "1"), symlink("l", "d"), file("f", "1")}
	for _, c := range []struct {
		name   string
		layers [][]ent
		want   string
	}{
		{"nothing", nil, ""},
		{"an empty layer", [][]ent{{}}, ""},
		{"replaced", [][]ent{base, {file("f", "2")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f=2 l>d"},
		{"whiteout of a file", [][]ent{base, {file("d/.wh.a", "")}}, "d/ d/b=1 d/sub/ d/sub/x=1 f=1 l>d"},
		{"whiteout of a directory", [][]ent{base, {file(".wh.d", "")}}, "f=1 l>d"},
		{"whiteout of a link is not of its target", [][]ent{base, {file(".wh.l", "")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f=1"},
		{"whiteout of what is not there", [][]ent{base, {file("no/.wh.x", ""), file(".wh.y", "")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f=1 l>d"},
		{"whiteout and file of the same layer", [][]ent{base, {file("f", "2"), file(".wh.f", "")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f=2 l>d"},
		{"whiteout before the new directory", [][]ent{base, {file(".wh.d", ""), dir("d"), file("d/n", "2")}}, "d/ d/n=2 f=1 l>d"},
		{"whiteout after the new directory", [][]ent{base, {dir("d"), file("d/n", "2"), file(".wh.d", "")}}, "d/ d/n=2 f=1 l>d"},
		{"opaque first", [][]ent{base, {file("d/.wh..wh..opq", ""), file("d/n", "2")}}, "d/ d/n=2 f=1 l>d"},
		{"opaque last", [][]ent{base, {dir("d"), file("d/sub/n", "2"), file("d/.wh..wh..opq", "")}}, "d/ d/sub/ d/sub/n=2 f=1 l>d"},
		{"opaque of a new directory", [][]ent{{file("n/.wh..wh..opq", ""), file("n/x", "2")}}, "n/ n/x=2"},
		{"opaque root", [][]ent{base, {file(".wh..wh..opq", ""), file("n", "2")}}, "n=2"},
		{"opaque, then a third layer", [][]ent{base, {file("d/.wh..wh..opq", ""), file("d/a", "2")}, {file("d/b", "3")}}, "d/ d/a=2 d/b=3 f=1 l>d"},
		{"metadata of aufs", [][]ent{base, {file(".wh..wh.plnk/1.2", ""), file(".wh..wh.aufs", ""), dir(".wh..wh.orph")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f=1 l>d"},
		{"file over directory", [][]ent{base, {file("d", "2")}}, "d=2 f=1 l>d"},
		{"directory over file", [][]ent{base, {dir("f"), file("f/x", "2")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f/ f/x=2 l>d"},
		{"something below a file", [][]ent{base, {file("f/x/y", "2")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f/ f/x/ f/x/y=2 l>d"},
		{"opaque file", [][]ent{base, {file("f/.wh..wh..opq", "")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f/ l>d"},
		{"directory over link", [][]ent{base, {dir("l"), file("l/x", "2")}}, "d/ d/a=1 d/b=1 d/sub/ d/sub/x=1 f=1 l/ l/x=2"},
		{"through a link of a lower layer", [][]ent{base, {file("l/a", "2"), file("l/sub/y", "2")}}, "d/ d/a=2 d/b=1 d/sub/ d/sub/x=1 d/sub/y=2 f=1 l>d"},
		{"through an absolute link", [][]ent{{dir("usr/lib"), symlink("lib", "/usr/lib")}, {file("lib/x", "2")}}, "lib>/usr/lib usr/ usr/lib/ usr/lib/x=2"},
		{"through a link that leads up", [][]ent{{dir("a/b"), symlink("a/b/l", "../../../../up"), dir("up")}, {file("a/b/l/x", "2")}}, "a/ a/b/ a/b/l>../../../../up up/ up/x=2"},
		{"through a link to nothing", [][]ent{{symlink("l", "new/dir")}, {file("l/x", "2")}}, "l>new/dir new/ new/dir/ new/dir/x=2"},
		{"hard link to a lower layer", [][]ent{base, {hardlink("h", "d/a")}, {file("d/a", "3")}}, "d/ d/a=3 d/b=1 d/sub/ d/sub/x=1 f=1 h=1 l>d"},
		{"hard link to itself", [][]ent{{file("a", "1"), hardlink("a", "a")}}, "a=1"},
		{"hard link in the place of a directory", [][]ent{base, {hardlink("d", "f")}}, "d=1 f=1 l>d"},
		{"a name twice", [][]ent{{file("a", "1"), file("a", "2")}}, "a=2"},
		{"a name twice, linked meanwhile", [][]ent{{file("a", "1"), hardlink("b", "a"), file("a", "2")}}, "a=2 b=1"},
		{"mount points that are none", [][]ent{{symlink("dev", "/"), file("proc", "x"), symlink("sys", "."), symlink("tmp", "var/tmp"), dir("run")}}, "tmp>var/tmp"},
		{"a file of that prefix only", [][]ent{{file(".whale", "1"), file("a.wh.b", "2")}}, ".whale=1 a.wh.b=2"},
	} {
		var tars [][]byte
		for _, l := range c.layers {
			tars = append(tars, layerTar(t, l...))
		}
		disk, err := buildTars(t, tars...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := tell(t, disk); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

// Attributes of a directory that a later layer names again are that layer's, and
// its files stay.
func TestDirectoryNamedAgain(t *testing.T) {
	disk, err := buildTars(t, layerTar(t, dir("d"), file("d/a", "1")), layerTar(t, dir("d").with(func(h *tar.Header) { h.Mode, h.Uid = 0o700, 7 })))
	if err != nil {
		t.Fatal(err)
	}
	got := listing(t, mounted(t, disk)+"/d")
	if len(got) != 2 || !strings.HasPrefix(got[0], ". mode=40700 owner=7:0") {
		t.Errorf("%q", got)
	}
}

// hostile are layers that would leave their place, or take too much, if they were
// unpacked without care.
func TestHostileLayers(t *testing.T) {
	deep := strings.Repeat("x/", 2048)
	for name, c := range map[string]struct {
		raw        []byte
		code, want string // the problem, or else what the image shows
	}{
		"dots":                    {layerTar(t, file("../../etc/passwd", "x")), "image.layer", ""},
		"dots within":             {layerTar(t, file("a/../../etc/passwd", "x")), "image.layer", ""},
		"dots in a link's target": {layerTar(t, hardlink("h", "../../../etc/passwd")), "image.layer", ""},
		"absolute":                {layerTar(t, file("/canary", "x")), "", "canary=x"},
		"link then through it":    {layerTar(t, symlink("l", "/"), file("l/canary", "x")), "", "canary=x l>/"},
		"link up then through it": {layerTar(t, symlink("l", "../../../.."), file("l/canary", "x")), "", "canary=x l>../../../.."},
		"links in a circle":       {layerTar(t, symlink("a", "b"), symlink("b", "a"), file("a/x", "x")), "image.layer", ""},
		"links that grow":         {layerTar(t, symlink("a", "a/a/a/a/a/a"), file("a/x", "x")), "image.layer", ""},
		"hard link out":           {layerTar(t, hardlink("h", "/etc/passwd")), "image.layer", ""},
		"hard link to directory":  {layerTar(t, dir("d"), hardlink("h", "d")), "image.layer", ""},
		"hard link to root":       {layerTar(t, hardlink("h", "/")), "image.layer", ""},
		"hard link as root":       {layerTar(t, file("f", "1"), hardlink("/", "f")), "image.layer", ""},
		"below a file":            {layerTar(t, file("f", "1"), file("f/x", "2")), "image.layer", ""},
		"root as a file":          {layerTar(t, symlink("/", "x")), "image.layer", ""},
		"whiteout of the parent":  {layerTar(t, file("d/.wh...", "")), "image.layer", ""},
		"whiteout of itself":      {layerTar(t, file("d/.wh..", "")), "image.layer", ""},
		"whiteout of nothing":     {layerTar(t, file("d/.wh.", "")), "image.layer", ""},
		"device":                  {layerTar(t, device("sda", tar.TypeBlock, 8, 0)), "", "sda!"},
		"odd device":              {layerTar(t, device("sda", tar.TypeBlock, 1<<20, 0)), "image.layer", ""},
		"odd owner":               {layerTar(t, file("f", "").with(func(h *tar.Header) { h.Uid = 1 << 32 })), "image.layer", ""},
		"odd type":                {layerTar(t, ent{tar.Header{Typeflag: 'Z', Name: "z"}, ""}), "image.layer", ""},
		"long part":               {layerTar(t, file(strings.Repeat("n", 256), "")), "image.layer", ""},
		"long path":               {layerTar(t, file(deep+"y", "")), "image.layer", ""},
		"long link":               {layerTar(t, symlink("l", strings.Repeat("n", 4096))), "image.layer", ""},
		"no archive":              {[]byte(strings.Repeat("text ", 1000)), "image.layer", ""},
		"no gzip":                 {append([]byte{0x1f, 0x8b, 8}, random(1000)...), "image.layer", ""},
		"no zstd":                 {append([]byte{0x28, 0xb5, 0x2f, 0xfd}, random(1000)...), "image.layer", ""},
		"half an archive":         {layerTar(t, file("f", random(9000)))[:6000], "image.layer", ""},
		"half a gzip":             {gzipped(t, layerTar(t, file("f", random(90_000))))[:60_000], "image.layer", ""},
		"attributes": {layerTar(t, file("f", "").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", xattrBytesMax)}
		})), "image.layer", ""},
		"attributes of other systems": {layerTar(t, file("f", "x").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.com.apple.quarantine": "v", "SCHILY.xattr.user.": "v"}
		})), "", "f=x"},
		"much behind the end": {append(layerTar(t, file("f", "x")), make([]byte, 65<<20)...), "image.layer", ""},
		"case clash":          {layerTar(t, file("A", "1"), file("a", "2")), "", "A=1 a=2"},
	} {
		disk, err := buildTars(t, c.raw)
		if c.code == "" && err == nil {
			if got := tell(t, disk); got != c.want {
				t.Errorf("%s: %s", name, got)
			}
		} else if c.code == "" || !problem.HasCode(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
		for _, p := range []string{"/canary", "/l", "/h"} {
			if _, err := os.Lstat(p); !os.IsNotExist(err) {
				t.Fatalf("%s: %s is on the host: %v", name, p, err)
			}
		}
	}
}

// repeated gives one text over and over.
type repeated struct {
	text string
	left int64
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) {
		n += copy(p[n:], r.text)
	}
	r.left -= int64(n)
	return n, nil
}

func TestTooMuch(t *testing.T) {
	// A file that says it has more than is allowed is refused before it is read.
	huge := func(size int64, sparse bool) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h := tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: size, Mode: 0o644, Format: tar.FormatGNU}
		if sparse {
			h = tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: 512, Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{"path": "huge"}}
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if _, err := buildTars(t, huge(unpackedBytesMax+1, false)); !problem.HasCode(err, "image.too_large") {
		t.Errorf("large: %v", err)
	}
	// Sizes that are within it one by one are not together.
	half := layer{open: func(context.Context) (io.ReadCloser, error) {
		head := huge(unpackedBytesMax/2+1, false)
		return io.NopCloser(io.MultiReader(bytes.NewReader(head), &repeated{"x", 1 << 20})), nil
	}}
	a := &applier{tree: newTree(func(*inode) {}), unpacked: unpackedBytesMax / 2}
	if err := a.apply(t.Context(), half); !problem.HasCode(err, "image.too_large") {
		t.Errorf("together: %v", err)
	}
	a = &applier{tree: newTree(func(*inode) {}), entries: entriesMax}
	if err := a.apply(t.Context(), layer{open: open(layerTar(t, dir("d")))}); !problem.HasCode(err, "image.too_many_files") {
		t.Errorf("many: %v", err)
	}
	// A bomb stops where the budget does.
	spent := int64(0)
	budget := func(n int64) error {
		if spent += n; spent > 1<<20 {
			return problem.New(problem.NoCapacity, "image.budget", "x")
		}
		return nil
	}
	bomb := gzipped(t, layerTar(t, file("bomb", strings.Repeat("bomb", 8<<20))))
	dir := t.TempDir()
	_, err := build(t.Context(), dir, "x", []layer{{open: open(bomb)}}, budget, func(int) {})
	if !problem.HasCode(err, "image.budget") {
		t.Errorf("bomb: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, diskFile)); err != nil || st.Size() > 2<<20 {
		t.Errorf("bomb wrote %v, %v", st.Size(), err)
	}
}

// A sparse file of GNU's and of PAX's form keeps its holes: a terabyte's file would
// be too large, one of a gigabyte takes next to nothing.
func TestSparseFiles(t *testing.T) {
	for _, format := range []string{"gnu", "pax"} {
		src := t.TempDir()
		f, err := os.Create(filepath.Join(src, "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(3<<30), write(f, 1<<30, "middle"), write(f, 3<<30-4, "end!"), f.Close()); err != nil {
			t.Fatal(err)
		}
		raw, err := exec.Command("tar", "-C", src, "--sparse", "--format="+format, "-cf", "-", ".").Output()
		if err != nil {
			t.Fatal(err)
		}
		disk, err := buildTars(t, raw)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(disk); err != nil || st.Size() > 1<<20 {
			t.Errorf("%s: the disk has %d bytes, %v", format, st.Size(), err)
		}
		got, err := os.Open(filepath.Join(mounted(t, disk), "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 12)
		_, err1 := got.ReadAt(b[:8], 1<<30-1)
		_, err2 := got.ReadAt(b[8:], 3<<30-4)
		if st, err := got.Stat(); errors.Join(err, err1, err2) != nil || st.Size() != 3<<30 || string(b) != "\x00middle\x00end!" {
			t.Errorf("%s: %q %v %v %v", format, b, err, err1, err2)
		}
		_ = got.Close()
	}
}

func write(f *os.File, at int64, text string) error {
	_, err := f.WriteAt([]byte(text), at)
	return err
}

// A file with holes that is replaced gives its blocks back: what takes them shows
// nothing of it, and neither does what lies beside it.
func TestReplacedSparseFile(t *testing.T) {
	holes := random(100_000) + strings.Repeat("\x00", 400_000) + random(90_001)
	small := random(61_000)
	disk, err := buildTars(t, layerTar(t, file("sparse", holes), file("kept", random(5000))),
		layerTar(t, file(".wh.sparse", "")), layerTar(t, file("a", small), file("b", holes), file("c", small[:9000]), file("d", random(120_000))))
	if err != nil {
		t.Fatal(err)
	}
	root := mounted(t, disk)
	for name, want := range map[string]string{"kept": random(5000), "a": small, "b": holes, "c": small[:9000], "d": random(120_000)} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != want {
			t.Errorf("%s: %d bytes of %d, %v", name, len(b), len(want), err)
		}
	}
	if out, err := exec.Command("fsck.erofs", disk).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The blocks of files that a later layer replaces are used again, and nothing of
// them is left to be seen.
func TestReplacedBlocks(t *testing.T) {
	var lower, upper []ent
	for n := range 50 {
		lower = append(lower, file(fmt.Sprintf("s%d", n), random(20_000+n)), file(fmt.Sprintf("l%d", n), random(300_000+n)))
		upper = append(upper, file(fmt.Sprintf("s%d", n), random(19_000+n)), file(fmt.Sprintf("l%d", n), random(299_000+n)))
	}
	one, err := buildTars(t, layerTar(t, lower...))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := buildTars(t, layerTar(t, lower...), layerTar(t, upper...), layerTar(t, file(".wh.l7", "")))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := os.Stat(one)
	b, _ := os.Stat(disk)
	if b.Size() > a.Size()+2*310_000 {
		t.Errorf("%d bytes grew to %d", a.Size(), b.Size())
	}
	root := mounted(t, disk)
	for _, e := range upper {
		if got, err := os.ReadFile(filepath.Join(root, e.Name)); e.Name != "l7" && (err != nil || string(got) != e.body) {
			t.Errorf("%s: %d bytes, %v", e.Name, len(got), err)
		}
	}
	raw, err := os.ReadFile(disk)
	if err != nil || bytes.Contains(raw, []byte(random(299_007)[100_000:100_100])) {
		t.Errorf("what is gone is still on the disk, or %v", err)
	}
}

func TestBuildEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	_, err := build(ctx, t.TempDir(), "x", []layer{{open: open(sundry(t))}}, noCharge, func(int) {})
	if !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	// In the middle of a file that never ends.
	ctx, cancel = context.WithCancelCause(t.Context())
	head := layerTar(t, file("a", random(1<<20)))
	endless := func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(head[:600_000]), readerFunc(func(p []byte) (int, error) { cancel(why); return len(p), nil }))), nil
	}
	if _, err := build(ctx, t.TempDir(), "x", []layer{{open: endless}}, noCharge, func(int) {}); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

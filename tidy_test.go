package blixard_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What a person still reads in one go.
const linesMax = 600

// sleeps are the files that may call time.Sleep, with the reason. Everybody else
// waits for an event or a context: a sleep can't be ended, and in a test it is
// either too short or a waste.
var sleeps = map[string]string{
	"bench/changes.go":          "a round of the benchmark lasts that long, whatever happens",
	"guest/kernel/tsc_amd64.go": "the span over which the counter is measured",
	"guest/pid1/mount.go":       "process 1 polls for a drive before there is anything that could tell",
	"guest/pid1/port.go":        "process 1 polls for its port: nothing in the guest tells of it",
	"guest/pid1/run.go":         "process 1 kills until nobody is left; nothing else goes on by then",
	"guest/session_test.go":     "polls what another process wrote",
	"guest/stream_test.go":      "polls for the end of a process that is no child",
}

// file is one text file of the tree.
type file struct {
	path string // with slashes, from the root
	text []byte
	// syntax of Go files, with comments.
	syntax *ast.File
	set    *token.FileSet
}

func (f *file) isTest() bool    { return strings.HasSuffix(f.path, "_test.go") }
func (f *file) generated() bool { return f.syntax != nil && ast.IsGenerated(f.syntax) }

// tree reads the files of the project: all that is no binary and that is neither
// built nor fetched.
func tree(t *testing.T) []*file {
	t.Helper()
	var files []*file
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == "bin" || name == "build" || name == ".git"):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil || bytes.IndexByte(text, 0) >= 0 {
			return err
		}
		f := &file{path: filepath.ToSlash(name), text: text}
		if strings.HasSuffix(name, ".go") {
			f.set = token.NewFileSet()
			if f.syntax, err = parser.ParseFile(f.set, name, text, parser.ParseComments); err != nil {
				return err
			}
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestFilesAreShort(t *testing.T) {
	for _, f := range tree(t) {
		if n := bytes.Count(f.text, []byte("\n")); f.syntax != nil && !f.generated() && n > linesMax {
			t.Errorf("%s has %d lines, more than %d: split it by what its parts are about", f.path, n, linesMax)
		}
	}
}

// TestPackagesSayWhatTheyAre: each package has a doc.go with its comment, a
// command has it in main.go.
func TestPackagesSayWhatTheyAre(t *testing.T) {
	code, documented := map[string]bool{}, map[string]bool{}
	for _, f := range tree(t) {
		if f.syntax == nil || f.isTest() || f.generated() {
			continue
		}
		dir, base := path.Split(f.path)
		code[dir] = true
		want, begin := "doc.go", "Package "+f.syntax.Name.Name+" "
		if f.syntax.Name.Name == "main" {
			want, begin = "main.go", "Command "
		}
		// A command with more to say has a doc.go as well.
		if base == want || base == "doc.go" {
			documented[dir] = documented[dir] || strings.HasPrefix(f.syntax.Doc.Text(), begin)
		} else if f.syntax.Doc.Text() != "" {
			t.Errorf("%s: the package's comment belongs into %s", f.path, want)
		}
	}
	for dir := range code {
		if !documented[dir] {
			t.Errorf("%s: no doc.go (main.go of a command) says what the package is and what it is not", dir)
		}
	}
}

// TestNothingIsLeftOpen: no note for later, and no test that does not run.
func TestNothingIsLeftOpen(t *testing.T) {
	notes := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)
	skips := regexp.MustCompile(`(?m)^(\[[^]]*\] +)?skip\b`)
	for _, f := range tree(t) {
		for i, line := range bytes.Split(f.text, []byte("\n")) {
			if word := notes.Find(line); word != nil {
				t.Errorf("%s:%d: %s: do it, or say in docs what is not there yet", f.path, i+1, word)
			}
		}
		if strings.Contains(f.path, "testdata/script") && skips.Match(f.text) {
			t.Errorf("%s: a script that is skipped", f.path)
		}
		if f.isTest() {
			eachCall(f, func(pos token.Position, on, name string) {
				if slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, name) || on == "testing" && name == "Short" {
					t.Errorf("%s: %s.%s: a test that does not run holds nothing; what it needs is to be there", pos, on, name)
				}
			})
		}
	}
}

// eachCall visits the calls ON.NAME(...) of a file.
func eachCall(f *file, visit func(pos token.Position, on, name string)) {
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if fun, ok := call.Fun.(*ast.SelectorExpr); ok {
			if on, ok := fun.X.(*ast.Ident); ok {
				visit(f.set.Position(call.Pos()), on.Name, fun.Sel.Name)
			}
		}
		return true
	})
}

func TestNobodySleeps(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range tree(t) {
		if f.syntax == nil {
			continue
		}
		eachCall(f, func(pos token.Position, on, name string) {
			if on != "time" || name != "Sleep" {
				return
			}
			seen[f.path] = true
			if sleeps[f.path] == "" {
				t.Errorf("%s: time.Sleep: wait for an event, a channel or a context", pos)
			}
		})
	}
	for p := range sleeps {
		if !seen[p] {
			t.Errorf("%s does not sleep any more: take it off the list", p)
		}
	}
}

var (
	links    = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	headings = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	fences   = regexp.MustCompile("(?ms)^```.*?^```")
)

// TestLinksLead: relative links in Markdown lead to files and headings that are
// there.
func TestLinksLead(t *testing.T) {
	anchors := map[string][]string{} // of each page
	var pages []*file
	for _, f := range tree(t) {
		if path.Ext(f.path) != ".md" {
			continue
		}
		pages = append(pages, f)
		for _, h := range headings.FindAllSubmatch(fences.ReplaceAll(f.text, nil), -1) {
			anchors[f.path] = append(anchors[f.path], anchor(string(h[1])))
		}
	}
	for _, f := range pages {
		for _, link := range links.FindAllSubmatch(f.text, -1) {
			to, at, _ := strings.Cut(string(link[1]), "#")
			if strings.Contains(to, "://") {
				continue
			}
			target := f.path
			if to != "" {
				target = path.Join(path.Dir(f.path), to)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", f.path, link[1])
			} else if at != "" && !slices.Contains(anchors[target], at) {
				t.Errorf("%s: %s has no heading #%s", f.path, target, at)
			}
		}
	}
}

// anchor is how a heading is linked to.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127:
			return r
		}
		return -1
	}, strings.ToLower(heading))
}

package blixard_test

import (
	"go/ast"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// unnamed is the package of tests that are named without one, as the pages say.
const unnamed = "daemon"

var (
	// namedTests are written `TestX`, `TestX/part` or `package.TestX`.
	namedTests = regexp.MustCompile("`(?:([a-z0-9/]+)\\.)?((?:Test|Benchmark|Fuzz)[A-Z]\\w*)(?:/[^`]*)?`")
	// namedRuns are commands, in a line of their own or between backquotes.
	namedRuns   = regexp.MustCompile(`go test \./(\S+) (-run|-bench) ([A-Za-z|]+)`)
	namedFiles  = regexp.MustCompile("`([a-zA-Z0-9_./-]+/testdata/[a-zA-Z0-9_./-]*|[a-zA-Z0-9_/-]+_test\\.go)`")
	namedMakes  = regexp.MustCompile("(?m)(?:`|^    |^    \\$ )make ([a-z-]+)")
	makeTargets = regexp.MustCompile(`(?m)^([a-z-]+):`)
)

// testsOf gives the tests, benchmarks and fuzz targets of each package.
func testsOf(files []*file) map[string][]string {
	all := map[string][]string{}
	for _, f := range files {
		if !f.isTest() {
			continue
		}
		dir := strings.TrimSuffix(path.Dir(f.path), "/")
		for _, d := range f.syntax.Decls {
			fun, ok := d.(*ast.FuncDecl)
			if ok && fun.Recv == nil && namedTests.MatchString("`"+fun.Name.Name+"`") {
				all[dir] = append(all[dir], fun.Name.Name)
			}
		}
	}
	return all
}

// TestClaimsNameWhatIsThere: every test, file and target of make that a page of
// the project names is there under that name.
func TestClaimsNameWhatIsThere(t *testing.T) {
	files := tree(t)
	tests := testsOf(files)
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, m := range makeTargets.FindAllSubmatch(makefile, -1) {
		targets = append(targets, string(m[1]))
	}
	for _, f := range files {
		if path.Ext(f.path) != ".md" {
			continue
		}
		page, text := f.path, f.text
		for _, m := range namedTests.FindAllStringSubmatch(string(text), -1) {
			pkg := m[1]
			if pkg == "" {
				pkg = unnamed
			}
			if !slices.Contains(tests[pkg], m[2]) {
				t.Errorf("%s names the test %s, which package %s does not have", page, m[2], pkg)
			}
		}
		for _, m := range namedRuns.FindAllStringSubmatch(string(text), -1) {
			if !slices.ContainsFunc(tests[m[1]], func(name string) bool { return regexp.MustCompile(m[3]).MatchString(name) }) {
				t.Errorf("%s: %q finds nothing", page, m[0])
			}
		}
		for _, m := range namedFiles.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s names %s, which is not there", page, m[1])
			}
		}
		for _, m := range namedMakes.FindAllStringSubmatch(string(text), -1) {
			if !slices.Contains(targets, m[1]) {
				t.Errorf("%s: there is no `make %s`; there are %v", page, m[1], targets)
			}
		}
	}
}

// TestPromisesNameTests: every numbered promise of SAFETY.md names a test or a
// file of scenarios.
func TestPromisesNameTests(t *testing.T) {
	text, err := os.ReadFile("docs/SAFETY.md")
	if err != nil {
		t.Fatal(err)
	}
	begins := regexp.MustCompile(`(?m)^(\d+)\. `).FindAllStringSubmatchIndex(string(text), -1)
	if len(begins) == 0 {
		t.Fatal("no promises were found")
	}
	held := map[string]bool{}
	for i, b := range begins {
		end := len(text)
		if i+1 < len(begins) {
			end = begins[i+1][0]
		}
		promise := string(text[b[0]:end])
		held[string(text[b[2]:b[3]])] = namedTests.MatchString(promise) || namedFiles.MatchString(promise)
	}
	for _, number := range slices.Sorted(maps.Keys(held)) {
		if !held[number] {
			t.Errorf("promise %s of docs/SAFETY.md names no test", number)
		}
	}
}

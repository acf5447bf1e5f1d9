package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/problem"
)

func TestParseOptions(t *testing.T) {
	got, err := parseOptions("# text\n\nCONFIG_A=y\n  CONFIG_B=n\nCONFIG_C=-12\nCONFIG_D=0xfF\nCONFIG_E=\"a b\"\n")
	want := []option{{"CONFIG_A", "y"}, {"CONFIG_B", "n"}, {"CONFIG_C", "-12"}, {"CONFIG_D", "0xfF"}, {"CONFIG_E", `"a b"`}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for name, c := range map[string]struct{ text, says string }{
		"module":    {"CONFIG_A=y\nCONFIG_B=m\n", "line 2"},
		"prose":     {"hello\n", "line 1"},
		"unquoted":  {"CONFIG_A=text\n", "line 1"},
		"twice":     {"CONFIG_A=y\n#\nCONFIG_A=n\n", "line 3: CONFIG_A stands there twice"},
		"lowercase": {"config_A=y\n", "line 1"},
	} {
		if _, err := parseOptions(c.text); !problem.HasCode(err, "kernel.config") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseOptions("CONFIG_A=\"" + strings.Repeat("x", 1<<20)); err == nil {
		t.Error("a line without an end: no error")
	}
	own, err := parseOptions(ownConfig)
	if err != nil || len(own) < 50 {
		t.Errorf("our own: %d options, %v", len(own), err)
	}
}

// What was merged is kept by a check of itself, and nothing else is lost.
func TestMergeOptionsProperty(t *testing.T) {
	name := rapid.SampledFrom([]string{"CONFIG_A", "CONFIG_AB", "CONFIG_B", "CONFIG_C", "CONFIG_D"})
	value := rapid.SampledFrom([]string{"y", "n", "7", `"text"`})
	options := rapid.Custom(func(t *rapid.T) []option {
		var o []option
		for _, n := range rapid.SliceOfDistinct(name, rapid.ID[string]).Draw(t, "names") {
			o = append(o, option{n, value.Draw(t, n)})
		}
		return o
	})
	rapid.Check(t, func(t *rapid.T) {
		base, wanted := options.Draw(t, "base"), options.Draw(t, "wanted")
		merged := mergeOptions(mergeOptions("# a comment\n", base), wanted)
		if err := checkOptions(wanted, merged); err != nil {
			t.Fatalf("%v\n%s", err, merged)
		}
		var kept []option
		for _, o := range base {
			if !slices.ContainsFunc(wanted, func(w option) bool { return w.name == o.name }) {
				kept = append(kept, o)
			}
		}
		if err := checkOptions(kept, merged); err != nil || !strings.HasPrefix(merged, "# a comment\n") {
			t.Fatalf("%v\n%s", err, merged)
		}
		if n := len(parseDotConfig(merged)); strings.Count(merged, "\n") > 1+len(base)+len(wanted) || n > len(base)+len(wanted) {
			t.Fatalf("%d options in\n%s", n, merged)
		}
	})
}

func TestCheckOptions(t *testing.T) {
	err := checkOptions([]option{{"CONFIG_B", "y"}, {"CONFIG_A", "7"}, {"CONFIG_C", "n"}}, "CONFIG_A=8\n# CONFIG_B is not set\n# CONFIG_C is not set\n")
	if !problem.HasCode(err, "kernel.options_dropped") || !strings.Contains(err.Error(), "CONFIG_A=7 (is 8), CONFIG_B=y (is n)") {
		t.Errorf("%v", err)
	}
}

const onePatch = `What it is for.

--- a/dir/file.c
+++ b/dir/file.c	2026-01-01
@@ -10,3 +10,4 @@ function
 before
-old
+new
+more
 after
@@ -50 +51 @@
-single
+one
`

func TestPatches(t *testing.T) {
	text := "x\nbefore\nold\nafter\ny\nsingle\n"
	for name, c := range map[string]struct{ file, want, says string }{
		"applies":    {text, "x\nbefore\nnew\nmore\nafter\ny\none\n", ""},
		"not there":  {strings.Replace(text, "old", "odd", 1), "", "hunk 1 are 0 times"},
		"twice":      {text + "single\n", "", "hunk 2 are 2 times"},
		"once again": {"x\nbefore\nnew\nmore\nafter\ny\none\n", "", "hunk 1 are 0 times"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "dir", "file.c")
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.file), 0o644); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		patches, err := readPatches(fstest.MapFS{"p/a.patch": {Data: []byte(onePatch)}, "p/readme": {Data: []byte("text")}}, "p")
		if err != nil || len(patches) != 1 {
			t.Fatalf("%v, %v", patches, err)
		}
		err = patches[0].apply(root)
		got, readErr := os.ReadFile(path)
		if readErr != nil {
			t.Fatal(readErr)
		}
		switch {
		case c.says == "" && (err != nil || string(got) != c.want):
			t.Errorf("%s: %q, %v", name, got, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || string(got) != c.file):
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err := (patch{name: "p", file: "../outside"}).apply(root); err == nil {
			t.Errorf("%s: a file outside of the source: no error", name)
		}
		_ = root.Close()
	}
	for name, text := range map[string]string{
		"nothing":       "only a description\n",
		"no file":       "@@ -1 +1 @@\n-a\n+b\n",
		"cut off":       "+++ b/f\n@@ -1,2 +1,2 @@\n-a\n+b\n",
		"odd line":      "+++ b/f\n@@ -1,2 +1,2 @@\n-a\n*b\n",
		"lengths":       "+++ b/f\n@@ -1,1 +1,2 @@\n-a\n-b\n+c\n",
		"only adds":     "+++ b/f\n@@ -0,0 +1 @@\n+a\n",
		"huge length":   "+++ b/f\n@@ -1,99999999999999999999 +1 @@\n-a\n+b\n",
		"empty header":  "+++ b/\n@@ -1,0 +1,0 @@\n",
		"only deletion": "+++ b/f\n@@ -1,2 +0,0 @@\n-a\n",
	} {
		if got, err := parsePatch(name, text); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if _, err := readPatches(fstest.MapFS{"p/b.patch": {Data: []byte("x")}}, "p"); err == nil {
		t.Error("a patch that is none: no error")
	}
	if own, err := readPatches(ownPatches, "patches"); err != nil || len(own) != 2 {
		t.Errorf("our own: %d, %v", len(own), err)
	}
}

func FuzzParsePatch(f *testing.F) {
	f.Add(onePatch)
	f.Fuzz(func(t *testing.T, text string) {
		patches, err := parsePatch("p", text)
		if err != nil {
			return
		}
		for _, p := range patches {
			for _, h := range p.hunks {
				if h.before == "" {
					t.Errorf("a hunk that fits everywhere: %+v", h)
				}
			}
		}
	})
}

func FuzzParseOptions(f *testing.F) {
	f.Add("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n")
	f.Add("CONFIG_0=0\n#")
	f.Fuzz(func(t *testing.T, text string) {
		options, err := parseOptions(text)
		if err != nil {
			return
		}
		if err := checkOptions(options, mergeOptions(text, options)); err != nil {
			t.Errorf("%v", err)
		}
	})
}

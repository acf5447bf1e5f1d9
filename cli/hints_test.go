package cli

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var (
	// named is a command as texts name it, with what follows in the same breath.
	named = regexp.MustCompile("(a |no |const .*)?blixard ([a-z][a-z-]*)([^`\n\",;()|]*)")
	flag  = regexp.MustCompile(`--[a-z][a-z-]*`)
)

// TestTextsNameCommandsThatExist: what hints and pages tell people to run is there,
// with its flags.
func TestTextsNameCommandsThatExist(t *testing.T) {
	root := (&app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }}).rootCommand()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	checked := 0
	check := func(path, line string) {
		for _, m := range named.FindAllStringSubmatch(line, -1) {
			c := sub(root, m[2])
			if c == nil || m[1] != "" {
				continue // prose: blixard does this and that
			}
			checked++
			ours, _, _ := strings.Cut(m[3], " -- ") // behind that it is the guest's
			words := strings.Fields(ours)
			for len(words) > 0 && c.HasSubCommands() && sub(c, words[0]) != nil {
				c, words = sub(c, words[0]), words[1:]
			}
			if c.HasSubCommands() && len(words) > 0 && word.MatchString(words[0]) {
				t.Errorf("%s: there is no %q: %s", path, c.CommandPath()+" "+words[0], strings.TrimSpace(line))
			}
			for _, f := range flag.FindAllString(ours, -1) {
				c.InitDefaultHelpFlag()
				if name := strings.TrimPrefix(f, "--"); c.Flag(name) == nil {
					t.Errorf("%s: %q has no %s: %s", path, c.CommandPath(), f, strings.TrimSpace(line))
				}
			}
		}
	}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if n := d.Name(); n == "build" || n == "bin" || n == "tools" || n == ".git" {
				return filepath.SkipDir
			}
			return err
		}
		if (!strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".md")) || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for line := range strings.Lines(string(text)) {
			for _, line := range strings.Split(line, `\n`) {
				check(path, line)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if least := 300; checked < least {
		t.Errorf("only %d names of commands were found", checked)
	}
}

// word could be the name of a command, which the words of a usage are not.
var word = regexp.MustCompile(`^[a-z][a-z-]+$`)

func sub(c *cobra.Command, name string) *cobra.Command {
	for _, s := range c.Commands() {
		if s.Name() == name || s.HasAlias(name) {
			return s
		}
	}
	return nil
}

package cli

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestEveryCommandExplainsItself: each command says in a sentence what it does and
// shows how, and each flag says what it is and of which kind, in one word.
func TestEveryCommandExplainsItself(t *testing.T) {
	root := (&app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }}).rootCommand()
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: %q is no short text", c.CommandPath(), c.Short)
		}
		if !c.HasSubCommands() && (!c.HasExample() || !strings.Contains(c.Example, root.Name()+" ")) {
			t.Errorf("%s has no example", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			kind, usage := pflag.UnquoteUsage(f)
			if !f.Hidden && (usage == "" || strings.ContainsAny(kind, " \t")) {
				t.Errorf("%s --%s is of the kind %q: %q", c.CommandPath(), f.Name, kind, usage)
			}
		})
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(root)
}

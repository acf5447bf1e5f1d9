package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// WritePage writes docs/CLI.md: every command that is not hidden, as its help
// tells about it. It is the same on every host.
func WritePage(w io.Writer) error {
	a := &app{env: func(string) string { return "" }}
	root := a.rootCommand()
	var b bytes.Buffer
	b.WriteString("# Commands\n\n<!-- Made by make generate from the commands themselves. -->\n\n")
	fmt.Fprintf(&b, "%s\n\n", root.Long)
	b.WriteString("`blixard COMMAND --help` shows the same in the terminal. Standard output holds what was asked for, all else goes to\n" +
		"standard error; `-o json` and `-o yaml` give what the API has, and a refusal has an error, a hint and a stable code.\n\n")
	writeFlags(&b, "Flags of all commands:", root.PersistentFlags().FlagUsages())
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "## %s\n\n", strings.TrimSuffix(group.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID == group.ID {
				writeCommand(&b, c)
			}
		}
	}
	page := bytes.TrimRight(b.Bytes(), "\n")
	_, err := w.Write(append(page, '\n'))
	return err
}

// writeCommand writes a command, or what stands below a noun.
func writeCommand(b *bytes.Buffer, c *cobra.Command) {
	if c.Hidden {
		return
	}
	if c.HasSubCommands() {
		for _, sub := range c.Commands() {
			writeCommand(b, sub)
		}
		return
	}
	text := c.Short + "."
	if c.Long != "" {
		text = strings.TrimSpace(strings.TrimSuffix(c.Long, exitHelp))
	}
	fmt.Fprintf(b, "### %s\n\n%s\n\n    %s\n\n", c.CommandPath(), text, c.UseLine())
	writeFlags(b, "Flags:", c.LocalNonPersistentFlags().FlagUsages())
	if c.Example != "" {
		writeFlags(b, "Examples:", c.Example+"\n")
	}
}

// writeFlags writes lines that are set as code.
func writeFlags(b *bytes.Buffer, title, lines string) {
	if lines == "" {
		return
	}
	fmt.Fprintf(b, "%s\n\n", title)
	for line := range strings.Lines(lines) {
		fmt.Fprintf(b, "    %s\n", strings.TrimRight(strings.TrimPrefix(line, "  "), " \n"))
	}
	b.WriteByte('\n')
}

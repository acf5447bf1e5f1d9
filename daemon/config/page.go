package config

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

const pageHead = `# Configuration

<!-- Made by make generate from daemon/config/keys.go. -->

A node takes its settings from four places, each stronger than the one before:

1. the defaults below;
2. a TOML file: the one named by ` + "`--config`" + ` or ` + "`BLIXARD_CONFIG`" + `, else ` + "`/etc/blixard/blixard.toml`" + ` as root and
   ` + "`~/.config/blixard/blixard.toml`" + ` otherwise, if it is there;
3. the environment: ` + "`BLIXARD_`" + ` and the key in capitals, so ` + "`lease.ttl`" + ` is ` + "`BLIXARD_LEASE_TTL`" + `; an empty variable counts as unset;
4. flags of ` + "`blixard node start`" + `: ` + "`lease.ttl`" + ` is ` + "`--lease-ttl`" + `.

` + "`blixard config show`" + ` prints the effective settings and where each comes from, ` + "`blixard config check`" + ` says all that is
wrong with them. An unknown key is an error, in the file and in the environment.

Sizes are written as ` + "`512MiB`, `1.5GiB`, `512M`" + ` (the same as ` + "`512MiB`" + `) or ` + "`500MB`" + ` (decimal); durations as ` + "`500ms`, `10s`, `1m30s`, `2h`" + ` or
` + "`1d`" + `. Relative paths in the file start at the file's directory, others at the working directory.

The client reads five variables of its own: ` + "`BLIXARD_ADDR`" + ` (the node to speak to), ` + "`BLIXARD_OUTPUT`" + ` (table, json or yaml),
` + "`BLIXARD_TIMEOUT`" + ` (of each call), ` + "`BLIXARD_PROJECT`" + ` (of what it makes, and of names without one) and ` + "`BLIXARD_CONFIG`" + `. Names that begin with ` + "`BLIXARD_TEST_`" + ` are left to the project's tests.

`

// WritePage writes the reference page, docs/CONFIGURATION.md.
func WritePage(w io.Writer) error {
	var b strings.Builder
	b.WriteString(pageHead)
	b.WriteString("## Keys\n\n| Key | Kind | Default | What it is |\n|---|---|---|---|\n")
	for _, k := range keys {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Name, strings.TrimPrefix(kindWord(k.field(&Config{})), "a "), k.defaultMarkdown(), k.Doc)
	}
	b.WriteString("\n## A file with all keys\n\n```toml\n")
	b.WriteString(exampleFile())
	b.WriteString("```\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (k Key) defaultMarkdown() string {
	if k.DefaultDoc != "" {
		return k.DefaultDoc
	}
	return "`" + k.Default(Host{}) + "`"
}

// Help is the text of the key's flag: the first sentence, and the default.
func (k Key) Help() string {
	first, _, _ := strings.Cut(k.Doc, ". ")
	def := k.DefaultDoc
	if def == "" {
		def = k.Default(Host{})
	}
	return strings.TrimSuffix(first, ".") + " (default: " + def + ")"
}

// ValueKind is the word for the flag's value: text, number, size or duration.
func (k Key) ValueKind() string {
	return strings.TrimPrefix(kindWord(k.field(&Config{})), "a ")
}

// IsPath is whether the value is a path.
func (k Key) IsPath() bool { return k.path }

// exampleFile writes all keys with values that Load takes: the defaults, and
// root's paths.
func exampleFile() string {
	var b strings.Builder
	table := ""
	for _, k := range keys {
		t, name, found := strings.Cut(k.Name, ".")
		if !found {
			t, name = "", k.Name
		}
		if t != table {
			fmt.Fprintf(&b, "\n[%s]\n", t)
			table = t
		}
		value := strconv.Quote(exampleValues[k.Name])
		if exampleValues[k.Name] == "" {
			value = strconv.Quote(k.Default(Host{}))
		}
		if _, number := k.field(&Config{}).(*uint32); number {
			value = k.Default(Host{})
		}
		fmt.Fprintf(&b, "%s = %s\n", name, value)
	}
	return b.String()
}

// exampleValues stand in for defaults that depend on the host.
var exampleValues = map[string]string{
	"data_dir":   "/var/lib/blixard",
	"socket":     "/run/blixard/blixard.sock",
	"bundle_dir": "/usr/share/blixard/bundle",
	"cache_dir":  "/var/cache/blixard",
	"node.name":  "node1",
}

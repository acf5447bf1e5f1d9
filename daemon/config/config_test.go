package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/localpath"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func source(t *testing.T, file string) Source {
	t.Helper()
	src := Source{Host: Host{User: localpath.User{UID: 0, Env: func(string) string { return "" }}, Hostname: "Host_1.example.org"}, Dir: "/work"}
	if file != "" {
		src.File = filepath.Join(t.TempDir(), "blixard.toml")
		if err := os.WriteFile(src.File, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return src
}

func TestDefaults(t *testing.T) {
	src := source(t, "# nothing\n[lease]\n")
	cfg, settings, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		DataDir: "/var/lib/blixard", Socket: "/run/blixard/blixard.sock", CacheDir: "/var/cache/blixard", AdminGroup: "blixard",
		ShutdownTimeout: 10 * time.Second,
		Node:            Node{Name: "host-1", ReservedMemory: 512 * units.MiB, Bind: ":7700"},
		Cluster:         Cluster{Voters: 3, ReplaceAfter: 5 * time.Minute, SnapshotEntries: 100_000, SnapshotMiB: 64, SnapshotInterval: 24 * time.Hour, TrailingEntries: 1000},
		Log:             Log{Level: "info", Format: "auto"},
		Lease:           Lease{TTL: 10 * time.Second, Margin: time.Second, Restart: 2 * time.Minute, StormPercent: 50},
		Scheduler:       Scheduler{Strategy: "spread", Preemption: "off", Load: "on"},
		Tasks:           Tasks{Accept: "on"},
		Console:         Console{LogSize: 4 * units.MiB, LogFiles: 3},
		Boot:            Boot{ReadyTimeout: time.Minute, Tries: 3},
		QEMU:            QEMU{Path: "qemu-system-x86_64"},
		Network:         Network{Default: "default", Mode: "auto", VXLANPort: 4789},
		Image:           Image{PrivateAddresses: "refuse"},
	}
	if cfg != want {
		t.Errorf("got %+v\nwant %+v", cfg, want)
	}
	for i, s := range settings {
		if s.Origin != "default" || s.Key.Name != keys[i].Name {
			t.Errorf("%s comes from %s", s.Key.Name, s.Origin)
		}
	}
	src.Host.User = localpath.User{UID: 1000, Env: func(string) string { return "" }}
	src.Flags = map[string]string{"data_dir": "d"}
	cfg, _, err = Load(src)
	if err != nil || cfg.Socket != "/work/d/blixard.sock" {
		t.Errorf("a user's socket is %s, %v", cfg.Socket, err)
	}
}

func TestStrength(t *testing.T) {
	src := source(t, `
data_dir = "data"
[lease]
ttl = "20s"
margin = "2s"
[boot]
tries = 5
[node]
reserved_memory = "1.5GiB"
`)
	src.Environ = []string{"BLIXARD_LEASE_MARGIN=3s", "BLIXARD_LEASE_TTL=", "BLIXARD_ADDR=unix:/x", "BLIXARD_TEST_X=1", "HOME=/", "BLIXARD_BOOT_TRIES=6", "BLIXARD_CACHE_DIR=c"}
	src.Flags = map[string]string{"boot.tries": "7"}
	cfg, settings, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Lease.TTL != 20*time.Second || cfg.Lease.Margin != 3*time.Second || cfg.Boot.Tries != 7 || cfg.Node.ReservedMemory != 1536*units.MiB ||
		cfg.DataDir != filepath.Join(filepath.Dir(src.File), "data") || cfg.CacheDir != "/work/c" {
		t.Errorf("got %+v", cfg)
	}
	origins := map[string]string{}
	for _, s := range settings {
		origins[s.Key.Name] = s.Origin
	}
	for key, want := range map[string]string{
		"lease.ttl": src.File + ":4", "lease.margin": "environment BLIXARD_LEASE_MARGIN", "boot.tries": "flag --boot-tries",
		"data_dir": src.File + ":2", "log.level": "default",
	} {
		if origins[key] != want {
			t.Errorf("%s comes from %q, want %q", key, origins[key], want)
		}
	}
}

func TestWrongSettings(t *testing.T) {
	for _, tc := range []struct {
		name, file    string
		environ       []string
		flags         map[string]string
		message, hint string
	}{
		{name: "unknown key", file: "\nlogg = 1\n", message: ":2: unknown key logg", hint: "config show"},
		{name: "near key", file: "[lease]\n\ntll = \"3s\"\n", message: ":3: unknown key lease.tll", hint: "did you mean lease.ttl?"},
		{name: "near in inline table", file: "lease = { tll = \"3s\" }\n", message: ":1: unknown key lease.tll", hint: "lease.ttl"},
		{name: "unknown table", file: "[nod]\nname = \"a\"\n", message: ":2: unknown key nod.name", hint: "did you mean node.name?"},
		{name: "empty unknown table", file: "[leese]\n", message: ":1: unknown key leese"},
		{name: "table as key", file: "lease = 5\n", message: ":1: lease is a table", hint: "its keys are lease.ttl, lease.margin"},
		{name: "key as table", file: "[socket]\na = 1\n", message: "it is a table, not a text", hint: "write socket ="},
		{name: "list of tables", file: "[[lease]]\nttl = \"3s\"\n", message: "lease is a table"},
		{name: "syntax", file: "data_dir = \n", message: ":1:12: ", hint: "key = \"value\""},
		{name: "twice", file: "[log]\nlevel=\"info\"\nlevel=\"warn\"\n", message: "level", hint: "key = \"value\""},
		{name: "number for text", file: "data_dir = 5", message: `data_dir = "5": it is a number, not a text`, hint: "quotes"},
		{name: "bool", file: "[boot]\ntries = true", message: `boot.tries = "true": it is true or false, not a number`, hint: `write boot.tries = "3"`},
		{name: "float", file: "[boot]\ntries = 1.5", message: "it is a number with a fraction, not a number"},
		{name: "list", file: "socket = [\"a\"]", message: "it is a list, not a text"},
		{name: "date", file: "socket = 2026-01-01", message: "it is a date, not a text"},
		{name: "size without unit", file: "[console]\nlog_size = 5\n", message: `:2: console.log_size: size "5" has no unit`, hint: "5MiB"},
		{name: "size out of range", file: "[console]\nlog_size = \"1B\"\n", message: "it must be from 64KiB to 1GiB", hint: "4MiB"},
		{name: "ttl too short", environ: []string{"BLIXARD_LEASE_TTL=1s"}, message: `environment BLIXARD_LEASE_TTL: lease.ttl = "1s": it must be from 2s to 5m`},
		{name: "duration", flags: map[string]string{"lease.ttl": "abc"}, message: `flag --lease-ttl: lease.ttl: duration "abc"`, hint: "1m30s"},
		{name: "negative", flags: map[string]string{"boot.tries": "-1"}, message: "it is not a whole number", hint: "as in 3"},
		{name: "none", flags: map[string]string{"console.log_files": "0"}, message: "it must be from 1 to 100", hint: "leave console.log_files out"},
		{name: "cpus", flags: map[string]string{"node.reserved_cpus": "5000"}, message: "it must be from 0 to 4096"},
		{name: "node name", flags: map[string]string{"node.name": "A b"}, message: "it is not a node's name", hint: "such as a-b"},
		{name: "group", flags: map[string]string{"admin_group": "a:b"}, message: "it is not a group's name"},
		{name: "word", flags: map[string]string{"log.level": "loud"}, message: "it must be one of debug, info, warn, error", hint: "choose one of these"},
		{name: "near word", flags: map[string]string{"log.level": "wran"}, message: "it must be one of debug, info, warn, error", hint: "did you mean warn?"},
		{name: "line break", flags: map[string]string{"socket": "a\nb"}, message: "line break"},
		{name: "unknown variable", environ: []string{"BLIXARD_DATADIR=/x"}, message: "environment: unknown key BLIXARD_DATADIR", hint: "did you mean BLIXARD_DATA_DIR?"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := source(t, tc.file)
			src.Environ, src.Flags = tc.environ, tc.flags
			_, _, err := Load(src)
			if err == nil || !strings.Contains(err.Error(), tc.message) {
				t.Fatalf("got %v\nwant %s", err, tc.message)
			}
			if p := problem.From(err); p.Kind != problem.Invalid || !strings.Contains(hints(err), tc.hint) {
				t.Fatalf("kind %s, hints %s; want %s", p.Kind, hints(err), tc.hint)
			}
		})
	}
}

func hints(err error) string {
	var all []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, hints(e))
		}
		return strings.Join(all, "; ")
	}
	return problem.From(err).Hint
}

func TestAllThatIsWrongIsTold(t *testing.T) {
	src := source(t, "a = 1\n[lease]\nttl = \"1s\"\n")
	src.Environ = []string{"BLIXARD_B=1"}
	src.Flags = map[string]string{"log.level": "x"}
	_, _, err := Load(src)
	for _, want := range []string{"unknown key a", "lease.ttl", "BLIXARD_B", "log.level"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestFiles(t *testing.T) {
	src := source(t, "")
	src.File = "no/such.toml"
	if _, _, err := Load(src); !problem.HasCode(err, "config.unreadable") || !strings.Contains(err.Error(), "/work/no/such.toml") {
		t.Errorf("missing file: %v", err)
	}
	src.File = t.TempDir()
	if _, _, err := Load(src); !problem.HasCode(err, "config.unreadable") {
		t.Errorf("directory: %v", err)
	}
	src = source(t, strings.Repeat("# a line of a comment\n", 60000))
	if _, _, err := Load(src); err == nil || !strings.Contains(err.Error(), "more than 1MiB") {
		t.Errorf("huge file: %v", err)
	}
	if _, err := System(); err != nil {
		t.Errorf("System: %v", err)
	}
}

func TestNodeName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{Node: Node{Name: nodeName(rapid.String().Draw(t, "host"))}}
		if reason, _ := checkNodeName(&c); reason != "" {
			t.Fatalf("%q: %s", c.Node.Name, reason)
		}
	})
	if n := nodeName(strings.Repeat("a", 62) + "-b"); n != strings.Repeat("a", 62) {
		t.Errorf("long name became %q", n)
	}
}

func TestPageIsCurrent(t *testing.T) {
	var b bytes.Buffer
	if err := WritePage(&b); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/CONFIGURATION.md")
	if err != nil || !bytes.Equal(page, b.Bytes()) {
		t.Errorf("docs/CONFIGURATION.md is not what the table says, run make generate (%v)", err)
	}
	for _, k := range Keys() {
		if !strings.Contains(b.String(), "`"+k.Name+"`") || k.Help() == "" || k.ValueKind() == "" || !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s is not documented", k.Name)
		}
	}
}

func TestExampleFileIsRight(t *testing.T) {
	_, settings, err := Load(source(t, exampleFile()))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		if s.Origin == "default" {
			t.Errorf("%s is not in the example", s.Key.Name)
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, s := range []string{exampleFile(), "a", "[lease]\nttl = 3", "lease.ttl = \"3s\"\nlease = 4", "[[a]]\n[a.b]", "\"a.b\" = {c = []}", "socket = {}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parseFile("/f.toml", data)
		if err == nil && l.values == nil {
			t.Fatal("neither values nor an error")
		}
		var p *problem.Error
		if err != nil && (!errors.As(err, &p) || p.Kind != problem.Invalid || p.Hint == "") {
			t.Fatalf("%v", err)
		}
		if l.values == nil {
			return
		}
		for _, k := range keys {
			var c Config
			if l.values.Exists(k.Name) {
				_ = set(&c, k, l.values.Get(k.Name), l)
			}
		}
	})
}

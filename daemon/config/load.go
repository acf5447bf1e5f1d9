package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/v2"

	"github.com/blixard/blixard/internal/localpath"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// OriginDefault is the origin of settings that nobody set.
const OriginDefault = "default"

// envPrefix begins the environment variables that are settings.
const envPrefix = "BLIXARD_"

// otherVariables begin with envPrefix and belong to others: the client's, and
// those of the project's own tests.
var otherVariables = []string{"BLIXARD_ADDR", "BLIXARD_CREDENTIALS", "BLIXARD_CONFIG", "BLIXARD_OUTPUT", "BLIXARD_TIMEOUT", "BLIXARD_PROJECT"}

// testPrefix begins variables of the project's own tests and builds.
const testPrefix = "BLIXARD_TEST_"

// Host is what defaults depend on.
type Host struct {
	User     localpath.User
	Hostname string
}

// Source is where settings come from.
type Source struct {
	Host Host
	// File is a TOML file that must exist; empty means the default one if it is
	// there.
	File string
	// Environ as os.Environ gives it.
	Environ []string
	// Flags holds those that were given, by key name.
	Flags map[string]string
	// Dir makes relative paths of the environment and of flags absolute; those of
	// the file are relative to the file's directory.
	Dir string
}

// System is the source of this process: its user, host name, environment and
// working directory.
func System() (Source, error) {
	dir, err := os.Getwd()
	if err != nil {
		return Source{}, problem.New(problem.Internal, "config.working_dir", "the working directory can't be named").
			WithCause(err).WithHint("change to a directory that exists")
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = ""
	}
	return Source{
		Host:    Host{User: localpath.Current(), Hostname: hostname},
		File:    os.Getenv("BLIXARD_CONFIG"),
		Environ: os.Environ(),
		Dir:     dir,
	}, nil
}

// Setting is the effective value of one key and where it comes from.
type Setting struct {
	Key   Key
	Value string
	// Origin is "default", "FILE:LINE", "environment BLIXARD_X" or "flag --x".
	Origin string
}

// layer is one source of values, weaker than those after it.
type layer struct {
	values *koanf.Koanf
	origin func(key string) string
	dir    string
}

// Load reads all sources and checks every value. The error joins all that is
// wrong, not only the first; each is a problem of kind Invalid that names where
// it is, why it can't be used and how to mend it.
func Load(src Source) (Config, []Setting, error) {
	layers := []layer{defaults(src)}
	var wrong []error
	file, err := fileLayer(src)
	if err != nil {
		wrong = append(wrong, err)
	}
	env, err := envLayer(src)
	if err != nil {
		wrong = append(wrong, err)
	}
	layers = append(layers, file, env, flagLayer(src))

	merged := koanf.New(".")
	for _, l := range layers {
		if l.values == nil {
			continue
		}
		if err := merged.Merge(l.values); err != nil {
			return Config{}, nil, problem.New(problem.Internal, "config.merge", "settings can't be merged").WithCause(err)
		}
	}
	var cfg Config
	origins := map[string]string{}
	bad := map[string]bool{}
	for _, k := range keys {
		from := origin(layers, k.Name)
		origins[k.Name] = from.origin(k.Name)
		if err := set(&cfg, k, merged.Get(k.Name), from); err != nil {
			wrong, bad[k.Name] = append(wrong, err), true
		}
	}
	if cfg.Socket == "" && !bad["data_dir"] {
		cfg.Socket = src.Host.User.Socket(cfg.DataDir)
	}
	for _, k := range keys {
		if k.check == nil || bad[k.Name] {
			continue
		}
		if reason, hint := k.check(&cfg); reason != "" {
			wrong = append(wrong, invalid(origins[k.Name], k.Name, text(k.field(&cfg)), reason, hint))
		}
	}
	if len(wrong) > 0 {
		return Config{}, nil, errors.Join(wrong...)
	}
	settings := make([]Setting, 0, len(keys))
	for _, k := range keys {
		settings = append(settings, Setting{Key: k, Value: text(k.field(&cfg)), Origin: origins[k.Name]})
	}
	return cfg, settings, nil
}

func origin(layers []layer, key string) layer {
	for _, l := range slices.Backward(layers) {
		if l.values != nil && l.values.Exists(key) {
			return l
		}
	}
	return layers[0]
}

func defaults(src Source) layer {
	values := map[string]string{}
	for _, k := range keys {
		values[k.Name] = k.Default(src.Host)
	}
	return layer{values: flat(values), origin: func(string) string { return OriginDefault }, dir: src.Dir}
}

// flat makes a layer of dotted keys.
func flat(values map[string]string) *koanf.Koanf {
	ko := koanf.New(".")
	for k, v := range values {
		// Set fails only when a merge function does, and none is set.
		_ = ko.Set(k, v)
	}
	return ko
}

// EnvName gives the environment variable of a key.
func (k Key) EnvName() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_"))
}

// shortFlags are the flags of keys that a person gives so often that their table
// is left out.
var shortFlags = map[string]string{
	"node.name": "id", "node.bind": "bind", "node.https_bind": "https-bind", "node.advertise": "advertise",
	"cluster.peers": "peers", "cluster.join_token_file": "join-token-file",
}

// FlagName gives the flag of a key, without its dashes.
func (k Key) FlagName() string {
	if short := shortFlags[k.Name]; short != "" {
		return short
	}
	return strings.NewReplacer(".", "-", "_", "-").Replace(k.Name)
}

func envLayer(src Source) (layer, error) {
	names := map[string]string{}
	known := slices.Clone(otherVariables)
	for _, k := range keys {
		names[k.EnvName()] = k.Name
		known = append(known, k.EnvName())
	}
	values := map[string]string{}
	var wrong []error
	for _, entry := range src.Environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, testPrefix) || slices.Contains(otherVariables, name) {
			continue
		}
		key, ok := names[name]
		if !ok {
			wrong = append(wrong, unknown("environment", name, known))
			continue
		}
		if value != "" {
			values[key] = value
		}
	}
	l := layer{values: flat(values), dir: src.Dir, origin: func(key string) string {
		return "environment " + envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
	}}
	return l, errors.Join(wrong...)
}

func flagLayer(src Source) layer {
	return layer{values: flat(src.Flags), dir: src.Dir, origin: func(key string) string {
		return "flag --" + Key{Name: key}.FlagName()
	}}
}

func unknown(where, name string, known []string) error {
	p := problem.New(problem.Invalid, "config.unknown_key", "%s: unknown key %s", where, name)
	if near := nearest.Of(name, known); near != "" {
		return p.WithHint("did you mean %s?", near)
	}
	return p.WithHint("`blixard config show` lists the keys there are")
}

func invalid(where, key, value, reason, hint string) error {
	p := problem.New(problem.Invalid, "config.invalid", "%s: %s = %q: %s", where, key, value, reason)
	if hint != "" {
		return p.WithHint("%s", hint)
	}
	return p
}

// set converts one raw value and stores it.
func set(cfg *Config, k Key, raw any, from layer) error {
	where := from.origin(k.Name)
	var value string
	switch v := raw.(type) {
	case string:
		value = v
	case int64:
		value = strconv.FormatInt(v, 10)
	default:
		return invalid(where, k.Name, fmt.Sprint(raw), fmt.Sprintf("it is %s, not %s", tomlType(raw), kindWord(k.field(cfg))),
			"write "+k.Name+" = "+strconv.Quote(k.example()))
	}
	var err error
	switch p := k.field(cfg).(type) {
	case *string:
		if _, isString := raw.(string); !isString {
			return invalid(where, k.Name, value, "it is a number, not a text", "put it in quotes")
		}
		if strings.ContainsAny(value, "\x00\n\r") {
			return invalid(where, k.Name, value, "it has a line break or a NUL in it", "write it on one line")
		}
		if k.path && value != "" && !filepath.IsAbs(value) {
			value = filepath.Join(from.dir, value)
		}
		*p = value
	case *uint32:
		var n uint64
		if n, err = strconv.ParseUint(value, 10, 32); err != nil {
			return invalid(where, k.Name, value, "it is not a whole number", "write it in digits, as in "+k.example())
		}
		*p = uint32(n)
	case *units.Size:
		*p, err = units.ParseSize(value)
	case *time.Duration:
		*p, err = units.ParseDuration(value)
	}
	if err != nil {
		e := problem.From(err)
		return problem.New(problem.Invalid, "config.invalid", "%s: %s: %s", where, k.Name, e.Message).WithHint("%s", e.Hint)
	}
	return nil
}

// example is a value the key could have.
func (k Key) example() string {
	v := k.Default(Host{User: localpath.User{Env: func(string) string { return "" }}, Hostname: "node"})
	if v == "" {
		return "/some/path"
	}
	return v
}

func kindWord(field any) string {
	switch field.(type) {
	case *uint32:
		return "a number"
	case *units.Size:
		return "a size"
	case *time.Duration:
		return "a duration"
	}
	return "a text"
}

func tomlType(raw any) string {
	switch raw.(type) {
	case bool:
		return "true or false"
	case float64:
		return "a number with a fraction"
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	}
	return "a date"
}

// text writes a field as a person would.
func text(field any) string {
	switch p := field.(type) {
	case *string:
		return *p
	case *uint32:
		return strconv.FormatUint(uint64(*p), 10)
	case *units.Size:
		return p.String()
	case *time.Duration:
		return units.FormatDuration(*p)
	}
	return ""
}

// readFile gives the text of the file, or nil when the default one is absent.
func readFile(src Source) (path string, data []byte, err error) {
	path = src.File
	if path == "" {
		path = src.Host.User.ConfigFile()
	} else if !filepath.IsAbs(path) {
		path = filepath.Join(src.Dir, path)
	}
	f, err := os.Open(path)
	if err != nil {
		if src.File == "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			return path, nil, nil
		}
		return path, nil, problem.New(problem.Invalid, "config.unreadable", "the configuration can't be read").WithCause(err).
			WithHint("name a file with --config or BLIXARD_CONFIG, or leave both out")
	}
	defer func() { _ = f.Close() }()
	data, err = readAtMost(f, fileBytesMax)
	if err != nil {
		return path, nil, problem.New(problem.Invalid, "config.unreadable", "%s can't be read", path).WithCause(err).
			WithHint("name a TOML file of at most %s", units.Size(fileBytesMax))
	}
	return path, data, nil
}

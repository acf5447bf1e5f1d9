package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knadh/koanf/v2"
	toml "github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// fileBytesMax bounds the file: all keys with their comments take under 16 KiB.
const fileBytesMax = uint64(units.MiB)

func readAtMost(r io.Reader, most uint64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if uint64(len(data)) > most {
		return nil, fmt.Errorf("it has more than %s", units.Size(most))
	}
	return data, nil
}

// fileLayer reads the TOML file. It has no values when there is none.
func fileLayer(src Source) (layer, error) {
	path, data, err := readFile(src)
	if err != nil || data == nil {
		return layer{}, err
	}
	return parseFile(path, data)
}

// tomlBytes hands the file to koanf.
type tomlBytes struct{ data []byte }

func (t tomlBytes) ReadBytes() ([]byte, error) { return t.data, nil }

func (t tomlBytes) Read() (map[string]any, error) {
	var m map[string]any
	err := toml.Unmarshal(t.data, &m)
	return m, err
}

func parseFile(path string, data []byte) (layer, error) {
	ko := koanf.NewWithConf(koanf.Conf{Delim: "."})
	if err := ko.Load(tomlBytes{data}, nil); err != nil {
		return layer{}, tomlProblem(path, err)
	}
	lines := keyLines(data)
	where := func(key string) string {
		if n, ok := lines[key]; ok {
			return fmt.Sprintf("%s:%d", path, n)
		}
		return path
	}
	l := layer{values: ko, origin: where, dir: filepath.Dir(path)}
	known := make([]string, 0, len(keys))
	for _, k := range keys {
		known = append(known, k.Name)
	}
	var wrong []error
	for _, key := range writtenKeys(ko) {
		if slices.Contains(known, key) || inside(key, known) {
			continue
		}
		wrong = append(wrong, unknownInFile(where(key), key, known))
		// The rest is checked without it, so that all that is wrong is told at once.
		ko.Delete(key)
	}
	return l, errors.Join(wrong...)
}

// unknownInFile is unknown, but for the name of a table used as a key.
func unknownInFile(where, key string, known []string) error {
	if !isTable(key) {
		return unknown(where, key, known)
	}
	var inTable []string
	for _, k := range known {
		if strings.HasPrefix(k, key+".") {
			inTable = append(inTable, k)
		}
	}
	return problem.New(problem.Invalid, "config.unknown_key", "%s: %s is a table, not a key", where, key).
		WithHint("its keys are %s", strings.Join(inTable, ", "))
}

// writtenKeys gives the keys of the file in order, empty tables left out.
func writtenKeys(ko *koanf.Koanf) []string {
	var out []string
	for _, key := range ko.Keys() {
		if m, ok := ko.Get(key).(map[string]any); ok && len(m) == 0 && isTable(key) {
			continue
		}
		out = append(out, key)
	}
	return out
}

// isTable reports whether a key of the table begins with that table's name.
func isTable(name string) bool {
	for _, k := range keys {
		if strings.HasPrefix(k.Name, name+".") {
			return true
		}
	}
	return false
}

// inside reports whether key is a part of a known key that was written as a
// table; set then says that it has the wrong type.
func inside(key string, known []string) bool {
	for _, k := range known {
		if strings.HasPrefix(key, k+".") {
			return true
		}
	}
	return false
}

func tomlProblem(path string, err error) error {
	where, reason := path, err.Error()
	var d *toml.DecodeError
	if errors.As(err, &d) {
		line, column := d.Position()
		where = fmt.Sprintf("%s:%d:%d", path, line, column)
		reason = strings.TrimPrefix(d.Error(), "toml: ")
	}
	return problem.New(problem.Invalid, "config.syntax", "%s: %s", where, reason).
		WithHint("a setting is written as key = \"value\", a table as [name]; see docs/CONFIGURATION.md")
}

// keyLines finds the line of each key that the file sets. It is called with a
// file that parsed, and gives what it found until something surprises it.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		name, line := dotted(data, e)
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = name
			record(lines, table, line)
		case unstable.KeyValue:
			recordValue(lines, append(slices.Clone(table), name...), line, data, e)
		}
	}
	return lines
}

// recordValue keeps the line of a key and of those in its inline tables.
func recordValue(lines map[string]int, name []string, line int, data []byte, e *unstable.Node) {
	record(lines, name, line)
	if e.Value().Kind != unstable.InlineTable {
		return
	}
	it := e.Value().Children()
	for it.Next() {
		inner, line := dotted(data, it.Node())
		recordValue(lines, append(slices.Clone(name), inner...), line, data, it.Node())
	}
}

// record keeps the line of a key, and of the tables around it when they have
// none of their own.
func record(lines map[string]int, name []string, line int) {
	for n := range name {
		key := strings.Join(name[:n+1], ".")
		if _, ok := lines[key]; !ok || n == len(name)-1 {
			lines[key] = line
		}
	}
}

func dotted(data []byte, e *unstable.Node) (name []string, line int) {
	it := e.Key()
	for it.Next() {
		n := it.Node()
		name = append(name, string(n.Data))
		if line == 0 {
			end := min(int(n.Raw.Offset), len(data))
			line = 1 + bytes.Count(data[:end], []byte("\n"))
		}
	}
	return name, line
}

package manifest

import (
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"go.yaml.in/yaml/v3"
)

// tomlList is the table of which a file may have many.
const tomlList = "object"

// toml reads one object, or those of [[object]].
func (r *reader) toml(data []byte) ([]*yaml.Node, error) {
	var table map[string]any
	if err := toml.Unmarshal(data, &table); err != nil {
		line := 0
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ = at.Position()
		}
		return nil, r.problem(line, "manifest.syntax", "%s", strings.TrimPrefix(err.Error(), "toml: ")).WithHint("mend the file")
	}
	if len(table) == 0 {
		return nil, nil
	}
	raw, err := json.Marshal(table)
	if err != nil {
		return nil, r.problem(0, "manifest.syntax", "%v", err).WithHint("numbers must be finite")
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, r.problem(0, "manifest.syntax", "%v", err).WithHint("mend the file")
	}
	root := doc.Content[0]
	newTOMLLines(data).number(root)
	last := 0
	r.mixed = !ascends(root, &last)
	if list := root.Content[1]; len(table) == 1 && root.Content[0].Value == tomlList {
		return flatten([]*yaml.Node{list}), nil
	}
	return []*yaml.Node{root}, nil
}

// tomlLines finds the lines of a file that was read already, so its syntax is right.
type tomlLines struct {
	parser unstable.Parser
	// ends are where the lines end.
	ends []int
	// tables counts how many [[name]] of a list were seen.
	tables map[*yaml.Node]int
}

func newTOMLLines(data []byte) *tomlLines {
	t := &tomlLines{tables: map[*yaml.Node]int{}}
	for i, c := range data {
		if c == '\n' {
			t.ends = append(t.ends, i)
		}
	}
	t.parser.Reset(data)
	return t
}

// number gives the nodes under root, which was made of the file, their lines in it, and
// puts the fields of each table in their order.
func (t *tomlLines) number(root *yaml.Node) {
	forget(root)
	root.Line = 1
	table := root
	for t.parser.NextExpression() {
		switch e := t.parser.Expression(); e.Kind {
		case unstable.Table:
			table = t.walk(root, e.Key(), false)
		case unstable.ArrayTable:
			table = t.walk(root, e.Key(), true)
		case unstable.KeyValue:
			t.field(table, e)
		}
	}
	arrange(root)
}

// forget takes the lines away, which are those of something else.
func forget(n *yaml.Node) {
	n.Line = 0
	for _, c := range n.Content {
		forget(c)
	}
}

// arrange orders the fields of tables by their lines, and gives what has none that of what
// it is in.
func arrange(n *yaml.Node) {
	for _, c := range n.Content {
		if c.Line == 0 {
			c.Line = n.Line
		}
		arrange(c)
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	pairs := slices.Collect(slices.Chunk(slices.Clone(n.Content), 2))
	slices.SortStableFunc(pairs, func(a, b []*yaml.Node) int { return cmp.Compare(a[0].Line, b[0].Line) })
	n.Content = slices.Concat(pairs...)
}

// ascends reports whether lines only go up in the order of the tree, from last on.
func ascends(n *yaml.Node, last *int) bool {
	if n.Line < *last {
		return false
	}
	*last = n.Line
	for _, c := range n.Content {
		if !ascends(c, last) {
			return false
		}
	}
	return true
}

func (t *tomlLines) line(at unstable.Range) int {
	return 1 + sort.SearchInts(t.ends, int(at.Offset))
}

// walk goes along a key from n and gives what it leads to; next says that another table of
// a list begins there.
func (t *tomlLines) walk(n *yaml.Node, key unstable.Iterator, next bool) *yaml.Node {
	for key.Next() {
		n = t.step(n, key.Node())
		if n == nil || n.Kind != yaml.SequenceNode {
			continue
		}
		if next && key.IsLast() {
			t.tables[n]++
		}
		at := t.tables[n] - 1
		if at < 0 || at >= len(n.Content) {
			return nil
		}
		n = n.Content[at]
		if n.Line == 0 {
			n.Line = t.line(key.Node().Raw)
		}
	}
	return n
}

// step gives the field of a table, which has its line where it is first named; nil when it
// has none.
func (t *tomlLines) step(n *yaml.Node, key *unstable.Node) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != string(key.Data) {
			continue
		}
		if n.Content[i].Line == 0 {
			n.Content[i].Line = t.line(key.Raw)
			n.Content[i+1].Line = n.Content[i].Line
		}
		return n.Content[i+1]
	}
	return nil
}

func (t *tomlLines) field(table *yaml.Node, e *unstable.Node) {
	key := e.Key()
	for key.Next() {
		table = t.step(table, key.Node())
	}
	t.value(table, e.Value())
}

// value numbers what is in a value.
func (t *tomlLines) value(n *yaml.Node, v *unstable.Node) {
	if n == nil {
		return
	}
	switch v.Kind {
	case unstable.Array:
		i := 0
		for all := v.Children(); all.Next() && i < len(n.Content); i++ {
			if raw := all.Node().Raw; raw.Length > 0 {
				n.Content[i].Line = t.line(raw)
			}
			t.value(n.Content[i], all.Node())
		}
	case unstable.InlineTable:
		for all := v.Children(); all.Next(); {
			t.field(n, all.Node())
		}
	}
}

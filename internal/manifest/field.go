package manifest

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// element of the path of a field: a name, and in brackets what chooses one of a list or of
// a map.
type element struct {
	name string
	// chooses: there are brackets, with chosen in them: the number of one of a list in
	// digits, or a key, which is quoted when it is a text.
	chooses bool
	chosen  string
	quoted  bool
}

// fieldPath takes a path apart that is written as the API's checks do: spec.ports[1].host_port
// or labels["app"]. It ends where something else begins: what is read so far is around that.
func fieldPath(text string) []element {
	var path []element
	for text != "" {
		e := element{name: text}
		if end := strings.IndexAny(text, ".["); end >= 0 {
			e.name = text[:end]
		}
		text = text[len(e.name):]
		if e.name == "" {
			return path
		}
		if strings.HasPrefix(text, "[") {
			rest, ok := e.choose(text[1:])
			if !ok {
				return append(path, element{name: e.name})
			}
			text = rest
		}
		path = append(path, e)
		if text != "" && text[0] != '.' {
			return path
		}
		text = strings.TrimPrefix(text, ".")
	}
	return path
}

// choose reads what is in brackets, and gives what comes behind them.
func (e *element) choose(text string) (rest string, ok bool) {
	if quoted, err := strconv.QuotedPrefix(text); err == nil {
		e.chosen, err = strconv.Unquote(quoted)
		if err != nil {
			return "", false
		}
		e.chooses, e.quoted = true, true
		return strings.CutPrefix(text[len(quoted):], "]")
	}
	e.chosen, rest, ok = strings.Cut(text, "]")
	e.chooses = true
	return rest, ok
}

// FieldWhere gives FILE:LINE of the field that has a path in the request which was made of o;
// of the nearest one around it that the file has, when it does not have that one; and of
// the object when it has none of them.
func (o *Object) FieldWhere(path string) string {
	if o.node == nil {
		return o.Where
	}
	elements := fieldPath(path)
	fields := message(o.Kind).ProtoReflect().Descriptor().Fields()
	// Some requests have the object in a field of their own, and some fields of a request
	// are of no object.
	for len(elements) > 0 && fields.ByName(protoreflect.Name(elements[0].name)) == nil && fields.ByJSONName(elements[0].name) == nil {
		elements = elements[1:]
	}
	return o.source.where(lineOf(o.node, elements))
}

// lineOf gives the line of the field at path in n, or of the nearest one around it.
func lineOf(n *yaml.Node, path []element) int {
	line := n.Line
	for _, e := range path {
		key, value := field(n, e.name)
		if value == nil {
			return line
		}
		line, n = key.Line, value
		if !e.chooses {
			continue
		}
		if key, value = one(n, e); value == nil {
			return line
		}
		line, n = key.Line, value
	}
	return line
}

// one gives what e chooses of a list or a map, and the node at whose line it begins; nil when
// there is none.
func one(n *yaml.Node, e element) (begin, value *yaml.Node) {
	switch n.Kind {
	case yaml.SequenceNode:
		i, err := strconv.Atoi(e.chosen)
		if e.quoted || err != nil || i < 0 || i >= len(n.Content) {
			return nil, nil
		}
		return n.Content[i], n.Content[i]
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == e.chosen {
				return n.Content[i], n.Content[i+1]
			}
		}
	}
	return nil, nil
}

// field of a mapping by the name of the API in either spelling, and its key; nil when there
// is none.
func field(n *yaml.Node, name string) (key, value *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		return nil, nil
	}
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i].Value; k == name || plain(k) == plain(name) {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

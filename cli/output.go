package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/blixard/blixard/internal/nearest"
)

// outputForms are the forms of the output, the default first.
var outputForms = []string{"table", "json", "yaml"}

// outputFlag is one of outputForms.
type outputFlag string

func (o *outputFlag) String() string { return string(*o) }
func (o *outputFlag) Type() string   { return "form" }

func (o *outputFlag) Set(text string) error {
	if !slices.Contains(outputForms, text) {
		p := usageError("it must be one of %s", strings.Join(outputForms, ", "))
		if near := nearest.Of(text, outputForms); near != "" {
			return p.WithHint("did you mean %s?", near)
		}
		return p.WithHint("leave it out for a table")
	}
	*o = outputFlag(text)
	return nil
}

// fields is a small object that is no message of the API, in order.
type fields []struct{ name, value string }

// jsonForm is the API's own: the fields' names and values as protojson has them,
// and fields that are not set with their default, so that scripts find them.
var jsonForm = protojson.MarshalOptions{EmitDefaultValues: true}

// encodeJSON gives the JSON of a message, of fields or of raw JSON on one line.
// protojson itself spaces at random.
func encodeJSON(v any) ([]byte, error) {
	var raw []byte
	var err error
	switch v := v.(type) {
	case proto.Message:
		raw, err = jsonForm.Marshal(v)
	case fields:
		var b bytes.Buffer
		for i, f := range v {
			name, _ := json.Marshal(f.name)
			value, _ := json.Marshal(f.value)
			fmt.Fprintf(&b, "%s%s:%s", map[bool]string{true: "{", false: ","}[i == 0], name, value)
		}
		b.WriteString("}")
		raw = b.Bytes()
	case json.RawMessage:
		raw = v
	default:
		raw, err = json.Marshal(v)
	}
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// list makes {"name":[...]} of messages.
func list[M proto.Message](name string, messages []M) (json.RawMessage, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "{%q:[", name)
	for i, m := range messages {
		raw, err := encodeJSON(m)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(raw)
	}
	b.WriteString("]}")
	return b.Bytes(), nil
}

// print writes v as JSON or YAML, or calls table.
func (a *app) print(v any, table func() error) error {
	switch a.output {
	case "json":
		raw, err := encodeJSON(v)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return err
		}
		b.WriteByte('\n')
		_, err = b.WriteTo(a.stdout)
		return err
	case "yaml":
		return writeYAML(a.stdout, v)
	}
	return table()
}

// printLine writes one of many: a line of JSON or a document of YAML.
func (a *app) printLine(v any, line func() error) error {
	switch a.output {
	case "json":
		raw, err := encodeJSON(v)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(append(raw, '\n'))
		return err
	case "yaml":
		if _, err := io.WriteString(a.stdout, "---\n"); err != nil {
			return err
		}
		return writeYAML(a.stdout, v)
	}
	return line()
}

func writeYAML(w io.Writer, v any) error {
	raw, err := encodeJSON(v)
	if err != nil {
		return err
	}
	out, err := yaml.JSONToYAML(raw)
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

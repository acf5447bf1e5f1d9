package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"buf.build/go/protovalidate"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
)

// Kinds of objects, in the order in which they are made: each may need those before it.
const (
	KindNetwork = "Network"
	KindVolume  = "Volume"
	KindVM      = "VM"
	KindGroup   = "Group"
	// KindSchedule of tasks.
	KindSchedule = "Schedule"
	KindTask     = "Task"
)

// Kinds in the order in which they are made.
func Kinds() []string {
	return []string{KindNetwork, KindVolume, KindVM, KindGroup, KindSchedule, KindTask}
}

// Limits of what is read.
const (
	// BytesMax of a file.
	BytesMax = 16 << 20
	// ObjectsMax of one call.
	ObjectsMax = 10_000
	// depthMax of the structure: objects of the API have seven levels at most.
	depthMax = 32
	// errorsMax are told of one file.
	errorsMax = 20
)

// Object is one that a file declares. Exactly the request of its kind is set.
type Object struct {
	Kind string
	// Name is the full name, where objects of the kind are of projects.
	Name     string
	VM       *blixardv1.CreateVMRequest
	Volume   *blixardv1.CreateVolumeRequest
	Network  *blixardv1.CreateNetworkRequest
	Group    *blixardv1.CreateGroupRequest
	Schedule *blixardv1.CreateScheduleRequest
	Task     *blixardv1.SubmitTaskRequest
	// Where it stands, as FILE:LINE; FieldWhere says it of its fields.
	Where string

	// source and node are what it was read from; nil when it was not.
	source *reader
	node   *yaml.Node
}

// Read gives the objects of one file, whose name says its form: .json, .toml, and YAML
// for all else. It fails with problems of kind Invalid and codes that begin with
// "manifest.", joined when there are several.
func Read(file string, data []byte) ([]*Object, error) {
	if len(data) > BytesMax {
		return nil, problem.New(problem.Invalid, "manifest.too_large", "%s has %d bytes, at most %d are possible", file, len(data), BytesMax).
			WithHint("make several files of it")
	}
	r := &reader{file: file}
	docs, err := r.documents(data)
	if err != nil {
		return nil, err
	}
	var objects []*Object
	var all []error
	for _, doc := range docs {
		if len(objects) >= ObjectsMax {
			return nil, problem.New(problem.Invalid, "manifest.too_large", "%s has more than %d objects", file, ObjectsMax).WithHint("make several files of it")
		}
		o, err := r.object(doc)
		if err != nil {
			if all = append(all, err); len(all) >= errorsMax {
				break
			}
			continue
		}
		objects = append(objects, o)
	}
	return objects, errors.Join(all...)
}

// Sort orders objects as they are made, and refuses two of one kind and name, and tasks that
// come after each other in a circle.
func Sort(objects []*Object) error {
	seen := map[string]*Object{}
	var all []error
	for _, o := range objects {
		key := o.Kind + " " + o.Name
		if other := seen[key]; other != nil {
			all = append(all, problem.New(problem.Invalid, "manifest.duplicate", "%s: %s %q stands at %s, too", o.Where, o.Kind, o.Name, other.Where).
				WithHint("leave one of both out"))
		}
		seen[key] = o
	}
	slices.SortStableFunc(objects, func(a, b *Object) int {
		if c := cmp.Compare(slices.Index(Kinds(), a.Kind), slices.Index(Kinds(), b.Kind)); c != 0 {
			return c
		}
		return cmp.Compare(a.Name, b.Name)
	})
	first := slices.IndexFunc(objects, func(o *Object) bool { return o.Kind == KindTask })
	if first < 0 || len(all) > 0 {
		return errors.Join(all...)
	}
	return orderTasks(objects[first:])
}

type reader struct {
	file string
	// mixed: what belongs together does not stand together in the file, so that what is read
	// as a whole has no lines that the decoder could tell.
	mixed bool
}

func (r *reader) where(line int) string {
	if line == 0 {
		return r.file
	}
	return r.file + ":" + strconv.Itoa(line)
}

func (r *reader) problem(line int, code, format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, code, "%s: %s", r.where(line), fmt.Sprintf(format, args...))
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

// documents gives the objects of a file as trees.
func (r *reader) documents(data []byte) ([]*yaml.Node, error) {
	if strings.EqualFold(filepath.Ext(r.file), ".toml") {
		return r.toml(data)
	}
	var docs []*yaml.Node
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line := 0
			if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
				line, _ = strconv.Atoi(m[1])
			}
			return nil, r.problem(line, "manifest.syntax", "%s", strings.TrimPrefix(err.Error(), "yaml: ")).WithHint("mend the file; it must be YAML, JSON, or TOML in a file whose name ends in .toml")
		}
		docs = append(docs, flatten(doc.Content)...)
	}
	return docs, nil
}

// flatten takes lists of objects apart, and leaves empty documents out.
func flatten(nodes []*yaml.Node) []*yaml.Node {
	var docs []*yaml.Node
	for _, n := range nodes {
		switch {
		case n.Kind == yaml.SequenceNode:
			docs = append(docs, n.Content...)
		case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		default:
			docs = append(docs, n)
		}
	}
	return docs
}

// messages are what a kind is read as: the API's own object, so that what is shown can be
// applied again. What the cluster says of it is left out.
func message(kind string) proto.Message {
	switch kind {
	case KindNetwork:
		return &blixardv1.Network{}
	case KindVolume:
		return &blixardv1.Volume{}
	case KindVM:
		return &blixardv1.VM{}
	case KindGroup:
		return &blixardv1.Group{}
	case KindSchedule:
		return &blixardv1.Schedule{}
	case KindTask:
		return &blixardv1.Task{}
	}
	return nil
}

func (r *reader) object(n *yaml.Node) (*Object, error) {
	if n.Kind != yaml.MappingNode {
		return nil, r.problem(n.Line, "manifest.syntax", "an object is missing").WithHint("an object begins with kind: %s", strings.Join(Kinds(), ", "))
	}
	kind, err := r.kind(n)
	if err != nil {
		return nil, err
	}
	line := 1
	var raw bytes.Buffer
	if err := r.json(&raw, n, &line, 0); err != nil {
		return nil, err
	}
	m := message(kind)
	if err := protojson.Unmarshal(raw.Bytes(), m); err != nil {
		return nil, r.decodeProblem(err, m)
	}
	o := &Object{Kind: kind, Where: r.where(n.Line), source: r, node: n}
	var req proto.Message
	switch m := m.(type) {
	case *blixardv1.VM:
		if m.GetSpec() == nil {
			return nil, r.problem(n.Line, "manifest.field", "the VM %q has no spec", m.GetName()).WithHint("add spec with at least an image")
		}
		o.Name, o.VM = m.GetName(), &blixardv1.CreateVMRequest{Name: m.GetName(), Spec: m.GetSpec(), Labels: m.GetLabels(), Project: m.GetProject()}
		req = o.VM
	case *blixardv1.Volume:
		o.Name, o.Volume = m.GetName(), &blixardv1.CreateVolumeRequest{Name: m.GetName(), SizeBytes: m.GetSizeBytes(), Node: m.GetNode(), Labels: m.GetLabels(), Project: m.GetProject()}
		req = o.Volume
	case *blixardv1.Network:
		o.Name, o.Network = m.GetName(), &blixardv1.CreateNetworkRequest{
			Name: m.GetName(), Type: m.GetType(), Ipv4Subnet: m.GetIpv4Subnet(), Ipv6Subnet: m.GetIpv6Subnet(), Mtu: m.GetMtu(), Rules: m.GetRules(), Labels: m.GetLabels(),
		}
		req = o.Network
	case *blixardv1.Group:
		if m.GetSpec().GetVm() == nil {
			return nil, r.problem(n.Line, "manifest.field", "the group %q has no spec.vm", m.GetName()).WithHint("add spec with replicas, and vm with at least an image")
		}
		o.Name, o.Group = m.GetName(), &blixardv1.CreateGroupRequest{Name: m.GetName(), Spec: m.GetSpec(), Project: m.GetProject()}
		req = o.Group
	case *blixardv1.Schedule:
		if m.GetSpec().GetTask() == nil {
			return nil, r.problem(n.Line, "manifest.field", "the schedule %q has no spec.task", m.GetName()).WithHint("add spec with cron, and task with vm")
		}
		o.Name, o.Schedule = m.GetName(), &blixardv1.CreateScheduleRequest{Name: m.GetName(), Spec: m.GetSpec(), Labels: m.GetLabels(), Project: m.GetProject()}
		req = o.Schedule
	case *blixardv1.Task:
		if m.GetSpec().GetVm() == nil {
			return nil, r.problem(n.Line, "manifest.field", "the task %q has no spec.vm", m.GetName()).WithHint("add spec with vm, and in it at least an image")
		}
		o.Name, o.Task = m.GetName(), &blixardv1.SubmitTaskRequest{Name: m.GetName(), Spec: m.GetSpec(), Labels: m.GetLabels(), Project: m.GetProject()}
		req = o.Task
	}
	if o.Name == "" {
		return nil, r.problem(n.Line, "manifest.field", "the %s has no name", kind).WithHint("add name")
	}
	// Names of volumes have no project in them.
	if of, is := req.(interface{ GetProject() string }); is && kind != KindVolume {
		if o.Name, err = objectname.Resolve(of.GetProject(), o.Name); err != nil {
			p := problem.From(err)
			return nil, r.problem(n.Line, p.Code, "%s", p.Message).WithHint("%s", p.Hint)
		}
	}
	return o, r.check(n, req)
}

// kind takes the field out that says what an object is. One with a spec is a VM.
func (r *reader) kind(n *yaml.Node) (string, error) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != "kind" {
			continue
		}
		word, line := n.Content[i+1].Value, n.Content[i+1].Line
		n.Content = slices.Delete(slices.Clone(n.Content), i, i+2)
		for _, k := range Kinds() {
			if strings.EqualFold(k, word) {
				return k, nil
			}
		}
		p := r.problem(line, "manifest.kind", "there is no kind %q", word)
		if near := nearest.Of(word, Kinds()); near != "" {
			return "", p.WithHint("did you mean %s?", near)
		}
		return "", p.WithHint("it can be %s", strings.Join(Kinds(), ", "))
	}
	if _, spec := field(n, "spec"); spec != nil {
		return KindVM, nil
	}
	return "", r.problem(n.Line, "manifest.kind", "an object without a kind").WithHint("add kind: %s", strings.Join(Kinds(), ", "))
}

// json writes a tree as JSON whose lines are those of the file, so that the decoder's
// errors name them.
func (r *reader) json(b *bytes.Buffer, n *yaml.Node, line *int, depth int) error {
	if depth > depthMax {
		return r.problem(n.Line, "manifest.too_large", "more than %d levels", depthMax).WithHint("objects of the API have few")
	}
	for ; *line < n.Line; *line++ {
		b.WriteByte('\n')
	}
	switch n.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				b.WriteByte(',')
			}
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
				return r.problem(key.Line, "manifest.syntax", "a key must be a word").WithHint("write it out; anchors and merges are not taken")
			}
			for ; *line < key.Line; *line++ {
				b.WriteByte('\n')
			}
			quoted, _ := json.Marshal(key.Value)
			b.Write(quoted)
			b.WriteByte(':')
			if err := r.json(b, n.Content[i+1], line, depth+1); err != nil {
				return err
			}
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, one := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := r.json(b, one, line, depth+1); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case yaml.ScalarNode:
		return r.scalar(b, n)
	default:
		return r.problem(n.Line, "manifest.syntax", "anchors and aliases are not taken").WithHint("write it out")
	}
	return nil
}

func (r *reader) scalar(b *bytes.Buffer, n *yaml.Node) error {
	var value any = n.Value
	switch n.Tag {
	case "!!null":
		value = nil
	case "!!bool", "!!int", "!!float":
		if err := n.Decode(&value); err != nil {
			return r.problem(n.Line, "manifest.syntax", "%q is no %s", n.Value, strings.TrimPrefix(n.Tag, "!!")).WithHint("put it in quotes if it is a text")
		}
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return r.problem(n.Line, "manifest.syntax", "%q is no number that can be kept", n.Value).WithHint("put it in quotes if it is a text")
	}
	b.Write(raw)
	return nil
}

var (
	decodedAt    = regexp.MustCompile(`\(line (\d+):\d+\):\s*(.*)$`)
	unknownField = regexp.MustCompile(`unknown field "([^"]+)"`)
)

// decodeProblem says in our words what does not fit the message.
func (r *reader) decodeProblem(err error, m proto.Message) error {
	line, text := 0, err.Error()
	if at := decodedAt.FindStringSubmatch(text); at != nil {
		if text = at[2]; !r.mixed {
			line, _ = strconv.Atoi(at[1])
		}
	}
	p := r.problem(line, "manifest.field", "%s", text)
	if f := unknownField.FindStringSubmatch(text); f != nil {
		if near := nearest.Of(f[1], fieldNames(m.ProtoReflect().Descriptor())); near != "" {
			return p.WithHint("did you mean %s?", near)
		}
	}
	return p.WithHint("the fields are those of the API, as `blixard vm inspect` shows them")
}

// fieldNames of a message and of all in it.
func fieldNames(d protoreflect.MessageDescriptor) []string {
	var names []string
	seen := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(d protoreflect.MessageDescriptor) {
		if seen[d.FullName()] {
			return
		}
		seen[d.FullName()] = true
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			names = append(names, f.JSONName())
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	walk(d)
	return names
}

// check asks the API's own rules, as the server does.
func (r *reader) check(n *yaml.Node, req proto.Message) error {
	err := protovalidate.Validate(req)
	var v *protovalidate.ValidationError
	if !errors.As(err, &v) {
		return err
	}
	var all []error
	for _, one := range v.Violations[:min(len(v.Violations), errorsMax)] {
		path := protovalidate.FieldPathString(one.Proto.GetField())
		all = append(all, r.problem(lineOf(n, fieldPath(path)), "manifest.field", "%s: %s", path, one.Proto.GetMessage()).
			WithHint("mend the value"))
	}
	return errors.Join(all...)
}

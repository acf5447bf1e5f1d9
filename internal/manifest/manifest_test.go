package manifest

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

const good = `# a site
kind: VM
name: web
labels: {app: web}
spec:
  image: busybox
  memory_mib: 512
  command:
  - sh
  - -c
  - |
    echo hello
    exec sleep 1000
  ports: [{hostPort: 8080, guestPort: 80}]
  volumes:
  - volume: data
    path: /data
---
- kind: volume
  name: data
  sizeBytes: 1073741824
- kind: Network
  name: back
  rules:
    isolated: true
---
kind: group
name: crew
spec: {replicas: 3, vm: {image: busybox}}
---
kind: Schedule
name: nightly
labels: {app: web}
spec:
  cron: "@daily"
  task: {vm: {image: busybox}}
---
kind: Task
name: first-of-all
spec: {after: [sum], vm: {image: busybox}}
---
kind: Task
name: sum
labels: {app: web}
spec: {retries: 2, vm: {image: busybox}}
`

func TestRead(t *testing.T) {
	objects, err := Read("site.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if err := Sort(objects); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, o.Kind+" "+o.Name+" "+o.Where)
	}
	if want := "Network back site.yaml:22; Volume data site.yaml:19; VM web site.yaml:2; Group crew site.yaml:27; Schedule nightly site.yaml:31; Task sum site.yaml:42; Task first-of-all site.yaml:38"; strings.Join(got, "; ") != want {
		t.Errorf("%s", strings.Join(got, "; "))
	}
	vm := objects[2].VM
	if vm.GetSpec().GetMemoryMib() != 512 || vm.GetSpec().GetCommand()[2] != "echo hello\nexec sleep 1000\n" || vm.GetLabels()["app"] != "web" || vm.GetSpec().GetPorts()[0].GetHostPort() != 8080 {
		t.Errorf("%v", vm)
	}
	if g := objects[3].Group; g.GetName() != "crew" || g.GetSpec().GetReplicas() != 3 || g.GetSpec().GetVm().GetImage() != "busybox" {
		t.Errorf("%v", g)
	}
	if o := objects[4].Schedule; o.GetName() != "nightly" || o.GetSpec().GetCron() != "@daily" || o.GetLabels()["app"] != "web" {
		t.Errorf("%v", o)
	}
	if o := objects[5].Task; o.GetName() != "sum" || o.GetSpec().GetRetries() != 2 || o.GetLabels()["app"] != "web" {
		t.Errorf("%v", o)
	}
	if !objects[0].Network.GetRules().GetIsolated() || objects[1].Volume.GetSizeBytes() != 1<<30 {
		t.Errorf("%v, %v", objects[0].Network, objects[1].Volume)
	}
	// The three forms mean the same.
	raw, err := protojson.Marshal(vm)
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		"vm.json": string(raw),
		"vm.toml": "kind = \"VM\"\nname = \"web\"\n[labels]\napp = \"web\"\n[spec]\nimage = \"busybox\"\nmemoryMib = 512\ncommand = [\"sh\", \"-c\", \"echo hello\\nexec sleep 1000\\n\"]\n" +
			"[[spec.ports]]\nhostPort = 8080\nguestPort = 80\n[[spec.volumes]]\nvolume = \"data\"\npath = \"/data\"\n",
		"list.toml": "[[object]]\nkind = \"VM\"\nname = \"web\"\nlabels = {app = \"web\"}\nspec = {image = \"busybox\", memoryMib = 512, command = [\"sh\", \"-c\", \"echo hello\\nexec sleep 1000\\n\"], " +
			"ports = [{hostPort = 8080, guestPort = 80}], volumes = [{volume = \"data\", path = \"/data\"}]}\n",
	} {
		same, err := Read(file, []byte(text))
		if err != nil || len(same) != 1 {
			t.Errorf("%s: %v, %v", file, same, err)
			continue
		}
		if again, _ := protojson.Marshal(same[0].VM); compact(again) != compact(raw) {
			t.Errorf("%s gives %s, not %s", file, again, raw)
		}
	}
	for _, empty := range []string{"", "---\n---\n", "# nothing\n", "[]"} {
		if objects, err := Read("empty.yaml", []byte(empty)); err != nil || len(objects) != 0 {
			t.Errorf("%q: %v, %v", empty, objects, err)
		}
	}
	if objects, err := Read("empty.toml", nil); err != nil || len(objects) != 0 {
		t.Errorf("an empty TOML: %v, %v", objects, err)
	}
}

// compact takes the spaces out that protojson puts in at random.
func compact(raw []byte) string { return strings.ReplaceAll(string(raw), " ", "") }

// Errors name the line, the field, and what was meant.
func TestMistakes(t *testing.T) {
	for _, tc := range []struct {
		name, file, text, code, says, hint string
	}{
		{"a field", "a.yaml", "kind: VM\nname: web\nspec:\n  imag: busybox\n", "manifest.field", `a.yaml:4: unknown field "imag"`, "did you mean image?"},
		{"a type", "a.yaml", "kind: VM\nname: web\nspec:\n  image: busybox\n  vcpus: many\n", "manifest.field", "a.yaml:5: invalid value for uint32", ""},
		{"a word", "a.yaml", "kind: VM\nname: web\nspec:\n  image: busybox\n  onNodeLoss: failver\n", "manifest.field", "a.yaml:5: invalid value for enum", ""},
		{"a rule of the API", "a.yaml", "kind: VM\nname: web\nspec:\n  image: busybox\n\n  memoryMib: 3\n", "manifest.field", "a.yaml:6: spec.memory_mib: memory must be from 64MiB to 1TiB", ""},
		{"a rule deep down", "a.yaml", "kind: VM\nname: web\nspec:\n  image: busybox\n  ports:\n  - {hostPort: 80, guestPort: 80}\n  - hostPort: 99999\n    guestPort: 80\n", "manifest.field", "a.yaml:7: spec.ports[1].host_port", ""},
		{"a name", "a.yaml", "kind: VM\nname: Web_1\nspec: {image: busybox}\n", "manifest.field", "a.yaml:2: name: a name has 1 to 63", ""},
		{"no name", "a.yaml", "kind: Volume\nsizeBytes: 1073741824\n", "manifest.field", "a.yaml:1: the Volume has no name", "add name"},
		{"no spec", "a.yaml", "kind: VM\nname: web\n", "manifest.field", `a.yaml:1: the VM "web" has no spec`, ""},
		{"a rule of a group", "a.yaml", "kind: Group\nname: g\nspec:\n  replicas: 2000\n  vm: {image: busybox}\n", "manifest.field", "a.yaml:4: spec.replicas", ""},
		{"no template", "a.yaml", "kind: Group\nname: g\nspec: {replicas: 2}\n", "manifest.field", `a.yaml:1: the group "g" has no spec.vm`, "at least an image"},
		{"no task", "a.yaml", "kind: Schedule\nname: s\nspec: {cron: \"@daily\"}\n", "manifest.field", `a.yaml:1: the schedule "s" has no spec.task`, "add spec"},
		{"no VM", "a.yaml", "kind: Task\nname: t\nspec: {retries: 1}\n", "manifest.field", `a.yaml:1: the task "t" has no spec.vm`, "at least an image"},
		{"a rule of a task", "a.yaml", "kind: Task\nname: t\nspec:\n  retries: 20000\n  vm: {image: busybox}\n", "manifest.field", "a.yaml:4: spec.retries", ""},
		{"a kind", "a.yaml", "name: web\nkind: Volum\n", "manifest.kind", `a.yaml:2: there is no kind "Volum"`, "did you mean Volume?"},
		{"no kind", "a.yaml", "name: web\n", "manifest.kind", "a.yaml:1: an object without a kind", ""},
		{"no object", "a.yaml", "just words\n", "manifest.syntax", "a.yaml:1: an object is missing", ""},
		{"syntax", "a.yaml", "kind: VM\nname: [web\n", "manifest.syntax", "a.yaml:", ""},
		{"tabs", "a.yaml", "kind: VM\n\tname: web\n", "manifest.syntax", "a.yaml:2:", ""},
		{"twice in one object", "a.yaml", "kind: VM\nname: web\nname: db\nspec: {image: busybox}\n", "manifest.field", `a.yaml:3: duplicate field "name"`, ""},
		{"an alias", "a.yaml", "kind: VM\nname: &n web\nspec: {image: *n}\n", "manifest.syntax", "a.yaml:3: anchors and aliases are not taken", "write it out"},
		{"a merge", "a.yaml", "kind: VM\nname: web\nspec:\n  <<: {image: busybox}\n", "manifest.syntax", "a.yaml:4: a key must be a word", ""},
		{"deep", "a.yaml", "kind: VM\nname: " + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "\n", "manifest.too_large", "more than 32 levels", ""},
		{"JSON", "a.json", "{\"kind\": \"VM\",\n \"name\": \"web\",\n \"spec\": {\"image\": \"busybox\", \"diskBytes\": 1}}", "manifest.field", "a.json:3: spec.disk_bytes", ""},
		{"TOML syntax", "a.toml", "kind = \"VM\"\nname = web\n", "manifest.syntax", "a.toml:2:", ""},
		{"TOML field", "a.toml", "kind = \"VM\"\nname = \"web\"\n[spec]\nimag = \"busybox\"\n", "manifest.field", `a.toml:4: unknown field "imag"`, "did you mean image?"},
		{"TOML of which parts stand apart", "a.toml", "kind = \"VM\"\n[spec]\nimage = \"busybox\"\n[labels]\na = \"b\"\n[spec.restart]\nmod = 1\n", "manifest.field", `a.toml: unknown field "mod"`, "did you mean mode?"},
		{"TOML value", "a.toml", "[[object]]\nkind = \"VM\"\nname = \"web\"\n[object.spec]\nimage = \"busybox\"\nvcpus = 1000\n", "manifest.field", "a.toml:6: spec.vcpus", "mend"},
		{"TOML list of what is no object", "a.toml", "object = [1]\n", "manifest.syntax", "a.toml:1: an object is missing", ""},
		{"infinite", "a.yaml", "kind: VM\nname: web\nspec: {image: busybox, vcpus: .inf}\n", "manifest.syntax", "a.yaml:3:", ""},
		{"large", "a.yaml", strings.Repeat("#", BytesMax+1), "manifest.too_large", "a.yaml has", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			objects, err := Read(tc.file, []byte(tc.text))
			p := problem.From(err)
			if err == nil || p.Kind != problem.Invalid || p.Code != tc.code || !strings.Contains(strings.ReplaceAll(p.Error(), "\u00a0", " "), tc.says) || !strings.Contains(p.Hint, tc.hint) || p.Hint == "" {
				t.Errorf("%v: %v (%s), hint %q", objects, err, p.Code, p.Hint)
			}
		})
	}
	all, err := Read("two.yaml", []byte("kind: VM\nname: a\nspec: {imag: x}\n---\nkind: VM\nname: b\nspec: {image: busybox}\n---\nkind: VM\nname: c\nspec: {image: busybox, vcpus: 1000}\n"))
	if err == nil || len(all) != 1 || !strings.Contains(err.Error(), "two.yaml:3:") || !strings.Contains(err.Error(), "two.yaml:11:") {
		t.Errorf("several mistakes: %v", err)
	}
	twice, err := Read("a.yaml", []byte("kind: Volume\nname: a\n---\nkind: Volume\nname: a\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Sort(twice); !problem.HasCode(err, "manifest.duplicate") || !strings.Contains(err.Error(), `a.yaml:4: Volume "a" stands at a.yaml:1`) {
		t.Errorf("two of a name: %v", err)
	}
}

// Tasks come behind those that they come after, and otherwise by name; circles are refused.
func TestTasksInOrder(t *testing.T) {
	for _, tc := range []struct{ after, want, says string }{
		{after: "a: ; b: ; c: ", want: "a b c"},
		{after: "a: b c; b: c; c: elsewhere; d: ", want: "c b a d"},
		{after: "a: z; m: a; z: ", want: "z a m"},
		{after: "a: a", says: `task "a" comes after itself`},
		{after: "a: ; b: c; c: d; d: b a", says: `task "b" comes after itself, by way of "d"`},
	} {
		var objects []*Object
		for one := range strings.SplitSeq(tc.after, "; ") {
			name, refs, _ := strings.Cut(one, ": ")
			objects = append(objects, &Object{Kind: KindTask, Name: name, Task: &blixardv1.SubmitTaskRequest{Spec: &blixardv1.TaskSpec{After: strings.Fields(refs)}}})
		}
		objects = append(objects, &Object{Kind: KindVM, Name: "vm"})
		err := Sort(objects)
		if tc.says != "" {
			if !problem.HasCode(err, "manifest.circle") || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v", tc.after, err)
			}
			continue
		}
		var got []string
		for _, o := range objects[1:] {
			got = append(got, o.Name)
		}
		if err != nil || strings.Join(got, " ") != tc.want || objects[0].Kind != KindVM {
			t.Errorf("%s: %v, %v", tc.after, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("a.yaml", good)
	f.Add("a.toml", "[[object]]\nkind = \"VM\"\n")
	f.Add("a.toml", fieldsTOML)
	f.Add("a.json", `{"kind": "VM", "name": 1, "spec": {"image": null}}`)
	f.Add("a.yaml", "? [a, b]\n: {}\n")
	f.Add("a.yaml", "!!binary |\n  aGk=\n")
	f.Fuzz(func(t *testing.T, file, text string) {
		objects, err := Read(file, []byte(text))
		for _, o := range objects {
			set := 0
			for _, is := range []bool{o.VM != nil, o.Volume != nil, o.Network != nil, o.Group != nil, o.Schedule != nil, o.Task != nil} {
				if is {
					set++
				}
			}
			if o.Name == "" || o.Kind == "" || set != 1 {
				t.Errorf("%q gives %+v", text, o)
			}
		}
		if err != nil && problem.From(err).Kind == problem.Internal {
			t.Errorf("%q: %v", text, err)
		}
	})
}

package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

const fieldsYAML = `# a site
kind: VM
name: web
labels:
  app: web
  app_x: a
  "a.b/c": c
spec:
  image: busybox
  memoryMib:
    512
  noNetwork: true
  ports: [
    {hostPort: 8080, guestPort: 80},
    {hostPort: 8081,
     guestPort: 80}]
  volumes:
  - volume: data
    path: /data
  - {volume: more, path: /more}
  scheduling:
    constraints:
    -
      key: zone
      operator: equal
      values: [a]
---
- kind: Volume
  name: data
  size_bytes: 1073741824
- kind: Network
  name: back
  ipv4Subnet: 10.80.0.0/16
  rules:
    isolated: true
---

kind: Group
name: crew
spec:
  replicas: 3
  vm:
    image: busybox
  labels: {a: a,
    b: b}
`

const fieldsTOML = `# many objects
[[object]]
kind = "VM"
name = "web"
labels = {app = "x", b = "y"}
[object.spec]
image = "busybox"
memoryMib = 512
command = [
  "sh", "-c", "true"]
[[object.spec.ports]]
guestPort = 80
hostPort = 8080
[[object.spec.ports]]
guestPort = 81
"hostPort" = 8081
[object.spec.restart]
maxRestarts = 3

[[object]]
kind = "Volume"
name = "data"
sizeBytes = 1_073_741_824
[[object]]
kind = "Group"
name = "crew"
spec.vm.image = "busybox"
spec.replicas = 2
`

// A field that the cluster names is found in the file, or the nearest one around it.
func TestFieldWhere(t *testing.T) {
	for _, tc := range []struct {
		file, text string
		// want has the lines of the fields of each object, by its name; none is 0.
		want map[string]string
	}{
		{"a.yaml", fieldsYAML, map[string]string{
			"web": `name 3; labels 4; labels["app"] 5; labels["app_x"] 6; labels["appx"] 4; labels["App"] 4; labels["a.b/c"] 7; spec 8; spec.image 9; spec.memory_mib 10;
				spec.memoryMib 10; spec.no_network 12; spec.ports 13; spec.ports[0].guest_port 14; spec.ports[1] 15; spec.ports[1].guest_port 16; spec.ports[1].protocol 15;
				spec.ports[2].guest_port 13; spec.ports["0"] 13; spec.ports[-1] 13; spec.volumes[0] 18; spec.volumes[0].path 19; spec.volumes[1].path 20;
				spec.scheduling.constraints[0] 24; spec.scheduling.constraints[0].values[0] 26; spec.scheduling.spreads[0].over 21; spec.vcpus 8; spec.image.tag 9;
				vm.spec.image 9; vms[3].spec.image 9; idempotency_key 2; project 2;  2; spec. 8; spec..image 8; [x] 2; spec.ports[ 13; spec.ports[1 13; spec.ports["a 13; spec.ports[0]x 14`,
			"data": "size_bytes 30; node 28; name 29",
			"back": "ipv4_subnet 33; ipv4Subnet 33; rules.isolated 35; rules.allow[0] 34; type 31",
			"crew": `spec.vm.image 43; spec.replicas 41; spec.labels["b"] 45; spec.labels["c"] 44; spec.update.max_surge 40`,
		}},
		{"a.json", "[{\"kind\": \"VM\",\n \"name\": \"web\",\n \"spec\": {\"image\": \"busybox\",\n  \"memory_mib\": 512,\n  \"ports\": [{\"hostPort\": 1,\n   \"guestPort\": 2}]}},\n{\"name\": \"data\", \"kind\": \"Volume\"}]", map[string]string{
			"web":  "name 2; spec.image 3; spec.memory_mib 4; spec.ports[0] 5; spec.ports[0].guest_port 6; labels 1",
			"data": "size_bytes 7",
		}},
		{"a.toml", fieldsTOML, map[string]string{
			"web": `name 4; spec 6; spec.image 7; spec.memory_mib 8; labels["app"] 5; labels["b"] 5; labels 5; spec.command[0] 10; spec.command[2] 10; spec.ports[0].guest_port 12;
				spec.ports[1] 14; spec.ports[1].host_port 16; spec.restart.max_restarts 18; spec.restart 17; spec.vcpus 6; project 2`,
			"data": "size_bytes 23; node 20",
			"crew": "spec.vm.image 27; spec.replicas 28; spec.vm.vcpus 27; spec 27",
		}},
		{"one.toml", "name = \"web\"\n[spec]\nimage = \"busybox\"\n", map[string]string{"web": "name 1; spec 2; spec.image 3; labels 1"}},
		{"inline.toml", "object = [\n {name = \"web\", spec = {image = \"busybox\"}},\n {name = \"db\", spec = {image = \"busybox\"}}]\n", map[string]string{
			"web": "spec.image 2; labels 2", "db": "name 3; spec.image 3; labels 3",
		}},
	} {
		objects, err := Read(tc.file, []byte(tc.text))
		if err != nil || len(objects) != len(tc.want) {
			t.Errorf("%s: %v, %v", tc.file, objects, err)
			continue
		}
		for _, o := range objects {
			for one := range strings.SplitSeq(tc.want[o.Name], ";") {
				one = strings.Trim(one, "\n\t")
				at := strings.LastIndexByte(one, ' ')
				want := tc.file + ":" + one[at+1:]
				if one[at+1:] == "0" {
					want = tc.file
				}
				if got := o.FieldWhere(strings.TrimPrefix(one[:at], " ")); got != want {
					t.Errorf("%s of %s is at %s, want %s", one[:at], o.Name, got, want)
				}
			}
		}
	}
	if o := (&Object{Kind: KindVM, Where: "--prune"}); o.FieldWhere("spec.image") != "--prune" {
		t.Error("what no file has is where it is")
	}
}

// The paths are those that the API's own checks write.
func TestFieldPathOfChecks(t *testing.T) {
	for want, req := range map[string]proto.Message{
		`spec.ports[1].host_port`: &blixardv1.CreateVMRequest{Name: "a", Spec: &blixardv1.VMSpec{Image: "b", Ports: []*blixardv1.PublishedPort{{HostPort: 1, GuestPort: 1}, {HostPort: 99999, GuestPort: 1}}}},
		`labels["a\"]\n.b"]`:      &blixardv1.CreateVMRequest{Name: "a", Spec: &blixardv1.VMSpec{Image: "b"}, Labels: map[string]string{"a\"]\n.b": ""}},
	} {
		err := protovalidate.Validate(req)
		if err == nil || !strings.Contains(err.Error(), want+":") {
			t.Fatalf("%v has no %s", err, want)
		}
		if got := written(fieldPath(want)); got != want {
			t.Errorf("%s is read as %s", want, got)
		}
	}
}

// written is a path as it was read.
func written(path []element) string {
	var words []string
	for _, e := range path {
		switch {
		case e.quoted:
			words = append(words, fmt.Sprintf("%s[%s]", e.name, strconv.Quote(e.chosen)))
		case e.chooses:
			words = append(words, fmt.Sprintf("%s[%s]", e.name, e.chosen))
		default:
			words = append(words, e.name)
		}
	}
	return strings.Join(words, ".")
}

func FuzzFieldPath(f *testing.F) {
	for _, seed := range []string{"spec.ports[1].host_port", `labels["a.b"].x`, "spec..x", "[a]", `a["`, "a[`b`]", "a['b']", "a[1][2]"} {
		f.Add(seed)
	}
	objects, err := Read("a.yaml", []byte(fieldsYAML))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		path := fieldPath(text)
		if again := fieldPath(written(path)); !slices.Equal(again, path) {
			t.Errorf("%q is read as %+v, and that as %+v", text, path, again)
		}
		for _, o := range objects {
			line, err := strconv.Atoi(strings.TrimPrefix(o.FieldWhere(text), "a.yaml:"))
			first, _ := strconv.Atoi(strings.TrimPrefix(o.Where, "a.yaml:"))
			if err != nil || line < first || line > strings.Count(fieldsYAML, "\n") {
				t.Errorf("%q is at line %d of an object that begins at %d: %v", text, line, first, err)
			}
		}
	})
}

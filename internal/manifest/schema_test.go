package manifest

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// The schema for editors takes what Read takes, and refuses mistakes.
func TestSchema(t *testing.T) {
	f, err := os.Open("../../docs/manifest.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	doc, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("manifest.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	for text, right := range map[string]bool{
		"kind: VM\nname: web\nspec: {image: busybox, memoryMib: 512, ports: [{hostPort: 80, guestPort: 80}], onNodeLoss: failover}": true,
		"- {kind: Volume, name: data, sizeBytes: 1073741824}\n- {kind: Network, name: back, rules: {isolated: true}}":               true,
		"kind: Group\nname: g\nspec: {replicas: 2, vm: {image: busybox}, update: {canary: 1}}":                                      true,
		"kind: Schedule\nname: s\nspec: {cron: '@daily', task: {vm: {image: busybox}}}":                                             true,
		"kind: Task\nname: t\nspec: {after: [s], retries: 2, vm: {image: busybox}}":                                                 true,
		"kind: Task\nname: t\nspec: {after: s, vm: {image: busybox}}":                                                               false,
		"kind: Group\nname: g\nspec: {replicas: many, vm: {image: busybox}}":                                                        false,
		"kind: Schedule\nname: s\nspec: {cronn: '@daily'}":                                                                          false,
		"kind: VM\nname: web\nspec: {imag: busybox}":                                                                                false,
		"kind: VM\nname: web\nspec: {image: busybox, vcpus: many}":                                                                  false,
		"kind: VM\nname: web\nspec: {image: busybox, onNodeLoss: failver}":                                                          false,
		"kind: VM\nname: web\nspec: {image: busybox, ports: [{hostPort: 99999}]}":                                                   false,
		"kind: Volum\nname: web":                   false,
		"name: web":                                false,
		"kind: VM\nspec: {image: busybox}":         false,
		"kind: Network\nname: n\nspec: {image: x}": false,
	} {
		var tree any
		if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		var value any
		if err := json.Unmarshal(raw, &value); err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(value); (err == nil) != right {
			t.Errorf("%s: %v", text, err)
		}
	}
}

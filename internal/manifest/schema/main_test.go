package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/manifest"
)

// Each kind becomes a case of its own, with the field that says which.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	for _, kind := range manifest.Kinds() {
		bundle := fmt.Sprintf(`{"$defs": {"blixard.v1.%s.jsonschema.json": {"$schema": "x", "properties": {"name": {}}}, "blixard.v1.Shared": {}}}`, kind)
		if err := os.WriteFile(filepath.Join(dir, "blixard.v1."+kind+".jsonschema.bundle.json"), []byte(bundle), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	if err := write(&b, dir); err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Defs map[string]struct {
			Schema     string `json:"$schema"`
			Properties map[string]map[string]string
			Required   []string
		} `json:"$defs"`
		Else struct{ AllOf []any }
	}
	if err := json.Unmarshal([]byte(b.String()), &schema); err != nil {
		t.Fatal(err)
	}
	vm := schema.Defs["blixard.v1.VM.jsonschema.json"]
	if len(schema.Defs) != len(manifest.Kinds())+1 || len(schema.Else.AllOf) != len(manifest.Kinds()) || vm.Properties["kind"]["const"] != "VM" || vm.Schema != "" || len(vm.Required) != 2 {
		t.Errorf("%s", b.String())
	}
	for _, broken := range []string{"{", `{"$defs": {}}`} {
		if err := os.WriteFile(filepath.Join(dir, "blixard.v1.VM.jsonschema.bundle.json"), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := write(&b, dir); err == nil {
			t.Errorf("%s is taken", broken)
		}
	}
	if err := write(&b, t.TempDir()); err == nil {
		t.Error("an empty directory is taken")
	}
}

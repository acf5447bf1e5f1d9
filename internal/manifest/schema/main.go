// Command schema makes the JSON Schema of files that `blixard apply` reads, of the schemas
// of the API's objects in the directory that it is given; `make generate` runs it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"

	"github.com/blixard/blixard/internal/manifest"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: schema DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write puts the objects beside each other: each gets its kind, which its message lacks.
func write(w io.Writer, dir string) error {
	defs := map[string]any{}
	var kinds []any
	for _, kind := range manifest.Kinds() {
		raw, err := os.ReadFile(filepath.Join(dir, "blixard.v1."+kind+".jsonschema.bundle.json"))
		if err != nil {
			return err
		}
		var bundle struct {
			Defs map[string]map[string]any `json:"$defs"`
		}
		if err := json.Unmarshal(raw, &bundle); err != nil {
			return err
		}
		own := "blixard.v1." + kind + ".jsonschema.json"
		object := bundle.Defs[own]
		properties, ok := object["properties"].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: no properties", own)
		}
		properties["kind"] = map[string]any{"const": kind}
		object["required"] = []string{"kind", "name"}
		for name, def := range maps.All(bundle.Defs) {
			delete(def, "$schema")
			defs[name] = def
		}
		kinds = append(kinds, map[string]any{
			"if":   map[string]any{"type": "object", "properties": map[string]any{"kind": map[string]any{"const": kind}}, "required": []string{"kind"}},
			"then": map[string]any{"$ref": "#/$defs/" + own},
		})
	}
	object := map[string]any{
		"type": "object", "required": []string{"kind"},
		"properties": map[string]any{"kind": map[string]any{"enum": manifest.Kinds()}},
		"allOf":      kinds,
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	enc.SetEscapeHTML(false)
	return enc.Encode(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "Files of blixard apply",
		"$defs":   defs,
		"if":      map[string]any{"type": "array"},
		"then":    map[string]any{"items": object},
		"else":    object,
	})
}

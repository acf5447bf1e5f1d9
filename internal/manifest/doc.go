// Package manifest reads objects of the API from files that people write: YAML, JSON or
// TOML, with the field names of the API, and errors that name file, line and field.
//
// It is not what applies them: it knows no cluster.
package manifest

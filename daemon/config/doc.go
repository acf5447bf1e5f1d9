// Package config reads how a node shall run: defaults, then a TOML file, then
// the environment (BLIXARD_*), then flags, each stronger than the one before.
//
// One table (keys.go) is the source of the defaults, of what is accepted, of the
// flags' help, of `blixard config show` and of docs/CONFIGURATION.md.
//
// It is not the settings of a cluster, which live in the replicated state, and
// it starts nothing.
package config

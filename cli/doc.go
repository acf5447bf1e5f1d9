// Package cli is the command line of blixard: flags in; a table, JSON or YAML
// out; progress on standard error.
//
// It is a user of package client and decides nothing about VMs. The exceptions
// are the commands that are the node rather than speak to it: node start,
// supervisor, bundle and config.
//
// Standard output holds what was asked for and nothing else, so that it can be
// piped; all else goes to standard error. Exit codes are in exit.go.
package cli

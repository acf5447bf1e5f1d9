// Package version says which blixard this is.
//
// It is not the version of what is on disk or on the wire; those are numbered
// where they are defined.
package version

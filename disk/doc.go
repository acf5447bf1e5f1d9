// Package disk makes what becomes a block device of a VM: today the writable
// root disk that guest init lays over the read-only image.
//
// It is not where images come from (guest/bundle) and attaches nothing itself:
// it makes files, and keeps a placement with an older epoch from using them.
package disk

// Package localpath says where blixard keeps things on a host when nobody said
// otherwise: one answer for the daemon that makes them and the client that looks
// for them.
//
// It is not configuration: it reads no file and creates nothing.
package localpath

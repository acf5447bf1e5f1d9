// Package filelock holds advisory locks on files between processes of one host.
//
// It is not a lease: the kernel frees a lock when its process ends, however that happens, and no
// other host sees it.
package filelock

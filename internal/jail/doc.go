// Package jail confines a thread and what is forked from it: a root directory
// with a program and its libraries and nothing else, namespaces of its own, no
// capability, no new privilege, and Landlock over all of that.
//
// It is not a sandbox for whole programs: the calling thread can't get out again,
// so it is one that ends when it has served. It knows no hypervisor and starts no
// process. Without the rights of root it does what it can and says what it can't.
//
// In the new root a descriptor N that the process will have can be opened as
// /proc/self/fd/N, though there is no /proc, if it is of a file for reading only.
package jail

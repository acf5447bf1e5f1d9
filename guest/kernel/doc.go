// Package kernel gets kernels that microVMs boot, and looks into kernel files.
//
// It knows two: Debian's stock cloud kernel, whose package is downloaded and unpacked but never
// installed (FetchStock), and blixard's own, compiled from Debian's kernel source with the options in
// the file config and the patches in the directory patches (Build, Cached). Both live in a cache
// directory, named by what they were made of.
//
// Inspect and ExtractVmlinux read any kernel file. Such a file may be hostile: every size in it is
// checked before it is used, and what it unpacks to is limited.
//
// It is not the bundle (guest/bundle), which adds an initramfs and a command line, and it boots
// nothing; its benchmark does, to hold the choices written in docs/PERFORMANCE.md.
package kernel

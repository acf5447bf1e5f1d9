// Package image makes root disks of images: what a registry, an archive, a disk
// file or another node has becomes one read-only file with a file system that VMs
// start from, cached by digest and shared by all VMs of the node.
//
// Pull, Import and ImportDisk bring an image in, Receive copies a built one from
// another node, Get gives its disk. Layers are applied to a tree in memory and
// their content goes straight into an erofs file system: nothing of an image is ever
// unpacked into a file system of the host, so there is nothing to escape to, and no
// rights are needed. The same layers give the same bytes on every node.
//
// In the order of its duties: nothing is used before its digest was found right;
// nothing half-written is ever used, whenever the process is killed; whatever an
// image says is read within limits; a registry leads only where the operator said.
//
// It does not know which image a name stands for in the cluster, does not decide
// who may pull, writes to no registry, and runs nothing of an image. The writable
// disk over it is package disk's.
package image
